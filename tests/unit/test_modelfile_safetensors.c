/* The safetensors header: everything that can be wrong with it is an error with words, never a crash. */
// links: modelfile
#include <criterion/criterion.h>

#include "common/base/mem.h"
#include "common/modelfile/safetensors.h"
#include "tests/unit/modelfile_fixture.h"

/* A file in a block of exactly its size, so that the sanitizer sees a read past its end. */
static uint8_t *make(const char *header, size_t data_bytes, size_t *n)
{
    size_t len = strlen(header);
    *n = 8 + len + data_bytes;
    uint8_t *p = calloc(1, *n);
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)len >> 8 * i);
    memcpy(p + 8, header, len);
    return p;
}

static enum err_code parse(const char *header, size_t data_bytes, struct err *why)
{
    size_t n;
    uint8_t *p = make(header, data_bytes, &n);
    struct safetensors s;
    enum err_code rc = safetensors_parse(p, n, &s, why);
    if (rc == ERR_OK) safetensors_deinit(&s);
    free(p);
    return rc;
}

#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

Test(modelfile_safetensors, a_good_header_gives_names_shapes_and_places)
{
    size_t n;
    uint8_t *p = make(
        "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "[2,3]", "[8,20]") "," T(
            "a", "F32", "[2]", "[0,8]") "," T("z", "F8_E5M2", "[4]",
                                              "[20,24]") "," T("e", "F32", "[0,7]", "[8,8]") "}   ",
        24, &n);
    struct safetensors s;
    struct err why;
    cr_assert_eq(safetensors_parse(p, n, &s, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(s.n, 4);
    cr_expect_str_eq(s.tensors[0].name, "a");
    cr_expect_str_eq(s.tensors[1].name, "e");
    cr_expect_str_eq(s.tensors[2].name, "b");
    cr_expect_eq(s.tensors[2].dtype, DTYPE_BF16);
    cr_expect_eq(s.tensors[2].n_dims, 2);
    cr_expect_eq(s.tensors[2].dims[0], 2);
    cr_expect_eq(s.tensors[2].dims[1], 3);
    cr_expect_eq(s.tensors[2].off, n - 24 + 8);
    cr_expect_eq(s.tensors[2].bytes, 12);
    cr_expect_eq(s.tensors[3].dtype, DTYPE_N, "known to the format, not to us");
    cr_expect_str_eq(s.tensors[3].dtype_text, "F8_E5M2");
    safetensors_deinit(&s);
    free(p);
}

Test(modelfile_safetensors, every_fault_is_named)
{
    static const struct {
        const char *header;
        size_t data;
        enum err_code code;
        const char *words[3];
    } cases[] = {
        {"[]", 0, ERR_CORRUPT, {"'{'"}},
        {" {}", 0, ERR_CORRUPT, {"'{'"}},
        {"{", 0, ERR_CORRUPT, {"not valid JSON"}},
        {"{}x", 0, ERR_CORRUPT, {"not valid JSON"}},
        {"{}", 1, ERR_CORRUPT, {"ends at byte 0", "has 1"}},
        {"{\"a\":[[[1]]]}", 0, ERR_CORRUPT, {"deeper than 3"}},
        {"{\"__metadata__\":3}", 0, ERR_CORRUPT, {"__metadata__"}},
        {"{\"__metadata__\":{\"x\":3}}", 0, ERR_CORRUPT, {"__metadata__", "'x'"}},
        {"{\"a\":3}", 0, ERR_CORRUPT, {"'a'", "object"}},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("\\u0061", "F32", "[1]", "[4,8]") "}",
         8,
         ERR_CORRUPT,
         {"duplicate"}},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ERR_CORRUPT, {"'a'", "dtype"}},
        {"{" T("a", "", "[1]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dtype"}},
        {"{" T("a", "F32_AND_A_LONG_TAIL", "[1]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dtype"}},
        {"{" T("a", "F32", "1", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "shape"}},
        {"{" T("a", "F32", "[-1]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dimension"}},
        {"{" T("a", "F32", "[1.0]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dimension"}},
        {"{" T("a", "F32", "[1e0]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dimension"}},
        {"{" T("a", "F32", "[\"1\"]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "dimension"}},
        {"{" T("a", "F32", "[18446744073709551616]", "[0,4]") "}",
         4,
         ERR_CORRUPT,
         {"'a'", "dimension"}},
        {"{" T("a", "F32", "[1,1,1,1,1]", "[0,4]") "}",
         4,
         ERR_UNSUPPORTED,
         {"'a'", "5 dimensions", "4"}},
        /* 2^62 * 4 = 2^64, a product that wraps to 0 */
        {"{" T("a", "F32", "[4611686018427387904,4]", "[0,0]") "}",
         0,
         ERR_CORRUPT,
         {"'a'", "overflow"}},
        {"{" T("a", "F32", "[9223372036854775807]", "[0,4]") "}",
         4,
         ERR_CORRUPT,
         {"'a'", "overflow"}},
        {"{" T("a", "F32", "[2]", "[0,4]") "}", 4, ERR_CORRUPT, {"'a'", "8 bytes", "span 4"}},
        {"{" T("a", "F4", "[3]", "[0,2]") "}", 2, ERR_CORRUPT, {"'a'", "12 bits"}},
        {"{" T("a", "F32", "[1]", "[4,0]") "}", 4, ERR_CORRUPT, {"'a'", "at 4", "at 0"}},
        {"{" T("a", "F32", "[1]", "[0]") "}", 4, ERR_CORRUPT, {"'a'", "data_offsets"}},
        {"{" T("a", "F32", "[1]", "[0,4,8]") "}", 4, ERR_CORRUPT, {"'a'", "data_offsets"}},
        {"{" T("a", "F32", "[1]", "[-4,0]") "}", 4, ERR_CORRUPT, {"'a'", "data_offsets[0]"}},
        {"{" T("a", "F32", "[1]", "[0,4.0]") "}", 4, ERR_CORRUPT, {"'a'", "data_offsets[1]"}},
        {"{" T("a", "F32", "[1]", "{}") "}", 4, ERR_CORRUPT, {"'a'", "data_offsets"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 7, ERR_CORRUPT, {"'a'", "byte 8", "has 7"}},
        {"{" T("a", "F32", "[1]", "[4,8]") "}", 8, ERR_CORRUPT, {"'a'", "hole", "at 0"}},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[5,9]") "}",
         9,
         ERR_CORRUPT,
         {"'b'", "byte 5", "ended at 4"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[1]", "[4,8]") "}",
         8,
         ERR_CORRUPT,
         {"'b'", "overlaps", "ended at 8"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[0,8]") "}",
         8,
         ERR_CORRUPT,
         {"overlaps"}},
        {"{" T("a", "F32", "[1]", "[0,4]") "}", 5, ERR_CORRUPT, {"ends at byte 4", "has 5"}},
        {"{" T("a", "NEW9", "[1]", "[0,4]") "}",
         4,
         ERR_OK,
         {NULL}}, /* a dtype of tomorrow that nobody asks for */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err why = {0};
        enum err_code rc = parse(cases[i].header, cases[i].data, &why);
        cr_expect_eq(rc, cases[i].code, "%s: %s %s", cases[i].header, err_name(rc), why.text);
        for (size_t w = 0; w < 3 && cases[i].words[w] != NULL; w++)
            cr_expect(strstr(why.text, cases[i].words[w]) != NULL, "%s: '%s' not in: %s",
                      cases[i].header, cases[i].words[w], why.text);
    }
}

Test(modelfile_safetensors, the_length_is_checked_before_anything_is_allocated)
{
    static const uint64_t lengths[] = {
        0, 3, 64u << 20, (64u << 20) + 1, UINT64_MAX, UINT64_MAX - 7, 1ull << 63};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint8_t file[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
        for (int b = 0; b < 8; b++)
            file[b] = (uint8_t)(lengths[i] >> 8 * b);
        struct safetensors s;
        struct err why;
        mem_fail_at(1);
        enum err_code rc = safetensors_parse(file, sizeof file, &s, &why);
        mem_fail_at(0);
        cr_expect_eq(rc, ERR_CORRUPT, "%llu: %s", (unsigned long long)lengths[i], why.text);
    }
}

Test(modelfile_safetensors, a_file_cut_anywhere_is_refused)
{
    size_t n;
    unsigned char *whole = read_bytes(MODELS "tiny-mixtral/model.safetensors", &n);
    for (size_t cut = 0; cut < n; cut += cut < 600 ? 1 : cut < 7000 ? 13 : 4999) {
        uint8_t *part = malloc(cut ? cut : 1);
        memcpy(part, whole, cut);
        struct safetensors s;
        struct err why = {0};
        cr_expect_eq(safetensors_parse(part, cut, &s, &why), ERR_CORRUPT, "cut at %zu", cut);
        cr_expect(why.text[0] != '\0');
        free(part);
    }
    free(whole);
}

Test(modelfile_safetensors, any_byte_of_the_header_may_be_anything)
{
    static const char header[] = "{\"__metadata__\":{\"k\":\"v\"}," T(
        "a", "F32", "[2,1]", "[0,8]") "," T("b", "BF16", "[3]", "[8,14]") "}";
    static const uint8_t values[] = {'0', '9', '-', '.', 'e', '"', '\\', '{',
                                     '}', '[', ']', ',', ':', 0,   0xff, 0xc3};
    size_t n, refused = 0;
    uint8_t *p = make(header, 14, &n);
    for (size_t at = 0; at < n - 14; at++) {
        uint8_t old = p[at];
        for (size_t v = 0; v < sizeof values; v++) {
            p[at] = values[v];
            struct safetensors s;
            struct err why = {0};
            enum err_code rc = safetensors_parse(p, n, &s, &why);
            if (rc == ERR_OK) {
                /* Whatever was accepted lies within the file. */
                for (uint32_t t = 0; t < s.n; t++)
                    cr_assert(s.tensors[t].off + s.tensors[t].bytes <= n);
                safetensors_deinit(&s);
            } else {
                refused++;
                cr_assert(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED);
            }
        }
        p[at] = old;
    }
    cr_expect_gt(refused, 1000);
    free(p);
}
