#include "common/modelfile/hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/modelfile/family.h"
#include "common/modelfile/rope_params.h"

/* Keys that change the numbers in some family or variant. A file that carries one that its family does not honor, with any
 * other value than the one that does nothing, is not what its model_type says. */
enum inert { INERT_NULL, INERT_FALSE, INERT_ZERO, INERT_ONE };
static const struct {
    const char *key;
    enum inert inert;
} refused[] = {
    {"compression_config", INERT_NULL},
    {"text_config", INERT_NULL}, /* inside it, for those whose numbers are there */
    {"attention_chunk_size", INERT_NULL},
    {"attn_logit_softcapping", INERT_NULL},
    {"router_logit_softcapping", INERT_NULL},
    {"final_logit_softcapping", INERT_NULL},
    {"query_pre_attn_scalar", INERT_NULL},
    {"attention_multiplier", INERT_NULL},
    {"q_lora_rank", INERT_NULL},
    {"kv_lora_rank", INERT_NULL},
    {"mlp_bias", INERT_FALSE},
    {"lm_head_bias", INERT_FALSE},
    {"qkv_bias", INERT_FALSE},
    {"max_attn_value", INERT_NULL},
    {"attn_output_multiplier", INERT_NULL},
    {"swiglu_limit", INERT_NULL},
    {"no_rope_layers", INERT_NULL},
    {"interleave_moe_layer_step", INERT_NULL},
    {"topk_method", INERT_NULL},
    {"attn_temperature_tuning", INERT_FALSE},
    {"residual_moe", INERT_FALSE},
    {"alibi", INERT_FALSE},
    {"use_parallel_residual", INERT_FALSE},
    {"is_encoder_decoder", INERT_FALSE},
    {"n_shared_experts", INERT_ZERO},
    {"num_shared_experts", INERT_ZERO},
    {"shared_intermediate_size", INERT_ZERO},
    {"shared_expert_intermediate_size", INERT_ZERO},
    {"first_k_dense_replace", INERT_ZERO},
    {"routed_scaling_factor", INERT_ONE},
    {"embedding_multiplier", INERT_ONE},
    {"residual_multiplier", INERT_ONE},
    {"logits_scaling", INERT_ONE},
    {"logit_scale", INERT_ONE},
    {"embedding_multiplier_scale", INERT_ONE},
    {"output_multiplier_scale", INERT_ONE},
    {"moe_layer_freq", INERT_ONE},
    {"n_group", INERT_ONE},
    {"topk_group", INERT_ONE},
};

static bool is_inert(const json_t *v, enum inert inert)
{
    double x = json_number_value(v); /* 0 for what is no number */
    switch (inert) {
    case INERT_NULL:
        return false; /* null counts as absent and does not get here */
    case INERT_FALSE:
        return json_is_false(v);
    case INERT_ZERO:
        return json_is_number(v) && !(x > 0 || x < 0);
    case INERT_ONE:
        return !(x > 1 || x < 1);
    }
    return false;
}

void family_unsupported(struct json_fields *f, const char *key)
{
    char *text = json_dumps(json_fields_find(f, key), JSON_COMPACT | JSON_ENCODE_ANY);
    json_fields_fail(f, ERR_UNSUPPORTED, "'%s': %.100s is not supported", key,
                     text != NULL ? text : "its value");
    free(text); /* jansson's */
}

static bool honors(const struct family_rule *rule, const char *key)
{
    for (size_t i = 0; i < FAMILY_MAX_KEYS && rule->honors[i] != NULL; i++)
        if (strcmp(rule->honors[i], key) == 0) return true;
    return false;
}

/* The text of a key, if it is there, must be this one. */
static void expect_text(struct json_fields *f, const char *key, const char *only)
{
    const char *text = json_fields_text(f, key);
    if (text != NULL && strcmp(text, only) != 0) family_unsupported(f, key);
}

static void refuse_foreign_keys(struct json_fields *f, const struct family_rule *rule,
                                const struct hparams *hp)
{
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        const json_t *v = json_fields_find(f, refused[i].key);
        if (v != NULL && !honors(rule, refused[i].key) && !is_inert(v, refused[i].inert))
            family_unsupported(f, refused[i].key);
    }
    bool has_qk_norm = hp->qk_norm != QK_NORM_NONE;
    if (!honors(rule, "use_qk_norm") &&
        json_fields_bool(f, "use_qk_norm", has_qk_norm) != has_qk_norm)
        family_unsupported(f, "use_qk_norm");
    if (hp->activation != FFN_RELU)
        expect_text(f, "hidden_act", hp->activation == FFN_GEGLU_TANH ? "gelu" : "silu");
    if (!honors(rule, "scoring_func")) expect_text(f, "scoring_func", "softmax");
    if (!honors(rule, "clip_qkv") && json_fields_find(f, "clip_qkv") != NULL)
        family_unsupported(f, "clip_qkv");
    const json_t *bias = json_fields_find(f, "attention_bias");
    if (!rule->may_have_bias && !honors(rule, "attention_bias") && bias != NULL &&
        !json_is_false(bias))
        family_unsupported(f, "attention_bias");
}

/* A classifier or reward model has another head, whose weights we would miss or, tied, not miss. */
static void check_architecture(struct json_fields *f, const struct family_rule *rule)
{
    const char *wanted = rule->architecture != NULL ? rule->architecture : "ForCausalLM";
    const json_t *arch = json_array_get(json_fields_list(f, "architectures"), 0);
    if (arch != NULL && (!json_is_string(arch) || strstr(json_string_value(arch), wanted) == NULL))
        json_fields_fail(f, ERR_UNSUPPORTED, "'architectures': %.100s is not supported",
                         json_is_string(arch) ? json_string_value(arch) : "not a text, which");
}

/* Weights that are stored in fewer bits: the tensors themselves say in which, this only whether we know the scheme. */
static void read_quantization(struct json_fields *config)
{
    json_t *v = json_fields_find(config, "quantization_config");
    if (v == NULL) return;
    if (!json_is_object(v)) {
        family_unsupported(config, "quantization_config");
        return;
    }
    struct json_fields f = {
        .object = v, .where = "config.json: quantization_config", .why = config->why};
    const char *method = json_fields_text(&f, "quant_method");
    bool fp8 = method != NULL && strcmp(method, "fp8") == 0;
    if (!fp8 && (method == NULL || strcmp(method, "mxfp4") != 0)) {
        if (f.rc == ERR_OK) family_unsupported(config, "quantization_config");
    } else if (fp8) {
        const char *fmt = json_fields_text(&f, "fmt");
        if (fmt != NULL && strcmp(fmt, "e4m3") != 0) family_unsupported(&f, "fmt");
        const json_t *block = json_fields_list(&f, "weight_block_size");
        if (json_array_size(block) != 2 ||
            json_integer_value(json_array_get(block, 0)) != F8_BLOCK ||
            json_integer_value(json_array_get(block, 1)) != F8_BLOCK)
            json_fields_fail(&f, ERR_UNSUPPORTED,
                             "'weight_block_size' must be [%u, %u]: other ways to scale fp8 "
                             "weights are not supported",
                             F8_BLOCK, F8_BLOCK);
    }
    if (config->rc == ERR_OK) config->rc = f.rc;
}

static void must_be_even(struct json_fields *f, const char *key, uint32_t n)
{
    if (n % 2 != 0)
        json_fields_fail(f, ERR_UNSUPPORTED, "'%s' is %" PRIu32 ": odd widths are not supported",
                         key, n);
}

uint32_t family_width(struct json_fields *f, const char *key)
{
    uint32_t n = (uint32_t)json_fields_int(f, key, 1, LIMIT_FFN_WIDTH, JSON_FIELDS_REQUIRED);
    must_be_even(f, key, n);
    return n;
}

static void read_head_dim(struct json_fields *f, struct hparams *hp)
{
    hp->head_dim = (uint32_t)json_fields_int(f, "head_dim", 1, LIMIT_HEAD_DIM, 0);
    if (hp->head_dim == 0) {
        hp->head_dim = hp->hidden / hp->n_heads;
        if (hp->hidden % hp->n_heads != 0)
            json_fields_fail(f, ERR_CORRUPT,
                             "'hidden_size' %" PRIu32
                             " is not a multiple of 'num_attention_heads' %" PRIu32
                             ", and there is no 'head_dim'",
                             hp->hidden, hp->n_heads);
        if (hp->head_dim < 1 || hp->head_dim > LIMIT_HEAD_DIM)
            json_fields_fail(
                f, ERR_CORRUPT,
                "'hidden_size' / 'num_attention_heads', the width of a head, is %" PRIu32
                ", it must be from 1 to %u",
                hp->head_dim, LIMIT_HEAD_DIM);
    }
    must_be_even(f, "head_dim", hp->head_dim);
    hp->value_dim = hp->head_dim;
    hp->rope_dim = hp->head_dim;
}

static void read_attention(struct json_fields *f, const struct family_rule *rule,
                           struct hparams *hp)
{
    hp->n_heads =
        (uint32_t)json_fields_int(f, "num_attention_heads", 1, LIMIT_HEADS, JSON_FIELDS_REQUIRED);
    hp->n_kv_heads =
        (uint32_t)json_fields_int(f, "num_key_value_heads", 1, LIMIT_HEADS, hp->n_heads);
    if (hp->n_heads % hp->n_kv_heads != 0)
        json_fields_fail(f, ERR_CORRUPT,
                         "'num_attention_heads' %" PRIu32
                         " is not a multiple of 'num_key_value_heads' %" PRIu32,
                         hp->n_heads, hp->n_kv_heads);
    if (!honors(rule, "kv_lora_rank")) read_head_dim(f, hp);
    if (rule->may_have_bias) {
        hp->attention_bias = json_fields_bool(f, "attention_bias", false);
        hp->attention_out_bias = hp->attention_bias;
    }
    if (honors(rule, "clip_qkv"))
        hp->clip_qkv = (float)json_fields_real(f, "clip_qkv", 1e-6, 1e6, 0);
}

static void read_rope(struct json_fields *f, const struct family_rule *rule, struct hparams *hp)
{
    double share = rope_params_read(f, hp->ctx_max, rule->rope_theta, &hp->rope);
    if (share < 1 && !honors(rule, "partial_rotary_factor"))
        json_fields_fail(f, ERR_UNSUPPORTED,
                         "'partial_rotary_factor' other than 1 is not supported");
    if (hp->rope.kind == ROPE_LONG && !honors(rule, "longrope"))
        json_fields_fail(f, ERR_UNSUPPORTED, "rope type 'longrope' is not supported with '%s'",
                         rule->model_type);
    if (hp->rope.n_factors > 0 && hp->rope.n_factors != hp->rope_dim / 2)
        json_fields_fail(f, ERR_CORRUPT,
                         "the rope factors are %" PRIu32 ", half the rotated width is %" PRIu32,
                         hp->rope.n_factors, hp->rope_dim / 2);
    /* A model that was stretched serves what it was stretched to; max_position_embeddings keeps the old
     * number in the files that Qwen's own instructions produce. */
    if (hp->rope.kind == ROPE_YARN) {
        double stretched = fmin(hp->rope.factor * hp->rope.original_ctx, LIMIT_CONTEXT);
        if (stretched > hp->ctx_max) hp->ctx_max = (uint32_t)stretched;
    }
}

static void set_window(struct hparams *hp, uint32_t window)
{
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->sliding_window[l] = window;
}

void family_read_window(struct json_fields *f, struct hparams *hp)
{
    set_window(hp, (uint32_t)json_fields_int(f, "sliding_window", 1, INT32_MAX, 0));
}

void family_read_optional_window(struct json_fields *f, struct hparams *hp)
{
    bool wanted = json_fields_bool(f, "use_sliding_window", false);
    int64_t first = json_fields_int(f, "max_window_layers", 0, INT32_MAX, 28);
    /* Versions of the official code disagree whether layers below max_window_layers have the window. */
    if (wanted && json_fields_find(f, "sliding_window") != NULL && first != 0)
        json_fields_fail(
            f, ERR_UNSUPPORTED,
            "'use_sliding_window': true is supported with 'max_window_layers': 0 only");
    /* A number that is switched off must still be one. */
    uint32_t window = (uint32_t)json_fields_int(f, "sliding_window", wanted ? 1 : 0, INT32_MAX, 0);
    if (wanted) set_window(hp, window);
}

/* `layer_types` may say again what the other keys say. */
static void check_layer_types(struct json_fields *f, const struct hparams *hp)
{
    const json_t *types = json_fields_list(f, "layer_types");
    if (json_array_size(types) > 0 && json_array_size(types) != hp->n_layers)
        json_fields_fail(f, ERR_CORRUPT,
                         "'layer_types' has %zu entries, 'num_hidden_layers' is %" PRIu32,
                         json_array_size(types), hp->n_layers);
    for (size_t i = 0; i < json_array_size(types) && f->rc == ERR_OK; i++) {
        const char *wanted = hp->sliding_window[i] > 0                    ? "sliding_attention"
                             : hp->attention_chunk > 0 && !hp->no_rope[i] ? "chunked_attention"
                                                                          : "full_attention";
        const char *type = json_string_value(json_array_get(types, i));
        if (type == NULL || strcmp(type, wanted) != 0) family_unsupported(f, "layer_types");
    }
}

void family_read_sparse_step(struct json_fields *f, struct hparams *hp)
{
    uint32_t step = (uint32_t)json_fields_int(f, "decoder_sparse_step", 1, LIMIT_LAYERS, 1);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->is_moe[l] = (l + 1) % step == 0;
    const json_t *dense = json_fields_list(f, "mlp_only_layers");
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *v = json_array_get(dense, i);
        int64_t l = json_integer_value(v);
        if (!json_is_integer(v) || l < 0 || l >= hp->n_layers)
            json_fields_fail(f, ERR_CORRUPT,
                             "'mlp_only_layers': entry %zu is not a layer from 0 to %" PRIu32, i,
                             hp->n_layers - 1);
        else
            hp->is_moe[l] = false;
    }
}

void family_read_leading_dense(struct json_fields *f, struct hparams *hp)
{
    uint32_t dense = (uint32_t)json_fields_int(f, "first_k_dense_replace", 0, LIMIT_LAYERS, 0);
    uint32_t step = (uint32_t)json_fields_int(f, "moe_layer_freq", 1, LIMIT_LAYERS, 1);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->is_moe[l] = l >= dense && l % step == 0;
    uint32_t shared = (uint32_t)json_fields_int(f, "n_shared_experts", 0, LIMIT_EXPERTS, 0);
    if ((uint64_t)shared * hp->expert_width > LIMIT_FFN_WIDTH)
        json_fields_fail(f, ERR_CORRUPT,
                         "'n_shared_experts' %" PRIu32 " of width %" PRIu32
                         " make more than %u together",
                         shared, hp->expert_width, LIMIT_FFN_WIDTH);
    else
        hp->shared_width = shared * hp->expert_width;
}

/* Two spellings of one number: whichever is there, and both must agree. */
static uint32_t read_either(struct json_fields *f, const char *key, const char *too, int64_t max)
{
    const json_t *other = too != NULL ? json_fields_find(f, too) : NULL;
    if (json_fields_find(f, key) == NULL && other != NULL) key = too;
    uint32_t n = (uint32_t)json_fields_int(f, key, 1, max, JSON_FIELDS_REQUIRED);
    if (other != NULL && json_integer_value(other) != n)
        json_fields_fail(f, ERR_CORRUPT, "'%s' is %" PRIu32 ", but '%s' is %" JSON_INTEGER_FORMAT,
                         key, n, too, json_integer_value(other));
    return n;
}

static void read_experts(struct json_fields *f, const struct family_rule *rule, struct hparams *hp)
{
    hp->n_experts = read_either(f, rule->n_experts, rule->n_experts_too, LIMIT_EXPERTS);
    hp->top_k = read_either(f, "num_experts_per_tok", rule->top_k, LIMIT_TOP_K);
    if (hp->top_k > hp->n_experts)
        json_fields_fail(f, ERR_CORRUPT,
                         "'num_experts_per_tok' %" PRIu32 " is more than '%s' %" PRIu32, hp->top_k,
                         rule->n_experts, hp->n_experts);
    hp->expert_width = family_width(f, rule->expert_width);
    if (rule->has_norm_topk_prob)
        hp->router.renormalized =
            json_fields_bool(f, "norm_topk_prob", rule->base.router.renormalized);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->is_moe[l] = true;
}

/* Groups of experts must be whole, and hold what is chosen. */
static void check_groups(struct json_fields *f, const struct hparams *hp)
{
    const struct router_params *r = &hp->router;
    uint32_t each = hp->n_experts / r->n_groups;
    if (hp->n_experts % r->n_groups != 0 || r->top_groups > r->n_groups ||
        (uint64_t)each * r->top_groups < hp->top_k ||
        (r->group_score == GROUP_TOP2_SUM && r->n_groups > 1 && each < 2))
        json_fields_fail(f, ERR_CORRUPT,
                         "%" PRIu32 " experts in 'n_group' %" PRIu32
                         " groups, 'topk_group' %" PRIu32
                         " of them, cannot give 'num_experts_per_tok' %" PRIu32,
                         hp->n_experts, r->n_groups, r->top_groups, hp->top_k);
}

/* bos_token_id where still unknown, and eos_token_id, a number or a list, added to those known. */
static void read_special_tokens(struct json_fields *f, struct hparams *hp)
{
    int64_t bos = json_fields_int(f, "bos_token_id", 0, hp->vocab - 1, -2);
    if (hp->bos < 0 && bos >= 0) hp->bos = (int32_t)bos;
    json_t *eos = json_fields_find(f, "eos_token_id");
    size_t n = json_is_array(eos) ? json_array_size(eos) : eos != NULL;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
        int64_t id = json_integer_value(v);
        if (!json_is_integer(v)) {
            json_fields_fail(f, ERR_CORRUPT,
                             "'eos_token_id' must be an integer or a list of integers");
            return;
        }
        if (id < 0 || id >= hp->vocab) {
            json_fields_fail(f, ERR_CORRUPT,
                             "'eos_token_id' %" PRId64 " is outside the vocabulary of %" PRIu32, id,
                             hp->vocab);
            return;
        }
        bool known = false;
        for (uint32_t j = 0; j < hp->n_eos; j++)
            known = known || hp->eos[j] == id;
        if (known) continue;
        if (hp->n_eos == HPARAMS_MAX_EOS) {
            json_fields_fail(f, ERR_UNSUPPORTED, "more than %u end-of-sequence tokens",
                             HPARAMS_MAX_EOS);
            return;
        }
        hp->eos[hp->n_eos++] = (int32_t)id;
    }
}

const struct family_rule *family_rule(enum family family)
{
    static const struct family_rule *const rules[FAMILY_N] = {
        [FAMILY_MIXTRAL] = &family_mixtral,
        [FAMILY_QWEN3_MOE] = &family_qwen3_moe,
        [FAMILY_OLMOE] = &family_olmoe,
        [FAMILY_QWEN2_MOE] = &family_qwen2_moe,
        [FAMILY_DEEPSEEK] = &family_deepseek,
        [FAMILY_DEEPSEEK_V2] = &family_deepseek_v2,
        [FAMILY_DEEPSEEK_V3] = &family_deepseek_v3,
        [FAMILY_KIMI_K2] = &family_kimi_k2,
        [FAMILY_GPT_OSS] = &family_gpt_oss,
        [FAMILY_GRANITEMOE] = &family_granitemoe,
        [FAMILY_PHIMOE] = &family_phimoe,
        [FAMILY_GLM4_MOE] = &family_glm4_moe,
        [FAMILY_GROK_1] = &family_grok_1,
        [FAMILY_LLAMA4] = &family_llama4,
        [FAMILY_SWITCH] = &family_switch,
        [FAMILY_LLAMA] = &family_llama,
        [FAMILY_MISTRAL] = &family_mistral,
        [FAMILY_QWEN2] = &family_qwen2,
        [FAMILY_QWEN3] = &family_qwen3,
    };
    assert(family < FAMILY_N);
    return rules[family];
}

static bool is_of_type(const struct family_rule *rule, const char *type)
{
    return strcmp(type, rule->model_type) == 0 ||
           (rule->other_type != NULL && strcmp(type, rule->other_type) == 0);
}

static const struct family_rule *find_family(struct json_fields *f, enum family *family)
{
    const char *type = json_fields_text(f, "model_type");
    if (type == NULL) {
        json_fields_fail(f, ERR_CORRUPT, "'model_type' is missing");
        return NULL;
    }
    char known[256] = "";
    for (uint32_t i = 0, n = 0; i < FAMILY_N; i++) {
        const struct family_rule *rule = family_rule((enum family)i);
        *family = (enum family)i;
        if (is_of_type(rule, type)) return rule;
        if (n < sizeof known)
            n += (uint32_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "",
                                    rule->model_type);
    }
    json_fields_fail(f, ERR_UNSUPPORTED, "model_type '%.100s' is not supported (%s are)", type,
                     known);
    return NULL;
}

static void set_defaults(struct hparams *hp)
{
    float *scales[] = {&hp->embed_scale, &hp->residual_scale, &hp->logit_scale, &hp->logit_divisor,
                       &hp->router.scale};
    for (size_t i = 0; i < ARRAY_LEN(scales); i++)
        *scales[i] = 1;
    hp->router.n_groups = hp->router.top_groups = 1;
    hp->bos = -1;
    hp->temperature = hp->top_p = NAN;
}

static void read_numbers(struct json_fields *f, const struct family_rule *rule, struct hparams *hp)
{
    hp->n_layers =
        (uint32_t)json_fields_int(f, "num_hidden_layers", 1, LIMIT_LAYERS, JSON_FIELDS_REQUIRED);
    hp->hidden = (uint32_t)json_fields_int(f, "hidden_size", 1, LIMIT_HIDDEN, JSON_FIELDS_REQUIRED);
    must_be_even(f, "hidden_size", hp->hidden);
    hp->vocab = (uint32_t)json_fields_int(f, "vocab_size", 1, LIMIT_VOCAB, JSON_FIELDS_REQUIRED);
    hp->ctx_max = (uint32_t)json_fields_int(f, "max_position_embeddings", 1, LIMIT_CONTEXT,
                                            JSON_FIELDS_REQUIRED);
    hp->norm_eps = (float)json_fields_real(f, "rms_norm_eps", 1e-12, 0.1, rule->norm_eps);
    hp->tied_head = json_fields_bool(f, "tie_word_embeddings", rule->tied_head);
    read_attention(f, rule, hp);
    if (rule->n_experts != NULL) read_experts(f, rule, hp);
    if (f->rc == ERR_OK && rule->read != NULL) rule->read(f, hp);
    read_rope(f, rule, hp);
    check_layer_types(f, hp);
    if (f->rc != ERR_OK) return;
    if (rule->n_experts != NULL) check_groups(f, hp);
    uint32_t n_moe = hparams_n_moe_layers(hp);
    if (rule->n_experts != NULL && n_moe == 0)
        json_fields_fail(f, ERR_UNSUPPORTED,
                         "no layer has experts; that is not supported with '%s'", rule->model_type);
    if (n_moe < hp->n_layers)
        hp->dense_width =
            family_width(f, rule->dense_width != NULL ? rule->dense_width : "intermediate_size");
    refuse_foreign_keys(f, rule, hp);
}

/* The object that holds the model's numbers: the whole file, or a part of it. */
static json_t *numbers_of(struct json_fields *f, const struct family_rule *rule)
{
    json_t *inner = rule->nested != NULL ? json_fields_find(f, rule->nested) : NULL;
    if (inner == NULL) return f->object;
    if (!json_is_object(inner))
        json_fields_fail(f, ERR_CORRUPT, "'%s' must be an object", rule->nested);
    return json_is_object(inner) ? inner : f->object;
}

static void read_config(struct json_fields *f, struct hparams *hp)
{
    enum family family;
    const struct family_rule *rule = find_family(f, &family);
    if (rule == NULL || f->rc != ERR_OK) return;
    *hp = rule->base;
    hp->family = family;
    hp->family_name = rule->model_type;
    set_defaults(hp);
    check_architecture(f, rule);
    read_quantization(f);
    json_t *whole = f->object;
    f->object = numbers_of(f, rule);
    if (rule->read_numbers != NULL) {
        rule->read_numbers(f, hp);
        refuse_foreign_keys(f, rule, hp);
    } else {
        read_numbers(f, rule, hp);
    }
    read_special_tokens(f, hp);
    const char *dtype = json_string_value(json_fields_find(f, "torch_dtype"));
    if (dtype == NULL) dtype = json_string_value(json_fields_find(f, "dtype"));
    if (dtype != NULL) snprintf(hp->dtype_hint, sizeof hp->dtype_hint, "%s", dtype);
    f->object = whole;
}

static void read_generation_config(struct json_fields *f, struct hparams *hp)
{
    hp->do_sample = json_fields_bool(f, "do_sample", false);
    if (json_fields_find(f, "temperature") != NULL)
        hp->temperature =
            (float)json_fields_real(f, "temperature", 0, 100, JSON_FIELDS_REQUIRED_REAL);
    if (json_fields_find(f, "top_p") != NULL)
        hp->top_p = (float)json_fields_real(f, "top_p", 0, 1, JSON_FIELDS_REQUIRED_REAL);
    hp->top_k_default = (uint32_t)json_fields_int(f, "top_k", 0, INT32_MAX, 0);
    read_special_tokens(f, hp);
}

typedef void (*reader)(struct json_fields *f, struct hparams *hp);

static enum err_code read_file(const char *dir, const char *name, reader read, struct hparams *hp,
                               struct err *why)
{
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(why, ERR_INVALID, "%.200s...: path too long", dir);
    json_t *v;
    enum err_code rc =
        json_parse_file(path, LIMIT_CONFIG_JSON_BYTES, LIMIT_FILE_JSON_DEPTH, &v, why);
    if (rc != ERR_OK) return rc;
    struct json_fields f = {.object = v, .where = name, .why = why};
    if (!json_is_object(v))
        json_fields_fail(&f, ERR_CORRUPT, "is not an object");
    else
        read(&f, hp);
    json_decref(v);
    return f.rc;
}

enum err_code hparams_read(const char *dir, struct hparams *out, struct err *why)
{
    struct hparams hp;
    enum err_code rc = read_file(dir, "config.json", read_config, &hp, why);
    if (rc == ERR_OK) {
        rc = read_file(dir, "generation_config.json", read_generation_config, &hp, why);
        if (rc == ERR_NOT_FOUND) rc = ERR_OK;
    }
    if (rc == ERR_OK) *out = hp;
    return rc;
}

enum err_code hparams_read_object(json_t *config, const char *where, struct hparams *out,
                                  struct err *why)
{
    struct hparams hp;
    struct json_fields f = {.object = config, .where = where, .why = why};
    read_config(&f, &hp);
    if (f.rc == ERR_OK) *out = hp;
    return f.rc;
}

struct kv_shape hparams_kv_shape(const struct hparams *hp)
{
    if (hp->mla.kv_rank == 0)
        return (struct kv_shape){hp->n_kv_heads, hp->head_dim, hp->value_dim, false};
    return (struct kv_shape){1, hp->mla.kv_rank + hp->mla.rope, hp->mla.kv_rank, true};
}

uint32_t hparams_n_moe_layers(const struct hparams *hp)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        n += hp->is_moe[l];
    return n;
}
