/* Models in GGUF files, as the reference converter and quantizer wrote them, against what the official implementation
 * computes from their dequantized weights (the README beside them). F32 files: absolute tolerances, experts and greedy
 * tokens exactly. 16-bit files: rounding what experts take and give, and the cache, may cost 2 % of the logits' spread. The files are not
 * in this repository: $MOESAIC_SHARED/models/gguf. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "common/modelfile/plan.h"
#include "tests/support/expected.h"
#include "tests/support/one_process.h"
#include "tests/support/shared.h"

/* What one file is allowed. */
struct allowed {
    double rms_per_std; /* of the logits of all prompts */
    bool exact;         /* experts and greedy tokens */
};

struct sums {
    double error, sum, square, n;
};

struct seen {
    const struct expected *x;
    const char *prompt;
    uint32_t others, choices;
};

static void see_routed(void *ctx, const struct one_process *o, uint32_t layer)
{
    struct seen *s = ctx;
    uint64_t dims[2];
    int32_t *ids = expected_get(s->x, s->prompt, "experts", (int)layer, dims);
    cr_assert(ids, "%s: no experts.%u", s->prompt, layer);
    for (uint64_t i = 0; i < dims[0]; i++) {
        bool same = true;
        for (uint64_t k = 0; k < dims[1]; k++)
            same &= model_pass_experts(o->pass)[i * dims[1] + k] == ids[i * dims[1] + k];
        s->others += !same;
        s->choices++;
    }
    mem_free(ids);
}

static double rms_per_std(const struct sums *s)
{
    double mean = s->sum / s->n;
    return sqrt(s->error / s->n) / sqrt(s->square / s->n - mean * mean);
}

static void check_prompt(struct one_process *o, const struct expected *x, const char *file,
                         const char *prompt, const struct allowed *a, struct sums *all)
{
    const uint32_t vocab = model_hparams(o->model)->vocab;
    uint64_t dims[2], n, n_rows, n_greedy;
    int32_t *ids = expected_get(x, prompt, "ids", -1, dims);
    if (ids == NULL) return; /* not every file has every prompt */
    n = dims[0];
    int32_t *rows = expected_get(x, prompt, "rows", -1, dims);
    n_rows = dims[0];
    float *logits = expected_get(x, prompt, "logits", -1, dims);
    int32_t *greedy = expected_get(x, prompt, "greedy", -1, dims);
    n_greedy = dims[0];
    cr_assert(rows && logits && greedy);
    struct seen seen = {.x = x, .prompt = prompt};
    o->used_blocks = 0;
    struct one_sequence s = one_sequence(o, (uint32_t)(n + n_greedy));
    one_feed(o, &s, ids, (uint32_t)n, true, &(struct one_observer){see_routed, NULL, &seen});
    struct sums own = {.n = (double)(n_rows * vocab)};
    for (uint64_t i = 0; i < n_rows; i++)
        for (uint32_t v = 0; v < vocab; v++) {
            double want = (double)logits[i * vocab + v];
            double d = (double)model_pass_logits(o->pass, (uint32_t)rows[i])[v] - want;
            own.error += d * d;
            own.sum += want;
            own.square += want * want;
        }
    all->error += own.error, all->sum += own.sum, all->square += own.square, all->n += own.n;
    double ratio = rms_per_std(&own);
    int32_t decoded[64];
    one_greedy(o, &s, (uint32_t)n - 1, decoded, (uint32_t)n_greedy);
    uint32_t same = 0;
    while (same < n_greedy && decoded[same] == greedy[same])
        same++;
    printf("gguf %-34s %s: logits RMS / std %.2e, %u of %u rows chose other experts, greedy agrees "
           "for %u of %u\n",
           file, prompt, ratio, seen.others, seen.choices, same, (uint32_t)n_greedy);
    if (a->exact) {
        cr_expect_eq(seen.others, 0u, "%s %s", file, prompt);
        cr_expect_eq(same, n_greedy, "%s %s: greedy tokens differ", file, prompt);
    }
    mem_free(ids);
    mem_free(rows);
    mem_free(logits);
    mem_free(greedy);
}

static void check(const char *name, const char *file, const struct allowed *a)
{
    char path[1024], expected[1200];
    if (!shared_path("models/gguf", path, sizeof path)) return;
    snprintf(expected, sizeof expected, "%s/%s.expected.safetensors", path, name);
    snprintf(path + strlen(path), sizeof path - strlen(path), "/%s", file);
    struct expected x;
    struct one_process o;
    expected_open_file(&x, expected);
    one_open(&o, &(struct one_cfg){.path = path, .threads = 2, .max_rows = 96, .n_blocks = 8});
    const char *const prompts[] = {"p0", "p1", "p2", "d0"};
    struct sums all = {0};
    for (size_t i = 0; i < 4; i++)
        check_prompt(&o, &x, name, prompts[i], a, &all);
    cr_expect_leq(rms_per_std(&all), a->rms_per_std, "%s: %g of the logits' spread", name,
                  rms_per_std(&all));
    one_close(&o);
    expected_close(&x);
}

/* Rounding moves Phi-3.5-MoE over an edge of sparsemixer now and then: the official implementation, run in bf16 on the
 * same weights, is off by 0.43 of logits that spread by 2.08 (tools/add_bf16_error.py beside the tiny models). */
#define PHIMOE_BF16 (0.4315 / 2.085)

static void check_float(const char *name, bool f32)
{
    double most = f32 ? 2e-5 : strstr(name, "phimoe") != NULL ? PHIMOE_BF16 : 0.02;
    char file[128];
    snprintf(file, sizeof file, "%s.gguf", name);
    check(name, file, &(struct allowed){.rms_per_std = most, .exact = f32});
}

Test(gguf_models, in_f32_they_are_the_official_models)
{
    static const char *const names[] = {"tiny-mixtral-f32", "tiny-qwen3_moe-f32",
                                        "tiny-deepseek_v2-f32", "tiny-deepseek_v2-f32-old-kv-b",
                                        "tiny-deepseek_v3-f32"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_float(names[i], true);
}

Test(gguf_models, in_16_bits_they_are_as_near_as_16_bits_allow)
{
    static const char *const names[] = {"tiny-deepseek-f16",   "tiny-deepseek_v2-lite-f16",
                                        "tiny-glm4_moe-f16",   "tiny-granitemoe-f16",
                                        "tiny-llama-f16",      "tiny-mixtral-f16-experts-apart",
                                        "tiny-mixtral-f16-v2", "tiny-olmoe-f16",
                                        "tiny-phimoe-f16",     "tiny-qwen2_moe-f16",
                                        "tiny-qwen3-f16",      "tiny-qwen3_moe-bf16"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_float(names[i], false);
}

/* Inputs are rounded to 8 bits per 32 numbers too; prompt d0 has no routing near a decision. */
Test(gguf_models, in_blocks_they_are_as_near_as_blocks_allow)
{
    static const char *const names[] = {"tiny-mixtral-q8_0",       "tiny-mixtral-q4_0",
                                        "tiny-qwen3_moe-q8_0",     "tiny-qwen3_moe-q4_0",
                                        "tiny-deepseek_v2-q8_0",   "tiny-deepseek_v2-q4_0",
                                        "tiny-gpt_oss-f32",        "tiny-qwen3_moe-k-q3_k_m",
                                        "tiny-qwen3_moe-k-q4_k_m", "tiny-qwen3_moe-k-q6_k"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char file[128];
        snprintf(file, sizeof file, "%s.gguf", names[i]);
        check(names[i], file, &(struct allowed){.rms_per_std = 0.05});
    }
}

Test(gguf_models, a_split_file_is_opened_by_any_of_its_parts)
{
    const struct allowed a = {.rms_per_std = 0.02};
    check("tiny-mixtral-f16-split", "tiny-mixtral-f16-split-00001-of-00002.gguf", &a);
    check("tiny-mixtral-f16-split", "tiny-mixtral-f16-split-00002-of-00002.gguf", &a);
}
