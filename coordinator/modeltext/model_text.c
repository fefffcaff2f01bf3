#include "coordinator/modeltext/model_text.h"

#include "common/base/mem.h"
#include "common/modelfile/gguf_set.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/vocab_source.h"

/* What of the metadata has to be an array of another form while the vocabulary is read. */
struct arrays {
    struct text_view *tokens, *merges;
    int32_t *types;
    float *scores;
};

/* The first fault sticks; a key that is not there leaves what it fills. */
struct reading {
    const struct gguf *g;
    struct err *why;
    enum err_code rc;
};

static bool found(struct reading *r, enum err_code rc)
{
    if (rc != ERR_OK && rc != ERR_NOT_FOUND) r->rc = rc;
    return rc == ERR_OK;
}

static void read_text(struct reading *r, const char *key, struct text_view *out)
{
    struct gguf_text t;
    if (r->rc == ERR_OK && found(r, gguf_string(r->g, key, &t, r->why)))
        *out = (struct text_view){t.s, t.n};
}

static void read_id(struct reading *r, const char *key, int64_t *out)
{
    int64_t id;
    if (r->rc == ERR_OK && found(r, gguf_i64(r->g, key, &id, r->why))) *out = id;
}

static void read_flag(struct reading *r, const char *key, int *out)
{
    bool yes;
    if (r->rc == ERR_OK && found(r, gguf_bool(r->g, key, &yes, r->why)))
        *out = yes ? VOCAB_YES : VOCAB_NO;
}

static void *room(struct reading *r, uint64_t n, size_t each)
{
    void *p = mem_zalloc_array((size_t)n + 1, each);
    if (p == NULL) r->rc = err_nomem(r->why, "a vocabulary");
    return p;
}

static void read_texts(struct reading *r, const char *key, struct text_view **out, size_t *n)
{
    const struct gguf_value *v;
    if (r->rc != ERR_OK || !found(r, gguf_strings(r->g, key, &v, r->why))) return;
    *out = room(r, v->n, sizeof **out);
    if (*out == NULL) return;
    *n = (size_t)v->n;
    for (uint64_t i = 0; i < v->n; i++) {
        struct gguf_text t = gguf_text_at(v, i);
        (*out)[i] = (struct text_view){t.s, t.n};
    }
}

static void read_types(struct reading *r, int32_t **out, size_t *n)
{
    static const char *const key = "tokenizer.ggml.token_type";
    const struct gguf_value *v;
    if (r->rc != ERR_OK || !found(r, gguf_integers(r->g, key, &v, r->why))) return;
    *out = room(r, v->n, sizeof **out);
    if (*out == NULL) return;
    *n = (size_t)v->n;
    for (uint64_t i = 0; i < v->n; i++) {
        int64_t type;
        if (!gguf_i64_at(v, i, &type) || type < 0 || type > INT32_MAX) type = 0;
        (*out)[i] = (int32_t)type;
    }
}

static void read_scores(struct reading *r, float **out, size_t *n)
{
    const struct gguf_value *v;
    if (r->rc != ERR_OK || !found(r, gguf_reals(r->g, "tokenizer.ggml.scores", &v, r->why))) return;
    *out = room(r, v->n, sizeof **out);
    if (*out == NULL) return;
    *n = (size_t)v->n;
    for (uint64_t i = 0; i < v->n; i++)
        (*out)[i] = (float)gguf_real_at(v, i);
}

/* The map of a Precompiled normalizer: an array of bytes. */
static void read_charsmap(struct reading *r, struct text_view *out)
{
    static const char *const key = "tokenizer.ggml.precompiled_charsmap";
    const struct gguf_value *v = gguf_find(r->g, key);
    if (r->rc != ERR_OK || v == NULL) return;
    if (v->is_array && (v->type == GGUF_U8 || v->type == GGUF_I8))
        *out = (struct text_view){(const char *)v->data, (size_t)v->n};
    else
        r->rc = err_set(r->why, ERR_CORRUPT, "key '%s' is not an array of bytes", key);
}

static void free_arrays(struct arrays *a)
{
    mem_free(a->tokens);
    mem_free(a->merges);
    mem_free(a->types);
    mem_free(a->scores);
}

#define GGML "tokenizer.ggml."

static enum err_code read_source(const struct gguf *g, const char *name, struct arrays *a,
                                 struct vocab_source *out, struct err *why)
{
    struct reading r = {.g = g, .why = why};
    struct vocab_source s = VOCAB_SOURCE_NONE;
    s.name = name;
    read_text(&r, "general.architecture", &s.architecture);
    read_text(&r, GGML "model", &s.model);
    read_text(&r, GGML "pre", &s.pre);
    read_texts(&r, GGML "tokens", &a->tokens, &s.n_tokens);
    read_types(&r, &a->types, &s.n_types);
    read_scores(&r, &a->scores, &s.n_scores);
    read_texts(&r, GGML "merges", &a->merges, &s.n_merges);
    read_charsmap(&r, &s.charsmap);
    read_id(&r, GGML "bos_token_id", &s.bos);
    read_id(&r, GGML "eos_token_id", &s.eos);
    read_id(&r, GGML "eot_token_id", &s.eot);
    read_id(&r, GGML "eom_token_id", &s.eom);
    read_id(&r, GGML "unknown_token_id", &s.unknown);
    read_id(&r, GGML "padding_token_id", &s.padding);
    read_flag(&r, GGML "add_bos_token", &s.add_bos);
    read_flag(&r, GGML "add_eos_token", &s.add_eos);
    read_flag(&r, GGML "add_space_prefix", &s.add_space_prefix);
    read_flag(&r, GGML "remove_extra_whitespaces", &s.remove_extra_whitespaces);
    read_text(&r, "tokenizer.chat_template", &s.chat_template);
    s.tokens = a->tokens;
    s.merges = a->merges;
    s.types = a->types;
    s.scores = a->scores;
    *out = s;
    return r.rc;
}

typedef enum err_code (*opener)(const struct vocab_source *s, void *out, struct err *why);

static enum err_code open_gguf(const char *path, opener open, void *out, struct err *why)
{
    struct gguf_set set;
    enum err_code rc = gguf_set_open(path, true, &set, why);
    if (rc != ERR_OK) return rc;
    struct arrays arrays = {0};
    struct vocab_source source;
    rc = read_source(gguf_set_meta(&set), set.parts[0].path, &arrays, &source, why);
    if (rc == ERR_OK) rc = open(&source, out, why);
    free_arrays(&arrays);
    gguf_set_close(&set);
    return rc;
}

static enum err_code open_tokenizer(const struct vocab_source *s, void *out, struct err *why)
{
    return tokenizer_open_vocab(s, out, why);
}

static enum err_code open_template(const struct vocab_source *s, void *out, struct err *why)
{
    return chat_template_open_vocab(s, out, why);
}

enum err_code model_text_tokenizer(const char *path, struct tokenizer **out, struct err *why)
{
    return gguf_set_is(path) ? open_gguf(path, open_tokenizer, out, why)
                             : tokenizer_open(path, out, why);
}

enum err_code model_text_template(const char *path, struct chat_template **out, struct err *why)
{
    return gguf_set_is(path) ? open_gguf(path, open_template, out, why)
                             : chat_template_open(path, out, why);
}
