/* model_internal.h - what the files of this folder share: the opened model, the KV store, one pass. */
#ifndef MOESAIC_MODEL_INTERNAL_H
#define MOESAIC_MODEL_INTERNAL_H

#include "common/experts/products.h"
#include "common/modelfile/plan.h"
#include "coordinator/model/model.h"
#include "coordinator/model/router.h"

/* By role; what the layer does not have is zero. The expansions of latent attention are per head: keys transposed
 * [kv_rank, nope], values [value_dim, kv_rank]. */
struct layer {
    struct packed w[W_N_ROLES];
    const float *v[W_N_ROLES];
    struct packed *latent_keys, *latent_values; /* [n_heads] */
};

struct model {
    const struct model_file *file;
    const struct kernels *kernels;
    enum quantize quantize;
    const struct hparams *hp;
    struct kv_shape kv_shape;
    unsigned n_workers; /* most threads of the workers that passes run on */

    uint8_t *region; /* packed weights and f32 vectors */
    size_t region_bytes;
    struct layer *layers;
    struct layer whole;    /* what belongs to no layer: final norm, head */
    struct packed *latent; /* [n_layers, 2, n_heads] */
    const struct tensor *embed;

    enum row_format *expert_rows; /* [n_layers] */
    bool reply_bf16;
    bool kv_bf16;
    float score_scale;
    struct {
        float *inv_freq; /* [rope_dim / 2] */
        float factor;
    } rope[2]; /* [1]: of sequences beyond the original length; the same but for long rope */
    float *relative_bias; /* [2 stacks, n_heads, 2 max_distance + 1]; NULL: none */
    float *ones;          /* [head_dim], for norms without a weight */
};

struct kv_store {
    const struct model *m;
    uint8_t *data;
    size_t bytes, block_bytes;
    uint32_t n_blocks;
};

/* Numbers of one (block, layer, kv head): keys in panels of 16 tokens [4][key_dim][16], then values [64][value_dim],
 * unless those are in the keys. */
static inline size_t kv_head_numbers(const struct kv_shape *s)
{
    return (size_t)KV_BLOCK_TOKENS * (s->key_dim + (s->value_in_key ? 0 : s->value_dim));
}

static inline uint8_t *kv_keys(const struct kv_store *kv, uint32_t block, uint32_t layer,
                               uint32_t head)
{
    const struct kv_shape *s = &kv->m->kv_shape;
    size_t each = kv_head_numbers(s) * (kv->m->kv_bf16 ? 2 : 4);
    return kv->data + block * kv->block_bytes + ((size_t)layer * s->heads + head) * each;
}

/* NULL: in the keys. */
static inline uint8_t *kv_values(const struct kv_store *kv, uint32_t block, uint32_t layer,
                                 uint32_t head)
{
    const struct kv_shape *s = &kv->m->kv_shape;
    if (s->value_in_key) return NULL;
    return kv_keys(kv, block, layer, head) +
           (size_t)KV_BLOCK_TOKENS * s->key_dim * (kv->m->kv_bf16 ? 2 : 4);
}

/* The same rows as f32 and as the products want them; a format that none can want has no memory. */
struct views {
    float *f32;
    uint8_t *bf16, *q8;
    uint32_t k;
};

/* Rows [n] in one format. */
struct rows views_rows(const struct views *v, enum row_format f, uint32_t n);

#define TILE_ROWS 16u

/* Consecutive rows of one sequence, at most TILE_ROWS, which read the cache together. */
struct row_tile {
    uint32_t first, n;
};

/* Buffers of a pass, all in one block. n rows; H heads. */
struct pass_buffers {
    float *hidden;         /* [n, D] residual stream */
    struct views norm;     /* [n, D] */
    struct views expert;   /* [n, D], where the gate is on the experts' input; else nothing */
    float *q;              /* [n, H head_dim] and behind each row its k and v; latent: q alone */
    struct views q_low;    /* latent: [n, q_rank] */
    float *kv_low;         /* latent: [n, kv_rank + rope] */
    uint8_t *q_nope;       /* latent: [H] views' bytes of [n, nope] */
    float *q_latent;       /* latent: [n, H (kv_rank + rope)] */
    uint8_t *mixed;        /* latent: [H] views' bytes of [n, kv_rank] */
    struct views attended; /* [n, H value_dim] */
    float *projected;      /* [n, D] */
    float *cos, *sin;      /* [n, rope_dim / 2] */
    float *router;         /* [n, E] */
    float *gates;          /* [n, K] */
    uint16_t *experts;     /* [n, K] */
    uint8_t *results;      /* [n, K, D] f32 or bf16 */
    struct views ffn;      /* [n, F] gate of a dense layer or of the shared expert */
    float *ffn_up;         /* [n, F] */
    float *shared;         /* [n, D] what the shared expert gives */
    float *shared_gate;    /* [n] */
    float *logits;         /* [logit rows, V] */
    struct model_row *rows;
    struct row_tile *tiles; /* [n] */
    int *bad_layer;         /* [n] */
    uint32_t *logit_row;    /* [logit rows] the row it belongs to */
};

struct model_pass {
    const struct model *m;
    uint32_t max_rows, max_logit_rows;
    uint32_t n, n_logits, n_tiles, tile_rows; /* the most rows of a tile */
    uint32_t layer;                           /* the last one run */
    bool shared_done;                         /* of that layer */
    uint8_t *data;
    struct pass_buffers b;
    struct product_scratch scratch;
    struct product *products; /* [H], for latent attention */
    struct rows expert_rows;
};

/* What one stage's row tasks get. */
struct stage {
    struct model_pass *p;
    struct kv_store *kv;
    const struct layer *layer;
    uint32_t layer_index;
    bool cross; /* a decoder's attention to the encoder's tokens */
};

/* pass.c: rows of the pass into tiles. */
void pass_cut_tiles(struct model_pass *p);
/* a product's operands; the formats of a row that products of these weights want, as bits; those made. */
struct product pass_product(const struct packed *w, const struct views *v, uint32_t n, float *y,
                            size_t ldy);
unsigned pass_wants(const struct packed *w);
void pass_fill(const struct kernels *k, const struct views *v, uint32_t n, unsigned wanted,
               uint32_t row);

/* heads.c: from the norm's rows to queries (b.q) and the cache: one key and value per kv head. */
void heads_project(const struct stage *st, struct workers *w);
/* The same of a decoder's row that attends to the encoder's tokens: queries alone. */
void heads_project_cross(const struct stage *st, struct workers *w);
/* Of all rows, the encoder's last: keys and values of cross attention into the cache of a decoder's layer. */
void heads_store_cross(const struct stage *st, struct workers *w);
/* Of one row whose projections are there: biases, norms, clip, rotation; key and value into the cache. */
void heads_finish(const struct stage *st, uint32_t row);
/* Key and value of row `row` into the cache; value NULL: in the key. */
void heads_store(const struct stage *st, uint32_t row, uint32_t head, const float *key,
                 const float *value);

/* latent.c: the same for compressed keys and values: queries (b.q_latent); and, after attention, from what was mixed to
 * b.attended. */
void latent_project(const struct stage *st, struct workers *w);
void latent_expand(const struct stage *st, struct workers *w);
/* Where attention puts head `head` of row `row`: [kv_rank]. */
float *latent_mixed(const struct stage *st, uint32_t row, uint32_t head);
size_t latent_nope_bytes(const struct model *m, uint32_t rows); /* of a head */
size_t latent_mixed_bytes(const struct model *m, uint32_t rows);

/* attention.c: all rows' queries against the cache. */
void attention_run(const struct stage *st, struct workers *w);

#endif
