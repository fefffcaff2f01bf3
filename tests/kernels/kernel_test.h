/* kernel_test.h - what the kernel tests share: variants this CPU can run, seeded numbers with all the awkward
 * ones among them, buffers with guard bytes, comparison of bits. */
#ifndef MOESAIC_TESTS_KERNEL_TEST_H
#define MOESAIC_TESTS_KERNEL_TEST_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/kernels/kernels.h"

/* for each variant but the reference that runs here */
#define EACH_VARIANT(v)                                                                            \
    for (uint32_t v##_i = 1; kernels_variant(v##_i) != NULL; v##_i++)                              \
        for (const struct kernels *v = runnable(kernels_variant(v##_i)); v != NULL; v = NULL)

static inline const struct kernels *runnable(const struct kernels *v)
{
    const struct kernels *picked;
    if (kernels_pick(v->name, &picked, NULL) == ERR_OK) return picked;
    static const char *said;
    if (said != v->name) fprintf(stderr, "kernels '%s' do not run on this CPU: skipped\n", v->name);
    said = v->name;
    return NULL;
}

static inline const struct kernels *reference(void)
{
    return kernels_variant(0);
}

/* xorshift64: the tests need a stream, not quality. */
static inline uint32_t next_u32(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    return (uint32_t)(x >> 32);
}

static inline float next_unit(uint64_t *state) /* -1..1 */
{
    return (float)(int32_t)next_u32(state) * 0x1p-31f;
}

/* What numbers a test row is made of. */
enum numbers { NUM_PLAIN, NUM_WIDE, NUM_TINY, NUM_ZEROS, NUM_BAD, NUM_N };

static inline void fill(float *x, size_t n, enum numbers kind, uint64_t *state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f};
    for (size_t i = 0; i < n; i++) {
        float v = next_unit(state);
        switch (kind) {
        case NUM_WIDE:
            v = ldexpf(v, (int)(next_u32(state) % 60) - 30);
            break;
        case NUM_TINY:
            v = ldexpf(v, -120 - (int)(next_u32(state) % 29));
            break;
        case NUM_ZEROS:
            v = next_u32(state) % 4 ? (next_u32(state) % 2 ? 0.0f : -0.0f) : v;
            break;
        case NUM_BAD:
            v = next_u32(state) % 29 ? v : bad[next_u32(state) % 6];
            break;
        default:
            break;
        }
        x[i] = v;
    }
}

static inline bool same_f32(float a, float b)
{
    return f32_bits(a) == f32_bits(b) || (isnan(a) && isnan(b));
}

#define GUARD 64u

/* n bytes, 64-byte aligned start + shift, guard bytes on both sides. */
struct guarded {
    uint8_t *base, *data;
    size_t n, shift;
};

static inline struct guarded guarded_open(size_t n, size_t shift)
{
    struct guarded g = {.n = n, .shift = shift};
    g.base = mem_aligned(64, (n + shift + 2 * GUARD + 63) / 64 * 64);
    cr_assert_not_null(g.base);
    memset(g.base, 0xA5, n + shift + 2 * GUARD);
    g.data = g.base + GUARD + shift;
    return g;
}

static inline void guarded_close(struct guarded *g)
{
    for (size_t i = 0; i < GUARD + g->shift; i++)
        cr_assert_eq(g->base[i], 0xA5, "byte %zu before was written", i);
    for (size_t i = 0; i < GUARD; i++)
        cr_assert_eq(g->data[g->n + i], 0xA5, "byte %zu behind was written", i);
    mem_free(g->base);
}

static inline void expect_same(const float *got, const float *want, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        cr_assert(same_f32(got[i], want[i]), "%s [%zu]: %a, reference %a", what, i, (double)got[i],
                  (double)want[i]);
}

#endif
