/* Block formats that are read and repacked, against the values of the reference implementation. */
// links: tensor
#include <criterion/criterion.h>
#include <math.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/tensor/dtype.h"

static char *bytes;
static size_t len;
static json_t *header;

/* Criterion runs each test in its own process. Absent and allowed to be: the test ends here, as skipped. */
static void open_fixture(void)
{
    const char *shared = getenv("MOESAIC_SHARED"), *require = getenv("MOESAIC_REQUIRE_SHARED");
    char path[4096];
    snprintf(path, sizeof path, "%s/formats/ggml-blocks.safetensors",
             shared ? shared : PROJECT_ROOT "/../shared");
    struct err why;
    if (file_read(path, 64u << 20, &bytes, &len, &why) != ERR_OK) {
        if (require && strcmp(require, "1") == 0) cr_assert_fail("%s", why.text);
        cr_skip_test("%s", why.text);
    }
    uint64_t n;
    memcpy(&n, bytes, 8);
    cr_assert(n < len - 8);
    cr_assert_eq(json_parse(bytes + 8, n, 8, &header, &why), ERR_OK, "%s", why.text);
}

/* "TYPE.what", a copy; NULL if there is none. */
static void *tensor(const char *type, const char *what, size_t *n)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", type, what);
    json_t *off = json_object_get(json_object_get(header, name), "data_offsets");
    if (off == NULL) return NULL;
    uint64_t start;
    memcpy(&start, bytes, 8);
    size_t a = (size_t)json_integer_value(json_array_get(off, 0)),
           b = (size_t)json_integer_value(json_array_get(off, 1));
    cr_assert(a < b && 8 + start + b <= len);
    void *copy = mem_alloc(b - a);
    memcpy(copy, bytes + 8 + start + a, b - a);
    *n = b - a;
    return copy;
}

static bool same(float a, float b)
{
    return a == b || (isnan(a) && isnan(b));
}

static const char *const sets[][2] = {
    {"blocks", "values"}, {"special.blocks", "special.values"}, {"quant.blocks", "quant.values"}};

/* Call `check` for each set of blocks of each type that is not native. */
static void each_set(void (*check)(enum dtype t, const char *what, const uint8_t *blocks,
                                   const float *values, size_t n))
{
    open_fixture();
    for (int t = DTYPE_N_NATIVE; t < DTYPE_N; t++)
        for (size_t s = 0; s < 3; s++) {
            size_t n_bytes, n_values;
            uint8_t *blocks = tensor(dtype_name(t), sets[s][0], &n_bytes);
            float *values = tensor(dtype_name(t), sets[s][1], &n_values);
            cr_assert(s > 0 || blocks != NULL, "%s", dtype_name(t));
            if (blocks == NULL) continue;
            cr_assert_eq(dtype_bytes(t, n_values / 4), n_bytes, "%s", dtype_name(t));
            check(t, sets[s][0], blocks, values, n_values / 4);
            mem_free(blocks);
            mem_free(values);
        }
    json_decref(header);
    mem_free(bytes);
}

static void check_decoded(enum dtype t, const char *what, const uint8_t *blocks,
                          const float *values, size_t n)
{
    float *got = mem_alloc(n * sizeof *got);
    dtype_to_f32(t, blocks, n, got);
    for (size_t i = 0; i < n; i++)
        cr_assert(same(got[i], values[i]), "%s.%s [%zu]: %a, reference %a", dtype_name(t), what, i,
                  (double)got[i], (double)values[i]);
    mem_free(got);
}

Test(blocks_other, every_block_decodes_to_the_reference_values)
{
    each_set(check_decoded);
}

/* ---- repacked ----------------------------------------------------------------------------------- */

/* Decoding as formats.md has it, apart from the code that is tested. */
static void decode_native(enum dtype t, const uint8_t *b, size_t n, float *y)
{
    for (size_t k = 0; k < n / dtype_block(t); k++, b += dtype_block_bytes(t)) {
        uint16_t d16, h16;
        float *out = y + k * dtype_block(t);
        if (t == DTYPE_BF16) {
            memcpy(&h16, b, 2);
            *out = bf16_to_f32(h16);
        } else if (t == DTYPE_Q8_0 || t == DTYPE_Q4_0) {
            memcpy(&d16, b, 2);
            for (int j = 0; j < 32; j++) {
                int q =
                    t == DTYPE_Q8_0 ? (int8_t)b[2 + j] : (b[2 + j % 16] >> (j / 16 * 4) & 15) - 8;
                out[j] = f16_to_f32(d16) * (float)q;
            }
        } else {
            cr_assert_eq(t, DTYPE_Q6_K);
            memcpy(&d16, b + 208, 2);
            for (int h = 0; h < 2; h++)
                for (int l = 0; l < 32; l++)
                    for (int p = 0; p < 4; p++) {
                        int low = b[64 * h + 32 * (p % 2) + l] >> (p / 2 * 4) & 15;
                        int high = b[128 + 32 * h + l] >> (2 * p) & 3;
                        int8_t scale = (int8_t)b[192 + 8 * h + l / 16 + 2 * p];
                        out[128 * h + 32 * p + l] =
                            f16_to_f32(d16) * (float)scale * (float)((low | high << 4) - 32);
                    }
        }
    }
}

static void check_repacked(enum dtype t, const char *what, const uint8_t *blocks,
                           const float *values, size_t n)
{
    const enum dtype to = dtype_repacked(t);
    cr_assert(to < DTYPE_N_NATIVE);
    const size_t n_bytes = dtype_bytes(to, n);
    uint8_t *row = mem_alloc(n_bytes + 1);
    float *got = mem_alloc(n * sizeof *got);
    row[n_bytes] = 0xa5;
    dtype_repack_row(t, blocks, n, row);
    cr_expect_eq(row[n_bytes], 0xa5);
    decode_native(to, row, n, got);
    for (size_t i = 0; i < n; i++) {
        float want = dtype_repack_is_exact(t) ? values[i] : bf16_to_f32(bf16_from_f32(values[i]));
        cr_assert(same(got[i], want), "%s.%s [%zu] as %s: %a, reference %a", dtype_name(t), what, i,
                  dtype_name(to), (double)got[i], (double)want);
    }
    mem_free(row);
    mem_free(got);
}

Test(blocks_other, a_repacked_row_has_the_same_numbers_or_those_rounded_to_bf16)
{
    each_set(check_repacked);
}

Test(blocks_other, what_a_format_is_packed_as)
{
    static const enum dtype exact[][2] = {{DTYPE_Q3_K, DTYPE_Q6_K},   {DTYPE_IQ3_S, DTYPE_Q6_K},
                                          {DTYPE_IQ4_NL, DTYPE_Q8_0}, {DTYPE_TQ1_0, DTYPE_Q4_0},
                                          {DTYPE_TQ2_0, DTYPE_Q4_0},  {DTYPE_NVFP4, DTYPE_BF16}};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        cr_expect_eq(dtype_repacked(exact[i][0]), exact[i][1], "%s", dtype_name(exact[i][0]));
        cr_expect(dtype_repack_is_exact(exact[i][0]));
    }
    for (int t = 0; t < DTYPE_N_NATIVE; t++)
        cr_expect(dtype_repacked(t) == (enum dtype)t && dtype_repack_is_exact(t));
    cr_expect_eq(dtype_repacked(DTYPE_IQ4_XS), DTYPE_BF16);
    cr_expect_not(dtype_repack_is_exact(DTYPE_IQ4_XS));
    uint8_t row[34] = {1, 2, 3}, copy[34];
    dtype_repack_row(DTYPE_Q8_0, row, 32, copy);
    cr_expect_arr_eq(copy, row, 34);
}
