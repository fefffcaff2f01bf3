/* Grok-1: four norms in a layer, scores that are capped, gelu, multipliers. The published release is a set of pickles, which
 * are programs and never run here; this is the layout of its conversions to safetensors. */
#include "common/modelfile/family.h"

#define LAYER "transformer.decoder_layer.{layer}."
#define ATTN  LAYER "multi_head_attention."
#define MOE   LAYER "moe.{expert}."

static void read_grok(struct json_fields *f, struct hparams *hp)
{
    hp->score_scale = json_fields_real(f, "attn_output_multiplier", 1e-6, 1e3, 0.08838834764831845);
    hp->score_soft_cap = (float)json_fields_real(f, "max_attn_value", 1e-3, 1e6, 30);
    hp->embed_scale =
        (float)json_fields_real(f, "embedding_multiplier_scale", 1e-6, 1e6, 78.38367176906169);
    hp->logit_scale =
        (float)json_fields_real(f, "output_multiplier_scale", 1e-6, 1e6, 0.5773502691896257);
}

static const struct weight_place places[] = {
    {"transformer.in_out_embed.weight", .role = W_EMBED},
    {"transformer.rms_norm.weight", .role = W_FINAL_NORM},
    {LAYER "rms_norm.weight", .role = W_ATTN_NORM},
    {LAYER "rms_norm_1.weight", .role = W_ATTN_POST_NORM},
    {LAYER "rms_norm_2.weight", .role = W_FFN_NORM},
    {LAYER "rms_norm_3.weight", .role = W_FFN_POST_NORM},
    {ATTN "query.weight", .role = W_Q},
    {ATTN "key.weight", .role = W_K},
    {ATTN "value.weight", .role = W_V},
    {ATTN "linear.weight", .role = W_O},
    {LAYER "router.weight", .role = W_ROUTER},
    {MOE "linear.weight", .role = W_EXPERT_GATE},
    {MOE "linear_v.weight", .role = W_EXPERT_UP},
    {MOE "linear_1.weight", .role = W_EXPERT_DOWN},
    {.name = NULL},
};

const struct family_rule family_grok_1 = {
    .model_type = "grok-1",
    .architecture = "Grok1ModelForCausalLM",
    .n_experts = "num_experts",
    .n_experts_too = "num_local_experts",
    .expert_width = "intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-5,
    .tied_head = true,
    .honors = {"attn_output_multiplier", "max_attn_value", "embedding_multiplier_scale",
               "output_multiplier_scale"},
    .base = {.post_norms = true, .activation = FFN_GEGLU_TANH},
    .read = read_grok,
    .places = places,
};
