/* Latent attention (DeepSeek): the cache holds, per token, one compressed vector c [kv_rank] and one rotated key part
 * [rope], shared by all heads. Keys and values are never expanded: the expansion of keys is applied to the query (q_nope
 * becomes kv_rank wide, then the score is one dot product with the cache), that of values to what the softmax has mixed. The
 * same at every position, in prompts and in decoding, as the other form has other roundings.
 * Source: reference "architectures" 1.5. */
#include <string.h>

#include "coordinator/model/model_internal.h"

static size_t round_up_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

/* A head's rows: f32 first, then the format that the product takes. */
static size_t head_bytes(const struct packed *w, uint32_t rows, uint32_t k)
{
    return round_up_64((size_t)rows * k * sizeof(float)) +
           (w->input == ROW_F32 ? 0 : rows_bytes(w->input, rows, k));
}

size_t latent_nope_bytes(const struct model *m, uint32_t rows)
{
    size_t most = 0;
    for (uint32_t l = 0; l < m->hp->n_layers; l++) {
        size_t n = head_bytes(&m->layers[l].latent_keys[0], rows, m->hp->mla.nope);
        most = n > most ? n : most;
    }
    return most;
}

size_t latent_mixed_bytes(const struct model *m, uint32_t rows)
{
    size_t most = 0;
    for (uint32_t l = 0; l < m->hp->n_layers; l++) {
        size_t n = head_bytes(&m->layers[l].latent_values[0], rows, m->hp->mla.kv_rank);
        most = n > most ? n : most;
    }
    return most;
}

/* Row views of a head's memory (above). */
static struct rows head_rows(uint8_t *at, enum row_format f, uint32_t max_rows, uint32_t n,
                             uint32_t k)
{
    if (f == ROW_F32) return rows_at(at, ROW_F32, n, k);
    return rows_at(at + round_up_64((size_t)max_rows * k * sizeof(float)), f, n, k);
}

static uint8_t *nope_of(const struct stage *st, uint32_t head)
{
    return st->p->b.q_nope + head * latent_nope_bytes(st->p->m, st->p->max_rows);
}

static uint8_t *mixed_of(const struct stage *st, uint32_t head)
{
    return st->p->b.mixed + head * latent_mixed_bytes(st->p->m, st->p->max_rows);
}

float *latent_mixed(const struct stage *st, uint32_t row, uint32_t head)
{
    return (float *)(void *)mixed_of(st, head) + (size_t)row * st->p->m->hp->mla.kv_rank;
}

static void norm_query(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    const struct mla_params *mla = &st->p->m->hp->mla;
    float *x = st->p->b.q_low.f32 + (size_t)row * mla->q_rank;
    st->p->m->kernels->rmsnorm(x, st->layer->v[W_Q_A_NORM], mla->q_rank, mla->norm_eps, x);
    pass_fill(st->p->m->kernels, &st->p->b.q_low, st->p->n, pass_wants(&st->layer->w[W_Q]), row);
}

static void rotate(const struct stage *st, uint32_t row, float *x)
{
    const struct model *m = st->p->m;
    const uint32_t half = m->hp->rope_dim / 2;
    const float *c = st->p->b.cos + (size_t)row * half, *s = st->p->b.sin + (size_t)row * half;
    if (m->hp->rope_interleaved)
        m->kernels->rope_pairs(x, half, c, s);
    else
        m->kernels->rope_half(x, half, c, s);
}

/* The compressed vector is normed, the key part rotated, both stored; queries are split into their two parts. */
static void finish_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const struct mla_params *mla = &hp->mla;
    const uint32_t key = mla->kv_rank + mla->rope;
    float *low = p->b.kv_low + (size_t)row * key;
    p->m->kernels->rmsnorm(low, st->layer->v[W_KV_A_NORM], mla->kv_rank, mla->norm_eps, low);
    rotate(st, row, low + mla->kv_rank);
    heads_store(st, row, 0, low, NULL);

    float *q = p->b.q + (size_t)row * hp->n_heads * hp->head_dim;
    const enum row_format f = st->layer->latent_keys[0].input;
    for (uint32_t h = 0; h < hp->n_heads; h++, q += hp->head_dim) {
        float *nope = (float *)(void *)nope_of(st, h) + (size_t)row * mla->nope;
        memcpy(nope, q, mla->nope * sizeof *nope);
        if (f != ROW_F32) {
            struct rows rows = head_rows(nope_of(st, h), f, p->max_rows, p->n, mla->nope);
            rows_set(p->m->kernels, &rows, row, nope);
        }
        float *rope = p->b.q_latent + ((size_t)row * hp->n_heads + h) * key + mla->kv_rank;
        memcpy(rope, q + mla->nope, mla->rope * sizeof *rope);
        rotate(st, row, rope);
    }
}

void latent_project(const struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const struct mla_params *mla = &hp->mla;
    const struct kernels *k = p->m->kernels;
    struct stage copy = *st;
    const size_t q = (size_t)hp->n_heads * hp->head_dim;
    const uint32_t key = mla->kv_rank + mla->rope;
    struct product first[2] = {
        pass_product(&st->layer->w[W_KV_A], &p->b.norm, p->n, p->b.kv_low, key)};
    if (mla->q_rank == 0) {
        first[1] = pass_product(&st->layer->w[W_Q], &p->b.norm, p->n, p->b.q, q);
        products_run(k, first, 2, &p->scratch, w);
    } else {
        first[1] =
            pass_product(&st->layer->w[W_Q_A], &p->b.norm, p->n, p->b.q_low.f32, mla->q_rank);
        products_run(k, first, 2, &p->scratch, w);
        run_rows(w, p->n, 2 * (size_t)mla->q_rank, norm_query, &copy);
        struct product expand = pass_product(&st->layer->w[W_Q], &p->b.q_low, p->n, p->b.q, q);
        products_run(k, &expand, 1, &p->scratch, w);
    }
    run_rows(w, p->n, 2 * q, finish_row, &copy);

    for (uint32_t h = 0; h < hp->n_heads; h++) {
        const struct packed *keys = &st->layer->latent_keys[h];
        struct rows x = head_rows(nope_of(st, h), keys->input, p->max_rows, p->n, mla->nope);
        p->products[h] = (struct product){.w = keys,
                                          .x = x,
                                          .y = p->b.q_latent + (size_t)h * key,
                                          .ldy = (size_t)hp->n_heads * key};
    }
    products_run(k, p->products, hp->n_heads, &p->scratch, w);
}

static void convert_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    for (uint32_t h = 0; h < p->m->hp->n_heads; h++)
        rows_set(p->m->kernels, &p->products[h].x, row, latent_mixed(st, row, h));
}

void latent_expand(const struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const enum row_format f = st->layer->latent_values[0].input;
    const size_t all = (size_t)hp->n_heads * hp->value_dim;
    struct stage copy = *st;
    for (uint32_t h = 0; h < hp->n_heads; h++) {
        struct rows x = head_rows(mixed_of(st, h), f, p->max_rows, p->n, hp->mla.kv_rank);
        p->products[h] = (struct product){.w = &st->layer->latent_values[h],
                                          .x = x,
                                          .y = p->b.attended.f32 + (size_t)h * hp->value_dim,
                                          .ldy = all};
    }
    if (f != ROW_F32) run_rows(w, p->n, (size_t)hp->n_heads * hp->mla.kv_rank, convert_row, &copy);
    products_run(p->m->kernels, p->products, hp->n_heads, &p->scratch, w);
}
