/* fake_model.h - a tiny exact model over 64-bit integers in place of the arithmetic, for tests of the engine.
 *
 * It has what makes a real one hard to serve: keys and values in blocks that it really reads back, experts whose
 * results it really adds, a token that depends on every earlier one. Sums are of hashes, so that one row missing,
 * doubled, late or written into somebody else's block gives other tokens. */
#ifndef MOESAIC_TESTS_SIM_FAKE_MODEL_H
#define MOESAIC_TESTS_SIM_FAKE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/engine/engine.h"

#define FAKE_VOCAB      97
#define FAKE_MAX_LAYERS 8
#define FAKE_MAX_TOP_K  4

struct fake_model {
    uint64_t seed;
    uint32_t n_layers, n_experts, top_k, n_kv_blocks;
    uint32_t n_encoder_layers; /* of engine_cfg */
    uint32_t rope_length;      /* of engine_cfg: longer sequences have other embeddings */
    bool is_moe[FAKE_MAX_LAYERS];
    uint64_t *kv; /* [n_kv_blocks][n_layers][64] */
};

/* One pass: the residual stream of its rows. */
struct fake_pass {
    uint32_t n_rows, cap;
    struct engine_row *rows; /* as they were at begin */
    uint64_t *hidden;        /* [n_rows] */
    uint16_t *experts;       /* [n_rows, top_k] ascending */
    uint64_t *results;       /* [n_rows, top_k] */
    uint8_t *written;        /* [n_rows, top_k] results since the last attention */
    int *bad_layer;          /* [n_rows] */
    struct engine_token *tokens;
    uint32_t *logit_rows; /* [n logit rows] row */
    uint32_t n_logit_rows;
};

void fake_model_open(struct fake_model *m);
void fake_model_close(struct fake_model *m);
void fake_pass_open(struct fake_pass *p, const struct fake_model *m, uint32_t cap);
void fake_pass_close(struct fake_pass *p);

/* Do a job. NULL: fine, else what was wrong, e.g. a live row without a result. */
const char *fake_model_run(struct fake_model *m, struct fake_pass *p, const struct engine_job *job,
                           const struct engine_row *rows, uint32_t n_rows);
/* What an expert answers for the hidden state of a row. */
uint64_t fake_expert(const struct fake_model *m, uint32_t layer, uint32_t expert, uint64_t hidden);

/* The truth: the n tokens that follow the prompt, computed row by row without engine, blocks and passes. */
void fake_model_truth(const struct fake_model *m, const int32_t *prompt, uint32_t n_prompt,
                      int32_t *out, uint32_t n);

#endif
