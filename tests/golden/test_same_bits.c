/* Promise 3, the part that one process can show: the bits of the logits do not depend on how a prompt is cut, on
 * what else is in the pass, on the number of threads or on the instruction set. */
// links: model
// threads: yes
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/support/one_process.h"

#define TOKENS 150u /* more than two blocks of keys */
#define OTHERS 7u

static const struct {
    const char *name, *quantize;
} models[] = {
    {"tiny-mixtral", NULL},
    {"tiny-qwen3_moe", NULL},
    {"tiny-olmoe", NULL},
    {"tiny-mixtral-bf16", NULL},
    {"tiny-qwen3_moe-bf16", NULL},
    {"tiny-mixtral", "q8_0"},
    {"tiny-qwen3_moe-bf16", "q8_0"},
    {"tiny-olmoe", "q8_0"},
    {"tiny-qwen2_moe", NULL},
    {"tiny-deepseek", NULL},
    {"tiny-deepseek_v2-lite", NULL},
    {"tiny-deepseek_v2", NULL},
    {"tiny-deepseek_v3", NULL},
    {"tiny-granitemoe", NULL},
    {"tiny-phimoe", NULL},
    {"tiny-glm4_moe", NULL},
    {"tiny-grok-1", NULL},
    {"tiny-llama4", NULL},
    {"tiny-llama", NULL},
    {"tiny-qwen3", NULL},
    {"tiny-deepseek_v3", "q8_0"},
    {"tiny-llama4", "q8_0"},
    {"tiny-deepseek_v3-fp8", NULL},
    {"tiny-gpt_oss", NULL},
    {"tiny-mixtral", "q4_0"},
    {"tiny-deepseek_v2", "mxfp4"},
    {"dense-layer-qwen3_moe", NULL},
    {"dense-layer-qwen3_moe", "q8_0"},
    /* Others' files: left out where they are not there. */
    {"tiny-mixtral-q4_0.gguf", NULL},
    {"tiny-llama-f16.gguf", NULL},
    {"tiny-deepseek_v2-q8_0.gguf", NULL},
    {"tiny-qwen3_moe-k-q4_k_m.gguf", NULL}, /* Q4_K, Q6_K */
    {"tiny-qwen3_moe-k-q3_k_m.gguf", NULL}, /* Q3_K as Q6_K, Q4_K, Q5_K */
};

static void prompt(uint32_t seed, uint32_t vocab, int32_t ids[TOKENS])
{
    uint32_t x = seed * 2654435761u + 1;
    for (uint32_t i = 0; i < TOKENS; i++) {
        x = x * 1664525u + 1013904223u;
        ids[i] = (int32_t)((x >> 8) % vocab);
    }
}

/* Of others' files only when they are there: MOESAIC_REQUIRE_SHARED=1 makes their absence a failure. */
static bool model_path(size_t model, char *out, size_t cap)
{
    if (strstr(models[model].name, ".gguf") == NULL) {
        snprintf(out, cap, "%s/models/%s", TEST_DATA, models[model].name);
        return true;
    }
    const char *root = getenv("MOESAIC_SHARED"), *required = getenv("MOESAIC_REQUIRE_SHARED");
    snprintf(out, cap, "%s/models/gguf/%s", root ? root : PROJECT_ROOT "/../shared",
             models[model].name);
    bool there = access(out, R_OK) == 0;
    cr_assert(there || required == NULL || strcmp(required, "1") != 0, "%s is missing", out);
    return there;
}

static uint32_t count_models(void)
{
    char path[1024];
    uint32_t n = sizeof models / sizeof models[0];
    while (!model_path(n - 1, path, sizeof path))
        n--;
    return n;
}

static void open_model(struct one_process *o, size_t model, const char *kernels, unsigned threads)
{
    char dir[1024];
    cr_assert(model_path(model, dir, sizeof dir));
    one_open(o, &(struct one_cfg){.path = dir,
                                  .quantize = models[model].quantize,
                                  .kernels = kernels,
                                  .threads = threads,
                                  .max_rows = TOKENS + OTHERS,
                                  .n_blocks = 64});
}

/* The logits of a fresh process that takes the prompt in chunks. */
static float *run(size_t model, const char *kernels, unsigned threads, uint32_t chunk, size_t *n)
{
    struct one_process o;
    open_model(&o, model, kernels, threads);
    const uint32_t vocab = model_hparams(o.model)->vocab;
    int32_t ids[TOKENS];
    prompt(1, vocab, ids);
    *n = (size_t)TOKENS * vocab;
    float *logits = mem_zalloc_array(*n, sizeof *logits);
    cr_assert(logits);
    struct one_sequence s = one_sequence(&o, TOKENS);
    one_prompt(&o, &s, ids, TOKENS, chunk, logits);
    one_close(&o);
    return logits;
}

static void expect_same(size_t model, const float *want, size_t n, const char *kernels,
                        unsigned threads, uint32_t chunk)
{
    size_t m;
    float *got = run(model, kernels, threads, chunk, &m);
    cr_expect(m == n && memcmp(got, want, n * sizeof *got) == 0,
              "%s %s: %s, %u threads, chunk %u: other bits", models[model].name,
              models[model].quantize ? models[model].quantize : "", kernels ? kernels : "best",
              threads, chunk);
    mem_free(got);
}

Test(same_bits, however_a_prompt_is_cut)
{
    for (size_t m = 0; m < count_models(); m++) {
        size_t n;
        float *want = run(m, NULL, 1, TOKENS, &n);
        expect_same(m, want, n, NULL, 1, 1);
        expect_same(m, want, n, NULL, 1, 7);
        expect_same(m, want, n, NULL, 1, 64);
        mem_free(want);
    }
}

Test(same_bits, on_one_thread_or_two)
{
    for (size_t m = 0; m < count_models(); m++) {
        size_t n;
        float *want = run(m, NULL, 1, TOKENS, &n);
        expect_same(m, want, n, NULL, 2, TOKENS);
        expect_same(m, want, n, NULL, 2, 7);
        mem_free(want);
    }
}

Test(same_bits, on_every_instruction_set)
{
    for (size_t m = 0; m < count_models(); m++) {
        size_t n;
        float *want = run(m, "ref", 2, 64, &n);
        for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
            const struct kernels *k;
            struct err why;
            if (kernels_pick(kernels_variant(i)->name, &k, &why) == ERR_OK) {
                expect_same(m, want, n, k->name, 2, TOKENS);
                if (i > 0) expect_same(m, want, n, k->name, 1, 7);
            } else {
                cr_log_info("not run: %s", why.text);
            }
        }
        mem_free(want);
    }
}

/* Row 0 is the sequence looked at, each of the others is at a position of its own. */
static void run_among_others(struct one_process *o, const int32_t *ids, float *logits)
{
    const uint32_t vocab = model_hparams(o->model)->vocab;
    struct one_sequence s = one_sequence(o, TOKENS), others[OTHERS];
    int32_t other_ids[OTHERS][TOKENS];
    struct model_row rows[TOKENS + OTHERS];
    for (uint32_t k = 0; k < OTHERS; k++) {
        others[k] = one_sequence(o, TOKENS);
        prompt(100 + k, vocab, other_ids[k]);
        one_feed(o, &others[k], other_ids[k], 1 + 9 * k, false, NULL);
    }
    /* Now 20 rows of the prompt beside one row of each other, then one row each: prefill and decode shapes. */
    for (uint32_t at = 0; at < TOKENS;) {
        uint32_t m = at < 100 ? 20 : 1, n = 0;
        for (uint32_t k = 0; k < OTHERS; k++) {
            struct model_row other = {.token = other_ids[k][others[k].position],
                                      .position = others[k].position,
                                      .blocks = others[k].blocks};
            others[k].position++;
            if (k < 3) rows[n++] = other;
        }
        uint32_t first = n;
        for (uint32_t i = 0; i < m; i++)
            rows[n++] = (struct model_row){
                .token = ids[at + i], .position = at + i, .blocks = s.blocks, .wants_logits = true};
        for (uint32_t k = 3; k < OTHERS; k++)
            rows[n++] = (struct model_row){.token = other_ids[k][others[k].position - 1],
                                           .position = others[k].position - 1,
                                           .blocks = others[k].blocks};
        cr_assert_eq(first, 3u);
        one_pass(o, rows, n, NULL);
        for (uint32_t i = 0; i < m; i++)
            memcpy(logits + (size_t)(at + i) * vocab, model_pass_logits(o->pass, i),
                   vocab * sizeof *logits);
        at += m;
    }
}

Test(same_bits, alone_or_among_seven_others)
{
    for (size_t m = 0; m < count_models(); m++) {
        size_t n;
        float *want = run(m, NULL, 1, TOKENS, &n);
        float *got = mem_zalloc_array(n, sizeof *got);
        cr_assert(got);
        struct one_process o;
        open_model(&o, m, NULL, 2);
        int32_t ids[TOKENS];
        prompt(1, model_hparams(o.model)->vocab, ids);
        run_among_others(&o, ids, got);
        cr_expect(memcmp(got, want, n * sizeof *got) == 0, "%s: other bits among other sequences",
                  models[m].name);
        one_close(&o);
        mem_free(got);
        mem_free(want);
    }
}

/* A row that is not finite is marked with its layer and disturbs nobody: the others keep their bits. */
Test(same_bits, beside_a_row_that_is_not_finite)
{
    for (size_t m = 0; m < count_models(); m++) {
        struct one_process o;
        open_model(&o, m, NULL, 2);
        const struct hparams *hp = model_hparams(o.model);
        float *want = mem_zalloc_array(2 * (size_t)hp->vocab, sizeof *want);
        cr_assert(want);
        for (int broken = 0; broken < 3; broken++) {
            struct one_sequence s[3] = {one_sequence(&o, 4), one_sequence(&o, 4),
                                        one_sequence(&o, 4)};
            struct model_row rows[3];
            for (int i = 0; i < 3; i++)
                rows[i] = (struct model_row){
                    .token = 5 + i, .position = 0, .blocks = s[i].blocks, .wants_logits = true};
            model_begin(o.pass, rows, 3);
            float *hidden = (float *)(uintptr_t)model_pass_hidden(o.pass);
            if (broken == 1) hidden[hp->hidden + 3] = (float)NAN;
            if (broken == 2)
                hidden[hp->hidden + 3] = 3e38f; /* its square overflows: the norm row becomes 0 */
            for (uint32_t l = 0; l < hp->n_layers; l++) {
                if (broken == 2 && l == 1) hidden[hp->hidden] = -(float)INFINITY;
                model_attention(o.pass, o.kv, l, o.workers);
                if (!hp->is_moe[l]) continue;
                one_run_experts(&o, l, 3);
                model_combine(o.pass, l, o.workers);
            }
            model_head(o.pass, o.workers);
            for (uint32_t i = 0; i < 2; i++) {
                float *row = want + i * hp->vocab;
                if (broken == 0)
                    memcpy(row, model_pass_logits(o.pass, 2 * i), hp->vocab * sizeof *row);
                cr_expect_eq(memcmp(row, model_pass_logits(o.pass, 2 * i), hp->vocab * sizeof *row),
                             0, "%s", models[m].name);
                cr_expect_eq(model_pass_bad_layer(o.pass, 2 * i), -1);
            }
            cr_expect_eq(model_pass_bad_layer(o.pass, 1), broken - 1, "%s, broken %d",
                         models[m].name, broken);
        }
        mem_free(want);
        one_close(&o);
    }
}

/* What the row's residual stream gains from these results, [top_k, D], of the last row in the pass. */
static const float *combine_from_zero(struct one_process *o, uint32_t layer, const float *results)
{
    const struct hparams *hp = model_hparams(o->model);
    float *hidden = (float *)(uintptr_t)model_pass_hidden(o->pass);
    memset(hidden, 0, hp->hidden * sizeof *hidden);
    memcpy(model_pass_results(o->pass), results, (size_t)hp->top_k * hp->hidden * sizeof *results);
    model_combine(o->pass, layer, o->workers);
    return hidden;
}

/* The order of the sum is part of the contract: in ascending expert number, one fused step each, from 0. */
Test(same_bits, experts_are_added_in_ascending_order)
{
    struct one_process o;
    open_model(&o, 1, NULL, 1);
    const struct hparams *hp = model_hparams(o.model);
    const size_t d = hp->hidden, n = hp->top_k * d;
    cr_assert(hp->top_k >= 2 && hp->is_moe[0] && !model_reply_bf16(o.model));
    struct one_sequence s = one_sequence(&o, 1);
    model_begin(o.pass, &(struct model_row){.token = 5, .blocks = s.blocks, .wants_logits = true},
                1);
    model_attention(o.pass, o.kv, 0, o.workers);
    const uint16_t *ids = model_pass_experts(o.pass);
    float *results = mem_zalloc_array(n, sizeof *results), gates[16];
    float *want = mem_zalloc_array(d, sizeof *want);
    cr_assert(results && want && hp->top_k <= 16);
    for (size_t k = 0; k < hp->top_k; k++) {
        if (k > 0) cr_expect_lt(ids[k - 1], ids[k]);
        memset(results, 0, n * sizeof *results);
        results[k * d] = 1;
        gates[k] = combine_from_zero(&o, 0, results)[0];
        cr_assert(gates[k] > 0 && gates[k] < 1);
    }
    uint32_t x = 7;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        results[i] = (float)(int32_t)x * 1e-7f;
    }
    size_t other = 0;
    for (size_t i = 0; i < d; i++) {
        float backwards = 0;
        for (size_t k = 0; k < hp->top_k; k++) {
            want[i] = fmaf(gates[k], results[k * d + i], want[i]);
            size_t b = hp->top_k - 1 - k;
            backwards = fmaf(gates[b], results[b * d + i], backwards);
        }
        other += backwards != want[i];
    }
    cr_expect_eq(memcmp(combine_from_zero(&o, 0, results), want, d * sizeof *want), 0);
    cr_expect_gt(other, 0, "the order shows in these numbers");
    mem_free(results);
    mem_free(want);
    one_close(&o);
}

/* The comparison itself must be able to fail: another prompt token, other bits. */
Test(same_bits, one_other_token_shows)
{
    struct one_process o;
    open_model(&o, 3, NULL, 1);
    const uint32_t vocab = model_hparams(o.model)->vocab;
    int32_t ids[TOKENS];
    prompt(1, vocab, ids);
    size_t n;
    float *want = run(3, NULL, 1, TOKENS, &n);
    float *got = mem_zalloc_array(n, sizeof *got);
    cr_assert(got);
    ids[0] = (ids[0] + 1) % (int32_t)vocab;
    struct one_sequence s = one_sequence(&o, TOKENS);
    one_prompt(&o, &s, ids, TOKENS, TOKENS, got);
    /* The last row sees the first token only through attention, three blocks back. */
    cr_expect_neq(memcmp(got + n - vocab, want + n - vocab, vocab * sizeof *got), 0);
    one_close(&o);
    mem_free(got);
    mem_free(want);
}
