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

/* Queries that meet a block of the cache together: query heads of one kv head, of rows one position after the other. */
#define TOGETHER 32u

static uint32_t group_of(const struct hparams *hp)
{
    return hp->n_heads / hp->n_kv_heads;
}

/* Rows of the pass per task. */
static uint32_t rows_together(const struct hparams *hp)
{
    return group_of(hp) < TOGETHER / 2 ? TOGETHER / 2 / group_of(hp) : 1;
}

/* Query heads [head, head + heads) of one kv head, of n rows of one sequence from `row` on; heads * n <= TOGETHER. */
static void attend(const struct stage *st, uint32_t row, uint32_t n, uint32_t kv_head,
                   uint32_t head, uint32_t heads)
{
    const struct model *m = st->p->m;
    const struct hparams *hp = m->hp;
    const uint32_t width = hp->head_dim, row_width = (hp->n_heads + 2 * hp->n_kv_heads) * width;
    const struct model_row *rows = &st->p->b.rows[row];
    const struct attention_shape shape = {
        .kv_bf16 = m->kv_bf16, .key_dim = width, .value_dim = width, .scale = m->score_scale};
    struct attention_row met[TOGETHER];
    for (uint32_t i = 0; i < n * heads; i++) {
        const size_t at = row + i / heads, h = head + i % heads;
        attention_row_start(&met[i], st->p->b.qkv + at * row_width + h * width,
                            st->p->b.attended + (at * hp->n_heads + h) * width);
    }
    const uint32_t window = hp->sliding_window > 0 ? hp->sliding_window : UINT32_MAX;
    const uint32_t first =
        rows[0].position >= window ? rows[0].position - window + 1 : 0; /* the later see less */
    for (uint32_t b = first / KV_BLOCK_TOKENS; b <= rows[n - 1].position / KV_BLOCK_TOKENS; b++) {
        for (uint32_t i = 0; i < n * heads; i++) {
            const uint32_t position = rows[i / heads].position;
            attention_row_see(&met[i], b * KV_BLOCK_TOKENS,
                              position >= window ? position - window + 1 : 0, position + 1);
        }
        m->kernels->attention_block(&shape, met, n * heads,
                                    kv_keys(st->kv, rows->blocks[b], st->layer_index, kv_head),
                                    kv_values(st->kv, rows->blocks[b], st->layer_index, kv_head));
    }
    for (uint32_t i = 0; i < n * heads; i++)
        m->kernels->scale_div(met[i].o, width, met[i].l);
}

/* One kv head of the rows of a task, cut where the sequence changes. */
static void attend_task(void *ctx, uint32_t task, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    const struct hparams *hp = st->p->m->hp;
    const uint32_t kv_head = task % hp->n_kv_heads, group = group_of(hp), most = rows_together(hp);
    const uint32_t begin = task / hp->n_kv_heads * most,
                   end = st->p->n - begin < most ? st->p->n : begin + most;
    const struct model_row *rows = st->p->b.rows;
    for (uint32_t row = begin, next; row < end; row = next) {
        for (next = row + 1; next < end && rows[next].blocks == rows[row].blocks &&
                             rows[next].position == rows[next - 1].position + 1;)
            next++;
        for (uint32_t h = 0; h < group; h += TOGETHER)
            attend(st, row, next - row, kv_head, kv_head * group + h,
                   group - h < TOGETHER ? group - h : TOGETHER);
    }
}

void attention_run(const struct stage *st, struct workers *w)
{
    const struct hparams *hp = st->p->m->hp;
    const uint32_t most = rows_together(hp);
    struct stage copy = *st;
    /* Work of one task: about two values read per key and dimension, for each query. */
    size_t keys = (size_t)st->p->b.rows[st->p->n - 1].position + 1;
    run_rows(w, (st->p->n + most - 1) / most * hp->n_kv_heads,
             2 * keys * hp->head_dim * group_of(hp) * most, attend_task, &copy);
}
