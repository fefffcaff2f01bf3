#include "common/modelfile/weights.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define LAYER "model.layers.{layer}."

/* Names that all families share; a family's table has the rest. */
static const char *const common_names[W_N_ROLES] = {
    [W_EMBED] = "model.embed_tokens.weight",
    [W_FINAL_NORM] = "model.norm.weight",
    [W_HEAD] = "lm_head.weight",
    [W_ATTN_NORM] = LAYER "input_layernorm.weight",
    [W_Q] = LAYER "self_attn.q_proj.weight",
    [W_K] = LAYER "self_attn.k_proj.weight",
    [W_V] = LAYER "self_attn.v_proj.weight",
    [W_O] = LAYER "self_attn.o_proj.weight",
    [W_Q_BIAS] = LAYER "self_attn.q_proj.bias",
    [W_K_BIAS] = LAYER "self_attn.k_proj.bias",
    [W_V_BIAS] = LAYER "self_attn.v_proj.bias",
    [W_O_BIAS] = LAYER "self_attn.o_proj.bias",
    [W_Q_NORM] = LAYER "self_attn.q_norm.weight",
    [W_K_NORM] = LAYER "self_attn.k_norm.weight",
    [W_FFN_NORM] = LAYER "post_attention_layernorm.weight",
    [W_ROUTER] = LAYER "mlp.gate.weight",
    [W_DENSE_GATE] = LAYER "mlp.gate_proj.weight",
    [W_DENSE_UP] = LAYER "mlp.up_proj.weight",
    [W_DENSE_DOWN] = LAYER "mlp.down_proj.weight",
    [W_EXPERT_GATE] = LAYER "mlp.experts.{expert}.gate_proj.weight",
    [W_EXPERT_UP] = LAYER "mlp.experts.{expert}.up_proj.weight",
    [W_EXPERT_DOWN] = LAYER "mlp.experts.{expert}.down_proj.weight",
};

static const char *const family_names[FAMILY_N][W_N_ROLES] = {
    [FAMILY_MIXTRAL] =
        {
            [W_ROUTER] = LAYER "block_sparse_moe.gate.weight",
            [W_EXPERT_GATE] = LAYER "block_sparse_moe.experts.{expert}.w1.weight",
            [W_EXPERT_UP] = LAYER "block_sparse_moe.experts.{expert}.w3.weight",
            [W_EXPERT_DOWN] = LAYER "block_sparse_moe.experts.{expert}.w2.weight",
        },
    [FAMILY_QWEN3_MOE] = {NULL},
    [FAMILY_OLMOE] = {NULL},
};

enum weight_scope weight_scope(enum weight_role role)
{
    switch (role) {
    case W_EMBED:
    case W_FINAL_NORM:
    case W_HEAD:
        return SCOPE_MODEL;
    case W_EXPERT_GATE:
    case W_EXPERT_UP:
    case W_EXPERT_DOWN:
        return SCOPE_EXPERT;
    default:
        return SCOPE_LAYER;
    }
}

const char *weight_role_name(enum weight_role role)
{
    static const char *const names[W_N_ROLES] = {
        [W_EMBED] = "embedding",
        [W_FINAL_NORM] = "final norm",
        [W_HEAD] = "head",
        [W_ATTN_NORM] = "attention norm",
        [W_Q] = "attention q",
        [W_K] = "attention k",
        [W_V] = "attention v",
        [W_O] = "attention output",
        [W_Q_BIAS] = "attention q bias",
        [W_K_BIAS] = "attention k bias",
        [W_V_BIAS] = "attention v bias",
        [W_O_BIAS] = "attention output bias",
        [W_Q_NORM] = "q norm",
        [W_K_NORM] = "k norm",
        [W_FFN_NORM] = "feed-forward norm",
        [W_ROUTER] = "router",
        [W_DENSE_GATE] = "dense gate",
        [W_DENSE_UP] = "dense up",
        [W_DENSE_DOWN] = "dense down",
        [W_EXPERT_GATE] = "expert gate",
        [W_EXPERT_UP] = "expert up",
        [W_EXPERT_DOWN] = "expert down",
    };
    return (unsigned)role < W_N_ROLES ? names[role] : "?";
}

bool weight_shape(const struct hparams *hp, enum weight_role role, uint32_t layer, uint32_t *n_dims,
                  uint64_t dims[2])
{
    assert(weight_scope(role) == SCOPE_MODEL || layer < hp->n_layers);
    uint64_t d = hp->hidden, q = (uint64_t)hp->n_heads * hp->head_dim,
             kv = (uint64_t)hp->n_kv_heads * hp->head_dim;
    bool moe = weight_scope(role) != SCOPE_MODEL && hp->is_moe[layer];
    uint64_t out = 0, in = 0; /* in 0: a vector */
    bool has = true;
    switch (role) {
    case W_EMBED:
        out = hp->vocab, in = d;
        break;
    case W_HEAD:
        has = !hp->tied_head, out = hp->vocab, in = d;
        break;
    case W_FINAL_NORM:
    case W_ATTN_NORM:
    case W_FFN_NORM:
        out = d;
        break;
    case W_Q:
        out = q, in = d;
        break;
    case W_K:
    case W_V:
        out = kv, in = d;
        break;
    case W_O:
        out = d, in = q;
        break;
    case W_Q_BIAS:
        has = hp->attention_bias, out = q;
        break;
    case W_K_BIAS:
    case W_V_BIAS:
        has = hp->attention_bias, out = kv;
        break;
    case W_O_BIAS:
        has = hp->attention_out_bias, out = d;
        break;
    case W_Q_NORM:
        has = hp->qk_norm != QK_NORM_NONE, out = hp->qk_norm == QK_NORM_FULL ? q : hp->head_dim;
        break;
    case W_K_NORM:
        has = hp->qk_norm != QK_NORM_NONE, out = hp->qk_norm == QK_NORM_FULL ? kv : hp->head_dim;
        break;
    case W_ROUTER:
        has = moe, out = hp->n_experts, in = d;
        break;
    case W_DENSE_GATE:
    case W_DENSE_UP:
        has = !moe, out = hp->dense_width, in = d;
        break;
    case W_DENSE_DOWN:
        has = !moe, out = d, in = hp->dense_width;
        break;
    case W_EXPERT_GATE:
    case W_EXPERT_UP:
        has = moe, out = hp->expert_width, in = d;
        break;
    case W_EXPERT_DOWN:
        has = moe, out = d, in = hp->expert_width;
        break;
    case W_N_ROLES:
        has = false;
        break;
    }
    if (!has) return false;
    *n_dims = in > 0 ? 2 : 1;
    dims[0] = out;
    dims[1] = in;
    return true;
}

void weight_name(enum family family, enum weight_role role, uint32_t layer, uint32_t expert,
                 char out[WEIGHT_NAME_MAX])
{
    assert(family < FAMILY_N && role < W_N_ROLES);
    const char *p =
        family_names[family][role] != NULL ? family_names[family][role] : common_names[role];
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
