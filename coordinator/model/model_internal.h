/* model_internal.h - what the files of this folder share: the opened model, the KV store, one pass. */
#ifndef MOESAIC_MODEL_INTERNAL_H
#define MOESAIC_MODEL_INTERNAL_H

#include "common/experts/products.h"
#include "common/modelfile/plan.h"
#include "coordinator/model/model.h"
#include "coordinator/model/router.h"

struct layer {
    const float *attn_norm, *ffn_norm;              /* [D] */
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* NULL: none */
    const float *q_norm, *k_norm;                   /* [head_dim], or over all heads; NULL: none */
    struct packed q, k, v, o;
    struct packed router;                           /* [E, D] f32; MoE layers */
    struct packed dense_gate, dense_up, dense_down; /* dense layers */
};

struct model {
    const struct model_file *file;
    const struct kernels *kernels;
    enum quantize quantize;
    const struct hparams *hp;
    unsigned n_workers; /* most threads of the workers that passes run on */

    uint8_t *region; /* packed weights and f32 vectors */
    size_t region_bytes;
    struct layer *layers;
    const float *final_norm;
    struct packed head;
    const struct tensor *embed;

    enum row_format expert_rows;
    bool reply_bf16;
    bool kv_bf16;
    float score_scale;
    float *inv_freq; /* [head_dim / 2] */
    float rope_factor;
};

struct kv_store {
    const struct model *m;
    uint8_t *data;
    size_t bytes, block_bytes;
    uint32_t n_blocks;
};

/* One (block, layer, kv head): keys in panels of 16 tokens [4][head_dim][16], then values [64][head_dim]. */
static inline uint8_t *kv_keys(const struct kv_store *kv, uint32_t block, uint32_t layer,
                               uint32_t head)
{
    const struct hparams *hp = kv->m->hp;
    size_t both = 2 * (size_t)KV_BLOCK_TOKENS * hp->head_dim * (kv->m->kv_bf16 ? 2 : 4);
    return kv->data + block * kv->block_bytes + ((size_t)layer * hp->n_kv_heads + head) * both;
}

static inline uint8_t *kv_values(const struct kv_store *kv, uint32_t block, uint32_t layer,
                                 uint32_t head)
{
    return kv_keys(kv, block, layer, head) +
           (size_t)KV_BLOCK_TOKENS * kv->m->hp->head_dim * (kv->m->kv_bf16 ? 2 : 4);
}

/* Buffers of a pass, all in one block; D hidden, W = (H + 2 G) * head_dim. */
struct pass_buffers {
    float *hidden;                /* [n, D] residual stream */
    float *norm;                  /* [n, D] */
    float *qkv;                   /* [n, W] */
    float *attended;              /* [n, H * head_dim] */
    float *projected;             /* [n, D] */
    float *cos, *sin;             /* [n, head_dim / 2] */
    float *router;                /* [n, E] */
    float *gates;                 /* [n, K] */
    uint16_t *experts;            /* [n, K] */
    uint8_t *results;             /* [n, K, D] f32 or bf16 */
    float *dense_gate, *dense_up; /* [n, dense F] */
    float *logits;                /* [logit rows, V] */
    struct model_row *rows;
    int *bad_layer;      /* [n] */
    uint32_t *logit_row; /* [logit rows] the row it belongs to */
    uint8_t *norm_bf16, *norm_q8, *attended_bf16, *attended_q8, *dense_bf16,
        *dense_q8; /* rows_bytes */
    float *
        block_out; /* per worker: maxima and sums [2 H], one head's output of one block [head_dim] */
};

struct model_pass {
    const struct model *m;
    uint32_t max_rows, max_logit_rows;
    uint32_t n, n_logits;
    uint32_t layer; /* the last one run */
    uint8_t *data;
    struct pass_buffers b;
    struct product_scratch scratch;
    struct rows expert_rows;
};

/* What one stage's row tasks get. */
struct stage {
    struct model_pass *p;
    struct kv_store *kv;
    const struct layer *layer;
    uint32_t layer_index;
};

/* attention.c. Of one row: bias, q/k norm, clip, rope; k and v go into the cache. */
void attention_store_row(const struct stage *st, uint32_t row);
/* All rows' queries against the cache, into attended [n, H * head_dim]. */
void attention_run(const struct stage *st, struct workers *w);

#endif
