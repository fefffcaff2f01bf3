#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tokenizer_internal.h"
#include "coordinator/text/unicode.h"

/* ---- For the loaders ---------------------------------------------------------------------------- */

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode(s + i, n - i, &cp);
        if (!unicode_is_space(cp)) return false;
    }
    return true;
}

enum err_code tokenizer_put_added(struct tokenizer *t, int32_t id, const char *text, size_t n,
                                  struct added_flags f, const char *where, struct err *why)
{
    if (n > LIMIT_ADDED_TOKEN_BYTES)
        return err_set(why, ERR_TOO_LARGE, "%s: %zu bytes, at most %u", where, n,
                       LIMIT_ADDED_TOKEN_BYTES);
    struct added_token token = {.id = id,
                                .single_word = f.single_word,
                                .lstrip = f.lstrip,
                                .rstrip = f.rstrip,
                                .control = f.special || !is_blank(text, n)};
    unsigned flags =
        VOCAB_ADDED | (f.special ? VOCAB_SPECIAL : 0u) | (token.control ? VOCAB_CONTROL : 0u);
    enum err_code rc = vocab_add(&t->vocab, (uint32_t)id, text, n, flags, why);
    if (rc != ERR_OK) return err_wrap(why, rc, "%s", where);
    if (!f.normalized) return added_tokens_add(&t->raw, &token, text, n, why);
    struct buf form = {0};
    struct regex_work *w;
    rc = regex_work_open(&w, why);
    if (rc != ERR_OK) return rc;
    rc = normalizer_run(t->normalizer, w, text, n, &form, why);
    if (rc == ERR_OK) rc = added_tokens_add(&t->normalized, &token, form.data, form.len, why);
    regex_work_close(w);
    buf_free(&form);
    return rc;
}

enum err_code tokenizer_make_bytes(struct tokenizer *t, struct err *why)
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

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL) return;
    bpe_close(t->bpe);
    unigram_close(t->unigram);
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
    struct unigram_work unigram;
    struct buf form; /* the segment, normalized */
    bool no_control;
    struct ids *out;
};

static enum err_code encode_plain(struct encoder *e, const char *text, size_t n, bool at_start,
                                  struct err *why)
{
    struct pieces *p = &e->pieces;
    enum err_code rc = pretokenizer_run(e->t->pretokenizer, e->regex, text, n, at_start, p, why);
    for (size_t i = 0; i < p->n && rc == ERR_OK; i++) {
        const char *piece = p->text.data + p->spans[i].off;
        size_t len = p->spans[i].len;
        rc = e->t->bpe != NULL
                 ? bpe_encode(e->t->bpe, &e->bpe, piece, len, e->no_control, e->out, why)
                 : unigram_encode(e->t->unigram, &e->unigram, piece, len, e->no_control, e->out,
                                  why);
    }
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
    unigram_work_deinit(&e.unigram);
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
