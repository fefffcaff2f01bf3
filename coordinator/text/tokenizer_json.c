/* A tokenizer from tokenizer.json and tokenizer_config.json. */
#include <stdio.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/tok_json.h"
#include "coordinator/text/tokenizer_internal.h"

/* Highest id + 1 over the vocabulary and the added tokens. `top`: the highest of the model's own. */
static enum err_code count_ids(int top, const json_t *added, uint32_t *n_ids, struct err *why)
{
    int id;
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

/* ---- BPE ---------------------------------------------------------------------------------------- */

static enum err_code load_bpe_vocab(struct tokenizer *t, const json_t *model, const json_t *added,
                                    struct err *why)
{
    int top = -1, id;
    uint32_t n_ids = 0;
    json_t *vocab, *value;
    const char *text;
    size_t n;
    enum err_code rc = tok_json_object(model, "model", "vocab", &vocab, why);
    if (rc != ERR_OK) return rc;
    json_object_foreach(vocab, text, value)
    {
        rc = tok_json_id(value, "model.vocab: an id", LIMIT_VOCAB - 1, &id, why);
        if (rc != ERR_OK) return err_wrap(why, rc, "token '%.40s'", text);
        if (id > top) top = id;
    }
    rc = count_ids(top, added, &n_ids, why);
    if (rc == ERR_OK) rc = vocab_init(&t->vocab, n_ids, why);
    if (rc != ERR_OK) return rc;
    json_object_keylen_foreach(vocab, text, n, value)
    {
        rc = vocab_add(&t->vocab, (uint32_t)json_integer_value(value), text, n, VOCAB_MODEL, why);
        if (rc != ERR_OK) return rc;
    }
    return ERR_OK;
}

static enum err_code check_absent(const json_t *model, const char *key, struct err *why)
{
    const json_t *v = json_object_get(model, key);
    if (v == NULL || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0) ||
        (json_is_number(v) && json_number_value(v) == 0.0))
        return ERR_OK;
    return err_set(why, ERR_UNSUPPORTED, "model: '%s' is not supported", key);
}

static enum err_code find_unk_token(const json_t *model, const struct vocab *vocab, int32_t *unk,
                                    struct err *why)
{
    *unk = -1;
    const json_t *v = json_object_get(model, "unk_token");
    if (v == NULL || json_is_null(v)) return ERR_OK;
    const char *s;
    size_t n;
    enum err_code rc = tok_json_string(model, "model", "unk_token", &s, &n, why);
    if (rc != ERR_OK) return rc;
    *unk = vocab_find_model(vocab, s, n);
    if (*unk < 0)
        return err_set(why, ERR_CORRUPT, "model: unk_token '%.40s' is not in the vocabulary", s);
    return ERR_OK;
}

static enum err_code load_bpe(struct tokenizer *t, const json_t *model, const json_t *added,
                              struct err *why)
{
    json_t *list;
    struct bpe_merges merges = {0};
    struct bpe_spec spec = {0};
    enum err_code rc = load_bpe_vocab(t, model, added, why);
    if (rc == ERR_OK) rc = check_absent(model, "continuing_subword_prefix", why);
    if (rc == ERR_OK) rc = check_absent(model, "end_of_word_suffix", why);
    if (rc == ERR_OK) rc = check_absent(model, "dropout", why);
    if (rc == ERR_OK)
        rc = tok_json_bool(model, "model", "byte_fallback", false, &spec.byte_fallback, why);
    if (rc == ERR_OK) rc = tok_json_bool(model, "model", "fuse_unk", false, &spec.fuse_unk, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(model, "model", "ignore_merges", false, &spec.ignore_merges, why);
    if (rc == ERR_OK) rc = find_unk_token(model, &t->vocab, &spec.unk, why);
    if (rc == ERR_OK) rc = tok_json_array(model, "model", "merges", &list, why);
    if (rc == ERR_OK) rc = bpe_merges_from_json(list, &t->vocab, &merges, why);
    if (rc == ERR_OK) {
        spec.merges = merges.data;
        spec.n_merges = merges.n;
        rc = bpe_open(&spec, &t->vocab, &t->bpe, why);
    }
    bpe_merges_deinit(&merges);
    return rc;
}

/* ---- Unigram ------------------------------------------------------------------------------------ */

/* The vocabulary: an array of [text, score]; the id is the index. */
static enum err_code load_scored(struct tokenizer *t, const json_t *list, double *scores,
                                 double *min_score, struct err *why)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *pair = json_array_get(list, i), *text = json_array_get(pair, 0),
                     *score = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_string(text) || !json_is_number(score))
            return err_set(why, ERR_CORRUPT, "model.vocab[%zu] is not a text and a score", i);
        scores[i] = json_number_value(score);
        if (i == 0 || scores[i] < *min_score) *min_score = scores[i];
        enum err_code rc = vocab_add(&t->vocab, (uint32_t)i, json_string_value(text),
                                     json_string_length(text), VOCAB_MODEL, why);
        if (rc != ERR_OK) return err_wrap(why, rc, "model.vocab[%zu]", i);
    }
    return ERR_OK;
}

static enum err_code load_unigram(struct tokenizer *t, const json_t *model, const json_t *added,
                                  struct err *why)
{
    json_t *list;
    uint32_t n_ids = 0;
    double *scores = NULL;
    struct unigram_spec spec = {.unk = -1};
    enum err_code rc = tok_json_array(model, "model", "vocab", &list, why);
    if (rc == ERR_OK && json_array_size(list) > LIMIT_VOCAB)
        rc = err_set(why, ERR_TOO_LARGE, "model.vocab: %zu tokens, at most %u",
                     json_array_size(list), LIMIT_VOCAB);
    if (rc == ERR_OK) rc = count_ids((int)json_array_size(list) - 1, added, &n_ids, why);
    if (rc == ERR_OK) rc = vocab_init(&t->vocab, n_ids, why);
    if (rc == ERR_OK && (scores = mem_zalloc_array(n_ids, sizeof *scores)) == NULL)
        rc = err_nomem(why, "scores");
    if (rc == ERR_OK) rc = load_scored(t, list, scores, &spec.min_score, why);
    const json_t *unk = json_object_get(model, "unk_id");
    if (rc == ERR_OK && unk != NULL && !json_is_null(unk))
        rc = tok_json_id(unk, "model: 'unk_id'", (long long)json_array_size(list) - 1, &spec.unk,
                         why);
    if (rc == ERR_OK)
        rc = tok_json_bool(model, "model", "byte_fallback", false, &spec.byte_fallback, why);
    if (rc == ERR_OK) {
        spec.scores = scores;
        rc = unigram_open(&spec, &t->vocab, &t->unigram, why);
    }
    mem_free(scores);
    return rc;
}

/* ---- The whole file ----------------------------------------------------------------------------- */

static enum err_code load_model(struct tokenizer *t, const json_t *root, const json_t *added,
                                struct err *why)
{
    const char *type;
    json_t *model;
    enum err_code rc = tok_json_object(root, "tokenizer.json", "model", &model, why);
    if (rc == ERR_OK) rc = tok_json_type(model, "model", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "BPE") == 0) return load_bpe(t, model, added, why);
    if (strcmp(type, "Unigram") == 0) return load_unigram(t, model, added, why);
    return tok_json_refuse("model", type, why);
}

static enum err_code load_added_token(struct tokenizer *t, const json_t *entry, const char *where,
                                      struct err *why)
{
    struct added_flags flags;
    const char *text;
    size_t n;
    int32_t id = (int32_t)json_integer_value(json_object_get(entry, "id"));
    enum err_code rc = tok_json_string(entry, where, "content", &text, &n, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(entry, where, "single_word", false, &flags.single_word, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "lstrip", false, &flags.lstrip, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "rstrip", false, &flags.rstrip, why);
    if (rc == ERR_OK) rc = tok_json_bool(entry, where, "special", false, &flags.special, why);
    if (rc == ERR_OK)
        rc = tok_json_bool(entry, where, "normalized", !flags.special, &flags.normalized, why);
    return rc == ERR_OK ? tokenizer_put_added(t, id, text, n, flags, where, why) : rc;
}

static enum err_code load_added(struct tokenizer *t, const json_t *added, struct err *why)
{
    enum err_code rc = ERR_OK;
    for (size_t i = 0; rc == ERR_OK && i < json_array_size(added); i++) {
        char where[40];
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        rc = load_added_token(t, json_array_get(added, i), where, why);
    }
    return rc;
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
    if (rc == ERR_OK) rc = tokenizer_make_bytes(t, why);
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
