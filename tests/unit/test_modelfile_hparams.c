/* config.json: every number honoured, or refused by its name. */
// links: modelfile
#include <criterion/criterion.h>
#include <math.h>

#include "common/modelfile/hparams.h"
#include "common/modelfile/weights.h"
#include "tests/unit/modelfile_fixture.h"

static const char *const models[] = {[FAMILY_MIXTRAL] = MODELS "tiny-mixtral",
                                     [FAMILY_QWEN3_MOE] = MODELS "tiny-qwen3_moe",
                                     [FAMILY_OLMOE] = MODELS "tiny-olmoe"};
#define N_MODELS (sizeof models / sizeof *models)

static enum err_code read_changed(enum family family, const char *changes, struct hparams *hp,
                                  struct err *why)
{
    struct scratch s = scratch_open();
    scratch_write_config(&s, models[family], changes);
    why->text[0] = '\0';
    enum err_code rc = hparams_read(s.dir, hp, why);
    scratch_close(&s);
    return rc;
}

Test(modelfile_hparams, the_values_of_the_files_arrive)
{
    struct hparams hp;
    struct err why;
    cr_assert_eq(hparams_read(models[FAMILY_MIXTRAL], &hp, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(hp.family, FAMILY_MIXTRAL);
    cr_expect_eq(hp.n_layers, 2);
    cr_expect_eq(hp.hidden, 64);
    cr_expect_eq(hp.vocab, 320);
    cr_expect_eq(hp.ctx_max, 4096);
    cr_expect_eq(hp.n_heads, 4);
    cr_expect_eq(hp.n_kv_heads, 2);
    cr_expect_eq(hp.head_dim, 16);
    cr_expect_eq(hp.qk_norm, QK_NORM_NONE);
    cr_expect_eq(hp.n_experts, 6);
    cr_expect_eq(hp.top_k, 2);
    cr_expect_eq(hp.expert_width, 32);
    cr_expect_eq(hp.dense_width, 0);
    cr_expect(hp.router.renormalized && !hp.tied_head && hp.is_moe[0] && hp.is_moe[1]);
    cr_expect_eq(hp.norm_eps, 1e-5f);
    cr_expect_eq(hp.rope.kind, ROPE_PLAIN);
    cr_expect_eq(hp.rope.theta, 1e6);
    cr_expect_eq(hp.bos, 1);
    cr_expect(hp.n_eos == 1 && hp.eos[0] == 2);
    cr_expect_str_eq(hp.dtype_hint, "float32");
    cr_expect(isnan(hp.temperature) && isnan(hp.top_p) && hp.top_k_default == 0 && !hp.do_sample);

    cr_assert_eq(hparams_read(models[FAMILY_QWEN3_MOE], &hp, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(hp.head_dim, 32, "stands alone: 4 heads of 32 are not 64");
    cr_expect_eq(hp.qk_norm, QK_NORM_HEAD);
    cr_expect_eq(hp.expert_width, 32, "moe_intermediate_size, not intermediate_size");
    cr_expect(hp.router.renormalized);
    cr_expect_eq(hp.norm_eps, 1e-6f);

    cr_assert_eq(hparams_read(models[FAMILY_OLMOE], &hp, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(hp.qk_norm, QK_NORM_FULL);
    cr_expect_not(hp.router.renormalized);
    cr_expect_eq(hp.bos, -1);
    cr_expect_eq(hp.rope.theta, 1e4);

    cr_assert_eq(hparams_read(PROJECT_ROOT "/deploy/demo", &hp, &why), ERR_OK, "%s", why.text);
    cr_expect(hp.tied_head && hp.do_sample);
    cr_expect_eq(hp.temperature, 0.8f);
    cr_expect_eq(hp.top_p, 0.95f);
    cr_expect(hp.n_eos == 2 && hp.eos[0] == 2 && hp.eos[1] == 0,
              "both files together, each token once");
}

/* Each number broken in each way, in each family. */
Test(modelfile_hparams, a_broken_number_is_refused_with_its_key)
{
    static const char *const common[] = {
        "hidden_size",         "num_hidden_layers",   "vocab_size",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
        "num_experts_per_tok", "rms_norm_eps",        "rope_theta"};
    static const char *const own[N_MODELS][2] = {{"num_local_experts", "intermediate_size"},
                                                 {"num_experts", "moe_intermediate_size"},
                                                 {"num_experts", "intermediate_size"}};
    static const char *const values[] = {
        "0",  "-1", "1e30", "9223372036854775807", "99999999999999999999", "\"x\"", "true",
        "[]", "{}", "1e999"};
    for (size_t family = 0; family < N_MODELS; family++) {
        for (size_t k = 0; k < 11; k++) {
            const char *key = k < 9 ? common[k] : own[family][k - 9];
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                struct scratch s = scratch_open();
                /* Written as text: some of these values no JSON library will take. */
                char text[256];
                int n = snprintf(text, sizeof text, "{\"-%s\": 0}", key);
                scratch_write_config(&s, models[family], text);
                size_t len;
                unsigned char *rest = read_bytes(scratch_path(&s, "config.json"), &len);
                char *config = malloc(len + 256);
                n = snprintf(config, len + 256, "{\"%s\": %s, %.*s", key, values[v], (int)len - 1,
                             (char *)rest + 1);
                scratch_write(&s, "config.json", config, (size_t)n);
                struct hparams hp;
                struct err why = {0};
                enum err_code rc = hparams_read(s.dir, &hp, &why);
                cr_expect_eq(rc, ERR_CORRUPT, "%s = %s: %s", key, values[v], err_name(rc));
                bool not_json = strstr(why.text, "not valid JSON") != NULL;
                cr_expect(not_json || strstr(why.text, key) != NULL, "%s = %s: %s", key, values[v],
                          why.text);
                free(config);
                free(rest);
                scratch_close(&s);
            }
        }
    }
}

Test(modelfile_hparams, a_missing_key_is_named_or_has_the_official_default)
{
    struct hparams hp;
    struct err why;
    static const struct {
        enum family family;
        const char *changes, *key; /* key NULL: a default */
    } cases[] = {
        {FAMILY_MIXTRAL, "{\"-model_type\":0}", "model_type"},
        {FAMILY_MIXTRAL, "{\"-hidden_size\":0}", "hidden_size"},
        {FAMILY_MIXTRAL, "{\"hidden_size\":null}", "hidden_size"},
        {FAMILY_MIXTRAL, "{\"-num_hidden_layers\":0}", "num_hidden_layers"},
        {FAMILY_MIXTRAL, "{\"-vocab_size\":0}", "vocab_size"},
        {FAMILY_MIXTRAL, "{\"-num_attention_heads\":0}", "num_attention_heads"},
        {FAMILY_MIXTRAL, "{\"-max_position_embeddings\":0}", "max_position_embeddings"},
        {FAMILY_MIXTRAL, "{\"-intermediate_size\":0}", "intermediate_size"},
        {FAMILY_MIXTRAL, "{\"-num_local_experts\":0}", "num_local_experts"},
        {FAMILY_MIXTRAL, "{\"-num_experts_per_tok\":0}", "num_experts_per_tok"},
        {FAMILY_QWEN3_MOE, "{\"-moe_intermediate_size\":0}", "moe_intermediate_size"},
        {FAMILY_QWEN3_MOE, "{\"-num_experts\":0}", "num_experts"},
        {FAMILY_QWEN3_MOE, "{\"-intermediate_size\":0}", NULL},
        {FAMILY_QWEN3_MOE, "{\"-intermediate_size\":0,\"mlp_only_layers\":[0]}",
         "intermediate_size"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum err_code rc = read_changed(cases[i].family, cases[i].changes, &hp, &why);
        if (cases[i].key == NULL)
            cr_expect_eq(rc, ERR_OK, "%s: %s", cases[i].changes, why.text);
        else
            cr_expect(rc == ERR_CORRUPT && strstr(why.text, cases[i].key) &&
                          strstr(why.text, "missing"),
                      "%s: %s", cases[i].changes, why.text);
    }
    cr_assert_eq(read_changed(FAMILY_MIXTRAL,
                              "{\"-rope_theta\":0,\"-rms_norm_eps\":0,\"-num_key_value_heads\":0,"
                              "\"-tie_word_embeddings\":0,\"-hidden_act\":0}",
                              &hp, &why),
                 ERR_OK, "%s", why.text);
    cr_expect(hp.rope.theta >= 1e6 && hp.rope.theta <= 1e6 && hp.norm_eps == 1e-5f &&
              hp.n_kv_heads == 4);
    cr_assert_eq(
        read_changed(
            FAMILY_QWEN3_MOE,
            "{\"-rope_theta\":0,\"-rms_norm_eps\":0,\"-norm_topk_prob\":0,\"-head_dim\":0}", &hp,
            &why),
        ERR_OK, "%s", why.text);
    cr_expect(hp.rope.theta <= 1e4 && hp.norm_eps == 1e-6f && !hp.router.renormalized &&
              hp.head_dim == 16);
}

Test(modelfile_hparams, what_would_change_the_numbers_is_honoured_or_refused)
{
    struct hparams hp;
    struct err why;
    static const struct {
        enum family family;
        const char *changes;
        enum err_code code;
        const char *word;
    } cases[] = {
        {FAMILY_MIXTRAL, "{\"model_type\":\"dbrx\"}", ERR_UNSUPPORTED, "dbrx"},
        {FAMILY_MIXTRAL, "{\"model_type\":\"dbrx\"}", ERR_UNSUPPORTED, "mixtral, qwen3_moe, olmoe"},
        {FAMILY_MIXTRAL, "{\"model_type\":7}", ERR_CORRUPT, "model_type"},
        {FAMILY_MIXTRAL, "{\"architectures\":[\"MixtralForSequenceClassification\"]}",
         ERR_UNSUPPORTED, "Sequence"},
        {FAMILY_MIXTRAL, "{\"hidden_act\":\"gelu\"}", ERR_UNSUPPORTED, "hidden_act"},
        {FAMILY_MIXTRAL, "{\"hidden_size\":66,\"head_dim\":16}", ERR_OK, NULL},
        {FAMILY_MIXTRAL, "{\"hidden_size\":66}", ERR_CORRUPT, "66"},
        {FAMILY_MIXTRAL, "{\"hidden_size\":65,\"head_dim\":16}", ERR_UNSUPPORTED, "odd"},
        {FAMILY_MIXTRAL, "{\"head_dim\":15}", ERR_UNSUPPORTED, "head_dim"},
        {FAMILY_MIXTRAL, "{\"intermediate_size\":33}", ERR_UNSUPPORTED, "intermediate_size"},
        {FAMILY_MIXTRAL, "{\"num_key_value_heads\":3}", ERR_CORRUPT, "num_key_value_heads"},
        {FAMILY_MIXTRAL, "{\"num_experts_per_tok\":7}", ERR_CORRUPT, "num_experts_per_tok"},
        {FAMILY_MIXTRAL, "{\"quantization_config\":{\"quant_method\":\"awq\"}}", ERR_UNSUPPORTED,
         "awq"},
        {FAMILY_MIXTRAL, "{\"quantization_config\":null}", ERR_OK, NULL},
        {FAMILY_MIXTRAL, "{\"partial_rotary_factor\":0.5}", ERR_UNSUPPORTED,
         "partial_rotary_factor"},
        {FAMILY_MIXTRAL, "{\"partial_rotary_factor\":1.0}", ERR_OK, NULL},
        {FAMILY_MIXTRAL, "{\"attention_bias\":true}", ERR_UNSUPPORTED, "attention_bias"},
        {FAMILY_MIXTRAL, "{\"attention_bias\":false}", ERR_OK, NULL},
        {FAMILY_MIXTRAL, "{\"use_qk_norm\":true}", ERR_UNSUPPORTED, "use_qk_norm"},
        {FAMILY_QWEN3_MOE, "{\"use_qk_norm\":false}", ERR_UNSUPPORTED, "use_qk_norm"},
        {FAMILY_MIXTRAL, "{\"clip_qkv\":8}", ERR_UNSUPPORTED, "clip_qkv"},
        {FAMILY_OLMOE, "{\"clip_qkv\":-8}", ERR_CORRUPT, "clip_qkv"},
        {FAMILY_QWEN3_MOE, "{\"shared_expert_intermediate_size\":64}", ERR_UNSUPPORTED,
         "shared_expert"},
        {FAMILY_QWEN3_MOE, "{\"scoring_func\":\"sigmoid\"}", ERR_UNSUPPORTED, "scoring_func"},
        {FAMILY_QWEN3_MOE, "{\"use_sliding_window\":true,\"sliding_window\":8}", ERR_UNSUPPORTED,
         "max_window_layers"},
        {FAMILY_OLMOE, "{\"sliding_window\":8}", ERR_UNSUPPORTED, "sliding_window"},
        {FAMILY_MIXTRAL, "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         ERR_UNSUPPORTED, "layer_types"},
        {FAMILY_MIXTRAL, "{\"tie_word_embeddings\":1}", ERR_CORRUPT, "tie_word_embeddings"},
        {FAMILY_QWEN3_MOE, "{\"norm_topk_prob\":\"yes\"}", ERR_CORRUPT, "norm_topk_prob"},
        {FAMILY_QWEN3_MOE, "{\"mlp_only_layers\":[2]}", ERR_CORRUPT, "mlp_only_layers"},
        {FAMILY_QWEN3_MOE, "{\"mlp_only_layers\":[0.5]}", ERR_CORRUPT, "mlp_only_layers"},
        {FAMILY_QWEN3_MOE, "{\"mlp_only_layers\":0}", ERR_CORRUPT, "mlp_only_layers"},
        {FAMILY_QWEN3_MOE, "{\"mlp_only_layers\":[0,1]}", ERR_UNSUPPORTED, "no layer has experts"},
        {FAMILY_QWEN3_MOE, "{\"decoder_sparse_step\":0}", ERR_CORRUPT, "decoder_sparse_step"},
        {FAMILY_MIXTRAL, "{\"eos_token_id\":320}", ERR_CORRUPT, "eos_token_id"},
        {FAMILY_MIXTRAL, "{\"eos_token_id\":[1,-2]}", ERR_CORRUPT, "eos_token_id"},
        {FAMILY_MIXTRAL, "{\"eos_token_id\":\"2\"}", ERR_CORRUPT, "eos_token_id"},
        {FAMILY_MIXTRAL, "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
         ERR_UNSUPPORTED, "16"},
        {FAMILY_MIXTRAL, "{\"bos_token_id\":320}", ERR_CORRUPT, "bos_token_id"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", ERR_UNSUPPORTED,
         "dynamic"},
        {FAMILY_MIXTRAL,
         "{\"rope_scaling\":{\"rope_type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,1],"
         "\"long_factor\":[2,2,2,2,2,2,2,2]}}",
         ERR_UNSUPPORTED, "longrope"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"rope_type\":\"longrope\"}}", ERR_CORRUPT,
         "short_factor"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"rope_type\":\"linear\"}}", ERR_CORRUPT,
         "'factor' is missing"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", ERR_CORRUPT,
         "factor"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"yarn\"}}",
         ERR_CORRUPT, "yarn"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4,\"mscale\":1}}",
         ERR_UNSUPPORTED, "mscale"},
        {FAMILY_MIXTRAL, "{\"rope_scaling\":[]}", ERR_CORRUPT, "rope_scaling"},
        {FAMILY_MIXTRAL, "{\"rope_parameters\":{\"rope_theta\":10}}", ERR_CORRUPT, "rope_theta"},
        {FAMILY_MIXTRAL,
         "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},\"rope_parameters\":{}}",
         ERR_CORRUPT, "both"},
        {FAMILY_MIXTRAL,
         "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":3,"
         "\"original_max_position_embeddings\":64}}",
         ERR_CORRUPT, "high_freq_factor"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum err_code rc = read_changed(cases[i].family, cases[i].changes, &hp, &why);
        cr_expect_eq(rc, cases[i].code, "%s: %s %s", cases[i].changes, err_name(rc), why.text);
        if (cases[i].word != NULL)
            cr_expect(strstr(why.text, cases[i].word) != NULL, "%s: '%s' not in: %s",
                      cases[i].changes, cases[i].word, why.text);
    }
}

Test(modelfile_hparams, variants_are_read)
{
    struct hparams hp;
    struct err why;
    cr_assert_eq(read_changed(FAMILY_MIXTRAL, "{\"sliding_window\":16}", &hp, &why), ERR_OK, "%s",
                 why.text);
    cr_expect(hp.sliding_window[0] == 16 && hp.sliding_window[1] == 16);
    cr_assert_eq(read_changed(FAMILY_QWEN3_MOE, "{\"sliding_window\":16}", &hp, &why), ERR_OK, "%s",
                 why.text);
    cr_expect_eq(hp.sliding_window[0], 0, "use_sliding_window is false");
    cr_assert_eq(
        read_changed(FAMILY_QWEN3_MOE,
                     "{\"sliding_window\":16,\"use_sliding_window\":true,\"max_window_layers\":0}",
                     &hp, &why),
        ERR_OK, "%s", why.text);
    cr_expect(hp.sliding_window[0] == 16 && hp.sliding_window[1] == 16);
    cr_assert_eq(
        read_changed(FAMILY_OLMOE, "{\"clip_qkv\":8.5,\"attention_bias\":true}", &hp, &why), ERR_OK,
        "%s", why.text);
    cr_expect(hp.clip_qkv == 8.5f && hp.attention_bias && hp.attention_out_bias);
    cr_assert_eq(
        read_changed(FAMILY_QWEN3_MOE,
                     "{\"num_hidden_layers\":6,\"decoder_sparse_step\":2,\"mlp_only_layers\":[3]}",
                     &hp, &why),
        ERR_OK, "%s", why.text);
    cr_expect(!hp.is_moe[0] && hp.is_moe[1] && !hp.is_moe[2] && !hp.is_moe[3] && hp.is_moe[5]);
    cr_expect_eq(hp.dense_width, 96);

    cr_assert_eq(read_changed(FAMILY_QWEN3_MOE,
                              "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
                              "\"original_max_position_embeddings\":2048}}",
                              &hp, &why),
                 ERR_OK, "%s", why.text);
    cr_expect_eq(hp.rope.kind, ROPE_YARN);
    cr_expect(hp.rope.factor >= 4 && hp.rope.original_ctx == 2048 && hp.rope.truncate &&
              hp.rope.beta_fast >= 32 && hp.rope.beta_slow <= 1 && hp.rope.attention_factor <= 0);
    cr_expect_eq(hp.ctx_max, 8192,
                 "stretched: 4 times 2048, not the 4096 that the file still says");

    cr_assert_eq(
        read_changed(
            FAMILY_MIXTRAL,
            "{\"-rope_theta\":0,\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000,"
            "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
            "\"original_max_position_embeddings\":64}}",
            &hp, &why),
        ERR_OK, "%s", why.text);
    cr_expect(hp.rope.kind == ROPE_LLAMA3 && hp.rope.theta >= 5e5 && hp.rope.theta <= 5e5 &&
              hp.ctx_max == 4096);
}

/* Newer versions of the official code save Qwen3-MoE under Mixtral's key. */
Test(modelfile_hparams, the_number_of_experts_has_two_spellings)
{
    static const char *const own[N_MODELS] = {"num_local_experts", "num_experts", "num_experts"};
    static const char *const other[N_MODELS] = {"num_experts", "num_local_experts",
                                                "num_local_experts"};
    struct hparams hp;
    struct err why;
    for (size_t family = 0; family < N_MODELS; family++) {
        char changes[128];
        snprintf(changes, sizeof changes, "{\"-%s\":0,\"%s\":5}", own[family], other[family]);
        cr_expect_eq(read_changed((enum family)family, changes, &hp, &why), ERR_OK, "%s: %s",
                     changes, why.text);
        cr_expect_eq(hp.n_experts, 5u);
        snprintf(changes, sizeof changes, "{\"%s\":6,\"%s\":6}", own[family], other[family]);
        cr_expect_eq(read_changed((enum family)family, changes, &hp, &why), ERR_OK, "%s: %s",
                     changes, why.text);
        static const char *const differ[] = {"7", "\"6\"", "0"};
        for (size_t i = 0; i < sizeof differ / sizeof *differ; i++) {
            snprintf(changes, sizeof changes, "{\"%s\":6,\"%s\":%s}", own[family], other[family],
                     differ[i]);
            cr_expect_eq(read_changed((enum family)family, changes, &hp, &why), ERR_CORRUPT, "%s",
                         changes);
            cr_expect(strstr(why.text, own[family]) && strstr(why.text, other[family]), "%s",
                      why.text);
        }
        snprintf(changes, sizeof changes, "{\"-%s\":0,\"%s\":2,\"num_experts_per_tok\":3}",
                 own[family], other[family]);
        cr_expect_eq(read_changed((enum family)family, changes, &hp, &why), ERR_CORRUPT);
        cr_expect(strstr(why.text, own[family]) != NULL || strstr(why.text, other[family]) != NULL,
                  "%s", why.text);
    }
}

Test(modelfile_hparams, generation_config_is_checked_too)
{
    static const struct {
        const char *text;
        enum err_code code;
        const char *word;
    } cases[] = {
        {"{\"temperature\":-1}", ERR_CORRUPT, "temperature"},
        {"{\"top_p\":1.5}", ERR_CORRUPT, "top_p"},
        {"{\"top_k\":2.5}", ERR_CORRUPT, "top_k"},
        {"{\"do_sample\":1}", ERR_CORRUPT, "do_sample"},
        {"{\"eos_token_id\":999}", ERR_CORRUPT, "999"},
        {"[]", ERR_CORRUPT, "generation_config.json"},
        {"{", ERR_CORRUPT, "generation_config.json"},
        {"{}", ERR_OK, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch s = scratch_open();
        scratch_write_config(&s, models[FAMILY_MIXTRAL], "{}");
        scratch_write(&s, "generation_config.json", cases[i].text, strlen(cases[i].text));
        struct hparams hp;
        struct err why = {0};
        cr_expect_eq(hparams_read(s.dir, &hp, &why), cases[i].code, "%s: %s", cases[i].text,
                     why.text);
        if (cases[i].word)
            cr_expect(strstr(why.text, cases[i].word) != NULL, "%s: %s", cases[i].text, why.text);
        scratch_close(&s);
    }
}

/* The published models, from the keys that their config.json has; parameters as their authors count them. */
Test(modelfile_hparams, published_models_have_their_published_size)
{
    static const struct {
        const char *config;
        uint64_t parameters;
    } cases[] = {
        {"{\"model_type\":\"mixtral\",\"hidden_size\":4096,\"intermediate_size\":14336,\"num_hidden_layers\":32,"
         "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"num_local_experts\":8,\"num_experts_per_tok\":2,"
         "\"vocab_size\":32000,\"max_position_embeddings\":32768,\"tie_word_embeddings\":false}",
         46702792704},
        {"{\"model_type\":\"qwen3_moe\",\"hidden_size\":2048,\"intermediate_size\":6144,"
         "\"moe_intermediate_size\":768,\"num_hidden_layers\":48,\"num_attention_heads\":32,"
         "\"num_key_value_heads\":4,\"head_dim\":128,\"num_experts\":128,\"num_experts_per_tok\":8,"
         "\"vocab_size\":151936,\"max_position_embeddings\":40960}",
         30532122624},
        {"{\"model_type\":\"qwen3_moe\",\"hidden_size\":4096,\"intermediate_size\":12288,"
         "\"moe_intermediate_size\":1536,\"num_hidden_layers\":94,\"num_attention_heads\":64,"
         "\"num_key_value_heads\":4,\"head_dim\":128,\"num_experts\":128,\"num_experts_per_tok\":8,"
         "\"vocab_size\":151936,\"max_position_embeddings\":40960}",
         235093634560},
        {"{\"model_type\":\"olmoe\",\"hidden_size\":2048,\"intermediate_size\":1024,\"num_hidden_layers\":16,"
         "\"num_attention_heads\":16,\"num_key_value_heads\":16,\"num_experts\":64,\"num_experts_per_tok\":8,"
         "\"vocab_size\":50304,\"max_position_embeddings\":4096}",
         6919161856},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch s = scratch_open();
        scratch_write(&s, "config.json", cases[i].config, strlen(cases[i].config));
        struct hparams hp;
        struct err why = {0};
        cr_assert_eq(hparams_read(s.dir, &hp, &why), ERR_OK, "%s", why.text);
        uint64_t sum = 0;
        for (int role = 0; role < W_N_ROLES; role++)
            for (uint32_t l = 0; l < (weight_scope(role) == SCOPE_MODEL ? 1 : hp.n_layers); l++) {
                uint32_t n_dims;
                uint64_t dims[TENSOR_MAX_DIMS];
                if (!weight_shape(&hp, role, l, &n_dims, dims)) continue;
                sum += dims[0] * (n_dims == 2 ? dims[1] : 1) *
                       (weight_scope(role) == SCOPE_EXPERT ? hp.n_experts : 1);
            }
        cr_expect_eq(sum, cases[i].parameters, "%s: %llu", hp.family_name, (unsigned long long)sum);
        scratch_close(&s);
    }
}
