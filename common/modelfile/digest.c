/* The two fingerprints of model_file.h. */
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Inline, so that the state may live on the stack: a digest cannot fail. XXH3's values are fixed since 0.8.0. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/modelfile/model_file.h"

static void put(XXH3_state_t *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(XXH3_state_t *s, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    assert(n >= 0 && (size_t)n < sizeof text);
    XXH3_128bits_update(s, text, (size_t)n);
}

/* Bits, not decimals: no locale and no rounding. */
static void put_double(XXH3_state_t *s, const char *name, double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    put(s, "%s %016" PRIx64 "\n", name, bits);
}

static void put_hparams(XXH3_state_t *s, const struct hparams *hp)
{
    put(s, "family %s\nlayers %" PRIu32 "\nhidden %" PRIu32 "\nvocab %" PRIu32 "\n",
        hp->family_name, hp->n_layers, hp->hidden, hp->vocab);
    put(s, "heads %" PRIu32 " %" PRIu32 " %" PRIu32 "\nattention_bias %d %d\nqk_norm %d\n",
        hp->n_heads, hp->n_kv_heads, hp->head_dim, hp->attention_bias, hp->attention_out_bias,
        (int)hp->qk_norm);
    put_double(s, "clip_qkv", (double)hp->clip_qkv);
    put(s, "sliding_window %" PRIu32 "\n", hp->sliding_window);
    put_double(s, "norm_eps", (double)hp->norm_eps);
    const struct rope_params *r = &hp->rope;
    put(s, "rope %d %d %" PRIu32 "\n", (int)r->kind, r->truncate, r->original_ctx);
    put_double(s, "theta", r->theta);
    put_double(s, "factor", r->factor);
    put_double(s, "low_freq_factor", r->low_freq_factor);
    put_double(s, "high_freq_factor", r->high_freq_factor);
    put_double(s, "beta_fast", r->beta_fast);
    put_double(s, "beta_slow", r->beta_slow);
    put_double(s, "attention_factor", r->attention_factor);
    put(s,
        "tied_head %d\nexperts %" PRIu32 " %" PRIu32 " %" PRIu32 "\ndense %" PRIu32
        "\nrenormalized %d\nmoe ",
        hp->tied_head, hp->n_experts, hp->top_k, hp->expert_width, hp->dense_width,
        hp->gates_renormalized);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        put(s, "%d", hp->is_moe[l]);
    put(s, "\n");
}

static void put_single(XXH3_state_t *state, const struct model_file *f)
{
    for (uint32_t i = 0; i < model_file_n_tensors(f); i++) {
        const struct tensor *t = model_file_tensor(f, i);
        put(state, "tensor %s", model_file_dtype_text(f, i));
        for (uint32_t d = 0; d < t->n_dims; d++)
            put(state, " %" PRIu64, t->dims[d]);
        XXH3_128bits_update(state, " ", 1);
        XXH3_128bits_update(state, t->name,
                            strlen(t->name) + 1); /* with its NUL: names may hold anything else */
    }
    for (uint32_t i = 0; i < model_file_n_paths(f); i++)
        put(state, "file %" PRIu64 "\n", model_file_size(f, i));
}

/* Only what is known without having every shard. */
static void put_shards(XXH3_state_t *state, const struct model_file *f)
{
    const uint64_t *index = model_file_index_hash(f);
    const struct hparams *hp = model_file_hparams(f);
    const struct tensor *expert = NULL;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        for (uint32_t e = 0; hp->is_moe[l] && e < hp->n_experts && expert == NULL; e++)
            expert = model_file_find(f, W_EXPERT_GATE, l, e);
    put(state, "index %016" PRIx64 "%016" PRIx64 "\nexperts %s\n", index[0], index[1],
        expert != NULL ? dtype_name(expert->dtype) : "none");
}

void model_file_digest(const struct model_file *f, const char *quantize,
                       char out[MODEL_FILE_DIGEST_CHARS])
{
    XXH3_state_t s;
    XXH3_INITSTATE(&s);
    XXH3_128bits_reset(&s);
    put(&s, "numerics %u\nwire %u\nquantize %.32s\n", NUMERICS_VERSION, WIRE_PROFILE, quantize);
    put_hparams(&s, model_file_hparams(f));
    if (model_file_index_hash(f) != NULL)
        put_shards(&s, f);
    else
        put_single(&s, f);
    XXH128_hash_t h = XXH3_128bits_digest(&s);
    snprintf(out, MODEL_FILE_DIGEST_CHARS, "%016" PRIx64 "%016" PRIx64, h.high64, h.low64);
}

uint64_t model_file_expert_hash(const struct model_file *f, uint32_t layer, uint32_t expert)
{
    XXH3_state_t s;
    XXH3_INITSTATE(&s);
    XXH3_64bits_reset(&s);
    static const enum weight_role roles[] = {W_EXPERT_GATE, W_EXPERT_UP, W_EXPERT_DOWN};
    for (uint32_t i = 0; i < 3; i++) {
        const struct tensor *t = model_file_find(f, roles[i], layer, expert);
        assert(t != NULL);
        XXH3_64bits_update(&s, t->data, (size_t)t->bytes);
    }
    return XXH3_64bits_digest(&s);
}
