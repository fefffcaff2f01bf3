#include "coordinator/text/json_scanner.h"

#include <string.h>

enum state {
    VALUE,
    FIRST_ITEM, /* of an array, or its end */
    FIRST_KEY,  /* of an object, or its end */
    KEY,
    COLON,
    AFTER, /* a value inside something */
    STRING,
    ESCAPE,
    HEX,
    LITERAL,
    /* numbers; those that may end are last */
    MINUS,
    POINT,
    EXPONENT,
    EXPONENT_SIGN,
    ZERO,
    DIGITS,
    FRACTION,
    EXPONENT_DIGITS
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int hex_digit(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static enum json_scan end_value(struct json_scanner *s)
{
    s->state = AFTER;
    return s->depth == 0 ? JSON_SCAN_DONE : JSON_SCAN_MORE;
}

static enum json_scan open_container(struct json_scanner *s, bool array)
{
    if (s->depth == LIMIT_JSON_DEPTH) return JSON_SCAN_BROKEN;
    uint64_t bit = (uint64_t)1 << s->depth++;
    s->arrays = array ? s->arrays | bit : s->arrays & ~bit;
    s->state = array ? FIRST_ITEM : FIRST_KEY;
    return JSON_SCAN_MORE;
}

static enum json_scan close_container(struct json_scanner *s)
{
    s->depth--;
    return end_value(s);
}

static enum json_scan begin_literal(struct json_scanner *s, const char *rest)
{
    s->literal = rest;
    s->left = (uint8_t)strlen(rest);
    s->state = LITERAL;
    return JSON_SCAN_MORE;
}

static enum json_scan begin_value(struct json_scanner *s, char c)
{
    switch (c) {
    case '{':
        return open_container(s, false);
    case '[':
        return open_container(s, true);
    case '"':
        s->key = false;
        s->state = STRING;
        return JSON_SCAN_MORE;
    case 't':
        return begin_literal(s, "rue");
    case 'f':
        return begin_literal(s, "alse");
    case 'n':
        return begin_literal(s, "ull");
    case '-':
        s->state = MINUS;
        return JSON_SCAN_MORE;
    default:
        if (!is_digit(c)) return JSON_SCAN_BROKEN;
        s->state = c == '0' ? ZERO : DIGITS;
        return JSON_SCAN_MORE;
    }
}

static enum json_scan in_string(struct json_scanner *s, char c)
{
    if (s->state == ESCAPE) {
        if (c == 'u') {
            s->state = HEX;
            s->left = 4;
            return JSON_SCAN_MORE;
        }
        s->state = STRING;
        return c != '\0' && strchr("\"\\/bfnrt", c) != NULL ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    }
    if (s->state == HEX) {
        if (hex_digit(c) < 0) return JSON_SCAN_BROKEN;
        if (--s->left == 0) s->state = STRING;
        return JSON_SCAN_MORE;
    }
    if (c == '\\') {
        s->state = ESCAPE;
        return JSON_SCAN_MORE;
    }
    if (c != '"') return (unsigned char)c < 0x20 ? JSON_SCAN_BROKEN : JSON_SCAN_MORE;
    if (!s->key) return end_value(s);
    s->state = COLON;
    return JSON_SCAN_MORE;
}

static enum json_scan after_value(struct json_scanner *s, char c)
{
    if (is_space(c)) return JSON_SCAN_MORE;
    bool array = (s->arrays >> (s->depth - 1) & 1) != 0;
    if (c == (array ? ']' : '}')) return close_container(s);
    if (c != ',') return JSON_SCAN_BROKEN;
    s->state = array ? VALUE : KEY;
    return JSON_SCAN_MORE;
}

/* -1: the byte is no part of the number. */
static int next_of_number(enum state state, char c)
{
    bool digit = is_digit(c);
    switch (state) {
    case MINUS:
        return !digit ? -1 : c == '0' ? ZERO : DIGITS;
    case POINT:
    case FRACTION:
        if (digit) return FRACTION;
        break;
    case EXPONENT:
        if (c == '+' || c == '-') return EXPONENT_SIGN;
        return digit ? EXPONENT_DIGITS : -1;
    case EXPONENT_SIGN:
    case EXPONENT_DIGITS:
        return digit ? EXPONENT_DIGITS : -1;
    default: /* ZERO, DIGITS */
        if (digit && state == DIGITS) return DIGITS;
        if (c == '.') return POINT;
        break;
    }
    return (c == 'e' || c == 'E') && state != POINT ? EXPONENT : -1;
}

static enum json_scan in_number(struct json_scanner *s, char c)
{
    int next = next_of_number(s->state, c);
    if (next >= 0) {
        s->state = (uint8_t)next;
        return JSON_SCAN_MORE;
    }
    if (s->state < ZERO) return JSON_SCAN_BROKEN;
    if (end_value(s) == JSON_SCAN_DONE) return JSON_SCAN_PAST;
    return after_value(s, c);
}

enum json_scan json_scanner_byte(struct json_scanner *s, char c)
{
    switch ((enum state)s->state) {
    case VALUE:
        return is_space(c) ? JSON_SCAN_MORE : begin_value(s, c);
    case FIRST_ITEM:
        if (is_space(c)) return JSON_SCAN_MORE;
        return c == ']' ? close_container(s) : begin_value(s, c);
    case FIRST_KEY:
        if (c == '}') return close_container(s);
        __attribute__((fallthrough));
    case KEY:
        if (is_space(c)) return JSON_SCAN_MORE;
        s->key = true;
        s->state = STRING;
        return c == '"' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case COLON:
        if (is_space(c)) return JSON_SCAN_MORE;
        s->state = VALUE;
        return c == ':' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case AFTER:
        return after_value(s, c);
    case STRING:
    case ESCAPE:
    case HEX:
        return in_string(s, c);
    case LITERAL:
        if (c != *s->literal++) return JSON_SCAN_BROKEN;
        return --s->left == 0 ? end_value(s) : JSON_SCAN_MORE;
    default:
        return in_number(s, c);
    }
}

bool json_scanner_may_end(const struct json_scanner *s)
{
    return s->depth == 0 && s->state >= ZERO;
}

/* ---- strings ---- */

enum { TEXT_PLAIN, TEXT_ESCAPE, TEXT_HEX };

static void put_lone_high(struct json_text *t, struct buf *out)
{
    if (t->high != 0) buf_put_utf8(out, 0xFFFD);
    t->high = 0;
}

static void put_unit(struct json_text *t, struct buf *out)
{
    bool low = t->unit >= 0xDC00 && t->unit <= 0xDFFF;
    if (t->high != 0 && low) {
        buf_put_utf8(out, 0x10000 + ((t->high - 0xD800) << 10) + (t->unit - 0xDC00));
        t->high = 0;
        return;
    }
    put_lone_high(t, out);
    if (t->unit >= 0xD800 && t->unit <= 0xDBFF)
        t->high = t->unit;
    else
        buf_put_utf8(out, t->unit); /* a lone low one becomes U+FFFD */
}

static enum json_scan after_backslash(struct json_text *t, char c, struct buf *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (c == 'u') {
        t->state = TEXT_HEX;
        t->left = 4;
        t->unit = 0;
        return JSON_SCAN_MORE;
    }
    const char *at = c == '\0' ? NULL : strchr(from, c);
    if (at == NULL) return JSON_SCAN_BROKEN;
    put_lone_high(t, out);
    buf_putc(out, to[at - from]);
    t->state = TEXT_PLAIN;
    return JSON_SCAN_MORE;
}

enum json_scan json_text_byte(struct json_text *t, char c, struct buf *out)
{
    if (t->state == TEXT_ESCAPE) return after_backslash(t, c, out);
    if (t->state == TEXT_HEX) {
        int digit = hex_digit(c);
        if (digit < 0) return JSON_SCAN_BROKEN;
        t->unit = t->unit << 4 | (uint32_t)digit;
        if (--t->left == 0) {
            t->state = TEXT_PLAIN;
            put_unit(t, out);
        }
        return JSON_SCAN_MORE;
    }
    if (c == '\\') {
        t->state = TEXT_ESCAPE;
        return JSON_SCAN_MORE;
    }
    put_lone_high(t, out);
    if (c == '"') return JSON_SCAN_DONE;
    if ((unsigned char)c < 0x20) return JSON_SCAN_BROKEN;
    buf_putc(out, c);
    return JSON_SCAN_MORE;
}
