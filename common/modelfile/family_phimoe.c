/* Phi-3.5-MoE: LayerNorm, sparsemixer, long rope, biases also on the head. */
#include "common/modelfile/family.h"

#define MOE "model.layers.{layer}.block_sparse_moe."

static void read_phimoe(struct json_fields *f, struct hparams *hp)
{
    family_read_window(f, hp);
    hp->head_bias = json_fields_bool(f, "lm_head_bias", false);
    hp->router.jitter_eps = (float)json_fields_real(f, "router_jitter_noise", 0, 1, 0.01);
    if (hp->top_k != 2)
        json_fields_fail(f, ERR_UNSUPPORTED, "'num_experts_per_tok' is %u: sparsemixer is for 2",
                         hp->top_k);
}

static const struct weight_place places[] = {
    {MOE "gate.weight", .role = W_ROUTER},
    {MOE "experts.{expert}.w1.weight", .role = W_EXPERT_GATE},
    {MOE "experts.{expert}.w3.weight", .role = W_EXPERT_UP},
    {MOE "experts.{expert}.w2.weight", .role = W_EXPERT_DOWN},
    {.name = NULL},
};

const struct family_rule family_phimoe = {
    .model_type = "phimoe",
    .n_experts = "num_local_experts",
    .n_experts_too = "num_experts",
    .expert_width = "intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-5,
    .honors = {"lm_head_bias", "longrope"},
    .base = {.norm = NORM_LAYER, .router = {.score = SCORE_SPARSEMIXER}},
    .may_have_bias = true,
    .read = read_phimoe,
    .places = places,
};
