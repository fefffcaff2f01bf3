/* Number formats against the values and bytes of their reference implementations. */
// links: kernels
#include "kernel_test.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/tensor/blocks.h"
#include "common/tensor/quantize.h"

struct fixture {
    char *bytes;
    size_t len;
    json_t *header;
};

static struct fixture fx;

/* Criterion runs each test in its own process. Absent and allowed to be: the test ends here, as skipped. */
static void open_fixture(void)
{
    const char *shared = getenv("MOESAIC_SHARED"), *require = getenv("MOESAIC_REQUIRE_SHARED");
    char path[4096];
    snprintf(path, sizeof path, "%s/formats/ggml-blocks.safetensors",
             shared ? shared : PROJECT_ROOT "/../shared");
    struct err why;
    if (file_read(path, 64u << 20, &fx.bytes, &fx.len, &why) != ERR_OK) {
        if (require && strcmp(require, "1") == 0) cr_assert_fail("%s", why.text);
        cr_skip_test("%s", why.text);
    }
    uint64_t n;
    memcpy(&n, fx.bytes, 8);
    cr_assert(n < fx.len - 8);
    cr_assert_eq(json_parse(fx.bytes + 8, n, 8, &fx.header, &why), ERR_OK, "%s", why.text);
}

static void close_fixture(void)
{
    json_decref(fx.header);
    mem_free(fx.bytes);
}

/* A copy, so that alignment is right; *bytes long. */
static void *tensor(const char *name, size_t *bytes)
{
    json_t *off = json_object_get(json_object_get(fx.header, name), "data_offsets");
    cr_assert_not_null(off, "%s", name);
    uint64_t n;
    memcpy(&n, fx.bytes, 8);
    size_t a = (size_t)json_integer_value(json_array_get(off, 0)),
           b = (size_t)json_integer_value(json_array_get(off, 1));
    cr_assert(a < b && 8 + n + b <= fx.len);
    void *copy = mem_alloc(b - a);
    memcpy(copy, fx.bytes + 8 + n + a, b - a);
    *bytes = b - a;
    return copy;
}

static void expect_decoded(enum dtype t, const void *src, const float *want, size_t n,
                           const char *what)
{
    float *got = mem_alloc(n * sizeof *got);
    dtype_to_f32(t, src, n, got);
    for (size_t i = 0; i < n; i++)
        cr_assert(got[i] == want[i] || (isnan(got[i]) && isnan(want[i])),
                  "%s [%zu]: %a, reference %a", what, i, (double)got[i], (double)want[i]);
    mem_free(got);
}

Test(dtype, native_blocks_decode_to_the_reference_values)
{
    open_fixture();
    static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1,
                                       DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_MXFP4};
    static const char *const parts[] = {"", "special.", "quant."};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t p = 0; p < 3; p++) {
            if (p == 2 && dtype_block(types[i]) == 256) continue; /* nobody quantizes to these */
            char name[2][64];
            snprintf(name[0], sizeof name[0], "%s.%sblocks", dtype_name(types[i]), parts[p]);
            snprintf(name[1], sizeof name[1], "%s.%svalues", dtype_name(types[i]), parts[p]);
            size_t n, bytes;
            uint8_t *blocks = tensor(name[0], &bytes);
            float *values = tensor(name[1], &n);
            cr_assert_eq(dtype_bytes(types[i], n / 4), bytes);
            expect_decoded(types[i], blocks, values, n / 4, name[0]);
            mem_free(blocks);
            mem_free(values);
        }
    close_fixture();
}

/* Block bytes 37 i + 11, with d and m overwritten: the vectors of the formats' description. */
Test(dtype, native_blocks_decode_to_the_written_down_values)
{
    static const struct {
        enum dtype t;
        int d, m;
        double sum, weighted;
    } cases[] = {{DTYPE_Q4_0, 0, -1, -2.625, -64.75},  {DTYPE_Q4_1, 0, 2, 32.625, 530.875},
                 {DTYPE_Q5_0, 0, -1, 1.875, 14},       {DTYPE_Q5_1, 0, 2, 65.125, 1020.625},
                 {DTYPE_Q8_0, 0, -1, -22, -1010},      {DTYPE_MXFP4, -1, -1, 6.25, 159.5},
                 {DTYPE_Q4_K, 0, 2, 6805, 946605},     {DTYPE_Q5_K, 0, 2, 14527, 2003431},
                 {DTYPE_Q6_K, 208, -1, 576.5, 98052.5}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        uint8_t block[256];
        float y[256];
        for (uint32_t i = 0; i < 256; i++)
            block[i] = (uint8_t)(37 * i + 11);
        if (cases[c].d < 0) block[0] = 126;
        if (cases[c].d >= 0) memcpy(block + cases[c].d, (uint8_t[]){0x00, 0x30}, 2);
        if (cases[c].m >= 0) memcpy(block + cases[c].m, (uint8_t[]){0x00, 0x2c}, 2);
        dtype_to_f32(cases[c].t, block, dtype_block(cases[c].t), y);
        double sum = 0, weighted = 0;
        for (uint32_t i = 0; i < dtype_block(cases[c].t); i++) {
            sum += (double)y[i];
            weighted += (i + 1) * (double)y[i];
        }
        cr_expect_eq(sum, cases[c].sum, "%s: %g", dtype_name(cases[c].t), sum);
        cr_expect_eq(weighted, cases[c].weighted, "%s: %g", dtype_name(cases[c].t), weighted);
    }
}

Test(dtype, f8_codes_and_their_row_scales)
{
    open_fixture();
    size_t n;
    float *table = tensor("table.F8_E4M3", &n);
    for (uint32_t i = 0; i < 256; i++) {
        float got = f8_e4m3_to_f32((uint8_t)i);
        cr_assert(got == table[i] || (isnan(got) && isnan(table[i])), "%02x: %a", i, (double)got);
        cr_assert_eq(signbit(got), signbit(table[i]), "%02x", i);
    }
    /* 130 codes, and a scale for 128 and for the 2 that are left */
    uint8_t row[130 + 2 * 4];
    const float scale[2] = {0x1.234568p-7f, 0x1p-140f};
    for (uint32_t i = 0; i < 130; i++)
        row[i] = (uint8_t)(i + 3);
    memcpy(row + 130, scale, sizeof scale);
    cr_assert_eq(dtype_bytes(DTYPE_F8_E4M3, 130), sizeof row);
    float y[130];
    dtype_to_f32(DTYPE_F8_E4M3, row, 130, y);
    for (uint32_t i = 0; i < 130; i++) {
        volatile float want = table[row[i]] * scale[i / 128];
        cr_expect(y[i] == want || (isnan(y[i]) && isnan(want)), "[%u]", i);
    }
    mem_free(table);
    close_fixture();
}

Test(dtype, blocks_made_at_load_have_the_reference_bytes)
{
    open_fixture();
    static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_MXFP4};
    for (size_t t = 0; t < 3; t++) {
        char name[2][64];
        snprintf(name[0], sizeof name[0], "%s.quant.input", dtype_name(types[t]));
        snprintf(name[1], sizeof name[1], "%s.quant.blocks", dtype_name(types[t]));
        size_t n, bytes, each = dtype_block_bytes(types[t]);
        float *input = tensor(name[0], &n);
        uint8_t *blocks = tensor(name[1], &bytes);
        uint8_t *got = mem_alloc(bytes);
        dtype_from_f32(types[t], input, n / 4, got);
        for (size_t i = 0; i < bytes / each; i++)
            cr_expect_arr_eq(got + i * each, blocks + i * each, each, "%s row %zu",
                             dtype_name(types[t]), i);
        mem_free(got);
        mem_free(input);
        mem_free(blocks);
    }
    close_fixture();
}

Test(dtype, q8_0_made_at_load_has_the_reference_bytes)
{
    open_fixture();
    size_t n, bytes;
    float *input = tensor("Q8_0.quant.input", &n);
    uint8_t *blocks = tensor("Q8_0.quant.blocks", &bytes);
    const uint32_t rows = (uint32_t)(bytes / 34);
    for (uint32_t i = 0; i < rows; i++) {
        uint8_t got[34];
        dtype_from_f32(DTYPE_Q8_0, input + 32 * i, 32, got);
        cr_expect_arr_eq(got, blocks + 34 * i, 34, "row %u", i);
    }
    /* and so has what pack_features makes of the numbers: the same panels as from the blocks */
    struct packed a, b;
    cr_assert(packed_shape(DTYPE_Q8_0, ROW_Q8, rows, 32, &a));
    b = a;
    a.data = mem_aligned(64, packed_bytes(&a));
    b.data = mem_aligned(64, packed_bytes(&b));
    packed_clear_padding(&a);
    packed_clear_padding(&b);
    pack_features(&a, 0, rows, DTYPE_F32, input);
    pack_features(&b, 0, rows, DTYPE_Q8_0, blocks);
    cr_expect_arr_eq(a.data, b.data, packed_bytes(&a));
    mem_free(a.data);
    mem_free(b.data);
    mem_free(input);
    mem_free(blocks);
    close_fixture();
}

Test(dtype, every_16_bit_code_decodes_and_comes_back)
{
    open_fixture();
    size_t n;
    uint16_t *codes = mem_alloc(65536 * 2);
    for (uint32_t i = 0; i < 65536; i++)
        codes[i] = (uint16_t)i;
    float *f16 = tensor("table.F16", &n), *bf16 = tensor("table.BF16", &n);
    expect_decoded(DTYPE_F16, codes, f16, 65536, "F16");
    expect_decoded(DTYPE_BF16, codes, bf16, 65536, "BF16");
    for (uint32_t i = 0; i < 65536; i++) {
        if (!isnan(f16[i])) cr_assert_eq(f16_from_f32(f16[i]), i);
        if (!isnan(bf16[i])) cr_assert_eq(bf16_from_f32(bf16[i]), i);
    }
    mem_free(codes);
    mem_free(f16);
    mem_free(bf16);
    close_fixture();
}

Test(dtype, rounding_to_16_bits_is_that_of_the_reference)
{
    open_fixture();
    for (int b = 0; b < 2; b++) {
        size_t n, bytes;
        float *input = tensor(b ? "encode.BF16.input" : "encode.F16.input", &n);
        uint16_t *codes = tensor(b ? "encode.BF16.codes" : "encode.F16.codes", &bytes);
        for (size_t i = 0; i < n / 4; i++) {
            uint16_t got = b ? bf16_from_f32(input[i]) : f16_from_f32(input[i]);
            if (isnan(input[i]))
                cr_assert(isnan(b ? bf16_to_f32(got) : f16_to_f32(got)));
            else
                cr_assert_eq(got, codes[i], "%a: %04x, reference %04x", (double)input[i], got,
                             codes[i]);
        }
        mem_free(input);
        mem_free(codes);
    }
    close_fixture();
}

Test(dtype, q8_0_multiplies_by_the_rounded_inverse)
{
    /* d = 41: 20.5 / 41 is a half exactly, which goes away from zero; 20.5 * f32(1 / 41) is below it. */
    float x[32] = {41.0f * 127.0f, 20.5f, -20.5f, 143.5f};
    uint8_t block[34];
    dtype_from_f32(DTYPE_Q8_0, x, 32, block);
    cr_expect_arr_eq(block + 2, ((int8_t[]){127, 0, 0, 3}), 4);
}

Test(dtype, half_ends_of_the_range)
{
    cr_expect_eq(f16_from_f32(65504.0f), 0x7bff);
    cr_expect_eq(f16_from_f32(65519.99f), 0x7bff);
    cr_expect_eq(f16_from_f32(65520.0f), 0x7c00);
    cr_expect_eq(f16_from_f32(-INFINITY), 0xfc00);
    cr_expect_eq(f16_from_f32(0x1p-25f), 0); /* half of the smallest: to even */
    cr_expect_eq(f16_from_f32(0x1.000002p-25f), 1);
    cr_expect_eq(f16_from_f32(-0x1.8p-24f), 0x8002);  /* 1.5: to even */
    cr_expect_eq(f16_from_f32(0x1.ffcp-15f), 0x0400); /* the last half step below normal numbers */
    cr_expect_eq(f16_from_f32(-0.0f), 0x8000);
    cr_expect((f16_from_f32(NAN) & 0x7fff) > 0x7c00);
    cr_expect(isnan(bf16_to_f32(
        bf16_from_f32(f32_from_bits(0x7f800001u))))); /* a NaN with low bits only stays one */
    cr_expect_eq(f16_to_f32(0x0001), 0x1p-24f);
    cr_expect_str_eq(dtype_name(DTYPE_Q8_0), "Q8_0");
    cr_expect_eq(dtype_bytes(DTYPE_Q8_0, 64), 68);
}

Test(dtype, weights_that_are_not_finite_stay_so)
{
    float x[32] = {1.0f, NAN, -INFINITY, INFINITY};
    uint8_t block[34];
    float back[32];
    dtype_from_f32(DTYPE_Q8_0, x, 32, block);
    dtype_to_f32(DTYPE_Q8_0, block, 32, back);
    cr_expect(isnan(back[2]) && isnan(back[3]));
    for (int i = 0; i < 32; i++)
        x[i] = i % 2 ? 1e-44f : -3e-45f; /* 1/d overflows: no harm */
    dtype_from_f32(DTYPE_Q8_0, x, 32, block);
    dtype_to_f32(DTYPE_Q8_0, block, 32, back);
    for (int i = 0; i < 32; i++)
        cr_expect_eq(back[i], 0.0f);
}
