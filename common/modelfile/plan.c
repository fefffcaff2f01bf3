#include "common/modelfile/plan.h"

#include <assert.h>
#include <string.h>

#include "common/base/log.h"
#include "common/modelfile/weights.h"
#include "common/tensor/panel.h"

static const struct {
    const char *name;
    enum dtype dtype;
} quantizes[QUANTIZE_N] = {[QUANTIZE_NONE] = {"none", DTYPE_N},
                           [QUANTIZE_Q8_0] = {"q8_0", DTYPE_Q8_0},
                           [QUANTIZE_Q4_0] = {"q4_0", DTYPE_Q4_0},
                           [QUANTIZE_MXFP4] = {"mxfp4", DTYPE_MXFP4}};

const char *quantize_name(enum quantize q)
{
    assert(q < QUANTIZE_N);
    return quantizes[q].name;
}

const char *quantize_names(void)
{
    return "none, q8_0, q4_0, mxfp4";
}

bool quantize_find(const char *name, enum quantize *out)
{
    for (uint32_t q = 0; q < QUANTIZE_N; q++)
        if (strcmp(name, quantizes[q].name) == 0) {
            *out = (enum quantize)q;
            return true;
        }
    return false;
}

static bool is_quantizable(enum weight_role role)
{
    switch (weight_class(role)) {
    case CLASS_ATTENTION:
    case CLASS_DENSE:
    case CLASS_SHARED:
    case CLASS_HEAD:
    case CLASS_EXPERT:
        return true;
    default:
        return false;
    }
}

/* Rows of k numbers of a type, packed. */
static enum dtype packed_dtype(enum dtype t, uint64_t k, bool quantizable, enum quantize q)
{
    bool wide = t == DTYPE_F32 || t == DTYPE_F16 || t == DTYPE_BF16 || t == DTYPE_F8_E4M3;
    if (q != QUANTIZE_NONE && quantizable && wide && k % dtype_block(quantizes[q].dtype) == 0)
        return quantizes[q].dtype;
    return dtype_repacked(t);
}

enum dtype plan_dtype(enum weight_role role, const struct tensor *t, enum quantize q)
{
    return packed_dtype(t->dtype, tensor_columns(t), t->n_dims >= 2 && is_quantizable(role), q);
}

enum dtype plan_latent_key_dtype(const struct model_file *f, const struct tensor *t,
                                 enum quantize q)
{
    const uint32_t nope = model_file_hparams(f)->mla.nope;
    bool as_it_is = dtype_block(t->dtype) == 1 && t->dtype != DTYPE_F8_E4M3;
    if (t->n_dims == 3) return plan_dtype(W_K_B, t, q); /* it comes transposed */
    return packed_dtype(as_it_is ? t->dtype : DTYPE_F32, nope, true, q);
}

enum dtype plan_kv_dtype(const struct model_file *f, enum quantize q)
{
    bool latent = model_file_hparams(f)->mla.kv_rank > 0;
    enum weight_role roles[] = {latent ? W_KV_A : W_K, latent ? W_KV_A : W_V};
    for (uint32_t i = 0; i < 2; i++)
        if (plan_dtype(roles[i], model_file_find(f, roles[i], 0, 0), q) != DTYPE_F32)
            return DTYPE_BF16;
    return DTYPE_F32;
}

bool plan_reply_f32(const struct model_file *f, enum quantize q)
{
    const struct hparams *hp = model_file_hparams(f);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        for (uint32_t e = 0; e < hp->n_experts && hp->is_moe[l]; e++) {
            const struct tensor *t = model_file_find(f, W_EXPERT_DOWN, l, e);
            if (t != NULL && plan_dtype(W_EXPERT_DOWN, t, q) != DTYPE_F32) return false;
        }
    return true;
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

static uint64_t vector_bytes(const struct model_file *f, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(f, role, layer, 0);
    return t == NULL ? 0 : sizeof(float) * tensor_n_elements(t);
}

static uint64_t round_up_64(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

uint64_t plan_expert_bytes(const struct model_file *f, enum quantize q, uint32_t layer)
{
    assert(model_file_hparams(f)->is_moe[layer]);
    uint64_t bytes = 0;
    for (int role = W_EXPERT_GATE; role <= W_EXPERT_DOWN; role++)
        bytes += packed(f, q, (enum weight_role)role, layer);
    for (int role = W_EXPERT_GATE_BIAS; role <= W_EXPERT_DOWN_BIAS; role++)
        bytes += round_up_64(vector_bytes(f, (enum weight_role)role, layer));
    return bytes;
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

/* The expansion of latent keys and values, in one tensor or two: held per head. */
static uint64_t latent_bytes(const struct model_file *f, enum quantize q, uint32_t layer)
{
    const struct hparams *hp = model_file_hparams(f);
    const struct tensor *both = model_file_find(f, W_KV_B, layer, 0);
    const struct tensor *keys = both != NULL ? both : model_file_find(f, W_K_B, layer, 0);
    const struct tensor *values = both != NULL ? both : model_file_find(f, W_V_B, layer, 0);
    if (keys == NULL || values == NULL) return 0;
    return hp->n_heads *
           (plan_packed_bytes(plan_latent_key_dtype(f, keys, q), hp->mla.kv_rank, hp->mla.nope) +
            plan_packed_bytes(plan_dtype(W_V_B, values, q), hp->value_dim, hp->mla.kv_rank));
}

static void add_layer_weight(struct plan_coordinator *p, const struct model_file *f,
                             enum quantize q, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(f, role, layer, 0);
    if (t == NULL || role == W_KV_B || role == W_K_B || role == W_V_B) return;
    switch (weight_class(role)) {
    case CLASS_ATTENTION:
        p->attention += packed(f, q, role, layer);
        break;
    case CLASS_DENSE:
        p->dense += packed(f, q, role, layer);
        break;
    case CLASS_SHARED:
        p->shared += packed(f, q, role, layer);
        break;
    case CLASS_ROUTER:
        p->router +=
            plan_packed_bytes(DTYPE_F32, t->n_dims == 1 ? 1 : t->dims[0], tensor_columns(t));
        break;
    default:
        p->vectors += vector_bytes(f, role, layer);
        break;
    }
}

struct plan_coordinator plan_coordinator(const struct model_file *f, enum quantize q)
{
    struct plan_coordinator p = {.embedding = model_file_find(f, W_EMBED, 0, 0)->bytes,
                                 .head = packed(f, q, W_HEAD, 0)};
    for (uint32_t r = 0; r < W_N_ROLES; r++) {
        enum weight_role role = (enum weight_role)r;
        if (weight_scope(role) == SCOPE_MODEL && weight_class(role) == CLASS_VECTOR)
            p.vectors += vector_bytes(f, role, 0);
    }
    for (uint32_t l = 0; l < model_file_hparams(f)->n_layers; l++) {
        for (uint32_t r = 0; r < W_N_ROLES; r++)
            if (weight_scope((enum weight_role)r) == SCOPE_LAYER)
                add_layer_weight(&p, f, q, (enum weight_role)r, l);
        p.attention += latent_bytes(f, q, l);
    }
    p.total = p.embedding + p.attention + p.dense + p.shared + p.router + p.head + p.vectors;
    return p;
}

static uint32_t add_repack(const struct tensor *t, enum dtype to, struct plan_repack *out,
                           uint32_t n)
{
    uint32_t i = 0;
    while (i < n && out[i].from != t->dtype)
        i++;
    if (i == n) out[n++] = (struct plan_repack){.from = t->dtype, .to = to};
    const uint64_t columns = tensor_columns(t), rows = tensor_n_elements(t) / columns;
    out[i].n_tensors++;
    out[i].file_bytes += rows * dtype_bytes(t->dtype, columns);
    out[i].memory_bytes += plan_packed_bytes(to, rows, columns);
    return n;
}

uint32_t plan_repacks(const struct model_file *f, enum quantize q, bool experts,
                      struct plan_repack out[PLAN_MAX_REPACKS])
{
    const struct hparams *hp = model_file_hparams(f);
    uint32_t n = 0;
    for (uint32_t r = 0; r < W_N_ROLES; r++) {
        const enum weight_role role = (enum weight_role)r;
        if ((weight_scope(role) == SCOPE_EXPERT) != experts || role == W_EMBED) continue;
        const uint32_t layers = weight_scope(role) == SCOPE_MODEL ? 1 : hp->n_layers;
        for (uint32_t l = 0; l < layers; l++)
            for (uint32_t e = 0; e < (experts ? hp->n_experts : 1); e++) {
                const struct tensor *t = model_file_find(f, role, l, e);
                if (t != NULL && t->dtype >= DTYPE_N_NATIVE)
                    n = add_repack(t, plan_dtype(role, t, q), out, n);
            }
    }
    return n;
}

void plan_log_repacks(const char *who, const struct model_file *f, enum quantize q, bool experts)
{
    struct plan_repack kinds[PLAN_MAX_REPACKS];
    const uint32_t n = plan_repacks(f, q, experts, kinds);
    for (uint32_t i = 0; i < n; i++)
        log_info(who, "repacked=%s as=%s lossless=%s tensors=%u file_bytes=%llu memory_bytes=%llu",
                 dtype_name(kinds[i].from), dtype_name(kinds[i].to),
                 dtype_repack_is_exact(kinds[i].from) ? "yes" : "no", kinds[i].n_tensors,
                 (unsigned long long)kinds[i].file_bytes,
                 (unsigned long long)kinds[i].memory_bytes);
}

uint64_t plan_kv_bytes_per_token(const struct model_file *f, enum quantize q)
{
    const struct hparams *hp = model_file_hparams(f);
    struct kv_shape kv = hparams_kv_shape(hp);
    uint64_t each = (uint64_t)kv.key_dim + (kv.value_in_key ? 0 : kv.value_dim);
    return each * kv.heads * hp->n_layers * dtype_bytes(plan_kv_dtype(f, q), 1);
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
            p.total += tensor_n_elements(t) * (expert ? hp->n_experts : 1);
            p.active += tensor_n_elements(t) * (expert ? hp->top_k : 1);
            if (expert) p.experts += tensor_n_elements(t) * hp->n_experts;
        }
    }
    return p;
}
