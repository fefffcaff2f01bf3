#include "common/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"

static bool reserve(struct buf *b, size_t more)
{
    if (b->failed) return false;
    size_t need;
    if (!size_add(b->len, more, &need) || !size_add(need, 1, &need)) goto fail;
    if (b->max_len != 0 && need - 1 > b->max_len) {
        b->outgrown = true;
        goto fail;
    }
    if (need <= b->cap) return true;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        if (!size_mul(cap, 2, &cap)) goto fail;
    char *p = mem_realloc(b->data, cap);
    if (p == NULL) goto fail;
    b->data = p;
    b->cap = cap;
    return true;
fail:
    b->failed = true;
    return false;
}

void buf_append(struct buf *b, const void *bytes, size_t n)
{
    if (!reserve(b, n)) return;
    if (n > 0) memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_append(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void buf_put_utf8(struct buf *b, uint32_t code_point)
{
    char tmp[4];
    buf_append(b, tmp, utf8_encode(code_point, tmp));
}

void buf_put_json_string(struct buf *b, const char *s, size_t n)
{
    buf_putc(b, '"');
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode(s + i, n - i, &cp);
        if (cp == '"' || cp == '\\') {
            buf_putc(b, '\\');
            buf_putc(b, (char)cp);
        } else if (cp == '\n') {
            buf_puts(b, "\\n");
        } else if (cp == '\r') {
            buf_puts(b, "\\r");
        } else if (cp == '\t') {
            buf_puts(b, "\\t");
        } else if (cp < 0x20 || cp == 0x7f) {
            buf_printf(b, "\\u%04x", (unsigned)cp);
        } else {
            buf_put_utf8(b, cp);
        }
        i += used;
    }
    buf_putc(b, '"');
}

void buf_consume(struct buf *b, size_t n)
{
    if (n == 0) return;
    if (n > b->len) n = b->len;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = b->outgrown = false;
    if (b->data != NULL) b->data[0] = '\0';
}

void buf_free(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){0};
}

char *buf_take(struct buf *b, size_t *len)
{
    buf_append(b, "", 0);
    if (b->failed) {
        buf_free(b);
        return NULL;
    }
    char *p = b->data;
    if (len != NULL) *len = b->len;
    *b = (struct buf){0};
    return p;
}
