#include "common/modelfile/hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/modelfile/json_fields.h"
#include "common/modelfile/rope_params.h"

/* What differs between the families, with the defaults that the official implementation has for absent keys. */
static const struct family_keys {
    const char *name;
    const char *n_experts,
        *n_experts_too;       /* keys: that of the published files, and the other spelling that the
                                              official code reads, and writes in some of its versions */
    const char *expert_width; /* key */
    double rope_theta, norm_eps;
    enum qk_norm qk_norm;
    bool always_renormalized; /* else norm_topk_prob, false when absent */
    bool may_have_bias;       /* attention_bias: on q, k, v and o */
    bool may_have_dense;      /* mlp_only_layers, decoder_sparse_step */
    bool may_clip;            /* clip_qkv */
} families[FAMILY_N] = {
    [FAMILY_MIXTRAL] = {.name = "mixtral",
                        .n_experts = "num_local_experts",
                        .n_experts_too = "num_experts",
                        .expert_width = "intermediate_size",
                        .rope_theta = 1e6,
                        .norm_eps = 1e-5,
                        .qk_norm = QK_NORM_NONE,
                        .always_renormalized = true},
    [FAMILY_QWEN3_MOE] = {.name = "qwen3_moe",
                          .n_experts = "num_experts",
                          .n_experts_too = "num_local_experts",
                          .expert_width = "moe_intermediate_size",
                          .rope_theta = 1e4,
                          .norm_eps = 1e-6,
                          .qk_norm = QK_NORM_HEAD,
                          .may_have_bias = true,
                          .may_have_dense = true},
    [FAMILY_OLMOE] = {.name = "olmoe",
                      .n_experts = "num_experts",
                      .n_experts_too = "num_local_experts",
                      .expert_width = "intermediate_size",
                      .rope_theta = 1e4,
                      .norm_eps = 1e-5,
                      .qk_norm = QK_NORM_FULL,
                      .may_have_bias = true,
                      .may_clip = true},
};

/* Keys of other families and variants that change the numbers. A file that carries one with any other value
 * than the one that does nothing is not what its model_type says. */
enum inert { INERT_NULL, INERT_FALSE, INERT_ZERO, INERT_ONE };
static const struct {
    const char *key;
    enum inert inert;
} refused[] = {
    {"quantization_config", INERT_NULL},
    {"compression_config", INERT_NULL},
    {"text_config", INERT_NULL},
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
    {"alibi", INERT_FALSE},
    {"use_parallel_residual", INERT_FALSE},
    {"is_encoder_decoder", INERT_FALSE},
    {"n_shared_experts", INERT_ZERO},
    {"num_shared_experts", INERT_ZERO},
    {"shared_expert_intermediate_size", INERT_ZERO},
    {"first_k_dense_replace", INERT_ZERO},
    {"partial_rotary_factor", INERT_ONE},
    {"routed_scaling_factor", INERT_ONE},
    {"embedding_multiplier", INERT_ONE},
    {"residual_multiplier", INERT_ONE},
    {"logits_scaling", INERT_ONE},
    {"logit_scale", INERT_ONE},
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

static void unsupported(struct json_fields *f, const char *key, const json_t *v)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    json_fields_fail(f, ERR_UNSUPPORTED, "'%s': %.100s is not supported", key,
                     text != NULL ? text : "its value");
    free(text); /* jansson's */
}

static void refuse_foreign_keys(struct json_fields *f, const struct hparams *hp)
{
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        const json_t *v = json_fields_find(f, refused[i].key);
        if (v != NULL && !is_inert(v, refused[i].inert)) unsupported(f, refused[i].key, v);
    }
    bool has_qk_norm = hp->qk_norm != QK_NORM_NONE;
    const json_t *v = json_fields_find(f, "use_qk_norm");
    if (json_fields_bool(f, "use_qk_norm", has_qk_norm) != has_qk_norm)
        unsupported(f, "use_qk_norm", v);
    const char *act = json_fields_text(f, "hidden_act");
    if (act != NULL && strcmp(act, "silu") != 0)
        unsupported(f, "hidden_act", json_fields_find(f, "hidden_act"));
    const char *scoring = json_fields_text(f, "scoring_func");
    if (scoring != NULL && strcmp(scoring, "softmax") != 0)
        unsupported(f, "scoring_func", json_fields_find(f, "scoring_func"));
    if (!families[hp->family].may_clip && (v = json_fields_find(f, "clip_qkv")) != NULL)
        unsupported(f, "clip_qkv", v);
    if (!families[hp->family].may_have_bias &&
        (v = json_fields_find(f, "attention_bias")) != NULL && !json_is_false(v))
        unsupported(f, "attention_bias", v);
    /* A classifier or reward model has another head, whose weights we would miss or, tied, not miss. */
    const json_t *list = json_fields_list(f, "architectures"), *arch = json_array_get(list, 0);
    if (arch != NULL &&
        (!json_is_string(arch) || strstr(json_string_value(arch), "ForCausalLM") == NULL))
        unsupported(f, "architectures", arch);
}

static void must_be_even(struct json_fields *f, const char *key, uint32_t n)
{
    if (n % 2 != 0)
        json_fields_fail(f, ERR_UNSUPPORTED, "'%s' is %" PRIu32 ": odd widths are not supported",
                         key, n);
}

static void read_attention(struct json_fields *f, const struct family_keys *family,
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
    hp->qk_norm = family->qk_norm;
    if (family->may_have_bias) hp->attention_bias = json_fields_bool(f, "attention_bias", false);
    hp->attention_out_bias = hp->attention_bias;
    if (family->may_clip) hp->clip_qkv = (float)json_fields_real(f, "clip_qkv", 1e-6, 1e6, 0);
    rope_params_read(f, hp->ctx_max, family->rope_theta, &hp->rope);
    /* A model that was stretched serves what it was stretched to; max_position_embeddings keeps the old
     * number in the files that Qwen's own instructions produce. */
    if (hp->rope.kind == ROPE_YARN) {
        double stretched = fmin(hp->rope.factor * hp->rope.original_ctx, LIMIT_CONTEXT);
        if (stretched > hp->ctx_max) hp->ctx_max = (uint32_t)stretched;
    }
}

static void read_window(struct json_fields *f, struct hparams *hp)
{
    bool wanted = hp->family == FAMILY_MIXTRAL;
    json_t *v = json_fields_find(f, "sliding_window");
    if (hp->family == FAMILY_QWEN3_MOE) {
        wanted = json_fields_bool(f, "use_sliding_window", false);
        int64_t first = json_fields_int(f, "max_window_layers", 0, INT32_MAX, 28);
        /* Versions of the official code disagree whether layers below max_window_layers have the window. */
        if (wanted && v != NULL && first != 0)
            json_fields_fail(
                f, ERR_UNSUPPORTED,
                "'use_sliding_window': true is supported with 'max_window_layers': 0 only");
    }
    if (hp->family == FAMILY_OLMOE && v != NULL) unsupported(f, "sliding_window", v);
    /* A number that is switched off must still be one. */
    int64_t window = json_fields_int(f, "sliding_window", wanted ? 1 : 0, INT32_MAX, 0);
    if (wanted) hp->sliding_window = (uint32_t)window;

    const char *layer_type = hp->sliding_window > 0 ? "sliding_attention" : "full_attention";
    const json_t *types = json_fields_list(f, "layer_types");
    if (json_array_size(types) > 0 && json_array_size(types) != hp->n_layers)
        json_fields_fail(f, ERR_CORRUPT,
                         "'layer_types' has %zu entries, 'num_hidden_layers' is %" PRIu32,
                         json_array_size(types), hp->n_layers);
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type == NULL || strcmp(type, layer_type) != 0) unsupported(f, "layer_types", types);
    }
}

static void read_dense_layers(struct json_fields *f, struct hparams *hp)
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
    uint32_t n_moe = 0;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        n_moe += hp->is_moe[l];
    if (n_moe == 0)
        json_fields_fail(f, ERR_UNSUPPORTED,
                         "no layer has experts; dense models are not supported");
    if (n_moe < hp->n_layers) {
        hp->dense_width = (uint32_t)json_fields_int(f, "intermediate_size", 1, LIMIT_FFN_WIDTH,
                                                    JSON_FIELDS_REQUIRED);
        must_be_even(f, "intermediate_size", hp->dense_width);
    }
}

static void read_experts(struct json_fields *f, const struct family_keys *family,
                         struct hparams *hp)
{
    const char *key = family->n_experts;
    const json_t *other = json_fields_find(f, family->n_experts_too);
    if (json_fields_find(f, key) == NULL && other != NULL) key = family->n_experts_too;
    hp->n_experts = (uint32_t)json_fields_int(f, key, 1, LIMIT_EXPERTS, JSON_FIELDS_REQUIRED);
    if (other != NULL && json_integer_value(other) != hp->n_experts)
        json_fields_fail(f, ERR_CORRUPT, "'%s' is %" PRIu32 ", but '%s' is %" JSON_INTEGER_FORMAT,
                         key, hp->n_experts, family->n_experts_too, json_integer_value(other));
    hp->top_k =
        (uint32_t)json_fields_int(f, "num_experts_per_tok", 1, LIMIT_TOP_K, JSON_FIELDS_REQUIRED);
    if (hp->top_k > hp->n_experts)
        json_fields_fail(f, ERR_CORRUPT,
                         "'num_experts_per_tok' %" PRIu32 " is more than '%s' %" PRIu32, hp->top_k,
                         key, hp->n_experts);
    hp->expert_width = (uint32_t)json_fields_int(f, family->expert_width, 1, LIMIT_FFN_WIDTH,
                                                 JSON_FIELDS_REQUIRED);
    must_be_even(f, family->expert_width, hp->expert_width);
    hp->gates_renormalized =
        family->always_renormalized || json_fields_bool(f, "norm_topk_prob", false);
    if (family->may_have_dense)
        read_dense_layers(f, hp);
    else
        for (uint32_t l = 0; l < hp->n_layers; l++)
            hp->is_moe[l] = true;
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

static void read_family(struct json_fields *f, struct hparams *hp)
{
    const char *type = json_fields_text(f, "model_type");
    if (type == NULL) {
        json_fields_fail(f, ERR_CORRUPT, "'model_type' is missing");
        return;
    }
    for (uint32_t i = 0; i < FAMILY_N; i++) {
        if (strcmp(type, families[i].name) != 0) continue;
        hp->family = (enum family)i;
        hp->family_name = families[i].name;
        return;
    }
    char known[128] = "";
    for (uint32_t i = 0, n = 0; i < FAMILY_N && n < sizeof known; i++)
        n += (uint32_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "",
                                families[i].name);
    json_fields_fail(f, ERR_UNSUPPORTED, "model_type '%.100s' is not supported (%s are)", type,
                     known);
}

static void read_config(struct json_fields *f, struct hparams *hp)
{
    read_family(f, hp);
    if (f->rc != ERR_OK) return;
    const struct family_keys *family = &families[hp->family];
    hp->n_layers =
        (uint32_t)json_fields_int(f, "num_hidden_layers", 1, LIMIT_LAYERS, JSON_FIELDS_REQUIRED);
    hp->hidden = (uint32_t)json_fields_int(f, "hidden_size", 1, LIMIT_HIDDEN, JSON_FIELDS_REQUIRED);
    must_be_even(f, "hidden_size", hp->hidden);
    hp->vocab = (uint32_t)json_fields_int(f, "vocab_size", 1, LIMIT_VOCAB, JSON_FIELDS_REQUIRED);
    hp->ctx_max = (uint32_t)json_fields_int(f, "max_position_embeddings", 1, LIMIT_CONTEXT,
                                            JSON_FIELDS_REQUIRED);
    hp->norm_eps = (float)json_fields_real(f, "rms_norm_eps", 1e-12, 0.1, family->norm_eps);
    hp->tied_head = json_fields_bool(f, "tie_word_embeddings", false);
    read_attention(f, family, hp);
    read_window(f, hp);
    read_experts(f, family, hp);
    refuse_foreign_keys(f, hp);
    read_special_tokens(f, hp);
    const char *dtype = json_string_value(json_fields_find(f, "torch_dtype"));
    if (dtype == NULL) dtype = json_string_value(json_fields_find(f, "dtype"));
    if (dtype != NULL) snprintf(hp->dtype_hint, sizeof hp->dtype_hint, "%s", dtype);
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
    struct hparams hp = {.bos = -1, .temperature = NAN, .top_p = NAN};
    enum err_code rc = read_file(dir, "config.json", read_config, &hp, why);
    if (rc == ERR_OK) {
        rc = read_file(dir, "generation_config.json", read_generation_config, &hp, why);
        if (rc == ERR_NOT_FOUND) rc = ERR_OK;
    }
    if (rc == ERR_OK) *out = hp;
    return rc;
}
