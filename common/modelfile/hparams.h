/* hparams.h - the numbers of a model, read from its config.json. Immutable after reading, any thread.
 * Every key that changes the numbers is either honoured or refused by its name. */
#ifndef MOESAIC_MODELFILE_HPARAMS_H
#define MOESAIC_MODELFILE_HPARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"

enum family { FAMILY_MIXTRAL, FAMILY_QWEN3_MOE, FAMILY_OLMOE, FAMILY_N };

enum qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEAD /* weight [head_dim], per head */,
    QK_NORM_FULL /* weight over all heads */
};

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct rope_params {
    enum rope_kind kind;
    double theta, factor;
    double low_freq_factor, high_freq_factor;      /* llama3 */
    double beta_fast, beta_slow, attention_factor; /* yarn; attention_factor 0: by rule */
    bool truncate;                                 /* yarn */
    uint32_t original_ctx;
};

#define HPARAMS_MAX_EOS 16u

struct hparams {
    enum family family;
    const char *family_name; /* "mixtral"; static */
    uint32_t n_layers, hidden, vocab, ctx_max;
    uint32_t n_heads, n_kv_heads, head_dim;
    bool attention_bias; /* biases on q, k, v (and o when attention_out_bias) */
    bool attention_out_bias;
    enum qk_norm qk_norm;
    float clip_qkv;          /* 0: none */
    uint32_t sliding_window; /* 0: none; else keys j with i - w < j <= i */
    float norm_eps;
    struct rope_params rope;
    bool tied_head;

    uint32_t n_experts, top_k; /* of layers that are MoE */
    uint32_t expert_width;     /* F of a routed expert */
    uint32_t dense_width;      /* F of a dense layer, 0 if there is none */
    bool gates_renormalized;
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

/* Read DIR/config.json and, if present, DIR/generation_config.json. NOT_FOUND, CORRUPT (names file, key and
 * what disagrees), UNSUPPORTED (names model_type or key and value). */
enum err_code hparams_read(const char *dir, struct hparams *out, struct err *why);

#endif
