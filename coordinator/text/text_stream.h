/* text_stream.h - ids in, text out, as they come. A character leaves with its last byte; a byte that can
 * no longer be part of one leaves as U+FFFD at once (one per maximal invalid part; the bytes of a
 * surrogate leave together), so every output is valid UTF-8 and nothing is ever taken back. In the caller's storage, no allocation of its own; one
 * owner at a time. */
#ifndef MOESAIC_TEXT_TEXT_STREAM_H
#define MOESAIC_TEXT_TEXT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

struct tokenizer;

struct text_stream {
    const struct tokenizer *tokenizer; /* borrowed */
    bool skip_special;
    bool started;      /* a token was decoded */
    char strip;        /* this character is dropped from the start of the text, */
    size_t strip_left; /* so many times at most */
    char pending[4];   /* an incomplete character */
    size_t n_pending;  /* at most 3 between calls */
};

void text_stream_init(struct text_stream *s, const struct tokenizer *t, bool skip_special);
void text_stream_deinit(struct text_stream *s); /* holds nothing; for symmetry */

/* Append what the id completes, perhaps nothing. An id without a token is passed over. A failed
 * allocation sticks in out->failed. */
void text_stream_push(struct text_stream *s, int32_t id, struct buf *out);

/* The end: what is incomplete becomes U+FFFD. */
void text_stream_flush(struct text_stream *s, struct buf *out);

#endif
