/* hparams.h - the numbers of a model, read from its config.json. Immutable after reading, any thread.
 * Every key that changes the numbers is either honoured or refused by its name. */
#ifndef MOESAIC_MODELFILE_HPARAMS_H
#define MOESAIC_MODELFILE_HPARAMS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"

enum family {
    FAMILY_MIXTRAL,
    FAMILY_QWEN3_MOE,
    FAMILY_OLMOE,
    FAMILY_QWEN2_MOE,
    FAMILY_DEEPSEEK,
    FAMILY_DEEPSEEK_V2,
    FAMILY_DEEPSEEK_V3,
    FAMILY_KIMI_K2,
    FAMILY_GPT_OSS,
    FAMILY_GRANITEMOE,
    FAMILY_PHIMOE,
    FAMILY_GLM4_MOE,
    FAMILY_GROK_1,
    FAMILY_LLAMA4,
    FAMILY_SWITCH,
    FAMILY_LLAMA,
    FAMILY_MISTRAL,
    FAMILY_QWEN2,
    FAMILY_QWEN3,
    FAMILY_N
};

enum qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEAD,    /* weight [head_dim], per head */
    QK_NORM_FULL,    /* weight over all heads */
    QK_NORM_L2_ROPED /* no weight, per head, after the rotation, on layers that rotate */
};

enum norm { NORM_RMS, NORM_LAYER /* with a bias */ };

/* What an expert (or a dense layer) makes of gate g and up u. */
enum ffn_activation {
    FFN_SWIGLU,        /* silu(g) u */
    FFN_GEGLU_TANH,    /* gelu_tanh(g) u */
    FFN_RELU,          /* max(g, 0); there is no up */
    FFN_SWIGLU_CLAMPED /* clamped at swiglu_limit, (u + 1) g sigmoid(1.702 g) */
};

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_LONG, ROPE_DIVISORS };

struct rope_params {
    enum rope_kind kind;
    double theta, factor;
    double low_freq_factor, high_freq_factor;      /* llama3 */
    double beta_fast, beta_slow, attention_factor; /* yarn; attention_factor 0: by rule */
    double mscale, mscale_all_dim;                 /* yarn; 0: not given */
    bool truncate;                                 /* yarn */
    uint32_t original_ctx;
    /* long: the divisor of each frequency while the sequence is at most original_ctx long, and beyond it; what cos and
     * sin are multiplied with, 0: by rule. divisors: short_factor alone. */
    uint32_t n_factors;
    float short_factor[LIMIT_HEAD_DIM / 2], long_factor[LIMIT_HEAD_DIM / 2];
    double short_mscale, long_mscale;
};

/* Latent attention: keys and values of a token are one compressed vector of kv_rank numbers, and rope more. */
struct mla_params {
    uint32_t kv_rank; /* 0: the model has none of this */
    uint32_t q_rank;  /* 0: queries are not compressed */
    uint32_t nope, rope;
    float norm_eps; /* of the norms of compressed vectors */
};

enum router_score {
    SCORE_SOFTMAX,        /* over all experts */
    SCORE_SOFTMAX_CHOSEN, /* over the chosen ones */
    SCORE_SIGMOID,
    SCORE_SPARSEMIXER
};
enum group_score { GROUP_MAX, GROUP_TOP2_SUM };

struct router_params {
    enum router_score score;
    bool renormalized;      /* gates of the chosen are divided by their sum */
    double renormalize_eps; /* which is first increased by this */
    float scale;            /* of the gates, last */
    bool bias;              /* on the router's output */
    bool correction;        /* a bias on the scores, for the choice alone */
    bool weights_input; /* the gate multiplies what the expert takes, not what it gives (top 1) */
    uint32_t n_groups, top_groups; /* 1, 1: no groups */
    enum group_score group_score;
    float jitter_eps; /* sparsemixer */
};

/* T5's: a learned number per head and bucket of distance is added to scores. */
struct relative_bias {
    uint32_t buckets; /* 0: the model has none of this */
    uint32_t max_distance;
};

#define HPARAMS_MAX_EOS 16u

struct hparams {
    enum family family;
    const char *family_name; /* "mixtral"; static */
    uint32_t n_layers, hidden, vocab, ctx_max;
    uint32_t
        n_encoder_layers; /* of n_layers, the first: an encoder's; 0: the model is a decoder alone */
    int32_t decoder_start; /* the token that the decoder begins with, where there is an encoder */

    uint32_t n_heads, n_kv_heads;
    uint32_t
        head_dim; /* of a query and its key, as the score sees them; latent attention: nope + rope */
    uint32_t value_dim; /* of a head's value */
    uint32_t
        rope_dim; /* so many of a head are rotated: the first ones, or, in latent attention, the last */
    bool rope_interleaved; /* pairs (2i, 2i + 1); else (i, i + rope_dim / 2) */
    bool attention_bias;   /* biases on q, k, v (and o when attention_out_bias) */
    bool attention_out_bias;
    enum qk_norm qk_norm;
    float clip_qkv;       /* 0: none */
    double score_scale;   /* 0: 1 / sqrt(head_dim), and what yarn asks for */
    float score_soft_cap; /* 0: none */
    bool sinks;           /* a learned score per head that takes part in the softmax alone */
    uint32_t sliding_window[LIMIT_LAYERS]; /* 0: none; else keys j with i - w < j <= i */
    uint32_t attention_chunk; /* 0: none; else keys j with j / c == i / c, on layers that rotate */
    bool no_rope[LIMIT_LAYERS];
    /* Layers that do not rotate: q is multiplied by 1 + scale ln(1 + floor((position + 1) / floor)); scale 0: it is not. */
    double temperature_scale, temperature_floor;
    struct mla_params mla;
    struct relative_bias relative_bias;
    struct rope_params rope;

    enum norm norm;
    float norm_eps;
    bool post_norms;                   /* a norm of what attention and feed-forward add, too */
    float embed_scale, residual_scale; /* 1: none */
    float logit_scale, logit_divisor;  /* multiplied, divided; 1: none */
    bool tied_head, head_bias;

    enum ffn_activation activation;
    float swiglu_limit;
    uint32_t dense_width; /* F of a dense layer, 0 if there is none */

    uint32_t n_experts, top_k; /* of layers that are MoE; 0: a dense model */
    uint32_t expert_width;     /* F of a routed expert */
    bool expert_bias;
    uint32_t shared_width; /* F of the expert that all tokens take, 0: none */
    bool shared_gated;     /* it has a gate of its own */
    struct router_params router;
    uint32_t
        expert_capacity; /* an encoder's expert takes so many tokens of a prompt, the first; 0: all */
    bool is_moe[LIMIT_LAYERS]; /* per layer; false = dense MLP */

    int32_t bos;                  /* -1: none */
    int32_t eos[HPARAMS_MAX_EOS]; /* config.json and generation_config.json together */
    uint32_t n_eos;
    /* generation_config.json: defaults of the API; NaN or 0 where absent */
    float temperature, top_p;
    uint32_t top_k_default;
    bool do_sample;      /* false: greedy by default */
    char dtype_hint[16]; /* torch_dtype, for inspect only */
};

/* What a token's keys and values take in the cache, per layer. value_in_key: the value is the first value_dim numbers
 * of the key, and not stored apart. */
struct kv_shape {
    uint32_t heads, key_dim, value_dim;
    bool value_in_key;
};
struct kv_shape hparams_kv_shape(const struct hparams *hp);
uint32_t hparams_n_moe_layers(const struct hparams *hp);

/* Read DIR/config.json and, if present, DIR/generation_config.json. NOT_FOUND, CORRUPT (names file, key and
 * what disagrees), UNSUPPORTED (names model_type or key and value). */
enum err_code hparams_read(const char *dir, struct hparams *out, struct err *why);
/* The same of an object with config.json's keys; `where` stands in messages ("x.gguf"). */
enum err_code hparams_read_object(json_t *config, const char *where, struct hparams *out,
                                  struct err *why);

#endif
