#define PCRE2_CODE_UNIT_WIDTH 8
#include "coordinator/text/regex.h"

#include <pcre2.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/unicode.h"

struct regex {
    pcre2_code *code; /* NULL: the pattern is \s+$, matched by hand */
    bool jit;
};

struct regex_work {
    pcre2_general_context *general;
    pcre2_match_context *context;
    pcre2_match_data *data;
};

static void *pcre_alloc(PCRE2_SIZE n, void *unused)
{
    (void)unused;
    return mem_alloc(n);
}

static void pcre_free(void *p, void *unused)
{
    (void)unused;
    mem_free(p);
}

/* ---- Translation -------------------------------------------------------------------------------- */

static bool starts(const char *s, size_t n, const char *with)
{
    size_t k = strlen(with);
    return n >= k && memcmp(s, with, k) == 0;
}

/* \p{..} or \P{..} at s (which points at p): one- and two-letter names are general categories and
 * agree. Longer ones are scripts here; Oniguruma means the script, PCRE2 by default its extensions.
 * Returns the bytes used, 0 if malformed. */
static size_t put_property(const char *s, size_t n, struct buf *out)
{
    if (n < 4 || s[1] != '{') return 0;
    const char *close = memchr(s, '}', n);
    if (close == NULL) return 0;
    size_t name_n = (size_t)(close - s) - 2;
    bool negated = name_n > 0 && s[2] == '^';
    buf_printf(out, "\\%c{%s", s[0], negated ? "^" : "");
    if (name_n - negated > 2) buf_puts(out, "sc:");
    buf_append(out, s + 2 + negated, name_n - negated);
    buf_putc(out, '}');
    return (size_t)(close - s) + 1;
}

/* One escape at s (after the backslash). Returns the bytes used, 0 if it has no known equal. */
static size_t put_escape(const char *s, size_t n, struct buf *out)
{
    if (n == 0) return 0;
    char c = s[0];
    switch (c) {
    case 's': /* PCRE2's \s under UCP also has U+180E */
        buf_puts(out, "\\p{White_Space}");
        return 1;
    case 'S':
        buf_puts(out, "\\P{White_Space}");
        return 1;
    case 'p':
    case 'P':
        return put_property(s, n, out);
    case 'u':
        if (n < 5) return 0;
        buf_printf(out, "\\x{%.4s}", s + 1);
        return 5;
    case 'd':
    case 'D':
    case 'r':
    case 'n':
    case 't':
    case 'x':
    case 'A':
    case 'z':
        break;
    default:
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return 0;
    }
    buf_putc(out, '\\');
    buf_putc(out, c);
    return 1;
}

/* Groups that mean the same in both. */
static bool group_is_known(const char *s, size_t n)
{
    static const char *const known[] = {"(?:", "(?i:", "(?!", "(?=", "(?<!", "(?<=", "(?>"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (starts(s, n, known[i])) return true;
    return !starts(s, n, "(?") && !starts(s, n, "(*");
}

static enum err_code translate(const char *s, size_t n, const char *where, struct buf *out,
                               struct err *why)
{
    bool in_set = false;
    size_t i = 0;
    while (i < n) {
        const char *at = s + i;
        size_t left = n - i, used = 1;
        if (*at == '\\') {
            used = put_escape(at + 1, left - 1, out);
            if (used++ == 0) goto refuse;
        } else if (in_set) {
            if (*at == '[' || starts(at, left, "&&")) goto refuse; /* sets of sets */
            if (*at == ']') in_set = false;
            buf_putc(out, *at);
        } else if (*at == '[') {
            in_set = true;
            used = starts(at, left, "[^") ? 2 : 1;
            if (used < left && at[used] == ']') goto refuse;
            buf_append(out, at, used);
        } else if ((*at == '(' && !group_is_known(at, left)) || starts(at, left, "}+")) {
            goto refuse; /* Ruby reads {1,3}+ as a repeated repeat, PCRE2 as a possessive one */
        } else {
            buf_putc(out, *at);
        }
        i += used;
    }
    return out->failed ? err_nomem(why, "regular expression") : ERR_OK;
refuse:
    return err_set(why, ERR_UNSUPPORTED,
                   "%s: regular expression: '%.12s' at byte %zu is not supported", where, s + i, i);
}

enum err_code regex_open(const char *pattern, size_t n, const char *where, struct regex **out,
                         struct err *why)
{
    if (n > LIMIT_TOKENIZER_REGEX_BYTES)
        return err_set(why, ERR_TOO_LARGE, "%s: regular expression of %zu bytes, at most %u", where,
                       n, LIMIT_TOKENIZER_REGEX_BYTES);
    struct buf translated = {0};
    pcre2_compile_context *context = NULL;
    pcre2_general_context *general = NULL;
    struct regex *r = mem_zalloc(sizeof *r);
    enum err_code rc = ERR_OK;
    if (r == NULL) {
        rc = err_nomem(why, where);
        goto out;
    }
    /* Searching for this one in a long run of spaces that ends in a letter is quadratic. */
    if (n == 4 && memcmp(pattern, "\\s+$", 4) == 0) goto out;
    rc = translate(pattern, n, where, &translated, why);
    if (rc != ERR_OK) goto out;
    general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    context = general == NULL ? NULL : pcre2_compile_context_create(general);
    if (context == NULL) {
        rc = err_nomem(why, where);
        goto out;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    /* In Ruby syntax $ and ^ always mean line ends: MULTILINE. */
    r->code = pcre2_compile((PCRE2_SPTR)translated.data, translated.len,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, context);
    if (r->code == NULL) {
        char text[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        rc = code == PCRE2_ERROR_HEAP_FAILED || code == 121 /* ERR21: no memory for the code */
                 ? err_nomem(why, where)
                 : err_set(why, ERR_CORRUPT, "%s: regular expression: %s (byte %zu)", where, text,
                           (size_t)at);
        goto out;
    }
    /* The just-in-time compiler is a speed-up only: where it is not to be had, the interpreter runs. */
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
out:
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    buf_free(&translated);
    if (rc == ERR_OK)
        *out = r;
    else
        regex_close(r);
    return rc;
}

void regex_close(struct regex *r)
{
    if (r == NULL) return;
    pcre2_code_free(r->code);
    mem_free(r);
}

/* ---- Matching ----------------------------------------------------------------------------------- */

enum err_code regex_work_open(struct regex_work **out, struct err *why)
{
    struct regex_work *w = mem_zalloc(sizeof *w);
    if (w == NULL) return err_nomem(why, "regular expression");
    w->general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    if (w->general != NULL) {
        w->context = pcre2_match_context_create(w->general);
        w->data = pcre2_match_data_create(1, w->general);
    }
    if (w->context == NULL || w->data == NULL) {
        regex_work_close(w);
        return err_nomem(why, "regular expression");
    }
    pcre2_set_heap_limit(w->context, LIMIT_TOKENIZER_REGEX_HEAP_KIB);
    *out = w;
    return ERR_OK;
}

void regex_work_close(struct regex_work *w)
{
    if (w == NULL) return;
    pcre2_match_data_free(w->data);
    pcre2_match_context_free(w->context);
    pcre2_general_context_free(w->general);
    mem_free(w);
}

/* \s+$ in Ruby's meaning: from the start of a run of white space to its last line end. */
static bool find_trailing_space(const char *text, size_t n, size_t from, size_t *start, size_t *end)
{
    size_t run = SIZE_MAX, last = SIZE_MAX; /* start of the current run; last line end inside it */
    for (size_t i = from;;) {
        if (run != SIZE_MAX && i > run && (i == n || text[i] == '\n')) last = i;
        uint32_t cp = 0;
        size_t used = i == n ? 0 : utf8_decode(text + i, n - i, &cp);
        if (used != 0 && unicode_is_space(cp)) {
            if (run == SIZE_MAX) run = i;
        } else {
            if (last != SIZE_MAX) break;
            run = SIZE_MAX;
            if (used == 0) return false;
        }
        i += used;
    }
    *start = run;
    *end = last;
    return true;
}

enum err_code regex_find(const struct regex *r, struct regex_work *w, const char *text, size_t n,
                         size_t from, bool *found, size_t *start, size_t *end, struct err *why)
{
    if (r->code == NULL) {
        *found = find_trailing_space(text, n, from, start, end);
        return ERR_OK;
    }
    /* Giving back a run of spaces one by one is a step for each: what is linear must pass for any length. */
    uint64_t steps = LIMIT_TOKENIZER_REGEX_STEPS + 4 * (uint64_t)(n - from);
    pcre2_set_match_limit(w->context, steps > UINT32_MAX ? UINT32_MAX : (uint32_t)steps);
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int k = r->jit ? pcre2_jit_match(r->code, subject, n, from, 0, w->data, w->context)
                   : PCRE2_ERROR_JIT_STACKLIMIT;
    if (k == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has no stack to run out of */
        k = pcre2_match(r->code, subject, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->data,
                        w->context);
    *found = k >= 0;
    if (k >= 0) {
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(w->data);
        *start = at[0];
        *end = at[1];
        return ERR_OK;
    }
    if (k == PCRE2_ERROR_NOMATCH) return ERR_OK;
    if (k == PCRE2_ERROR_NOMEMORY) return err_nomem(why, "regular expression");
    char message[160];
    pcre2_get_error_message(k, (PCRE2_UCHAR *)message, sizeof message);
    return err_set(why, ERR_INVALID, "the text cannot be split: %s at byte %zu of %zu", message,
                   from, n);
}

enum err_code regex_replace(const struct regex *r, struct regex_work *w, const char *text, size_t n,
                            const char *with, size_t with_n, struct buf *out, struct err *why)
{
    size_t done = 0, from = 0;
    while (from <= n) {
        bool found;
        size_t start, end;
        enum err_code rc = regex_find(r, w, text, n, from, &found, &start, &end, why);
        if (rc != ERR_OK) return rc;
        if (!found) break;
        buf_append(out, text + done, start - done);
        buf_append(out, with, with_n);
        done = end;
        uint32_t cp;
        from = end > start ? end : end + (end < n ? utf8_decode(text + end, n - end, &cp) : 1);
    }
    buf_append(out, text + done, n - done);
    return out->failed ? err_nomem(why, "text") : ERR_OK;
}
