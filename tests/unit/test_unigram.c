/* Unigram models: the best sum of scores, ties, unknown text, bytes, control tokens, and how often each byte is looked at.
 * The ids of `byte_fallback` and of unknown runs were made with the tokenizers library 0.23.3. */
// links: text
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "coordinator/text/unigram.h"

static struct vocab vocab;
static double scores[280];

static void put(uint32_t id, const char *text, double score, unsigned flags)
{
    struct err why;
    cr_assert_eq(vocab_add(&vocab, id, text, strlen(text), VOCAB_MODEL | flags, &why), ERR_OK, "%s",
                 why.text);
    scores[id] = score;
}

/* a b ab aab ba, an unknown, a control token; <0x..> for all bytes but 0xFF. */
static struct unigram *open_small(bool byte_fallback, int32_t unk)
{
    struct unigram *u = NULL;
    struct err why;
    cr_assert_eq(vocab_init(&vocab, 280, &why), ERR_OK);
    put(0, "<unk>", 0, VOCAB_CONTROL);
    put(1, "a", -1, 0);
    put(2, "b", -2, 0);
    put(3, "ab", -3, 0); /* as good as a and b */
    put(4, "aab", -3.5, 0);
    put(5, "ba", -2.5, 0);
    put(6, "</s>", 0, VOCAB_CONTROL);
    put(7, "xyz", -30,
        0); /* worse than its three unknown characters would be as one, better than apart */
    for (unsigned byte = 0; byte < 255; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        put(8 + byte, text, 0, 0);
    }
    struct unigram_spec spec = {
        .scores = scores, .min_score = -30, .unk = unk, .byte_fallback = byte_fallback};
    cr_assert_eq(unigram_open(&spec, &vocab, &u, &why), ERR_OK, "%s", why.text);
    return u;
}

static void close_small(struct unigram *u)
{
    unigram_close(u);
    vocab_deinit(&vocab);
}

static void expect(const struct unigram *u, const char *text, bool no_control, size_t n,
                   const int32_t *want)
{
    struct unigram_work w = {0};
    struct ids got = {0};
    struct err why;
    cr_assert_eq(unigram_encode(u, &w, text, strlen(text), no_control, &got, &why), ERR_OK, "%s",
                 why.text);
    cr_expect(got.len == n && (n == 0 || memcmp(got.data, want, n * sizeof *want) == 0),
              "'%s': %zu ids, first %d", text, got.len, got.len ? got.data[0] : -1);
    ids_free(&got);
    unigram_work_deinit(&w);
}
#define EXPECT(u, text, no_control, ...)                                                           \
    expect(u, text, no_control, sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t),                  \
           (int32_t[]){__VA_ARGS__})

Test(unigram, the_best_sum_of_scores_wins_and_the_first_way_found_among_equals)
{
    struct unigram *u = open_small(false, 0);
    EXPECT(u, "aab", false, 4);
    EXPECT(u, "ba", false, 5);
    EXPECT(u, "ab", false, 3);     /* -3 twice: the one that starts earlier was found first */
    EXPECT(u, "aba", false, 1, 5); /* -3.5 before -4 */
    expect(u, "", false, 0, NULL);
    close_small(u);
}

Test(unigram, a_run_of_unknown_characters_is_one_token_its_bytes_or_a_token_after_all)
{
    struct unigram *u = open_small(false, 0);
    EXPECT(u,
           "a\xC3\xA9\xE4\xB8\xAD"
           "b",
           false, 1, 0, 2);
    EXPECT(u, "axyzb", false, 1, 7, 2);
    close_small(u);
    u = open_small(true, 0);
    EXPECT(u, "a\xC3\xA9q", false, 1, 8 + 0xC3, 8 + 0xA9, 8 + 'q');
    EXPECT(u, "<unk>", false, 0);
    close_small(u);
}

Test(unigram, a_users_text_does_not_reach_control_tokens)
{
    struct unigram *u = open_small(false, 0);
    EXPECT(u, "a</s>", false, 1, 6);
    EXPECT(u, "a</s>", true, 1, 0);
    close_small(u);
}

Test(unigram, without_an_unknown_token_the_text_is_refused_with_its_place)
{
    struct unigram *u = open_small(false, -1);
    struct unigram_work w = {0};
    struct ids got = {0};
    struct err why;
    cr_expect_eq(unigram_encode(u, &w, "abq", 3, false, &got, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "U+0071 at byte 2 of 3") != NULL, "%s", why.text);
    ids_free(&got);
    unigram_work_deinit(&w);
    close_small(u);
}

/* A count, not a time: no byte is looked at more often than the longest token has bytes, and one. */
Test(unigram, ten_megabytes_of_one_letter_take_steps_in_proportion)
{
    size_t n = 10000000;
    char *text = malloc(n);
    struct unigram *u = open_small(false, 0);
    struct unigram_work w = {0};
    struct ids got = {0};
    struct err why;
    memset(text, 'a', n);
    cr_assert_eq(unigram_encode(u, &w, text, n, true, &got, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(got.len, n);
    cr_expect_leq(w.steps, 7 * n);
    cr_expect_geq(w.steps, n);
    ids_free(&got);
    unigram_work_deinit(&w);
    close_small(u);
    free(text);
}
