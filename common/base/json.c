#include "common/base/json.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

/* The text is read here and not by jansson, whose reader (2.14) is not fit for memory that runs out: where its own text
 * buffer cannot grow, a number ends in an assertion, and a string is copied past its end. Its values are fine. */
struct reader {
    const char *text, *at, *end;
    unsigned depth, max_depth;
    struct buf scratch; /* a string without its escapes; a number with a 0 behind it */
    enum err_code rc;   /* sticky */
    struct err *why;
};

static void use_mem(void)
{
    json_set_alloc_funcs(mem_alloc, mem_free);
}

/* Always false, here and in the next. */
static bool bad(struct reader *r, const char *what)
{
    size_t line = 1, column = 1;
    for (const char *s = r->text; s < r->at; s++) {
        column = *s == '\n' ? 1 : column + 1;
        line += *s == '\n';
    }
    r->rc =
        err_set(r->why, ERR_INVALID, "not valid JSON: line %zu column %zu: %s", line, column, what);
    return false;
}

static bool no_memory(struct reader *r)
{
    r->rc = err_nomem(r->why, "JSON");
    return false;
}

/* Hand out what jansson made, if it did. */
static bool give(struct reader *r, json_t *made, json_t **out)
{
    *out = made;
    return made != NULL || no_memory(r);
}

static char peek(const struct reader *r)
{
    return r->at < r->end ? *r->at : '\0'; /* a NUL in the text is as wrong as its end */
}

static char skip_space(struct reader *r)
{
    char c;
    while ((c = peek(r)) == ' ' || c == '\t' || c == '\n' || c == '\r')
        r->at++;
    return c;
}

static bool take(struct reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) return false;
    r->at += n;
    return true;
}

/* ---- strings ---------------------------------------------------------------------------------- */

static bool take_hex4(struct reader *r, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        char c = peek(r), letter = (char)(c | 0x20);
        if (c >= '0' && c <= '9')
            *out = *out << 4 | (uint32_t)(c - '0');
        else if (letter >= 'a' && letter <= 'f')
            *out = *out << 4 | (uint32_t)(letter - 'a' + 10);
        else
            return false;
    }
    return true;
}

/* What stands behind a backslash. */
static bool take_escape(struct reader *r)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = peek(r);
    const char *known = c == '\0' ? NULL : strchr(from, c);
    if (known != NULL) {
        buf_putc(&r->scratch, to[known - from]);
        r->at++;
        return true;
    }
    uint32_t cp, low;
    if (!take(r, "u")) return bad(r, "an unknown escape in a string");
    if (!take_hex4(r, &cp)) return bad(r, "\\u without four hexadecimal digits");
    if (cp >= 0xD800 && cp <= 0xDFFF) {
        if (cp >= 0xDC00 || !take(r, "\\u") || !take_hex4(r, &low) || low < 0xDC00 || low > 0xDFFF)
            return bad(r, "half of a surrogate pair in a string");
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
    }
    buf_put_utf8(&r->scratch, cp);
    return true;
}

/* From the opening quote past the closing one. The bytes lie in the text or, when there were escapes, in scratch, until
 * the next string or number. */
static bool take_string(struct reader *r, const char **s, size_t *n)
{
    const char *start = ++r->at;
    bool escaped = false;
    buf_clear(&r->scratch);
    for (;;) {
        const char *run = r->at;
        while (r->at < r->end && *r->at != '"' && *r->at != '\\' && (unsigned char)*r->at >= 0x20)
            r->at++;
        size_t n_run = (size_t)(r->at - run);
        if (r->at == r->end) return bad(r, "the text ends inside a string");
        if (!utf8_valid(run, n_run)) return bad(r, "invalid UTF-8 in a string");
        bool closed = *r->at == '"';
        if (!closed && *r->at != '\\') return bad(r, "a control character in a string");
        if (escaped || !closed) buf_append(&r->scratch, run, n_run);
        r->at++;
        if (closed) {
            *s = escaped ? r->scratch.data : start;
            *n = escaped ? r->scratch.len : n_run;
            return !r->scratch.failed || no_memory(r);
        }
        escaped = true;
        if (!take_escape(r)) return false;
    }
}

static bool read_string(struct reader *r, json_t **out)
{
    const char *s;
    size_t n;
    return take_string(r, &s, &n) && give(r, json_stringn_nocheck(s, n), out);
}

/* ---- numbers ---------------------------------------------------------------------------------- */

static size_t take_digits(struct reader *r)
{
    const char *start = r->at;
    while (peek(r) >= '0' && peek(r) <= '9')
        r->at++;
    return (size_t)(r->at - start);
}

/* Integers beyond 64 bits are legal JSON, and Hugging Face writes them (model_max_length): they become reals. */
static bool read_number(struct reader *r, json_t **out)
{
    const char *start = r->at;
    bool real = false;
    take(r, "-");
    bool zero = peek(r) == '0';
    size_t n_digits = take_digits(r);
    if (n_digits == 0) return bad(r, "a value is missing, or of no known kind");
    if (zero && n_digits > 1) return bad(r, "a number begins with 0");
    if (take(r, ".")) {
        real = true;
        if (take_digits(r) == 0) return bad(r, "a number without digits after its point");
    }
    if (take(r, "e") || take(r, "E")) {
        real = true;
        if (!take(r, "+")) take(r, "-");
        if (take_digits(r) == 0) return bad(r, "a number without digits in its exponent");
    }
    buf_clear(&r->scratch);
    buf_append(&r->scratch, start, (size_t)(r->at - start));
    if (r->scratch.failed) return no_memory(r);
    if (!real) {
        errno = 0;
        long long i = strtoll(r->scratch.data, NULL, 10);
        if (errno == 0) return give(r, json_integer(i), out);
    }
    double x = strtod(r->scratch.data, NULL);
    return isfinite(x) ? give(r, json_real(x), out) : bad(r, "a number is too large");
}

/* ---- values ----------------------------------------------------------------------------------- */

static bool read_value(struct reader *r, json_t **out);

static bool read_member(struct reader *r, json_t *object)
{
    const char *key;
    size_t n;
    if (skip_space(r) != '"') return bad(r, "a key must be a string");
    if (!take_string(r, &key, &n)) return false;
    if (memchr(key, 0, n) != NULL) return bad(r, "a NUL character in a key");
    if (json_object_getn(object, key, n) != NULL) return bad(r, "a duplicate key");
    struct buf own = {0}; /* the value's strings want scratch */
    if (key == r->scratch.data) {
        own = r->scratch;
        r->scratch = (struct buf){0};
    }
    json_t *v;
    bool ok = skip_space(r) == ':' || bad(r, "':' is missing after a key");
    if (ok) {
        r->at++;
        ok = read_value(r, &v);
    }
    if (ok && json_object_setn_new_nocheck(object, key, n, v) != 0) ok = no_memory(r);
    buf_free(&own);
    return ok;
}

/* An array or object with all that is in it. */
static bool read_list(struct reader *r, char close, json_t *list)
{
    r->at++;
    if (++r->depth > r->max_depth) {
        r->rc = err_set(r->why, ERR_INVALID, "JSON is nested deeper than %u levels", r->max_depth);
        return false;
    }
    if (skip_space(r) != close)
        for (;;) {
            json_t *v;
            if (close == '}') {
                if (!read_member(r, list)) return false;
            } else {
                if (!read_value(r, &v)) return false;
                if (json_array_append_new(list, v) != 0) return no_memory(r);
            }
            char c = skip_space(r);
            if (c == close) break;
            if (c != ',') return bad(r, "',' or the end of a list or object is missing");
            r->at++;
        }
    r->at++;
    r->depth--;
    return true;
}

static bool read_value(struct reader *r, json_t **out)
{
    char c = skip_space(r);
    *out = NULL;
    if (c == '"') return read_string(r, out);
    if (c == '{' || c == '[') {
        if (!give(r, c == '{' ? json_object() : json_array(), out)) return false;
        if (read_list(r, c == '{' ? '}' : ']', *out)) return true;
        json_decref(*out);
        return false;
    }
    if (take(r, "null")) return give(r, json_null(), out);
    if (take(r, "true")) return give(r, json_true(), out);
    if (take(r, "false")) return give(r, json_false(), out);
    return read_number(r, out);
}

enum err_code json_parse(const char *text, size_t n, unsigned max_depth, json_t **out,
                         struct err *why)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, use_mem);
    struct reader r = {
        .text = text, .at = text, .end = text + n, .max_depth = max_depth, .why = why};
    json_t *v;
    if (read_value(&r, &v)) {
        skip_space(&r);
        if (r.at == r.end)
            *out = v;
        else
            bad(&r, "more text behind the value");
        if (r.rc != ERR_OK) json_decref(v);
    }
    buf_free(&r.scratch);
    return r.rc;
}

enum err_code json_parse_file(const char *path, size_t max_bytes, unsigned max_depth, json_t **out,
                              struct err *why)
{
    char *text;
    size_t n;
    enum err_code rc = file_read(path, max_bytes, &text, &n, why);
    if (rc != ERR_OK) return rc;
    rc = json_parse(text, n, max_depth, out, why);
    mem_free(text);
    if (rc == ERR_INVALID) rc = ERR_CORRUPT;
    return rc == ERR_OK ? rc : err_wrap(why, rc, "%s", path);
}

static int append(const char *bytes, size_t n, void *b)
{
    buf_append(b, bytes, n);
    return 0;
}

char *json_to_text(const json_t *value)
{
    struct buf b = {0};
    if (json_dump_callback(value, append, &b, JSON_COMPACT | JSON_ENCODE_ANY) != 0) b.failed = true;
    return buf_take(&b, NULL);
}
