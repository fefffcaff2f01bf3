/* Every component of the file becomes one to three simple steps: cut the pieces further (Split), or
 * rewrite the text of each piece. ByteLevel, for one, is "prefix a space", "cut", "show as bytes". */
#include "coordinator/text/pretokenizer.h"

#include <assert.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/grow.h"
#include "coordinator/text/tok_json.h"
#include "coordinator/text/unicode.h"

static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum kind { SPLIT_REGEX, SPLIT_STRING, SPLIT_CHARS, PREFIX_SPACE, BYTES, METASPACE };
enum behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };
enum scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct step {
    enum kind kind;
    enum behavior behavior;
    bool invert;
    struct regex *regex;
    char *string; /* SPLIT_STRING: the pattern; METASPACE: the replacement */
    size_t string_n;
    bool (*is_match)(uint32_t cp); /* SPLIT_CHARS */
    enum scheme scheme;
};

struct pretokenizer {
    struct step steps[LIMIT_TOKENIZER_OPS];
    size_t n;
};

/* ---- Loading ------------------------------------------------------------------------------------ */

static struct step *add(struct pretokenizer *p, enum kind kind)
{
    struct step *s = &p->steps[p->n++]; /* load() has made sure of the room */
    s->kind = kind;
    return s;
}

static enum err_code load_behavior(const json_t *spec, const char *where, struct step *s,
                                   struct err *why)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    size_t n;
    enum err_code rc = tok_json_string(spec, where, "behavior", &name, &n, why);
    if (rc != ERR_OK) return rc;
    for (unsigned i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) {
            s->behavior = (enum behavior)i;
            return ERR_OK;
        }
    return err_set(why, ERR_UNSUPPORTED, "%s: behavior '%.40s' is not supported", where, name);
}

static enum err_code load_split(struct pretokenizer *p, const json_t *spec, struct err *why)
{
    static const char where[] = "pre_tokenizer Split";
    struct step *s = add(p, SPLIT_STRING);
    json_t *pattern;
    const char *text;
    size_t n;
    enum err_code rc = load_behavior(spec, where, s, why);
    if (rc == ERR_OK) rc = tok_json_bool(spec, where, "invert", false, &s->invert, why);
    if (rc == ERR_OK) rc = tok_json_object(spec, where, "pattern", &pattern, why);
    if (rc != ERR_OK) return rc;
    if (json_object_get(pattern, "Regex") != NULL) {
        s->kind = SPLIT_REGEX;
        rc = tok_json_string(pattern, where, "Regex", &text, &n, why);
        return rc == ERR_OK ? regex_open(text, n, where, &s->regex, why) : rc;
    }
    rc = tok_json_string(pattern, where, "String", &text, &n, why);
    if (rc != ERR_OK) return rc;
    if (n == 0) return err_set(why, ERR_CORRUPT, "%s: an empty pattern", where);
    s->string_n = n;
    s->string = mem_strndup(text, n);
    return s->string == NULL ? err_nomem(why, where) : ERR_OK;
}

static enum err_code load_byte_level(struct pretokenizer *p, const json_t *spec, struct err *why)
{
    static const char where[] = "pre_tokenizer ByteLevel";
    bool prefix, cut;
    enum err_code rc = tok_json_bool(spec, where, "add_prefix_space", true, &prefix, why);
    if (rc == ERR_OK) rc = tok_json_bool(spec, where, "use_regex", true, &cut, why);
    if (rc != ERR_OK) return rc;
    if (prefix) add(p, PREFIX_SPACE);
    if (cut) {
        struct step *s = add(p, SPLIT_REGEX);
        s->behavior = ISOLATED;
        rc = regex_open(gpt2_pattern, sizeof gpt2_pattern - 1, where, &s->regex, why);
    }
    add(p, BYTES);
    return rc;
}

static enum err_code load_metaspace(struct pretokenizer *p, const json_t *spec, struct err *why)
{
    static const char where[] = "pre_tokenizer Metaspace";
    const char *text, *scheme = "always";
    size_t n, scheme_n;
    bool cut, prefix;
    struct step *s = add(p, METASPACE);
    enum err_code rc = tok_json_string(spec, where, "replacement", &text, &n, why);
    if (rc == ERR_OK) rc = tok_json_bool(spec, where, "split", true, &cut, why);
    if (rc == ERR_OK) rc = tok_json_bool(spec, where, "add_prefix_space", true, &prefix, why);
    if (rc == ERR_OK && !prefix) scheme = "never";
    if (rc == ERR_OK && json_object_get(spec, "prepend_scheme") != NULL)
        rc = tok_json_string(spec, where, "prepend_scheme", &scheme, &scheme_n, why);
    if (rc != ERR_OK) return rc;
    if (n == 0) return err_set(why, ERR_CORRUPT, "%s: an empty replacement", where);
    if (strcmp(scheme, "always") == 0)
        s->scheme = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        s->scheme = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        s->scheme = PREPEND_NEVER;
    else
        return err_set(why, ERR_UNSUPPORTED, "%s: prepend_scheme '%.40s' is not supported", where,
                       scheme);
    s->string_n = n;
    s->string = mem_strndup(text, n);
    if (s->string == NULL) return err_nomem(why, where);
    if (cut) {
        struct step *split = add(p, SPLIT_STRING);
        split->behavior = MERGED_WITH_NEXT;
        split->string_n = n;
        split->string = mem_strndup(text, n);
        if (split->string == NULL) return err_nomem(why, where);
    }
    return ERR_OK;
}

static enum err_code load(struct pretokenizer *p, const json_t *spec, struct err *why)
{
    const char *type;
    enum err_code rc = tok_json_type(spec, "pre_tokenizer", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "Sequence") == 0) { /* as deep as the JSON parser allows */
        json_t *list;
        rc = tok_json_array(spec, "pre_tokenizer Sequence", "pretokenizers", &list, why);
        for (size_t i = 0; rc == ERR_OK && i < json_array_size(list); i++)
            rc = load(p, json_array_get(list, i), why);
        return rc;
    }
    if (p->n + 3 > LIMIT_TOKENIZER_OPS)
        return err_set(why, ERR_TOO_LARGE, "pre_tokenizer: more than %u steps",
                       LIMIT_TOKENIZER_OPS);
    if (strcmp(type, "Split") == 0) return load_split(p, spec, why);
    if (strcmp(type, "ByteLevel") == 0) return load_byte_level(p, spec, why);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(p, spec, why);
    if (strcmp(type, "Digits") == 0) {
        struct step *s = add(p, SPLIT_CHARS);
        bool single = false;
        s->is_match = unicode_is_numeric;
        rc = tok_json_bool(spec, "pre_tokenizer Digits", "individual_digits", false, &single, why);
        s->behavior = single ? ISOLATED : CONTIGUOUS;
        return rc;
    }
    if (strcmp(type, "Punctuation") == 0) {
        struct step *s = add(p, SPLIT_CHARS);
        s->is_match = unicode_is_punctuation;
        if (json_object_get(spec, "behavior") == NULL) return ERR_OK; /* ISOLATED */
        return load_behavior(spec, "pre_tokenizer Punctuation", s, why);
    }
    if (strcmp(type, "WhitespaceSplit") == 0) {
        struct step *s = add(p, SPLIT_CHARS);
        s->is_match = unicode_is_space;
        s->behavior = REMOVED;
        return ERR_OK;
    }
    return tok_json_refuse("pre_tokenizer", type, why);
}

enum err_code pretokenizer_open(const json_t *spec, struct pretokenizer **out, struct err *why)
{
    struct pretokenizer *p = mem_zalloc(sizeof *p);
    if (p == NULL) return err_nomem(why, "pre_tokenizer");
    enum err_code rc = spec == NULL || json_is_null(spec) ? ERR_OK : load(p, spec, why);
    if (rc == ERR_OK)
        *out = p;
    else
        pretokenizer_close(p);
    return rc;
}

enum err_code pretokenizer_open_bytes(const char *const *regexes, struct pretokenizer **out,
                                      struct err *why)
{
    struct pretokenizer *p = mem_zalloc(sizeof *p);
    if (p == NULL) return err_nomem(why, "pre_tokenizer");
    enum err_code rc = ERR_OK;
    for (; *regexes != NULL && rc == ERR_OK; regexes++) {
        struct step *s = add(p, SPLIT_REGEX);
        assert(p->n < LIMIT_TOKENIZER_OPS); /* the lists are our own */
        s->behavior = ISOLATED;
        rc = regex_open(*regexes, strlen(*regexes), "pre_tokenizer", &s->regex, why);
    }
    add(p, BYTES);
    if (rc == ERR_OK)
        *out = p;
    else
        pretokenizer_close(p);
    return rc;
}

void pretokenizer_close(struct pretokenizer *p)
{
    if (p == NULL) return;
    for (size_t i = 0; i < p->n; i++) {
        regex_close(p->steps[i].regex);
        mem_free(p->steps[i].string);
    }
    mem_free(p);
}

/* ---- Cutting ------------------------------------------------------------------------------------ */

void pieces_deinit(struct pieces *s)
{
    buf_free(&s->text);
    buf_free(&s->spare_text);
    mem_free(s->spans);
    mem_free(s->spare);
    *s = (struct pieces){0};
}

static bool put_span(struct pieces *s, size_t off, size_t len)
{
    if (len == 0) return true;
    if (!grow((void **)&s->spare, &s->spare_cap, s->spare_n + 1, sizeof *s->spare)) return false;
    s->spare[s->spare_n++] = (struct span){off, len};
    return true;
}

/* The parts of one piece, alternately gaps and matches, come in order; the behavior says what joins. */
struct cutter {
    struct pieces *pieces;
    const struct step *step;
    size_t first;   /* index of this piece's first span */
    bool was_match; /* the part before */
};

static bool put_part(struct cutter *c, size_t off, size_t end, bool match)
{
    struct pieces *s = c->pieces;
    match ^= c->step->invert;
    bool join = false, had = s->spare_n > c->first, was = c->was_match;
    switch (c->step->behavior) {
    case ISOLATED:
        break;
    case REMOVED:
        if (match) return true;
        break;
    case CONTIGUOUS:
        join = had && match == was;
        break;
    case MERGED_WITH_PREVIOUS:
        join = had && match && !was;
        break;
    case MERGED_WITH_NEXT:
        join = had && !match && was;
        break;
    }
    c->was_match = match;
    if (!join) return put_span(s, off, end - off);
    struct span *last = &s->spare[s->spare_n - 1];
    last->len = end - last->off;
    return true;
}

static enum err_code find_in_piece(const struct step *s, struct regex_work *w, const char *text,
                                   size_t n, size_t from, bool *found, size_t *start, size_t *end,
                                   struct err *why)
{
    if (s->kind == SPLIT_REGEX)
        return regex_find(s->regex, w, text, n, from, found, start, end, why);
    *found = false;
    if (s->kind == SPLIT_STRING) {
        const char *hit = memmem(text + from, n - from, s->string, s->string_n);
        if (hit == NULL) return ERR_OK;
        *found = true;
        *start = (size_t)(hit - text);
        *end = *start + s->string_n;
        return ERR_OK;
    }
    for (size_t i = from; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode(text + i, n - i, &cp);
        if (s->is_match(cp)) {
            *found = true;
            *start = i;
            *end = i + used;
            return ERR_OK;
        }
        i += used;
    }
    return ERR_OK;
}

static enum err_code cut(const struct step *s, struct regex_work *w, struct pieces *p,
                         struct err *why)
{
    p->spare_n = 0;
    for (size_t i = 0; i < p->n; i++) {
        size_t off = p->spans[i].off, n = p->spans[i].len, done = 0, from = 0;
        const char *text = p->text.data + off;
        struct cutter c = {p, s, p->spare_n, false};
        while (from <= n) {
            bool found;
            size_t start, end;
            enum err_code rc = find_in_piece(s, w, text, n, from, &found, &start, &end, why);
            if (rc != ERR_OK) return rc;
            if (!found) break;
            if (start > done && !put_part(&c, off + done, off + start, false))
                return err_nomem(why, "pieces");
            if (end > start && !put_part(&c, off + start, off + end, true))
                return err_nomem(why, "pieces");
            done = end;
            uint32_t cp; /* an empty match: look again one character on */
            from = end > start ? end : end + (end < n ? utf8_decode(text + end, n - end, &cp) : 1);
        }
        if (done < n && !put_part(&c, off + done, off + n, false)) return err_nomem(why, "pieces");
    }
    return ERR_OK;
}

/* ---- Rewriting ---------------------------------------------------------------------------------- */

static void put_metaspace(const struct step *s, const char *text, size_t n, bool first,
                          struct buf *out)
{
    bool has = n > 0 &&
               (text[0] == ' ' || (n >= s->string_n && memcmp(text, s->string, s->string_n) == 0));
    if (!has && (s->scheme == PREPEND_ALWAYS || (s->scheme == PREPEND_FIRST && first)))
        buf_append(out, s->string, s->string_n);
    for (const char *end = text + n; text < end;) {
        const char *space = memchr(text, ' ', (size_t)(end - text));
        const char *stop = space == NULL ? end : space;
        buf_append(out, text, (size_t)(stop - text));
        if (space != NULL) buf_append(out, s->string, s->string_n);
        text = space == NULL ? end : space + 1;
    }
}

static enum err_code rewrite(const struct step *s, struct pieces *p, bool at_start, struct err *why)
{
    struct buf *out = &p->spare_text;
    p->spare_n = 0;
    buf_clear(out);
    for (size_t i = 0; i < p->n; i++) {
        size_t n = p->spans[i].len, off = out->len;
        const char *text = p->text.data + p->spans[i].off;
        if (s->kind == METASPACE) {
            put_metaspace(s, text, n, at_start && p->spans[i].off == 0, out);
        } else if (s->kind == PREFIX_SPACE) {
            if (text[0] != ' ') buf_putc(out, ' ');
            buf_append(out, text, n);
        } else {
            for (size_t k = 0; k < n; k++) {
                uint32_t cp = byte_level_char((uint8_t)text[k]);
                if (cp < 0x80)
                    buf_putc(out, (char)cp);
                else
                    buf_put_utf8(out, cp);
            }
        }
        if (out->outgrown)
            return err_set(why, ERR_TOO_LARGE,
                           "pre_tokenizer: a text becomes longer than %zu bytes", out->max_len);
        if (out->failed || !put_span(p, off, out->len - off)) return err_nomem(why, "pieces");
    }
    struct buf text = p->text;
    p->text = p->spare_text;
    p->spare_text = text;
    return ERR_OK;
}

enum err_code pretokenizer_run(const struct pretokenizer *p, struct regex_work *w, const char *text,
                               size_t n, bool at_start, struct pieces *out, struct err *why)
{
    out->text.max_len = out->spare_text.max_len = LIMIT_TOKENIZER_GROWN(n);
    buf_clear(&out->text);
    buf_append(&out->text, text, n);
    out->n = out->spare_n = 0;
    if (out->text.failed || !put_span(out, 0, n)) return err_nomem(why, "pieces");
    for (size_t i = 0;; i++) {
        struct span *spans = out->spans; /* the result of the step before becomes the input */
        size_t cap = out->cap;
        out->spans = out->spare;
        out->n = out->spare_n;
        out->cap = out->spare_cap;
        out->spare = spans;
        out->spare_cap = cap;
        if (i == p->n) return ERR_OK;
        const struct step *s = &p->steps[i];
        enum err_code rc =
            s->kind <= SPLIT_CHARS ? cut(s, w, out, why) : rewrite(s, out, at_start, why);
        if (rc != ERR_OK) return rc;
    }
}
