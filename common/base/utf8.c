#include "common/base/utf8.h"

/* How many bytes a character has by its lead byte, and the bounds of its second byte (Unicode table 3-7). */
static size_t lead(uint8_t c, uint8_t *lo, uint8_t *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (c < 0x80) return 1;
    if (c >= 0xC2 && c <= 0xDF) return 2;
    if (c >= 0xE0 && c <= 0xEF) {
        if (c == 0xE0) *lo = 0xA0;
        if (c == 0xED) *hi = 0x9F;
        return 3;
    }
    if (c >= 0xF0 && c <= 0xF4) {
        if (c == 0xF0) *lo = 0x90;
        if (c == 0xF4) *hi = 0x8F;
        return 4;
    }
    return 0;
}

size_t utf8_decode_stream(const char *s, size_t n, uint32_t *code_point)
{
    uint8_t lo, hi, c = (uint8_t)s[0];
    size_t len = lead(c, &lo, &hi);
    *code_point = UTF8_REPLACEMENT;
    if (len == 0) return 1;
    if (len == 1) {
        *code_point = c;
        return 1;
    }
    uint32_t cp = c & (0x7Fu >> len);
    for (size_t i = 1; i < len; i++) {
        if (i == n) return 0;
        uint8_t b = (uint8_t)s[i];
        if (b < lo || b > hi) return i;
        lo = 0x80;
        hi = 0xBF;
        cp = cp << 6 | (b & 0x3Fu);
    }
    *code_point = cp;
    return len;
}

size_t utf8_decode(const char *s, size_t n, uint32_t *code_point)
{
    size_t used = utf8_decode_stream(s, n, code_point);
    return used ? used : n; /* cut at the end: what is left is one maximal subpart */
}

size_t utf8_encode(uint32_t cp, char out[4])
{
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF)) cp = UTF8_REPLACEMENT;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

bool utf8_valid(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode_stream(s + i, n - i, &cp);
        if (used == 0) return false;
        if (cp == UTF8_REPLACEMENT && !(used == 3 && (uint8_t)s[i] == 0xEF)) return false;
        i += used;
    }
    return true;
}
