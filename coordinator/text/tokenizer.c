#include "coordinator/text/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tok_json.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/unicode.h"
#include "coordinator/text/vocab.h"

struct tokenizer {
    struct vocab vocab;
    struct bpe *bpe;
    struct normalizer *normalizer;
    struct pretokenizer *pretokenizer;
    struct post_processor post;
    struct token_decoder decoder;
    struct added_tokens raw;        /* "normalized": false, looked for before normalizing */
    struct added_tokens normalized; /* looked for after; their texts are normalized */
    struct buf bytes;               /* what each token decodes to, one after the other */
    uint32_t *bytes_off;            /* [n_ids + 1] */
    int32_t bos, eos;               /* -1: none */
    bool add_bos, add_eos;
};

/* ---- Loading ------------------------------------------------------------------------------------ */

/* Highest id + 1 over the vocabulary and the added tokens. */
static enum err_code count_ids(json_t *vocab, const json_t *added, uint32_t *n_ids, struct err *why)
{
    int top = -1, id;
    const char *text;
    json_t *value;
    json_object_foreach(vocab, text, value)
    {
        enum err_code rc = tok_json_id(value, "model.vocab: an id", LIMIT_VOCAB - 1, &id, why);
        if (rc != ERR_OK) return err_wrap(why, rc, "token '%.40s'", text);
        if (id > top) top = id;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *entry = json_array_get(added, i);
        enum err_code rc =
            tok_json_id(json_object_get(entry, "id"), "'id'", LIMIT_VOCAB - 1, &id, why);
        if (rc != ERR_OK) return err_wrap(why, rc, "added_tokens[%zu]", i);
        if (id > top) top = id;
    }
    *n_ids = (uint32_t)(top + 1);
    return top < 0 ? err_set(why, ERR_CORRUPT, "model.vocab is empty") : ERR_OK;
}

static enum err_code load_model(struct tokenizer *t, const json_t *root, const json_t *added,
                                struct err *why)
{
    const char *type;
    json_t *model, *vocab;
    uint32_t n_ids = 0;
    enum err_code rc = tok_json_object(root, "tokenizer.json", "model", &model, why);
    if (rc == ERR_OK) rc = tok_json_type(model, "model", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "BPE") != 0) return tok_json_refuse("model", type, why);
    rc = tok_json_object(model, "model", "vocab", &vocab, why);
    if (rc == ERR_OK) rc = count_ids(vocab, added, &n_ids, why);
    if (rc == ERR_OK) rc = vocab_init(&t->vocab, n_ids, why);
    if (rc != ERR_OK) return rc;
    const char *text;
    size_t n;
    json_t *value;
    json_object_keylen_foreach(vocab, text, n, value)
    {
        rc = vocab_add(&t->vocab, (uint32_t)json_integer_value(value), text, n, VOCAB_MODEL, why);
        if (rc != ERR_OK) return rc;
    }
    return bpe_open(model, &t->vocab, &t->bpe, why);
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode(s + i, n - i, &cp);
        if (!unicode_is_space(cp)) return false;
    }
    return true;
}

static enum err_code load_added_token(struct tokenizer *t, const json_t *entry, const char *where,
                                      struct regex_work *w, struct err *why)
{
    struct added_token token = {.id = (int32_t)json_integer_value(json_object_get(entry, "id"))};
    bool normalized, special;
    const char *text;
    size_t n;
    enum err_code rc = tok_json_string(entry, where, "content", &text, &n, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(entry, where, "single_word", false, &token.single_word, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "lstrip", false, &token.lstrip, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "rstrip", false, &token.rstrip, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "special", false, &special, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "normalized", !special, &normalized, why);
    if (rc != ERR_OK) return rc;
    if (n > LIMIT_ADDED_TOKEN_BYTES)
        return err_set(why, ERR_TOO_LARGE, "%s: %zu bytes, at most %u", where, n,
                       LIMIT_ADDED_TOKEN_BYTES);
    token.control = special || !is_blank(text, n);
    unsigned flags =
        VOCAB_ADDED | (special ? VOCAB_SPECIAL : 0u) | (token.control ? VOCAB_CONTROL : 0u);
    rc = vocab_add(&t->vocab, (uint32_t)token.id, text, n, flags, why);
    if (rc != ERR_OK) return err_wrap(why, rc, "%s", where);
    if (!normalized) return added_tokens_add(&t->raw, &token, text, n, why);
    struct buf form = {0};
    rc = normalizer_run(t->normalizer, w, text, n, &form, why);
    if (rc == ERR_OK) rc = added_tokens_add(&t->normalized, &token, form.data, form.len, why);
    buf_free(&form);
    return rc;
}

static enum err_code load_added(struct tokenizer *t, const json_t *added, struct err *why)
{
    struct regex_work *w;
    enum err_code rc = regex_work_open(&w, why);
    if (rc != ERR_OK) return rc;
    for (size_t i = 0; rc == ERR_OK && i < json_array_size(added); i++) {
        char where[40];
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        rc = load_added_token(t, json_array_get(added, i), where, w, why);
    }
    regex_work_close(w);
    return rc;
}

/* Decode every token once, so that decoding later is copying. */
static enum err_code make_bytes(struct tokenizer *t, struct err *why)
{
    uint32_t n_ids = t->vocab.n_ids;
    t->bytes_off = mem_zalloc_array((size_t)n_ids + 1, sizeof *t->bytes_off);
    if (t->bytes_off == NULL) return err_nomem(why, "decoder");
    for (uint32_t id = 0; id < n_ids; id++) {
        size_t n = 0;
        const char *text = vocab_text(&t->vocab, (int32_t)id, &n);
        if (text != NULL) token_decoder_put(&t->decoder, text, n, false, &t->bytes);
        if (t->bytes.outgrown)
            return err_set(why, ERR_TOO_LARGE,
                           "decoder: token %u of %zu bytes becomes more than %zu", id, n,
                           LIMIT_TOKENIZER_GROWN(n));
        if (t->bytes.failed) return err_nomem(why, "decoder");
        if (t->bytes.len > UINT32_MAX)
            return err_set(why, ERR_TOO_LARGE, "decoder: the tokens' bytes exceed %u", UINT32_MAX);
        t->bytes_off[id + 1] = (uint32_t)t->bytes.len;
    }
    buf_append(&t->bytes, "", 0); /* so that even no bytes at all have an address */
    return t->bytes.failed ? err_nomem(why, "decoder") : ERR_OK;
}

/* The id of a bos_token or eos_token: a string, or an object with "content"; null and unknown are -1. */
static enum err_code config_token(const struct tokenizer *t, const json_t *config, const char *key,
                                  int32_t *id, struct err *why)
{
    const json_t *v = json_object_get(config, key);
    *id = -1;
    if (v == NULL || json_is_null(v)) return ERR_OK;
    if (json_is_object(v)) v = json_object_get(v, "content");
    if (!json_is_string(v))
        return err_set(why, ERR_CORRUPT, "'%s' is neither a string nor an added token", key);
    *id = vocab_find(&t->vocab, json_string_value(v), json_string_length(v));
    return ERR_OK;
}

static enum err_code load_config(struct tokenizer *t, const char *dir, struct err *why)
{
    struct buf path = {0};
    json_t *config = NULL;
    t->bos = t->eos = -1;
    buf_printf(&path, "%s/tokenizer_config.json", dir);
    if (path.failed) {
        buf_free(&path);
        return err_nomem(why, "path");
    }
    enum err_code rc =
        json_parse_file(path.data, LIMIT_CONFIG_JSON_BYTES, LIMIT_FILE_JSON_DEPTH, &config, why);
    if (rc == ERR_NOT_FOUND) {
        buf_free(&path);
        return ERR_OK;
    }
    if (rc == ERR_OK && !json_is_object(config)) rc = err_set(why, ERR_CORRUPT, "not an object");
    if (rc == ERR_OK) rc = config_token(t, config, "bos_token", &t->bos, why);
    if (rc == ERR_OK) rc = config_token(t, config, "eos_token", &t->eos, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(config, "config", "add_bos_token", false, &t->add_bos, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(config, "config", "add_eos_token", false, &t->add_eos, why);
    if (rc != ERR_OK && config != NULL) err_wrap(why, rc, "%s", path.data);
    json_decref(config);
    buf_free(&path);
    return rc;
}

static enum err_code load(struct tokenizer *t, const json_t *root, struct err *why)
{
    if (!json_is_object(root)) return err_set(why, ERR_CORRUPT, "not an object");
    const json_t *added = json_object_get(root, "added_tokens");
    if (added != NULL && !json_is_null(added) && !json_is_array(added))
        return err_set(why, ERR_CORRUPT, "'added_tokens' is not an array");
    enum err_code rc = normalizer_open(json_object_get(root, "normalizer"), &t->normalizer, why);
    if (rc == ERR_OK)
        rc = pretokenizer_open(json_object_get(root, "pre_tokenizer"), &t->pretokenizer, why);
    if (rc == ERR_OK) rc = token_decoder_init(&t->decoder, json_object_get(root, "decoder"), why);
    if (rc == ERR_OK) rc = load_model(t, root, added, why);
    if (rc == ERR_OK) rc = load_added(t, added, why);
    if (rc == ERR_OK)
        rc = post_processor_init(&t->post, json_object_get(root, "post_processor"), &t->vocab, why);
    if (rc == ERR_OK) rc = make_bytes(t, why);
    return rc;
}

enum err_code tokenizer_open(const char *dir, struct tokenizer **out, struct err *why)
{
    struct buf path = {0};
    json_t *root = NULL;
    struct tokenizer *t = mem_zalloc(sizeof *t);
    buf_printf(&path, "%s/tokenizer.json", dir);
    enum err_code rc = t == NULL || path.failed ? err_nomem(why, "tokenizer") : ERR_OK;
    if (rc == ERR_OK)
        rc = json_parse_file(path.data, LIMIT_TOKENIZER_JSON_BYTES, LIMIT_FILE_JSON_DEPTH, &root,
                             why);
    if (rc == ERR_OK) {
        rc = load(t, root, why);
        if (rc != ERR_OK) err_wrap(why, rc, "%s", path.data);
    }
    json_decref(root);
    buf_free(&path);
    if (rc == ERR_OK) rc = load_config(t, dir, why);
    if (rc == ERR_OK)
        *out = t;
    else
        tokenizer_close(t);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL) return;
    bpe_close(t->bpe);
    vocab_deinit(&t->vocab);
    normalizer_close(t->normalizer);
    pretokenizer_close(t->pretokenizer);
    post_processor_deinit(&t->post);
    token_decoder_deinit(&t->decoder);
    added_tokens_deinit(&t->raw);
    added_tokens_deinit(&t->normalized);
    buf_free(&t->bytes);
    mem_free(t->bytes_off);
    mem_free(t);
}

/* ---- Encoding ----------------------------------------------------------------------------------- */

/* What one call needs besides the tokenizer. */
struct encoder {
    const struct tokenizer *t;
    struct regex_work *regex;
    struct pieces pieces;
    struct bpe_work bpe;
    struct buf form; /* the segment, normalized */
    bool no_control;
    struct ids *out;
};

static enum err_code encode_plain(struct encoder *e, const char *text, size_t n, bool at_start,
                                  struct err *why)
{
    struct pieces *p = &e->pieces;
    enum err_code rc = pretokenizer_run(e->t->pretokenizer, e->regex, text, n, at_start, p, why);
    for (size_t i = 0; i < p->n && rc == ERR_OK; i++)
        rc = bpe_encode(e->t->bpe, &e->bpe, p->text.data + p->spans[i].off, p->spans[i].len,
                        e->no_control, e->out, why);
    return rc;
}

/* Alternate between added tokens and what lies between them, which goes to `rest`. */
static enum err_code encode_around(struct encoder *e, const struct added_tokens *tokens,
                                   const char *text, size_t n, bool at_start,
                                   enum err_code (*rest)(struct encoder *, const char *, size_t,
                                                         bool, struct err *),
                                   struct err *why)
{
    struct added_match m;
    size_t done = 0, from = 0;
    enum err_code rc = ERR_OK;
    while (rc == ERR_OK && added_tokens_find(tokens, text, n, from, done, e->no_control, &m)) {
        if (m.start > done) rc = rest(e, text + done, m.start - done, at_start && done == 0, why);
        if (rc == ERR_OK && !ids_push(e->out, m.token->id)) rc = err_nomem(why, "ids");
        done = m.end;
        from = m.resume;
    }
    if (rc == ERR_OK && done < n) rc = rest(e, text + done, n - done, at_start && done == 0, why);
    return rc;
}

static enum err_code encode_raw(struct encoder *e, const char *text, size_t n, bool at_start,
                                struct err *why)
{
    enum err_code rc = normalizer_run(e->t->normalizer, e->regex, text, n, &e->form, why);
    if (rc != ERR_OK) return rc;
    return encode_around(e, &e->t->normalized, e->form.data, e->form.len, at_start, encode_plain,
                         why);
}

static enum err_code add_around(const struct tokenizer *t, enum tokenizer_add add, struct ids *out,
                                struct err *why)
{
    if (add == TOKENIZER_ADD_NONE) return ERR_OK;
    struct ids all = {0};
    const struct ids *prefix = &t->post.prefix, *suffix = &t->post.suffix;
    bool config = add == TOKENIZER_ADD_CONFIG;
    int32_t first = prefix->len > 0 ? prefix->data[0] : out->len > 0 ? out->data[0] : -1;
    bool ok = true;
    if (config && t->add_bos && t->bos >= 0 && first != t->bos) ok = ids_push(&all, t->bos);
    ok = ok && ids_append(&all, prefix->data, prefix->len) &&
         ids_append(&all, out->data, out->len) && ids_append(&all, suffix->data, suffix->len);
    int32_t last = all.len > 0 ? all.data[all.len - 1] : -1;
    if (ok && config && t->add_eos && t->eos >= 0 && last != t->eos) ok = ids_push(&all, t->eos);
    if (!ok) {
        ids_free(&all);
        return err_nomem(why, "ids");
    }
    ids_free(out);
    *out = all;
    return ERR_OK;
}

/* Valid UTF-8 for `text`: itself, or a copy in `copy` with each maximal invalid part replaced. */
static const char *make_valid(const char *text, size_t *n, struct buf *copy)
{
    if (utf8_valid(text, *n)) return text;
    for (size_t i = 0; i < *n;) {
        uint32_t cp;
        i += utf8_decode(text + i, *n - i, &cp);
        buf_put_utf8(copy, cp);
    }
    *n = copy->len;
    return copy->failed ? NULL : copy->data;
}

enum err_code tokenizer_encode(const struct tokenizer *t, const char *text, size_t n,
                               enum tokenizer_add add, enum tokenizer_special special,
                               struct ids *out, struct err *why)
{
    struct buf copy = {0};
    struct encoder e = {.t = t, .no_control = special == TOKENIZER_NO_SPECIAL, .out = out};
    out->len = 0;
    enum err_code rc = ERR_OK;
    if (n > LIMIT_ENCODE_BYTES)
        rc = err_set(why, ERR_TOO_LARGE, "a text of %zu bytes, at most %u", n, LIMIT_ENCODE_BYTES);
    if (rc == ERR_OK && (text = make_valid(text, &n, &copy)) == NULL) rc = err_nomem(why, "text");
    if (rc == ERR_OK) rc = regex_work_open(&e.regex, why);
    if (rc == ERR_OK) rc = encode_around(&e, &t->raw, text, n, true, encode_raw, why);
    if (rc == ERR_OK) rc = add_around(t, add, out, why);
    regex_work_close(e.regex);
    pieces_deinit(&e.pieces);
    bpe_work_deinit(&e.bpe);
    buf_free(&e.form);
    buf_free(&copy);
    if (rc != ERR_OK) ids_free(out);
    return rc;
}

/* ---- Decoding and the rest ---------------------------------------------------------------------- */

enum err_code tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                               bool skip_special, struct buf *out, struct err *why)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0)
            return err_set(why, ERR_INVALID, "id %zu of %zu is negative (%d)", i, n, ids[i]);
    struct text_stream s;
    text_stream_init(&s, t, skip_special);
    for (size_t i = 0; i < n; i++)
        text_stream_push(&s, ids[i], out);
    text_stream_flush(&s, out);
    return out->failed ? err_nomem(why, "text") : ERR_OK;
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n)
{
    if (vocab_flags(&t->vocab, id) == 0) return NULL;
    *n = t->bytes_off[id + 1] - t->bytes_off[id];
    return t->bytes.data + t->bytes_off[id];
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab.n_ids;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return vocab_flags(&t->vocab, id) & VOCAB_SPECIAL;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n)
{
    return vocab_find(&t->vocab, text, n);
}

size_t tokenizer_strip_left(const struct tokenizer *t, char *which)
{
    *which = t->decoder.strip;
    return t->decoder.strip_left;
}

bool tokenizer_first_bytes(const struct tokenizer *t, int32_t id, struct buf *out)
{
    size_t n;
    if (!t->decoder.first_differs) return false;
    const char *text = vocab_text(&t->vocab, id, &n);
    if (text == NULL) return false;
    token_decoder_put(&t->decoder, text, n, true, out);
    return true;
}
