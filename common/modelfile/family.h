/* family.h - inside common/modelfile only: what a family of models is. A family is one row (struct family_rule), and, where
 * it has something that no other has, a function of its own in its file.
 *
 * To add one: a name in enum family, its file family_<name>.c (or a row in that of its relatives), its line in families.c,
 * a tiny model with expected values. */
#ifndef MOESAIC_MODELFILE_FAMILY_H
#define MOESAIC_MODELFILE_FAMILY_H

#include "common/modelfile/hparams.h"
#include "common/modelfile/json_fields.h"
#include "common/modelfile/weights.h"

#define FAMILY_MAX_KEYS 24u

struct family_rule {
    const char *model_type;   /* of config.json */
    const char *other_type;   /* another spelling, or NULL */
    const char *architecture; /* what `architectures` must contain; NULL: "ForCausalLM" */
    const char *nested; /* the object of config.json that holds the numbers; NULL: the whole */

    /* Keys of config.json, the published spelling and another that the official code reads, or NULL. A family without
     * n_experts is dense. */
    const char *n_experts, *n_experts_too, *top_k, *expert_width, *dense_width;
    /* Defaults of the official implementation for absent keys. */
    double rope_theta, norm_eps;
    bool tied_head;
    /* Keys of other families (hparams.c has the list) that this one honours. */
    const char *honors[FAMILY_MAX_KEYS];

    struct hparams base;     /* what every model of the family has, before anything is read */
    bool may_have_bias;      /* attention_bias: on q, k, v and o */
    bool has_norm_topk_prob; /* the key decides (absent: false); else base.router.renormalized */
    /* Instead of all other readers, for a family whose keys have other names. */
    void (*read_numbers)(struct json_fields *f, struct hparams *hp);
    /* What is particular: reads the family's own keys. May be NULL. */
    void (*read)(struct json_fields *f, struct hparams *hp);

    /* Where its weights are, by role; the rest is common (weights.c). */
    const struct weight_place *places; /* ends with a name of NULL */
};

const struct family_rule *family_rule(enum family family);

extern const struct family_rule family_mixtral, family_llama, family_mistral, family_qwen2,
    family_qwen3, family_qwen2_moe, family_qwen3_moe, family_olmoe, family_deepseek,
    family_deepseek_v2, family_deepseek_v3, family_kimi_k2, family_gpt_oss, family_granitemoe,
    family_phimoe, family_glm4_moe, family_grok_1, family_llama4, family_switch;

/* ---- readers that several families share (hparams.c) ------------------------------------------- */

/* A width or count that must be there and even. */
uint32_t family_width(struct json_fields *f, const char *key);
/* 'key': value is not supported. */
void family_unsupported(struct json_fields *f, const char *key);
/* MoE from layer `first_k_dense_replace` on, every `moe_layer_freq`-th; shared experts by n_shared_experts. */
void family_read_leading_dense(struct json_fields *f, struct hparams *hp);
/* mlp_only_layers, decoder_sparse_step. */
void family_read_sparse_step(struct json_fields *f, struct hparams *hp);
/* One window for all layers, from sliding_window (null: none). */
void family_read_window(struct json_fields *f, struct hparams *hp);
/* Qwen's: only with use_sliding_window, and then on all layers. */
void family_read_optional_window(struct json_fields *f, struct hparams *hp);

#endif
