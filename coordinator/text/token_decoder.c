#include "coordinator/text/token_decoder.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/tok_json.h"

enum kind { REPLACE, BYTE_FALLBACK, STRIP, BYTE_LEVEL, METASPACE };

struct loading {
    struct token_decoder *d;
    bool fused; /* from here on the steps see the whole text */
};

static enum err_code copy_string(const json_t *spec, const char *where, const char *key, char **out,
                                 size_t *n, struct err *why)
{
    const char *s;
    enum err_code rc = tok_json_string(spec, where, key, &s, n, why);
    if (rc != ERR_OK) return rc;
    if (*n == 0 && strcmp(key, "content") != 0)
        return err_set(why, ERR_CORRUPT, "%s: '%s' is empty", where, key);
    *out = mem_strndup(s, *n);
    return *out == NULL ? err_nomem(why, where) : ERR_OK;
}

static enum err_code load_replace(struct token_decoder_step *s, const json_t *spec, struct err *why)
{
    static const char where[] = "decoder Replace";
    json_t *pattern;
    s->kind = REPLACE;
    enum err_code rc = tok_json_object(spec, where, "pattern", &pattern, why);
    if (rc == ERR_OK && json_object_get(pattern, "Regex") != NULL)
        return tok_json_refuse(where, "Regex", why);
    if (rc == ERR_OK) rc = copy_string(pattern, where, "String", &s->from, &s->from_n, why);
    return rc == ERR_OK ? copy_string(spec, where, "content", &s->to, &s->to_n, why) : rc;
}

static enum err_code load_strip(struct loading *l, const json_t *spec, struct err *why)
{
    static const char where[] = "decoder Strip";
    struct token_decoder *d = l->d;
    struct token_decoder_step *s = &d->steps[d->n];
    int start, stop;
    enum err_code rc = copy_string(spec, where, "content", &s->from, &s->from_n, why);
    d->n++; /* so that deinit frees the string */
    s->kind = STRIP;
    if (rc == ERR_OK)
        rc = tok_json_id(json_object_get(spec, "start"), "decoder Strip start", 1 << 20, &start,
                         why);
    if (rc == ERR_OK)
        rc = tok_json_id(json_object_get(spec, "stop"), "decoder Strip stop", 1 << 20, &stop, why);
    if (rc != ERR_OK) return rc;
    if (s->from_n != 1)
        return err_set(why, ERR_UNSUPPORTED, "%s: 'content' is not one ASCII character", where);
    s->start = (size_t)start;
    s->stop = (size_t)stop;
    if (!l->fused) return ERR_OK;
    if (stop > 0 || d->strip_left > 0)
        return err_set(why, ERR_UNSUPPORTED,
                       "%s: stripping the end of a text, or twice, is not supported", where);
    d->strip = s->from[0];
    d->strip_left = s->start;
    s->start = 0; /* the step itself has nothing left to do for a token */
    return ERR_OK;
}

static enum err_code load(struct loading *l, const json_t *spec, struct err *why)
{
    struct token_decoder *d = l->d;
    const char *type;
    enum err_code rc = tok_json_type(spec, "decoder", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "Sequence") == 0) { /* as deep as the JSON parser allows */
        json_t *list;
        rc = tok_json_array(spec, "decoder Sequence", "decoders", &list, why);
        for (size_t i = 0; rc == ERR_OK && i < json_array_size(list); i++)
            rc = load(l, json_array_get(list, i), why);
        return rc;
    }
    if (d->n == LIMIT_TOKENIZER_OPS)
        return err_set(why, ERR_TOO_LARGE, "decoder: more than %u steps", LIMIT_TOKENIZER_OPS);
    if (strcmp(type, "Fuse") == 0) {
        l->fused = true;
        return ERR_OK;
    }
    if (strcmp(type, "Strip") == 0) return load_strip(l, spec, why);
    if (l->fused)
        return err_set(why, ERR_UNSUPPORTED,
                       "decoder: '%.40s' after the tokens are fused is not supported", type);
    struct token_decoder_step *s = &d->steps[d->n++];
    if (strcmp(type, "Replace") == 0) return load_replace(s, spec, why);
    if (strcmp(type, "ByteFallback") == 0) {
        s->kind = BYTE_FALLBACK;
        return ERR_OK;
    }
    if (strcmp(type, "ByteLevel") == 0) {
        s->kind = BYTE_LEVEL;
        l->fused = true;
        return ERR_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        static const char where[] = "decoder Metaspace";
        bool prefix;
        s->kind = METASPACE;
        rc = copy_string(spec, where, "replacement", &s->from, &s->from_n, why);
        if (rc == ERR_OK) rc = tok_json_bool(spec, where, "add_prefix_space", true, &prefix, why);
        if (rc != ERR_OK) return rc;
        const json_t *scheme = json_object_get(spec, "prepend_scheme");
        if (json_is_string(scheme)) prefix = strcmp(json_string_value(scheme), "never") != 0;
        d->first_differs |= prefix;
        return ERR_OK;
    }
    return tok_json_refuse("decoder", type, why);
}

enum err_code token_decoder_init(struct token_decoder *d, const json_t *spec, struct err *why)
{
    *d = (struct token_decoder){0};
    struct loading l = {d, false};
    enum err_code rc = spec == NULL || json_is_null(spec) ? tok_json_refuse("decoder", "null", why)
                                                          : load(&l, spec, why);
    if (rc != ERR_OK) token_decoder_deinit(d);
    return rc;
}

void token_decoder_deinit(struct token_decoder *d)
{
    for (size_t i = 0; i < d->n; i++) {
        mem_free(d->steps[i].from);
        mem_free(d->steps[i].to);
    }
    *d = (struct token_decoder){0};
}

/* ---- One token ---------------------------------------------------------------------------------- */

static void put_replaced(const char *text, size_t n, const char *from, size_t from_n,
                         const char *to, size_t to_n, struct buf *out)
{
    const char *end = text + n;
    for (const char *hit; (hit = memmem(text, (size_t)(end - text), from, from_n)) != NULL;
         text = hit + from_n) {
        buf_append(out, text, (size_t)(hit - text));
        buf_append(out, to, to_n);
    }
    buf_append(out, text, (size_t)(end - text));
}

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void put_byte_fallback(const char *t, size_t n, struct buf *out)
{
    if (n == 6 && memcmp(t, "<0x", 3) == 0 && t[5] == '>' && hex(t[3]) >= 0 && hex(t[4]) >= 0)
        buf_putc(out, (char)(hex(t[3]) << 4 | hex(t[4])));
    else
        buf_append(out, t, n);
}

/* A token with any character outside the table (an added one, say) is literal. */
static void put_byte_level(const char *t, size_t n, struct buf *out)
{
    size_t mark = out->len;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode(t + i, n - i, &cp);
        int byte = byte_level_byte(cp);
        if (byte < 0) {
            if (!out->failed) out->len = mark;
            buf_append(out, t, n);
            return;
        }
        buf_putc(out, (char)byte);
    }
}

static void put_stripped(const struct token_decoder_step *s, const char *t, size_t n,
                         struct buf *out)
{
    size_t start = 0, end = n;
    while (start < end && start < s->start && t[start] == s->from[0])
        start++;
    while (end > start && n - end < s->stop && t[end - 1] == s->from[0])
        end--;
    buf_append(out, t + start, end - start);
}

void token_decoder_put(const struct token_decoder *d, const char *text, size_t n, bool first,
                       struct buf *out)
{
    struct buf in = {.max_len = LIMIT_TOKENIZER_GROWN(n)}, next = {.max_len = in.max_len};
    buf_append(&in, text, n);
    for (size_t i = 0; i < d->n && !in.failed; i++) {
        const struct token_decoder_step *s = &d->steps[i];
        buf_clear(&next);
        switch ((enum kind)s->kind) {
        case REPLACE:
            put_replaced(in.data, in.len, s->from, s->from_n, s->to, s->to_n, &next);
            break;
        case BYTE_FALLBACK:
            put_byte_fallback(in.data, in.len, &next);
            break;
        case STRIP:
            put_stripped(s, in.data, in.len, &next);
            break;
        case BYTE_LEVEL:
            put_byte_level(in.data, in.len, &next);
            break;
        case METASPACE:
            put_replaced(in.data, in.len, s->from, s->from_n, " ",
                         first && d->first_differs ? 0 : 1, &next);
            break;
        }
        struct buf swap = in;
        in = next;
        next = swap;
    }
    if (in.failed || next.failed) {
        out->failed = true;
        out->outgrown |= in.outgrown || next.outgrown;
    } else {
        buf_append(out, in.data, in.len);
    }
    buf_free(&in);
    buf_free(&next);
}
