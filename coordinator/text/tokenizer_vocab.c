/* A tokenizer from a vocab_source: the components that tokenizer.json would spell out follow from the model's name. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/tokenizer_internal.h"
#include "coordinator/text/vocab_pre.h"
#include "coordinator/text/vocab_source.h"

#define SPACE "\xE2\x96\x81" /* U+2581 */

/* As the families' tokenizer.json have them. */
static const char byte_level_decoder[] = "{\"type\":\"ByteLevel\"}";
static const char nfc[] = "{\"type\":\"NFC\"}";
static const char spaces[] =
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}";
static const char prefix_and_spaces[] =
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" SPACE "\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}]}";
static const char scored_decoder[] =
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
    "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}";
static const char scored_decoder_strip[] =
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
    "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\","
    "\"content\":\" \",\"start\":1,\"stop\":0}]}";
static const char squeeze[] =
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\",\"strip_left\":false,"
    "\"strip_right\":true},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"" SPACE
    "\"}]}";
static const char metaspace_first[] = "{\"type\":\"Metaspace\",\"replacement\":\"" SPACE
                                      "\",\"prepend_scheme\":\"first\",\"split\":true}";
static const char metaspace_never[] = "{\"type\":\"Metaspace\",\"replacement\":\"" SPACE
                                      "\",\"prepend_scheme\":\"never\",\"split\":true}";
static const char metaspace_decoder[] = "{\"type\":\"Metaspace\",\"replacement\":\"" SPACE
                                        "\",\"prepend_scheme\":\"always\",\"split\":true}";
static const char metaspace_decoder_never[] = "{\"type\":\"Metaspace\",\"replacement\":\"" SPACE
                                              "\",\"prepend_scheme\":\"never\",\"split\":true}";

struct loading {
    struct tokenizer *t;
    const struct vocab_source *s;
};

static bool yes(int said, bool otherwise)
{
    return said == VOCAB_UNSAID ? otherwise : said == VOCAB_YES;
}

/* ---- Checks ------------------------------------------------------------------------------------- */

static enum err_code check_count(const char *what, size_t n, size_t n_tokens, struct err *why)
{
    if (n == n_tokens) return ERR_OK;
    return err_set(why, ERR_CORRUPT, "%zu %s for %zu tokens", n, what, n_tokens);
}

static enum err_code check_scores(const struct vocab_source *s, struct err *why)
{
    enum err_code rc = check_count("scores", s->n_scores, s->n_tokens, why);
    for (size_t i = 0; i < s->n_scores && rc == ERR_OK; i++)
        if (!isfinite(s->scores[i]))
            rc = err_set(why, ERR_CORRUPT, "the score of token %zu is not a number", i);
    return rc;
}

static enum err_code check_id(const char *what, int64_t id, size_t n_tokens, struct err *why)
{
    if (id >= -1 && id < (int64_t)n_tokens) return ERR_OK;
    return err_set(why, ERR_CORRUPT, "the id of %s is %lld, of %zu tokens", what, (long long)id,
                   n_tokens);
}

static enum err_code check(const struct vocab_source *s, struct err *why)
{
    if (s->n_tokens == 0 || s->n_tokens > LIMIT_VOCAB)
        return err_set(why, s->n_tokens == 0 ? ERR_CORRUPT : ERR_TOO_LARGE,
                       "%zu tokens; 1 to %u are allowed", s->n_tokens, LIMIT_VOCAB);
    enum err_code rc = check_id("bos", s->bos, s->n_tokens, why);
    if (rc == ERR_OK) rc = check_id("eos", s->eos, s->n_tokens, why);
    if (rc == ERR_OK) rc = check_id("the unknown token", s->unknown, s->n_tokens, why);
    if (rc == ERR_OK && s->n_types > 0) rc = check_count("types", s->n_types, s->n_tokens, why);
    for (size_t i = 0; i < s->n_types && rc == ERR_OK; i++)
        if (s->types[i] < 0 || s->types[i] > VOCAB_TYPE_BYTE)
            rc = err_set(why, ERR_CORRUPT, "token %zu has the type %d; 0 to %d are known", i,
                         s->types[i], VOCAB_TYPE_BYTE);
    return rc;
}

/* ---- The vocabulary ----------------------------------------------------------------------------- */

/* Without types in the file, the ids that have a name are control tokens. */
static int type_of(const struct vocab_source *s, size_t id)
{
    if (s->n_types > 0) return s->types[id] == 0 ? VOCAB_TYPE_NORMAL : s->types[id];
    const int64_t named[] = {s->bos, s->eos, s->eot, s->eom, s->padding, s->unknown};
    for (size_t i = 0; i < ARRAY_LEN(named); i++)
        if (named[i] == (int64_t)id) return VOCAB_TYPE_CONTROL;
    return VOCAB_TYPE_NORMAL;
}

/* Rows of the embedding beyond the tokens are filled up with "[PAD<id>]"; older files give them other types than unused. */
static bool is_filler(const struct vocab_source *s, size_t id)
{
    char text[40];
    int n = snprintf(text, sizeof text, "[PAD%zu]", id);
    int64_t at = (int64_t)id;
    if (at == s->bos || at == s->eos || at == s->unknown) return false;
    return type_of(s, id) != VOCAB_TYPE_NORMAL && s->tokens[id].n == (size_t)n &&
           memcmp(s->tokens[id].data, text, (size_t)n) == 0;
}

static int32_t unknown_of(const struct vocab_source *s)
{
    if (s->unknown >= 0) return (int32_t)s->unknown;
    for (size_t id = 0; id < s->n_types; id++)
        if (s->types[id] == VOCAB_TYPE_UNKNOWN && !is_filler(s, id)) return (int32_t)id;
    return -1;
}

/* Phi-3's markers take the white space after them, which only the file of its own format says. */
static bool takes_space_after(const struct vocab_source *s, struct text_view token, int type)
{
    if (!text_view_is(s->architecture, "phi3") && !text_view_is(s->architecture, "phimoe"))
        return false;
    if (text_view_is(token, "</s>")) return type == VOCAB_TYPE_USER;
    return !text_view_is(token, "<unk>") && !text_view_is(token, "<s>") &&
           !text_view_is(token, "<|endoftext|>");
}

static enum err_code put_token(const struct loading *l, size_t id, struct err *why)
{
    struct text_view token = l->s->tokens[id];
    int type = type_of(l->s, id);
    char where[40];
    snprintf(where, sizeof where, "token %zu", id);
    struct added_flags flags = {.special = type != VOCAB_TYPE_USER,
                                .rstrip = takes_space_after(l->s, token, type)};
    switch (type) {
    case VOCAB_TYPE_NORMAL:
    case VOCAB_TYPE_BYTE:
        return vocab_add(&l->t->vocab, (uint32_t)id, token.data, token.n, VOCAB_MODEL, why);
    case VOCAB_TYPE_UNUSED: /* has a text, and is never found in one */
        return vocab_add(&l->t->vocab, (uint32_t)id, token.data, token.n, VOCAB_ADDED, why);
    default:
        return tokenizer_put_added(l->t, (int32_t)id, token.data, token.n, flags, where, why);
    }
}

static enum err_code load_tokens(const struct loading *l, struct err *why)
{
    const struct vocab_source *s = l->s;
    size_t n = s->n_tokens;
    while (n > 0 && is_filler(s, n - 1))
        n--;
    if (n == 0) return err_set(why, ERR_CORRUPT, "all %zu tokens are padding", s->n_tokens);
    enum err_code rc = vocab_init(&l->t->vocab, (uint32_t)n, why);
    for (size_t id = 0; id < n && rc == ERR_OK; id++) {
        if (is_filler(s, id)) continue;
        if (s->tokens[id].n > 0 && s->tokens[id].data == NULL)
            rc = err_set(why, ERR_CORRUPT, "token %zu has no text", id);
        else
            rc = put_token(l, id, why);
    }
    return rc;
}

/* ---- Components --------------------------------------------------------------------------------- */

/* Parse one of the texts above. */
static enum err_code component(const char *text, json_t **out, struct err *why)
{
    return json_parse(text, strlen(text), LIMIT_FILE_JSON_DEPTH, out, why);
}

static enum err_code set_normalizer(struct tokenizer *t, const char *text,
                                    struct text_view charsmap, struct err *why)
{
    json_t *spec = NULL;
    enum err_code rc = text == NULL ? ERR_OK : component(text, &spec, why);
    if (rc == ERR_OK)
        rc = normalizer_open_with_table(charsmap.data, charsmap.n, spec, &t->normalizer, why);
    json_decref(spec);
    return rc;
}

static enum err_code set_pretokenizer(struct tokenizer *t, const char *text, struct err *why)
{
    json_t *spec = NULL;
    enum err_code rc = text == NULL ? ERR_OK : component(text, &spec, why);
    if (rc == ERR_OK) rc = pretokenizer_open(spec, &t->pretokenizer, why);
    json_decref(spec);
    return rc;
}

static enum err_code set_decoder(struct tokenizer *t, const char *text, struct err *why)
{
    json_t *spec = NULL;
    enum err_code rc = component(text, &spec, why);
    if (rc == ERR_OK) rc = token_decoder_init(&t->decoder, spec, why);
    json_decref(spec);
    return rc;
}

static enum err_code put_around(struct tokenizer *t, bool add_bos, bool add_eos, struct err *why)
{
    t->add_bos = add_bos;
    t->add_eos = add_eos;
    bool ok = true;
    if (add_bos && t->bos >= 0) ok = ids_push(&t->post.prefix, t->bos);
    if (ok && add_eos && t->eos >= 0) ok = ids_push(&t->post.suffix, t->eos);
    return ok ? ERR_OK : err_nomem(why, "post_processor");
}

/* ---- Models ------------------------------------------------------------------------------------- */

static enum err_code open_bpe(const struct loading *l, struct bpe_spec *spec,
                              const struct bpe_merges *merges, struct err *why)
{
    spec->merges = merges->data;
    spec->n_merges = merges->n;
    return bpe_open(spec, &l->t->vocab, &l->t->bpe, why);
}

static enum err_code load_gpt2(const struct loading *l, struct err *why)
{
    static const struct text_view unnamed = {"default", 7};
    struct text_view name = l->s->pre.data == NULL ? unnamed : l->s->pre;
    const struct vocab_pre *pre = vocab_pre_find(name);
    if (pre == NULL)
        return err_set(why, ERR_UNSUPPORTED, "tokenizer.ggml.pre '%.*s' is not supported",
                       name.n > 60 ? 60 : (int)name.n, name.data);
    if (l->s->n_merges == 0) return err_set(why, ERR_CORRUPT, "a gpt2 tokenizer without merges");
    struct bpe_merges merges = {0};
    struct bpe_spec spec = {.unk = -1, .ignore_merges = pre->ignore_merges};
    static const struct text_view none = {0};
    enum err_code rc = set_normalizer(l->t, pre->nfc ? nfc : NULL, none, why);
    if (rc == ERR_OK) rc = pretokenizer_open_bytes(pre->regexes, &l->t->pretokenizer, why);
    if (rc == ERR_OK) rc = set_decoder(l->t, byte_level_decoder, why);
    if (rc == ERR_OK) rc = load_tokens(l, why);
    if (rc == ERR_OK)
        rc = bpe_merges_from_texts(l->s->merges, l->s->n_merges, &l->t->vocab, &merges, why);
    if (rc == ERR_OK) rc = open_bpe(l, &spec, &merges, why);
    bpe_merges_deinit(&merges);
    if (rc != ERR_OK) return rc;
    return put_around(l->t, yes(l->s->add_bos, pre->add_bos), yes(l->s->add_eos, false), why);
}

static enum err_code load_llama(const struct loading *l, struct err *why)
{
    bool prefix = yes(l->s->add_space_prefix, true);
    struct bpe_merges merges = {0};
    struct bpe_spec spec = {.unk = unknown_of(l->s), .byte_fallback = true, .fuse_unk = true};
    static const struct text_view none = {0};
    enum err_code rc = check_scores(l->s, why);
    if (rc == ERR_OK) rc = set_normalizer(l->t, prefix ? prefix_and_spaces : spaces, none, why);
    if (rc == ERR_OK) rc = set_pretokenizer(l->t, NULL, why);
    if (rc == ERR_OK) rc = set_decoder(l->t, prefix ? scored_decoder_strip : scored_decoder, why);
    if (rc == ERR_OK) rc = load_tokens(l, why);
    if (rc == ERR_OK) rc = bpe_merges_from_scores(l->s->scores, &l->t->vocab, &merges, why);
    if (rc == ERR_OK) rc = open_bpe(l, &spec, &merges, why);
    bpe_merges_deinit(&merges);
    if (rc != ERR_OK) return rc;
    return put_around(l->t, yes(l->s->add_bos, true), yes(l->s->add_eos, false), why);
}

static enum err_code open_unigram(const struct loading *l, struct err *why)
{
    const struct vocab *v = &l->t->vocab;
    struct unigram_spec spec = {.unk = unknown_of(l->s)};
    double *scores = mem_zalloc_array(v->n_ids, sizeof *scores);
    if (scores == NULL) return err_nomem(why, "scores");
    bool any = false;
    for (uint32_t id = 0; id < v->n_ids; id++) {
        scores[id] = (double)l->s->scores[id];
        if (type_of(l->s, id) != VOCAB_TYPE_NORMAL) {
            spec.byte_fallback |= type_of(l->s, id) == VOCAB_TYPE_BYTE;
        } else if (!any || scores[id] < spec.min_score) {
            any = true;
            spec.min_score = scores[id];
        }
    }
    spec.scores = scores;
    enum err_code rc = unigram_open(&spec, v, &l->t->unigram, why);
    mem_free(scores);
    return rc;
}

static enum err_code load_t5(const struct loading *l, struct err *why)
{
    bool prefix = yes(l->s->add_space_prefix, true);
    bool less = yes(l->s->remove_extra_whitespaces, true);
    enum err_code rc = check_scores(l->s, why);
    if (rc == ERR_OK) rc = set_normalizer(l->t, less ? squeeze : NULL, l->s->charsmap, why);
    if (rc == ERR_OK) rc = set_pretokenizer(l->t, prefix ? metaspace_first : metaspace_never, why);
    if (rc == ERR_OK)
        rc = set_decoder(l->t, prefix ? metaspace_decoder : metaspace_decoder_never, why);
    if (rc == ERR_OK) rc = load_tokens(l, why);
    if (rc == ERR_OK) rc = open_unigram(l, why);
    if (rc != ERR_OK) return rc;
    return put_around(l->t, yes(l->s->add_bos, false), yes(l->s->add_eos, true), why);
}

static enum err_code load(const struct loading *l, struct err *why)
{
    struct text_view model = l->s->model;
    enum err_code rc = check(l->s, why);
    if (rc != ERR_OK) return rc;
    l->t->bos = (int32_t)l->s->bos;
    l->t->eos = (int32_t)l->s->eos;
    if (text_view_is(model, "gpt2"))
        rc = load_gpt2(l, why);
    else if (text_view_is(model, "llama"))
        rc = load_llama(l, why);
    else if (text_view_is(model, "t5"))
        rc = load_t5(l, why);
    else if (model.data == NULL)
        rc = err_set(why, ERR_CORRUPT, "tokenizer.ggml.model is missing");
    else
        rc = err_set(why, ERR_UNSUPPORTED, "tokenizer.ggml.model '%.*s' is not supported",
                     model.n > 60 ? 60 : (int)model.n, model.data);
    return rc == ERR_OK ? tokenizer_make_bytes(l->t, why) : rc;
}

enum err_code tokenizer_open_vocab(const struct vocab_source *source, struct tokenizer **out,
                                   struct err *why)
{
    struct tokenizer *t = mem_zalloc(sizeof *t);
    if (t == NULL) return err_nomem(why, "tokenizer");
    struct loading l = {t, source};
    enum err_code rc = load(&l, why);
    if (rc != ERR_OK) {
        tokenizer_close(t);
        return err_wrap(why, rc, "%s", source->name);
    }
    *out = t;
    return ERR_OK;
}

/* ---- Ends of generation ------------------------------------------------------------------------- */

static bool push_once(struct ids *ids, int64_t id)
{
    for (size_t i = 0; i < ids->len; i++)
        if (ids->data[i] == id) return true;
    return ids_push(ids, (int32_t)id);
}

bool vocab_source_ends(const struct vocab_source *s, struct ids *out)
{
    /* Control tokens whose text says so, in every family that has them, whichever key its file forgot. */
    static const char *const texts[] = {"<|eot_id|>", "<|im_end|>",      "<|return|>",
                                        "<|call|>",   "<|eom_id|>",      "<|endoftext|>",
                                        "<|eot|>",    "<|end_of_text|>", "<|eom|>"};
    const int64_t named[] = {s->eos, s->eot, s->eom};
    bool ok = true, harmony = false;
    for (size_t i = 0; i < 3 && ok; i++)
        if (named[i] >= 0 && named[i] < (int64_t)s->n_tokens) ok = push_once(out, named[i]);
    size_t end = s->n_tokens;
    for (size_t id = 0; id < s->n_tokens && ok; id++) {
        int type = type_of(s, id);
        if (type != VOCAB_TYPE_CONTROL && type != VOCAB_TYPE_USER) continue;
        for (size_t i = 0; i < ARRAY_LEN(texts) && ok; i++)
            if (text_view_is(s->tokens[id], texts[i])) ok = push_once(out, (int64_t)id);
        if (text_view_is(s->tokens[id], "<|end|>")) end = id;
        harmony |= text_view_is(s->tokens[id], "<|return|>");
    }
    if (ok && end < s->n_tokens && !harmony) ok = push_once(out, (int64_t)end);
    return ok;
}
