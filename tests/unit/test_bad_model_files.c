/* A model's folder with every field of config.json, generation_config.json and the tensors' header broken in every way:
 * opened, or refused with the file and the field named; never a crash, never memory of a size that the file chose. */
// links: modelfile
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/modelfile/hparams.h"
#include "common/modelfile/model_file.h"
#include "tests/unit/bad_values.h"
#include "tests/unit/modelfile_fixture.h"

#define MEMORY_BYTES (64u << 20)

/* ---- config.json --------------------------------------------------------------------------------- */

enum kind { INT, REAL, BOOL, IDS, LIST, OBJECT, TEXT, FREE };
enum absence { OPTIONAL, REQUIRED };

struct rule {
    const char *key;
    enum kind kind;
    double min, max; /* INT, REAL, IDS */
    enum absence absence;
};

#define MAX_INT 2147483647.0

/* What every family reads. TEXT: no value of the sweep is a right one. FREE: not looked at, or a hint only. */
static const struct rule common_rules[] = {
    {"model_type", TEXT, 0, 0, REQUIRED},
    {"num_hidden_layers", INT, 1, LIMIT_LAYERS, REQUIRED},
    {"hidden_size", INT, 1, LIMIT_HIDDEN, REQUIRED},
    {"vocab_size", INT, 1, LIMIT_VOCAB, REQUIRED},
    {"max_position_embeddings", INT, 1, LIMIT_CONTEXT, REQUIRED},
    {"rms_norm_eps", REAL, 1e-12, 0.1, OPTIONAL},
    {"tie_word_embeddings", BOOL, 0, 0, OPTIONAL},
    {"num_attention_heads", INT, 1, LIMIT_HEADS, REQUIRED},
    {"num_key_value_heads", INT, 1, LIMIT_HEADS, OPTIONAL},
    {"head_dim", INT, 1, LIMIT_HEAD_DIM, OPTIONAL},
    {"rope_scaling", OBJECT, 0, 0, OPTIONAL},
    {"rope_parameters", OBJECT, 0, 0, OPTIONAL},
    {"rope_theta", REAL, 2, 1e12, OPTIONAL},
    {"layer_types", LIST, 0, 0, OPTIONAL},
    {"num_experts", INT, 1, LIMIT_EXPERTS, OPTIONAL},       /* one of the two is needed */
    {"num_local_experts", INT, 1, LIMIT_EXPERTS, OPTIONAL}, /* */
    {"num_experts_per_tok", INT, 1, LIMIT_TOP_K, REQUIRED},
    {"intermediate_size", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},
    {"quantization_config", TEXT, 0, 0, OPTIONAL},
    {"compression_config", TEXT, 0, 0, OPTIONAL},
    {"text_config", TEXT, 0, 0, OPTIONAL},
    {"attention_chunk_size", TEXT, 0, 0, OPTIONAL},
    {"attn_logit_softcapping", TEXT, 0, 0, OPTIONAL},
    {"router_logit_softcapping", TEXT, 0, 0, OPTIONAL},
    {"final_logit_softcapping", TEXT, 0, 0, OPTIONAL},
    {"query_pre_attn_scalar", TEXT, 0, 0, OPTIONAL},
    {"attention_multiplier", TEXT, 0, 0, OPTIONAL},
    {"q_lora_rank", TEXT, 0, 0, OPTIONAL},
    {"kv_lora_rank", TEXT, 0, 0, OPTIONAL},
    {"mlp_bias", BOOL, 0, 0, OPTIONAL},
    {"lm_head_bias", BOOL, 0, 0, OPTIONAL},
    {"qkv_bias", BOOL, 0, 0, OPTIONAL},
    {"alibi", BOOL, 0, 0, OPTIONAL},
    {"use_parallel_residual", BOOL, 0, 0, OPTIONAL},
    {"is_encoder_decoder", BOOL, 0, 0, OPTIONAL},
    {"n_shared_experts", REAL, 0, 0, OPTIONAL},
    {"num_shared_experts", REAL, 0, 0, OPTIONAL},
    {"shared_expert_intermediate_size", REAL, 0, 0, OPTIONAL},
    {"first_k_dense_replace", REAL, 0, 0, OPTIONAL},
    {"partial_rotary_factor", REAL, 1, 1, OPTIONAL},
    {"routed_scaling_factor", REAL, 1, 1, OPTIONAL},
    {"embedding_multiplier", REAL, 1, 1, OPTIONAL},
    {"residual_multiplier", REAL, 1, 1, OPTIONAL},
    {"logits_scaling", REAL, 1, 1, OPTIONAL},
    {"logit_scale", REAL, 1, 1, OPTIONAL},
    {"moe_layer_freq", REAL, 1, 1, OPTIONAL},
    {"n_group", REAL, 1, 1, OPTIONAL},
    {"topk_group", REAL, 1, 1, OPTIONAL},
    {"use_qk_norm", BOOL, 0, 0, OPTIONAL},
    {"hidden_act", TEXT, 0, 0, OPTIONAL},
    {"scoring_func", TEXT, 0, 0, OPTIONAL},
    {"max_attn_value", TEXT, 0, 0, OPTIONAL},
    {"attn_output_multiplier", TEXT, 0, 0, OPTIONAL},
    {"swiglu_limit", TEXT, 0, 0, OPTIONAL},
    {"no_rope_layers", TEXT, 0, 0, OPTIONAL},
    {"interleave_moe_layer_step", TEXT, 0, 0, OPTIONAL},
    {"topk_method", TEXT, 0, 0, OPTIONAL},
    {"attn_temperature_tuning", BOOL, 0, 0, OPTIONAL},
    {"residual_moe", BOOL, 0, 0, OPTIONAL},
    {"shared_intermediate_size", REAL, 0, 0, OPTIONAL},
    {"embedding_multiplier_scale", REAL, 1, 1, OPTIONAL},
    {"output_multiplier_scale", REAL, 1, 1, OPTIONAL},
    {"attention_bias", BOOL, 0, 0, OPTIONAL},
    {"norm_topk_prob", BOOL, 0, 0, OPTIONAL},
    {"clip_qkv", TEXT, 0, 0, OPTIONAL},
    {"sliding_window", TEXT, 0, 0, OPTIONAL},
    {"architectures", LIST, 0, 0, OPTIONAL},
    {"bos_token_id", INT, 0, 319, OPTIONAL},
    {"eos_token_id", IDS, 0, 319, OPTIONAL},
    {"quant_method", FREE, 0, 0, OPTIONAL}, /* inside quantization_config */
    {"torch_dtype", FREE, 0, 0, OPTIONAL},
    {"dtype", FREE, 0, 0, OPTIONAL},
};

#define LEADING_DENSE_RULES                                                                        \
    {"n_routed_experts", INT, 1, LIMIT_EXPERTS, REQUIRED},                                         \
        {"moe_intermediate_size", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},                              \
        {"n_shared_experts", INT, 0, LIMIT_EXPERTS, OPTIONAL},                                     \
        {"first_k_dense_replace", INT, 0, LIMIT_LAYERS, OPTIONAL},                                 \
    {                                                                                              \
        "moe_layer_freq", INT, 1, LIMIT_LAYERS, OPTIONAL                                           \
    }
#define LATENT_RULES                                                                               \
    LEADING_DENSE_RULES, {"q_lora_rank", INT, 1, LIMIT_FFN_WIDTH, OPTIONAL},                       \
        {"kv_lora_rank", INT, 1, LIMIT_HEAD_DIM, REQUIRED},                                        \
        {"qk_nope_head_dim", INT, 1, LIMIT_HEAD_DIM, REQUIRED},                                    \
        {"qk_rope_head_dim", INT, 1, LIMIT_HEAD_DIM, REQUIRED},                                    \
        {"v_head_dim", INT, 1, LIMIT_HEAD_DIM, REQUIRED},                                          \
        {"rope_interleave", BOOL, 0, 0, OPTIONAL},                                                 \
        {"num_key_value_heads", INT, 1, LIMIT_HEADS, OPTIONAL},                                    \
    {                                                                                              \
        "routed_scaling_factor", REAL, 1e-3, 1e3, OPTIONAL                                         \
    }

static const struct family_rules {
    const char *model;
    struct rule own[20]; /* before the common ones */
} families[] = {
    {MODELS "tiny-mixtral", {{"sliding_window", INT, 1, MAX_INT, OPTIONAL}}},
    {MODELS "tiny-qwen3_moe",
     {{"intermediate_size", FREE, 0, 0, OPTIONAL}, /* of dense layers, and there are none */
      {"moe_intermediate_size", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},
      {"use_sliding_window", BOOL, 0, 0, OPTIONAL},
      {"sliding_window", INT, 0, MAX_INT, OPTIONAL}, /* switched off */
      {"max_window_layers", INT, 0, MAX_INT, OPTIONAL},
      {"decoder_sparse_step", INT, 1, LIMIT_LAYERS, OPTIONAL},
      {"mlp_only_layers", LIST, 0, 0, OPTIONAL}}},
    {MODELS "tiny-olmoe", {{"clip_qkv", REAL, 1e-6, 1e6, OPTIONAL}}},
    {MODELS "tiny-qwen2_moe",
     {{"intermediate_size", FREE, 0, 0, OPTIONAL},
      {"moe_intermediate_size", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},
      {"shared_expert_intermediate_size", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},
      {"qkv_bias", BOOL, 0, 0, OPTIONAL},
      {"use_sliding_window", BOOL, 0, 0, OPTIONAL},
      {"sliding_window", INT, 0, MAX_INT, OPTIONAL},
      {"max_window_layers", INT, 0, MAX_INT, OPTIONAL},
      {"decoder_sparse_step", INT, 1, LIMIT_LAYERS, OPTIONAL},
      {"mlp_only_layers", LIST, 0, 0, OPTIONAL}}},
    {MODELS "tiny-deepseek", {LEADING_DENSE_RULES}},
    {MODELS "tiny-deepseek_v2", /* the defaults are one group, which cannot give three experts */
     {LATENT_RULES,
      {"n_group", INT, 1, LIMIT_EXPERTS, REQUIRED},
      {"topk_group", INT, 1, LIMIT_EXPERTS, REQUIRED}}},
    {MODELS "tiny-deepseek_v2-lite", /* no groups: their numbers say nothing */
     {LATENT_RULES, {"n_group", FREE, 0, 0, OPTIONAL}, {"topk_group", FREE, 0, 0, OPTIONAL}}},
    {MODELS "tiny-deepseek_v3", /* nor can two of the eight groups that are the default here */
     {LATENT_RULES,
      {"n_group", INT, 1, LIMIT_EXPERTS, REQUIRED},
      {"topk_group", INT, 1, LIMIT_EXPERTS, OPTIONAL}}},
    {MODELS "tiny-glm4_moe",
     {LEADING_DENSE_RULES,
      {"n_group", INT, 1, LIMIT_EXPERTS, OPTIONAL},
      {"topk_group", INT, 1, LIMIT_EXPERTS, OPTIONAL},
      {"partial_rotary_factor", REAL, 1e-3, 1, OPTIONAL},
      {"routed_scaling_factor", REAL, 1e-3, 1e3, OPTIONAL}}},
    {MODELS "tiny-gpt_oss",
     {{"swiglu_limit", REAL, 1e-3, 1e6, OPTIONAL},
      {"sliding_window", INT, 1, MAX_INT, OPTIONAL},
      {"num_experts_per_tok", INT, 1, LIMIT_TOP_K, OPTIONAL}, /* two names of one number */
      {"experts_per_token", INT, 1, LIMIT_TOP_K, OPTIONAL}}},
    {MODELS "tiny-granitemoe",
     {{"attention_multiplier", REAL, 1e-6, 1e3, OPTIONAL},
      {"embedding_multiplier", REAL, 1e-6, 1e6, OPTIONAL},
      {"residual_multiplier", REAL, 1e-6, 1e6, OPTIONAL},
      {"logits_scaling", REAL, 1e-6, 1e6, OPTIONAL}}},
    {MODELS "tiny-phimoe",
     {{"sliding_window", INT, 1, MAX_INT, OPTIONAL},
      {"router_jitter_noise", REAL, 0, 1, OPTIONAL},
      {"original_max_position_embeddings", INT, 1, LIMIT_CONTEXT, OPTIONAL}}},
    {MODELS "tiny-grok-1",
     {{"attn_output_multiplier", REAL, 1e-6, 1e3, OPTIONAL},
      {"max_attn_value", REAL, 1e-3, 1e6, OPTIONAL},
      {"embedding_multiplier_scale", REAL, 1e-6, 1e6, OPTIONAL},
      {"output_multiplier_scale", REAL, 1e-6, 1e6, OPTIONAL}}},
    {MODELS "tiny-llama4",
     {{"attention_chunk_size", INT, 1, MAX_INT, OPTIONAL},
      {"no_rope_layers", LIST, 0, 0, OPTIONAL},
      {"no_rope_layer_interval", INT, 1, LIMIT_LAYERS, OPTIONAL},
      {"interleave_moe_layer_step", INT, 1, LIMIT_LAYERS, OPTIONAL},
      {"moe_layers", LIST, 0, 0, OPTIONAL},
      {"attn_scale", REAL, 0, 1e3, OPTIONAL},
      {"floor_scale", REAL, 1, 1e9, OPTIONAL},
      {"intermediate_size_mlp", INT, 1, LIMIT_FFN_WIDTH, REQUIRED}}},
    {MODELS "tiny-switch_transformers",
     {{"d_model", INT, 1, LIMIT_HIDDEN, REQUIRED},
      {"d_kv", INT, 2, LIMIT_HEAD_DIM, REQUIRED},
      {"d_ff", INT, 1, LIMIT_FFN_WIDTH, REQUIRED},
      {"num_heads", INT, 1, LIMIT_HEADS, REQUIRED},
      {"num_layers", INT, 1, LIMIT_LAYERS / 2, REQUIRED},
      {"num_decoder_layers", INT, 1, LIMIT_LAYERS / 2, OPTIONAL},
      {"num_sparse_encoder_layers", INT, 0, LIMIT_LAYERS, OPTIONAL},
      {"num_sparse_decoder_layers", INT, 0, LIMIT_LAYERS, OPTIONAL},
      {"decoder_start_token_id", INT, 0, 319, OPTIONAL},
      {"layer_norm_epsilon", REAL, 1e-12, 0.1, OPTIONAL},
      {"relative_attention_num_buckets", INT, 4, 4096, OPTIONAL},
      {"relative_attention_max_distance", INT, 2, LIMIT_CONTEXT, OPTIONAL},
      {"n_positions", INT, 1, LIMIT_CONTEXT / 2, OPTIONAL},
      {"expert_capacity", INT, 1, LIMIT_CONTEXT, OPTIONAL},
      {"router_bias", BOOL, 0, 0, OPTIONAL},
      {"feed_forward_proj", TEXT, 0, 0, OPTIONAL},
      {"dense_act_fn", TEXT, 0, 0, OPTIONAL},
      {"is_gated_act", BOOL, 0, 0, OPTIONAL}}},
    {MODELS "tiny-llama", {{"head_dim", INT, 1, LIMIT_HEAD_DIM, OPTIONAL}}},
    {MODELS "tiny-qwen3",
     {{"use_sliding_window", BOOL, 0, 0, OPTIONAL},
      {"sliding_window", INT, 0, MAX_INT, OPTIONAL},
      {"max_window_layers", INT, 0, MAX_INT, OPTIONAL}}},
};

static const struct rule generation_rules[] = {
    {"do_sample", BOOL, 0, 0, OPTIONAL},     {"temperature", REAL, 0, 100, OPTIONAL},
    {"top_p", REAL, 0, 1, OPTIONAL},         {"top_k", INT, 0, MAX_INT, OPTIONAL},
    {"bos_token_id", INT, 0, 319, OPTIONAL}, {"eos_token_id", IDS, 0, 319, OPTIONAL},
};

static const struct rule rope_rules[] = {
    {"rope_type", TEXT, 0, 0, OPTIONAL},
    {"type", TEXT, 0, 0, OPTIONAL},
    {"rope_theta", REAL, 2, 1e12, OPTIONAL},
    {"partial_rotary_factor", REAL, 1, 1, OPTIONAL},
    {"factor", REAL, 1, 65536, REQUIRED},
    {"original_max_position_embeddings", INT, 1, LIMIT_CONTEXT, OPTIONAL},
    {"low_freq_factor", REAL, 1e-3, 65536, REQUIRED},
    {"high_freq_factor", REAL, 1e-3, 65536, REQUIRED},
    {"beta_fast", REAL, 1e-3, 65536, OPTIONAL},
    {"beta_slow", REAL, 1e-3, 65536, OPTIONAL},
    {"attention_factor", REAL, 1e-3, 1e3, OPTIONAL},
    {"truncate", BOOL, 0, 0, OPTIONAL},
    {"mscale", REAL, 0, 1e3, OPTIONAL},
    {"mscale_all_dim", REAL, 0, 1e3, OPTIONAL},
    {"short_factor", LIST, 0, 0, OPTIONAL},
    {"long_factor", LIST, 0, 0, OPTIONAL},
    {"short_mscale", REAL, 1e-3, 1e3, OPTIONAL},
    {"long_mscale", REAL, 1e-3, 1e3, OPTIONAL},
};

#define N_OF(a) (sizeof(a) / sizeof *(a))

static const struct rule *find_rule(const struct rule *rules, size_t n, const char *key)
{
    for (size_t i = 0; i < n && rules[i].key != NULL; i++)
        if (strcmp(rules[i].key, key) == 0) return &rules[i];
    return NULL;
}

/* May a reader that keeps the rule accept the value? NULL: the key is not there. */
static bool allowed(const struct rule *r, const char *value)
{
    if (value != NULL && strcmp(value, "1e999") == 0) return false; /* no JSON reader takes it */
    if (r->kind == FREE) return true;
    if (value == NULL || strcmp(value, "null") == 0) return r->absence == OPTIONAL;
    bool number = strchr("-0123456789", value[0]) != NULL;
    double x = number ? strtod(value, NULL) : 0;
    bool whole = number && strpbrk(value, ".e") == NULL && fabs(x) < 9223372036854775808.0;
    bool within = number && x >= r->min && x <= r->max;
    switch (r->kind) {
    case INT:
        return whole && within;
    case REAL:
        return within;
    case BOOL:
        return strcmp(value, "true") == 0 || strcmp(value, "false") == 0;
    case IDS:
        return (whole && within) || strcmp(value, "[]") == 0;
    case LIST:
        return strcmp(value, "[]") == 0;
    case OBJECT:
        return strcmp(value, "{}") == 0;
    case TEXT:
    case FREE:
        break;
    }
    return false;
}

struct sweep {
    struct scratch dir;
    const char *file; /* the one that is written */
    size_t n_opened, n_refused;
};

/* Write the text, open the folder, and hold the answer to the rule. */
static void try_one(struct sweep *s, const struct rule *r, const char *value, const char *text)
{
    const char *shown = value != NULL ? value : "(missing)";
    scratch_write(&s->dir, s->file, text, strlen(text));
    struct hparams hp;
    struct model_file *f = NULL;
    struct err why = {0};
    enum err_code rc = hparams_read(s->dir.dir, &hp, &why);
    bool absent = value == NULL || strcmp(value, "null") == 0;
    if (!allowed(r, value))
        cr_expect(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED, "%s: '%s': %s: %s", s->file, r->key,
                  shown, err_name(rc));
    else if (absent && r->kind != TEXT)
        cr_expect_eq(rc, ERR_OK, "%s: '%s': %s: %s", s->file, r->key, shown, why.text);
    if (rc != ERR_OK) {
        /* A number that is right in itself may disagree with others, whose names are told. */
        bool named = allowed(r, value) || strstr(why.text, r->key) != NULL ||
                     strstr(why.text, "not valid JSON") != NULL;
        cr_expect(named && strstr(why.text, s->file) != NULL, "%s: '%s': %s: %s", s->file, r->key,
                  shown, why.text);
    }
    enum err_code opened = model_file_open(s->dir.dir, &f, &why);
    model_file_close(f);
    if (rc != ERR_OK) /* the same fault, behind the folder's name */
        cr_expect(opened == rc && strstr(why.text, s->dir.dir), "%s: %s", r->key, why.text);
    else if (opened != ERR_OK) /* the number is one, but not that of the tensors */
        cr_expect((opened == ERR_CORRUPT || opened == ERR_UNSUPPORTED) &&
                      strstr(why.text, "tensor '") != NULL,
                  "%s: '%s': %s: %s", s->file, r->key, shown, why.text);
    s->n_opened += opened == ERR_OK;
    s->n_refused += opened != ERR_OK;
}

static struct rule of_vocabulary(struct rule r, uint32_t vocab)
{
    if (strstr(r.key, "token_id") != NULL) r.max = vocab - 1.0;
    return r;
}

/* Every value, the rule's bounds and one beyond each, and the key's absence. */
static void try_all(struct sweep *s, json_t *root, json_t *in, const struct rule *r)
{
    char bounds[4][40];
    snprintf(bounds[0], sizeof *bounds, "%.17g", r->min);
    snprintf(bounds[1], sizeof *bounds, "%.17g", r->max);
    snprintf(bounds[2], sizeof *bounds, "%.17g", r->min - 1);
    snprintf(bounds[3], sizeof *bounds, "%.17g", r->max + 1);
    bool bounded = r->kind == INT || r->kind == REAL || r->kind == IDS;
    for (size_t v = 0; v <= N_BAD_VALUES + (bounded ? 4u : 0u); v++) {
        const char *value = v < N_BAD_VALUES    ? bad_values[v]
                            : v == N_BAD_VALUES ? NULL
                                                : bounds[v - N_BAD_VALUES - 1];
        char *text = with_value(root, in, r->key, 0, value);
        try_one(s, r, value, text);
        free(text);
    }
}

/* A key that the code asks for and no rule knows: the table must grow with the code. */
static void expect_known(const char *what, const struct rule *own, size_t n_own,
                         const struct rule *more, size_t n_more)
{
    for (size_t i = 0; i < asked.n; i++)
        cr_expect(find_rule(own, n_own, asked.keys[i]) != NULL ||
                      find_rule(more, n_more, asked.keys[i]) != NULL ||
                      find_rule(rope_rules, N_OF(rope_rules), asked.keys[i]) != NULL,
                  "%s: '%s' is read, but no rule here says what it may be", what, asked.keys[i]);
}

static void print_counts(const struct sweep *s, const char *model)
{
    printf("%s of %s: %zu opened, %zu refused\n", s->file, strrchr(model, '/') + 1, s->n_opened,
           s->n_refused);
}

/* Of a model whose numbers are in text_config. */
static bool is_outside(const char *key)
{
    return strcmp(key, "model_type") == 0 || strcmp(key, "architectures") == 0 ||
           strcmp(key, "quantization_config") == 0;
}

/* A test for each family: together they are minutes under a sanitizer. */
ParameterizedTestParameters(bad_model_files,
                            every_value_of_config_json_is_taken_or_refused_by_its_name)
{
    static size_t which[N_OF(families)];
    for (size_t i = 0; i < N_OF(families); i++)
        which[i] = i;
    return cr_make_param_array(size_t, which, N_OF(families));
}

ParameterizedTest(size_t *which, bad_model_files,
                  every_value_of_config_json_is_taken_or_refused_by_its_name)
{
    limit_memory(MEMORY_BYTES);
    const struct family_rules *family = &families[*which];
    struct sweep s = {.dir = scratch_open(), .file = "config.json"};
    json_t *config = load_json(family->model, "config.json");
    scratch_write_json(&s.dir, "config.json", config);
    scratch_link_model(&s.dir, family->model);
    unlink(scratch_path(&s.dir, "generation_config.json"));
    struct hparams hp;
    struct err why = {0};
    asked_begin();
    cr_assert_eq(hparams_read(s.dir.dir, &hp, &why), ERR_OK, "%s", why.text);
    asked_end();
    expect_known(family->model, family->own, N_OF(family->own), common_rules, N_OF(common_rules));
    json_t *inner = json_object_get(config, "text_config"), *in = inner ? inner : config;
    for (size_t k = 0; k < asked.n; k++) {
        const char *key = asked.keys[k];
        const struct rule *r = find_rule(family->own, N_OF(family->own), key);
        if (r == NULL) r = find_rule(common_rules, N_OF(common_rules), key);
        if (r == NULL) continue; /* of a stretched context: below */
        struct rule mine = of_vocabulary(*r, hp.vocab);
        if ((strcmp(key, "num_experts") == 0 || strcmp(key, "num_local_experts") == 0) &&
            json_object_get(in, key) != NULL)
            mine.absence = REQUIRED;
        if (strcmp(key, "text_config") == 0 && inner != NULL) continue; /* all is in it */
        try_all(&s, config, is_outside(key) ? config : in, &mine);
    }
    print_counts(&s, family->model);
    cr_expect_gt(s.n_opened, 50);
    cr_expect_gt(s.n_refused, 500);
    json_decref(config);
    scratch_close(&s.dir);
}

Test(bad_model_files, every_value_of_generation_config_json_too)
{
    limit_memory(MEMORY_BYTES);
    for (size_t i = 0; i < N_OF(families); i++) {
        struct sweep s = {.dir = scratch_open(), .file = "generation_config.json"};
        json_t *config = json_object();
        scratch_link_model(&s.dir, families[i].model);
        unlink(scratch_path(&s.dir, "generation_config.json"));
        struct hparams hp;
        struct err why = {0};
        cr_assert_eq(hparams_read(s.dir.dir, &hp, &why), ERR_OK, "%s", why.text);
        for (size_t k = 0; k < N_OF(generation_rules); k++) {
            struct rule mine = of_vocabulary(generation_rules[k], hp.vocab);
            try_all(&s, config, config, &mine);
        }
        scratch_write_json(&s.dir, s.file, config);
        asked_begin();
        cr_assert_eq(hparams_read(s.dir.dir, &hp, &why), ERR_OK, "%s", why.text);
        asked_end();
        /* Both files are read in one go: the rules of both. */
        struct rule own[N_OF(families[i].own) + N_OF(generation_rules)];
        memcpy(own, generation_rules, sizeof generation_rules);
        memcpy(own + N_OF(generation_rules), families[i].own, sizeof families[i].own);
        expect_known(s.file, own, N_OF(own), common_rules, N_OF(common_rules));
        print_counts(&s, families[i].model);
        json_decref(config);
        scratch_close(&s.dir);
    }
}

Test(bad_model_files, every_value_of_the_stretched_contexts_too)
{
    static const char *const kinds[] = {
        "{\"rope_type\":\"linear\",\"factor\":2}",
        "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
        "\"original_max_position_embeddings\":64}",
        "{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":1024,\"beta_fast\":32,"
        "\"beta_slow\":1,\"attention_factor\":1.2,\"truncate\":false}",
    };
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    limit_memory(MEMORY_BYTES);
    for (size_t i = 0; i < N_OF(kinds) * N_OF(places); i++) {
        struct sweep s = {.dir = scratch_open(), .file = "config.json"};
        json_t *config = load_json(MODELS "tiny-mixtral", "config.json"),
               *rope = json_loads(kinds[i / N_OF(places)], 0, NULL);
        json_object_set_new(config, places[i % N_OF(places)], rope);
        json_object_del(config, "rope_theta"); /* else the two must agree */
        scratch_write_json(&s.dir, "config.json", config);
        scratch_link_model(&s.dir, MODELS "tiny-mixtral");
        struct hparams hp;
        struct err why = {0};
        asked_begin();
        cr_assert_eq(hparams_read(s.dir.dir, &hp, &why), ERR_OK, "%s", why.text);
        asked_end();
        struct rule own[N_OF(rope_rules) + N_OF(generation_rules)];
        memcpy(own, rope_rules, sizeof rope_rules);
        memcpy(own + N_OF(rope_rules), generation_rules, sizeof generation_rules);
        struct rule more[N_OF(common_rules) + 1];
        memcpy(more, common_rules, sizeof common_rules);
        more[N_OF(common_rules)] = families[0].own[0];
        expect_known(kinds[i / N_OF(places)], own, N_OF(own), more, N_OF(more));
        for (size_t k = 0; k < N_OF(rope_rules); k++) {
            /* What is not this kind's is refused, and what it needs cannot be taken away. */
            struct rule r = rope_rules[k];
            bool needed = strcmp(r.key, "rope_type") == 0 || r.absence == REQUIRED;
            r.absence = needed && json_object_get(rope, r.key) != NULL ? REQUIRED : OPTIONAL;
            bool yarns = strncmp(r.key, "mscale", 6) == 0 && hp.rope.kind == ROPE_YARN;
            if (json_object_get(rope, r.key) == NULL && k >= 4 && !yarns) r.kind = TEXT;
            if (strcmp(r.key, "rope_type") == 0) continue; /* below */
            if (strcmp(r.key, "original_max_position_embeddings") == 0 &&
                hp.rope.kind == ROPE_LLAMA3)
                r.absence = REQUIRED;
            try_all(&s, config, rope, &r);
        }
        for (size_t v = 0; v <= N_BAD_VALUES; v++) {
            char *text =
                with_value(config, rope, "rope_type", 0, v < N_BAD_VALUES ? bad_values[v] : NULL);
            scratch_write(&s.dir, "config.json", text, strlen(text));
            enum err_code rc = hparams_read(s.dir.dir, &hp, &why);
            cr_expect(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED, "%s", text);
            cr_expect(strstr(why.text, "config.json") != NULL, "%s", why.text);
            free(text);
        }
        print_counts(&s, MODELS "tiny-mixtral");
        json_decref(config);
        scratch_close(&s.dir);
    }
}

/* Numbers that are right one by one, and wrong together. */
Test(bad_model_files, numbers_that_disagree_are_refused_with_both)
{
    static const struct {
        size_t family;
        const char *changes;
        const char *words[2];
    } cases[] = {
        {0, "{\"num_experts_per_tok\":7}", {"num_experts_per_tok' 7", "num_local_experts' 6"}},
        {0, "{\"num_key_value_heads\":3}", {"num_attention_heads' 4", "num_key_value_heads' 3"}},
        {0, "{\"num_key_value_heads\":8}", {"num_attention_heads' 4", "num_key_value_heads' 8"}},
        {0, "{\"num_attention_heads\":1024}", {"hidden_size' 64", "num_attention_heads' 1024"}},
        {0, "{\"vocab_size\":319}", {"[320, 64]", "[319, 64]"}},
        {0, "{\"vocab_size\":2}", {"eos_token_id' 2", "vocabulary of 2"}},
        {0, "{\"vocab_size\":1}", {"bos_token_id", "from 0 to 0"}},
        {0, "{\"bos_token_id\":320}", {"bos_token_id", "from 0 to 319"}},
        {0, "{\"num_experts\":7}", {"num_local_experts' is 6", "num_experts' is 7"}},
        {0, "{\"tie_word_embeddings\":\"false\"}", {"tie_word_embeddings", "a text"}},
        {1, "{\"mlp_only_layers\":[2]}", {"mlp_only_layers", "0 to 1"}},
        {1, "{\"mlp_only_layers\":[-1]}", {"mlp_only_layers", "0 to 1"}},
        {1, "{\"mlp_only_layers\":[\"0\"]}", {"mlp_only_layers", "entry 0"}},
        {1, "{\"layer_types\":[\"full_attention\",7]}", {"layer_types", "7"}},
        {1, "{\"layer_types\":[\"full_attention\"]}", {"layer_types", "1 entries"}},
        {2, "{\"architectures\":[7]}", {"architectures", "not a text"}},
        {13, "{\"text_config\":[]}", {"text_config", "object"}},
        {13, "{\"text_config\":{\"hidden_size\":64}}", {"config.json", "num_hidden_layers"}},
        {5, "{\"topk_group\":5}", {"topk_group' 5", "n_group' 4"}},
        {8, "{\"partial_rotary_factor\":0.01}", {"partial_rotary_factor", "head of 32"}},
        {11, "{\"num_experts_per_tok\":3}", {"num_experts_per_tok' is 3", "for 2"}},
        {2, "{\"architectures\":\"OlmoeForSequenceClassification\"}", {"architectures", "list"}},
    };
    for (size_t i = 0; i < N_OF(cases); i++) {
        struct scratch s = scratch_open();
        struct model_file *f = NULL;
        struct err why = {0};
        scratch_write_config(&s, families[cases[i].family].model, cases[i].changes);
        scratch_link_model(&s, families[cases[i].family].model);
        enum err_code rc = model_file_open(s.dir, &f, &why);
        cr_expect(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED, "%s", cases[i].changes);
        for (int w = 0; w < 2; w++)
            cr_expect(strstr(why.text, cases[i].words[w]) != NULL, "%s: '%s' is not in: %s",
                      cases[i].changes, cases[i].words[w], why.text);
        model_file_close(f);
        scratch_close(&s);
    }
}

static void expect_cut_refused(struct scratch *s, const char *name)
{
    size_t n;
    unsigned char *whole = read_bytes(scratch_path(s, name), &n);
    unlink(scratch_path(s, name)); /* a link into the repository */
    while (n > 0 && whole[n - 1] <= ' ')
        n--;
    for (size_t cut = 0; cut <= n; cut++) {
        struct model_file *f = NULL;
        struct err why = {0};
        scratch_write(s, name, whole, cut);
        enum err_code rc = model_file_open(s->dir, &f, &why);
        if (cut == n)
            cr_expect_eq(rc, ERR_OK, "%s", why.text);
        else
            cr_expect(rc == ERR_CORRUPT && strstr(why.text, name) != NULL, "cut at %zu: %s", cut,
                      rc == ERR_OK ? "opened" : why.text);
        model_file_close(f);
    }
    free(whole);
}

Test(bad_model_files, a_file_cut_at_any_byte_is_refused_by_its_name)
{
    struct scratch s = scratch_open();
    scratch_link_model(&s, MODELS "tiny-qwen3_moe-bf16");
    expect_cut_refused(&s, "config.json");
    expect_cut_refused(&s, "generation_config.json");
    scratch_close(&s);
}

/* ---- the tensors' header --------------------------------------------------------------------------- */

/* The model's one file with another header; the data stays. */
static void write_tensors(const struct scratch *s, const char *header, const unsigned char *data,
                          size_t n_data)
{
    size_t len = strlen(header);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)len >> 8 * i);
    FILE *f = fopen(scratch_path(s, "model.safetensors"), "wb");
    if (f == NULL || fwrite(prefix, 1, 8, f) != 8 || fwrite(header, 1, len, f) != len ||
        fwrite(data, 1, n_data, f) != n_data || fclose(f) != 0)
        abort();
}

struct tensors {
    struct scratch dir;
    unsigned char *file;
    json_t *header;
    size_t len, n;
};

static struct tensors tensors_open(const char *model)
{
    struct tensors t = {.dir = scratch_open()};
    char path[600];
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    t.file = read_bytes(path, &t.n);
    for (int i = 7; i >= 0; i--)
        t.len = t.len << 8 | t.file[i];
    t.header = json_loadb((char *)t.file + 8, t.len, 0, NULL);
    cr_assert_not_null(t.header);
    scratch_link_model(&t.dir, model);
    unlink(scratch_path(&t.dir, "model.safetensors"));
    return t;
}

static void tensors_close(struct tensors *t)
{
    json_decref(t->header);
    free(t->file);
    scratch_close(&t->dir);
}

/* Opens the folder with this header; the answer must be a refusal that names the file and `word`, unless it is OK and
 * may be. */
static void try_header(struct tensors *t, const char *header, const char *word, bool may_open,
                       const char *what)
{
    struct model_file *f = NULL;
    struct err why = {0};
    write_tensors(&t->dir, header, t->file + 8 + t->len, t->n - 8 - t->len);
    enum err_code rc = model_file_open(t->dir.dir, &f, &why);
    model_file_close(f);
    if (rc == ERR_OK) {
        cr_expect(may_open, "%s: opened", what);
        return;
    }
    cr_expect(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED, "%s: %s: %s", what, err_name(rc),
              why.text);
    bool json = strstr(why.text, "not valid JSON") != NULL;
    /* What a header holds may be right in itself and not what config.json needs: then the folder and the tensor are
     * named. */
    cr_expect(strstr(why.text, t->dir.dir) != NULL && (json || strstr(why.text, word) != NULL),
              "%s: '%s' is not in: %s", what, word, why.text);
}

Test(bad_model_files, a_header_cut_at_any_byte_is_refused)
{
    struct tensors t = tensors_open(MODELS "tiny-mixtral");
    struct err why;
    for (size_t cut = 0; cut < 8 + t.len; cut++) { /* the file ends there */
        struct model_file *f = NULL;
        scratch_write(&t.dir, "model.safetensors", t.file, cut);
        cr_expect(model_file_open(t.dir.dir, &f, &why) == ERR_CORRUPT &&
                      strstr(why.text, "model.safetensors"),
                  "the file ends at %zu", cut);
    }
    char *header = malloc(t.n);                   /* the header is a part of the file */
    for (size_t cut = 0; cut < t.len; cut += 3) { /* the header does, and the data follows */
        struct model_file *f = NULL;
        if (t.file[8 + cut] == ' ') break; /* the padding behind the last brace */
        memcpy(header, t.file + 8, cut);
        header[cut] = '\0';
        write_tensors(&t.dir, header, t.file + 8 + t.len, 64);
        cr_expect(model_file_open(t.dir.dir, &f, &why) == ERR_CORRUPT &&
                      strstr(why.text, "model.safetensors"),
                  "the header ends at %zu", cut);
    }
    free(header);
    tensors_close(&t);
}

Test(bad_model_files, a_broken_field_of_the_header_is_refused_by_its_tensor)
{
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    static const char *const more[] = {"\"F64\"",
                                       "\"f32\"",
                                       "\"BF16\"",
                                       "\"F32\\u0000\"",
                                       "[0]",
                                       "[64]",
                                       "[64,64,1]",
                                       "[1,1,1,1,1]",
                                       "[-64,64]",
                                       "[4294967296,4294967296]",
                                       "[0,0]",
                                       "[0,1]",
                                       "[4,0]",
                                       "[-4,4]",
                                       "[0,1e4]",
                                       "[0,\"4096\"]",
                                       "[null,null]",
                                       "[9223372036854775807,9223372036854775807]",
                                       "[0,9223372036854775807]"};
    limit_memory(MEMORY_BYTES);
    struct tensors t = tensors_open(MODELS "tiny-mixtral");
    char *names[16];
    const char *key;
    json_t *v_tensor;
    size_t n = 0, n_names = 0;
    json_object_foreach(t.header, key, v_tensor)
    {
        if (strcmp(key, "__metadata__") == 0 || n_names == N_OF(names)) continue;
        if (n++ % 7 == 0) names[n_names++] = strdup(key); /* they are all alike */
    }
    for (size_t i = 0; i < n_names; i++) {
        const char *name = names[i];
        json_t *tensor = json_object_get(t.header, name);
        for (size_t k = 0; k < N_OF(fields); k++)
            for (size_t v = 0; v <= N_BAD_VALUES + N_OF(more); v++) {
                const char *value = v < N_BAD_VALUES    ? bad_values[v]
                                    : v == N_BAD_VALUES ? NULL
                                                        : more[v - N_BAD_VALUES - 1];
                char what[200], *text = with_value(t.header, tensor, fields[k], 0, value);
                snprintf(what, sizeof what, "%s: %s: %s", name, fields[k],
                         value != NULL ? value : "(missing)");
                json_t *had = json_object_get(tensor, fields[k]);
                char *same = json_dumps(had, JSON_COMPACT | JSON_ENCODE_ANY);
                try_header(&t, text, "tensor '", value != NULL && strcmp(value, same) == 0, what);
                free(same);
                free(text);
            }
        for (size_t v = 0; v < N_BAD_VALUES; v++) {
            char what[200], *text = with_value(t.header, t.header, name, 0, bad_values[v]);
            snprintf(what, sizeof what, "%s: %s", name, bad_values[v]);
            try_header(&t, text, "tensor '", false, what);
            free(text);
        }
        char *text = with_value(t.header, t.header, name, 0, NULL);
        try_header(&t, text, "tensor '", false, name);
        free(text);
        free(names[i]);
    }
    for (size_t v = 0; v < N_BAD_VALUES; v++) {
        char what[64], *text = with_value(t.header, t.header, "__metadata__", 0, bad_values[v]);
        snprintf(what, sizeof what, "__metadata__: %s", bad_values[v]);
        try_header(&t, text, "__metadata__", strcmp(bad_values[v], "{}") == 0, what);
        free(text);
    }
    tensors_close(&t);
}

/* The offsets of neighbors, moved against each other by one byte either way. */
Test(bad_model_files, offsets_that_overlap_or_leave_a_hole_are_refused)
{
    struct tensors t = tensors_open(MODELS "tiny-mixtral");
    const char *name;
    json_t *tensor;
    json_object_foreach(t.header, name, tensor)
    {
        json_t *offsets = json_object_get(tensor, "data_offsets");
        for (int edge = 0; offsets != NULL && edge < 2; edge++)
            for (int by = -1; by <= 1; by += 2) {
                char value[40], what[200];
                json_int_t at = json_integer_value(json_array_get(offsets, edge));
                snprintf(value, sizeof value, "%lld", (long long)at + by);
                snprintf(what, sizeof what, "%s: data_offsets[%d] by %d", name, edge, by);
                char *text = with_value(t.header, offsets, NULL, edge, value);
                try_header(&t, text, "tensor '", false, what);
                free(text);
            }
    }
    tensors_close(&t);
}
