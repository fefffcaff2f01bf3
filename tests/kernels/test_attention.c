/* Attention of rows over a block: the reference's bits whatever rows go together, and nothing of what unseen tokens
 * hold. */
// links: kernels
#include "kernel_test.h"

#define TOKENS   ATTENTION_TOKENS
#define MAX_DIM  600u
#define MAX_ROWS 40u

static size_t key_at(uint32_t t, uint32_t k, uint32_t key_dim)
{
    return ((size_t)(t / 16) * key_dim + k) * 16 + t % 16;
}

static void put(void *base, bool bf16, size_t i, float v)
{
    if (bf16)
        ((uint16_t *)base)[i] = bf16_from_f32(v);
    else
        ((float *)base)[i] = v;
}

static float get(const void *base, bool bf16, size_t i)
{
    return bf16 ? bf16_to_f32(((const uint16_t *)base)[i]) : ((const float *)base)[i];
}

struct span {
    uint32_t first, visible;
};

/* A block, and queries that meet it. */
struct block {
    struct attention_shape shape;
    uint32_t n;
    struct span span[MAX_ROWS];
    float *q; /* [n, key_dim] */
    void *keys, *values;
    float bias[TOKENS]; /* of every third row, if `biased` */
    bool biased;
};

static bool seen(const struct block *b, uint32_t t)
{
    for (uint32_t r = 0; r < b->n; r++)
        if (t - b->span[r].first < b->span[r].visible) return true;
    return false;
}

/* Tokens that no row sees hold `poison`. */
static struct block make(struct attention_shape shape, const struct span *span, uint32_t n,
                         enum numbers kind, float poison, uint64_t seed)
{
    struct block b = {.shape = shape, .n = n};
    memcpy(b.span, span, n * sizeof *span);
    const size_t width = shape.kv_bf16 ? 2 : 4;
    b.q = mem_alloc((size_t)n * shape.key_dim * 4);
    b.keys = mem_alloc(TOKENS * shape.key_dim * width);
    b.values = mem_alloc(TOKENS * shape.value_dim * width);
    cr_assert(b.q && b.keys && b.values);
    fill(b.q, (size_t)n * shape.key_dim, kind, &seed);
    float x[MAX_DIM];
    for (uint32_t t = 0; t < TOKENS; t++) {
        fill(x, shape.key_dim, kind, &seed);
        for (uint32_t k = 0; k < shape.key_dim; k++)
            put(b.keys, shape.kv_bf16, key_at(t, k, shape.key_dim), seen(&b, t) ? x[k] : poison);
        fill(x, shape.value_dim, kind, &seed);
        for (uint32_t k = 0; k < shape.value_dim; k++)
            put(b.values, shape.kv_bf16, (size_t)t * shape.value_dim + k,
                seen(&b, t) ? x[k] : poison);
    }
    return b;
}

static void close_block(struct block *b)
{
    mem_free(b->q);
    mem_free(b->keys);
    mem_free(b->values);
}

/* What rows had before, and what they have afterwards. */
struct state {
    float m[MAX_ROWS], l[MAX_ROWS], o[MAX_ROWS][MAX_DIM];
};

/* Rows [from, from + n) go together. */
static void meet(const struct kernels *k, const struct block *b, const void *values, uint32_t from,
                 uint32_t n, struct state *s)
{
    struct attention_row rows[MAX_ROWS];
    struct guarded o[MAX_ROWS];
    const uint32_t vd = b->shape.value_dim;
    for (uint32_t r = 0; r < n; r++) {
        o[r] = guarded_open(vd * 4, 4);
        memcpy(o[r].data, s->o[from + r], vd * 4);
        rows[r] = (struct attention_row){.q = b->q + (size_t)(from + r) * b->shape.key_dim,
                                         .o = (float *)(void *)o[r].data,
                                         .m = s->m[from + r],
                                         .l = s->l[from + r],
                                         .first = b->span[from + r].first,
                                         .visible = b->span[from + r].visible,
                                         .bias = b->biased && (from + r) % 3 == 0 ? b->bias : NULL};
    }
    k->attention_block(&b->shape, rows, n, b->keys, values);
    for (uint32_t r = 0; r < n; r++) {
        s->m[from + r] = rows[r].m;
        s->l[from + r] = rows[r].l;
        memcpy(s->o[from + r], o[r].data, vd * 4);
        guarded_close(&o[r]);
    }
}

static void expect_state(const struct state *got, const struct state *want, uint32_t n,
                         uint32_t value_dim, const char *what)
{
    for (uint32_t r = 0; r < n; r++) {
        cr_assert(same_f32(got->m[r], want->m[r]), "%s: m of row %u %a, reference %a", what, r,
                  (double)got->m[r], (double)want->m[r]);
        cr_assert(same_f32(got->l[r], want->l[r]), "%s: l of row %u %a, reference %a", what, r,
                  (double)got->l[r], (double)want->l[r]);
        expect_same(got->o[r], want->o[r], value_dim, what);
    }
}

static const uint32_t dims[][2] = {{1, 1},   {8, 8},     {16, 7},    {33, 24},  {64, 64},
                                   {40, 35}, {128, 128}, {96, 160},  {160, 72}, {128, 120},
                                   {80, 80}, {192, 128}, {160, 130}, {100, 100}};
static const struct span spans[] = {{0, 64},  {0, 1},  {63, 1},  {0, 15}, {0, 16},
                                    {0, 17},  {5, 40}, {16, 16}, {15, 2}, {31, 33},
                                    {48, 16}, {20, 3}, {0, 33},  {0, 49}};

static struct state start, want, got;

/* Everything that one block may do to n rows, against the reference with one row at a time; also with values out of
 * the keys, and the same numbers apart. */
static void compare(const struct block *b, const char *what)
{
    const uint32_t vd = b->shape.value_dim;
    want = start;
    for (uint32_t r = 0; r < b->n; r++)
        meet(reference(), b, b->values, r, 1, &want);
    EACH_VARIANT(v)
    {
        got = start;
        meet(v, b, b->values, 0, b->n, &got);
        expect_state(&got, &want, b->n, vd, what);
    }
    if (vd > b->shape.key_dim) return;
    float *apart = mem_alloc(TOKENS * vd * 4);
    cr_assert_not_null(apart);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < vd; i++)
            put(apart, b->shape.kv_bf16, (size_t)t * vd + i,
                get(b->keys, b->shape.kv_bf16, key_at(t, i, b->shape.key_dim)));
    want = start;
    meet(reference(), b, apart, 0, b->n, &want);
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        got = start;
        meet(v, b, NULL, 0, b->n, &got);
        expect_state(&got, &want, b->n, vd, "values in keys");
    }
    mem_free(apart);
}

static struct attention_shape shape_of(uint32_t kd, uint32_t vd, bool bf16, float cap)
{
    return (struct attention_shape){
        .kv_bf16 = bf16, .key_dim = kd, .value_dim = vd, .scale = 0.37f, .soft_cap = cap};
}

Test(attention, every_variant_gives_the_bits_of_the_reference)
{
    memset(&start, 0, sizeof start);
    for (uint32_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (uint32_t j = 0; j < sizeof spans / sizeof spans[0]; j++)
            for (int kind = 0; kind < NUM_N; kind++)
                for (int bf16 = 0; bf16 < 2; bf16++) {
                    struct attention_shape s =
                        shape_of(dims[i][0], dims[i][1], bf16, (i + j) % 3 == 0 ? 2.5f : 0.0f);
                    struct block b =
                        make(s, &spans[j], 1, (enum numbers)kind, NAN, 1 + i * 100 + j);
                    compare(&b, "alone");
                    close_block(&b);
                }
}

/* n rows with spans as in a causal batch, a window, or anything. */
static void draw_spans(struct span *s, uint32_t n, uint32_t how, uint64_t *state)
{
    uint32_t position = next_u32(state) % 80, window = 1 + next_u32(state) % 70;
    for (uint32_t r = 0; r < n; r++) {
        s[r] = spans[next_u32(state) % (sizeof spans / sizeof spans[0])];
        if (how == 0) s[r] = (struct span){0, 64};
        if (how > 2) continue;
        if (how > 0) { /* rows of one sequence, one position after the other */
            uint32_t end = position + r < 64 ? position + r + 1 : 64;
            uint32_t first = how == 2 && position + r >= window ? position + r - window + 1 : 0;
            s[r] = first >= end ? (struct span){64, 0} : (struct span){first, end - first};
        }
    }
}

Test(attention, rows_that_go_together_do_not_show_in_each_other)
{
    uint64_t state = 21;
    for (uint32_t round = 0; round < 400; round++) {
        const uint32_t n = 1 + (round < 40 ? round : next_u32(&state) % 20);
        const uint32_t *d = dims[next_u32(&state) % (sizeof dims / sizeof dims[0])];
        struct attention_shape s =
            shape_of(d[0], d[1], next_u32(&state) % 2, next_u32(&state) % 3 ? 0.0f : 1.5f);
        struct span of[MAX_ROWS];
        draw_spans(of, n, round % 4, &state);
        const enum numbers kind =
            next_u32(&state) % 2 ? NUM_PLAIN : (enum numbers)(next_u32(&state) % NUM_N);
        struct block b = make(s, of, n, kind, NAN, 100 + round);
        for (uint32_t r = 0; r < n; r++) { /* some begin here, some have met blocks before */
            start.m[r] = next_unit(&state) * 3;
            start.l[r] = next_u32(&state) % 4 ? 1 + fabsf(next_unit(&state)) : 0;
            fill(start.o[r], s.value_dim, NUM_PLAIN, &state);
        }
        compare(&b, "together");
        close_block(&b);
    }
}

Test(attention, the_width_of_compressed_caches)
{
    uint64_t state = 22;
    memset(&start, 0, sizeof start);
    for (uint32_t n = 1; n < 20; n += 3)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct span of[MAX_ROWS];
            draw_spans(of, n, 1, &state);
            struct block b = make(shape_of(576, 512, bf16, 0), of, n, NUM_PLAIN, NAN, n);
            compare(&b, "compressed");
            close_block(&b);
        }
}

Test(attention, tokens_that_only_others_see_may_hold_anything)
{
    /* Row 0 sees the first half, row 1 the second: what the second half holds does not show in row 0. */
    static const struct span halves[] = {{0, 30}, {30, 34}};
    static const float poison[] = {0.0f, NAN, INFINITY};
    memset(&start, 0, sizeof start);
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (uint32_t j = 0; j < 3; j++) {
            struct block b = make(shape_of(64, 40, false, 0), halves, 2, NUM_PLAIN, 0, 5);
            for (uint32_t t = 30; t < 64; t++)
                for (uint32_t k = 0; k < 40; k++) {
                    ((float *)b.keys)[key_at(t, k, 64)] = poison[j];
                    ((float *)b.values)[t * 40 + k] = poison[j];
                }
            got = start;
            meet(v, &b, b.values, 0, 2, &got);
            cr_assert(isfinite(got.l[0]));
            if (j == 0)
                want = got;
            else
                expect_state(&got, &want, 1, 40, v->name);
            close_block(&b);
        }
    }
}

Test(attention, rows_that_see_nothing_are_left_alone)
{
    static const struct span of[] = {{0, 64}, {0, 0}, {64, 0}, {0, 7}};
    uint64_t state = 3;
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        struct block b = make(shape_of(32, 32, true, 0), of, 4, NUM_PLAIN, NAN, 5);
        fill(&start.o[0][0], MAX_DIM * 4, NUM_PLAIN, &state);
        fill(start.m, 4, NUM_PLAIN, &state);
        for (uint32_t r = 0; r < 4; r++)
            start.l[r] = 2;
        got = start;
        meet(v, &b, b.values, 0, 4, &got);
        for (uint32_t r = 1; r < 3; r++)
            cr_assert(got.m[r] == start.m[r] && got.l[r] == 2 &&
                      memcmp(got.o[r], start.o[r], sizeof got.o[r]) == 0);
        cr_assert(got.l[0] != 2 && got.l[3] != 2);
        close_block(&b);
    }
}

/* The softmax over 158 tokens in 3 blocks, and perhaps a sink, against double arithmetic. */
static void expect_softmax(const struct kernels *v, float cap, const float *sink)
{
    const uint32_t kd = 48, vd = 32;
    struct block b[3];
    struct attention_row row;
    float o[32];
    for (uint32_t j = 0; j < 3; j++) {
        struct span s = {0, j == 2 ? 30 : 64};
        b[j] = make(shape_of(kd, vd, false, cap), &s, 1, NUM_PLAIN, NAN, 77 + j);
        memcpy(b[j].q, b[0].q, kd * 4);
    }
    if (sink != NULL)
        attention_row_start_sink(&row, b[0].q, o, vd, *sink);
    else
        attention_row_start(&row, b[0].q, o);
    for (uint32_t j = 0; j < 3; j++) {
        row.first = 0, row.visible = b[j].span[0].visible;
        v->attention_block(&b[j].shape, &row, 1, b[j].keys, b[j].values);
    }
    v->scale_div(o, vd, row.l);

    double total = sink != NULL ? exp((double)*sink) : 0, expected[32] = {0};
    for (uint32_t t = 0; t < 158; t++) {
        double s = 0;
        const struct block *at = &b[t / 64];
        for (uint32_t k = 0; k < kd; k++)
            s += (double)at->q[k] * (double)((float *)at->keys)[key_at(t % 64, k, kd)];
        s *= (double)0.37f;
        if (cap > 0) s = (double)cap * tanh(s / (double)cap);
        double p = exp(s);
        total += p;
        for (uint32_t k = 0; k < vd; k++)
            expected[k] += p * (double)((float *)at->values)[t % 64 * vd + k];
    }
    for (uint32_t k = 0; k < vd; k++)
        cr_expect_float_eq(o[k], expected[k] / total, 1e-6, "%s [%u]", v->name, k);
    for (uint32_t j = 0; j < 3; j++)
        close_block(&b[j]);
}

Test(attention, blocks_merged_are_the_softmax)
{
    static const float sinks[] = {-3.0f, 0.5f, 4.0f};
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        expect_softmax(v, 0, NULL);
        expect_softmax(v, 0.8f, NULL);
        for (uint32_t j = 0; j < 3; j++) {
            expect_softmax(v, 0, &sinks[j]);
            expect_softmax(v, 0.8f, &sinks[j]);
        }
    }
}

Test(attention, merges_are_spelled_out_by_hand)
{
    /* One token, key 1, value w: m_b = s, l_b = 1, o_b = w. */
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (float s = -2.5f; s < 3; s += 0.37f) {
            float key[64] = {1}, value[64 * 19], before[19], o[19], q = s;
            struct attention_row row = {.q = &q, .o = o, .m = 0.3f, .l = 1.7f, .visible = 1};
            for (int j = 0; j < 19; j++) {
                value[j] = 0.1f * (float)j;
                o[j] = before[j] = 1.0f - 0.3f * (float)j;
            }
            const struct attention_shape shape = {.key_dim = 1, .value_dim = 19, .scale = 1};
            v->attention_block(&shape, &row, 1, key, value);
            const float top = s > 0.3f ? s : 0.3f;
            const float a = kernels_exp(0.3f - top), b = kernels_exp(s - top);
            cr_expect_eq(row.m, top);
            cr_expect_eq(row.l, fmaf(1.7f, a, 1.0f * b), "%s", v->name);
            for (int j = 0; j < 19; j++) {
                volatile float added = value[j] * b;
                cr_expect_eq(o[j], fmaf(before[j], a, added), "%s", v->name);
            }
        }
    }
}

Test(attention, a_row_that_is_not_finite_shows_and_does_no_harm)
{
    static const struct span of[] = {{0, 64}, {0, 64}};
    memset(&start, 0, sizeof start);
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (int cap = 0; cap < 2; cap++) {
            struct block b = make(shape_of(32, 16, true, (float)cap), of, 2, NUM_PLAIN, 0, 3);
            b.q[7] = NAN;
            got = start;
            meet(v, &b, b.values, 0, 2, &got);
            cr_expect(!isfinite(got.l[0]), "%s", v->name);
            cr_expect(isfinite(got.l[1]), "%s", v->name);
            v->scale_div(got.o[0], 16, got.l[0]);
            for (int j = 0; j < 16; j++)
                cr_expect(!isfinite(got.o[0][j]) && isfinite(got.o[1][j]), "%s", v->name);
            close_block(&b);
        }
    }
}

Test(attention, a_row_sees_its_part_of_a_block)
{
    static const uint32_t cases[][5] = {
        /* base, from, to; first, visible */
        {0, 0, 64, 0, 64},     {0, 0, 1, 0, 1},       {64, 0, 64, 0, 0},
        {64, 0, 65, 0, 1},     {64, 70, 90, 6, 20},   {64, 128, 130, 64, 0},
        {64, 130, 140, 66, 0}, {64, 127, 500, 63, 1}, {128, 3, 5, 0, 0}};
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct attention_row r = {0};
        attention_row_see(&r, cases[i][0], cases[i][1], cases[i][2]);
        cr_expect_eq(r.visible, cases[i][4], "case %u", i);
        if (r.visible > 0) cr_expect_eq(r.first, cases[i][3], "case %u", i);
    }
}

/* A prompt of 150 tokens with two query heads, in tiles of any size, with and without a window: the bits of each row alone. */
Test(attention, a_prompt_in_tiles_has_the_bits_of_its_rows_alone)
{
    enum { PROMPT = 150, HEADS = 2, KD = 40, VD = 24, N_BLOCKS = 3 };
    uint64_t state = 31;
    const struct span all = {0, 64};
    struct block b[N_BLOCKS];
    for (uint32_t j = 0; j < N_BLOCKS; j++)
        b[j] = make(shape_of(KD, VD, true, 0), &all, 1, NUM_PLAIN, NAN, 40 + j);
    static float q[PROMPT * HEADS][KD], alone[PROMPT * HEADS][VD], tiled[PROMPT * HEADS][VD];
    fill(&q[0][0], PROMPT * HEADS * KD, NUM_PLAIN, &state);
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (uint32_t window = 20; window <= 200; window += 90)
            for (uint32_t tile = 1; tile <= 20; tile += tile == 1 ? 4 : 5) {
                float(*out)[VD] = tile == 1 ? alone : tiled;
                for (uint32_t at = 0; at < PROMPT; at += tile) {
                    struct attention_row rows[MAX_ROWS];
                    const uint32_t n = PROMPT - at < tile ? PROMPT - at : tile;
                    for (uint32_t r = 0; r < n * HEADS; r++)
                        attention_row_start(&rows[r], q[at * HEADS + r], out[at * HEADS + r]);
                    for (uint32_t j = 0; j < N_BLOCKS; j++) {
                        for (uint32_t r = 0; r < n * HEADS; r++) {
                            const uint32_t position = at + r / HEADS;
                            attention_row_see(&rows[r], 64 * j,
                                              position >= window ? position - window + 1 : 0,
                                              position + 1);
                        }
                        v->attention_block(&b[j].shape, rows, n * HEADS, b[j].keys, b[j].values);
                    }
                    for (uint32_t r = 0; r < n * HEADS; r++)
                        v->scale_div(rows[r].o, VD, rows[r].l);
                }
                if (tile > 1)
                    cr_assert_arr_eq(alone, tiled, sizeof alone, "%s tile %u window %u", v->name,
                                     tile, window);
            }
    }
    for (uint32_t j = 0; j < N_BLOCKS; j++)
        close_block(&b[j]);
}

/* A bias is added to the scores, of the rows that have one alone; tokens that are not seen stay so. */
Test(attention, a_bias_moves_scores)
{
    const struct attention_shape shape = {
        .kv_bf16 = false, .key_dim = 24, .value_dim = 20, .scale = 1};
    const struct span seen_by[] = {{0, 64}, {3, 50}, {7, 1}, {5, 30}};
    struct block b = make(shape, seen_by, 4, NUM_PLAIN, NAN, 99);
    for (uint32_t t = 0; t < TOKENS; t++)
        b.bias[t] = t == 20 ? 500.0f : -3.0f + 0.11f * (float)t;
    b.bias[63] = INFINITY; /* row 3 does not see it */
    b.biased = true;
    b.span[0].visible = 60;
    static struct state expected, here;
    const struct kernels *k;
    memset(&expected, 0, sizeof expected);
    meet(kernels_variant(0), &b, b.values, 0, 4, &expected);
    for (uint32_t i = 0; i < shape.value_dim; i++)
        for (uint32_t r = 0; r < 4; r += 3)
            cr_expect_eq(expected.o[r][i], get(b.values, false, 20 * shape.value_dim + i),
                         "row %u is not the token that the bias lifts", r);
    for (uint32_t v = 1; (k = kernels_variant(v)) != NULL; v++) {
        if (kernels_pick(k->name, &k, NULL) != ERR_OK) continue;
        memset(&here, 0, sizeof here);
        meet(k, &b, b.values, 0, 4, &here);
        cr_expect_eq(memcmp(&here, &expected, sizeof here), 0, "%s", k->name);
    }
    close_block(&b);
}
