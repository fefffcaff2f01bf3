/* Qwen 2, 2.5 and 3, dense and with experts. */
#include "common/modelfile/family.h"

#define MLP "model.layers.{layer}.mlp."

const struct family_rule family_qwen2 = {
    .model_type = "qwen2",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .base = {.attention_bias = true},
    .read = family_read_optional_window,
};

const struct family_rule family_qwen3 = {
    .model_type = "qwen3",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .base = {.qk_norm = QK_NORM_HEAD},
    .may_have_bias = true,
    .read = family_read_optional_window,
};

static void read_moe(struct json_fields *f, struct hparams *hp)
{
    family_read_optional_window(f, hp);
    family_read_sparse_step(f, hp);
}

static void read_qwen2_moe(struct json_fields *f, struct hparams *hp)
{
    read_moe(f, hp);
    hp->attention_bias = json_fields_bool(f, "qkv_bias", true);
    hp->shared_width = family_width(f, "shared_expert_intermediate_size");
}

static const struct weight_place qwen2_moe_places[] = {
    {MLP "shared_expert.gate_proj.weight", .role = W_SHARED_GATE},
    {MLP "shared_expert.up_proj.weight", .role = W_SHARED_UP},
    {MLP "shared_expert.down_proj.weight", .role = W_SHARED_DOWN},
    {MLP "shared_expert_gate.weight", .role = W_SHARED_SWITCH},
    {.name = NULL},
};

const struct family_rule family_qwen2_moe = {
    .model_type = "qwen2_moe",
    .n_experts = "num_experts",
    .n_experts_too = "num_local_experts",
    .expert_width = "moe_intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .honors = {"qkv_bias", "shared_expert_intermediate_size"},
    .base = {.shared_gated = true},
    .has_norm_topk_prob = true,
    .read = read_qwen2_moe,
    .places = qwen2_moe_places,
};

const struct family_rule family_qwen3_moe = {
    .model_type = "qwen3_moe",
    .n_experts = "num_experts",
    .n_experts_too = "num_local_experts",
    .expert_width = "moe_intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .base = {.qk_norm = QK_NORM_HEAD},
    .may_have_bias = true,
    .has_norm_topk_prob = true,
    .read = read_moe,
};
