/* buf.h - a growing byte buffer, also the string builder. Caller's storage, zero-initialised is empty.
 * A failed allocation sticks in `failed`: later appends do nothing, so a long chain of appends needs
 * one check at its end. */
#ifndef MOESAIC_BASE_BUF_H
#define MOESAIC_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data; /* NULL while empty; data[len] is always 0 once something was appended */
    size_t len, cap;
    size_t max_len; /* an append beyond it fails, and sets outgrown; 0: no bound */
    bool failed, outgrown;
};

void buf_append(struct buf *b, const void *bytes, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_put_utf8(struct buf *b, uint32_t code_point); /* invalid ones become U+FFFD */
/* A JSON string literal with its quotes; invalid UTF-8 becomes U+FFFD, non-ASCII stays literal. */
void buf_put_json_string(struct buf *b, const char *s, size_t n);
void buf_consume(struct buf *b, size_t n); /* drop n bytes at the front */
void buf_clear(struct buf *b);             /* keeps the memory and the bound */
void buf_free(struct buf *b);
/* Gives the bytes (0-terminated, mem_free) and empties b; NULL if failed. An empty b gives "". */
char *buf_take(struct buf *b, size_t *len);

#endif
