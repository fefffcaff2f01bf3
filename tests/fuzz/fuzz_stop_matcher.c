/* Stop strings, one a line, then after a line "----" a text: however the text is cut, what leaves and what matches is
 * what a plain search over the whole says. */
// links: text
// covers: coordinator/text/stop_matcher.c
// max_len: 1024
#include <string.h>

#include "coordinator/text/stop_matcher.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

/* The first end of any of them, the longest there, of equal ones the first. Answers where the text is cut. */
static size_t plain_search(const char *text, size_t n, const char *const *stops, const size_t *lens,
                           size_t n_stops, int *which)
{
    *which = -1;
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t k = 0; k < n_stops; k++)
            if (lens[k] <= end && lens[k] > longest &&
                memcmp(text + end - lens[k], stops[k], lens[k]) == 0) {
                longest = lens[k];
                *which = (int)k;
            }
        if (*which >= 0) return end - longest;
    }
    return n;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct fuzz_dice dice = fuzz_dice(data, n);
    const char *stops[LIMIT_STOP_STRINGS + 1], *text;
    size_t lens[LIMIT_STOP_STRINGS + 1], n_stops = 0, n_lines;
    const char *line = (const char *)fuzz_part(&data, &n, &n_lines);
    text = (const char *)data;
    while (n_lines > 0 && n_stops <= LIMIT_STOP_STRINGS) {
        const char *feed = memchr(line, '\n', n_lines);
        stops[n_stops] = line;
        lens[n_stops++] = feed == NULL ? n_lines : (size_t)(feed - line);
        size_t used = lens[n_stops - 1] + (feed != NULL);
        line += used;
        n_lines -= used;
    }

    struct stop_matcher m;
    struct buf out = {0};
    struct err why;
    enum err_code rc = stop_matcher_init(&m, stops, lens, n_stops, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : -2 - (int)rc;
    int which;
    size_t want = plain_search(text, n, stops, lens, n_stops, &which);
    bool matched = false;
    for (size_t at = 0; at < n;) {
        uint32_t left = (uint32_t)(n - at), give = 1 + fuzz_below(&dice, left < 12 ? left : 12);
        bool now = stop_matcher_push(&m, text + at, give, &out);
        FUZZ_CHECK(now || !matched, "a match taken back at %zu", at);
        matched = now;
        at += give;
        FUZZ_CHECK(out.len <= want, "%zu bytes left, the text ends at %zu", out.len, want);
    }
    stop_matcher_flush(&m, &out);
    bool failed = out.failed;
    if (!failed) {
        FUZZ_CHECK(m.matched == which && matched == (which >= 0), "%d, a plain search says %d",
                   m.matched, which);
        FUZZ_CHECK(out.len == want && (want == 0 || memcmp(out.data, text, want) == 0),
                   "%zu bytes, a plain search says %zu", out.len, want);
    }
    stop_matcher_deinit(&m);
    buf_free(&out);
    return failed ? FUZZ_NO_MEMORY : (int)want;
}
