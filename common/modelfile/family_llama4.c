/* Llama-4, the text part: chunked attention, layers without position, the gate multiplies the expert's input. */
#include <string.h>

#include "common/modelfile/family.h"

#define MODEL "language_model.model."
#define LAYER MODEL "layers.{layer}."
#define FFN   LAYER "feed_forward."

/* `no_rope_layers`: 1 where a layer rotates, 0 where it does not; empty: every fourth does not. */
static void read_no_rope(struct json_fields *f, struct hparams *hp)
{
    uint32_t step = (uint32_t)json_fields_int(f, "no_rope_layer_interval", 1, LIMIT_LAYERS, 4);
    const json_t *list = json_fields_list(f, "no_rope_layers");
    size_t n = json_array_size(list);
    if (n > 0 && n != hp->n_layers)
        json_fields_fail(f, ERR_CORRUPT,
                         "'no_rope_layers' has %zu entries, 'num_hidden_layers' is %u", n,
                         hp->n_layers);
    for (uint32_t l = 0; l < hp->n_layers; l++) {
        const json_t *v = json_array_get(list, l);
        if (n > 0 &&
            (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 1)) {
            family_unsupported(f, "no_rope_layers");
            return;
        }
        hp->no_rope[l] = n > 0 ? json_integer_value(v) == 0 : (l + 1) % step == 0;
    }
}

/* `moe_layers` lists them; else every interleave_moe_layer_step-th is one. */
static void read_moe_layers(struct json_fields *f, struct hparams *hp)
{
    uint32_t step = (uint32_t)json_fields_int(f, "interleave_moe_layer_step", 1, LIMIT_LAYERS, 1);
    const json_t *list = json_fields_list(f, "moe_layers");
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->is_moe[l] = list == NULL && (l + 1) % step == 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= hp->n_layers) {
            family_unsupported(f, "moe_layers");
            return;
        }
        hp->is_moe[json_integer_value(v)] = true;
    }
}

static void read_llama4(struct json_fields *f, struct hparams *hp)
{
    read_no_rope(f, hp);
    read_moe_layers(f, hp);
    hp->shared_width = hp->expert_width;
    hp->attention_chunk = (uint32_t)json_fields_int(f, "attention_chunk_size", 1, INT32_MAX, 0);
    if (json_fields_bool(f, "use_qk_norm", true)) hp->qk_norm = QK_NORM_L2_ROPED;
    bool tuned = json_fields_bool(f, "attn_temperature_tuning", true);
    double scale = json_fields_real(f, "attn_scale", 0, 1e3, 0.1);
    hp->temperature_floor = json_fields_real(f, "floor_scale", 1, 1e9, 8192);
    hp->temperature_scale = tuned ? scale : 0;
    if (hp->top_k != 1)
        json_fields_fail(f, ERR_UNSUPPORTED,
                         "'num_experts_per_tok' is %u: with the gate on the input only 1 is "
                         "supported",
                         hp->top_k);
}

static const struct weight_place places[] = {
    {MODEL "embed_tokens.weight", .role = W_EMBED},
    {MODEL "norm.weight", .role = W_FINAL_NORM},
    {"language_model.lm_head.weight", .role = W_HEAD},
    {LAYER "input_layernorm.weight", .role = W_ATTN_NORM},
    {LAYER "post_attention_layernorm.weight", .role = W_FFN_NORM},
    {LAYER "self_attn.q_proj.weight", .role = W_Q},
    {LAYER "self_attn.k_proj.weight", .role = W_K},
    {LAYER "self_attn.v_proj.weight", .role = W_V},
    {LAYER "self_attn.o_proj.weight", .role = W_O},
    {LAYER "self_attn.q_proj.bias", .role = W_Q_BIAS},
    {LAYER "self_attn.k_proj.bias", .role = W_K_BIAS},
    {LAYER "self_attn.v_proj.bias", .role = W_V_BIAS},
    {LAYER "self_attn.o_proj.bias", .role = W_O_BIAS},
    {FFN "router.weight", .role = W_ROUTER},
    {FFN "gate_proj.weight", .role = W_DENSE_GATE},
    {FFN "up_proj.weight", .role = W_DENSE_UP},
    {FFN "down_proj.weight", .role = W_DENSE_DOWN},
    {FFN "shared_expert.gate_proj.weight", .role = W_SHARED_GATE},
    {FFN "shared_expert.up_proj.weight", .role = W_SHARED_UP},
    {FFN "shared_expert.down_proj.weight", .role = W_SHARED_DOWN},
    {FFN "experts.gate_up_proj", .role = W_EXPERT_GATE, .stacked = true, .transposed = true,
     .part = PART_LOW},
    {FFN "experts.gate_up_proj", .role = W_EXPERT_UP, .stacked = true, .transposed = true,
     .part = PART_HIGH},
    {FFN "experts.down_proj", .role = W_EXPERT_DOWN, .stacked = true, .transposed = true},
    {.name = NULL},
};

const struct family_rule family_llama4 = {
    .model_type = "llama4",
    .other_type = "llama4_text",
    .architecture = "Llama4For",
    .nested = "text_config",
    .n_experts = "num_local_experts",
    .n_experts_too = "num_experts",
    .expert_width = "intermediate_size",
    .dense_width = "intermediate_size_mlp",
    .rope_theta = 5e5,
    .norm_eps = 1e-5,
    .honors = {"attention_chunk_size", "use_qk_norm", "no_rope_layers", "interleave_moe_layer_step",
               "attn_temperature_tuning"},
    .base = {.rope_interleaved = true, .router = {.score = SCORE_SIGMOID, .weights_input = true}},
    .may_have_bias = true,
    .read = read_llama4,
    .places = places,
};
