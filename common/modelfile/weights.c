#include "common/modelfile/weights.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/modelfile/family.h"

#define LAYER   "model.layers.{layer}."
#define EXPERTS LAYER "mlp.experts.{expert}."
#define BLK     "blk.{layer}."

/* Names that most families share; a family's own places come first. */
static const struct weight_place hf_places[] = {
    {"model.embed_tokens.weight", .role = W_EMBED},
    {"model.norm.weight", .role = W_FINAL_NORM},
    {"model.norm.bias", .role = W_FINAL_NORM_BIAS},
    {"lm_head.weight", .role = W_HEAD},
    {"lm_head.bias", .role = W_HEAD_BIAS},
    {LAYER "input_layernorm.weight", .role = W_ATTN_NORM},
    {LAYER "input_layernorm.bias", .role = W_ATTN_NORM_BIAS},
    {LAYER "self_attn.q_proj.weight", .role = W_Q},
    {LAYER "self_attn.k_proj.weight", .role = W_K},
    {LAYER "self_attn.v_proj.weight", .role = W_V},
    {LAYER "self_attn.o_proj.weight", .role = W_O},
    {LAYER "self_attn.q_proj.bias", .role = W_Q_BIAS},
    {LAYER "self_attn.k_proj.bias", .role = W_K_BIAS},
    {LAYER "self_attn.v_proj.bias", .role = W_V_BIAS},
    {LAYER "self_attn.o_proj.bias", .role = W_O_BIAS},
    {LAYER "self_attn.q_norm.weight", .role = W_Q_NORM},
    {LAYER "self_attn.k_norm.weight", .role = W_K_NORM},
    {LAYER "post_attention_layernorm.weight", .role = W_FFN_NORM},
    {LAYER "post_attention_layernorm.bias", .role = W_FFN_NORM_BIAS},
    {LAYER "mlp.gate.weight", .role = W_ROUTER},
    {LAYER "mlp.gate.e_score_correction_bias", .role = W_ROUTER_CORRECTION},
    {LAYER "mlp.gate_proj.weight", .role = W_DENSE_GATE},
    {LAYER "mlp.up_proj.weight", .role = W_DENSE_UP},
    {LAYER "mlp.down_proj.weight", .role = W_DENSE_DOWN},
    {LAYER "mlp.shared_experts.gate_proj.weight", .role = W_SHARED_GATE},
    {LAYER "mlp.shared_experts.up_proj.weight", .role = W_SHARED_UP},
    {LAYER "mlp.shared_experts.down_proj.weight", .role = W_SHARED_DOWN},
    {EXPERTS "gate_proj.weight", .role = W_EXPERT_GATE},
    {EXPERTS "up_proj.weight", .role = W_EXPERT_UP},
    {EXPERTS "down_proj.weight", .role = W_EXPERT_DOWN},
    {.name = NULL},
};

/* GGUF has one set of names for all. Files of before 2024 have a tensor for each expert. */
static const struct weight_place gguf_places[] = {
    {"token_embd.weight", .role = W_EMBED},
    {"output_norm.weight", .role = W_FINAL_NORM},
    {"output_norm.bias", .role = W_FINAL_NORM_BIAS},
    {"output.weight", .role = W_HEAD},
    {"output.bias", .role = W_HEAD_BIAS},
    {BLK "attn_norm.weight", .role = W_ATTN_NORM},
    {BLK "attn_norm.bias", .role = W_ATTN_NORM_BIAS},
    {BLK "attn_output_norm.weight", .role = W_ATTN_POST_NORM},
    {BLK "attn_q.weight", .role = W_Q},
    {BLK "attn_k.weight", .role = W_K},
    {BLK "attn_v.weight", .role = W_V},
    {BLK "attn_output.weight", .role = W_O},
    {BLK "attn_q.bias", .role = W_Q_BIAS},
    {BLK "attn_k.bias", .role = W_K_BIAS},
    {BLK "attn_v.bias", .role = W_V_BIAS},
    {BLK "attn_output.bias", .role = W_O_BIAS},
    {BLK "attn_q_norm.weight", .role = W_Q_NORM},
    {BLK "attn_k_norm.weight", .role = W_K_NORM},
    {BLK "attn_sinks.weight", .role = W_SINKS},
    {BLK "attn_q_a.weight", .role = W_Q_A},
    {BLK "attn_q_a_norm.weight", .role = W_Q_A_NORM},
    {BLK "attn_q_b.weight", .role = W_Q},
    {BLK "attn_kv_a_mqa.weight", .role = W_KV_A},
    {BLK "attn_kv_a_norm.weight", .role = W_KV_A_NORM},
    {BLK "attn_kv_b.weight", .role = W_KV_B},
    {BLK "attn_k_b.weight", .role = W_K_B},
    {BLK "attn_v_b.weight", .role = W_V_B},
    {BLK "ffn_norm.weight", .role = W_FFN_NORM},
    {BLK "post_attention_norm.weight", .role = W_FFN_NORM},
    {BLK "ffn_norm.bias", .role = W_FFN_NORM_BIAS},
    {BLK "layer_output_norm.weight", .role = W_FFN_POST_NORM},
    {BLK "post_ffw_norm.weight", .role = W_FFN_POST_NORM},
    {BLK "ffn_gate_inp.weight", .role = W_ROUTER},
    {BLK "ffn_gate_inp.bias", .role = W_ROUTER_BIAS},
    {BLK "exp_probs_b.bias", .role = W_ROUTER_CORRECTION},
    {BLK "ffn_gate.weight", .role = W_DENSE_GATE},
    {BLK "ffn_up.weight", .role = W_DENSE_UP},
    {BLK "ffn_down.weight", .role = W_DENSE_DOWN},
    {BLK "ffn_gate_shexp.weight", .role = W_SHARED_GATE},
    {BLK "ffn_up_shexp.weight", .role = W_SHARED_UP},
    {BLK "ffn_down_shexp.weight", .role = W_SHARED_DOWN},
    {BLK "ffn_gate_inp_shexp.weight", .role = W_SHARED_SWITCH},
    {BLK "ffn_gate_exps.weight", .role = W_EXPERT_GATE, .stacked = true},
    {BLK "ffn_gate_up_exps.weight", .role = W_EXPERT_GATE, .stacked = true, .part = PART_LOW},
    {BLK "ffn_gate.{expert}.weight", .role = W_EXPERT_GATE},
    {BLK "ffn_up_exps.weight", .role = W_EXPERT_UP, .stacked = true},
    {BLK "ffn_gate_up_exps.weight", .role = W_EXPERT_UP, .stacked = true, .part = PART_HIGH},
    {BLK "ffn_up.{expert}.weight", .role = W_EXPERT_UP},
    {BLK "ffn_down_exps.weight", .role = W_EXPERT_DOWN, .stacked = true},
    {BLK "ffn_down.{expert}.weight", .role = W_EXPERT_DOWN},
    {BLK "ffn_gate_exps.bias", .role = W_EXPERT_GATE_BIAS, .stacked = true},
    {BLK "ffn_up_exps.bias", .role = W_EXPERT_UP_BIAS, .stacked = true},
    {BLK "ffn_down_exps.bias", .role = W_EXPERT_DOWN_BIAS, .stacked = true},
    {.name = NULL},
};

static const struct {
    const char *text;
    enum weight_scope scope;
    enum weight_class class;
} roles[W_N_ROLES] = {
#define ROLE(name, text, scope, class) [W_##name] = {text, SCOPE_##scope, CLASS_##class},
#include "common/modelfile/weight_roles.def"
#undef ROLE
};

enum weight_scope weight_scope(enum weight_role role)
{
    assert(role < W_N_ROLES);
    return roles[role].scope;
}

enum weight_class weight_class(enum weight_role role)
{
    assert(role < W_N_ROLES);
    return roles[role].class;
}

const char *weight_role_name(enum weight_role role)
{
    return (unsigned)role < W_N_ROLES ? roles[role].text : "?";
}

bool weight_shape(const struct hparams *hp, enum weight_role role, uint32_t layer, uint32_t *n_dims,
                  uint64_t dims[TENSOR_MAX_DIMS])
{
    assert(weight_scope(role) == SCOPE_MODEL || layer < hp->n_layers);
    const struct mla_params *mla = &hp->mla;
    const bool latent = mla->kv_rank > 0;
    const uint64_t d = hp->hidden, heads = hp->n_heads, q = heads * hp->head_dim,
                   k = (uint64_t)hp->n_kv_heads * hp->head_dim,
                   v = (uint64_t)hp->n_kv_heads * hp->value_dim;
    const bool moe = weight_scope(role) != SCOPE_MODEL && hp->is_moe[layer];
    const bool dense = !moe, shared = moe && hp->shared_width > 0;
    const bool layer_norm = hp->norm == NORM_LAYER;
    const bool decodes = hp->n_encoder_layers > 0 && layer >= hp->n_encoder_layers;
    const bool has_up = hp->activation != FFN_RELU;
    uint64_t outer = 0, out = 0, in = 0; /* in 0: a vector */
    bool has = true;
    switch (role) {
    case W_EMBED:
        out = hp->vocab, in = d;
        break;
    case W_HEAD:
        has = !hp->tied_head, out = hp->vocab, in = d;
        break;
    case W_HEAD_BIAS:
        has = hp->head_bias, out = hp->vocab;
        break;
    case W_FINAL_NORM:
    case W_ATTN_NORM:
    case W_FFN_NORM:
        out = d;
        break;
    case W_FINAL_NORM_BIAS:
    case W_ATTN_NORM_BIAS:
    case W_FFN_NORM_BIAS:
        has = layer_norm, out = d;
        break;
    case W_ATTN_POST_NORM:
    case W_FFN_POST_NORM:
        has = hp->post_norms, out = d;
        break;
    case W_Q: /* from the compressed query, if there is one */
        out = q, in = mla->q_rank > 0 ? mla->q_rank : d;
        break;
    case W_K:
        has = !latent, out = k, in = d;
        break;
    case W_V:
        has = !latent, out = v, in = d;
        break;
    case W_O:
        out = d, in = heads * hp->value_dim;
        break;
    case W_Q_BIAS:
        has = hp->attention_bias, out = q;
        break;
    case W_K_BIAS:
        has = hp->attention_bias, out = k;
        break;
    case W_V_BIAS:
        has = hp->attention_bias, out = v;
        break;
    case W_O_BIAS:
        has = hp->attention_out_bias, out = d;
        break;
    case W_Q_NORM:
        has = hp->qk_norm == QK_NORM_HEAD || hp->qk_norm == QK_NORM_FULL;
        out = hp->qk_norm == QK_NORM_FULL ? q : hp->head_dim;
        break;
    case W_K_NORM:
        has = hp->qk_norm == QK_NORM_HEAD || hp->qk_norm == QK_NORM_FULL;
        out = hp->qk_norm == QK_NORM_FULL ? k : hp->head_dim;
        break;
    case W_SINKS:
        has = hp->sinks, out = heads;
        break;
    case W_Q_A:
        has = mla->q_rank > 0, out = mla->q_rank, in = d;
        break;
    case W_Q_A_NORM:
        has = mla->q_rank > 0, out = mla->q_rank;
        break;
    case W_KV_A:
        has = latent, out = (uint64_t)mla->kv_rank + mla->rope, in = d;
        break;
    case W_KV_A_NORM:
        has = latent, out = mla->kv_rank;
        break;
    case W_KV_B:
        has = latent, out = heads * (mla->nope + hp->value_dim), in = mla->kv_rank;
        break;
    case W_K_B:
        has = latent, outer = heads, out = mla->kv_rank, in = mla->nope;
        break;
    case W_V_B:
        has = latent, outer = heads, out = hp->value_dim, in = mla->kv_rank;
        break;
    case W_ENCODER_NORM:
        has = hp->n_encoder_layers > 0, out = d;
        break;
    case W_RELATIVE_BIAS:
        has = hp->relative_bias.buckets > 0 && (layer == 0 || layer == hp->n_encoder_layers);
        out = hp->relative_bias.buckets, in = heads;
        break;
    case W_CROSS_NORM:
        has = decodes, out = d;
        break;
    case W_CROSS_Q:
        has = decodes, out = q, in = d;
        break;
    case W_CROSS_K:
        has = decodes, out = k, in = d;
        break;
    case W_CROSS_V:
        has = decodes, out = v, in = d;
        break;
    case W_CROSS_O:
        has = decodes, out = d, in = heads * hp->value_dim;
        break;
    case W_ROUTER:
        has = moe, out = hp->n_experts, in = d;
        break;
    case W_ROUTER_BIAS:
        has = moe && hp->router.bias, out = hp->n_experts;
        break;
    case W_ROUTER_CORRECTION:
        has = moe && hp->router.correction, out = hp->n_experts;
        break;
    case W_DENSE_GATE:
    case W_DENSE_UP:
        has = dense && (has_up || role == W_DENSE_GATE), out = hp->dense_width, in = d;
        break;
    case W_DENSE_DOWN:
        has = dense, out = d, in = hp->dense_width;
        break;
    case W_SHARED_GATE:
    case W_SHARED_UP:
        has = shared, out = hp->shared_width, in = d;
        break;
    case W_SHARED_DOWN:
        has = shared, out = d, in = hp->shared_width;
        break;
    case W_SHARED_SWITCH:
        has = shared && hp->shared_gated, out = d;
        break;
    case W_EXPERT_GATE:
    case W_EXPERT_UP:
        has = moe && (has_up || role == W_EXPERT_GATE), out = hp->expert_width, in = d;
        break;
    case W_EXPERT_DOWN:
        has = moe, out = d, in = hp->expert_width;
        break;
    case W_EXPERT_GATE_BIAS:
    case W_EXPERT_UP_BIAS:
        has = moe && hp->expert_bias, out = hp->expert_width;
        break;
    case W_EXPERT_DOWN_BIAS:
        has = moe && hp->expert_bias, out = d;
        break;
    case W_N_ROLES:
        has = false;
        break;
    }
    if (!has) return false;
    *n_dims = 0;
    if (outer > 0) dims[(*n_dims)++] = outer;
    dims[(*n_dims)++] = out;
    if (in > 0) dims[(*n_dims)++] = in;
    return true;
}

/* The i-th entry of a role in a list; *i counts on past it when there are fewer. */
static const struct weight_place *find_place(const struct weight_place *list, enum weight_role role,
                                             enum weight_stack stack, uint32_t *i)
{
    for (; list != NULL && list->name != NULL; list++)
        if (list->role == role && (list->stack == STACK_ANY || list->stack == stack) && (*i)-- == 0)
            return list;
    return NULL;
}

uint32_t weight_place_layer(const struct hparams *hp, const struct weight_place *place,
                            uint32_t layer)
{
    return place->stack == STACK_DECODER ? layer - hp->n_encoder_layers : layer;
}

bool weight_place(const struct hparams *hp, enum weight_files files, enum weight_role role,
                  uint32_t layer, uint32_t i, struct weight_place *out)
{
    const struct weight_place *found = NULL;
    const enum weight_stack stack = layer < hp->n_encoder_layers ? STACK_ENCODER : STACK_DECODER;
    if (files == FILES_HF) {
        found = find_place(family_rule(hp->family)->places, role, stack, &i);
        if (found == NULL) found = find_place(hf_places, role, stack, &i);
    } else {
        found = find_place(gguf_places, role, stack, &i);
    }
    if (found != NULL) *out = *found;
    return found != NULL;
}

void weight_place_shape(const struct weight_place *place, uint32_t n_experts, uint32_t *n_dims,
                        uint64_t dims[TENSOR_MAX_DIMS])
{
    uint32_t last = *n_dims - 1, out = last > 0 ? last - 1 : 0;
    if (place->part != PART_ALL) dims[out] *= 2;
    if (place->transposed && last > 0) {
        uint64_t swap = dims[last];
        dims[last] = dims[out];
        dims[out] = swap;
    }
    if (place->scales != NULL) {
        assert(!place->transposed);
        dims[last] = dims[last] / 32;
        dims[++last] = 16;
    }
    if (place->stacked) {
        assert(last + 1 < TENSOR_MAX_DIMS);
        memmove(dims + 1, dims, (last + 1) * sizeof *dims);
        dims[0] = n_experts;
        last++;
    }
    *n_dims = last + 1;
}

void weight_name(const char *pattern, uint32_t layer, uint32_t expert, char out[WEIGHT_NAME_MAX])
{
    const char *p = pattern;
    size_t n = 0;
    while (*p != '\0' && n < WEIGHT_NAME_MAX - 11) { /* room for a number of 10 digits */
        const char *end = *p == '{' ? strchr(p, '}') : NULL;
        if (end == NULL) {
            out[n++] = *p++;
            continue;
        }
        n += (size_t)snprintf(out + n, WEIGHT_NAME_MAX - n, "%u", p[1] == 'l' ? layer : expert);
        p = end + 1;
    }
    assert(*p == '\0');
    out[n] = '\0';
}
