/* Granite-MoE 3.x: four multipliers; the experts of a layer in one tensor, gate rows first. */
#include "common/modelfile/family.h"

#define MOE "model.layers.{layer}.block_sparse_moe."

static void read_granite(struct json_fields *f, struct hparams *hp)
{
    hp->score_scale = json_fields_real(f, "attention_multiplier", 1e-6, 1e3, 1);
    hp->embed_scale = (float)json_fields_real(f, "embedding_multiplier", 1e-6, 1e6, 1);
    hp->residual_scale = (float)json_fields_real(f, "residual_multiplier", 1e-6, 1e6, 1);
    hp->logit_divisor = (float)json_fields_real(f, "logits_scaling", 1e-6, 1e6, 1);
}

static const struct weight_place places[] = {
    {MOE "router.layer.weight", .role = W_ROUTER},
    {MOE "input_linear.weight", .role = W_EXPERT_GATE, .stacked = true, .part = PART_LOW},
    {MOE "input_linear.weight", .role = W_EXPERT_UP, .stacked = true, .part = PART_HIGH},
    {MOE "output_linear.weight", .role = W_EXPERT_DOWN, .stacked = true},
    {.name = NULL},
};

const struct family_rule family_granitemoe = {
    .model_type = "granitemoe",
    .n_experts = "num_local_experts",
    .n_experts_too = "num_experts",
    .expert_width = "intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .honors = {"attention_multiplier", "embedding_multiplier", "residual_multiplier",
               "logits_scaling"},
    .base = {.router = {.score = SCORE_SOFTMAX_CHOSEN}},
    .may_have_bias = true,
    .read = read_granite,
    .places = places,
};
