/* Attention of the rows of a pass over the cache. Keys are visited in blocks of 64 by absolute position, each
 * block is reduced by itself and merged in order: so the bits depend on the sequence alone, not on how its prompt
 * was cut or on what else is in the pass. Rows that stand together in a sequence, and the query heads of a kv head, meet a
 * block together, so that it is read once for all of them. */
#include <assert.h>

#include "coordinator/model/model_internal.h"

#define TOGETHER 32u /* queries that meet a block together */

struct visit {
    const struct stage *st;
    struct row_tile tile;
    uint32_t kv_head, head, n_heads; /* query heads [head, head + n_heads) */
};

/* The keys that a row sees: [first, end). An encoder's row sees all of the encoder's tokens; a decoder's its own side up to
 * itself, or, in cross attention, the encoder's. */
static uint32_t first_seen(const struct stage *st, const struct model_row *r)
{
    const struct hparams *hp = st->p->m->hp;
    const uint32_t position = r->position;
    if (r->n_encoder > 0) return st->cross || position < r->n_encoder ? 0 : r->n_encoder;
    const uint32_t window = hp->sliding_window[st->layer_index], chunk = hp->attention_chunk;
    if (window > 0 && position >= window) return position - window + 1;
    if (chunk > 0 && !hp->no_rope[st->layer_index]) return position / chunk * chunk;
    return 0;
}

static uint32_t end_seen(const struct stage *st, const struct model_row *r)
{
    return st->cross || r->position < r->n_encoder ? r->n_encoder : r->position + 1;
}

static const float *query(const struct visit *v, uint32_t row, uint32_t head)
{
    const struct model_pass *p = v->st->p;
    const struct hparams *hp = p->m->hp;
    const size_t nq = (size_t)hp->n_heads * hp->head_dim;
    if (hp->mla.kv_rank > 0)
        return p->b.q_latent + ((size_t)row * hp->n_heads + head) * p->m->kv_shape.key_dim;
    return p->b.q + row * (nq + (size_t)hp->n_kv_heads * (hp->head_dim + hp->value_dim)) +
           (size_t)head * hp->head_dim;
}

static float *output(const struct visit *v, uint32_t row, uint32_t head)
{
    const struct hparams *hp = v->st->p->m->hp;
    if (hp->mla.kv_rank > 0) return latent_mixed(v->st, row, head);
    return v->st->p->b.attended.f32 + ((size_t)row * hp->n_heads + head) * hp->value_dim;
}

static void start(const struct visit *v, struct attention_row *rows)
{
    const struct model *m = v->st->p->m;
    const float *sinks = v->st->layer->v[W_SINKS];
    for (uint32_t i = 0; i < v->tile.n * v->n_heads; i++) {
        uint32_t row = v->tile.first + i / v->n_heads, head = v->head + i % v->n_heads;
        const float *q = query(v, row, head);
        float *o = output(v, row, head);
        if (sinks != NULL)
            attention_row_start_sink(&rows[i], q, o, m->kv_shape.value_dim, sinks[head]);
        else
            attention_row_start(&rows[i], q, o);
    }
}

/* What each row sees of block b. */
static void look(const struct visit *v, uint32_t b, struct attention_row *rows)
{
    for (uint32_t i = 0; i < v->tile.n; i++) {
        const struct model_row *r = &v->st->p->b.rows[v->tile.first + i];
        for (uint32_t h = 0; h < v->n_heads; h++)
            attention_row_see(&rows[i * v->n_heads + h], b * KV_BLOCK_TOKENS, first_seen(v->st, r),
                              end_seen(v->st, r));
    }
}

/* The learned bias of distances, for the tokens of block b. */
static void add_bias(const struct visit *v, uint32_t b, struct attention_row *rows,
                     float bias[TOGETHER][KV_BLOCK_TOKENS])
{
    const struct model *m = v->st->p->m;
    const int64_t most = m->hp->relative_bias.max_distance;
    const bool encodes = v->st->layer_index < m->hp->n_encoder_layers;
    for (uint32_t i = 0; i < v->tile.n * v->n_heads; i++) {
        const int64_t position = v->st->p->b.rows[v->tile.first + i / v->n_heads].position;
        const float *of_head =
            m->relative_bias +
            ((encodes ? 0 : m->hp->n_heads) + v->head + i % v->n_heads) * (size_t)(2 * most + 1);
        for (uint32_t t = 0; t < KV_BLOCK_TOKENS; t++) {
            int64_t d = (int64_t)b * KV_BLOCK_TOKENS + t - position;
            d = d < -most ? -most : d > most ? most : d;
            bias[i][t] = of_head[d + most];
        }
        rows[i].bias = bias[i];
    }
}

static void run(const struct visit *v)
{
    const struct stage *st = v->st;
    const struct model *m = st->p->m;
    const struct attention_shape shape = {.kv_bf16 = m->kv_bf16,
                                          .key_dim = m->kv_shape.key_dim,
                                          .value_dim = m->kv_shape.value_dim,
                                          .scale = m->score_scale,
                                          .soft_cap = m->hp->score_soft_cap};
    struct attention_row rows[TOGETHER];
    float bias[TOGETHER][KV_BLOCK_TOKENS];
    const uint32_t n = v->tile.n * v->n_heads;
    assert(n <= TOGETHER);
    start(v, rows);
    const struct model_row *r = &st->p->b.rows[v->tile.first];
    uint32_t end = end_seen(st, &r[v->tile.n - 1]), first = first_seen(st, r);
    for (uint32_t b = first / KV_BLOCK_TOKENS; b <= (end - 1) / KV_BLOCK_TOKENS; b++) {
        look(v, b, rows);
        if (m->relative_bias != NULL && !st->cross) add_bias(v, b, rows, bias);
        m->kernels->attention_block(&shape, rows, n,
                                    kv_keys(st->kv, r->blocks[b], st->layer_index, v->kv_head),
                                    kv_values(st->kv, r->blocks[b], st->layer_index, v->kv_head));
    }
    for (uint32_t i = 0; i < n; i++)
        m->kernels->scale_div(rows[i].o, shape.value_dim, rows[i].l);
}

/* Query heads of a kv head that go together with the rows of a tile, and how many such parts a kv head has. */
static uint32_t heads_together(const struct model_pass *p)
{
    const uint32_t group = p->m->hp->n_heads / p->m->kv_shape.heads;
    const uint32_t most = TOGETHER / p->tile_rows;
    return group < most ? group : most;
}

static uint32_t parts(const struct model_pass *p)
{
    const uint32_t each = heads_together(p);
    return (p->m->hp->n_heads / p->m->kv_shape.heads + each - 1) / each;
}

/* Tasks in order of tile, kv head, part of its query heads. */
static void attend_task(void *ctx, uint32_t task, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    const struct model *m = st->p->m;
    const uint32_t n_parts = parts(st->p), each = heads_together(st->p),
                   group = m->hp->n_heads / m->kv_shape.heads, part = task % n_parts;
    struct visit v = {.st = st,
                      .tile = st->p->b.tiles[task / n_parts / m->kv_shape.heads],
                      .kv_head = task / n_parts % m->kv_shape.heads};
    v.head = v.kv_head * group + part * each;
    v.n_heads = group - part * each < each ? group - part * each : each;
    run(&v);
}

void attention_run(const struct stage *st, struct workers *w)
{
    const struct model *m = st->p->m;
    struct stage copy = *st;
    /* Work of one task: about two values read per key and dimension, for each query. */
    size_t keys = (size_t)st->p->b.rows[st->p->n - 1].position + 1;
    size_t rows = st->p->n / st->p->n_tiles;
    run_rows(w, st->p->n_tiles * m->kv_shape.heads * parts(st->p),
             2 * keys * m->kv_shape.key_dim * rows * heads_together(st->p), attend_task, &copy);
}
