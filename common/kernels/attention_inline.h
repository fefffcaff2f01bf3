/* attention_inline.h - inside attention_<set>.c only: attention of rows over a block of 64 keys, in terms of a vector type.
 * Scores run across tokens, outputs across the value's width; a key or value is read, and turned to f32, once for a
 * tile of rows. What the results are is said in attention_ref.c.
 *
 * The includer defines, ahead of this:
 *   LANES                 of a vector, 8 or 16
 *   vec                   the type, and v_zero() v_set1(float) v_load(const float *) v_load_bf16(const uint16_t *)
 *                         v_store(float *, vec) v_fma(a, b, c) v_add v_sub v_mul v_div v_max(a, b: b if one is NaN) v_exp
 *                         v_tanh v_largest(vec) v_transpose(vec[LANES])
 *   EACH_TILE(make)       make(R, P, W) for each R rows that go together, the most first and 1 last: panels of keys and
 *                         vectors of outputs at a time, so that the sums fit into the registers
 *   MOST_ROWS             the largest R */
#ifndef MOESAIC_KERNELS_ATTENTION_INLINE_H
#define MOESAIC_KERNELS_ATTENTION_INLINE_H

#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define TOKENS    ATTENTION_TOKENS
#define CHUNK     32u             /* rows whose weights are kept at a time */
#define STRIP     64u             /* outputs for which values are taken out of keys at a time */
#define PER_PANEL (PANEL / LANES) /* vectors of a line of a panel */

struct chunk {
    const struct attention_shape *shape;
    struct attention_row *row[CHUNK]; /* each sees something */
    uint32_t n;
    const void *keys;
    float p[CHUNK][TOKENS]; /* scores, then weights; +0 where a row does not see */
    float a[CHUNK], b[CHUNK];
    bool merge[CHUNK];
};

/* Values of one strip of outputs. */
struct values {
    const void *data; /* of output `from`, token 0 */
    size_t stride;    /* elements from token to token */
    uint32_t from, width;
};

ALWAYS_INLINE vec load_element(const void *base, const bool bf16, size_t i)
{
    return bf16 ? v_load_bf16((const uint16_t *)base + i) : v_load((const float *)base + i);
}

/* ---- scores ---- */

/* Of R rows from r0 on, the tokens of P panels. */
ALWAYS_INLINE void score_panels(struct chunk *c, const uint32_t r0, uint32_t panel, const bool bf16,
                                const int R, const int P)
{
    const int V = P * (int)PER_PANEL;
    const uint32_t key_dim = c->shape->key_dim;
    const float *q[MOST_ROWS];
    vec acc[MOST_ROWS][8];
    UNROLL
    for (int r = 0; r < R; r++) {
        q[r] = c->row[r0 + (uint32_t)r]->q;
        UNROLL
        for (int i = 0; i < V; i++)
            acc[r][i] = v_zero();
    }
    const size_t base = (size_t)panel * key_dim * PANEL;
    for (uint32_t k = 0; k < key_dim; k++) {
        vec value[MOST_ROWS];
        UNROLL
        for (int r = 0; r < R; r++)
            value[r] = v_set1(q[r][k]);
        UNROLL
        for (int i = 0; i < V; i++) {
            const size_t line = (size_t)(i / (int)PER_PANEL) * key_dim + k;
            const vec key = load_element(
                c->keys, bf16, base + line * PANEL + LANES * (size_t)(i % (int)PER_PANEL));
            UNROLL
            for (int r = 0; r < R; r++)
                acc[r][i] = v_fma(value[r], key, acc[r][i]);
        }
    }
    const vec scale = v_set1(c->shape->scale);
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int i = 0; i < V; i++)
            v_store(c->p[r0 + (uint32_t)r] + panel * PANEL + LANES * (size_t)i,
                    v_mul(acc[r][i], scale));
    }
}

ALWAYS_INLINE void score_tile(struct chunk *c, uint32_t r0, uint32_t first, uint32_t end,
                              const int R, const int P)
{
    uint32_t panel = first / PANEL;
    const uint32_t panel_end = (end + PANEL - 1) / PANEL;
    const bool bf16 = c->shape->kv_bf16;
    for (; panel + (uint32_t)P <= panel_end; panel += (uint32_t)P) {
        if (bf16)
            score_panels(c, r0, panel, true, R, P);
        else
            score_panels(c, r0, panel, false, R, P);
    }
    for (; panel < panel_end; panel++) {
        if (bf16)
            score_panels(c, r0, panel, true, R, 1);
        else
            score_panels(c, r0, panel, false, R, 1);
    }
}

/* ---- weights ---- */

static void hide_unseen(float *p, uint32_t first, uint32_t end)
{
    for (uint32_t t = 0; t < first; t++)
        p[t] = -INFINITY;
    for (uint32_t t = end; t < TOKENS; t++)
        p[t] = -INFINITY;
}

/* From scores to weights; gives the maximum. */
static float weigh(struct chunk *c, uint32_t r)
{
    float *p = c->p[r];
    const uint32_t first = c->row[r]->first, end = first + c->row[r]->visible;
    hide_unseen(p, first, end);
    if (c->shape->soft_cap > 0.0f) {
        const vec cap = v_set1(c->shape->soft_cap);
        for (uint32_t t = 0; t < TOKENS; t += LANES)
            v_store(p + t, v_mul(cap, v_tanh(v_div(v_load(p + t), cap))));
        hide_unseen(p, first, end);
    }
    if (c->row[r]->bias != NULL) {
        for (uint32_t t = 0; t < TOKENS; t += LANES)
            v_store(p + t, v_add(v_load(p + t), v_load(c->row[r]->bias + t)));
        hide_unseen(p, first, end);
    }
    vec best = v_set1(-INFINITY);
    for (uint32_t t = 0; t < TOKENS; t += LANES)
        best = v_max(v_load(p + t), best);
    const float top =
        v_largest(best) + 0.0f; /* -0 becomes +0: which zero came first must not show */
    for (uint32_t t = 0; t < TOKENS; t += LANES)
        v_store(p + t, v_exp(v_sub(v_load(p + t), v_set1(top))));
    return top;
}

/* The row's maximum and sum after this block, and the factors of its merge. */
static void merge_sums(struct chunk *c, uint32_t r, float top, float sum)
{
    struct attention_row *row = c->row[r];
    c->merge[r] = row->l != 0.0f;
    c->a[r] = c->b[r] = 0.0f;
    if (c->merge[r]) {
        const float higher = row->m > top ? row->m : top;
        c->a[r] = exp_inline(row->m - higher);
        c->b[r] = exp_inline(top - higher);
        sum = fmaf(row->l, c->a[r], sum * c->b[r]);
        top = higher;
    }
    row->m = top;
    row->l = sum;
}

/* The sums of four rows go side by side: each is a chain of 64 additions. Weights of tokens that a row does not see are
 * +0, or infinite where the seen ones are too (no score is a number): adding them changes nothing. */
static void weigh_all(struct chunk *c)
{
    for (uint32_t r = 0; r < c->n; r += 4) {
        const uint32_t n = c->n - r < 4 ? c->n - r : 4;
        float top[4], sum[4] = {0};
        for (uint32_t i = 0; i < n; i++)
            top[i] = weigh(c, r + i);
        if (n == 4) {
            for (uint32_t t = 0; t < TOKENS; t++) {
                sum[0] += c->p[r][t];
                sum[1] += c->p[r + 1][t];
                sum[2] += c->p[r + 2][t];
                sum[3] += c->p[r + 3][t];
            }
        } else {
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t first = c->row[r + i]->first, end = first + c->row[r + i]->visible;
                for (uint32_t t = first; t < end; t++)
                    sum[i] += c->p[r + i][t];
            }
        }
        for (uint32_t i = 0; i < n; i++)
            merge_sums(c, r + i, top[i], sum[i]);
    }
}

/* ---- outputs ---- */

/* Tokens that all rows of a tile see, and those that some do. */
struct spans {
    uint32_t first, end, all_first, all_end;
};

static struct spans spans_of(const struct chunk *c, uint32_t r0, uint32_t n)
{
    struct spans s = {.first = TOKENS, .all_end = TOKENS};
    for (uint32_t r = r0; r < r0 + n; r++) {
        const uint32_t first = c->row[r]->first, end = first + c->row[r]->visible;
        if (first < s.first) s.first = first;
        if (first > s.all_first) s.all_first = first;
        if (end > s.end) s.end = end;
        if (end < s.all_end) s.all_end = end;
    }
    if (s.all_first > s.all_end) s.all_first = s.all_end = s.end;
    return s;
}

/* Tokens that only some rows see. */
ALWAYS_INLINE void add_edge(const struct chunk *c, uint32_t r0, const struct values *v, uint32_t i,
                            uint32_t first, uint32_t end, const bool bf16, const int R, const int W,
                            vec acc[][8])
{
    for (uint32_t t = first; t < end; t++) {
        UNROLL
        for (int r = 0; r < R; r++) {
            const struct attention_row *row = c->row[r0 + (uint32_t)r];
            if (t - row->first >= row->visible) continue;
            const vec weight = v_set1(c->p[r0 + (uint32_t)r][t]);
            UNROLL
            for (int j = 0; j < W; j++)
                acc[r][j] = v_fma(
                    weight, load_element(v->data, bf16, t * v->stride + i + LANES * (size_t)j),
                    acc[r][j]);
        }
    }
}

/* W vectors of outputs from i on, of R rows. */
ALWAYS_INLINE void output_vectors(const struct chunk *c, uint32_t r0, const struct values *v,
                                  const struct spans *s, uint32_t i, const bool bf16, const int R,
                                  const int W)
{
    vec acc[MOST_ROWS][8];
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int j = 0; j < W; j++)
            acc[r][j] = v_zero();
    }
    add_edge(c, r0, v, i, s->first, s->all_first, bf16, R, W, acc);
    for (uint32_t t = s->all_first; t < s->all_end; t++) {
        vec weight[MOST_ROWS];
        UNROLL
        for (int r = 0; r < R; r++)
            weight[r] = v_set1(c->p[r0 + (uint32_t)r][t]);
        UNROLL
        for (int j = 0; j < W; j++) {
            const vec value = load_element(v->data, bf16, t * v->stride + i + LANES * (size_t)j);
            UNROLL
            for (int r = 0; r < R; r++)
                acc[r][j] = v_fma(weight[r], value, acc[r][j]);
        }
    }
    add_edge(c, r0, v, i, s->all_end, s->end, bf16, R, W, acc);
    UNROLL
    for (int r = 0; r < R; r++) {
        const uint32_t at = r0 + (uint32_t)r;
        float *o = c->row[at]->o + v->from + i;
        const vec a = v_set1(c->a[at]), b = v_set1(c->b[at]);
        UNROLL
        for (int j = 0; j < W; j++) {
            vec out = acc[r][j];
            if (c->merge[at]) out = v_fma(v_load(o + LANES * (size_t)j), a, v_mul(out, b));
            v_store(o + LANES * (size_t)j, out);
        }
    }
}

/* One output of one row: what is left below a vector. */
static void output_one(const struct chunk *c, uint32_t r, const struct values *v, uint32_t i,
                       bool bf16)
{
    struct attention_row *row = c->row[r];
    float acc = 0.0f;
    for (uint32_t t = row->first; t < row->first + row->visible; t++) {
        const size_t at = t * v->stride + i;
        acc =
            fmaf(c->p[r][t],
                 bf16 ? bf16_to_f32(((const uint16_t *)v->data)[at]) : ((const float *)v->data)[at],
                 acc);
    }
    float *o = row->o + v->from + i;
    *o = c->merge[r] ? fmaf(*o, c->a[r], acc * c->b[r]) : acc;
}

ALWAYS_INLINE void output_tile(const struct chunk *c, uint32_t r0, const struct values *v,
                               const bool bf16, const int R, const int W)
{
    const struct spans s = spans_of(c, r0, (uint32_t)R);
    uint32_t i = 0;
    for (; i + LANES * (uint32_t)W <= v->width; i += LANES * (uint32_t)W)
        output_vectors(c, r0, v, &s, i, bf16, R, W);
    if (W > 4 && i + LANES * 4 <= v->width) {
        output_vectors(c, r0, v, &s, i, bf16, R, 4);
        i += LANES * 4;
    }
    for (; i + LANES <= v->width; i += LANES)
        output_vectors(c, r0, v, &s, i, bf16, R, 1);
    for (; i < v->width; i++)
        for (uint32_t r = r0; r < r0 + (uint32_t)R; r++)
            output_one(c, r, v, i, bf16);
}

/* ---- tiles ---- */

/* Functions per tile: only constants unroll. */
#define TILE(R, P, W)                                                                              \
    static void scores_##R(struct chunk *c, uint32_t r0, uint32_t first, uint32_t end)             \
    {                                                                                              \
        score_tile(c, r0, first, end, R, P);                                                       \
    }                                                                                              \
    static void outputs_f32_##R(const struct chunk *c, uint32_t r0, const struct values *v)        \
    {                                                                                              \
        output_tile(c, r0, v, false, R, W);                                                        \
    }                                                                                              \
    static void outputs_bf16_##R(const struct chunk *c, uint32_t r0, const struct values *v)       \
    {                                                                                              \
        output_tile(c, r0, v, true, R, W);                                                         \
    }
EACH_TILE(TILE)

static void outputs(const struct chunk *c, const struct values *v, bool bf16)
{
    uint32_t r = 0;
#define OUTPUTS(R, P, W)                                                                           \
    for (; r + R <= c->n; r += R) {                                                                \
        if (bf16)                                                                                  \
            outputs_bf16_##R(c, r, v);                                                             \
        else                                                                                       \
            outputs_f32_##R(c, r, v);                                                              \
    }
    EACH_TILE(OUTPUTS)
#undef OUTPUTS
}

/* Values out of keys: numbers [from, from + width) of the tokens first..end, as f32 [TOKENS][STRIP]. */
static void values_of_keys(const struct chunk *c, uint32_t first, uint32_t end, uint32_t from,
                           uint32_t width, float *out)
{
    const uint32_t key_dim = c->shape->key_dim;
    const bool bf16 = c->shape->kv_bf16;
    for (uint32_t t = first / LANES * LANES; t < end; t += LANES) {
        const size_t base = ((size_t)(t / PANEL) * key_dim + from) * PANEL + t % PANEL;
        uint32_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            vec square[LANES];
            UNROLL
            for (uint32_t j = 0; j < LANES; j++)
                square[j] = load_element(c->keys, bf16, base + (size_t)(i + j) * PANEL);
            v_transpose(square);
            UNROLL
            for (uint32_t j = 0; j < LANES; j++)
                v_store(out + (size_t)(t + j) * STRIP + i, square[j]);
        }
        for (; i < width; i++) {
            float line[LANES];
            v_store(line, load_element(c->keys, bf16, base + (size_t)i * PANEL));
            for (uint32_t j = 0; j < LANES; j++)
                out[(size_t)(t + j) * STRIP + i] = line[j];
        }
    }
}

static void meet(struct chunk *c, const void *values)
{
    if (c->n == 0) return;
    const uint32_t value_dim = c->shape->value_dim;
    const struct spans s = spans_of(c, 0, c->n);
    uint32_t r = 0;
#define SCORES(R, P, W)                                                                            \
    for (; r + R <= c->n; r += R) {                                                                \
        const struct spans of = spans_of(c, r, R);                                                 \
        scores_##R(c, r, of.first, of.end);                                                        \
    }
    EACH_TILE(SCORES)
#undef SCORES
    weigh_all(c);
    if (values != NULL) {
        const struct values v = {.data = values, .stride = value_dim, .width = value_dim};
        outputs(c, &v, c->shape->kv_bf16);
        return;
    }
    float strip[TOKENS * STRIP] __attribute__((aligned(64)));
    for (uint32_t from = 0; from < value_dim; from += STRIP) {
        const uint32_t width = value_dim - from < STRIP ? value_dim - from : STRIP;
        values_of_keys(c, s.first, s.end, from, width, strip);
        const struct values v = {.data = strip, .stride = STRIP, .from = from, .width = width};
        outputs(c, &v, false);
    }
}

ALWAYS_INLINE void attention_block_inline(const struct attention_shape *shape,
                                          struct attention_row *rows, uint32_t n, const void *keys,
                                          const void *values)
{
    assert(values != NULL || shape->value_dim <= shape->key_dim);
    struct chunk c; /* the weights are not cleared */
    c.shape = shape;
    c.keys = keys;
    c.n = 0;
    for (uint32_t r = 0; r < n; r++) {
        if (rows[r].visible == 0) continue;
        assert(rows[r].first < TOKENS && rows[r].visible <= TOKENS - rows[r].first);
        c.row[c.n++] = &rows[r];
        if (c.n < CHUNK) continue;
        meet(&c, values);
        c.n = 0;
    }
    meet(&c, values);
}

#endif
