#include "common/modelfile/plan.h"

#include <assert.h>
#include <string.h>

#include "common/modelfile/weights.h"
#include "common/tensor/panel.h"

static const char *const quantize_names[QUANTIZE_N] = {
    [QUANTIZE_NONE] = "none", [QUANTIZE_Q8_0] = "q8_0"};

const char *quantize_name(enum quantize q)
{
    assert(q < QUANTIZE_N);
    return quantize_names[q];
}

bool quantize_find(const char *name, enum quantize *out)
{
    for (uint32_t q = 0; q < QUANTIZE_N; q++)
        if (strcmp(name, quantize_names[q]) == 0) {
            *out = (enum quantize)q;
            return true;
        }
    return false;
}

static bool is_quantizable(enum weight_role role)
{
    switch (role) {
    case W_HEAD:
    case W_Q:
    case W_K:
    case W_V:
    case W_O:
    case W_DENSE_GATE:
    case W_DENSE_UP:
    case W_DENSE_DOWN:
    case W_EXPERT_GATE:
    case W_EXPERT_UP:
    case W_EXPERT_DOWN:
        return true;
    default:
        return false;
    }
}

enum dtype plan_dtype(enum weight_role role, const struct tensor *t, enum quantize q)
{
    bool fits = t->n_dims == 2 && t->dims[1] % dtype_block(DTYPE_Q8_0) == 0;
    return q == QUANTIZE_Q8_0 && fits && is_quantizable(role) ? DTYPE_Q8_0 : t->dtype;
}

enum dtype plan_kv_dtype(const struct model_file *f, enum quantize q)
{
    enum dtype k = plan_dtype(W_K, model_file_find(f, W_K, 0, 0), q);
    enum dtype v = plan_dtype(W_V, model_file_find(f, W_V, 0, 0), q);
    return k == DTYPE_F32 && v == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
}

uint64_t plan_packed_bytes(enum dtype t, uint64_t n, uint64_t k)
{
    if (t >= DTYPE_N_NATIVE) return 0; /* no tensor that is needed has it */
    return panel_count(n) * panel_bytes(panel_dtype(t, k), k);
}

static uint64_t packed(const struct model_file *f, enum quantize q, enum weight_role role,
                       uint32_t layer)
{
    const struct tensor *t = model_file_find(f, role, layer, 0);
    return t == NULL ? 0 : plan_packed_bytes(plan_dtype(role, t, q), t->dims[0], t->dims[1]);
}

uint64_t plan_expert_bytes(const struct model_file *f, enum quantize q, uint32_t layer)
{
    assert(model_file_hparams(f)->is_moe[layer]);
    return packed(f, q, W_EXPERT_GATE, layer) + packed(f, q, W_EXPERT_UP, layer) +
           packed(f, q, W_EXPERT_DOWN, layer);
}

uint64_t plan_experts_bytes(const struct model_file *f, enum quantize q,
                            const struct expert_set *held)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < held->n_layers; l++) {
        uint32_t n = expert_set_count_layer(held, l);
        if (n > 0) sum += n * plan_expert_bytes(f, q, l);
    }
    return sum;
}

static uint64_t n_elements(const struct tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i]; /* checked against the file's size at open */
    return n;
}

static void add_layer_weight(struct plan_coordinator *p, const struct model_file *f,
                             enum quantize q, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(f, role, layer, 0);
    if (t == NULL) return;
    switch (role) {
    case W_Q:
    case W_K:
    case W_V:
    case W_O:
        p->attention += packed(f, q, role, layer);
        break;
    case W_DENSE_GATE:
    case W_DENSE_UP:
    case W_DENSE_DOWN:
        p->dense += packed(f, q, role, layer);
        break;
    case W_ROUTER:
        p->router += plan_packed_bytes(DTYPE_F32, t->dims[0], t->dims[1]);
        break;
    default:
        p->vectors += 4 * n_elements(t);
        break;
    }
}

struct plan_coordinator plan_coordinator(const struct model_file *f, enum quantize q)
{
    struct plan_coordinator p = {.embedding = model_file_find(f, W_EMBED, 0, 0)->bytes,
                                 .head = packed(f, q, W_HEAD, 0),
                                 .vectors = 4 * n_elements(model_file_find(f, W_FINAL_NORM, 0, 0))};
    for (uint32_t l = 0; l < model_file_hparams(f)->n_layers; l++)
        for (uint32_t r = 0; r < W_N_ROLES; r++)
            if (weight_scope((enum weight_role)r) == SCOPE_LAYER)
                add_layer_weight(&p, f, q, (enum weight_role)r, l);
    p.total = p.embedding + p.attention + p.dense + p.router + p.head + p.vectors;
    return p;
}

uint64_t plan_kv_bytes_per_token(const struct model_file *f, enum quantize q)
{
    const struct hparams *hp = model_file_hparams(f);
    return 2ull * hp->n_kv_heads * hp->head_dim * hp->n_layers *
           dtype_bytes(plan_kv_dtype(f, q), 1);
}

struct plan_params plan_params(const struct model_file *f)
{
    const struct hparams *hp = model_file_hparams(f);
    struct plan_params p = {0};
    for (uint32_t r = 0; r < W_N_ROLES; r++) {
        enum weight_role role = (enum weight_role)r;
        uint32_t layers = weight_scope(role) == SCOPE_MODEL ? 1 : hp->n_layers;
        for (uint32_t l = 0; l < layers; l++) {
            const struct tensor *t = model_file_find(f, role, l, 0);
            if (t == NULL || (role == W_HEAD && hp->tied_head)) continue;
            bool expert = weight_scope(role) == SCOPE_EXPERT;
            p.total += n_elements(t) * (expert ? hp->n_experts : 1);
            p.active += n_elements(t) * (expert ? hp->top_k : 1);
            if (expert) p.experts += n_elements(t) * hp->n_experts;
        }
    }
    return p;
}
