/* The choice of experts: hand-checked cases, ties, and values that are no numbers. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "coordinator/model/router.h"

#define NEAR 1e-6

Test(router, mixtral_renormalizes_over_the_chosen)
{
    struct router_cfg cfg = {.n_experts = 4, .top_k = 2, .renormalize = true};
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, (float[]){1, 3, 2, 0}, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2);
    cr_expect_float_eq(gates[0], 0.7310586, NEAR);
    cr_expect_float_eq(gates[1], 0.2689414, NEAR);
}

Test(router, olmoe_keeps_the_probabilities)
{
    struct router_cfg cfg = {.n_experts = 4, .top_k = 2};
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, (float[]){1, 3, 2, 0}, ids, gates);
    cr_expect_float_eq(gates[0], 0.6439143, NEAR);
    cr_expect_float_eq(gates[1], 0.2368828, NEAR);
}

Test(router, equal_logits_go_to_the_lower_number)
{
    struct router_cfg cfg = {.n_experts = 6, .top_k = 3, .renormalize = true};
    uint16_t ids[3];
    float gates[3];
    router_select(&cfg, (float[]){1, 2, 2, 2, 2, 1}, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2 && ids[2] == 3);
    router_select(&cfg, (float[]){0.0f, -0.0f, 0.0f, -0.0f, 0.0f, 0.0f}, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && ids[2] == 2);
    router_select(&cfg, (float[]){0, 0, 0, 0, 0, 9}, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && ids[2] == 5);
}

Test(router, a_nan_ranks_last_and_weighs_nothing)
{
    struct router_cfg cfg = {.n_experts = 4, .top_k = 2, .renormalize = true};
    uint16_t ids[2];
    float gates[2];
    router_select(&cfg, (float[]){NAN, -INFINITY, 1, NAN}, ids, gates);
    cr_expect(ids[0] == 1 && ids[1] == 2);
    cr_expect(gates[0] == 0 && gates[1] == 1);
    router_select(&cfg, (float[]){NAN, 5, NAN, NAN}, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1);
    cr_expect(gates[0] == 0 && gates[1] == 1);
    router_select(&cfg, (float[]){NAN, NAN, NAN, NAN}, ids, gates);
    cr_expect(ids[0] == 0 && ids[1] == 1 && gates[0] == 0 && gates[1] == 0);
}

/* Every subset order: the chosen are those that rank first, and the gates those of a softmax in double. */
Test(router, agrees_with_a_plain_sort)
{
    struct router_cfg cfg = {.n_experts = 40, .top_k = 8, .renormalize = true};
    uint32_t x = 12345;
    for (int round = 0; round < 200; round++) {
        float logits[40], gates[8];
        uint16_t ids[8];
        for (int e = 0; e < 40; e++) {
            x = x * 1664525u + 1013904223u;
            logits[e] = (float)(int)(x >> 20 & 31) * 0.25f - 4.0f; /* coarse: many ties */
        }
        router_select(&cfg, logits, ids, gates);
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
