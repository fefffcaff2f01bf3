/* What the families' GGUF files say beside what all say, and the published numbers of what they leave out. */
#include <inttypes.h>

#include "common/base/limits.h"
#include "common/modelfile/gguf_mapping.h"

/* Values of expert_gating_func. */
#define SOFTMAX        (1u << 1)
#define SIGMOID        (1u << 2)
#define SOFTMAX_CHOSEN (1u << 3)

/* ---- what families share ------------------------------------------------------------------------ */

/* A head's width, rotated as a whole (or in part: *share then says so). */
static void fill_head_dim(struct gguf_mapping *m, bool partial)
{
    int64_t heads = mapping_int_or(m, "attention.head_count", 0),
            hidden = mapping_int_or(m, "embedding_length", 0);
    int64_t key = mapping_int_or(m, "attention.key_length", heads > 0 ? hidden / heads : 0);
    int64_t value = mapping_int_or(m, "attention.value_length", key);
    int64_t rope = mapping_int_or(m, "rope.dimension_count", key);
    if (key != value)
        mapping_fail(m, ERR_UNSUPPORTED,
                     "'attention.key_length' %" PRId64 " and 'attention.value_length' %" PRId64
                     " differ: that is not supported with '%s'",
                     key, value, m->arch->name);
    if (!partial && rope != key)
        mapping_fail(m, ERR_UNSUPPORTED,
                     "'rope.dimension_count' is %" PRId64 ", a head is %" PRId64
                     " wide: rotating a part is not supported with '%s'",
                     rope, key, m->arch->name);
    if (partial && (rope < 1 || rope > key))
        mapping_fail(m, ERR_CORRUPT,
                     "'rope.dimension_count' is %" PRId64 ", a head is %" PRId64 " wide", rope,
                     key);
    if (m->rc != ERR_OK) return;
    mapping_set_int(m, "head_dim", key);
    if (partial) mapping_set(m, "partial_rotary_factor", json_real((double)rope / (double)key));
}

/* Width of the routed experts: the key, or (the first files with experts had none) the tensor's rows. */
static void fill_expert_width(struct gguf_mapping *m, const char *to)
{
    const struct gguf_tensor *t = mapping_find_in_any(m, "ffn_up_exps.weight");
    int64_t width = mapping_int_or(m, "feed_forward_length", 0);
    if (t != NULL && t->n_dims == 3 && t->dims[1] <= LIMIT_FFN_WIDTH) width = (int64_t)t->dims[1];
    mapping_set_int(m, to, mapping_int_or(m, "expert_feed_forward_length", width));
}

static void fill_experts(struct gguf_mapping *m)
{
    const struct gguf_arch *a = m->arch;
    mapping_require_int(m, "expert_used_count", "num_experts_per_tok");
    mapping_require_int(m, "expert_count", a->n_experts);
    int64_t gating = mapping_int_or(m, "expert_gating_func", 0);
    if (gating < 0 || gating > 31 || (gating != 0 && (a->gating >> gating & 1u) == 0))
        mapping_fail(m, ERR_UNSUPPORTED,
                     "key '%s.expert_gating_func' %" PRId64
                     " is not supported with this architecture",
                     a->name, gating);
    bool norm = mapping_bool_or(m, "expert_weights_norm", a->norm_topk != 0);
    if (a->norm_topk >= 0)
        mapping_set_bool(m, "norm_topk_prob", norm);
    else if (!norm)
        mapping_fail(m, ERR_UNSUPPORTED, "key '%s.expert_weights_norm': false is not supported",
                     a->name);
}

/* Leading dense layers, shared experts, a factor on the gates: DeepSeek's, and GLM's. */
static void fill_deepseek_experts(struct gguf_mapping *m)
{
    fill_expert_width(m, "moe_intermediate_size");
    mapping_copy_int(m, "feed_forward_length", "intermediate_size");
    int64_t shared = mapping_int_or(m, "expert_shared_count", 0);
    if (shared == 0 && mapping_has(m, "ffn_up_shexp.weight"))
        mapping_fail(m, ERR_CORRUPT, "key '%s.expert_shared_count' is 0, but there is '%s'",
                     m->arch->name, mapping_find_in_any(m, "ffn_up_shexp.weight")->name);
    mapping_set_int(m, "n_shared_experts", shared);
    int64_t dense = 0;
    while (dense < m->n_layers &&
           mapping_find_in_layer(m, (uint32_t)dense, "ffn_up.weight") != NULL)
        dense++;
    mapping_set_int(m, "first_k_dense_replace",
                    mapping_int_or(m, "leading_dense_block_count", dense));
}

/* Qwen's: layers without experts are those that have a dense one. */
static void fill_dense_layers(struct gguf_mapping *m)
{
    json_t *list = json_array();
    for (uint32_t l = 0; l < m->n_layers && list != NULL; l++)
        if (mapping_find_in_layer(m, l, "ffn_up.weight") != NULL &&
            json_array_append_new(list, json_integer(l)) != 0) {
            json_decref(list);
            list = NULL;
        }
    mapping_set(m, "mlp_only_layers", list);
}

/* ---- families ----------------------------------------------------------------------------------- */

static void fill_llama(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    mapping_copy_int(m, "feed_forward_length", "intermediate_size");
    const bool window = mapping_int_or(m, "attention.sliding_window", 0) > 0;
    if (mapping_int_or(m, "expert_count", 0) > 0) {
        mapping_set_text(m, "model_type", "mixtral");
        fill_experts(m);
        fill_expert_width(m, "intermediate_size");
    } else {
        mapping_set_text(m, "model_type", window ? "mistral" : "llama");
        if (mapping_has(m, "attn_q.bias")) mapping_set_bool(m, "attention_bias", true);
    }
    if (window) mapping_copy_int(m, "attention.sliding_window", "sliding_window");
}

static void fill_qwen(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    mapping_copy_int(m, "feed_forward_length", "intermediate_size");
}

static void fill_qwen_moe(struct gguf_mapping *m)
{
    fill_qwen(m);
    fill_experts(m);
    fill_expert_width(m, "moe_intermediate_size");
    fill_dense_layers(m);
}

static void fill_qwen2_moe(struct gguf_mapping *m)
{
    fill_qwen_moe(m);
    const struct gguf_tensor *t = mapping_find_in_any(m, "ffn_up_shexp.weight");
    int64_t width = t != NULL && t->n_dims == 2 && t->dims[1] <= LIMIT_FFN_WIDTH
                        ? (int64_t)t->dims[1]
                        : mapping_int_or(m, "feed_forward_length", 0);
    mapping_set_int(m, "shared_expert_intermediate_size",
                    mapping_int_or(m, "expert_shared_feed_forward_length", width));
    if (m->set->n_absent == 0) mapping_set_bool(m, "qkv_bias", mapping_has(m, "attn_q.bias"));
}

static void fill_deepseek(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_deepseek_experts(m);
    mapping_copy_real(m, "expert_weights_scale", "routed_scaling_factor", 0);
}

/* V2 and V2-Lite, or V3 and what follows its rule: told apart by the function that makes scores of the router's output. */
static void fill_deepseek2(struct gguf_mapping *m)
{
    const bool sigmoid = mapping_int_or(m, "expert_gating_func", 1) == 2;
    struct gguf_text pre = {"", 0};
    (void)gguf_string(m->g, "tokenizer.ggml.pre", &pre, NULL);
    const bool kimi = gguf_text_is(pre, "kimi-k2");
    if (!sigmoid && mapping_has(m, "exp_probs_b.bias"))
        mapping_fail(m, ERR_CORRUPT,
                     "'%s' is there, but 'deepseek2.expert_gating_func' is not 2 (sigmoid)",
                     mapping_find_in_any(m, "exp_probs_b.bias")->name);
    mapping_set_text(m, "model_type", !sigmoid ? "deepseek_v2" : kimi ? "kimi_k2" : "deepseek_v3");
    fill_experts(m);
    fill_deepseek_experts(m);
    mapping_copy_real(m, "expert_weights_scale", "routed_scaling_factor", 1);
    mapping_copy_int(m, "attention.head_count", "num_key_value_heads"); /* as config.json has it */

    /* Files of before 2025-09 do not say the groups: those of the published models with so many experts (V3 and R1, V2;
     * the others have none). */
    int64_t experts = mapping_int_or(m, "expert_count", 0);
    int64_t groups =
        mapping_int_or(m, "expert_group_count", experts == 256 || experts == 160 ? 8 : 1);
    int64_t used = mapping_int_or(m, "expert_group_used_count",
                                  experts == 256   ? 4
                                  : experts == 160 ? 3
                                                   : 1);
    if (groups == 0) groups = used = 1;
    mapping_set_int(m, "n_group", groups);
    mapping_set_int(m, "topk_group", used);
    mapping_set_text(m, "topk_method",
                     sigmoid      ? "noaux_tc"
                     : groups > 1 ? "group_limited_greedy"
                                  : "greedy");

    /* Until 2025 key_length was that of a head, and is that of the cache since. */
    int64_t rope = mapping_int_or(m, "rope.dimension_count", 0);
    int64_t key =
        mapping_int_or(m, "attention.key_length_mla", mapping_int_or(m, "attention.key_length", 0));
    int64_t value = mapping_int_or(m, "attention.value_length_mla",
                                   mapping_int_or(m, "attention.value_length", 0));
    if (rope < 1 || key <= rope)
        mapping_fail(m, ERR_CORRUPT,
                     "'rope.dimension_count' is %" PRId64 ", a key of a head %" PRId64 " wide",
                     rope, key);
    mapping_set_int(m, "qk_rope_head_dim", rope);
    mapping_set_int(m, "qk_nope_head_dim", key - rope);
    mapping_set_int(m, "v_head_dim", value);
    mapping_require_int(m, "attention.kv_lora_rank", "kv_lora_rank");
    /* Lite does not compress queries, and has no such key; what counts is the tensor. */
    const struct gguf_tensor *q_a = mapping_find_in_any(m, "attn_q_a.weight");
    int64_t rank = mapping_int_or(m, "attention.q_lora_rank", 0);
    if (q_a != NULL && rank == 0 && q_a->n_dims == 2 && q_a->dims[1] <= LIMIT_FFN_WIDTH)
        rank = (int64_t)q_a->dims[1];
    if (rank > 0 && (q_a != NULL || !mapping_has(m, "attn_q.weight")))
        mapping_set_int(m, "q_lora_rank", rank);
}

static void fill_olmoe(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    double clip;
    if (mapping_get_real(m, "attention.clamp_kqv", &clip) && clip > 0)
        mapping_set_real(m, "clip_qkv", clip);
}

/* Not in the file: windows on every second layer from 0 on, limit 7. */
static void fill_gpt_oss(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    mapping_copy_int(m, "attention.sliding_window", "sliding_window");
    mapping_set_bool(m, "attention_bias", true);
    mapping_set(m, "swiglu_limit", json_real(7));
}

static void fill_granitemoe(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    mapping_copy_real(m, "attention.scale", "attention_multiplier", 0);
    mapping_copy_real(m, "embedding_scale", "embedding_multiplier", 0);
    mapping_copy_real(m, "residual_scale", "residual_multiplier", 0);
    mapping_copy_real(m, "logit_scale", "logits_scaling", 0);
}

static void fill_phimoe(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    bool whole = m->set->n_absent == 0;
    mapping_set_bool(m, "attention_bias", !whole || mapping_has(m, "attn_q.bias"));
    mapping_set_bool(m, "lm_head_bias", !whole || mapping_find_tensor(m, "output.bias") != NULL);
    if (mapping_int_or(m, "attention.sliding_window", 0) > 0)
        mapping_copy_int(m, "attention.sliding_window", "sliding_window");
    mapping_set(m, "router_jitter_noise", json_real(0.01)); /* the published model's */
}

static void fill_glm4moe(struct gguf_mapping *m)
{
    fill_head_dim(m, true);
    fill_experts(m);
    fill_deepseek_experts(m);
    mapping_copy_real(m, "expert_weights_scale", "routed_scaling_factor", 0);
    int64_t groups = mapping_int_or(m, "expert_group_count", 1);
    mapping_set_int(m, "n_group", groups > 0 ? groups : 1);
    mapping_set_int(m, "topk_group",
                    groups > 0 ? mapping_int_or(m, "expert_group_used_count", 1) : 1);
    mapping_set_bool(m, "use_qk_norm", mapping_has(m, "attn_q_norm.weight"));
    mapping_set_bool(m, "attention_bias", mapping_has(m, "attn_q.bias"));
}

/* Grok-1. Old files have none of these keys: the published numbers. Its router is not capped, whatever
 * router_logit_softcapping says, which the converter always writes. Grok-2 has a dense expert beside the others. */
static void fill_grok(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    if (mapping_has(m, "ffn_up.weight"))
        mapping_fail(m, ERR_UNSUPPORTED, "'%s': Grok-2's dense expert is not supported",
                     mapping_find_in_any(m, "ffn_up.weight")->name);
    mapping_copy_real(m, "attn_logit_softcapping", "max_attn_value", 30);
    mapping_copy_real(m, "attention.output_scale", "attn_output_multiplier", 0.08838834764831845);
    mapping_copy_real(m, "embedding_scale", "embedding_multiplier_scale", 78.38367176906169);
    mapping_copy_real(m, "logit_scale", "output_multiplier_scale", 0.5773502691896257);
}

/* Not in the file: norms of q and k (Scout has them, Maverick with its 128 experts does not), every fourth layer without
 * rotation, the temperature of those. */
static void fill_llama4(struct gguf_mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    mapping_copy_int(m, "feed_forward_length", "intermediate_size_mlp");
    mapping_copy_int(m, "interleave_moe_layer_step", "interleave_moe_layer_step");
    mapping_set_int(m, "attention_chunk_size", mapping_int_or(m, "attention.chunk_size", 8192));
    mapping_set_bool(m, "use_qk_norm", mapping_int_or(m, "expert_count", 0) != 128);
    mapping_set_bool(m, "attn_temperature_tuning", true);
}

/* clang-format off */
const struct gguf_arch gguf_archs[] = {
    /* name        model_type    number of experts    permuted gating norm_topk */
    {"llama",      NULL,         "num_local_experts", true,  SOFTMAX, -1, {"attention.sliding_window"}, fill_llama},
    {"qwen2",      "qwen2",      NULL,                false, 0,       -1, {NULL}, fill_qwen},
    {"qwen3",      "qwen3",      NULL,                false, 0,       -1, {NULL}, fill_qwen},
    {"qwen2moe",   "qwen2_moe",  "num_experts",       false, SOFTMAX,  0, {"expert_shared_feed_forward_length"}, fill_qwen2_moe},
    {"qwen3moe",   "qwen3_moe",  "num_experts",       false, SOFTMAX,  1, {NULL}, fill_qwen_moe},
    {"deepseek",   "deepseek",   "n_routed_experts",  true,  SOFTMAX,  0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale"}, fill_deepseek},
    {"deepseek2",  NULL,         "n_routed_experts",  false, SOFTMAX | SIGMOID, 0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale", "expert_group_count",
      "expert_group_used_count", "attention.q_lora_rank", "attention.kv_lora_rank", "rope.scaling.yarn_log_multiplier"},
     fill_deepseek2},
    {"olmoe",      "olmoe",      "num_experts",       false, SOFTMAX,  0, {"attention.clamp_kqv"}, fill_olmoe},
    {"gpt-oss",    "gpt_oss",    "num_local_experts", false, SOFTMAX_CHOSEN, -1, {"attention.sliding_window"}, fill_gpt_oss},
    {"granitemoe", "granitemoe", "num_local_experts", true,  SOFTMAX | SOFTMAX_CHOSEN, -1,
     {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}, fill_granitemoe},
    {"phimoe",     "phimoe",     "num_local_experts", false, SOFTMAX, -1,
     {"attention.sliding_window", "rope.scaling.attn_factor"}, fill_phimoe},
    {"glm4moe",    "glm4_moe",   "n_routed_experts",  false, SIGMOID,  0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale", "expert_group_count",
      "expert_group_used_count"}, fill_glm4moe},
    {"grok",       "grok-1",     "num_experts",       false, SOFTMAX, -1,
     {"attn_logit_softcapping", "router_logit_softcapping", "attention.output_scale", "embedding_scale", "logit_scale"},
     fill_grok},
    {"llama4",     "llama4_text", "num_local_experts", false, SIGMOID, -1,
     {"interleave_moe_layer_step", "attention.chunk_size"}, fill_llama4},
    {.name = NULL},
};
/* clang-format on */
