/* gpt-oss: sinks, a window on some layers, biases everywhere, clamped swiglu, experts in MXFP4. Gate and up rows alternate in
 * one tensor; copies in 16 bits have it transposed. */
#include <string.h>

#include "common/modelfile/family.h"

#define ATTN    "model.layers.{layer}.self_attn."
#define MLP     "model.layers.{layer}.mlp."
#define EXPERTS MLP "experts."

static void read_layer_types(struct json_fields *f, struct hparams *hp)
{
    uint32_t window = (uint32_t)json_fields_int(f, "sliding_window", 1, INT32_MAX, 128);
    const json_t *types = json_fields_list(f, "layer_types");
    for (uint32_t l = 0; l < hp->n_layers; l++) {
        bool sliding = l % 2 == 0;
        const char *type = json_string_value(json_array_get(types, l));
        if (type != NULL) sliding = strcmp(type, "sliding_attention") == 0;
        if (sliding) hp->sliding_window[l] = window;
    }
}

static void read_gpt_oss(struct json_fields *f, struct hparams *hp)
{
    hp->attention_bias = json_fields_bool(f, "attention_bias", true);
    hp->attention_out_bias = hp->attention_bias;
    hp->swiglu_limit = (float)json_fields_real(f, "swiglu_limit", 1e-3, 1e6, 7);
    read_layer_types(f, hp);
}

static const struct weight_place places[] = {
    {ATTN "sinks", .role = W_SINKS},
    {MLP "router.weight", .role = W_ROUTER},
    {MLP "router.bias", .role = W_ROUTER_BIAS},
    {EXPERTS "gate_up_proj_blocks", .role = W_EXPERT_GATE, .scales = EXPERTS "gate_up_proj_scales",
     .stacked = true, .part = PART_EVEN},
    {EXPERTS "gate_up_proj_blocks", .role = W_EXPERT_UP, .scales = EXPERTS "gate_up_proj_scales",
     .stacked = true, .part = PART_ODD},
    {EXPERTS "down_proj_blocks", .role = W_EXPERT_DOWN, .scales = EXPERTS "down_proj_scales",
     .stacked = true},
    {EXPERTS "gate_up_proj", .role = W_EXPERT_GATE, .stacked = true, .transposed = true,
     .part = PART_EVEN},
    {EXPERTS "gate_up_proj", .role = W_EXPERT_UP, .stacked = true, .transposed = true,
     .part = PART_ODD},
    {EXPERTS "down_proj", .role = W_EXPERT_DOWN, .stacked = true, .transposed = true},
    {EXPERTS "gate_up_proj_bias", .role = W_EXPERT_GATE_BIAS, .stacked = true, .part = PART_EVEN},
    {EXPERTS "gate_up_proj_bias", .role = W_EXPERT_UP_BIAS, .stacked = true, .part = PART_ODD},
    {EXPERTS "down_proj_bias", .role = W_EXPERT_DOWN_BIAS, .stacked = true},
    {.name = NULL},
};

const struct family_rule family_gpt_oss = {
    .model_type = "gpt_oss",
    .n_experts = "num_local_experts",
    .n_experts_too = "num_experts",
    .top_k = "experts_per_token",
    .expert_width = "intermediate_size",
    .rope_theta = 150000,
    .norm_eps = 1e-5,
    .honors = {"swiglu_limit", "attention_bias"},
    .base = {.sinks = true,
             .activation = FFN_SWIGLU_CLAMPED,
             .expert_bias = true,
             .router = {.score = SCORE_SOFTMAX_CHOSEN, .bias = true}},
    .read = read_gpt_oss,
    .places = places,
};
