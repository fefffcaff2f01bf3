/* The GGUF header: what a good one says, and that whatever is wrong with one is an error with words, never a crash. */
// links: modelfile
#include <criterion/criterion.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "tests/unit/gguf_fixture.h"

static void make_good(struct gguf_maker *m)
{
    make_string(m, "general.architecture", "llama");
    make_u32(m, "a.u32", 7);
    make_int(m, "a.u8", GGUF_U8, 200);
    make_int(m, "a.i8", GGUF_I8, -2);
    make_int(m, "a.u16", GGUF_U16, 60000);
    make_int(m, "a.i16", GGUF_I16, -30000);
    make_int(m, "a.i32", GGUF_I32, -3);
    make_int(m, "a.u64", GGUF_U64, -1);
    make_int(m, "a.i64", GGUF_I64, 1ll << 40);
    make_int(m, "a.f64", GGUF_F64, 0x3ff8000000000000);
    make_f32(m, "a.f32", 0.5f);
    make_int(m, "a.yes", GGUF_BOOL, 1);
    make_array(m, "t.tokens", GGUF_STRING, 3);
    put_string(&m->keys, "one");
    put_string(&m->keys, "");
    put_string(&m->keys, "three");
    make_array(m, "t.kinds", GGUF_I32, 2);
    put_le(&m->keys, 5, 4);
    put_le(&m->keys, -6, 4);
    make_array(m, "t.scores", GGUF_F32, 1);
    put_le(&m->keys, 0x40490000, 4);
    make_array(m, "t.flags", GGUF_BOOL, 2);
    put_le(&m->keys, 0x0001, 2);
    make_tensor(m, "z.weight", 0, 2, (uint64_t[]){3, 2}, NULL, 24);
    make_tensor(m, "blk.0.a.weight", 8, 2, (uint64_t[]){64, 2}, NULL, 136);
    make_tensor(m, "i.weight", 26, 1, (uint64_t[]){5}, NULL, 20);
    make_tensor(m, "one", 1, 0, NULL, NULL, 2);
}

Test(gguf, a_good_header_gives_its_values_and_tensors)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    struct gguf g;
    struct err why;
    cr_assert_eq(gguf_parse(file, n, &g, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(g.version, 3);
    cr_expect_eq(g.alignment, 32);
    cr_expect_eq(g.n_values, 16);
    cr_expect_eq(g.data_off % 32, 0);

    struct gguf_text text;
    uint32_t u = 9;
    int64_t i;
    double x;
    bool yes;
    cr_assert_eq(gguf_string(&g, "general.architecture", &text, &why), ERR_OK);
    cr_expect(gguf_text_is(text, "llama"));
    cr_expect_eq(gguf_u32(&g, "a.u32", &u, &why), ERR_OK);
    cr_expect_eq(u, 7);
    cr_expect_eq(gguf_u32(&g, "a.u8", &u, &why), ERR_OK);
    cr_expect_eq(u, 200);
    cr_expect_eq(gguf_u32(&g, "a.u16", &u, &why), ERR_OK);
    cr_expect_eq(u, 60000);
    cr_expect_eq(gguf_i64(&g, "a.i8", &i, &why), ERR_OK);
    cr_expect_eq(i, -2);
    cr_expect_eq(gguf_i64(&g, "a.i16", &i, &why), ERR_OK);
    cr_expect_eq(i, -30000);
    cr_expect_eq(gguf_i64(&g, "a.i32", &i, &why), ERR_OK);
    cr_expect_eq(i, -3);
    cr_expect_eq(gguf_i64(&g, "a.i64", &i, &why), ERR_OK);
    cr_expect_eq(i, 1ll << 40);
    cr_expect_eq(gguf_real(&g, "a.f32", &x, &why), ERR_OK);
    cr_expect_eq(x, 0.5);
    cr_expect_eq(gguf_real(&g, "a.f64", &x, &why), ERR_OK);
    cr_expect_eq(x, 1.5);
    cr_expect_eq(gguf_real(&g, "a.i32", &x, &why), ERR_OK);
    cr_expect_eq(x, -3);
    cr_expect_eq(gguf_real(&g, "a.u64", &x, &why), ERR_OK);
    cr_expect_eq(x, 0x1p64);
    cr_expect_eq(gguf_bool(&g, "a.yes", &yes, &why), ERR_OK);
    cr_expect(yes);

    const struct gguf_value *v;
    cr_assert_eq(gguf_strings(&g, "t.tokens", &v, &why), ERR_OK);
    cr_assert_eq(v->n, 3);
    cr_expect(gguf_text_is(gguf_text_at(v, 2), "three"));
    cr_expect(gguf_text_is(gguf_text_at(v, 0), "one"));
    cr_expect(gguf_text_is(gguf_text_at(v, 1), ""));
    cr_assert_eq(gguf_integers(&g, "t.kinds", &v, &why), ERR_OK);
    cr_assert(v->n == 2 && gguf_i64_at(v, 1, &i));
    cr_expect_eq(i, -6);
    cr_assert_eq(gguf_reals(&g, "t.scores", &v, &why), ERR_OK);
    cr_expect_eq(gguf_real_at(v, 0), 3.140625);
    v = gguf_find(&g, "t.flags");
    cr_assert(v != NULL && gguf_i64_at(v, 0, &i) && i == 1 && gguf_i64_at(v, 1, &i) && i == 0);

    const struct gguf_tensor *t = gguf_find_tensor(&g, "blk.0.a.weight");
    cr_assert_not_null(t);
    cr_expect_eq(t->dtype, DTYPE_Q8_0);
    cr_expect_eq(t->n_dims, 2);
    cr_expect_eq(t->dims[0], 64);
    cr_expect_eq(t->dims[1], 2);
    cr_expect_eq(t->bytes, 136);
    cr_expect_eq(t->off, g.data_off + 32);
    t = gguf_find_tensor(&g, "i.weight");
    cr_expect(t != NULL && t->dtype == DTYPE_N && strcmp(t->type_text, "I32") == 0);
    t = gguf_find_tensor(&g, "one");
    cr_expect(t != NULL && t->n_dims == 1 && t->dims[0] == 1 && t->bytes == 2);
    cr_expect_null(gguf_find_tensor(&g, "blk.0"));
    gguf_deinit(&g);
    free(file);
}

Test(gguf, a_getter_says_what_is_missing_and_what_is_of_another_kind)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    struct gguf g;
    struct err why;
    cr_assert_eq(gguf_parse(file, n, &g, &why), ERR_OK, "%s", why.text);
    uint32_t u = 9;
    int64_t i;
    double x;
    bool yes;
    struct gguf_text text;
    const struct gguf_value *v;
#define REFUSED(call, code, a, b)                                                                  \
    do {                                                                                           \
        cr_expect_eq(call, code);                                                                  \
        cr_expect(strstr(why.text, a) != NULL && strstr(why.text, b) != NULL, "%s", why.text);     \
    } while (0)
    REFUSED(gguf_u32(&g, "a.none", &u, &why), ERR_NOT_FOUND, "'a.none'", "missing");
    cr_expect_eq(u, 9, "the default stays");
    REFUSED(gguf_u32(&g, "a.i8", &u, &why), ERR_CORRUPT, "'a.i8' is -2", "from 0");
    REFUSED(gguf_u32(&g, "a.i64", &u, &why), ERR_CORRUPT, "1099511627776", "4294967295");
    REFUSED(gguf_u32(&g, "a.u64", &u, &why), ERR_CORRUPT, "18446744073709551615", "at most");
    REFUSED(gguf_i64(&g, "a.f32", &i, &why), ERR_CORRUPT, "an integer", "a f32");
    REFUSED(gguf_i64(&g, "a.yes", &i, &why), ERR_CORRUPT, "an integer", "a bool");
    REFUSED(gguf_i64(&g, "t.kinds", &i, &why), ERR_CORRUPT, "an integer", "an array of i32");
    REFUSED(gguf_real(&g, "general.architecture", &x, &why), ERR_CORRUPT, "a number", "a string");
    REFUSED(gguf_bool(&g, "a.u8", &yes, &why), ERR_CORRUPT, "a bool", "a u8");
    REFUSED(gguf_string(&g, "t.tokens", &text, &why), ERR_CORRUPT, "a string", "array of string");
    REFUSED(gguf_strings(&g, "t.kinds", &v, &why), ERR_CORRUPT, "array of strings", "array of i32");
    REFUSED(gguf_strings(&g, "general.architecture", &v, &why), ERR_CORRUPT, "array of strings",
            "a string");
    REFUSED(gguf_integers(&g, "t.scores", &v, &why), ERR_CORRUPT, "integers", "f32");
    REFUSED(gguf_reals(&g, "t.kinds", &v, &why), ERR_CORRUPT, "reals", "i32");
    gguf_deinit(&g);
    free(file);
}

/* ---- faults ----------------------------------------------------------------------------------- */

static void expect_refused(uint8_t *file, size_t n, enum err_code code, const char *a,
                           const char *b)
{
    struct gguf g;
    struct err why = {0};
    enum err_code rc = gguf_parse(file, n, &g, &why);
    cr_expect_eq(rc, code, "%s instead of %s: %s", err_name(rc), err_name(code), why.text);
    cr_expect(strstr(why.text, a) != NULL && strstr(why.text, b) != NULL, "'%s', '%s' not in: %s",
              a, b, why.text);
    cr_expect(g.n_values == 0 && g.tensors == NULL);
    if (rc == ERR_OK) gguf_deinit(&g);
    free(file);
}

/* A file that `add` has put together, with a word of the header then set. */
static void refuse_head(size_t at, int width, uint64_t word, enum err_code code, const char *a,
                        const char *b)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    for (int i = 0; i < width; i++)
        file[at + i] = (uint8_t)(word >> 8 * i);
    expect_refused(file, n, code, a, b);
}

Test(gguf, every_fault_of_the_first_words_is_named)
{
    refuse_head(0, 4, 0x46554746, ERR_CORRUPT, "not a GGUF file", "46 47 55 46");
    refuse_head(0, 4, 0x67676d6c, ERR_UNSUPPORTED, "before GGUF", "");
    refuse_head(0, 4, 0x67676a74, ERR_UNSUPPORTED, "before GGUF", "");
    refuse_head(4, 4, 1, ERR_UNSUPPORTED, "version 1", "2 and 3");
    refuse_head(4, 4, 4, ERR_UNSUPPORTED, "version 4", "2 and 3");
    refuse_head(4, 4, 0, ERR_UNSUPPORTED, "version 0", "2 and 3");
    refuse_head(4, 4, 0x03000000, ERR_UNSUPPORTED, "big-endian", "");
    refuse_head(8, 8, 1ull << 40, ERR_CORRUPT, "1099511627776 tensors", "bytes are left");
    refuse_head(8, 8, UINT64_MAX, ERR_CORRUPT, "tensors", "bytes are left");
    refuse_head(16, 8, 1ull << 40, ERR_CORRUPT, "1099511627776 keys", "bytes are left");
    refuse_head(24, 8, 1ull << 62, ERR_CORRUPT, "key 1 of 16", "bytes are left");
    refuse_head(24, 8, 0, ERR_CORRUPT, "key 1 of 16", "0 bytes");
}

/* One key or tensor after good ones. */
static void refuse_key(struct gguf_maker *m, enum err_code code, const char *a, const char *b)
{
    size_t n;
    uint8_t *file = make_file(m, &n);
    expect_refused(file, n, code, a, b);
}

Test(gguf, every_fault_of_a_key_is_named)
{
    struct gguf_maker m = {0};
    make_u32(&m, "a\n", 1);
    refuse_key(&m, ERR_CORRUPT, "key 1 of 1", "printable");
    make_u32(&m, "a", 1);
    make_u32(&m, "b", 1);
    make_u32(&m, "a", 1);
    refuse_key(&m, ERR_CORRUPT, "'a'", "twice");
    make_u32(&m, "ab", 1);
    make_u32(&m, "a", 1);
    make_key(&m, "k", 13);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "type 13");
    make_array(&m, "k", GGUF_ARRAY, 1);
    refuse_key(&m, ERR_UNSUPPORTED, "key 'k'", "arrays of arrays");
    make_array(&m, "k", 99, 1);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "type 99");
    make_array(&m, "k", GGUF_U64, 1ull << 61);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "2305843009213693952 elements");
    make_array(&m, "k", GGUF_STRING, 1ull << 61);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "2305843009213693952 strings");
    make_array(&m, "k", GGUF_STRING, 1);
    put_le(&m.keys, 9, 8);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "9 bytes of a text");
    make_int(&m, "k", GGUF_BOOL, 2);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "not 2");
    make_array(&m, "k", GGUF_BOOL, 2);
    put_le(&m.keys, 0x0301, 2);
    refuse_key(&m, ERR_CORRUPT, "key 'k'", "not 3 (element 1)");
    make_u32(&m, "general.alignment", 24);
    refuse_key(&m, ERR_CORRUPT, "general.alignment", "24 is no power of two");
    make_u32(&m, "general.alignment", 0);
    refuse_key(&m, ERR_CORRUPT, "general.alignment", "0 is no power of two");
    make_u32(&m, "general.alignment", 1u << 31);
    refuse_key(&m, ERR_CORRUPT, "general.alignment", "2147483648 is no power of two");
    make_f32(&m, "general.alignment", 32);
    refuse_key(&m, ERR_CORRUPT, "general.alignment", "an integer");
}

static void refuse_tensor(const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims,
                          size_t bytes, enum err_code code, const char *a, const char *b)
{
    struct gguf_maker m = {0};
    make_tensor(&m, "first", 0, 1, (uint64_t[]){1}, NULL, 4);
    make_tensor(&m, name, type, n_dims, dims, NULL, bytes);
    refuse_key(&m, code, a, b);
}

#define DIMS(...)                                                                                  \
    sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[])                                            \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

Test(gguf, every_fault_of_a_tensor_is_named)
{
    char longest[64];
    memset(longest, 'x', 63);
    longest[63] = '\0';
    struct gguf_maker m = {0};
    make_tensor(&m, longest, 0, 1, (uint64_t[]){1}, NULL, 4);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    struct gguf g;
    struct err why;
    cr_expect_eq(gguf_parse(file, n, &g, &why), ERR_OK, "%s", why.text);
    cr_expect_not_null(gguf_find_tensor(&g, longest));
    gguf_deinit(&g);
    free(file);
    char too_long[65];
    memset(too_long, 'x', 64);
    too_long[64] = '\0';
    refuse_tensor(too_long, 0, DIMS(1), 4, ERR_CORRUPT, "tensor 2 of 2", "64 bytes");
    refuse_tensor("", 0, DIMS(1), 4, ERR_CORRUPT, "tensor 2 of 2", "0 bytes");
    refuse_tensor("a b", 0, DIMS(1), 4, ERR_CORRUPT, "tensor 2 of 2", "printable");
    refuse_tensor("a", 0, DIMS(1, 1, 1, 1, 1), 4, ERR_CORRUPT, "'a'", "5 dimensions");
    refuse_tensor("a", 0, DIMS(1, 0), 4, ERR_CORRUPT, "'a'", "dimension 1 is 0");
    refuse_tensor("a", 0, DIMS(1ull << 62, 4), 4, ERR_CORRUPT, "'a'", "overflows");
    refuse_tensor("a", 0, DIMS(1ull << 63), 4, ERR_CORRUPT, "'a'", "overflows");
    refuse_tensor("a", 28, DIMS(1ull << 61), 4, ERR_CORRUPT, "'a'", "bytes overflows");
    refuse_tensor("a", 8, DIMS(33), 4, ERR_CORRUPT, "'a'", "33");
    refuse_tensor("a", 12, DIMS(32, 8), 4, ERR_CORRUPT, "'a'", "256 of a Q4_K block");
    refuse_tensor("a", 4, DIMS(32), 4, ERR_UNSUPPORTED, "'a'", "type 4");
    refuse_tensor("a", 31, DIMS(32), 4, ERR_UNSUPPORTED, "'a'", "type 31");
    refuse_tensor("a", 43, DIMS(32), 4, ERR_UNSUPPORTED, "'a'", "type 43");
    refuse_tensor("a", UINT32_MAX, DIMS(32), 4, ERR_UNSUPPORTED, "'a'", "4294967295");
    refuse_tensor("a", 0, DIMS(32), 127, ERR_CORRUPT, "'a'", "128 bytes");
    refuse_tensor("first", 0, DIMS(1), 4, ERR_CORRUPT, "'first'", "twice");
}

/* The offset of the second tensor is the last word before the padding. */
static void refuse_offset(uint64_t off, const char *a, const char *b)
{
    struct gguf_maker m = {0};
    make_tensor(&m, "first", 0, 1, (uint64_t[]){16}, NULL, 64);
    make_tensor(&m, "second", 0, 1, (uint64_t[]){16}, NULL, 64);
    size_t n;
    for (int i = 0; i < 8; i++)
        m.infos.data[m.infos.len - 8 + i] = (char)(off >> 8 * i);
    uint8_t *file = make_file(&m, &n);
    expect_refused(file, n, ERR_CORRUPT, a, b);
}

Test(gguf, tensors_are_aligned_in_the_file_and_apart)
{
    refuse_offset(65, "'second'", "byte 65");
    refuse_offset(96, "'second'", "64 bytes from byte 96");
    refuse_offset(1ull << 63, "'second'", "9223372036854775808");
    refuse_offset(32, "'second'", "'first' ends at 64");
    refuse_offset(0, "begins at byte 0", "ends at 64");
}

Test(gguf, tensors_may_stand_in_any_order_with_holes_and_another_alignment)
{
    struct gguf_maker m = {.version = 2, .alignment = 64};
    make_u32(&m, "general.alignment", 64);
    make_tensor(&m, "b", 0, 1, (uint64_t[]){1}, "\1\2\3\4", 4);
    make_tensor(&m, "a", 0, 1, (uint64_t[]){1}, NULL, 4);
    make_tensor(&m, "c", 0, 1, (uint64_t[]){1}, NULL, 4);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    struct gguf g;
    struct err why;
    cr_assert_eq(gguf_parse(file, n, &g, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(g.version, 2);
    cr_expect_eq(gguf_find_tensor(&g, "b")->off, g.data_off);
    cr_expect_eq(file[gguf_find_tensor(&g, "b")->off + 2], 3);
    cr_expect_eq(gguf_find_tensor(&g, "a")->off, g.data_off + 64);
    cr_expect_str_eq(g.by_name[0]->name, "a");
    gguf_deinit(&g);
    free(file);
}

Test(gguf, a_file_cut_anywhere_is_refused)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n;
    uint8_t *whole = make_file(&m, &n);
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *part = malloc(cut ? cut : 1);
        memcpy(part, whole, cut);
        struct gguf g;
        struct err why = {0};
        enum err_code rc = gguf_parse(part, cut, &g, &why);
        cr_expect_eq(rc, ERR_CORRUPT, "cut at %zu of %zu: %s", cut, n, why.text);
        if (rc == ERR_OK) gguf_deinit(&g);
        free(part);
    }
    free(whole);
}

Test(gguf, any_byte_of_the_header_may_be_anything)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n, refused = 0;
    uint8_t *file = make_file(&m, &n);
    static const uint8_t values[] = {0, 1, 2, 7, 8, 9, 0x20, 0x7f, 0x80, 0xff};
    for (size_t at = 0; at < n; at++) {
        uint8_t old = file[at];
        for (size_t v = 0; v < sizeof values; v++) {
            file[at] = values[v];
            struct gguf g;
            struct err why = {0};
            enum err_code rc = gguf_parse(file, n, &g, &why);
            if (rc == ERR_OK) {
                for (uint32_t t = 0; t < g.n_tensors; t++)
                    cr_assert(g.tensors[t].off <= n && g.tensors[t].bytes <= n - g.tensors[t].off);
                gguf_deinit(&g);
            } else {
                refused++;
                cr_assert(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED);
            }
        }
        file[at] = old;
    }
    cr_expect_gt(refused, 2000);
    free(file);
}

Test(gguf, every_allocation_may_fail)
{
    struct gguf_maker m = {0};
    make_good(&m);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    uint64_t at = 1;
    for (;; at++) {
        struct gguf g;
        struct err why;
        mem_fail_at(at);
        enum err_code rc = gguf_parse(file, n, &g, &why);
        mem_fail_at(0);
        if (rc == ERR_OK) {
            gguf_deinit(&g);
            break;
        }
        cr_assert_eq(rc, ERR_EXHAUSTED);
    }
    cr_expect_eq(at, 6, "five tables, whatever the file");
    free(file);
}

Test(gguf, a_large_vocabulary_is_found_at_once)
{
    enum { TOKENS = 200000 };
    struct gguf_maker m = {0};
    make_array(&m, "t.tokens", GGUF_STRING, TOKENS);
    char text[16];
    for (uint32_t i = 0; i < TOKENS; i++) {
        snprintf(text, sizeof text, "token%u", i);
        put_string(&m.keys, text);
    }
    size_t n;
    uint8_t *file = make_file(&m, &n);
    struct gguf g;
    struct err why;
    cr_assert_eq(gguf_parse(file, n, &g, &why), ERR_OK, "%s", why.text);
    const struct gguf_value *v;
    cr_assert_eq(gguf_strings(&g, "t.tokens", &v, &why), ERR_OK);
    for (uint32_t i = TOKENS; i-- > 0;) {
        snprintf(text, sizeof text, "token%u", i);
        cr_assert(gguf_text_is(gguf_text_at(v, i), text));
    }
    gguf_deinit(&g);
    free(file);
}
