/* Whole models against what the official implementation computes (files: tests/data/models, keys: its README).
 * F32 models: absolute tolerances of expected.json, experts and greedy tokens exactly. BF16 models round the input
 * of every product and the cache, as the official code does when it runs in bf16: the RMS error of our logits may
 * not be larger than that of the official bf16 run (facts.official_bf16_rms). */
// links: model
// threads: yes
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/modelfile/safetensors.h"
#include "coordinator/model/sampler.h"
#include "tests/support/expected.h"
#include "tests/support/one_process.h"

static double number(const json_t *object, const char *group, const char *key)
{
    json_t *v = json_object_get(json_object_get(object, group), key);
    cr_assert(v != NULL, "expected.json: %s.%s is missing", group, key);
    return json_number_value(v);
}

/* What one prompt is compared with, layer by layer. */
struct check {
    const struct expected *x;
    const char *name, *prompt;
    bool exact; /* experts must agree */
    int32_t *rows;
    uint64_t n_rows;
    uint32_t first;               /* position of the pass' first row */
    double hidden, router, gates; /* worst absolute errors so far */
    uint32_t other_experts, choices;
};

static double worst(const float *a, const float *b, size_t n)
{
    double max = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= max)) max = d; /* NaN shows */
    }
    return max;
}

static void compare_hidden(struct check *c, const struct one_process *o, int index)
{
    uint64_t dims[2];
    float *want = expected_get(c->x, c->prompt, "hidden", index, dims);
    cr_assert(want, "%s: no hidden.%d", c->prompt, index);
    for (uint64_t i = 0; i < c->n_rows; i++)
        c->hidden = fmax(c->hidden, worst(model_pass_hidden(o->pass) + (size_t)c->rows[i] * dims[1],
                                          want + i * dims[1], dims[1]));
    mem_free(want);
}

static void see_routed(void *ctx, const struct one_process *o, uint32_t layer)
{
    struct check *c = ctx;
    uint64_t dims[2];
    float *scores = expected_get(c->x, c->prompt, "router_scores", (int)layer, dims);
    cr_assert(scores);
    for (uint64_t i = 0; i < c->n_rows; i++)
        c->router = fmax(c->router, worst(model_pass_router(o->pass) + (size_t)c->rows[i] * dims[1],
                                          scores + i * dims[1], dims[1]));
    mem_free(scores);
    int32_t *ids = expected_get(c->x, c->prompt, "experts", (int)layer, dims);
    float *gates = expected_get(c->x, c->prompt, "gates", (int)layer, dims);
    cr_assert(ids && gates);
    for (uint64_t i = 0; i < dims[0]; i++) {
        bool same = true;
        for (uint64_t k = 0; k < dims[1]; k++)
            same &= model_pass_experts(o->pass)[i * dims[1] + k] == ids[i * dims[1] + k];
        c->other_experts += !same;
        c->choices++;
        if (same)
            c->gates = fmax(c->gates, worst(model_pass_gates(o->pass) + i * dims[1],
                                            gates + i * dims[1], dims[1]));
    }
    mem_free(ids);
    mem_free(gates);
}

static void see_layer(void *ctx, const struct one_process *o, uint32_t layer)
{
    compare_hidden(ctx, o, (int)layer + 1);
}

/* The input of layer 0: a pass begun, none of its layers run. */
static void compare_embedding(struct check *c, struct one_process *o, const int32_t *ids,
                              uint32_t n)
{
    struct model_row rows[128];
    cr_assert_leq(n, 128u);
    uint32_t block = 0;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct model_row){.token = ids[i], .position = i, .blocks = &block};
    model_begin(o->pass, rows, n);
    compare_hidden(c, o, 0);
    cr_expect_eq(c->hidden, 0, "the embedding look-up is exact");
}

struct rms {
    double sum;
    size_t n;
};

static void check_folder(const char *dir, const char *name, bool f32)
{
    struct expected x;
    struct one_process o;
    expected_open(&x, dir);
    one_open(&o, &(struct one_cfg){.path = dir, .threads = 2, .max_rows = 128, .n_blocks = 16});
    const uint32_t vocab = model_hparams(o.model)->vocab;
    struct rms rms = {0};
    struct check all = {0};
    double logits_error = 0;
    for (int p = 0; p < 3; p++) {
        char prompt[8];
        uint64_t dims[2] = {0}, n, n_greedy;
        snprintf(prompt, sizeof prompt, "p%d", p);
        int32_t *ids = expected_get(&x, prompt, "ids", -1, dims);
        n = dims[0];
        struct check c = {.x = &x, .name = name, .prompt = prompt};
        c.rows = expected_get(&x, prompt, "rows", -1, dims);
        c.n_rows = dims[0];
        float *logits = expected_get(&x, prompt, "logits", -1, dims);
        int32_t *greedy = expected_get(&x, prompt, "greedy", -1, dims);
        n_greedy = dims[0];
        cr_assert(ids && c.rows && logits && greedy);

        compare_embedding(&c, &o, ids, (uint32_t)n);
        struct one_sequence s = one_sequence(&o, (uint32_t)(n + n_greedy));
        one_feed(&o, &s, ids, (uint32_t)n, true, &(struct one_observer){see_routed, see_layer, &c});
        for (uint64_t i = 0; i < c.n_rows; i++) {
            const float *got = model_pass_logits(o.pass, (uint32_t)c.rows[i]);
            logits_error = fmax(logits_error, worst(got, logits + i * vocab, vocab));
            for (uint32_t v = 0; v < vocab; v++)
                rms.sum += pow((double)got[v] - (double)logits[i * vocab + v], 2);
            rms.n += vocab;
        }
        int32_t decoded[64];
        one_greedy(&o, &s, (uint32_t)n - 1, decoded, (uint32_t)n_greedy);
        if (f32)
            cr_expect_arr_eq(decoded, greedy, n_greedy * sizeof *greedy,
                             "%s %s: greedy tokens differ", name, prompt);
        all.hidden = fmax(all.hidden, c.hidden);
        all.router = fmax(all.router, c.router);
        all.gates = fmax(all.gates, c.gates);
        all.other_experts += c.other_experts;
        all.choices += c.choices;
        mem_free(ids);
        mem_free(c.rows);
        mem_free(logits);
        mem_free(greedy);
    }
    double error = sqrt(rms.sum / (double)rms.n);
    printf(
        "golden %s: worst |error| logits %.2g hidden %.2g router %.2g gates %.2g; logits RMS %.3g; "
        "%u of %u rows chose other experts\n",
        name, logits_error, all.hidden, all.router, all.gates, error, all.other_experts,
        all.choices);
    cr_expect(all.choices > 0 || hparams_n_moe_layers(model_hparams(o.model)) == 0);
    if (f32) {
        cr_expect_leq(logits_error, number(x.json, "tolerance", "logits"));
        cr_expect_leq(all.hidden, number(x.json, "tolerance", "hidden"));
        cr_expect_leq(all.router, number(x.json, "tolerance", "router_scores"));
        cr_expect_leq(all.gates, number(x.json, "tolerance", "gates"));
        cr_expect_eq(all.other_experts, 0u);
    } else {
        /* The official run's own error in bf16, or 2 % of the logits' spread where it is not known. */
        bool known = json_object_get(json_object_get(x.json, "facts"), "official_bf16_rms") != NULL;
        double most = known ? number(x.json, "facts", "official_bf16_rms")
                            : 0.02 * number(x.json, "facts", "logits_std");
        printf("golden %s: may be %.3g (%s)\n", name, most,
               known ? "official bf16 RMS" : "2 % of the spread");
        cr_expect_leq(error, most);
    }
    one_close(&o);
    expected_close(&x);
}

static void check_tiny(const char *name, bool f32)
{
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/models/%s", TEST_DATA, name);
    check_folder(dir, name, f32);
}

/* By hand: MOESAIC_GOLDEN names a folder of tiny models with expected values (the encoder-decoder one is left out). */
Test(golden, models_of_a_folder)
{
    const char *root = getenv("MOESAIC_GOLDEN");
    if (root == NULL) cr_skip_test("MOESAIC_GOLDEN is not set");
    DIR *d = opendir(root);
    cr_assert(d, "%s", root);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.' || strstr(e->d_name, "switch") != NULL) continue;
        char dir[1024];
        struct expected x;
        snprintf(dir, sizeof dir, "%s/%s", root, e->d_name);
        expected_open(&x, dir);
        const char *storage =
            json_string_value(json_object_get(json_object_get(x.json, "facts"), "storage"));
        bool f32 = storage != NULL && strcmp(storage, "f32") == 0;
        expected_close(&x);
        check_folder(dir, e->d_name, f32);
    }
    closedir(d);
}

Test(golden, tiny_mixtral_is_the_official_model)
{
    check_tiny("tiny-mixtral", true);
}

Test(golden, tiny_qwen3_moe_is_the_official_model)
{
    check_tiny("tiny-qwen3_moe", true);
}

Test(golden, tiny_olmoe_is_the_official_model)
{
    check_tiny("tiny-olmoe", true);
}

Test(golden, tiny_qwen2_moe_is_the_official_model)
{
    check_tiny("tiny-qwen2_moe", true);
}

Test(golden, tiny_deepseek_is_the_official_model)
{
    check_tiny("tiny-deepseek", true);
}

Test(golden, tiny_deepseek_v2_lite_is_the_official_model)
{
    check_tiny("tiny-deepseek_v2-lite", true);
}

Test(golden, tiny_deepseek_v2_is_the_official_model)
{
    check_tiny("tiny-deepseek_v2", true);
}

Test(golden, tiny_deepseek_v3_is_the_official_model)
{
    check_tiny("tiny-deepseek_v3", true);
}

Test(golden, tiny_granitemoe_is_the_official_model)
{
    check_tiny("tiny-granitemoe", true);
}

Test(golden, tiny_phimoe_is_the_official_model)
{
    check_tiny("tiny-phimoe", true);
}

Test(golden, tiny_glm4_moe_is_the_official_model)
{
    check_tiny("tiny-glm4_moe", true);
}

Test(golden, tiny_grok_1_is_the_official_model)
{
    check_tiny("tiny-grok-1", true);
}

Test(golden, tiny_llama4_is_the_official_model)
{
    check_tiny("tiny-llama4", true);
}

Test(golden, tiny_llama_is_the_official_model)
{
    check_tiny("tiny-llama", true);
}

Test(golden, tiny_qwen3_is_the_official_model)
{
    check_tiny("tiny-qwen3", true);
}

Test(golden, tiny_mixtral_in_bf16_is_no_worse_than_the_official_bf16_run)
{
    check_tiny("tiny-mixtral-bf16", false);
}

Test(golden, tiny_qwen3_moe_in_bf16_is_no_worse_than_the_official_bf16_run)
{
    check_tiny("tiny-qwen3_moe-bf16", false);
}

Test(golden, tiny_gpt_oss_in_mxfp4_is_no_worse_than_the_official_bf16_run)
{
    check_tiny("tiny-gpt_oss", false);
}

Test(golden, tiny_deepseek_v3_in_fp8_is_off_by_at_most_2_percent)
{
    check_tiny("tiny-deepseek_v3-fp8", false);
}

/* ---- the demonstration model: trained, so its logits have the spread of a real one ---------------- */

/* Log-probabilities of the tokens of a passage, each given those before it. */
static void check_passage(struct one_process *o, const json_t *passage, double *sum_sq,
                          double *drift, size_t *count)
{
    const json_t *ids = json_object_get(passage, "ids"),
                 *want = json_object_get(passage, "logprobs");
    const uint32_t n = (uint32_t)json_array_size(ids), vocab = model_hparams(o->model)->vocab;
    cr_assert(n >= 2 && json_array_size(want) == n - 1);
    int32_t *tokens = mem_zalloc_array(n, sizeof *tokens);
    float *logits = mem_zalloc_array((size_t)n * vocab, sizeof *logits);
    cr_assert(tokens && logits);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    struct one_sequence s = one_sequence(o, n);
    one_prompt(o, &s, tokens, n, 48, logits);
    for (uint32_t i = 0; i + 1 < n; i++) {
        float got = sampler_logprob(o->kernels, logits + (size_t)i * vocab, vocab, tokens[i + 1]);
        double d = (double)got - json_number_value(json_array_get(want, i));
        *sum_sq += d * d;
        *drift += d;
        ++*count;
    }
    mem_free(tokens);
    mem_free(logits);
}

/* What quantizing may add: the error of 8-bit weights and inputs, measured at 2.5 times that of bf16 rounding. */
static void check_demo(const char *quantize, double allowed)
{
    const char *dir = PROJECT_ROOT "/deploy/demo";
    struct expected x;
    struct one_process o;
    expected_open(&x, dir);
    one_open(&o,
             &(struct one_cfg){
                 .path = dir, .quantize = quantize, .threads = 2, .max_rows = 64, .n_blocks = 64});
    const uint32_t vocab = model_hparams(o.model)->vocab;
    struct rms rms = {0};
    uint32_t agreed = 0, decoded_all = 0;
    for (int p = 0; p < 3; p++) {
        char prompt[8];
        uint64_t dims[2] = {0}, n, n_rows, n_greedy;
        snprintf(prompt, sizeof prompt, "p%d", p);
        int32_t *ids = expected_get(&x, prompt, "ids", -1, dims);
        n = dims[0];
        int32_t *rows = expected_get(&x, prompt, "rows", -1, dims);
        n_rows = dims[0];
        float *logits = expected_get(&x, prompt, "logits", -1, dims);
        int32_t *greedy = expected_get(&x, prompt, "greedy", -1, dims);
        n_greedy = dims[0];
        cr_assert(ids && rows && logits && greedy);
        struct one_sequence s = one_sequence(&o, (uint32_t)(n + n_greedy));
        one_feed(&o, &s, ids, (uint32_t)n, true, NULL);
        for (uint64_t i = 0; i < n_rows; i++) {
            const float *got = model_pass_logits(o.pass, (uint32_t)rows[i]);
            for (uint32_t v = 0; v < vocab; v++)
                rms.sum += pow((double)got[v] - (double)logits[i * vocab + v], 2);
            rms.n += vocab;
        }
        int32_t decoded[64];
        one_greedy(&o, &s, (uint32_t)n - 1, decoded, (uint32_t)n_greedy);
        uint32_t same = 0;
        while (same < n_greedy && decoded[same] == greedy[same])
            same++;
        agreed += same;
        decoded_all += (uint32_t)n_greedy;
        mem_free(ids);
        mem_free(rows);
        mem_free(logits);
        mem_free(greedy);
    }
    double error = sqrt(rms.sum / (double)rms.n), sum_sq = 0, drift = 0;
    size_t count = 0, i;
    json_t *passage;
    json_array_foreach(json_object_get(x.json, "passages"), i, passage)
        check_passage(&o, passage, &sum_sq, &drift, &count);
    cr_assert_gt(count, 0u);
    double official = number(x.json, "facts", "official_bf16_rms"),
           passages = sqrt(sum_sq / (double)count);
    printf(
        "golden demo %s: logits RMS %.3g (official bf16 %.3g); logprobs of %zu tokens: RMS %.3g, mean %+.2g; "
        "greedy agrees for %u of %u tokens\n",
        quantize, error, official, count, passages, drift / (double)count, agreed, decoded_all);
    cr_expect_leq(error, allowed * official);
    cr_expect_leq(passages, allowed * official);
    cr_expect_leq(fabs(drift / (double)count), 0.1 * allowed * official,
                  "errors must not lean to one side");
    one_close(&o);
    expected_close(&x);
}

Test(golden, the_demonstration_model_is_no_worse_than_the_official_bf16_run)
{
    check_demo("none", 1);
}

Test(golden, the_demonstration_model_in_q8_0)
{
    check_demo("q8_0", 2.5);
}

/* ---- a model with a dense layer; values of an independent program (see the folder's make.py) ------- */

Test(golden, a_dense_layer_between_two_moe_layers)
{
    static const int32_t ids[] = {1, 17, 42, 99, 5, 200, 7, 64, 128, 3};
    static const int32_t greedy[] = {58, 266, 193, 75, 40, 97, 99, 99, 99, 99, 99, 99};
    static const struct {
        uint32_t position;
        double logits[6];
    } want[] = {
        {0, {2.339809, -1.915886, 1.214212, 2.825328, -0.145660, -0.981320}},
        {1, {1.447950, -3.331921, -0.347256, 0.826413, 1.742068, -2.108091}},
        {9, {1.760868, 1.570196, 0.617378, 0.828440, 2.204919, 0.893497}},
    };
    struct one_process o;
    one_open(&o, &(struct one_cfg){.path = TEST_DATA "/models/dense-layer-qwen3_moe",
                                   .threads = 2,
                                   .max_rows = 16,
                                   .n_blocks = 2});
    cr_assert(!model_hparams(o.model)->is_moe[1]);
    struct one_sequence s = one_sequence(&o, 40);
    one_feed(&o, &s, ids, 10, true, NULL);
    for (size_t i = 0; i < 3; i++)
        for (int v = 0; v < 6; v++)
            cr_expect_float_eq(model_pass_logits(o.pass, want[i].position)[v], want[i].logits[v],
                               1e-5);
    int32_t decoded[12];
    one_greedy(&o, &s, 9, decoded, 12);
    cr_expect_arr_eq(decoded, greedy, sizeof greedy);
    one_close(&o);
}

/* ---- long rope: the other factors once a sequence is longer than the original length; values of an independent program
 * (the reference implementation beside the tiny models, which takes the factors by the sequence's length) ---------- */

Test(golden, long_rope_changes_its_factors_with_the_length)
{
    static const struct {
        uint32_t n;
        int32_t best;
        double logits[6];
    } want[] = {
        {128, 202, {-1.762570, -0.284665, -1.287746, -2.250419, -0.382442, 2.337308}},
        {129, 162, {3.209157, 0.057306, 0.361126, -0.179762, -1.583495, -4.259413}},
        {200, 101, {-0.503792, 2.105273, -2.159943, 1.239195, -1.895540, 0.355276}},
    };
    struct one_process o;
    one_open(&o, &(struct one_cfg){.path = TEST_DATA "/models/tiny-phimoe",
                                   .threads = 2,
                                   .max_rows = 200,
                                   .n_blocks = 4});
    const struct hparams *hp = model_hparams(o.model);
    cr_assert_eq(hp->rope.original_ctx, 128u);
    for (size_t c = 0; c < sizeof want / sizeof *want; c++) {
        struct model_row rows[200];
        o.used_blocks = 0;
        struct one_sequence s = one_sequence(&o, 200);
        uint32_t x = 3u * 2654435761u + 1;
        for (uint32_t i = 0; i < want[c].n; i++) {
            x = x * 1664525u + 1013904223u;
            rows[i] = (struct model_row){.token = (int32_t)((x >> 8) % hp->vocab),
                                         .position = i,
                                         .blocks = s.blocks,
                                         .wants_logits = i + 1 == want[c].n,
                                         .beyond = want[c].n > hp->rope.original_ctx};
        }
        one_pass(&o, rows, want[c].n, NULL);
        const float *got = model_pass_logits(o.pass, 0);
        cr_expect_eq(one_best(got, hp->vocab), want[c].best);
        for (int v = 0; v < 6; v++)
            cr_expect_float_eq(got[v], want[c].logits[v], 1e-4,
                               "%u tokens: logit %d is %.6f, not %.6f", want[c].n, v,
                               (double)got[v], want[c].logits[v]);
    }
    one_close(&o);
}
