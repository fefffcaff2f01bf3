#include "coordinator/text/jinja_lexer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/jinja_value.h"

struct lexer {
    const char *src;
    size_t n, pos;
    uint32_t line;
    bool line_starting; /* the previous piece ended a line, or nothing came before */
    struct arena *arena;
    struct jinja_token *tokens; /* grows on the heap, copied to the arena at the end */
    size_t n_tokens, cap;
    struct err *why;
};

static enum err_code fail(struct lexer *lx, const char *what)
{
    return err_set(lx->why, ERR_INVALID, "line %u: %s", lx->line, what);
}

static enum err_code push(struct lexer *lx, struct jinja_token t)
{
    if (lx->n_tokens == lx->cap) {
        size_t cap = lx->cap ? lx->cap * 2 : 256, bytes;
        struct jinja_token *p =
            size_mul(cap, sizeof *p, &bytes) ? mem_realloc(lx->tokens, bytes) : NULL;
        if (p == NULL) return err_nomem(lx->why, "template tokens");
        lx->tokens = p;
        lx->cap = cap;
    }
    t.line = lx->line;
    lx->tokens[lx->n_tokens++] = t;
    return ERR_OK;
}

static enum err_code push_text(struct lexer *lx, enum jinja_token_kind kind, const char *s,
                               size_t n)
{
    char *copy = arena_strndup(lx->arena, s, n);
    if (copy == NULL) return err_nomem(lx->why, "template text");
    return push(lx, (struct jinja_token){.kind = kind, .text = copy, .len = n});
}

/* Move to `to`, counting lines. */
static void advance(struct lexer *lx, size_t to)
{
    for (; lx->pos < to; lx->pos++)
        if (lx->src[lx->pos] == '\n') lx->line++;
}

static bool at(const struct lexer *lx, size_t pos, const char *s)
{
    size_t k = strlen(s);
    return lx->n - pos >= k && memcmp(lx->src + pos, s, k) == 0;
}

static size_t skip_space(const struct lexer *lx, size_t pos)
{
    return pos + jinja_space_prefix(lx->src + pos, lx->n - pos);
}

/* After the characters that close a block or comment at `pos` (which are `close`, 2 characters, with an
 * optional sign before): the position behind, or 0 if it is not a closing there. */
static size_t closing(const struct lexer *lx, size_t pos, const char *close, bool trim_newline)
{
    if (at(lx, pos, "-") && at(lx, pos + 1, close)) return skip_space(lx, pos + 3);
    if (trim_newline && at(lx, pos, "+") && at(lx, pos + 1, close)) return pos + 3;
    if (!at(lx, pos, close)) return 0;
    pos += 2;
    if (trim_newline && at(lx, pos, "\n")) pos++;
    return pos;
}

static enum err_code lex_escape(struct lexer *lx, const char *s, size_t n, size_t *i, char *out,
                                size_t *len)
{
    char c = s[(*i)++];
    uint32_t cp;
    size_t digits = 0;
    switch (c) {
    case '\n':
        return ERR_OK;
    case 'n':
        cp = '\n';
        break;
    case 't':
        cp = '\t';
        break;
    case 'r':
        cp = '\r';
        break;
    case 'a':
        cp = '\a';
        break;
    case 'b':
        cp = '\b';
        break;
    case 'f':
        cp = '\f';
        break;
    case 'v':
        cp = '\v';
        break;
    case '\\':
    case '\'':
    case '"':
        cp = (uint32_t)c;
        break;
    case 'x':
        digits = 2;
        break;
    case 'u':
        digits = 4;
        break;
    case 'U':
        digits = 8;
        break;
    case 'N':
        return fail(lx, "\\N{..} in a string is not supported");
    default:
        if (c >= '0' && c <= '7') {
            cp = (uint32_t)(c - '0');
            for (int k = 0; k < 2 && *i < n && s[*i] >= '0' && s[*i] <= '7'; k++)
                cp = cp * 8 + (uint32_t)(s[(*i)++] - '0');
            break;
        }
        out[(*len)++] = '\\'; /* Python keeps what it does not know */
        out[(*len)++] = c;
        return ERR_OK;
    }
    if (digits > 0) {
        cp = 0;
        for (; digits > 0; digits--) {
            char h = *i < n ? s[(*i)++] : '?';
            if (h >= '0' && h <= '9')
                cp = cp * 16 + (uint32_t)(h - '0');
            else if (h >= 'a' && h <= 'f')
                cp = cp * 16 + (uint32_t)(h - 'a' + 10);
            else if (h >= 'A' && h <= 'F')
                cp = cp * 16 + (uint32_t)(h - 'A' + 10);
            else
                return fail(lx, "bad \\x, \\u or \\U escape in a string");
        }
    }
    /* No escape is longer than what it writes except two octal digits or fewer, which write two
     * bytes at most. */
    *len += utf8_encode(cp, out + *len);
    return ERR_OK;
}

static enum err_code lex_string(struct lexer *lx)
{
    char quote = lx->src[lx->pos];
    size_t start = lx->pos + 1, end = start;
    while (end < lx->n && lx->src[end] != quote)
        end += lx->src[end] == '\\' ? 2 : 1;
    if (end >= lx->n) return fail(lx, "a string has no end");
    char *out = arena_alloc(lx->arena, (end - start) * 2 + 1);
    if (out == NULL) return err_nomem(lx->why, "template text");
    size_t len = 0;
    for (size_t i = start; i < end;) {
        char c = lx->src[i++];
        if (c != '\\') {
            out[len++] = c;
            continue;
        }
        enum err_code rc = lex_escape(lx, lx->src, end, &i, out, &len);
        if (rc != ERR_OK) return rc;
    }
    out[len] = '\0';
    enum err_code rc = push(lx, (struct jinja_token){.kind = JT_STRING, .text = out, .len = len});
    advance(lx, end + 1);
    return rc;
}

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool name_char(char c)
{
    return digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80;
}

/* Digits with single underscores between. */
static size_t digits_end(const struct lexer *lx, size_t p)
{
    while (p < lx->n &&
           (digit(lx->src[p]) || (lx->src[p] == '_' && p + 1 < lx->n && digit(lx->src[p + 1]))))
        p++;
    return p;
}

static enum err_code lex_number(struct lexer *lx)
{
    size_t p = digits_end(lx, lx->pos);
    bool real = false;
    if (p + 1 < lx->n && lx->src[p] == '.' && digit(lx->src[p + 1])) {
        real = true;
        p = digits_end(lx, p + 1);
    }
    if (p < lx->n && (lx->src[p] == 'e' || lx->src[p] == 'E')) {
        size_t q = p + 1;
        if (q < lx->n && (lx->src[q] == '+' || lx->src[q] == '-')) q++;
        if (q < lx->n && digit(lx->src[q])) {
            real = true;
            p = digits_end(lx, q);
        }
    }
    char text[64];
    size_t k = 0;
    for (size_t i = lx->pos; i < p; i++) {
        if (lx->src[i] == '_') continue;
        if (k + 1 >= sizeof text) return fail(lx, "a number has too many digits");
        text[k++] = lx->src[i];
    }
    text[k] = '\0';
    struct jinja_token t = {.kind = real ? JT_FLOAT : JT_INT};
    if (real) {
        t.real = strtod(text, NULL);
    } else {
        errno = 0;
        t.integer = strtoll(text, NULL, 10);
        if (errno != 0) return fail(lx, "an integer does not fit 64 bits");
    }
    lx->pos = p;
    return push(lx, t);
}

static enum err_code lex_op(struct lexer *lx, char *stack, size_t *depth)
{
    static const char two[][3] = {"==", "!=", ">=", "<=", "//", "**"};
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++)
        if (at(lx, lx->pos, two[i])) {
            lx->pos += 2;
            return push(lx,
                        (struct jinja_token){.kind = JT_OP, .op = JINJA_OP2(two[i][0], two[i][1])});
        }
    char c = lx->src[lx->pos];
    if (strchr("+-*/%~<>=.,:|()[]{}", c) == NULL || c == '\0')
        return fail(lx, "a character that no expression can hold");
    if (c == '(' || c == '[' || c == '{') {
        if (*depth == LIMIT_TEMPLATE_DEPTH) return fail(lx, "brackets are nested too deeply");
        stack[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (*depth == 0 || stack[*depth - 1] != c) return fail(lx, "a bracket does not match");
        (*depth)--;
    }
    lx->pos++;
    return push(lx, (struct jinja_token){.kind = JT_OP, .op = (unsigned char)c});
}

/* The inside of {% %} or {{ }}, closing included. */
static enum err_code lex_code(struct lexer *lx, bool block)
{
    char stack[LIMIT_TEMPLATE_DEPTH];
    size_t depth = 0;
    for (;;) {
        advance(lx, skip_space(lx, lx->pos));
        if (lx->pos >= lx->n) return fail(lx, block ? "'{%' has no end" : "'{{' has no end");
        if (depth == 0) {
            size_t end = closing(lx, lx->pos, block ? "%}" : "}}", block);
            if (end != 0) {
                enum err_code rc =
                    push(lx, (struct jinja_token){.kind = block ? JT_BLOCK_END : JT_VARIABLE_END});
                advance(lx, end);
                lx->line_starting = lx->src[end - 1] == '\n';
                return rc;
            }
        }
        char c = lx->src[lx->pos];
        enum err_code rc;
        if (c == '\'' || c == '"') {
            rc = lex_string(lx);
        } else if (digit(c)) {
            rc = lex_number(lx);
        } else if (name_char(c)) {
            size_t end = lx->pos;
            while (end < lx->n && name_char(lx->src[end]))
                end++;
            rc = push_text(lx, JT_NAME, lx->src + lx->pos, end - lx->pos);
            lx->pos = end;
        } else {
            rc = lex_op(lx, stack, &depth);
        }
        if (rc != ERR_OK) return rc;
    }
}

/* {% raw %} at pos: the position behind its tag, else 0. `name` is "raw" or "endraw". */
static size_t raw_tag(const struct lexer *lx, size_t pos, const char *name)
{
    size_t p = pos + 2;
    if (at(lx, p, "-") || at(lx, p, "+")) p++;
    p = skip_space(lx, p);
    if (!at(lx, p, name)) return 0;
    p = skip_space(lx, p + strlen(name));
    return closing(lx, p, "%}", true);
}

/* Data before the tag at `tag` with the tag's white space control applied. */
static enum err_code lex_data(struct lexer *lx, size_t tag, bool strips_line)
{
    size_t start = lx->pos, end = tag;
    char sign = tag + 2 < lx->n ? lx->src[tag + 2] : '\0';
    if (sign == '-') {
        end -= jinja_space_suffix(lx->src + start, end - start);
    } else if (sign != '+' && strips_line) {
        size_t p = end;
        while (p > start && (lx->src[p - 1] == ' ' || lx->src[p - 1] == '\t'))
            p--;
        if ((p > start && lx->src[p - 1] == '\n') || (p == start && lx->line_starting)) end = p;
    }
    enum err_code rc = end > start ? push_text(lx, JT_DATA, lx->src + start, end - start) : ERR_OK;
    advance(lx, tag);
    return rc;
}

static enum err_code lex_raw(struct lexer *lx, size_t inside)
{
    advance(lx, inside);
    lx->line_starting = lx->src[inside - 1] == '\n';
    for (size_t p = inside; p + 1 < lx->n; p++) {
        size_t end = at(lx, p, "{%") ? raw_tag(lx, p, "endraw") : 0;
        if (end == 0) continue;
        enum err_code rc = lex_data(lx, p, true);
        advance(lx, end);
        lx->line_starting = lx->src[end - 1] == '\n';
        return rc;
    }
    return fail(lx, "'raw' has no 'endraw'");
}

static enum err_code lex_comment(struct lexer *lx)
{
    for (size_t p = lx->pos + 2; p + 1 < lx->n; p++) {
        size_t end = closing(lx, p, "#}", true);
        if (end == 0) continue;
        advance(lx, end);
        lx->line_starting = lx->src[end - 1] == '\n';
        return ERR_OK;
    }
    return fail(lx, "'{#' has no end");
}

static enum err_code lex_all(struct lexer *lx)
{
    enum err_code rc = ERR_OK;
    while (rc == ERR_OK && lx->pos < lx->n) {
        size_t tag = lx->pos;
        while (tag < lx->n && !at(lx, tag, "{%") && !at(lx, tag, "{{") && !at(lx, tag, "{#"))
            tag++;
        if (tag == lx->n) {
            rc = push_text(lx, JT_DATA, lx->src + lx->pos, tag - lx->pos);
            advance(lx, tag);
            break;
        }
        char kind = lx->src[tag + 1];
        rc = lex_data(lx, tag, kind != '{');
        if (rc != ERR_OK) break;
        size_t inside = tag + 2;
        if (kind == '#') {
            rc = lex_comment(lx);
            continue;
        }
        size_t raw = kind == '%' ? raw_tag(lx, tag, "raw") : 0;
        if (raw != 0) {
            rc = lex_raw(lx, raw);
            continue;
        }
        if (at(lx, inside, "-") || (kind == '%' && at(lx, inside, "+"))) inside++;
        rc = push(lx,
                  (struct jinja_token){.kind = kind == '%' ? JT_BLOCK_BEGIN : JT_VARIABLE_BEGIN});
        advance(lx, inside);
        if (rc == ERR_OK) rc = lex_code(lx, kind == '%');
    }
    return rc != ERR_OK ? rc : push(lx, (struct jinja_token){.kind = JT_END});
}

enum err_code jinja_lex(const char *source, size_t n, struct arena *arena, struct jinja_token **out,
                        size_t *n_out, struct err *why)
{
    char *lf = arena_alloc(arena, n + 1); /* line ends become LF, the last one is dropped */
    if (lf == NULL) return err_nomem(why, "template text");
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        lf[len++] = source[i] == '\r' ? '\n' : source[i];
        if (source[i] == '\r' && i + 1 < n && source[i + 1] == '\n') i++;
    }
    if (len > 0 && lf[len - 1] == '\n') len--;
    lf[len] = '\0';
    struct lexer lx = {
        .src = lf, .n = len, .line = 1, .line_starting = true, .arena = arena, .why = why};
    enum err_code rc = lex_all(&lx);
    if (rc == ERR_OK) {
        struct jinja_token *kept = arena_zalloc_array(arena, lx.n_tokens, sizeof *kept);
        if (kept == NULL) {
            rc = err_nomem(why, "template tokens");
        } else {
            memcpy(kept, lx.tokens, lx.n_tokens * sizeof *kept);
            *out = kept;
            *n_out = lx.n_tokens;
        }
    }
    mem_free(lx.tokens);
    return rc;
}
