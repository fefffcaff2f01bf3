/* The products of all block formats against the Python program that spells their definition out in exact fractions. */
// links: kernels
#include "kernel_test.h"

#define FEATURES 3u
#define K        512u

static const struct {
    enum dtype t;
    int scale, min; /* where they stand in a block */
} types[] = {{DTYPE_Q8_0, 0, -1}, {DTYPE_Q4_0, 0, -1},   {DTYPE_Q4_1, 0, 2},
             {DTYPE_Q5_0, 0, -1}, {DTYPE_Q5_1, 0, 2},    {DTYPE_Q4_K, 0, 2},
             {DTYPE_Q5_K, 0, 2},  {DTYPE_Q6_K, 208, -1}, {DTYPE_MXFP4, 0, -1}};

static uint32_t next16(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void make_block(size_t type, uint8_t *block, uint32_t *state)
{
    for (size_t i = 0; i < dtype_block_bytes(types[type].t); i++)
        block[i] = (uint8_t)next16(state);
    if (types[type].t == DTYPE_MXFP4) {
        block[0] = (uint8_t)(120 + block[0] % 10);
        return;
    }
    const int places[2] = {types[type].scale, types[type].min};
    for (int i = 0; i < 2 && places[i] >= 0; i++) {
        uint8_t *high = block + places[i] + 1;
        *high = (uint8_t)((*high & 0x83) | (2 + (*high >> 2) % 16) << 2);
    }
}

Test(blocks_reference, the_kernels_do_what_the_definition_says)
{
    if (system("python3 -c '' 2>/dev/null") != 0) {
        fprintf(stderr, "skipped: no python3\n");
        return;
    }
    FILE *from =
        popen("python3 '" PROJECT_ROOT "/tests/golden/blocks_reference.py' --selftest-vector", "r");
    cr_assert_not_null(from);
    for (size_t type = 0; type < sizeof types / sizeof *types; type++) {
        const enum dtype t = types[type].t;
        uint32_t state = 100 + (uint32_t)type, want[FEATURES];
        float x[K];
        for (uint32_t i = 0; i < K; i++)
            x[i] =
                ldexpf((float)((int32_t)next16(&state) - 32768) / 32768.0f, (int)(i / 32 % 7) - 3);
        const size_t row = dtype_bytes(t, K);
        uint8_t *file = mem_alloc(FEATURES * row);
        for (size_t at = 0; at < FEATURES * row; at += dtype_block_bytes(t))
            make_block(type, file + at, &state);
        for (uint32_t j = 0; j < FEATURES; j++) {
            char name[16];
            cr_assert_eq(fscanf(from, " %15s %x", name, &want[j]), 2, "the program ended early");
            cr_assert_str_eq(name, dtype_name(t));
        }

        struct packed w;
        cr_assert(packed_shape(t, ROW_Q8, FEATURES, K, &w));
        w.data = mem_aligned(64, packed_bytes(&w));
        packed_clear_padding(&w);
        pack_features(&w, 0, FEATURES, t, file);
        for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
            const struct kernels *v = runnable(kernels_variant(i));
            if (v == NULL) continue;
            int8_t q[K];
            float d[K / 32], y[FEATURES];
            v->quantize_row(x, K, q, d);
            struct rows rows = {.format = ROW_Q8, .m = 1, .k = K, .data = q, .scales = d};
            void *scratch = mem_aligned(64, matmul_scratch_bytes(&w, 1));
            v->matmul(&w, 0, w.panels, &rows, y, FEATURES, scratch);
            mem_free(scratch);
            for (uint32_t j = 0; j < FEATURES; j++)
                cr_expect_eq(f32_bits(y[j]), want[j], "%s %s [%u]: %08x, by exact fractions %08x",
                             v->name, dtype_name(t), j, f32_bits(y[j]), want[j]);
        }
        mem_free(w.data);
        mem_free(file);
    }
    cr_expect_eq(pclose(from), 0);
}
