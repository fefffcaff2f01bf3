/* stop_matcher.h - stop strings over a stream of text. What might be the beginning of a stop string is
 * held back until it is clear, so that no part of one ever leaves. The match that is complete first
 * wins; of several complete at once, the longest. Linear: each string is a Knuth-Morris-Pratt automaton.
 * In the caller's storage; one owner at a time. */
#ifndef MOESAIC_TEXT_STOP_MATCHER_H
#define MOESAIC_TEXT_STOP_MATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/limits.h"

struct stop_matcher {
    struct stop_pattern *patterns; /* [n] */
    size_t n;
    int matched; /* the index of the stop string that ended the text, or -1 */
};

/* Copies the strings (not 0-terminated, lens[i] bytes). INVALID: an empty one, one over
 * LIMIT_STOP_BYTES, more than LIMIT_STOP_STRINGS. n == 0 is fine: everything passes. */
enum err_code stop_matcher_init(struct stop_matcher *m, const char *const *stops,
                                const size_t *lens, size_t n, struct err *why);
void stop_matcher_deinit(struct stop_matcher *m);

/* Take n bytes; append to `out` what cannot be part of a stop string. True once one has matched: the
 * text ends before it, and everything later is dropped. */
bool stop_matcher_push(struct stop_matcher *m, const char *bytes, size_t n, struct buf *out);

/* The text ended without a match: append what was held back. */
void stop_matcher_flush(struct stop_matcher *m, struct buf *out);

#endif
