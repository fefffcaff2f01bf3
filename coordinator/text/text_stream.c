#include "coordinator/text/text_stream.h"

#include <string.h>

#include "common/base/utf8.h"
#include "coordinator/text/tokenizer.h"

void text_stream_init(struct text_stream *s, const struct tokenizer *t, bool skip_special)
{
    *s = (struct text_stream){.tokenizer = t, .skip_special = skip_special};
    s->strip_left = tokenizer_strip_left(t, &s->strip);
}

void text_stream_deinit(struct text_stream *s)
{
    *s = (struct text_stream){0};
}

/* ED A0..BF cannot begin a character, but may begin a surrogate in three bytes. It waits for its third
 * byte, so that the three U+FFFD leave together, as they do in Python's incremental decoder. */
static bool is_half_surrogate(const struct text_stream *s)
{
    return s->n_pending == 2 && (uint8_t)s->pending[0] == 0xED && (uint8_t)s->pending[1] >= 0xA0 &&
           (uint8_t)s->pending[1] <= 0xBF;
}

static void put_byte(struct text_stream *s, char byte, struct buf *out)
{
    if (s->strip_left > 0) {
        if (byte == s->strip) {
            s->strip_left--;
            return;
        }
        s->strip_left = 0;
    }
    s->pending[s->n_pending++] = byte;
    if (is_half_surrogate(s)) return;
    while (s->n_pending > 0) {
        uint32_t cp;
        size_t used = utf8_decode_stream(s->pending, s->n_pending, &cp);
        if (used == 0) return; /* more may come */
        buf_put_utf8(out, cp);
        s->n_pending -= used;
        memmove(s->pending, s->pending + used, s->n_pending);
    }
}

void text_stream_push(struct text_stream *s, int32_t id, struct buf *out)
{
    size_t n;
    const char *bytes = tokenizer_bytes(s->tokenizer, id, &n);
    if (bytes == NULL || (s->skip_special && tokenizer_is_special(s->tokenizer, id))) return;
    struct buf first = {0};
    if (!s->started && tokenizer_first_bytes(s->tokenizer, id, &first)) {
        if (first.failed) out->failed = true;
        bytes = first.data;
        n = first.len;
    }
    s->started = true;
    for (size_t i = 0; i < n; i++)
        put_byte(s, bytes[i], out);
    buf_free(&first);
}

void text_stream_flush(struct text_stream *s, struct buf *out)
{
    for (size_t i = 0; i < s->n_pending;) {
        uint32_t cp;
        i += utf8_decode(s->pending + i, s->n_pending - i, &cp);
        buf_put_utf8(out, cp);
    }
    s->n_pending = 0;
}
