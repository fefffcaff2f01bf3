#include "coordinator/text/normalizer.h"

#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/precompiled.h"
#include "coordinator/text/tok_json.h"
#include "coordinator/text/unicode.h"

enum kind { PREPEND, REPLACE, REPLACE_REGEX, FORM, STRIP, PRECOMPILED };

struct step {
    enum kind kind;
    char *from, *to; /* REPLACE: both; PREPEND and REPLACE_REGEX: `to` */
    size_t from_n, to_n;
    struct regex *regex;
    enum unicode_form form;
    bool left, right; /* STRIP */
    struct precompiled *precompiled;
};

struct normalizer {
    struct step steps[LIMIT_TOKENIZER_OPS];
    size_t n;
};

static enum err_code copy_string(const json_t *spec, const char *where, const char *key, char **out,
                                 size_t *n, struct err *why)
{
    const char *s;
    enum err_code rc = tok_json_string(spec, where, key, &s, n, why);
    if (rc != ERR_OK) return rc;
    *out = mem_strndup(s, *n);
    return *out == NULL ? err_nomem(why, where) : ERR_OK;
}

static enum err_code load_replace(const json_t *spec, struct step *s, struct err *why)
{
    static const char where[] = "normalizer Replace";
    json_t *pattern;
    enum err_code rc = tok_json_object(spec, where, "pattern", &pattern, why);
    if (rc == ERR_OK) rc = copy_string(spec, where, "content", &s->to, &s->to_n, why);
    if (rc != ERR_OK) return rc;
    if (json_object_get(pattern, "Regex") != NULL) {
        const char *text;
        size_t n;
        s->kind = REPLACE_REGEX;
        rc = tok_json_string(pattern, where, "Regex", &text, &n, why);
        return rc == ERR_OK ? regex_open(text, n, where, &s->regex, why) : rc;
    }
    s->kind = REPLACE;
    rc = copy_string(pattern, where, "String", &s->from, &s->from_n, why);
    if (rc == ERR_OK && s->from_n == 0)
        rc = err_set(why, ERR_CORRUPT, "%s: an empty pattern", where);
    return rc;
}

static enum err_code load(struct normalizer *z, const json_t *spec, struct err *why)
{
    const char *type;
    enum err_code rc = tok_json_type(spec, "normalizer", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "Sequence") == 0) { /* as deep as the JSON parser allows */
        json_t *list;
        rc = tok_json_array(spec, "normalizer Sequence", "normalizers", &list, why);
        for (size_t i = 0; rc == ERR_OK && i < json_array_size(list); i++)
            rc = load(z, json_array_get(list, i), why);
        return rc;
    }
    if (z->n == LIMIT_TOKENIZER_OPS)
        return err_set(why, ERR_TOO_LARGE, "normalizer: more than %u steps", LIMIT_TOKENIZER_OPS);
    struct step *s = &z->steps[z->n++];
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    for (unsigned f = 0; f < 4; f++)
        if (strcmp(type, forms[f]) == 0) {
            s->kind = FORM;
            s->form = (enum unicode_form)f;
            return ERR_OK;
        }
    if (strcmp(type, "Prepend") == 0) {
        s->kind = PREPEND;
        return copy_string(spec, "normalizer Prepend", "prepend", &s->to, &s->to_n, why);
    }
    if (strcmp(type, "Replace") == 0) return load_replace(spec, s, why);
    if (strcmp(type, "Strip") == 0) {
        s->kind = STRIP;
        rc = tok_json_bool(spec, "normalizer Strip", "strip_left", false, &s->left, why);
        return rc == ERR_OK
                   ? tok_json_bool(spec, "normalizer Strip", "strip_right", false, &s->right, why)
                   : rc;
    }
    if (strcmp(type, "Precompiled") == 0) {
        const char *table;
        size_t n;
        s->kind = PRECOMPILED;
        rc = tok_json_string(spec, "normalizer Precompiled", "precompiled_charsmap", &table, &n,
                             why);
        return rc == ERR_OK ? precompiled_open_base64(table, n, &s->precompiled, why) : rc;
    }
    return tok_json_refuse("normalizer", type, why);
}

enum err_code normalizer_open(const json_t *spec, struct normalizer **out, struct err *why)
{
    return normalizer_open_with_table(NULL, 0, spec, out, why);
}

enum err_code normalizer_open_with_table(const void *table, size_t n, const json_t *spec,
                                         struct normalizer **out, struct err *why)
{
    struct normalizer *z = mem_zalloc(sizeof *z);
    if (z == NULL) return err_nomem(why, "normalizer");
    enum err_code rc = ERR_OK;
    if (n > 0) {
        z->steps[z->n++].kind = PRECOMPILED;
        rc = precompiled_open(table, n, &z->steps[0].precompiled, why);
    }
    if (rc == ERR_OK && spec != NULL && !json_is_null(spec)) rc = load(z, spec, why);
    if (rc == ERR_OK)
        *out = z;
    else
        normalizer_close(z);
    return rc;
}

void normalizer_close(struct normalizer *z)
{
    if (z == NULL) return;
    for (size_t i = 0; i < z->n; i++) {
        mem_free(z->steps[i].from);
        mem_free(z->steps[i].to);
        regex_close(z->steps[i].regex);
        precompiled_close(z->steps[i].precompiled);
    }
    mem_free(z);
}

static void replace_all(const struct step *s, const char *text, size_t n, struct buf *out)
{
    const char *end = text + n;
    for (const char *hit; (hit = memmem(text, (size_t)(end - text), s->from, s->from_n)) != NULL;
         text = hit + s->from_n) {
        buf_append(out, text, (size_t)(hit - text));
        buf_append(out, s->to, s->to_n);
    }
    buf_append(out, text, (size_t)(end - text));
}

static void strip(const struct step *s, const char *text, size_t n, struct buf *out)
{
    size_t start = SIZE_MAX,
           end = 0; /* first and one past the last character that is not white space */
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode(text + i, n - i, &cp);
        if (!unicode_is_space(cp)) {
            if (start == SIZE_MAX) start = i;
            end = i + used;
        }
        i += used;
    }
    if (start == SIZE_MAX) start = n; /* all of it is: `end` is 0 */
    if (!s->left) start = 0;
    if (!s->right) end = n;
    if (end > start) buf_append(out, text + start, end - start);
}

enum err_code normalizer_run(const struct normalizer *z, struct regex_work *w, const char *text,
                             size_t n, struct buf *out, struct err *why)
{
    struct buf from = {.max_len = LIMIT_TOKENIZER_GROWN(n)};
    enum err_code rc = ERR_OK;
    out->max_len = from.max_len;
    buf_clear(out);
    buf_append(out, text, n);
    for (size_t i = 0; i < z->n && rc == ERR_OK; i++) {
        const struct step *s = &z->steps[i];
        struct buf swap = from;
        from = *out;
        *out = swap;
        if (from.failed) break;
        buf_clear(out);
        const char *in = from.data == NULL ? "" : from.data;
        switch (s->kind) {
        case PREPEND:
            if (from.len > 0) buf_append(out, s->to, s->to_n);
            buf_append(out, in, from.len);
            break;
        case REPLACE:
            replace_all(s, in, from.len, out);
            break;
        case REPLACE_REGEX:
            rc = regex_replace(s->regex, w, in, from.len, s->to, s->to_n, out, why);
            break;
        case FORM:
            unicode_normalize(s->form, in, from.len, out);
            break;
        case STRIP:
            strip(s, in, from.len, out);
            break;
        case PRECOMPILED:
            precompiled_run(s->precompiled, in, from.len, out);
            break;
        }
    }
    if ((rc == ERR_OK || rc == ERR_EXHAUSTED) && (out->outgrown || from.outgrown))
        rc = err_set(why, ERR_TOO_LARGE, "normalizer: %zu bytes become more than %zu", n,
                     from.max_len);
    if (rc == ERR_OK && (out->failed || from.failed)) rc = err_nomem(why, "text");
    buf_free(&from);
    return rc;
}
