/* DeepSeekMoE-16B; DeepSeek-V2 and V2-Lite; V3, R1, V3.1 and what follows their rule (Moonlight, Kimi-K2). The tensors of
 * multi-token prediction (layers from num_hidden_layers on) are not used. */
#include <inttypes.h>
#include <string.h>

#include "common/modelfile/family.h"

#define ATTN "model.layers.{layer}.self_attn."

static void read_v1(struct json_fields *f, struct hparams *hp)
{
    family_read_leading_dense(f, hp);
    const char *method = json_fields_text(f, "topk_method");
    if (method != NULL && strcmp(method, "greedy") != 0) family_unsupported(f, "topk_method");
}

/* The norms of compressed vectors have the official code's default, whatever rms_norm_eps says. */
static void read_latent_attention(struct json_fields *f, struct hparams *hp)
{
    struct mla_params *m = &hp->mla;
    m->norm_eps = 1e-6f;
    m->kv_rank = family_width(f, "kv_lora_rank");
    if (json_fields_find(f, "q_lora_rank") != NULL) m->q_rank = family_width(f, "q_lora_rank");
    m->nope = family_width(f, "qk_nope_head_dim");
    m->rope = family_width(f, "qk_rope_head_dim");
    hp->value_dim = family_width(f, "v_head_dim");
    hp->head_dim = m->nope + m->rope;
    hp->rope_dim = m->rope;
    hp->n_kv_heads = 1;
    if (hp->head_dim > LIMIT_HEAD_DIM || m->kv_rank + m->rope > LIMIT_HEAD_DIM ||
        hp->value_dim > LIMIT_HEAD_DIM)
        json_fields_fail(f, ERR_UNSUPPORTED,
                         "heads of %" PRIu32 " (values %" PRIu32 ", compressed %" PRIu32
                         ") are wider than %u",
                         hp->head_dim, hp->value_dim, m->kv_rank + m->rope, LIMIT_HEAD_DIM);
    if (json_fields_bool(f, "attention_bias", false)) family_unsupported(f, "attention_bias");
    if (json_fields_int(f, "moe_layer_freq", 1, LIMIT_LAYERS, 1) != 1)
        family_unsupported(f, "moe_layer_freq"); /* versions of the official code disagree */
    if (!json_fields_bool(f, "rope_interleave", true)) family_unsupported(f, "rope_interleave");
}

static void read_groups(struct json_fields *f, uint32_t fallback, uint32_t fallback_top,
                        struct hparams *hp)
{
    hp->router.n_groups = (uint32_t)json_fields_int(f, "n_group", 1, LIMIT_EXPERTS, fallback);
    hp->router.top_groups =
        (uint32_t)json_fields_int(f, "topk_group", 1, LIMIT_EXPERTS, fallback_top);
}

static void read_v2(struct json_fields *f, struct hparams *hp)
{
    read_latent_attention(f, hp);
    family_read_leading_dense(f, hp);
    const char *method = json_fields_text(f, "topk_method");
    const char *score = json_fields_text(f, "scoring_func");
    bool groups = method != NULL && strcmp(method, "group_limited_greedy") == 0;
    if (method != NULL && !groups && strcmp(method, "greedy") != 0)
        family_unsupported(f, "topk_method");
    if (score != NULL && strcmp(score, "softmax") != 0) family_unsupported(f, "scoring_func");
    /* One version of the official code divides by the sum and forgets the factor, another does neither. */
    if (json_fields_bool(f, "norm_topk_prob", false)) family_unsupported(f, "norm_topk_prob");
    if (groups) read_groups(f, 1, 1, hp);
    hp->router.scale = (float)json_fields_real(f, "routed_scaling_factor", 1e-3, 1e3, 1);
}

static void read_v3(struct json_fields *f, struct hparams *hp)
{
    read_latent_attention(f, hp);
    family_read_leading_dense(f, hp);
    const char *method = json_fields_text(f, "topk_method");
    const char *score = json_fields_text(f, "scoring_func");
    if (method != NULL && strcmp(method, "noaux_tc") != 0) family_unsupported(f, "topk_method");
    if (score != NULL && strcmp(score, "sigmoid") != 0) family_unsupported(f, "scoring_func");
    read_groups(f, 8, 4, hp);
    hp->router.scale = (float)json_fields_real(f, "routed_scaling_factor", 1e-3, 1e3, 2.5);
}

static const struct weight_place latent_places[] = {
    {ATTN "q_a_proj.weight", .role = W_Q_A},
    {ATTN "q_a_layernorm.weight", .role = W_Q_A_NORM},
    {ATTN "q_b_proj.weight", .role = W_Q},
    {ATTN "kv_a_proj_with_mqa.weight", .role = W_KV_A},
    {ATTN "kv_a_layernorm.weight", .role = W_KV_A_NORM},
    {ATTN "kv_b_proj.weight", .role = W_KV_B},
    {.name = NULL},
};

const struct family_rule family_deepseek = {
    .model_type = "deepseek",
    .n_experts = "n_routed_experts",
    .expert_width = "moe_intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .honors = {"n_shared_experts", "first_k_dense_replace", "moe_layer_freq", "topk_method"},
    .may_have_bias = true,
    .has_norm_topk_prob = true,
    .read = read_v1,
};

#define LATENT_KEYS                                                                                \
    "kv_lora_rank", "q_lora_rank", "n_shared_experts", "first_k_dense_replace", "moe_layer_freq",  \
        "topk_method", "scoring_func", "n_group", "topk_group", "routed_scaling_factor",           \
        "attention_bias"

const struct family_rule family_deepseek_v2 = {
    .model_type = "deepseek_v2",
    .n_experts = "n_routed_experts",
    .expert_width = "moe_intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .honors = {LATENT_KEYS},
    .base = {.rope_interleaved = true, .router = {.group_score = GROUP_MAX}},
    .read = read_v2,
    .places = latent_places,
};

#define V3_RULE                                                                                    \
    .n_experts = "n_routed_experts", .expert_width = "moe_intermediate_size", .norm_eps = 1e-6,    \
    .honors = {LATENT_KEYS}, .rope_theta = 1e4,                                                    \
    .base = {.rope_interleaved = true,                                                             \
             .router = {.score = SCORE_SIGMOID,                                                    \
                        .correction = true,                                                        \
                        .renormalized = true,                                                      \
                        .renormalize_eps = 1e-20,                                                  \
                        .group_score = GROUP_TOP2_SUM}},                                           \
    .has_norm_topk_prob = true, .read = read_v3, .places = latent_places

const struct family_rule family_deepseek_v3 = {.model_type = "deepseek_v3", V3_RULE};
const struct family_rule family_kimi_k2 = {.model_type = "kimi_k2", V3_RULE};
