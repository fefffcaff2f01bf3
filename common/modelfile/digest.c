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

static void put_rope(XXH3_state_t *s, const struct rope_params *r)
{
    put(s, "rope %d %d %" PRIu32 " %" PRIu32 "\n", (int)r->kind, r->truncate, r->original_ctx,
        r->n_factors);
    put_double(s, "theta", r->theta);
    put_double(s, "factor", r->factor);
    put_double(s, "low_freq_factor", r->low_freq_factor);
    put_double(s, "high_freq_factor", r->high_freq_factor);
    put_double(s, "beta_fast", r->beta_fast);
    put_double(s, "beta_slow", r->beta_slow);
    put_double(s, "attention_factor", r->attention_factor);
    put_double(s, "mscale", r->mscale);
    put_double(s, "mscale_all_dim", r->mscale_all_dim);
    put_double(s, "short_mscale", r->short_mscale);
    put_double(s, "long_mscale", r->long_mscale);
    for (uint32_t i = 0; i < r->n_factors; i++) {
        put_double(s, "short", (double)r->short_factor[i]);
        put_double(s, "long", (double)r->long_factor[i]);
    }
}

static void put_hparams(XXH3_state_t *s, const struct hparams *hp)
{
    put(s, "family %s\nlayers %" PRIu32 "\nhidden %" PRIu32 "\nvocab %" PRIu32 "\n",
        hp->family_name, hp->n_layers, hp->hidden, hp->vocab);
    put(s,
        "heads %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32
        " %d\nattention_bias %d %d\nqk_norm %d\n",
        hp->n_heads, hp->n_kv_heads, hp->head_dim, hp->value_dim, hp->rope_dim,
        hp->rope_interleaved, hp->attention_bias, hp->attention_out_bias, (int)hp->qk_norm);
    put_double(s, "clip_qkv", (double)hp->clip_qkv);
    put_double(s, "score_scale", hp->score_scale);
    put_double(s, "score_soft_cap", (double)hp->score_soft_cap);
    put_double(s, "temperature_scale", hp->temperature_scale);
    put_double(s, "temperature_floor", hp->temperature_floor);
    put(s, "sinks %d\nchunk %" PRIu32 "\nlatent %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 "\n",
        hp->sinks, hp->attention_chunk, hp->mla.kv_rank, hp->mla.q_rank, hp->mla.nope,
        hp->mla.rope);
    put_double(s, "latent_eps", (double)hp->mla.norm_eps);
    put(s, "encoder %" PRIu32 " %" PRId32 " %" PRIu32 " %" PRIu32 " %" PRIu32 "\n",
        hp->n_encoder_layers, hp->decoder_start, hp->relative_bias.buckets,
        hp->relative_bias.max_distance, hp->expert_capacity);
    put(s, "norm %d %d\n", (int)hp->norm, hp->post_norms);
    put_double(s, "norm_eps", (double)hp->norm_eps);
    put_double(s, "embed_scale", (double)hp->embed_scale);
    put_double(s, "residual_scale", (double)hp->residual_scale);
    put_double(s, "logit_scale", (double)hp->logit_scale);
    put_double(s, "logit_divisor", (double)hp->logit_divisor);
    put_rope(s, &hp->rope);
    put(s, "head %d %d\nactivation %d\n", hp->tied_head, hp->head_bias, (int)hp->activation);
    put_double(s, "swiglu_limit", (double)hp->swiglu_limit);
    put(s,
        "experts %" PRIu32 " %" PRIu32 " %" PRIu32 " %d\ndense %" PRIu32 "\nshared %" PRIu32
        " %d\n",
        hp->n_experts, hp->top_k, hp->expert_width, hp->expert_bias, hp->dense_width,
        hp->shared_width, hp->shared_gated);
    const struct router_params *r = &hp->router;
    put(s, "router %d %d %d %d %d %" PRIu32 " %" PRIu32 " %d\n", (int)r->score, r->renormalized,
        r->bias, r->correction, r->weights_input, r->n_groups, r->top_groups, (int)r->group_score);
    put_double(s, "renormalize_eps", r->renormalize_eps);
    put_double(s, "router_scale", (double)r->scale);
    put_double(s, "jitter_eps", (double)r->jitter_eps);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        put(s, "%d %d %" PRIu32 ",", hp->is_moe[l], hp->no_rope[l], hp->sliding_window[l]);
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

/* A tensor's own bytes, and those of its scales, as they stand in the file. */
static void put_bytes(XXH3_state_t *s, const struct tensor *t)
{
    const uint64_t columns = tensor_columns(t);
    const uint64_t rows = t->n_dims == 1 ? 1 : tensor_n_elements(t) / columns;
    if (t->scales != NULL) {
        const uint64_t each = t->dtype == DTYPE_MXFP4 ? columns / 32 : t->scales_stride;
        const uint64_t first = t->scale_row0 / F8_BLOCK;
        const uint64_t last = (t->scale_row0 + rows - 1) / F8_BLOCK;
        const uint64_t n = t->dtype == DTYPE_MXFP4 ? rows : last - first + 1;
        for (uint64_t i = 0; i < n; i++)
            XXH3_64bits_update(s, t->scales + (first + i) * t->scales_stride, each);
    }
    if (t->col_stride != 0) { /* transposed: columns of the tensor are its rows */
        const uint64_t each = dtype_block_bytes(t->dtype);
        for (uint64_t c = 0; c < columns; c++)
            for (uint64_t r = 0; r < rows; r++)
                XXH3_64bits_update(s, t->data + r * t->row_stride + c * t->col_stride, each);
        return;
    }
    const uint64_t each = t->dtype == DTYPE_MXFP4 && t->scales != NULL ? columns / 2
                          : t->scales != NULL                          ? columns
                                              : dtype_bytes(t->dtype, columns);
    for (uint64_t r = 0; r < rows; r++)
        XXH3_64bits_update(s, t->data + r * t->row_stride, each);
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
    for (int role = W_EXPERT_GATE; role <= W_EXPERT_DOWN_BIAS; role++) {
        const struct tensor *t = model_file_find(f, (enum weight_role)role, layer, expert);
        if (t != NULL) put_bytes(&s, t);
    }
    return XXH3_64bits_digest(&s);
}
