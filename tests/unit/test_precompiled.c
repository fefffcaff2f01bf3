/* The normalizer Precompiled: a table built here, what it makes of texts, and tables that are wrong. T5's own table is
 * checked by test_tokenizer, against the official library. */
// links: text
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/text/precompiled.h"

/* A trie with "a" -> "x" and "ab" -> "yy", and U+00E9 (C3 A9) -> "e"; pool: x, yy, e.
 * Unit i: children of the node before lie at base ^ byte. Bases are multiples of 256, so that places never meet. */
enum { N_UNITS = 1280 };

static uint32_t units[N_UNITS];
static const char pool[] = "x\0yy\0e";

static uint32_t node(uint8_t label, uint32_t at, uint32_t base, bool leaf)
{
    return (uint32_t)label | (leaf ? 1u << 8 : 0) | (at ^ base) << 10;
}

static size_t make_table(uint8_t *out)
{
    memset(units, 0, sizeof units);
    units[0] = node(0, 0, 256, false);
    units[256 ^ 'a'] = node('a', 256 ^ 'a', 512, true);
    units[512] = 0x80000000u | 0; /* "x" */
    units[512 ^ 'b'] = node('b', 512 ^ 'b', 768, true);
    units[768] = 0x80000000u | 2; /* "yy" */
    units[256 ^ 0xC3] = node(0xC3, 256 ^ 0xC3, 1024, false);
    units[1024 ^ 0xA9] = node(0xA9, 1024 ^ 0xA9, 768 + 1, true);
    units[769] = 0x80000000u | 5; /* "e" */
    uint32_t n = sizeof units;
    memcpy(out, &n, 4);
    memcpy(out + 4, units, sizeof units);
    memcpy(out + 4 + sizeof units, pool, sizeof pool);
    return 4 + sizeof units + sizeof pool;
}

static uint8_t table[4 + sizeof units + sizeof pool];

static void expect(const struct precompiled *p, const char *text, size_t n, const char *want)
{
    struct buf out = {0};
    precompiled_run(p, text, n, &out);
    cr_expect_str_eq(out.data == NULL ? "" : out.data, want);
    buf_free(&out);
}
#define EXPECT(p, text, want) expect(p, text, sizeof text - 1, want)

Test(precompiled, the_shortest_prefix_replaces_a_small_cluster_else_each_character)
{
    struct precompiled *p;
    struct err why;
    cr_assert_eq(precompiled_open(table, make_table(table), &p, &why), ERR_OK, "%s", why.text);
    EXPECT(p, "", "");
    EXPECT(p, "ab", "xb"); /* two clusters: "ab" is never looked up, and "a" would win */
    EXPECT(p, "zab\xC3\xA9!", "zxbe!");
    EXPECT(p, "a\xCC\x81z", "xz"); /* a and its accent are one cluster of 3 bytes: both give way */
    EXPECT(p, "a\xCC\x81\xCC\x81\xCC\x81z", "x\xCC\x81\xCC\x81\xCC\x81z"); /* of 7: only the a */
    EXPECT(p, "\xC3\xAA", "\xC3\xAA");
    precompiled_close(p);
}

Test(precompiled, base64_is_read_with_and_without_padding)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t extra = 0; extra < 3; extra++) { /* more bytes of pool */
        struct buf text = {0}, bytes = {0};
        struct precompiled *p = NULL;
        struct err why;
        buf_append(&bytes, table, make_table(table));
        buf_append(&bytes, "\0\0", extra);
        for (size_t i = 0; i < bytes.len; i += 3) {
            uint32_t v = 0;
            size_t left = bytes.len - i < 3 ? bytes.len - i : 3;
            for (size_t k = 0; k < 3; k++)
                v = v << 8 | (k < left ? (uint8_t)bytes.data[i + k] : 0u);
            for (size_t k = 0; k < 4; k++)
                buf_putc(&text, k <= left ? digits[v >> (18 - 6 * k) & 63] : '=');
        }
        cr_assert_eq(precompiled_open_base64(text.data, text.len, &p, &why), ERR_OK, "%s",
                     why.text);
        EXPECT(p, "ba", "bx");
        precompiled_close(p);
        text.data[5] = '*';
        cr_expect_eq(precompiled_open_base64(text.data, text.len, &p, &why), ERR_CORRUPT);
        cr_expect(strstr(why.text, "byte 5 of") != NULL, "%s", why.text);
        cr_expect_eq(precompiled_open_base64(text.data + 6, text.len - 7, &p, &why), ERR_CORRUPT);
        buf_free(&text);
        buf_free(&bytes);
    }
}

static void expect_fault(size_t n, const char *text)
{
    struct precompiled *p = NULL;
    struct err why = {0};
    cr_expect_eq(precompiled_open(table, n, &p, &why), ERR_CORRUPT, "%s", text);
    cr_expect_null(p);
    cr_expect(strstr(why.text, text) != NULL, "'%s' does not say '%s'", why.text, text);
}

static void set_unit(uint32_t at, uint32_t value)
{
    memcpy(table + 4 + 4 * (size_t)at, &value, 4);
}

Test(precompiled, a_wrong_table_is_refused_with_its_numbers)
{
    size_t n = make_table(table);
    expect_fault(0, "0 bytes");
    expect_fault(3, "3 bytes");
    expect_fault(100, "a trie of 5120 bytes in a table of 100");
    table[0] = 2;
    expect_fault(n, "a trie of 5122 bytes");
    make_table(table);
    set_unit(768, 0x80000000u | 7);
    expect_fault(n, "a replacement at byte 7 of 7");
    make_table(table);
    table[n - 3] = 0xC3; /* "e" -> a character of two bytes whose second is missing */
    expect_fault(n, "not UTF-8");
    make_table(table);
    table[n - 3] = 0xC3;
    table[n - 2] = 0xA9;
    expect_fault(n, "byte 5 starts inside a character");
    make_table(table);
    set_unit(512 ^ 'b', node('b', 512 ^ 'b', 0x8000, true));
    expect_fault(n, "a leaf at unit 32768 of 1280");
    make_table(table); /* a node that is its own child: an end for the check, and for every text */
    set_unit(256 ^ 'a', node('a', 256 ^ 'a', 256, false));
    struct precompiled *p = NULL;
    struct err why;
    cr_assert_eq(precompiled_open(table, n, &p, &why), ERR_OK, "%s", why.text);
    EXPECT(p, "aaaa", "aaaa");
    precompiled_close(p);
}

Test(precompiled, every_failed_allocation_is_reported)
{
    size_t n = make_table(table);
    for (uint64_t k = 1; k <= 5; k++) {
        struct precompiled *p = NULL;
        struct err why;
        mem_fail_at(k);
        cr_expect_eq(precompiled_open(table, n, &p, &why), ERR_EXHAUSTED, "allocation %u",
                     (unsigned)k);
        mem_fail_at(0);
    }
}
