/* Attention of the rows of a pass over the cache. Keys are visited in blocks of 64 by absolute position, each
 * block is reduced by itself and merged in order: so the bits depend on the sequence alone, not on how its prompt
 * was cut or on what else is in the pass. */
#include <assert.h>
#include <string.h>

#include "coordinator/model/model_internal.h"

static void add_bias(float *x, const float *bias, uint32_t n)
{
    if (bias == NULL) return;
    for (uint32_t i = 0; i < n; i++)
        x[i] += bias[i];
}

static void norm_heads(const struct model *m, float *x, const float *weight, uint32_t n_heads)
{
    const struct hparams *hp = m->hp;
    if (hp->qk_norm == QK_NORM_FULL)
        m->kernels->rmsnorm(x, weight, n_heads * hp->head_dim, hp->norm_eps, x);
    if (hp->qk_norm != QK_NORM_HEAD) return;
    for (uint32_t h = 0; h < n_heads; h++)
        m->kernels->rmsnorm(x + (size_t)h * hp->head_dim, weight, hp->head_dim, hp->norm_eps,
                            x + (size_t)h * hp->head_dim);
}

static void clip(float *x, uint32_t n, float limit)
{
    for (uint32_t i = 0; i < n; i++) {
        if (x[i] > limit) x[i] = limit;
        if (x[i] < -limit) x[i] = -limit;
    }
}

static void store_head(const struct stage *st, uint32_t row, uint32_t head, const float *key,
                       const float *value)
{
    const struct model *m = st->p->m;
    const uint32_t width = m->hp->head_dim;
    const struct model_row *r = &st->p->b.rows[row];
    uint32_t block = r->blocks[r->position / KV_BLOCK_TOKENS], t = r->position % KV_BLOCK_TOKENS;
    assert(block < st->kv->n_blocks);
    void *keys = kv_keys(st->kv, block, st->layer_index, head);
    void *values = kv_values(st->kv, block, st->layer_index, head);
    size_t panel =
        (size_t)(t / PANEL) * width * PANEL + t % PANEL; /* dimension d at panel + 16 d */
    if (m->kv_bf16) {
        for (uint32_t d = 0; d < width; d++)
            ((uint16_t *)keys)[panel + (size_t)d * PANEL] = bf16_from_f32(key[d]);
        m->kernels->round_bf16(value, width, (uint16_t *)values + (size_t)t * width);
    } else {
        for (uint32_t d = 0; d < width; d++)
            ((float *)keys)[panel + (size_t)d * PANEL] = key[d];
        memcpy((float *)values + (size_t)t * width, value, width * sizeof *value);
    }
}

void attention_store_row(const struct stage *st, uint32_t row)
{
    const struct model *m = st->p->m;
    const struct hparams *hp = m->hp;
    const uint32_t width = hp->head_dim, half = width / 2, nq = hp->n_heads * width,
                   nkv = hp->n_kv_heads * width;
    float *q = st->p->b.qkv + (size_t)row * (nq + 2 * nkv), *k = q + nq, *v = k + nkv;
    add_bias(q, st->layer->q_bias, nq);
    add_bias(k, st->layer->k_bias, nkv);
    add_bias(v, st->layer->v_bias, nkv);
    norm_heads(m, q, st->layer->q_norm, hp->n_heads);
    norm_heads(m, k, st->layer->k_norm, hp->n_kv_heads);
    if (hp->clip_qkv > 0) clip(q, nq + 2 * nkv, hp->clip_qkv);
    const float *c = st->p->b.cos + (size_t)row * half, *s = st->p->b.sin + (size_t)row * half;
    for (uint32_t h = 0; h < hp->n_heads; h++)
        m->kernels->rope_half(q + (size_t)h * width, half, c, s);
    for (uint32_t h = 0; h < hp->n_kv_heads; h++) {
        m->kernels->rope_half(k + (size_t)h * width, half, c, s);
        store_head(st, row, h, k + (size_t)h * width, v + (size_t)h * width);
    }
}

#define HEADS_TOGETHER 16u

/* Query heads [head, head + n) of one kv head of one row, block by block, so that a block is read once for all of them. */
static void attend_heads(const struct stage *st, uint32_t row, uint32_t kv_head, uint32_t head,
                         uint32_t n)
{
    const struct model *m = st->p->m;
    const struct hparams *hp = m->hp;
    const uint32_t width = hp->head_dim;
    const struct model_row *r = &st->p->b.rows[row];
    const float *q = st->p->b.qkv + (size_t)row * (hp->n_heads + 2 * hp->n_kv_heads) * width;
    float *out = st->p->b.attended + (size_t)row * hp->n_heads * width;
    const struct attention_shape shape = {
        .kv_bf16 = m->kv_bf16, .key_dim = width, .value_dim = width, .scale = m->score_scale};
    struct attention_row rows[HEADS_TOGETHER];
    for (uint32_t h = 0; h < n; h++)
        attention_row_start(&rows[h], q + (size_t)(head + h) * width,
                            out + (size_t)(head + h) * width);

    uint32_t last = r->position, first = 0;
    if (hp->sliding_window > 0 && last >= hp->sliding_window) first = last - hp->sliding_window + 1;
    for (uint32_t b = first / KV_BLOCK_TOKENS; b <= last / KV_BLOCK_TOKENS; b++) {
        uint32_t base = b * KV_BLOCK_TOKENS;
        uint32_t from = first > base ? first - base : 0;
        uint32_t to = last - base < KV_BLOCK_TOKENS ? last - base + 1 : KV_BLOCK_TOKENS;
        for (uint32_t h = 0; h < n; h++) {
            rows[h].first = from;
            rows[h].visible = to - from;
        }
        m->kernels->attention_block(&shape, rows, n,
                                    kv_keys(st->kv, r->blocks[b], st->layer_index, kv_head),
                                    kv_values(st->kv, r->blocks[b], st->layer_index, kv_head));
    }
    for (uint32_t h = 0; h < n; h++)
        m->kernels->scale_div(rows[h].o, width, rows[h].l);
}

static void attend(const struct stage *st, uint32_t row, uint32_t kv_head)
{
    const struct hparams *hp = st->p->m->hp;
    const uint32_t group = hp->n_heads / hp->n_kv_heads;
    for (uint32_t h = 0; h < group; h += HEADS_TOGETHER)
        attend_heads(st, row, kv_head, kv_head * group + h,
                     group - h < HEADS_TOGETHER ? group - h : HEADS_TOGETHER);
}

static void attend_task(void *ctx, uint32_t task, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    uint32_t heads = st->p->m->hp->n_kv_heads;
    attend(st, task / heads, task % heads);
}

void attention_run(const struct stage *st, struct workers *w)
{
    const struct hparams *hp = st->p->m->hp;
    const uint32_t group = hp->n_heads / hp->n_kv_heads;
    struct stage copy = *st;
    /* Work of one task: about two values read per key and dimension, for each query head. */
    size_t keys = (size_t)st->p->b.rows[st->p->n - 1].position + 1;
    run_rows(w, st->p->n * hp->n_kv_heads, 2 * keys * hp->head_dim * group, attend_task, &copy);
}
