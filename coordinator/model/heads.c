/* Queries, keys and values of plain attention: projections, biases, norms, clip, rotation, the cache. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "coordinator/model/model_internal.h"

static void add_bias(const struct kernels *k, float *x, const float *bias, uint32_t n)
{
    if (bias != NULL) k->add(bias, n, x);
}

static void norm_heads(const struct model *m, float *x, const float *weight, uint32_t n_heads)
{
    const struct hparams *hp = m->hp;
    if (hp->qk_norm == QK_NORM_FULL)
        m->kernels->rmsnorm(x, weight, n_heads * hp->head_dim, hp->norm_eps, x);
    if (hp->qk_norm == QK_NORM_FULL || weight == NULL) return;
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

void heads_store(const struct stage *st, uint32_t row, uint32_t head, const float *key,
                 const float *value)
{
    const struct model *m = st->p->m;
    const uint32_t width = m->kv_shape.key_dim, value_width = m->kv_shape.value_dim;
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
        if (value != NULL)
            m->kernels->round_bf16(value, value_width,
                                   (uint16_t *)values + (size_t)t * value_width);
    } else {
        for (uint32_t d = 0; d < width; d++)
            ((float *)keys)[panel + (size_t)d * PANEL] = key[d];
        if (value != NULL)
            memcpy((float *)values + (size_t)t * value_width, value, value_width * sizeof *value);
    }
}

/* What a query is multiplied with on a layer without rotation, so that long contexts keep their contrast. */
static float temperature(const struct hparams *hp, uint32_t position)
{
    double steps = floor(((double)position + 1) / hp->temperature_floor);
    return (float)(kernels_log(steps + 1) * hp->temperature_scale + 1);
}

/* The rotated part of n heads, and what follows the rotation. */
static void rotate(const struct stage *st, uint32_t row, float *x, uint32_t n_heads)
{
    const struct model *m = st->p->m;
    const struct hparams *hp = m->hp;
    const uint32_t half = hp->rope_dim / 2;
    const float *c = st->p->b.cos + (size_t)row * half, *s = st->p->b.sin + (size_t)row * half;
    for (uint32_t h = 0; h < n_heads; h++, x += hp->head_dim) {
        if (hp->rope_interleaved)
            m->kernels->rope_pairs(x, half, c, s);
        else
            m->kernels->rope_half(x, half, c, s);
        if (hp->qk_norm == QK_NORM_L2_ROPED)
            m->kernels->rmsnorm(x, m->ones, hp->head_dim, hp->norm_eps, x);
    }
}

void heads_finish(const struct stage *st, uint32_t row)
{
    const struct model *m = st->p->m;
    const struct hparams *hp = m->hp;
    const struct layer *l = st->layer;
    const uint32_t nq = hp->n_heads * hp->head_dim, nk = hp->n_kv_heads * hp->head_dim,
                   nv = hp->n_kv_heads * hp->value_dim;
    float *q = st->p->b.q + (size_t)row * (nq + nk + nv), *k = q + nq, *v = k + nk;
    add_bias(m->kernels, q, l->v[W_Q_BIAS], nq);
    add_bias(m->kernels, k, l->v[W_K_BIAS], nk);
    add_bias(m->kernels, v, l->v[W_V_BIAS], nv);
    norm_heads(m, q, l->v[W_Q_NORM], hp->n_heads);
    norm_heads(m, k, l->v[W_K_NORM], hp->n_kv_heads);
    if (hp->clip_qkv > 0) clip(q, nq + nk + nv, hp->clip_qkv);
    if (!hp->no_rope[st->layer_index]) {
        rotate(st, row, q, hp->n_heads);
        rotate(st, row, k, hp->n_kv_heads);
    } else if (hp->temperature_scale > 0) {
        m->kernels->scale(q, nq, temperature(hp, st->p->b.rows[row].position));
    }
    for (uint32_t h = 0; h < hp->n_kv_heads; h++)
        heads_store(st, row, h, k + (size_t)h * hp->head_dim, v + (size_t)h * hp->value_dim);
}

static void finish_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    heads_finish(ctx, row);
}

/* Numbers of a row's q, k and v, which stand behind each other. */
static size_t row_width(const struct hparams *hp)
{
    return (size_t)hp->n_heads * hp->head_dim +
           (size_t)hp->n_kv_heads * (hp->head_dim + hp->value_dim);
}

void heads_project_cross(const struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    struct product q =
        pass_product(&st->layer->w[W_CROSS_Q], &p->b.norm, p->n, p->b.q, row_width(p->m->hp));
    products_run(p->m->kernels, &q, 1, &p->scratch, w);
}

static void store_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    const struct hparams *hp = st->p->m->hp;
    const float *k = st->p->b.q + row * row_width(hp),
                *v = k + (size_t)hp->n_kv_heads * hp->head_dim;
    for (uint32_t h = 0; h < hp->n_kv_heads; h++)
        heads_store(st, row, h, k + (size_t)h * hp->head_dim, v + (size_t)h * hp->value_dim);
}

void heads_store_cross(const struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const size_t all = row_width(hp), nk = (size_t)hp->n_kv_heads * hp->head_dim;
    struct product kv[] = {
        pass_product(&st->layer->w[W_CROSS_K], &p->b.norm, p->n, p->b.q, all),
        pass_product(&st->layer->w[W_CROSS_V], &p->b.norm, p->n, p->b.q + nk, all)};
    products_run(p->m->kernels, kv, 2, &p->scratch, w);
    struct stage copy = *st;
    run_rows(w, p->n, 2 * nk, store_row, &copy);
}

void heads_project(const struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const size_t nq = (size_t)hp->n_heads * hp->head_dim,
                 nk = (size_t)hp->n_kv_heads * hp->head_dim,
                 all = nq + nk + (size_t)hp->n_kv_heads * hp->value_dim;
    struct product qkv[] = {
        pass_product(&st->layer->w[W_Q], &p->b.norm, p->n, p->b.q, all),
        pass_product(&st->layer->w[W_K], &p->b.norm, p->n, p->b.q + nq, all),
        pass_product(&st->layer->w[W_V], &p->b.norm, p->n, p->b.q + nq + nk, all)};
    products_run(p->m->kernels, qkv, 3, &p->scratch, w);
    struct stage copy = *st;
    run_rows(w, p->n, 2 * all, finish_row, &copy);
}
