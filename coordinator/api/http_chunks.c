#include "coordinator/api/http_chunks.h"

#include <stdbool.h>

#define SIZE_DIGITS_MAX 8u
#define EXTRA_MAX       4096u /* extensions and trailers together */

enum state {
    IN_SIZE,
    IN_EXTENSION,
    AT_SIZE_LF,
    IN_DATA,
    AT_DATA_CR,
    AT_DATA_LF,
    AT_TRAILER,
    IN_TRAILER,
    AT_TRAILER_LF,
    AT_END_LF,
    AT_DONE
};

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool is_text(char c)
{
    unsigned char u = (unsigned char)c;
    return u == '\t' || (u >= 0x20 && u != 0x7f);
}

/* One framing byte (not content): the next state, or NULL and the reason. */
static const char *framing_byte(struct http_chunks *c, char b)
{
    switch ((enum state)c->state) {
    case IN_SIZE:
        if (hex_value(b) >= 0) {
            if (++c->digits > SIZE_DIGITS_MAX) return "a chunk size of more than 8 digits";
            c->left = c->left * 16 + (uint64_t)hex_value(b);
            return NULL;
        }
        if (c->digits == 0) return "a chunk without a size";
        if (b == ';')
            c->state = IN_EXTENSION;
        else if (b == '\r')
            c->state = AT_SIZE_LF;
        else
            return "a bad character in a chunk size";
        return NULL;
    case IN_EXTENSION:
        if (b == '\r')
            c->state = AT_SIZE_LF;
        else if (!is_text(b))
            return "a bad character in a chunk extension";
        else if (++c->extra_bytes > EXTRA_MAX)
            return "too many chunk extensions";
        return NULL;
    case AT_SIZE_LF:
        if (b != '\n') return "CR without LF after a chunk size";
        c->state = c->left == 0 ? AT_TRAILER : IN_DATA;
        return NULL;
    case AT_DATA_CR:
        if (b != '\r') return "a chunk is longer than its size";
        c->state = AT_DATA_LF;
        return NULL;
    case AT_DATA_LF:
        if (b != '\n') return "CR without LF after a chunk";
        c->state = IN_SIZE;
        c->digits = 0;
        return NULL;
    case AT_TRAILER:
        if (b == '\r') {
            c->state = AT_END_LF;
            return NULL;
        }
        if (b == ' ' || b == '\t') return "a folded trailer";
        c->state = IN_TRAILER;
        if (!is_text(b)) return "a bad character in a trailer";
        return ++c->extra_bytes > EXTRA_MAX ? "too many trailers" : NULL;
    case IN_TRAILER:
        if (b == '\r')
            c->state = AT_TRAILER_LF;
        else if (!is_text(b))
            return "a bad character in a trailer";
        else if (++c->extra_bytes > EXTRA_MAX)
            return "too many trailers";
        return NULL;
    case AT_TRAILER_LF:
        if (b != '\n') return "CR without LF after a trailer";
        c->state = AT_TRAILER;
        return NULL;
    case AT_END_LF:
        if (b != '\n') return "CR without LF at the end of a chunked body";
        c->state = AT_DONE;
        return NULL;
    case IN_DATA:
    case AT_DONE:
        break;
    }
    return NULL;
}

enum http_chunks_result http_chunks_feed(struct http_chunks *c, const char *bytes, size_t n,
                                         size_t max_bytes, struct buf *out, size_t *used,
                                         struct fault *why)
{
    size_t i = 0;
    while (i < n && c->state != AT_DONE) {
        if (c->state == IN_DATA) {
            size_t take = n - i < c->left ? n - i : (size_t)c->left;
            buf_append(out, bytes + i, take);
            i += take;
            c->left -= take;
            if (c->left == 0) c->state = AT_DATA_CR;
            continue;
        }
        const char *wrong = framing_byte(c, bytes[i++]);
        *used = i;
        if (wrong != NULL) {
            fault_set(why, 400, NULL, NULL, "malformed chunked body: %s", wrong);
            return HTTP_CHUNKS_BAD;
        }
        if (c->state == IN_DATA &&
            c->left > max_bytes - (out->len < max_bytes ? out->len : max_bytes)) {
            fault_set(why, 413, NULL, NULL, "the request's body is longer than %zu bytes",
                      max_bytes);
            return HTTP_CHUNKS_BAD;
        }
    }
    *used = i;
    return c->state == AT_DONE ? HTTP_CHUNKS_DONE : HTTP_CHUNKS_MORE;
}
