/* model.h - the arithmetic of the coordinator: embedding, attention, router, combine, head.
 * Knows neither engine nor cluster: it is given rows and buffers and runs one stage at a time on the workers.
 * A struct model is immutable after open. One model_pass is used by one thread (and its workers) at a time. */
#ifndef MOESAIC_MODEL_H
#define MOESAIC_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/model_file.h"
#include "common/sys/workers.h"
#include "coordinator/model/sampler.h"

#define KV_BLOCK_TOKENS 64u

struct model;

/* Pack embedding, attention, router, dense layers and head (never a routed expert). quantize: plan.h.
 * Source pages are dropped once packed. Passes may later run on any workers with at most as many threads as `w`.
 * EXHAUSTED, INVALID (quantize), UNSUPPORTED (names the tensor). */
enum err_code model_open(const struct model_file *file, const char *quantize,
                         const struct kernels *k, struct workers *w, struct model **out,
                         struct err *why);
void model_close(struct model *m);
const struct hparams *model_hparams(const struct model *m);
enum row_format model_expert_rows(const struct model *m,
                                  uint32_t layer); /* what routed experts take; of an MoE layer */
bool model_reply_bf16(const struct model *m);      /* expert results: bf16, else f32 */
size_t model_resident_bytes(const struct model *m);
size_t model_kv_block_bytes(const struct model *m); /* all layers, one block of 64 tokens */

/* ---- the KV store: n_blocks blocks of 64 tokens; who owns which block is the engine's business ---- */
struct kv_store;
enum err_code kv_store_open(const struct model *m, uint32_t n_blocks, struct kv_store **out,
                            struct err *why);
void kv_store_close(struct kv_store *s);

/* ---- one pass over the layers ----------------------------------------------------------------- */

struct model_row {
    int32_t token;
    uint32_t position;
    const uint32_t *
        blocks; /* block table of its sequence: position / 64 -> block in the store; borrowed for the pass */
    bool wants_logits;
    uint32_t
        n_encoder; /* tokens of its sequence that are an encoder's: those at positions below; 0: no encoder */
    bool
        beyond; /* its sequence is longer than the length the model was made for: long rope's other factors */
};

/* Scratch for up to max_rows rows; sized at open. */
struct model_pass;
enum err_code model_pass_open(const struct model *m, uint32_t max_rows, uint32_t max_logit_rows,
                              struct model_pass **out, struct err *why);
void model_pass_close(struct model_pass *p);
size_t model_pass_bytes(const struct model *m, uint32_t max_rows, uint32_t max_logit_rows);

/* Rows of one sequence stand together in ascending position; rows of several sequences may share the pass.
 * Loads the embeddings into the residual stream. Of an encoder-decoder model a pass has either rows of encoders, each
 * sequence's all, and runs the encoder's layers, or rows of decoders. */
void model_begin(struct model_pass *p, const struct model_row *rows, uint32_t n);

/* Layer `layer` up to the router: norm, q/k/v, rope, KV write, attention, output projection, residual, FFN norm, router,
 * selection, expert input rows. A dense layer runs its MLP and residual here too and has no routing.
 * Every row whose value is not finite is marked bad (model_pass_bad_layer). */
void model_attention(struct model_pass *p, struct kv_store *kv, uint32_t layer, struct workers *w);
const uint16_t *
model_pass_experts(const struct model_pass *p);            /* [n, top_k] ascending expert number */
const float *model_pass_gates(const struct model_pass *p); /* [n, top_k] in the same order */
const float *
model_pass_router(const struct model_pass *p); /* [n, E] raw router output of the last layer run */
const float *
model_pass_hidden(const struct model_pass *p); /* [n, D] residual stream, for golden tests */
const struct rows *
model_pass_expert_rows(const struct model_pass *p); /* [n, D] what experts take, local or remote */
int model_pass_bad_layer(const struct model_pass *p, uint32_t row); /* -1: finite so far */

/* Where results of experts go: [n, top_k, D] in f32 or bf16 (model_reply_bf16), slot k of row r is the k-th of
 * its ascending experts. The driver or the local experts write here, in any order. */
void *model_pass_results(struct model_pass *p);

/* The shared expert of `layer`, if there is one: may run any time after model_attention and before model_combine, which
 * else runs it: best while results of routed experts are due. */
void model_shared(struct model_pass *p, uint32_t layer, struct workers *w);

/* Combine the results of `layer` in ascending expert number, add the residual. */
void model_combine(struct model_pass *p, uint32_t layer, struct workers *w);

/* After the encoder's last layer, for a pass of its rows: their final norm, and what the decoder's layers will see of them
 * into the cache. */
void model_encoder_end(struct model_pass *p, struct kv_store *kv, struct workers *w);

/* Final norm and head for rows with wants_logits; logits row i belongs to the i-th such row. */
void model_head(struct model_pass *p, struct workers *w);
const float *model_pass_logits(const struct model_pass *p, uint32_t i); /* [V] */

#endif
