#include "common/modelfile/gguf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/utf8.h"

#define KEY_MAX   128u
#define MAX_HONOR 10u

struct mapping;

struct arch {
    const char *name;       /* general.architecture */
    const char *model_type; /* NULL: fill() says */
    const char *n_experts;  /* config.json's key; NULL: dense */
    bool permuted;
    uint32_t
        gating; /* bits of the expert_gating_func that the family has; without the key: as the family */
    int norm_topk; /* renormalization where the file does not say: 0, 1; -1: no key of config.json */
    const char *honors[MAX_HONOR];
    void (*fill)(struct mapping *m);
};

#define SOFTMAX        (1u << 1)
#define SIGMOID        (1u << 2)
#define SOFTMAX_CHOSEN (1u << 3)

/* The first fault sticks. */
struct mapping {
    const struct gguf_set *set;
    const struct gguf *g;
    const struct arch *arch;
    json_t *config;
    uint32_t n_layers;
    enum err_code rc;
    struct err *why;
};

/* Keys, behind "ARCH.", that change the numbers of some architecture. One that the file's does not honor may have the
 * values that do nothing, only. */
static const struct {
    const char *key;
    double inert, inert_too;
} refused[] = {
    {"attention.max_alibi_bias", 0, 0},
    {"attention.clamp_kqv", 0, 0},
    {"attn_logit_softcapping", 0, 0},
    {"router_logit_softcapping", 0, 0},
    {"final_logit_softcapping", 0, 0},
    {"attention.scale", 0, 0},
    {"attention.output_scale", 0, 1},
    {"attention.temperature_length", 0, 0},
    {"attention.temperature_scale", 0, 0},
    {"attention.value_scale", 0, 1},
    {"attention.sliding_window", 0, 0},
    {"attention.chunk_size", 0, 0},
    {"attention.shared_kv_layers", 0, 0},
    {"attention.q_lora_rank", 0, 0},
    {"attention.kv_lora_rank", 0, 0},
    {"attention.causal", 1, 1},
    {"embedding_scale", 0, 1},
    {"residual_scale", 0, 1},
    {"logit_scale", 0, 1},
    {"expert_weights_scale", 0, 1},
    {"expert_group_count", 0, 1},
    {"expert_group_used_count", 0, 1},
    {"expert_group_scale", 0, 1},
    {"expert_shared_count", 0, 0},
    {"expert_shared_feed_forward_length", 0, 0},
    {"experts_per_group", 0, 0},
    {"leading_dense_block_count", 0, 0},
    {"interleave_moe_layer_step", 0, 1},
    {"moe_every_n_layers", 0, 1},
    {"use_parallel_residual", 0, 0},
    {"rope.scaling.yarn_log_multiplier", 0, 0},
    {"rope.scaling.yarn_ext_factor", -1, 1},
    {"rope.scaling.yarn_attn_factor", 0, 1},
    {"rope.scaling.attn_factor", 0, 1},
};

/* ---- reading and writing ------------------------------------------------------------------------ */

static void fail(struct mapping *m, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(struct mapping *m, enum err_code code, const char *fmt, ...)
{
    if (m->rc != ERR_OK) return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    m->rc = err_set(m->why, code, "%s", text);
}

/* "ARCH.key"; arch names are ours and short. */
static const char *full_key(const struct mapping *m, const char *key, char out[KEY_MAX])
{
    snprintf(out, KEY_MAX, "%s.%s", m->arch->name, key);
    return out;
}

/* Whether a getter found something; what is missing is no fault. */
static bool found(struct mapping *m, enum err_code rc)
{
    if (rc != ERR_OK && rc != ERR_NOT_FOUND && m->rc == ERR_OK) m->rc = rc;
    return rc == ERR_OK;
}

static bool get_real(struct mapping *m, const char *key, double *out)
{
    char full[KEY_MAX];
    struct err own;
    if (m->rc != ERR_OK) return false;
    double x;
    enum err_code rc = gguf_real(m->g, full_key(m, key, full), &x, &own);
    if (rc == ERR_CORRUPT) fail(m, rc, "%s", own.text);
    if (rc != ERR_OK) return false;
    if (!isfinite(x)) {
        fail(m, ERR_CORRUPT, "key '%s' is not a finite number", full);
        return false;
    }
    *out = x;
    return true;
}

/* A number, or a list of one number for each layer, which must all be the same. */
static bool get_int(struct mapping *m, const char *key, int64_t *out)
{
    char full[KEY_MAX];
    struct err own;
    const struct gguf_value *v = gguf_find(m->g, full_key(m, key, full));
    if (m->rc != ERR_OK || v == NULL) return false;
    if (!v->is_array) {
        enum err_code rc = gguf_i64(m->g, full, out, &own);
        if (rc != ERR_OK) fail(m, rc, "%s", own.text);
        return rc == ERR_OK;
    }
    enum err_code rc = gguf_integers(m->g, full, &v, &own);
    if (rc != ERR_OK || v->n == 0) {
        fail(m, ERR_CORRUPT, "%s", rc != ERR_OK ? own.text : "an empty list of numbers by layer");
        return false;
    }
    int64_t first = 0, x;
    for (uint64_t i = 0; i < v->n; i++) {
        bool fits = gguf_i64_at(v, i, &x);
        if (i == 0) first = x;
        if (fits && x == first) continue;
        fail(m, ERR_UNSUPPORTED,
             "key '%s' is %" PRId64 " in layer 0 and %" PRId64 " in layer %" PRIu64
             ": layers of different widths are not supported",
             full, first, x, i);
        return false;
    }
    *out = first;
    return true;
}

static int64_t int_or(struct mapping *m, const char *key, int64_t fallback)
{
    get_int(m, key, &fallback);
    return fallback;
}

static bool bool_or(struct mapping *m, const char *key, bool fallback)
{
    char full[KEY_MAX];
    struct err own;
    enum err_code rc = gguf_bool(m->g, full_key(m, key, full), &fallback, &own);
    if (rc == ERR_CORRUPT) fail(m, rc, "%s", own.text);
    return fallback;
}

static void set(struct mapping *m, const char *key, json_t *v)
{
    if (v == NULL || json_object_set_new(m->config, key, v) != 0)
        if (m->rc == ERR_OK) m->rc = err_nomem(m->why, "the configuration");
}

static void set_int(struct mapping *m, const char *key, int64_t x)
{
    set(m, key, json_integer(x));
}

static void set_bool(struct mapping *m, const char *key, bool x)
{
    set(m, key, json_boolean(x));
}

static void set_text(struct mapping *m, const char *key, const char *s)
{
    set(m, key, json_string(s));
}

/* GGUF keeps reals in 32 bits; config.json had them in decimal. The shortest decimal that gives these 32 bits is what it
 * said: 0.2, not 0.20000000298. */
static double shortest(double x)
{
    char text[32];
    for (int digits = 1; digits < 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        double y = strtod(text, NULL);
        if (!((float)y < (float)x) && !((float)y > (float)x)) return y;
    }
    return x;
}

static void set_real(struct mapping *m, const char *key, double x)
{
    set(m, key, json_real(shortest(x)));
}

static void copy_int(struct mapping *m, const char *from, const char *to)
{
    int64_t x;
    if (get_int(m, from, &x)) set_int(m, to, x);
}

static void require_int(struct mapping *m, const char *from, const char *to)
{
    int64_t x;
    if (get_int(m, from, &x))
        set_int(m, to, x);
    else
        fail(m, ERR_CORRUPT, "key '%s.%s' is missing", m->arch->name, from);
}

/* `fallback` 0: leave the key out. */
static void copy_real(struct mapping *m, const char *from, const char *to, double fallback)
{
    double x = fallback;
    if (get_real(m, from, &x))
        set_real(m, to, x);
    else if (fallback > 0)
        set(m, to, json_real(fallback));
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static const struct gguf_tensor *find_tensor(const struct mapping *m, const char *name)
{
    const struct gguf_entry *e = gguf_set_find(m->set, name);
    return e != NULL ? e->tensor : NULL;
}

static const struct gguf_tensor *find_in_layer(const struct mapping *m, uint32_t layer,
                                               const char *suffix)
{
    char name[GGUF_NAME_MAX];
    snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, suffix);
    return find_tensor(m, name);
}

/* In the first layer that has it. */
static const struct gguf_tensor *find_in_any(const struct mapping *m, const char *suffix)
{
    const struct gguf_tensor *t = NULL;
    for (uint32_t l = 0; l < m->n_layers && t == NULL; l++)
        t = find_in_layer(m, l, suffix);
    return t;
}

static bool has(const struct mapping *m, const char *suffix)
{
    return find_in_any(m, suffix) != NULL;
}

/* A list of f32, into an array. NULL after a fault. */
static json_t *read_factors(struct mapping *m, const char *name)
{
    const struct gguf_entry *e = gguf_set_find(m->set, name);
    assert(e != NULL);
    const uint64_t n = e->tensor->dims[0];
    if (e->tensor->dtype != DTYPE_F32 || e->tensor->n_dims != 1 || n > LIMIT_HEAD_DIM / 2) {
        fail(m, ERR_CORRUPT,
             "tensor '%s': %s with %" PRIu32 " dimensions and rows of %" PRIu64
             ", it must be a list of at most %u F32",
             name, e->tensor->type_text, e->tensor->n_dims, n, LIMIT_HEAD_DIM / 2);
        return NULL;
    }
    float factors[LIMIT_HEAD_DIM / 2];
    memcpy(factors, gguf_set_data(m->set, e), n * sizeof *factors);
    json_t *list = json_array();
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(factors[i])) {
            fail(m, ERR_CORRUPT, "tensor '%s': element %" PRIu64 " is not finite", name, i);
            break;
        }
        if (list == NULL || json_array_append_new(list, json_real((double)factors[i])) != 0) {
            if (m->rc == ERR_OK) m->rc = err_nomem(m->why, "rope factors");
            break;
        }
    }
    if (list == NULL && m->rc == ERR_OK) m->rc = err_nomem(m->why, "rope factors");
    if (m->rc == ERR_OK) return list;
    json_decref(list);
    return NULL;
}

/* ---- rotary embedding --------------------------------------------------------------------------- */

/* Into m->config["rope_scaling"]: the writers above write to m->config, which is the inner object meanwhile. */
static void fill_scaling(struct mapping *m, const char *type)
{
    double x;
    set_text(m, "rope_type", type);
    if (get_real(m, "rope.scaling.factor", &x) || get_real(m, "rope.scale_linear", &x))
        set_real(m, "factor", x); /* the latter before 2023-11 */
    if (strcmp(type, "yarn") != 0) return;
    copy_int(m, "rope.scaling.original_context_length", "original_max_position_embeddings");
    copy_real(m, "rope.scaling.yarn_beta_fast", "beta_fast", 0);
    copy_real(m, "rope.scaling.yarn_beta_slow", "beta_slow", 0);
    /* gpt-oss says truncate: false, for which there is no key. */
    if (strcmp(m->arch->name, "gpt-oss") == 0) set_bool(m, "truncate", false);
    /* DeepSeek: 0.1 mscale_all_dim. mscale itself is not stored; in the published models it is the same. */
    if (get_real(m, "rope.scaling.yarn_log_multiplier", &x) && (x > 0 || x < 0)) {
        double mscale = shortest((double)(float)(shortest(x) * 10));
        set(m, "mscale", json_real(mscale));
        set(m, "mscale_all_dim", json_real(mscale));
    }
}

/* Long rope has two lists of factors in tensors, llama3's rule comes as one list of divisors. */
static void fill_lists(struct mapping *m, bool is_long)
{
    set_text(m, "rope_type", is_long ? "longrope" : "divisors");
    if (!is_long) {
        set(m, "divisors", read_factors(m, "rope_freqs.weight"));
        return;
    }
    set(m, "short_factor", read_factors(m, "rope_factors_short.weight"));
    if (m->rc == ERR_OK) set(m, "long_factor", read_factors(m, "rope_factors_long.weight"));
    copy_int(m, "rope.scaling.original_context_length", "original_max_position_embeddings");
    /* The published Phi-3.5-MoE has its own numbers, which GGUF does not store (attn_factor there is the general rule's). */
    set(m, "short_mscale", json_real(1.243163121016122));
    set(m, "long_mscale", json_real(1.243163121016122));
}

static void fill_rope(struct mapping *m)
{
    char full[KEY_MAX], type[16] = "none";
    struct err own;
    double linear;
    struct gguf_text text = {"none", 4};
    copy_real(m, "rope.freq_base", "rope_theta", 10000);
    enum err_code rc = gguf_string(m->g, full_key(m, "rope.scaling.type", full), &text, &own);
    if (rc == ERR_CORRUPT) fail(m, rc, "%s", own.text);
    if (rc == ERR_NOT_FOUND && get_real(m, "rope.scale_linear", &linear) &&
        (linear > 1 || linear < 1))
        text = (struct gguf_text){"linear", 6};
    snprintf(type, sizeof type, "%.*s", (int)(text.n < sizeof type ? text.n : sizeof type - 1),
             text.s);
    const bool divisors = find_tensor(m, "rope_freqs.weight") != NULL;
    const bool is_long = find_tensor(m, "rope_factors_long.weight") != NULL &&
                         find_tensor(m, "rope_factors_short.weight") != NULL;
    const bool stretched = strcmp(type, "linear") == 0 || strcmp(type, "yarn") == 0;
    if (!stretched && strcmp(type, "none") != 0 && strcmp(type, "longrope") != 0)
        fail(m, ERR_UNSUPPORTED,
             "key '%s.rope.scaling.type' is '%s': none, linear, yarn and longrope are supported",
             m->arch->name, utf8_valid(type, strlen(type)) ? type : "?");
    if (m->rc != ERR_OK || (!stretched && !divisors && !is_long)) return;
    if (stretched && (divisors || is_long)) {
        fail(m, ERR_UNSUPPORTED,
             "key '%s.rope.scaling.type' is '%s', and there are tensors of rope factors too",
             m->arch->name, type);
        return;
    }
    json_t *outer = m->config, *scaling = json_object();
    m->config = scaling;
    if (scaling == NULL)
        m->rc = err_nomem(m->why, "the configuration");
    else if (stretched)
        fill_scaling(m, type);
    else
        fill_lists(m, is_long);
    m->config = outer;
    if (scaling != NULL) set(m, "rope_scaling", scaling);
}

/* ---- what families share ------------------------------------------------------------------------ */

/* A head's width, rotated as a whole (or in part: *share then says so). */
static void fill_head_dim(struct mapping *m, bool partial)
{
    int64_t heads = int_or(m, "attention.head_count", 0), hidden = int_or(m, "embedding_length", 0);
    int64_t key = int_or(m, "attention.key_length", heads > 0 ? hidden / heads : 0);
    int64_t value = int_or(m, "attention.value_length", key);
    int64_t rope = int_or(m, "rope.dimension_count", key);
    if (key != value)
        fail(m, ERR_UNSUPPORTED,
             "'attention.key_length' %" PRId64 " and 'attention.value_length' %" PRId64
             " differ: that is not supported with '%s'",
             key, value, m->arch->name);
    if (!partial && rope != key)
        fail(m, ERR_UNSUPPORTED,
             "'rope.dimension_count' is %" PRId64 ", a head is %" PRId64
             " wide: rotating a part is not supported with '%s'",
             rope, key, m->arch->name);
    if (partial && (rope < 1 || rope > key))
        fail(m, ERR_CORRUPT, "'rope.dimension_count' is %" PRId64 ", a head is %" PRId64 " wide",
             rope, key);
    if (m->rc != ERR_OK) return;
    set_int(m, "head_dim", key);
    if (partial) set(m, "partial_rotary_factor", json_real((double)rope / (double)key));
}

/* Width of the routed experts: the key, or (the first files with experts had none) the tensor's rows. */
static void fill_expert_width(struct mapping *m, const char *to)
{
    const struct gguf_tensor *t = find_in_any(m, "ffn_up_exps.weight");
    int64_t width = int_or(m, "feed_forward_length", 0);
    if (t != NULL && t->n_dims == 3 && t->dims[1] <= LIMIT_FFN_WIDTH) width = (int64_t)t->dims[1];
    set_int(m, to, int_or(m, "expert_feed_forward_length", width));
}

static void fill_experts(struct mapping *m)
{
    const struct arch *a = m->arch;
    require_int(m, "expert_used_count", "num_experts_per_tok");
    require_int(m, "expert_count", a->n_experts);
    int64_t gating = int_or(m, "expert_gating_func", 0);
    if (gating < 0 || gating > 31 || (gating != 0 && (a->gating >> gating & 1u) == 0))
        fail(m, ERR_UNSUPPORTED,
             "key '%s.expert_gating_func' %" PRId64 " is not supported with this architecture",
             a->name, gating);
    bool norm = bool_or(m, "expert_weights_norm", a->norm_topk != 0);
    if (a->norm_topk >= 0)
        set_bool(m, "norm_topk_prob", norm);
    else if (!norm)
        fail(m, ERR_UNSUPPORTED, "key '%s.expert_weights_norm': false is not supported", a->name);
}

/* Leading dense layers, shared experts, a factor on the gates: DeepSeek's, and GLM's. */
static void fill_deepseek_experts(struct mapping *m)
{
    fill_expert_width(m, "moe_intermediate_size");
    copy_int(m, "feed_forward_length", "intermediate_size");
    int64_t shared = int_or(m, "expert_shared_count", 0);
    if (shared == 0 && has(m, "ffn_up_shexp.weight"))
        fail(m, ERR_CORRUPT, "key '%s.expert_shared_count' is 0, but there is '%s'", m->arch->name,
             find_in_any(m, "ffn_up_shexp.weight")->name);
    set_int(m, "n_shared_experts", shared);
    int64_t dense = 0;
    while (dense < m->n_layers && find_in_layer(m, (uint32_t)dense, "ffn_up.weight") != NULL)
        dense++;
    set_int(m, "first_k_dense_replace", int_or(m, "leading_dense_block_count", dense));
}

/* Qwen's: layers without experts are those that have a dense one. */
static void fill_dense_layers(struct mapping *m)
{
    json_t *list = json_array();
    for (uint32_t l = 0; l < m->n_layers && list != NULL; l++)
        if (find_in_layer(m, l, "ffn_up.weight") != NULL &&
            json_array_append_new(list, json_integer(l)) != 0) {
            json_decref(list);
            list = NULL;
        }
    set(m, "mlp_only_layers", list);
}

/* ---- families ----------------------------------------------------------------------------------- */

static void fill_llama(struct mapping *m)
{
    fill_head_dim(m, false);
    copy_int(m, "feed_forward_length", "intermediate_size");
    const bool window = int_or(m, "attention.sliding_window", 0) > 0;
    if (int_or(m, "expert_count", 0) > 0) {
        set_text(m, "model_type", "mixtral");
        fill_experts(m);
        fill_expert_width(m, "intermediate_size");
    } else {
        set_text(m, "model_type", window ? "mistral" : "llama");
        if (has(m, "attn_q.bias")) set_bool(m, "attention_bias", true);
    }
    if (window) copy_int(m, "attention.sliding_window", "sliding_window");
}

static void fill_qwen(struct mapping *m)
{
    fill_head_dim(m, false);
    copy_int(m, "feed_forward_length", "intermediate_size");
}

static void fill_qwen_moe(struct mapping *m)
{
    fill_qwen(m);
    fill_experts(m);
    fill_expert_width(m, "moe_intermediate_size");
    fill_dense_layers(m);
}

static void fill_qwen2_moe(struct mapping *m)
{
    fill_qwen_moe(m);
    const struct gguf_tensor *t = find_in_any(m, "ffn_up_shexp.weight");
    int64_t width = t != NULL && t->n_dims == 2 && t->dims[1] <= LIMIT_FFN_WIDTH
                        ? (int64_t)t->dims[1]
                        : int_or(m, "feed_forward_length", 0);
    set_int(m, "shared_expert_intermediate_size",
            int_or(m, "expert_shared_feed_forward_length", width));
    if (m->set->n_absent == 0) set_bool(m, "qkv_bias", has(m, "attn_q.bias"));
}

static void fill_deepseek(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_deepseek_experts(m);
    copy_real(m, "expert_weights_scale", "routed_scaling_factor", 0);
}

/* V2 and V2-Lite, or V3 and what follows its rule: told apart by the function that makes scores of the router's output. */
static void fill_deepseek2(struct mapping *m)
{
    const bool sigmoid = int_or(m, "expert_gating_func", 1) == 2;
    struct gguf_text pre = {"", 0};
    (void)gguf_string(m->g, "tokenizer.ggml.pre", &pre, NULL);
    const bool kimi = gguf_text_is(pre, "kimi-k2");
    if (!sigmoid && has(m, "exp_probs_b.bias"))
        fail(m, ERR_CORRUPT, "'%s' is there, but 'deepseek2.expert_gating_func' is not 2 (sigmoid)",
             find_in_any(m, "exp_probs_b.bias")->name);
    set_text(m, "model_type", !sigmoid ? "deepseek_v2" : kimi ? "kimi_k2" : "deepseek_v3");
    fill_experts(m);
    fill_deepseek_experts(m);
    copy_real(m, "expert_weights_scale", "routed_scaling_factor", 1);
    copy_int(m, "attention.head_count", "num_key_value_heads"); /* as config.json has it */

    /* Files of before 2025-09 do not say the groups: those of the published models with so many experts (V3 and R1, V2;
     * the others have none). */
    int64_t experts = int_or(m, "expert_count", 0);
    int64_t groups = int_or(m, "expert_group_count", experts == 256 || experts == 160 ? 8 : 1);
    int64_t used = int_or(m, "expert_group_used_count",
                          experts == 256   ? 4
                          : experts == 160 ? 3
                                           : 1);
    if (groups == 0) groups = used = 1;
    set_int(m, "n_group", groups);
    set_int(m, "topk_group", used);
    set_text(m, "topk_method",
             sigmoid      ? "noaux_tc"
             : groups > 1 ? "group_limited_greedy"
                          : "greedy");

    /* Until 2025 key_length was that of a head, and is that of the cache since. */
    int64_t rope = int_or(m, "rope.dimension_count", 0);
    int64_t key = int_or(m, "attention.key_length_mla", int_or(m, "attention.key_length", 0));
    int64_t value = int_or(m, "attention.value_length_mla", int_or(m, "attention.value_length", 0));
    if (rope < 1 || key <= rope)
        fail(m, ERR_CORRUPT,
             "'rope.dimension_count' is %" PRId64 ", a key of a head %" PRId64 " wide", rope, key);
    set_int(m, "qk_rope_head_dim", rope);
    set_int(m, "qk_nope_head_dim", key - rope);
    set_int(m, "v_head_dim", value);
    require_int(m, "attention.kv_lora_rank", "kv_lora_rank");
    /* Lite does not compress queries, and has no such key; what counts is the tensor. */
    const struct gguf_tensor *q_a = find_in_any(m, "attn_q_a.weight");
    int64_t rank = int_or(m, "attention.q_lora_rank", 0);
    if (q_a != NULL && rank == 0 && q_a->n_dims == 2 && q_a->dims[1] <= LIMIT_FFN_WIDTH)
        rank = (int64_t)q_a->dims[1];
    if (rank > 0 && (q_a != NULL || !has(m, "attn_q.weight"))) set_int(m, "q_lora_rank", rank);
}

static void fill_olmoe(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    double clip;
    if (get_real(m, "attention.clamp_kqv", &clip) && clip > 0) set_real(m, "clip_qkv", clip);
}

/* Not in the file: windows on every second layer from 0 on, limit 7. */
static void fill_gpt_oss(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    copy_int(m, "attention.sliding_window", "sliding_window");
    set_bool(m, "attention_bias", true);
    set(m, "swiglu_limit", json_real(7));
}

static void fill_granitemoe(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    copy_real(m, "attention.scale", "attention_multiplier", 0);
    copy_real(m, "embedding_scale", "embedding_multiplier", 0);
    copy_real(m, "residual_scale", "residual_multiplier", 0);
    copy_real(m, "logit_scale", "logits_scaling", 0);
}

static void fill_phimoe(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    bool whole = m->set->n_absent == 0;
    set_bool(m, "attention_bias", !whole || has(m, "attn_q.bias"));
    set_bool(m, "lm_head_bias", !whole || find_tensor(m, "output.bias") != NULL);
    if (int_or(m, "attention.sliding_window", 0) > 0)
        copy_int(m, "attention.sliding_window", "sliding_window");
    set(m, "router_jitter_noise", json_real(0.01)); /* the published model's */
}

static void fill_glm4moe(struct mapping *m)
{
    fill_head_dim(m, true);
    fill_experts(m);
    fill_deepseek_experts(m);
    copy_real(m, "expert_weights_scale", "routed_scaling_factor", 0);
    int64_t groups = int_or(m, "expert_group_count", 1);
    set_int(m, "n_group", groups > 0 ? groups : 1);
    set_int(m, "topk_group", groups > 0 ? int_or(m, "expert_group_used_count", 1) : 1);
    set_bool(m, "use_qk_norm", has(m, "attn_q_norm.weight"));
    set_bool(m, "attention_bias", has(m, "attn_q.bias"));
}

/* Grok-1. Old files have none of these keys: the published numbers. Its router is not capped, whatever
 * router_logit_softcapping says, which the converter always writes. Grok-2 has a dense expert beside the others. */
static void fill_grok(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    if (has(m, "ffn_up.weight"))
        fail(m, ERR_UNSUPPORTED, "'%s': Grok-2's dense expert is not supported",
             find_in_any(m, "ffn_up.weight")->name);
    copy_real(m, "attn_logit_softcapping", "max_attn_value", 30);
    copy_real(m, "attention.output_scale", "attn_output_multiplier", 0.08838834764831845);
    copy_real(m, "embedding_scale", "embedding_multiplier_scale", 78.38367176906169);
    copy_real(m, "logit_scale", "output_multiplier_scale", 0.5773502691896257);
}

/* Not in the file: norms of q and k (Scout has them, Maverick with its 128 experts does not), every fourth layer without
 * rotation, the temperature of those. */
static void fill_llama4(struct mapping *m)
{
    fill_head_dim(m, false);
    fill_experts(m);
    fill_expert_width(m, "intermediate_size");
    copy_int(m, "feed_forward_length", "intermediate_size_mlp");
    copy_int(m, "interleave_moe_layer_step", "interleave_moe_layer_step");
    set_int(m, "attention_chunk_size", int_or(m, "attention.chunk_size", 8192));
    set_bool(m, "use_qk_norm", int_or(m, "expert_count", 0) != 128);
    set_bool(m, "attn_temperature_tuning", true);
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static const struct arch archs[] = {
    {"llama",
     NULL,
     "num_local_experts",
     true,
     SOFTMAX,
     -1,
     {"attention.sliding_window"},
     fill_llama},
    {"qwen2", "qwen2", NULL, false, 0, -1, {NULL}, fill_qwen},
    {"qwen3", "qwen3", NULL, false, 0, -1, {NULL}, fill_qwen},
    {"qwen2moe",
     "qwen2_moe",
     "num_experts",
     false,
     SOFTMAX,
     0,
     {"expert_shared_feed_forward_length"},
     fill_qwen2_moe},
    {"qwen3moe", "qwen3_moe", "num_experts", false, SOFTMAX, 1, {NULL}, fill_qwen_moe},
    {"deepseek",
     "deepseek",
     "n_routed_experts",
     true,
     SOFTMAX,
     0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale"},
     fill_deepseek},
    {"deepseek2",
     NULL,
     "n_routed_experts",
     false,
     SOFTMAX | SIGMOID,
     0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale",
      "expert_group_count", "expert_group_used_count", "attention.q_lora_rank",
      "attention.kv_lora_rank", "rope.scaling.yarn_log_multiplier"},
     fill_deepseek2},
    {"olmoe", "olmoe", "num_experts", false, SOFTMAX, 0, {"attention.clamp_kqv"}, fill_olmoe},
    {"gpt-oss",
     "gpt_oss",
     "num_local_experts",
     false,
     SOFTMAX_CHOSEN,
     -1,
     {"attention.sliding_window"},
     fill_gpt_oss},
    {"granitemoe",
     "granitemoe",
     "num_local_experts",
     true,
     SOFTMAX | SOFTMAX_CHOSEN,
     -1,
     {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"},
     fill_granitemoe},
    {"phimoe",
     "phimoe",
     "num_local_experts",
     false,
     SOFTMAX,
     -1,
     {"attention.sliding_window", "rope.scaling.attn_factor"},
     fill_phimoe},
    {"glm4moe",
     "glm4_moe",
     "n_routed_experts",
     false,
     SIGMOID,
     0,
     {"expert_shared_count", "leading_dense_block_count", "expert_weights_scale",
      "expert_group_count", "expert_group_used_count"},
     fill_glm4moe},
    {"grok",
     "grok-1",
     "num_experts",
     false,
     SOFTMAX,
     -1,
     {"attn_logit_softcapping", "router_logit_softcapping", "attention.output_scale",
      "embedding_scale", "logit_scale"},
     fill_grok},
    {"llama4",
     "llama4_text",
     "num_local_experts",
     false,
     SIGMOID,
     -1,
     {"interleave_moe_layer_step", "attention.chunk_size"},
     fill_llama4},
};

static const struct arch *find_arch(const struct gguf *g, struct mapping *m)
{
    struct gguf_text name;
    if (!found(m, gguf_string(g, "general.architecture", &name, m->why))) {
        if (m->rc == ERR_OK) m->rc = ERR_CORRUPT; /* missing: the text is there */
        return NULL;
    }
    char known[256] = "";
    for (size_t i = 0, n = 0; i < ARRAY_LEN(archs); i++) {
        if (gguf_text_is(name, archs[i].name)) return &archs[i];
        n +=
            (size_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "", archs[i].name);
        assert(n < sizeof known);
    }
    int shown = name.n < 64 ? (int)name.n : 64;
    fail(m, ERR_UNSUPPORTED, "architecture '%.*s' is not supported (%s are)",
         utf8_valid(name.s, (size_t)shown) ? shown : 0, name.s, known);
    return NULL;
}

static bool honors(const struct arch *a, const char *key)
{
    for (size_t i = 0; i < MAX_HONOR && a->honors[i] != NULL; i++)
        if (strcmp(a->honors[i], key) == 0) return true;
    return false;
}

static bool differs(double a, double b)
{
    return a < b || a > b;
}

static void refuse_foreign_keys(struct mapping *m)
{
    char full[KEY_MAX];
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        const struct gguf_value *v = gguf_find(m->g, full_key(m, refused[i].key, full));
        if (v == NULL || honors(m->arch, refused[i].key)) continue;
        bool number = v->type != GGUF_STRING && !v->is_array;
        double x = number ? gguf_real_at(v, 0) : 0;
        if (!number || (differs(x, refused[i].inert) && differs(x, refused[i].inert_too)) ||
            isnan(x))
            fail(m, ERR_UNSUPPORTED, "key '%s': %.9g is not supported with this architecture", full,
                 x);
    }
}

/* Beginning and end of a text. Ends: the tokens that the keys name, and those that engines know by their text. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|eom|>",
    "<end_of_turn>",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
};

static bool is_end_text(const struct mapping *m, struct gguf_text t)
{
    if (t.n < 5 || t.n > 40 || t.s[0] != '<') return false;
    /* Of gpt-oss this ends a message, not the turn. */
    if (gguf_text_is(t, "<|end|>") && strcmp(m->arch->name, "gpt-oss") == 0) return false;
    for (size_t i = 0; i < ARRAY_LEN(end_texts); i++)
        if (gguf_text_is(t, end_texts[i])) return true;
    return false;
}

static void add_end(struct mapping *m, json_t *list, int64_t id)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_integer_value(json_array_get(list, i)) == id) return;
    if (json_array_append_new(list, json_integer(id)) != 0 && m->rc == ERR_OK)
        m->rc = err_nomem(m->why, "the configuration");
}

static bool token_id(struct mapping *m, const char *key, int64_t *id)
{
    struct err own;
    enum err_code rc = gguf_i64(m->g, key, id, &own);
    if (rc == ERR_CORRUPT) fail(m, rc, "%s", own.text);
    return rc == ERR_OK && *id >= 0 && *id < UINT32_MAX; /* -1, of any width: none */
}

static void fill_special_tokens(struct mapping *m)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const struct gguf_value *tokens = gguf_find(m->g, "tokenizer.ggml.tokens");
    int64_t id;
    if (token_id(m, "tokenizer.ggml.bos_token_id", &id)) set_int(m, "bos_token_id", id);
    json_t *ends = json_array();
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (token_id(m, keys[i], &id)) add_end(m, ends, id);
    if (tokens != NULL && tokens->is_array && tokens->type == GGUF_STRING)
        for (uint64_t i = 0; i < tokens->n && json_array_size(ends) < 12; i++)
            if (is_end_text(m, gguf_text_at(tokens, i))) add_end(m, ends, (int64_t)i);
    set(m, "eos_token_id", ends);
}

static void fill_common(struct mapping *m)
{
    int64_t layers = int_or(m, "block_count", 0);
    /* Layers of multi-token prediction stand behind the others, and are not used. */
    layers -= int_or(m, "nextn_predict_layers", 0);
    if (layers < 1 || layers > LIMIT_LAYERS) {
        fail(m, ERR_CORRUPT,
             "key '%s.block_count' (without 'nextn_predict_layers') is %" PRId64
             ", it must be from 1 to %u",
             m->arch->name, layers, LIMIT_LAYERS);
        return;
    }
    m->n_layers = (uint32_t)layers;
    set_int(m, "num_hidden_layers", layers);
    if (m->arch->model_type != NULL) set_text(m, "model_type", m->arch->model_type);
    require_int(m, "embedding_length", "hidden_size");
    require_int(m, "context_length", "max_position_embeddings");
    require_int(m, "attention.head_count", "num_attention_heads");
    copy_int(m, "attention.head_count_kv", "num_key_value_heads");
    copy_real(m, "attention.layer_norm_rms_epsilon", "rms_norm_eps", 0);

    const struct gguf_tensor *embedding = find_tensor(m, "token_embd.weight");
    const struct gguf_value *tokens = gguf_find(m->g, "tokenizer.ggml.tokens");
    int64_t vocab = int_or(m, "vocab_size", tokens != NULL ? (int64_t)tokens->n : 0);
    if (embedding != NULL && embedding->n_dims == 2) vocab = (int64_t)embedding->dims[1];
    set_int(m, "vocab_size", vocab);
    set_bool(m, "tie_word_embeddings",
             m->set->n_absent == 0 && find_tensor(m, "output.weight") == NULL);
}

enum err_code gguf_config(const struct gguf_set *s, json_t **out, struct err *why)
{
    struct mapping m = {.set = s, .g = gguf_set_meta(s), .why = why};
    m.arch = find_arch(m.g, &m);
    if (m.arch != NULL) {
        m.config = json_object();
        if (m.config == NULL) m.rc = err_nomem(why, "the configuration");
    }
    if (m.rc == ERR_OK) fill_common(&m);
    if (m.rc == ERR_OK) m.arch->fill(&m);
    if (m.rc == ERR_OK) fill_rope(&m);
    if (m.rc == ERR_OK) fill_special_tokens(&m);
    if (m.rc == ERR_OK) refuse_foreign_keys(&m);
    if (m.rc == ERR_OK)
        *out = m.config;
    else
        json_decref(m.config);
    return m.rc == ERR_OK ? m.rc : err_wrap(why, m.rc, "%s", s->parts[0].path);
}

bool gguf_config_permuted(const struct gguf_set *s)
{
    struct gguf_text name;
    if (gguf_string(gguf_set_meta(s), "general.architecture", &name, NULL) != ERR_OK) return false;
    for (size_t i = 0; i < ARRAY_LEN(archs); i++)
        if (gguf_text_is(name, archs[i].name)) return archs[i].permuted;
    return false;
}
