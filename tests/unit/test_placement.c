/* Which nodes hold which expert. */
// links: cluster
#include <criterion/criterion.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/cluster/placement.h"

Test(placement, spread_goes_round_all_nodes)
{
    struct placement *p;
    const uint16_t *nodes;
    cr_assert_eq(placement_spread(3, 8, 4, 2, 0, &p, NULL), ERR_OK);
    cr_assert_eq(placement_replicas(p, 1, 6, &nodes), 2);
    cr_expect_eq(nodes[0], 3);
    cr_expect_eq(nodes[1], 0);
    cr_expect(placement_holds(p, 3, 1, 6) && placement_holds(p, 0, 1, 6) &&
              !placement_holds(p, 1, 1, 6));
    cr_expect_eq(placement_epoch(p), 1);
    cr_expect_eq(placement_n_nodes(p), 4);
    placement_release(p);
}

Test(placement, a_seed_permutes_each_layer_and_keeps_the_balance)
{
    struct placement *p, *same;
    const uint16_t *a, *b;
    cr_assert_eq(placement_spread(6, 64, 4, 1, 9, &p, NULL), ERR_OK);
    cr_assert_eq(placement_spread(6, 64, 4, 1, 9, &same, NULL), ERR_OK);
    uint32_t moved = 0;
    for (uint32_t layer = 0; layer < 6; layer++) {
        uint32_t count[4] = {0};
        for (uint32_t e = 0; e < 64; e++) {
            placement_replicas(p, layer, e, &a);
            placement_replicas(same, layer, e, &b);
            cr_expect_eq(a[0], b[0], "the same seed gives the same placement");
            count[a[0]]++;
            moved += a[0] != (layer + e) % 4;
        }
        for (int n = 0; n < 4; n++)
            cr_expect_eq(count[n], 16);
    }
    cr_expect_gt(moved, 6 * 64 / 2);
    placement_release(p);
    placement_release(same);
}

Test(placement, too_many_replicas_are_refused_with_both_numbers)
{
    struct placement *p;
    struct err why;
    cr_expect_eq(placement_spread(1, 8, 3, 4, 0, &p, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "4") && strstr(why.text, "3"), "%s", why.text);
    cr_expect_eq(placement_spread(1, 8, 3, 0, 0, &p, &why), ERR_INVALID);
    cr_expect_eq(placement_spread(1, 70000, 3, 1, 0, &p, &why), ERR_INVALID);
}

Test(placement, holdings_bitmaps_round_trip_and_gaps_are_found)
{
    struct placement *p, *q;
    cr_assert_eq(placement_spread(2, 10, 3, 1, 5, &p, NULL), ERR_OK);
    uint8_t *held[3];
    for (uint32_t n = 0; n < 3; n++) {
        held[n] = placement_node_bitmap(p, n);
        cr_assert_not_null(held[n]);
    }
    cr_assert_eq(placement_from_holdings(2, 10, 3, (const uint8_t *const *)held, 7, &q, NULL),
                 ERR_OK);
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t e = 0; e < 10; e++)
            for (uint32_t n = 0; n < 3; n++)
                cr_expect_eq(placement_holds(p, n, l, e), placement_holds(q, n, l, e));
    uint32_t layer, expert;
    const bool moe[2] = {false, true};
    cr_expect_eq(placement_missing(q, moe, &layer, &expert), 0);
    placement_release(q);

    const uint16_t *nodes;
    placement_replicas(p, 1, 4, &nodes);
    uint32_t n = nodes[0];
    held[n][2 + 0] &= (uint8_t) ~(1u << 4);
    const uint8_t *some[3] = {held[0], held[1], held[2]};
    cr_assert_eq(placement_from_holdings(2, 10, 3, some, 8, &q, NULL), ERR_OK);
    cr_expect_eq(placement_missing(q, moe, &layer, &expert), 1);
    cr_expect(layer == 1 && expert == 4);
    placement_release(q);
    some[n] = NULL; /* a node that said nothing holds nothing */
    cr_assert_eq(placement_from_holdings(2, 10, 3, some, 9, &q, NULL), ERR_OK);
    cr_expect_geq(placement_missing(q, moe, &layer, &expert), 3);
    placement_release(q);
    for (int i = 0; i < 3; i++)
        mem_free(held[i]);
    placement_release(p);
}

Test(placement, replicas_from_holdings_are_all_different_and_first_choices_spread)
{
    uint8_t all[2] = {0xff, 0xff};
    const uint8_t *held[4] = {all, all, all, all};
    struct placement *p;
    cr_assert_eq(placement_from_holdings(1, 16, 4, held, 1, &p, NULL), ERR_OK);
    uint32_t first[4] = {0};
    for (uint32_t e = 0; e < 16; e++) {
        const uint16_t *nodes;
        uint32_t seen = 0;
        cr_assert_eq(placement_replicas(p, 0, e, &nodes), 4);
        for (int i = 0; i < 4; i++)
            seen |= 1u << nodes[i];
        cr_expect_eq(seen, 15);
        first[nodes[0]]++;
    }
    for (int n = 0; n < 4; n++)
        cr_expect_eq(first[n], 4);
    placement_release(p);
}

Test(placement, no_memory_is_an_error)
{
    for (uint64_t n = 1; n <= 4; n++) {
        struct placement *p;
        mem_fail_at(n);
        cr_expect_eq(placement_spread(2, 8, 2, 1, 3, &p, NULL), ERR_EXHAUSTED);
        mem_fail_at(0);
    }
}
