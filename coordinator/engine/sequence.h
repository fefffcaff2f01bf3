/* sequence.h - one request for tokens: what it has, what it waits for. Owned by the engine; one thread.
 *
 *   WAITING -> IN_PASS (prefill) -> PREFILL -> ... -> READY -> IN_PASS (decode) -> READY -> ... -> finished
 *      ^------------------ preempted: blocks given back ----------|
 *
 * GONE: finished, failed or cancelled while its rows were in a pass. The pass goes on writing keys and values of
 * all its rows, so the blocks stay with it until the pass ends; the name may be used again at once. */
#ifndef MOESAIC_ENGINE_SEQUENCE_H
#define MOESAIC_ENGINE_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/cluster/list.h"
#include "coordinator/engine/engine.h"

enum sequence_state {
    SEQUENCE_WAITING,
    SEQUENCE_PREFILL,
    SEQUENCE_READY,
    SEQUENCE_IN_PASS,
    SEQUENCE_GONE
};

struct sequence {
    uint64_t id;
    uint64_t age; /* submitted as the n-th: smaller is older; kept when preempted */
    enum sequence_state state;
    bool paused, ignore_eos, prompt_logits;
    bool was_preempted;
    uint32_t n_prompt, max_tokens;
    uint32_t n_encoder;        /* of the prompt, the encoder's */
    uint32_t n_tokens;         /* prompt and output so far */
    uint32_t n_kv;             /* of these, tokens with keys and values */
    uint32_t n_prompt_emitted; /* prompt logits told */
    uint32_t n_blocks;
    int32_t *tokens;  /* room for n_prompt + max_tokens, so that no later event allocates */
    uint32_t *blocks; /* room for the same */
    uint64_t submit_us, deadline_us;
    uint32_t slot, part; /* IN_PASS, GONE: where */
    struct list link;    /* in the waiting or running list */
};

/* A WAITING sequence of the submission, its prompt copied. NULL: no memory. */
struct sequence *sequence_open(const struct engine_event *submit, uint64_t age);
void sequence_close(struct sequence *s); /* NULL is fine; its blocks were given back */

static inline uint32_t sequence_n_output(const struct sequence *s)
{
    return s->n_tokens - s->n_prompt;
}

/* Sequences by name: open addressing, at most half full, sized once. */
struct sequence_map {
    struct sequence **slots;
    uint32_t mask; /* slots - 1 */
    uint32_t n;
};

enum err_code sequence_map_init(struct sequence_map *m, uint32_t max, struct err *why);
void sequence_map_deinit(struct sequence_map *m);
struct sequence *sequence_map_find(const struct sequence_map *m, uint64_t id);
void sequence_map_add(struct sequence_map *m, struct sequence *s); /* not in it, room is there */
void sequence_map_remove(struct sequence_map *m, const struct sequence *s);

#endif
