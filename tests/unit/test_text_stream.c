/* Ids to text as they come, and stop strings. */
// links: text
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "coordinator/text/stop_matcher.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tokenizer.h"

static struct tokenizer *open_tiny(void)
{
    struct tokenizer *t;
    struct err why;
    cr_assert_eq(tokenizer_open(TEST_DATA "/models/tiny-mixtral", &t, &why), ERR_OK, "%s",
                 why.text);
    return t;
}

static int32_t byte_id(const struct tokenizer *t, unsigned byte)
{
    char name[8];
    int n = snprintf(name, sizeof name, "<0x%02X>", byte);
    int32_t id = tokenizer_find(t, name, (size_t)n);
    cr_assert_geq(id, 0);
    return id;
}

/* The pieces that these bytes give one by one, '|' between them and before the flush. */
static void stream_bytes(const struct tokenizer *t, const char *bytes, size_t n, struct buf *out)
{
    struct text_stream s;
    text_stream_init(&s, t, true);
    buf_clear(out);
    for (size_t i = 0; i < n; i++) {
        text_stream_push(&s, byte_id(t, (uint8_t)bytes[i]), out);
        buf_putc(out, '|');
    }
    text_stream_flush(&s, out);
    text_stream_deinit(&s);
}

Test(text_stream, a_character_leaves_with_its_last_byte)
{
    struct tokenizer *t = open_tiny();
    struct buf out = {0};
    stream_bytes(t, "\xE4\xBD\xA0", 3, &out);
    cr_expect_str_eq(out.data, "||\xE4\xBD\xA0|");
    stream_bytes(t, "\xF0\x9F\x98\x80!", 5, &out);
    cr_expect_str_eq(out.data, "|||\U0001F600|!|");
    buf_free(&out);
    tokenizer_close(t);
}

Test(text_stream, broken_bytes_leave_as_one_replacement_per_maximal_part)
{
    struct tokenizer *t = open_tiny();
    struct buf out = {0};
    stream_bytes(t,
                 "\xE4\xBD"
                 "A\xFF",
                 4, &out);
    cr_expect_str_eq(out.data, "||\uFFFDA|\uFFFD|");
    stream_bytes(t, "\xF0\x9F\x98", 3, &out);
    cr_expect_str_eq(out.data, "|||\uFFFD");
    stream_bytes(t, "\xED\xA0\x80", 3, &out);
    cr_expect_str_eq(out.data, "||\uFFFD\uFFFD\uFFFD|");
    stream_bytes(t, "\xED\xA0", 2, &out);
    cr_expect_str_eq(out.data, "||\uFFFD\uFFFD");
    buf_free(&out);
    tokenizer_close(t);
}

Test(text_stream, one_leading_space_of_the_whole_text_is_dropped)
{
    struct tokenizer *t = open_tiny();
    int32_t space = tokenizer_find(t, "\xE2\x96\x81", 3),
            ids[] = {space, space, byte_id(t, 'x'), space};
    struct buf out = {0};
    struct err why;
    cr_assert_eq(tokenizer_decode(t, ids, 4, true, &out, &why), ERR_OK);
    cr_expect_str_eq(out.data, " x ");
    size_t n;
    const char *bytes = tokenizer_bytes(t, space, &n);
    cr_expect(n == 1 && bytes[0] == ' ', "the token alone keeps its space");
    buf_free(&out);
    tokenizer_close(t);
}

Test(text_stream, ids_without_a_token_give_nothing_and_negative_ones_an_error)
{
    struct tokenizer *t = open_tiny();
    int32_t ids[] = {byte_id(t, 'a'), 1 << 20, INT32_MAX, byte_id(t, 'b')}, bad[] = {1, -7};
    struct buf out = {0};
    struct err why;
    cr_assert_eq(tokenizer_decode(t, ids, 4, true, &out, &why), ERR_OK);
    cr_expect_str_eq(out.data, "ab");
    cr_expect_eq(tokenizer_decode(t, bad, 2, true, &out, &why), ERR_INVALID);
    cr_expect_not_null(strstr(why.text, "-7"));
    buf_free(&out);
    tokenizer_close(t);
}

Test(text_stream, special_tokens_are_shown_or_skipped)
{
    struct tokenizer *t = open_tiny();
    int32_t ids[] = {1, byte_id(t, 'a'), 2};
    struct buf out = {0};
    struct err why;
    cr_assert_eq(tokenizer_decode(t, ids, 3, false, &out, &why), ERR_OK);
    cr_expect_str_eq(out.data, "<s>a</s>");
    buf_clear(&out);
    cr_assert_eq(tokenizer_decode(t, ids, 3, true, &out, &why), ERR_OK);
    cr_expect_str_eq(out.data, "a");
    buf_free(&out);
    tokenizer_close(t);
}

/* ---- Stop strings -------------------------------------------------------------------------------- */

static void start(struct stop_matcher *m, size_t n, const char *const *stops)
{
    size_t lens[LIMIT_STOP_STRINGS];
    struct err why;
    for (size_t i = 0; i < n; i++)
        lens[i] = strlen(stops[i]);
    cr_assert_eq(stop_matcher_init(m, stops, lens, n, &why), ERR_OK, "%s", why.text);
}

Test(stop_matcher, holds_back_exactly_what_may_be_a_stop_string)
{
    struct stop_matcher m;
    struct buf out = {0};
    start(&m, 2, (const char *const[]){"\n\nUser", "END"});
    cr_expect_not(stop_matcher_push(&m, "a\n", 2, &out));
    cr_expect_str_eq(out.data, "a");
    cr_expect_not(stop_matcher_push(&m, "\n", 1, &out));
    cr_expect_str_eq(out.data, "a");
    cr_expect_not(stop_matcher_push(&m, "\nUs", 3, &out));
    cr_expect_str_eq(out.data, "a\n");
    cr_expect_not(stop_matcher_push(&m, "E", 1, &out));
    cr_expect_str_eq(out.data, "a\n\n\nUs");
    stop_matcher_flush(&m, &out);
    cr_expect_str_eq(out.data, "a\n\n\nUsE");
    stop_matcher_deinit(&m);
    buf_free(&out);
}

Test(stop_matcher, no_part_of_a_match_ever_leaves)
{
    struct stop_matcher m;
    struct buf out = {0};
    start(&m, 3, (const char *const[]){"abcd", "bc", "xbc"});
    cr_expect_not(stop_matcher_push(&m, "zab", 3, &out));
    cr_expect_str_eq(out.data, "z");
    cr_expect(stop_matcher_push(&m, "cd and more", 11, &out));
    cr_expect_eq(m.matched, 1);
    cr_expect(stop_matcher_push(&m, "later", 5, &out));
    stop_matcher_flush(&m, &out);
    cr_expect_str_eq(out.data, "za");
    stop_matcher_deinit(&m);
    buf_clear(&out);
    start(&m, 2, (const char *const[]){"bc", "xbc"});
    cr_expect(stop_matcher_push(&m, "axbc", 4, &out));
    cr_expect_eq(m.matched, 1, "of two that end together the longer wins");
    cr_expect_str_eq(out.data, "a");
    stop_matcher_deinit(&m);
    buf_free(&out);
}

/* The plain definition: the first end of any stop string, the longest there. */
static size_t naive(const char *text, size_t n, const char *const *stops, size_t n_stops,
                    int *which)
{
    *which = -1;
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t k = 0; k < n_stops; k++) {
            size_t len = strlen(stops[k]);
            if (len <= end && len > longest && memcmp(text + end - len, stops[k], len) == 0) {
                longest = len;
                *which = (int)k;
            }
        }
        if (*which >= 0) return end - longest;
    }
    return n;
}

Test(stop_matcher, equals_a_plain_search_however_the_text_is_cut)
{
    uint32_t r[4];
    for (uint32_t round = 0; round < 3000; round++) { /* seed: the round */
        char text[40], words[3][8];
        const char *const stops[3] = {words[0], words[1], words[2]};
        rng_philox(round, (uint32_t[4]){0, 0, 0, 0}, r);
        for (int k = 0; k < 3; k++) {
            size_t len = 2 + (r[k] >> 8) % 5;
            for (size_t i = 0; i < len; i++)
                words[k][i] = "ab"[r[k] >> (12 + i) & 1];
            words[k][len] = '\0';
        }
        size_t n = r[3] % sizeof text;
        for (size_t i = 0; i < n; i++) {
            uint32_t c[4];
            rng_philox(round, (uint32_t[4]){1, (uint32_t)i, 0, 0}, c);
            text[i] = "aabbc"[c[0] % 5];
        }
        struct stop_matcher m;
        struct buf out = {0};
        buf_puts(&out, "");
        start(&m, 3, stops);
        size_t step = 1 + r[3] / 64 % 5;
        for (size_t i = 0; i < n; i += step)
            stop_matcher_push(&m, text + i, n - i < step ? n - i : step, &out);
        stop_matcher_flush(&m, &out);
        int which;
        size_t want = naive(text, n, stops, 3, &which);
        cr_assert(out.len == want && memcmp(out.data, text, want) == 0, "round %u: '%s' of '%.*s'",
                  round, out.data, (int)n, text);
        cr_assert_eq(m.matched, which, "round %u", round);
        stop_matcher_deinit(&m);
        buf_free(&out);
    }
}

Test(stop_matcher, bad_stop_strings_are_refused)
{
    struct stop_matcher m;
    struct err why;
    static const char long_one[LIMIT_STOP_BYTES + 1] = "x";
    const char *const stops[] = {"a", long_one};
    cr_expect_eq(stop_matcher_init(&m, stops, (size_t[]){1, 0}, 2, &why), ERR_INVALID);
    cr_expect_eq(stop_matcher_init(&m, stops, (size_t[]){1, sizeof long_one}, 2, &why),
                 ERR_INVALID);
    cr_expect_eq(stop_matcher_init(&m, stops, NULL, LIMIT_STOP_STRINGS + 1, &why), ERR_INVALID);
    mem_fail_at(1);
    cr_expect_eq(stop_matcher_init(&m, stops, (size_t[]){1}, 1, &why), ERR_EXHAUSTED);
    mem_fail_at(0);
    struct buf out = {0};
    cr_assert_eq(stop_matcher_init(&m, NULL, NULL, 0, &why), ERR_OK);
    cr_expect_not(stop_matcher_push(&m, "all", 3, &out));
    cr_expect_str_eq(out.data, "all");
    stop_matcher_deinit(&m);
    buf_free(&out);
}
