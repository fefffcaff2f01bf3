#include "common/modelfile/gguf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/utf8.h"
#include "common/modelfile/gguf_mapping.h"

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

/* ---- rotary embedding --------------------------------------------------------------------------- */

/* Into m->config["rope_scaling"]: the writers above write to m->config, which is the inner object meanwhile. */
static void fill_scaling(struct gguf_mapping *m, const char *type)
{
    double x;
    mapping_set_text(m, "rope_type", type);
    if (mapping_get_real(m, "rope.scaling.factor", &x) ||
        mapping_get_real(m, "rope.scale_linear", &x))
        mapping_set_real(m, "factor", x); /* the latter before 2023-11 */
    if (strcmp(type, "yarn") != 0) return;
    mapping_copy_int(m, "rope.scaling.original_context_length", "original_max_position_embeddings");
    mapping_copy_real(m, "rope.scaling.yarn_beta_fast", "beta_fast", 0);
    mapping_copy_real(m, "rope.scaling.yarn_beta_slow", "beta_slow", 0);
    /* gpt-oss says truncate: false, for which there is no key. */
    if (strcmp(m->arch->name, "gpt-oss") == 0) mapping_set_bool(m, "truncate", false);
    /* DeepSeek: 0.1 mscale_all_dim. mscale itself is not stored; in the published models it is the same. */
    if (!mapping_get_real(m, "rope.scaling.yarn_log_multiplier", &x) || !(x > 0 || x < 0)) return;
    if (fabs(x) > 1e3)
        mapping_fail(m, ERR_CORRUPT, "key '%s.rope.scaling.yarn_log_multiplier' is %.9g",
                     m->arch->name, x);
    double mscale = nearbyint(mapping_shortest(x) * 1e7) / 1e6; /* 0.707, not 0.70700000000000007 */
    if (m->rc != ERR_OK) return;
    mapping_set(m, "mscale", json_real(mscale));
    mapping_set(m, "mscale_all_dim", json_real(mscale));
}

/* Long rope has two lists of factors in tensors, llama3's rule comes as one list of divisors. */
static void fill_lists(struct gguf_mapping *m, bool is_long)
{
    mapping_set_text(m, "rope_type", is_long ? "longrope" : "divisors");
    if (!is_long) {
        mapping_set(m, "divisors", mapping_read_factors(m, "rope_freqs.weight"));
        return;
    }
    mapping_set(m, "short_factor", mapping_read_factors(m, "rope_factors_short.weight"));
    if (m->rc == ERR_OK)
        mapping_set(m, "long_factor", mapping_read_factors(m, "rope_factors_long.weight"));
    mapping_copy_int(m, "rope.scaling.original_context_length", "original_max_position_embeddings");
    /* The published Phi-3.5-MoE has its own numbers, which GGUF does not store (attn_factor there is the general rule's). */
    mapping_set(m, "short_mscale", json_real(1.243163121016122));
    mapping_set(m, "long_mscale", json_real(1.243163121016122));
}

static void fill_rope(struct gguf_mapping *m)
{
    char full[GGUF_KEY_MAX], type[16] = "none";
    struct err own;
    double linear;
    struct gguf_text text = {"none", 4};
    mapping_copy_real(m, "rope.freq_base", "rope_theta", 10000);
    enum err_code rc =
        gguf_string(m->g, mapping_full_key(m, "rope.scaling.type", full), &text, &own);
    if (rc == ERR_CORRUPT) mapping_fail(m, rc, "%s", own.text);
    if (rc == ERR_NOT_FOUND && mapping_get_real(m, "rope.scale_linear", &linear) &&
        (linear > 1 || linear < 1))
        text = (struct gguf_text){"linear", 6};
    snprintf(type, sizeof type, "%.*s", (int)(text.n < sizeof type ? text.n : sizeof type - 1),
             text.s);
    const bool divisors = mapping_find_tensor(m, "rope_freqs.weight") != NULL;
    const bool is_long = mapping_find_tensor(m, "rope_factors_long.weight") != NULL &&
                         mapping_find_tensor(m, "rope_factors_short.weight") != NULL;
    const bool stretched = strcmp(type, "linear") == 0 || strcmp(type, "yarn") == 0;
    if (!stretched && strcmp(type, "none") != 0 && strcmp(type, "longrope") != 0)
        mapping_fail(
            m, ERR_UNSUPPORTED,
            "key '%s.rope.scaling.type' is '%s': none, linear, yarn and longrope are supported",
            m->arch->name, utf8_valid(type, strlen(type)) ? type : "?");
    if (m->rc != ERR_OK || (!stretched && !divisors && !is_long)) return;
    if (stretched && (divisors || is_long)) {
        mapping_fail(
            m, ERR_UNSUPPORTED,
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
    if (scaling != NULL) mapping_set(m, "rope_scaling", scaling);
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static const struct gguf_arch *find_arch(const struct gguf *g, struct gguf_mapping *m)
{
    struct gguf_text name;
    enum err_code rc = gguf_string(g, "general.architecture", &name, m->why);
    if (rc != ERR_OK) {
        m->rc = ERR_CORRUPT; /* missing, too */
        return NULL;
    }
    char known[256] = "";
    for (size_t i = 0, n = 0; gguf_archs[i].name != NULL; i++) {
        if (gguf_text_is(name, gguf_archs[i].name)) return &gguf_archs[i];
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "",
                              gguf_archs[i].name);
        assert(n < sizeof known);
    }
    int shown = name.n < 64 ? (int)name.n : 64;
    mapping_fail(m, ERR_UNSUPPORTED, "architecture '%.*s' is not supported (%s are)",
                 utf8_valid(name.s, (size_t)shown) ? shown : 0, name.s, known);
    return NULL;
}

static bool honors(const struct gguf_arch *a, const char *key)
{
    for (size_t i = 0; i < GGUF_ARCH_MAX_HONORS && a->honors[i] != NULL; i++)
        if (strcmp(a->honors[i], key) == 0) return true;
    return false;
}

static bool differs(double a, double b)
{
    return a < b || a > b;
}

static void refuse_foreign_keys(struct gguf_mapping *m)
{
    char full[GGUF_KEY_MAX];
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        const struct gguf_value *v = gguf_find(m->g, mapping_full_key(m, refused[i].key, full));
        if (v == NULL || honors(m->arch, refused[i].key)) continue;
        bool number = v->type != GGUF_STRING && !v->is_array;
        double x = number ? gguf_real_at(v, 0) : 0;
        if (!number || (differs(x, refused[i].inert) && differs(x, refused[i].inert_too)) ||
            isnan(x))
            mapping_fail(m, ERR_UNSUPPORTED,
                         "key '%s': %.9g is not supported with this architecture", full, x);
    }
}

/* Beginning and end of a text. Ends: the tokens that the keys name, and those that engines know by their text. */
static const char *const end_texts[] = {
    "<|eot_id|>", "<|im_end|>",    "<|end|>",       "<|return|>",
    "<|call|>",   "<|endoftext|>", "<|eom_id|>",    "<|end_of_text|>",
    "<|eot|>",    "<|eom|>",       "<end_of_turn>", "<｜end▁of▁sentence｜>",
};

static bool is_end_text(const struct gguf_mapping *m, struct gguf_text t)
{
    if (t.n < 5 || t.n > 40 || t.s[0] != '<') return false;
    /* Of gpt-oss this ends a message, not the turn. */
    if (gguf_text_is(t, "<|end|>") && strcmp(m->arch->name, "gpt-oss") == 0) return false;
    for (size_t i = 0; i < ARRAY_LEN(end_texts); i++)
        if (gguf_text_is(t, end_texts[i])) return true;
    return false;
}

static void add_end(struct gguf_mapping *m, json_t *list, int64_t id)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_integer_value(json_array_get(list, i)) == id) return;
    if (json_array_append_new(list, json_integer(id)) != 0 && m->rc == ERR_OK)
        m->rc = err_nomem(m->why, "the configuration");
}

static bool token_id(struct gguf_mapping *m, const char *key, int64_t *id)
{
    struct err own;
    enum err_code rc = gguf_i64(m->g, key, id, &own);
    if (rc == ERR_CORRUPT) mapping_fail(m, rc, "%s", own.text);
    return rc == ERR_OK && *id >= 0 && *id < UINT32_MAX; /* -1, of any width: none */
}

static void fill_special_tokens(struct gguf_mapping *m)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const struct gguf_value *tokens = gguf_find(m->g, "tokenizer.ggml.tokens");
    int64_t id;
    if (token_id(m, "tokenizer.ggml.bos_token_id", &id)) mapping_set_int(m, "bos_token_id", id);
    json_t *ends = json_array();
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (token_id(m, keys[i], &id)) add_end(m, ends, id);
    if (tokens != NULL && tokens->is_array && tokens->type == GGUF_STRING)
        for (uint64_t i = 0; i < tokens->n && json_array_size(ends) < 12; i++)
            if (is_end_text(m, gguf_text_at(tokens, i))) add_end(m, ends, (int64_t)i);
    mapping_set(m, "eos_token_id", ends);
}

static void fill_common(struct gguf_mapping *m)
{
    int64_t layers = mapping_int_or(m, "block_count", 0);
    /* Layers of multi-token prediction stand behind the others, and are not used. */
    layers -= mapping_int_or(m, "nextn_predict_layers", 0);
    if (layers < 1 || layers > LIMIT_LAYERS) {
        mapping_fail(m, ERR_CORRUPT,
                     "key '%s.block_count' (without 'nextn_predict_layers') is %" PRId64
                     ", it must be from 1 to %u",
                     m->arch->name, layers, LIMIT_LAYERS);
        return;
    }
    m->n_layers = (uint32_t)layers;
    mapping_set_int(m, "num_hidden_layers", layers);
    if (m->arch->model_type != NULL) mapping_set_text(m, "model_type", m->arch->model_type);
    mapping_require_int(m, "embedding_length", "hidden_size");
    mapping_require_int(m, "context_length", "max_position_embeddings");
    mapping_require_int(m, "attention.head_count", "num_attention_heads");
    mapping_copy_int(m, "attention.head_count_kv", "num_key_value_heads");
    mapping_copy_real(m, "attention.layer_norm_rms_epsilon", "rms_norm_eps", 0);

    const struct gguf_tensor *embedding = mapping_find_tensor(m, "token_embd.weight");
    const struct gguf_value *tokens = gguf_find(m->g, "tokenizer.ggml.tokens");
    int64_t vocab = mapping_int_or(m, "vocab_size", tokens != NULL ? (int64_t)tokens->n : 0);
    if (embedding != NULL && embedding->n_dims == 2) vocab = (int64_t)embedding->dims[1];
    mapping_set_int(m, "vocab_size", vocab);
    mapping_set_bool(m, "tie_word_embeddings",
                     m->set->n_absent == 0 && mapping_find_tensor(m, "output.weight") == NULL);
}

enum err_code gguf_config(const struct gguf_set *s, json_t **out, struct err *why)
{
    struct gguf_mapping m = {.set = s, .g = gguf_set_meta(s), .why = why};
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
    for (size_t i = 0; gguf_archs[i].name != NULL; i++)
        if (gguf_text_is(name, gguf_archs[i].name)) return gguf_archs[i].permuted;
    return false;
}
