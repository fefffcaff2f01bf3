/* What a GGUF file says of its model, against the config.json that it was made from. */
// links: modelfile
#include <criterion/criterion.h>
#include <math.h>

#include "common/modelfile/gguf_config.h"
#include "common/modelfile/gguf_used.h"
#include "common/modelfile/hparams.h"
#include "tests/unit/gguf_fixture.h"
#include "tests/unit/modelfile_fixture.h"

static const char *shared_models(void)
{
    static char path[1024];
    const char *shared = getenv("MOESAIC_SHARED"), *require = getenv("MOESAIC_REQUIRE_SHARED");
    snprintf(path, sizeof path, "%s/models", shared ? shared : PROJECT_ROOT "/../shared");
    if (access(path, R_OK) == 0) return path;
    if (require != NULL && strcmp(require, "1") == 0) cr_assert_fail("%s is not there", path);
    cr_skip_test("%s is not there", path);
    return NULL;
}

static void expect_close(double a, double b, const char *file, const char *what)
{
    cr_expect((isnan(a) && isnan(b)) || fabs(a - b) <= 1e-7 * fabs(b), "%s: %s is %.17g, not %.17g",
              file, what, a, b);
}

#define SAME(field)                                                                                \
    cr_expect_eq(got.field, want.field, "%s: " #field " is %g, not %g", file, (double)got.field,   \
                 (double)want.field)
#define CLOSE(field) expect_close((double)got.field, (double)want.field, file, #field)

static void compare(const char *file, const char *folder)
{
    char path[1100];
    struct err why;
    struct hparams want, got;
    snprintf(path, sizeof path, "%s/%s", shared_models(), folder);
    cr_assert_eq(hparams_read(path, &want, &why), ERR_OK, "%s", why.text);
    snprintf(path, sizeof path, "%s/gguf/%s", shared_models(), file);
    struct gguf_set set;
    json_t *config;
    cr_assert_eq(gguf_set_open(path, false, &set, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(gguf_config(&set, &config, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(hparams_read_object(config, file, &got, &why), ERR_OK, "%s", why.text);
    json_decref(config);
    cr_expect_eq(gguf_check_used(&set, &got, &why), ERR_OK, "%s", why.text);

    SAME(family);
    SAME(n_layers);
    SAME(hidden);
    SAME(vocab);
    SAME(ctx_max);
    SAME(n_heads);
    SAME(n_kv_heads);
    SAME(head_dim);
    SAME(value_dim);
    SAME(rope_dim);
    SAME(rope_interleaved);
    SAME(attention_bias);
    SAME(attention_out_bias);
    SAME(qk_norm);
    SAME(clip_qkv);
    CLOSE(score_scale);
    SAME(score_soft_cap);
    SAME(sinks);
    SAME(mla.kv_rank);
    SAME(mla.q_rank);
    SAME(mla.nope);
    SAME(mla.rope);
    SAME(norm);
    SAME(norm_eps);
    SAME(embed_scale);
    SAME(residual_scale);
    SAME(logit_scale);
    SAME(logit_divisor);
    SAME(tied_head);
    SAME(head_bias);
    SAME(swiglu_limit);
    SAME(dense_width);
    SAME(n_experts);
    SAME(top_k);
    SAME(expert_width);
    SAME(shared_width);
    SAME(shared_gated);
    SAME(router.score);
    SAME(router.renormalized);
    SAME(router.scale);
    SAME(router.bias);
    SAME(router.correction);
    SAME(router.n_groups);
    SAME(router.top_groups);
    SAME(router.group_score);
    SAME(router.jitter_eps);
    for (uint32_t l = 0; l < want.n_layers; l++) {
        SAME(is_moe[l]);
        SAME(sliding_window[l]);
    }
    SAME(rope.theta);
    if (want.rope.kind == ROPE_LLAMA3) {
        /* the same rule, spelled out: 1 where the frequency stays, factor where it is slowed */
        cr_expect_eq(got.rope.kind, ROPE_DIVISORS);
        cr_expect_eq(got.rope.n_factors, want.rope_dim / 2);
        cr_expect_eq(got.rope.short_factor[0], 1);
        cr_expect_eq(got.rope.short_factor[want.rope_dim / 2 - 1], (float)want.rope.factor);
    } else {
        SAME(rope.kind);
        CLOSE(rope.factor);
        SAME(rope.original_ctx);
        SAME(rope.beta_fast);
        SAME(rope.beta_slow);
        SAME(rope.truncate);
        CLOSE(rope.mscale);
        CLOSE(rope.mscale_all_dim);
        CLOSE(rope.short_mscale);
        CLOSE(rope.long_mscale);
        SAME(rope.n_factors);
        for (uint32_t i = 0; i < want.rope.n_factors; i++) {
            SAME(rope.short_factor[i]);
            SAME(rope.long_factor[i]);
        }
    }
    for (uint32_t i = 0; i < want.n_eos; i++) {
        bool there = false;
        for (uint32_t j = 0; j < got.n_eos; j++)
            there = there || got.eos[j] == want.eos[i];
        cr_expect(there, "%s: end token %d is missing", file, want.eos[i]);
    }
    gguf_set_close(&set);
}

Test(gguf_config, every_converted_model_has_the_numbers_of_its_checkpoint)
{
    static const char *const files[][2] = {
        {"tiny-mixtral-f32.gguf", "tiny-mixtral"},
        {"tiny-mixtral-q4_0.gguf", "tiny-mixtral"},
        {"tiny-mixtral-f16-v2.gguf", "tiny-mixtral"},
        {"tiny-mixtral-f16-experts-apart.gguf", "tiny-mixtral"},
        {"tiny-mixtral-f16-split-00002-of-00002.gguf", "tiny-mixtral"},
        {"tiny-qwen3_moe-f32.gguf", "tiny-qwen3_moe"},
        {"tiny-deepseek_v2-f32.gguf", "tiny-deepseek_v2"},
        {"tiny-deepseek_v2-f32-old-kv-b.gguf", "tiny-deepseek_v2"},
        {"tiny-deepseek_v2-lite-f16.gguf", "tiny-deepseek_v2-lite"},
        {"tiny-deepseek_v3-f32.gguf", "tiny-deepseek_v3"},
        {"tiny-deepseek-f16.gguf", "tiny-deepseek"},
        {"tiny-gpt_oss-f32.gguf", "tiny-gpt_oss"},
        {"tiny-olmoe-f16.gguf", "tiny-olmoe"},
        {"tiny-qwen2_moe-f16.gguf", "tiny-qwen2_moe"},
        {"tiny-granitemoe-f16.gguf", "tiny-granitemoe"},
        {"tiny-phimoe-f16.gguf", "tiny-phimoe"},
        {"tiny-glm4_moe-f16.gguf", "tiny-glm4_moe"},
        {"tiny-llama-f16.gguf", "tiny-llama"},
        {"tiny-qwen3-f16.gguf", "tiny-qwen3"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        compare(files[i][0], files[i][1]);
}

Test(gguf_config, rows_are_permuted_for_some_architectures_only)
{
    static const struct {
        const char *file;
        bool permuted;
    } files[] = {{"tiny-mixtral-f32.gguf", true},    {"tiny-deepseek-f16.gguf", true},
                 {"tiny-granitemoe-f16.gguf", true}, {"tiny-deepseek_v2-f32.gguf", false},
                 {"tiny-qwen3-f16.gguf", false},     {"tiny-gpt_oss-f32.gguf", false}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[1100];
        struct err why;
        struct gguf_set set;
        snprintf(path, sizeof path, "%s/gguf/%s", shared_models(), files[i].file);
        cr_assert_eq(gguf_set_open(path, false, &set, &why), ERR_OK, "%s", why.text);
        cr_expect_eq(gguf_config_permuted(&set), files[i].permuted, "%s", files[i].file);
        gguf_set_close(&set);
    }
}

/* ---- files made up ------------------------------------------------------------------------------ */

static void make_common(struct gguf_maker *m, const char *arch, bool experts)
{
    char key[96];
    make_string(m, "general.architecture", arch);
#define U32(name, x) (snprintf(key, sizeof key, "%s." name, arch), make_u32(m, key, x))
    U32("block_count", 2);
    U32("context_length", 128);
    U32("embedding_length", 64);
    U32("feed_forward_length", 96);
    U32("attention.head_count", 4);
    U32("attention.head_count_kv", 2);
    if (experts) U32("expert_count", 8);
    if (experts) U32("expert_used_count", 2);
    make_tensor(m, "token_embd.weight", 1, 2, (uint64_t[]){64, 100}, NULL, 12800);
}

/* Closes m. NULL: an error, which is in *why. */
static json_t *config_of(struct gguf_maker *m, struct err *why, enum err_code *rc)
{
    struct scratch s = scratch_open();
    size_t n;
    uint8_t *file = make_file(m, &n);
    scratch_write(&s, "m.gguf", file, n);
    free(file);
    struct gguf_set set;
    json_t *config = NULL;
    cr_assert_eq(gguf_set_open(s.dir, false, &set, why), ERR_OK, "%s", why->text);
    *rc = gguf_config(&set, &config, why);
    gguf_set_close(&set);
    scratch_close(&s);
    return config;
}

static void refuse(struct gguf_maker *m, enum err_code code, const char *a, const char *b)
{
    struct err why = {0};
    enum err_code rc;
    json_t *config = config_of(m, &why, &rc);
    cr_expect_eq(rc, code, "%s: %s", err_name(rc), why.text);
    cr_expect_null(config);
    cr_expect(strstr(why.text, a) != NULL && strstr(why.text, b) != NULL, "'%s', '%s' not in: %s",
              a, b, why.text);
}

/* A good llama file and one key more. */
#define WITH(arch, experts, make)                                                                  \
    do {                                                                                           \
        make_common(&m, arch, experts);                                                            \
        make;                                                                                      \
    } while (0)

Test(gguf_config, what_is_not_supported_is_refused_by_name)
{
    struct gguf_maker m = {0};
    make_string(&m, "general.architecture", "mamba");
    refuse(&m, ERR_UNSUPPORTED, "'mamba'", "deepseek2");
    make_string(&m, "general.architecture", "granite");
    refuse(&m, ERR_UNSUPPORTED, "'granite'", "granitemoe");
    make_u32(&m, "general.architecture", 1);
    refuse(&m, ERR_CORRUPT, "'general.architecture'", "a string");
    make_u32(&m, "general.x", 1);
    refuse(&m, ERR_CORRUPT, "'general.architecture'", "missing");
    make_string(&m, "general.architecture", "llama");
    refuse(&m, ERR_CORRUPT, "'llama.block_count'", "is 0");
    WITH("llama", false, make_f32(&m, "llama.attn_logit_softcapping", 30));
    refuse(&m, ERR_UNSUPPORTED, "'llama.attn_logit_softcapping'", "30");
    WITH("qwen3", false, make_u32(&m, "qwen3.attention.sliding_window", 9));
    refuse(&m, ERR_UNSUPPORTED, "'qwen3.attention.sliding_window'", "9");
    WITH("llama", false, make_string(&m, "llama.rope.scaling.type", "dynamic"));
    refuse(&m, ERR_UNSUPPORTED, "'llama.rope.scaling.type'", "'dynamic'");
    WITH("llama", false, make_u32(&m, "llama.rope.scaling.type", 1));
    refuse(&m, ERR_CORRUPT, "'llama.rope.scaling.type'", "a string");
    WITH("llama", false, make_u32(&m, "llama.rope.dimension_count", 8));
    refuse(&m, ERR_UNSUPPORTED, "'rope.dimension_count' is 8", "16");
    WITH("llama", false, make_u32(&m, "llama.attention.value_length", 8));
    refuse(&m, ERR_UNSUPPORTED, "'attention.key_length' 16", "8");
    WITH("llama", true, make_int(&m, "llama.expert_weights_norm", GGUF_BOOL, 0));
    refuse(&m, ERR_UNSUPPORTED, "'llama.expert_weights_norm'", "false");
    WITH("qwen3moe", true, make_u32(&m, "qwen3moe.expert_gating_func", 2));
    refuse(&m, ERR_UNSUPPORTED, "'qwen3moe.expert_gating_func' 2", "");
    WITH("llama", false, make_f32(&m, "llama.rope.freq_base", NAN));
    refuse(&m, ERR_CORRUPT, "'llama.rope.freq_base'", "finite");
    WITH("llama", false, make_array(&m, "llama.attention.key_length", GGUF_U32, 2));
    put_le(&m.keys, 16, 4);
    put_le(&m.keys, 32, 4);
    refuse(&m, ERR_UNSUPPORTED, "'llama.attention.key_length' is 16 in layer 0", "32 in layer 1");
    WITH("llama", false, make_array(&m, "llama.attention.key_length", GGUF_U32, 0));
    refuse(&m, ERR_CORRUPT, "empty", "");
    WITH("grok", true, make_tensor(&m, "blk.1.ffn_up.weight", 0, 1, (uint64_t[]){1}, NULL, 4));
    refuse(&m, ERR_UNSUPPORTED, "'blk.1.ffn_up.weight'", "Grok-2");
    WITH("deepseek", true,
         make_tensor(&m, "blk.1.ffn_up_shexp.weight", 0, 1, (uint64_t[]){1}, NULL, 4));
    refuse(&m, ERR_CORRUPT, "'deepseek.expert_shared_count' is 0", "blk.1.ffn_up_shexp");
    WITH("deepseek2", true,
         make_tensor(&m, "blk.1.exp_probs_b.bias", 0, 1, (uint64_t[]){8}, NULL, 32));
    refuse(&m, ERR_CORRUPT, "blk.1.exp_probs_b.bias", "expert_gating_func");
    WITH("llama", false, make_u32(&m, "llama.nextn_predict_layers", 2));
    refuse(&m, ERR_CORRUPT, "'llama.block_count'", "is 0");
    WITH("llama", false, make_int(&m, "llama.nextn_predict_layers", GGUF_I64, INT64_MIN));
    refuse(&m, ERR_CORRUPT, "'llama.nextn_predict_layers'", "-9223372036854775808");
    float bad[8] = {1, 1, NAN};
    WITH("llama", false, make_tensor(&m, "rope_freqs.weight", 0, 1, (uint64_t[]){8}, bad, 32));
    refuse(&m, ERR_CORRUPT, "'rope_freqs.weight'", "element 2");
    WITH("llama", false, make_tensor(&m, "rope_freqs.weight", 1, 1, (uint64_t[]){8}, bad, 16));
    refuse(&m, ERR_CORRUPT, "'rope_freqs.weight'", "F16");
}

static int64_t integer(const json_t *config, const char *key)
{
    cr_expect(json_is_integer(json_object_get(config, key)), "%s", key);
    return json_integer_value(json_object_get(config, key));
}

Test(gguf_config, files_that_leave_keys_out_get_the_published_numbers)
{
    struct gguf_maker m = {0};
    struct err why;
    enum err_code rc;
    make_common(&m, "grok", true);
    json_t *c = config_of(&m, &why, &rc);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    cr_expect_str_eq(json_string_value(json_object_get(c, "model_type")), "grok-1");
    cr_expect_eq(json_real_value(json_object_get(c, "max_attn_value")), 30);
    cr_expect_eq(json_real_value(json_object_get(c, "embedding_multiplier_scale")),
                 78.38367176906169);
    cr_expect_eq(json_real_value(json_object_get(c, "rope_theta")), 10000);
    cr_expect(json_is_true(json_object_get(c, "tie_word_embeddings")));
    struct hparams hp;
    cr_expect_eq(hparams_read_object(c, "grok", &hp, &why), ERR_OK, "%s", why.text);
    json_decref(c);

    make_common(&m, "llama4", true);
    make_u32(&m, "llama4.expert_feed_forward_length", 32);
    make_u32(&m, "llama4.interleave_moe_layer_step", 2);
    c = config_of(&m, &why, &rc);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    cr_expect_eq(integer(c, "attention_chunk_size"), 8192);
    cr_expect_eq(integer(c, "intermediate_size"), 32);
    cr_expect_eq(integer(c, "intermediate_size_mlp"), 96);
    cr_expect(json_is_true(json_object_get(c, "use_qk_norm")));
    json_decref(c);

    /* DeepSeek-V3 as it was converted before the keys of groups: 256 experts. */
    make_string(&m, "general.architecture", "deepseek2");
    static const struct {
        const char *key;
        uint32_t x;
    } keys[] = {{"block_count", 2},
                {"context_length", 64},
                {"embedding_length", 64},
                {"attention.head_count", 4},
                {"feed_forward_length", 96},
                {"expert_count", 256},
                {"expert_used_count", 8},
                {"expert_feed_forward_length", 32},
                {"expert_gating_func", 2},
                {"attention.key_length", 24},
                {"attention.value_length", 16},
                {"rope.dimension_count", 8},
                {"attention.kv_lora_rank", 32},
                {"attention.q_lora_rank", 24}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char key[96];
        snprintf(key, sizeof key, "deepseek2.%s", keys[i].key);
        make_u32(&m, key, keys[i].x);
    }
    make_int(&m, "deepseek2.expert_weights_norm", GGUF_BOOL, 1);
    make_string(&m, "tokenizer.ggml.pre", "deepseek-v3");
    make_tensor(&m, "token_embd.weight", 1, 2, (uint64_t[]){64, 100}, NULL, 12800);
    c = config_of(&m, &why, &rc);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    cr_expect_str_eq(json_string_value(json_object_get(c, "model_type")), "deepseek_v3");
    cr_expect_eq(integer(c, "n_group"), 8);
    cr_expect_eq(integer(c, "topk_group"), 4);
    cr_expect_eq(integer(c, "qk_nope_head_dim"), 16);
    cr_expect_eq(integer(c, "q_lora_rank"), 24);
    cr_expect_eq(hparams_read_object(c, "v3", &hp, &why), ERR_OK, "%s", why.text);
    json_decref(c);
}

Test(gguf_config, a_linear_scale_window_and_ends_by_their_text)
{
    struct gguf_maker m = {0};
    struct err why;
    enum err_code rc;
    make_common(&m, "llama", false);
    make_f32(&m, "llama.rope.scale_linear", 4);
    make_u32(&m, "llama.attention.sliding_window", 7);
    make_u32(&m, "tokenizer.ggml.bos_token_id", 3);
    make_u32(&m, "tokenizer.ggml.eos_token_id", 2);
    make_u32(&m, "tokenizer.ggml.eot_token_id", UINT32_MAX);
    make_array(&m, "tokenizer.ggml.tokens", GGUF_STRING, 4);
    put_string(&m.keys, "<|im_end|>");
    put_string(&m.keys, "<|im_start|>");
    put_string(&m.keys, "</s>");
    put_string(&m.keys, "x");
    json_t *c = config_of(&m, &why, &rc);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    cr_expect_str_eq(json_string_value(json_object_get(c, "model_type")), "mistral");
    struct hparams hp;
    cr_assert_eq(hparams_read_object(c, "x", &hp, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(hp.rope.kind, ROPE_LINEAR);
    cr_expect_eq(hp.rope.factor, 4);
    cr_expect_eq(hp.sliding_window[1], 7);
    cr_expect_eq(hp.bos, 3);
    cr_assert_eq(hp.n_eos, 2);
    cr_expect_eq(hp.eos[0], 2);
    cr_expect_eq(hp.eos[1], 0);
    json_decref(c);
}

Test(gguf_config, a_tensor_that_the_family_does_not_know_is_refused)
{
    static const struct {
        const char *name;
        bool good;
    } cases[] = {{"blk.0.attn_q.weight", true},
                 {"blk.0.attn_rot_embd.weight", true},
                 {"blk.2.nextn.eh_proj.weight", true},
                 {"rope_freqs.weight", true},
                 {"blk.0.attn_sub_norm.weight", false},
                 {"blk.1.ffn_up.scale", false},
                 {"blk.1.ffn_down.bias", false},
                 {"blk.1.ffn_gate.0.weight", false},
                 {"cls.weight", false},
                 {"blk.weight", false},
                 {"blk.0", false},
                 {"blk.0.attn_q.weight.lora_a", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_maker m = {0};
        make_common(&m, "llama", false);
        float one[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        make_tensor(&m, cases[i].name, 0, 1, (uint64_t[]){8}, one, 32);
        struct scratch s = scratch_open();
        size_t n;
        uint8_t *file = make_file(&m, &n);
        scratch_write(&s, "m.gguf", file, n);
        free(file);
        struct gguf_set set;
        struct err why;
        struct hparams hp;
        json_t *config;
        cr_assert_eq(gguf_set_open(s.dir, false, &set, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(gguf_config(&set, &config, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(hparams_read_object(config, "m", &hp, &why), ERR_OK, "%s", why.text);
        enum err_code rc = gguf_check_used(&set, &hp, &why);
        cr_expect_eq(rc, cases[i].good ? ERR_OK : ERR_UNSUPPORTED, "%s", cases[i].name);
        if (rc != ERR_OK) cr_expect(strstr(why.text, cases[i].name) != NULL, "%s", why.text);
        json_decref(config);
        gguf_set_close(&set);
        scratch_close(&s);
    }
}
