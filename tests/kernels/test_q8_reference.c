/* The kernels against the Python program that spells the Q8_0 definition out in exact fractions. */
// links: kernels
#include "common/tensor/quantize.h"
#include "kernel_test.h"

#define FEATURES 5u
#define K        160u

static void numbers(uint32_t seed, float *out)
{
    for (uint32_t i = 0; i < K; i++) {
        seed = seed * 1664525u + 1013904223u;
        out[i] = ldexpf((float)((int32_t)(seed >> 16) - 32768) / 32768.0f, (int)(i / 32 % 7) - 3);
    }
}

static void expect_line(FILE *from, char kind, uint32_t value)
{
    char got_kind;
    unsigned got;
    cr_assert_eq(fscanf(from, " %c %x", &got_kind, &got), 2, "the program ended early");
    cr_assert_eq(got_kind, kind);
    cr_assert_eq(got, value, "%c: %08x, by exact fractions %08x", kind, value, got);
}

Test(q8_reference, the_kernels_do_what_the_definition_says)
{
    if (system("python3 -c '' 2>/dev/null") != 0) {
        fprintf(stderr, "skipped: no python3\n");
        return;
    }
    float x[K], weights[FEATURES][K];
    numbers(7, x);
    for (uint32_t j = 0; j < FEATURES; j++)
        numbers(100 + j, weights[j]);

    struct packed w;
    cr_assert(packed_shape(DTYPE_Q8_0, ROW_Q8, FEATURES, K, &w));
    w.data = mem_aligned(64, packed_bytes(&w));
    cr_assert_not_null(w.data);
    packed_clear_padding(&w);
    pack_features(&w, 0, FEATURES, DTYPE_F32, weights);

    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        FILE *from =
            popen("python3 '" PROJECT_ROOT "/tests/golden/q8_reference.py' --selftest-vector", "r");
        cr_assert_not_null(from);
        int8_t q[K];
        float d[K / 32], y[FEATURES];
        v->quantize_row(x, K, q, d);
        for (uint32_t k = 0; k < K; k++)
            expect_line(from, 'q', (uint32_t)q[k]);
        for (uint32_t b = 0; b < K / 32; b++)
            expect_line(from, 'd', f32_bits(d[b]));
        for (uint32_t b = 0; b < FEATURES * K / 32; b++) {
            uint8_t block[34];
            uint16_t half;
            int32_t sum = 0;
            dtype_from_f32(DTYPE_Q8_0, &weights[0][0] + 32 * b, 32, block);
            memcpy(&half, block, 2);
            for (int k = 0; k < 32; k++)
                sum += (k + 1) * (int8_t)block[2 + k];
            expect_line(from, 'w', f32_bits(f16_to_f32(half)));
            expect_line(from, 's', (uint32_t)sum);
        }
        struct rows rows = {.format = ROW_Q8, .m = 1, .k = K, .data = q, .scales = d};
        void *scratch = mem_aligned(64, matmul_scratch_bytes(&w, rows.m));
        v->matmul(&w, 0, w.panels, &rows, y, FEATURES, scratch);
        mem_free(scratch);
        for (uint32_t j = 0; j < FEATURES; j++)
            expect_line(from, 'y', f32_bits(y[j]));
        cr_expect_eq(pclose(from), 0);
    }
    mem_free(w.data);
}
