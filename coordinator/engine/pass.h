/* pass.h - one slot: the rows on their way through the layers together, and how far they are.
 * Knows sequences only as owners of rows; who may enter is the scheduler's business, what to do next the engine's.
 *
 *   FREE -> COMPUTING -> WAITING_FOR_REPLIES <-> WAITING_FOR_EXPERTS -> COMPUTING ... -> FREE
 */
#ifndef MOESAIC_ENGINE_PASS_H
#define MOESAIC_ENGINE_PASS_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/engine/engine.h"
#include "coordinator/engine/sequence.h"

enum pass_state {
    PASS_FREE,
    PASS_COMPUTING,
    PASS_WAITING_FOR_REPLIES,
    PASS_WAITING_FOR_EXPERTS, /* some entries can be asked of nobody */
};

/* The rows of one sequence: together, in ascending position. */
struct pass_part {
    struct sequence *sequence;
    uint32_t first, n;
    bool dead;
};

struct pass {
    enum pass_state state;
    uint32_t slot, cap;
    bool is_prefill;
    uint32_t rope_length; /* engine.h */
    uint32_t n_layers, n_encoder_layers;
    bool encodes; /* its rows are the encoder's; never mixed */
    uint32_t n_rows, n_parts, n_live_parts, n_logit_rows;
    struct engine_row *rows; /* [cap] */
    struct pass_part *parts; /* [cap] */
    bool *skip;              /* [cap] scratch: rows without experts in this layer */
    uint32_t next_layer;     /* first layer that did not run */
    struct engine_job job;   /* the last one named */
};

enum err_code pass_init(struct pass *p, uint32_t slot, uint32_t cap, bool is_prefill,
                        struct err *why);
void pass_deinit(struct pass *p);

/* An empty pass, before rows are added. */
void pass_clear(struct pass *p);
/* Add the next n tokens without keys and values of the sequence; the last token of a sequence gives the next one.
 * Puts the sequence IN_PASS. Room is there. */
void pass_add(struct pass *p, struct sequence *s, uint32_t n);
/* How many logit rows pass_add would make of token i of the sequence. */
bool pass_wants_logits(const struct sequence *s, uint32_t i);

/* Name the next job: the combine of combine_layer (-1: none), dense layers in one go up to the next MoE layer or the
 * end, the head. False: nothing is left to compute, because no row wants logits. */
bool pass_next_job(struct pass *p, const bool *is_moe, int combine_layer, struct engine_job *job);

/* Fill skip for the experts of a layer: dead rows. */
void pass_find_skips(struct pass *p);

#endif
