/* The choice of experts: hand-checked cases, ties, and values that are no numbers. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "coordinator/model/router.h"

#define NEAR 1e-6

Test(router, mixtral_renormalizes_over_the_chosen)
{
    struct router_params cfg = {.n_groups = 1, .top_groups = 1, .scale = 1, .renormalized = true};
    const uint32_t n_experts = 4, top_k = 2;
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, n_experts, top_k, (float[]){1, 3, 2, 0}, NULL, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2);
    cr_expect_float_eq(gates[0], 0.7310586, NEAR);
    cr_expect_float_eq(gates[1], 0.2689414, NEAR);
}

Test(router, olmoe_keeps_the_probabilities)
{
    struct router_params cfg = {.n_groups = 1, .top_groups = 1, .scale = 1};
    const uint32_t n_experts = 4, top_k = 2;
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, n_experts, top_k, (float[]){1, 3, 2, 0}, NULL, ids, gates);
    cr_expect_float_eq(gates[0], 0.6439143, NEAR);
    cr_expect_float_eq(gates[1], 0.2368828, NEAR);
}

Test(router, equal_logits_go_to_the_lower_number)
{
    struct router_params cfg = {.n_groups = 1, .top_groups = 1, .scale = 1, .renormalized = true};
    const uint32_t n_experts = 6, top_k = 3;
    uint16_t ids[3];
    float gates[3];
    router_select(&cfg, n_experts, top_k, (float[]){1, 2, 2, 2, 2, 1}, NULL, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2 && ids[2] == 3);
    router_select(&cfg, n_experts, top_k, (float[]){0.0f, -0.0f, 0.0f, -0.0f, 0.0f, 0.0f}, NULL,
                  ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && ids[2] == 2);
    router_select(&cfg, n_experts, top_k, (float[]){0, 0, 0, 0, 0, 9}, NULL, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && ids[2] == 5);
}

Test(router, a_nan_ranks_last_and_weighs_nothing)
{
    struct router_params cfg = {.n_groups = 1, .top_groups = 1, .scale = 1, .renormalized = true};
    const uint32_t n_experts = 4, top_k = 2;
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, n_experts, top_k, (float[]){NAN, -INFINITY, 1, NAN}, NULL, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2);
    cr_expect(gates[0] == 0 && gates[1] == 1);
    router_select(&cfg, n_experts, top_k, (float[]){NAN, 5, NAN, NAN}, NULL, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1);
    cr_expect(gates[0] == 0 && gates[1] == 1);
    router_select(&cfg, n_experts, top_k, (float[]){NAN, NAN, NAN, NAN}, NULL, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && gates[0] == 0 && gates[1] == 0);
}

/* Every subset order: the chosen are those that rank first, and the gates those of a softmax in double. */
Test(router, agrees_with_a_plain_sort)
{
    struct router_params cfg = {.n_groups = 1, .top_groups = 1, .scale = 1, .renormalized = true};
    const uint32_t n_experts = 40, top_k = 8;
    uint32_t x = 12345;
    for (int round = 0; round < 200; round++) {
        float logits[40], gates[8];
        uint16_t ids[8];
        for (int e = 0; e < 40; e++) {
            x = x * 1664525u + 1013904223u;
            logits[e] = (float)(int)(x >> 20 & 31) * 0.25f - 4.0f; /* coarse: many ties */
        }
        router_select(&cfg, n_experts, top_k, logits, NULL, ids, gates);
        double sum = 0;
        for (int k = 0; k < 8; k++)
            sum += exp((double)logits[ids[k]]);
        for (int k = 0; k < 8; k++) {
            uint32_t before = 0;
            for (int e = 0; e < 40; e++)
                before += logits[e] > logits[ids[k]] || (logits[e] == logits[ids[k]] && e < ids[k]);
            cr_expect_lt(before, 8u);
            cr_expect(k == 0 || ids[k - 1] < ids[k]);
            cr_expect_float_eq(gates[k], exp((double)logits[ids[k]]) / sum, NEAR);
        }
    }
}

/* The hand-checked cases of the reference "architectures", section 5. */
static void pick(struct router_params cfg, uint32_t n, uint32_t k, const float *logits,
                 const float *correction, const uint16_t *ids, const double *gates)
{
    uint16_t got[8];
    float gates_got[8];
    router_select(&cfg, n, k, logits, correction, got, gates_got);
    for (uint32_t i = 0; i < k; i++) {
        cr_expect_eq(got[i], ids[i], "pick %u is %u, not %u", i, got[i], ids[i]);
        cr_expect_float_eq(gates_got[i], gates[i], 2e-6, "gate %u is %.8g, not %.8g", i,
                           (double)gates_got[i], gates[i]);
    }
}

static float logit(double p)
{
    return (float)log(p / (1 - p));
}

Test(router, deepseek_v3_scores_groups_by_their_two_best)
{
    struct router_params cfg = {.score = SCORE_SIGMOID,
                                .renormalized = true,
                                .renormalize_eps = 1e-20,
                                .scale = 2.5f,
                                .correction = true,
                                .n_groups = 2,
                                .top_groups = 1,
                                .group_score = GROUP_TOP2_SUM};
    const float s[] = {logit(0.9), logit(0.1), logit(0.6), logit(0.5)}, none[4] = {0};
    pick(cfg, 4, 2, s, none, (uint16_t[]){2, 3}, (double[]){1.3636364, 1.1363636});
    cfg.group_score = GROUP_MAX;
    pick(cfg, 4, 2, s, none, (uint16_t[]){0, 1}, (double[]){2.25, 0.25});
}

Test(router, a_correction_steers_the_choice_and_not_the_gates)
{
    struct router_params cfg = {.score = SCORE_SIGMOID,
                                .renormalized = true,
                                .renormalize_eps = 1e-20,
                                .scale = 1,
                                .correction = true,
                                .n_groups = 1,
                                .top_groups = 1};
    const float s[] = {logit(0.5), logit(0.4), logit(0.3)}, b[] = {0, 0, 0.15f};
    pick(cfg, 3, 2, s, b, (uint16_t[]){0, 2}, (double[]){0.625, 0.375});
}

Test(router, groups_that_are_out_are_out_even_when_all_scores_are_negative)
{
    struct router_params cfg = {.score = SCORE_SIGMOID,
                                .scale = 1,
                                .correction = true,
                                .n_groups = 2,
                                .top_groups = 1,
                                .group_score = GROUP_TOP2_SUM};
    const float s[] = {0, 0, 0, 0}, b[] = {-5, -5, -4, -4};
    pick(cfg, 4, 2, s, b, (uint16_t[]){2, 3}, (double[]){0.5, 0.5});
}

Test(router, gates_over_the_chosen)
{
    struct router_params cfg = {
        .score = SCORE_SOFTMAX_CHOSEN, .scale = 1, .n_groups = 1, .top_groups = 1};
    pick(cfg, 4, 2, (float[]){1, 3, 2, 0}, NULL, (uint16_t[]){1, 2},
         (double[]){0.7310586, 0.2689414});
}

Test(router, deepseek_v2_scales_what_it_does_not_renormalize)
{
    struct router_params cfg = {
        .scale = 16, .n_groups = 2, .top_groups = 1, .group_score = GROUP_MAX};
    pick(cfg, 4, 2, (float[]){1, 3, 2, 2}, NULL, (uint16_t[]){0, 1},
         (double[]){16 * 0.0723295, 16 * 0.5344466});
}

Test(router, sparsemixer)
{
    struct router_params cfg = {.score = SCORE_SPARSEMIXER,
                                .scale = 1,
                                .n_groups = 1,
                                .top_groups = 1,
                                .jitter_eps = 0.01f};
    pick(cfg, 3, 2, (float[]){2.0f, 1.97f, 1.0f}, NULL, (uint16_t[]){0, 1},
         (double[]){0.5074994, 1});
    pick(cfg, 3, 2, (float[]){1.0f, 1.97f, 2.0f}, NULL, (uint16_t[]){1, 2},
         (double[]){1, 0.5074994});
    /* Negative: the scale of a difference is the magnitude of the one that is compared. */
    pick(cfg, 2, 2, (float[]){-1.0f, -1.01f}, NULL, (uint16_t[]){0, 1},
         (double[]){1 / (1 + exp(-0.01)), 1});
}
