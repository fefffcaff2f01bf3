/* From logits to tokens: greedy, the filters against a plain re-implementation, the draw, logprobs. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/kernels/kernels.h"
#include "coordinator/model/double_exp.h"
#include "coordinator/model/sampler.h"

#define VOCAB 300u

static const struct token_history none;

static const struct kernels *table(void)
{
    const struct kernels *k;
    cr_assert_eq(kernels_pick(NULL, &k, NULL), ERR_OK);
    return k;
}

static void random_logits(uint64_t seed, float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        logits[i] = (float)(rng_uniform(seed, i, 0) * 8 - 4);
        if (rng_uniform(seed, i, 1) < 0.3) logits[i] = (float)(int)logits[i]; /* ties */
        if (rng_uniform(seed, i, 2) < 0.02) logits[i] = -INFINITY;            /* masked */
    }
}

Test(sampler, exp_in_double_is_near_that_of_the_library)
{
    for (double x = -700; x < 700; x += 0.37) {
        double want = exp(x);
        cr_expect_leq(fabs(double_exp(x) - want), 4e-16 * want, "exp(%g)", x);
    }
    cr_expect_eq(double_exp(0), 1);
    cr_expect_eq(double_exp(-1e300), 0);
    cr_expect_eq(double_exp((double)-INFINITY), 0);
    cr_expect_eq(double_exp((double)NAN), 0);
}

Test(sampler, temperature_zero_takes_the_largest_and_the_lower_id)
{
    float logits[] = {1, 5, -2, 5, 4};
    struct sampler_params p = {.temperature = 0, .top_p = 1};
    struct sampler_pick pick;
    char scratch[128] __attribute__((aligned(8)));
    cr_assert_eq(sampler_pick(table(), logits, 5, &p, &none, 0, scratch, &pick), 0);
    cr_expect_eq(pick.token, 1);
    double sum = exp(1) + 2 * exp(5) + exp(-2) + exp(4);
    cr_expect_float_eq(pick.logprob, 5 - log(sum), 1e-6);
}

Test(sampler, a_row_that_is_not_finite_is_refused)
{
    struct sampler_pick pick;
    char scratch[128] __attribute__((aligned(8)));
    for (int t = 0; t < 2; t++) {
        struct sampler_params p = {.temperature = t, .top_p = 1};
        cr_expect_eq(sampler_pick(table(), (float[]){1, NAN, 2}, 3, &p, &none, 0, scratch, &pick),
                     -1);
        cr_expect_eq(
            sampler_pick(table(), (float[]){1, INFINITY, 2}, 3, &p, &none, 0, scratch, &pick), -1);
        cr_expect_eq(
            sampler_pick(table(), (float[]){-INFINITY, -INFINITY}, 2, &p, &none, 0, scratch, &pick),
            -1);
        cr_expect_eq(
            sampler_pick(table(), (float[]){-INFINITY, 0}, 2, &p, &none, 0, scratch, &pick), 0);
        cr_expect_eq(pick.token, 1);
    }
}

/* ---- a plain re-implementation: sort everything, filter step by step ------------------------------ */

struct candidate {
    uint32_t id;
    float logit;
    double weight;
};

static int by_rank(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->id < y->id ? -1 : 1;
}

static double sum_by_id(const struct candidate *c, uint32_t n)
{
    struct candidate copy[VOCAB];
    memcpy(copy, c, n * sizeof *c);
    qsort(copy, n, sizeof *copy, by_id);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += copy[i].weight;
    return sum;
}

static uint32_t plain_pick(const float *logits, const struct sampler_params *p, uint64_t index)
{
    struct candidate c[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++)
        c[i] = (struct candidate){.id = i, .logit = logits[i]};
    qsort(c, VOCAB, sizeof *c, by_rank);
    double best = (double)c[0].logit;
    for (uint32_t i = 0; i < VOCAB; i++)
        c[i].weight = double_exp(((double)c[i].logit - best) / p->temperature);
    uint32_t n = p->top_k > 0 && p->top_k < VOCAB ? p->top_k : VOCAB;
    if (p->top_p < 1) {
        double enough = p->top_p * sum_by_id(c, n), sum = 0;
        uint32_t kept = 0;
        do
            sum += c[kept++].weight;
        while (sum < enough && kept < n);
        n = kept;
    }
    while (n > 1 && p->min_p > 0 && c[n - 1].weight < p->min_p)
        n--;
    double target = rng_uniform(p->seed, index, p->choice) * sum_by_id(c, n), sum = 0;
    qsort(c, n, sizeof *c, by_id);
    for (uint32_t i = 0; i < n; i++) {
        sum += c[i].weight;
        if (sum > target) return c[i].id;
    }
    cr_assert_fail("nothing drawn");
    return 0;
}

Test(sampler, the_filters_agree_with_a_full_sort)
{
    void *scratch = mem_aligned(8, sampler_scratch_bytes(VOCAB));
    cr_assert(scratch);
    const double top_ps[] = {1, 0.95, 0.5, 0.01, 0}, min_ps[] = {0, 0.05, 0.9, 1},
                 temperatures[] = {1, 0.3, 3, 1e-9};
    const uint32_t top_ks[] = {0, 1, 5, 50, VOCAB, VOCAB + 7};
    float logits[VOCAB];
    uint64_t seed = 0;
    for (size_t a = 0; a < 5; a++)
        for (size_t b = 0; b < 4; b++)
            for (size_t c = 0; c < 4; c++)
                for (size_t d = 0; d < 6; d++) {
                    random_logits(++seed, logits, VOCAB);
                    struct sampler_params p = {.temperature = temperatures[c],
                                               .top_p = top_ps[a],
                                               .min_p = min_ps[b],
                                               .top_k = top_ks[d],
                                               .seed = seed,
                                               .choice = (uint32_t)(seed % 3)};
                    for (uint64_t index = 0; index < 5; index++) {
                        struct sampler_pick pick;
                        cr_assert_eq(
                            sampler_pick(table(), logits, VOCAB, &p, &none, index, scratch, &pick),
                            0);
                        cr_expect_eq((uint32_t)pick.token, plain_pick(logits, &p, index),
                                     "seed %lu", (unsigned long)seed);
                    }
                }
    mem_free(scratch);
}

Test(sampler, draws_follow_the_probabilities)
{
    const float logits[] = {0, 1, 2, -INFINITY, 1};
    struct sampler_params p = {.temperature = 0.8, .top_p = 1, .seed = 42};
    char scratch[128] __attribute__((aligned(8)));
    const int n = 20000;
    int seen[5] = {0};
    for (int i = 0; i < n; i++) {
        struct sampler_pick pick;
        cr_assert_eq(sampler_pick(table(), logits, 5, &p, &none, (uint64_t)i, scratch, &pick), 0);
        seen[pick.token]++;
    }
    double total = 0;
    for (int i = 0; i < 5; i++)
        total += exp((double)logits[i] / 0.8);
    for (int i = 0; i < 5; i++) {
        double share = exp((double)logits[i] / 0.8) / total;
        cr_expect_float_eq((double)seen[i] / n, share, 4 * sqrt(share / n) + 1e-9, "token %d", i);
    }
}

Test(sampler, the_draw_is_a_function_of_seed_index_and_choice)
{
    float logits[VOCAB];
    random_logits(1, logits, VOCAB);
    void *scratch = mem_aligned(8, sampler_scratch_bytes(VOCAB));
    struct sampler_params p = {.temperature = 5, .top_p = 1, .seed = 7};
    int others = 0;
    for (uint64_t i = 0; i < 10; i++) {
        struct sampler_pick a, b, c;
        cr_assert_eq(sampler_pick(table(), logits, VOCAB, &p, &none, i, scratch, &a), 0);
        cr_assert_eq(sampler_pick(table(), logits, VOCAB, &p, &none, i, scratch, &b), 0);
        struct sampler_params second = p;
        second.choice = 1;
        cr_assert_eq(sampler_pick(table(), logits, VOCAB, &second, &none, i, scratch, &c), 0);
        cr_expect_eq(a.token, b.token);
        others += a.token != c.token;
    }
    cr_expect_gt(others, 5);
    mem_free(scratch);
}

Test(sampler, logprobs_are_those_of_a_softmax_and_top_is_sorted)
{
    float logits[VOCAB], logprobs[20];
    int32_t ids[20];
    random_logits(3, logits, VOCAB);
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i]);
    for (int32_t i = 0; i < 50; i++) {
        if (isinf(logits[i])) continue;
        cr_expect_float_eq(sampler_logprob(table(), logits, VOCAB, i), (double)logits[i] - log(sum),
                           2e-6);
    }
    sampler_top(table(), logits, VOCAB, 20, ids, logprobs);
    for (int k = 0; k < 20; k++) {
        uint32_t before = 0;
        for (uint32_t i = 0; i < VOCAB; i++)
            before +=
                logits[i] > logits[ids[k]] || (logits[i] == logits[ids[k]] && (int32_t)i < ids[k]);
        cr_expect_eq(before, (uint32_t)k);
        cr_expect_eq(logprobs[k], sampler_logprob(table(), logits, VOCAB, ids[k]));
    }
    sampler_top(table(), logits, 3, 3, ids, logprobs);
    sampler_top(table(), logits, 3, 0, ids, logprobs);
}

/* Bias and penalties for each id by their definition, from a count of the whole history. */
static float adjusted(const struct logit_adjust *a, const struct token_history *h, float logit,
                      int32_t id)
{
    double x = (double)logit;
    uint32_t in_output = 0;
    bool seen = false;
    for (uint32_t i = 0; i < a->n_bias; i++)
        if (a->bias[i].id == id) x += a->bias[i].bias;
    for (uint32_t i = 0; i < h->n; i++) {
        seen |= h->tokens[i] == id;
        in_output += h->tokens[i] == id && i >= h->n_prompt;
    }
    if (seen && a->repetition != 0) x = x > 0 ? x / a->repetition : x * a->repetition;
    if (in_output > 0) x = x - in_output * a->frequency - a->presence;
    return (float)x;
}

Test(sampler, bias_and_penalties_are_those_of_their_definitions)
{
    float logits[VOCAB], got[VOCAB];
    uint32_t counts[VOCAB];
    int32_t tokens[60];
    struct logit_bias bias[20];
    for (uint64_t seed = 0; seed < 200; seed++) {
        random_logits(seed, logits, VOCAB);
        for (uint32_t i = 0; i < 60; i++) /* among few ids, so that some repeat */
            tokens[i] = (int32_t)(rng_uniform(seed, i, 3) * (seed % 2 ? VOCAB : 15));
        for (uint32_t i = 0; i < 20; i++)
            bias[i] = (struct logit_bias){(int32_t)(i * 14 + seed % 3),
                                          rng_uniform(seed, i, 4) * 200 - 100};
        struct logit_adjust a = {.repetition = seed % 3 == 0 ? 0 : rng_uniform(seed, 0, 5) * 4,
                                 .frequency = seed % 4 == 0 ? 0 : rng_uniform(seed, 1, 5) * 4 - 2,
                                 .presence = seed % 5 == 0 ? 0 : rng_uniform(seed, 2, 5) * 4 - 2,
                                 .bias = bias,
                                 .n_bias = seed % 7 == 0 ? 0 : 20};
        struct token_history h = {tokens, (uint32_t)seed % 60, 60};
        logit_adjust_apply(&a, &h, logits, VOCAB, counts, got);
        for (int32_t id = 0; id < (int32_t)VOCAB; id++)
            cr_expect_eq(f32_bits(got[id]), f32_bits(adjusted(&a, &h, logits[id], id)),
                         "seed %u id %d: %a", (unsigned)seed, id, (double)got[id]);
    }
}

Test(sampler, a_bias_of_100_forces_and_of_minus_100_bans)
{
    float logits[] = {1, 5, -2, 4.5f, 4, -INFINITY};
    struct logit_bias bias[] = {{1, -100}, {2, 100}, {5, 100}};
    struct sampler_params p = {.temperature = 1, .top_p = 1, .adjust = {.bias = bias, .n_bias = 3}};
    struct sampler_pick pick;
    char scratch[256] __attribute__((aligned(8)));
    for (uint64_t i = 0; i < 100; i++) {
        cr_assert_eq(sampler_pick(table(), logits, 6, &p, &none, i, scratch, &pick), 0);
        cr_expect_eq(pick.token, 2);
        cr_expect_eq(f32_bits(pick.logprob), f32_bits(sampler_logprob(table(), logits, 6, 2)),
                     "of the raw logits");
    }
    p.adjust.n_bias = 1;
    p.temperature = 0;
    cr_assert_eq(sampler_pick(table(), logits, 6, &p, &none, 0, scratch, &pick), 0);
    cr_expect_eq(pick.token, 3, "the second best, as the best is banned");
}

Test(sampler, a_penalty_that_overflows_is_no_fault_of_the_model)
{
    float logits[] = {3e38f, 1, 2};
    struct sampler_params p = {.top_p = 1, .adjust = {.repetition = 1e-300}};
    struct sampler_pick pick;
    char scratch[128] __attribute__((aligned(8)));
    struct token_history h = {(int32_t[]){0, 1}, 2, 2};
    cr_assert_eq(sampler_pick(table(), logits, 3, &p, &h, 0, scratch, &pick), 0);
    cr_expect_eq(pick.token, 0, "both at the largest float: the lower id");
    cr_expect_eq(sampler_pick(table(), (float[]){1, NAN, 2}, 3, &p, &h, 0, scratch, &pick), -1);
}
