/* Attention of one block: the reference's bits, and nothing of what masked tokens hold. */
// links: kernels
#include "kernel_test.h"

#define TOKENS  64u
#define MAX_DIM 160u

struct block {
    float q[MAX_DIM];
    void *keys, *values;
};

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

/* Masked tokens hold `poison`. */
static struct block make(uint32_t key_dim, uint32_t value_dim, bool bf16, uint32_t first,
                         uint32_t visible, enum numbers kind, float poison, uint64_t seed)
{
    struct block b;
    const size_t width = bf16 ? 2 : 4;
    b.keys = mem_alloc(TOKENS * key_dim * width);
    b.values = mem_alloc(TOKENS * value_dim * width);
    cr_assert(b.keys && b.values);
    fill(b.q, key_dim, kind, &seed);
    float x[MAX_DIM];
    for (uint32_t t = 0; t < TOKENS; t++) {
        bool seen = t >= first && t < first + visible;
        fill(x, key_dim, kind, &seed);
        for (uint32_t k = 0; k < key_dim; k++)
            put(b.keys, bf16, key_at(t, k, key_dim), seen ? x[k] : poison);
        fill(x, value_dim, kind, &seed);
        for (uint32_t k = 0; k < value_dim; k++)
            put(b.values, bf16, (size_t)t * value_dim + k, seen ? x[k] : poison);
    }
    return b;
}

static void close_block(struct block *b)
{
    mem_free(b->keys);
    mem_free(b->values);
}

struct result {
    float m, l, o[MAX_DIM];
};

static struct result run(const struct kernels *k, const struct block *b, bool bf16,
                         uint32_t key_dim, uint32_t value_dim, uint32_t first, uint32_t visible)
{
    struct result r;
    struct guarded o = guarded_open(value_dim * 4, 4);
    k->attention_block(b->q, b->keys, b->values, bf16, key_dim, value_dim, first, visible, 0.37f,
                       &r.m, &r.l, (float *)(void *)o.data);
    memcpy(r.o, o.data, value_dim * 4);
    guarded_close(&o);
    return r;
}

static const uint32_t dims[][2] = {{1, 1},   {8, 8},     {16, 7},   {33, 24},
                                   {64, 64}, {128, 128}, {96, 160}, {160, 72}};
static const uint32_t spans[][2] = {{0, 64},  {0, 1},  {63, 1},  {0, 15}, {0, 16},
                                    {0, 17},  {5, 40}, {16, 16}, {15, 2}, {31, 33},
                                    {48, 16}, {20, 3}, {0, 33},  {0, 49}};

Test(attention, every_variant_gives_the_bits_of_the_reference)
{
    for (uint32_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (uint32_t j = 0; j < sizeof spans / sizeof spans[0]; j++)
            for (int kind = 0; kind < NUM_N; kind++)
                for (int bf16 = 0; bf16 < 2; bf16++) {
                    const uint32_t kd = dims[i][0], vd = dims[i][1], first = spans[j][0],
                                   seen = spans[j][1];
                    struct block b =
                        make(kd, vd, bf16, first, seen, (enum numbers)kind, NAN, 1 + i * 100 + j);
                    struct result want = run(reference(), &b, bf16, kd, vd, first, seen);
                    EACH_VARIANT(v)
                    {
                        struct result got = run(v, &b, bf16, kd, vd, first, seen);
                        cr_assert(same_f32(got.m, want.m), "%s m %a, reference %a", v->name,
                                  (double)got.m, (double)want.m);
                        cr_assert(same_f32(got.l, want.l), "%s l %a, reference %a", v->name,
                                  (double)got.l, (double)want.l);
                        expect_same(got.o, want.o, vd, "o");
                    }
                    close_block(&b);
                }
}

Test(attention, masked_tokens_may_hold_anything)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (uint32_t j = 0; j < sizeof spans / sizeof spans[0]; j++) {
            struct block zeros = make(64, 40, false, spans[j][0], spans[j][1], NUM_PLAIN, 0.0f, 5);
            struct block nans = make(64, 40, false, spans[j][0], spans[j][1], NUM_PLAIN, NAN, 5);
            struct block infs =
                make(64, 40, false, spans[j][0], spans[j][1], NUM_PLAIN, INFINITY, 5);
            struct result a = run(v, &zeros, false, 64, 40, spans[j][0], spans[j][1]);
            struct result b = run(v, &nans, false, 64, 40, spans[j][0], spans[j][1]);
            struct result c = run(v, &infs, false, 64, 40, spans[j][0], spans[j][1]);
            cr_assert(isfinite(a.l) && a.m == b.m && a.l == b.l && a.m == c.m && a.l == c.l);
            cr_assert_arr_eq(a.o, b.o, 40 * 4);
            cr_assert_arr_eq(a.o, c.o, 40 * 4);
            close_block(&zeros);
            close_block(&nans);
            close_block(&infs);
        }
    }
}

Test(attention, blocks_merged_are_the_softmax)
{
    const uint32_t kd = 48, vd = 32;
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        struct block b[3];
        struct result sum = {0}, part;
        for (uint32_t j = 0; j < 3; j++) {
            b[j] = make(kd, vd, false, 0, j == 2 ? 30 : 64, NUM_PLAIN, NAN, 77 + j);
            memcpy(b[j].q, b[0].q, sizeof b[j].q);
            part = run(v, &b[j], false, kd, vd, 0, j == 2 ? 30 : 64);
            if (j == 0)
                sum = part;
            else
                v->attention_merge(&sum.m, &sum.l, sum.o, part.m, part.l, part.o, vd);
        }
        v->scale_div(sum.o, vd, sum.l);

        double total = 0, want[32] = {0};
        for (uint32_t t = 0; t < 158; t++) {
            double s = 0;
            const struct block *at = &b[t / 64];
            for (uint32_t k = 0; k < kd; k++)
                s += (double)at->q[k] * (double)((float *)at->keys)[key_at(t % 64, k, kd)];
            double p = exp(s * (double)0.37f);
            total += p;
            for (uint32_t k = 0; k < vd; k++)
                want[k] += p * (double)((float *)at->values)[t % 64 * vd + k];
        }
        for (uint32_t k = 0; k < vd; k++)
            cr_expect_float_eq(sum.o[k], want[k] / total, 1e-5, "%s [%u]", v->name, k);
        for (uint32_t j = 0; j < 3; j++)
            close_block(&b[j]);
    }
}

Test(attention, merges_give_the_bits_of_the_reference)
{
    uint64_t state = 9;
    for (int kind = 0; kind < NUM_N; kind++)
        for (uint32_t n = 1; n < 70; n++) {
            float ml[4], o[70], added[70];
            fill(ml, 4, (enum numbers)kind, &state);
            fill(o, n, (enum numbers)kind, &state);
            fill(added, n, (enum numbers)kind, &state);
            float want[72], got[72];
            memcpy(want + 2, o, n * 4);
            want[0] = ml[0], want[1] = ml[1];
            reference()->attention_merge(&want[0], &want[1], want + 2, ml[2], ml[3], added, n);
            EACH_VARIANT(v)
            {
                memcpy(got + 2, o, n * 4);
                got[0] = ml[0], got[1] = ml[1];
                v->attention_merge(&got[0], &got[1], got + 2, ml[2], ml[3], added, n);
                expect_same(got, want, n + 2, "merge");
            }
        }
}

Test(attention, a_row_that_is_not_finite_shows_and_does_no_harm)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        struct block b = make(32, 16, true, 0, 64, NUM_PLAIN, 0, 3);
        b.q[7] = NAN;
        struct result r = run(v, &b, true, 32, 16, 0, 64);
        cr_expect(!isfinite(r.l), "%s", v->name);
        v->scale_div(r.o, 16, r.l);
        for (int j = 0; j < 16; j++)
            cr_expect(!isfinite(r.o[j]), "%s", v->name);
        close_block(&b);
    }
}
