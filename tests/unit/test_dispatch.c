/* Routing becomes steps, and steps find their way. */
// links: cluster
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "coordinator/cluster/dispatch.h"
#include "coordinator/cluster/latency.h"
#include "coordinator/cluster/step_pool.h"

#define TOP_K       2
#define SLOT_DECODE 0
#define SLOT_BULK   1

static const bool no_skip[1024];

static struct dispatch *open_dispatch(uint32_t n_nodes, uint32_t replicas, uint32_t n_experts,
                                      uint32_t piece_bytes)
{
    struct placement *p;
    struct dispatch *d;
    struct err why;
    cr_assert_eq(placement_spread(4, n_experts, n_nodes, replicas, 0, &p, &why), ERR_OK, "%s",
                 why.text);
    struct dispatch_cfg cfg = {.n_nodes = n_nodes,
                               .row_bytes = 100,
                               .result_bytes = 50,
                               .piece_bytes = piece_bytes,
                               .bulk_outstanding = 2,
                               .min_silence_us = 250000};
    struct dispatch_shape shape = {.n_layers = 4,
                                   .n_experts = n_experts,
                                   .top_k = TOP_K,
                                   .decode_slots = 1,
                                   .n_slots = 2,
                                   .max_rows = 64};
    cr_assert_eq(dispatch_open(&cfg, &shape, p, &d, &why), ERR_OK, "%s", why.text);
    placement_release(p);
    for (uint32_t n = 0; n < n_nodes; n++) {
        dispatch_node_up(d, 0, n, DISPATCH_DECODE);
        dispatch_node_up(d, 0, n, DISPATCH_BULK);
    }
    return d;
}

static uint32_t take_sends(struct dispatch *d, const struct dispatch_step **out, uint32_t cap)
{
    uint32_t n = 0;
    const struct dispatch_step *s;
    while ((s = dispatch_next_send(d)) != NULL) {
        cr_assert_lt(n, cap);
        out[n++] = s;
    }
    return n;
}

Test(dispatch, one_step_per_node_with_experts_and_rows_ascending)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 2, 1, 3, 0, 3, 0, 2}; /* layer 0: even experts on node 0 */
    const struct dispatch_step *s[4];
    dispatch_start(d, 10, SLOT_DECODE, 0, routing, no_skip, 4);
    cr_assert_eq(take_sends(d, s, 4), 2);
    cr_expect_eq(s[0]->node, 0);
    cr_expect_eq(s[0]->epoch, 1);
    cr_expect_eq(s[0]->sent_us, 10);
    cr_assert_eq(s[0]->n_rows, 3);
    cr_expect_arr_eq(s[0]->rows, ((uint32_t[]){0, 2, 3}), 12);
    cr_assert_eq(s[0]->n_experts, 2);
    cr_expect_arr_eq(s[0]->experts, ((uint16_t[]){0, 2}), 4);
    cr_expect_arr_eq(s[0]->expert_rows, ((uint32_t[]){3, 2}), 8);
    cr_assert_eq(s[0]->n_entries, 5);
    cr_expect_arr_eq(s[0]->row_index, ((uint32_t[]){0, 1, 2, 0, 2}), 20);
    cr_expect_arr_eq(s[0]->result_slot, ((uint32_t[]){0, 4, 6, 1, 7}), 20);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 8);
    uint64_t first = s[0]->id, second = s[1]->id;
    cr_expect_eq(dispatch_find(d, first), s[0]);
    dispatch_reply(d, 500, second);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 5);
    dispatch_reply(d, 600, second); /* once more: unknown by now */
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 5);
    dispatch_reply(d, 1010, first);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 0);
    cr_expect_null(dispatch_find(d, first));
    cr_expect(dispatch_was_given(d, first) && dispatch_was_given(d, second));
    const uint64_t never[] = {0,         1, first + 2, second + (1ull << 20), first + (1ull << 40),
                              UINT64_MAX};
    for (int i = 0; i < 6; i++)
        cr_expect_not(dispatch_was_given(d, never[i]), "%llu", (unsigned long long)never[i]);
    struct dispatch_node_stats st;
    dispatch_node_stats(d, 0, &st);
    cr_expect(st.steps == 1 && st.rows == 5 && st.in_flight == 0 && st.p50_us == 1000 &&
              st.p99_us == 1000);
    cr_expect(st.bytes_out == 300 && st.bytes_in == 250);
    dispatch_close(d);
}

Test(dispatch, rows_of_an_expert_stay_together_and_replicas_share_the_experts)
{
    struct dispatch *d = open_dispatch(2, 2, 4, 1000);
    const uint16_t routing[] = {0, 1, 0, 1, 2, 3, 2, 3};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 4);
    cr_assert_eq(take_sends(d, s, 4), 2);
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(s[i]->n_entries, 4, "both nodes hold everything: each takes half");
        for (uint32_t e = 0; e < s[i]->n_experts; e++)
            cr_expect_eq(s[i]->expert_rows[e], 2);
    }
    dispatch_close(d);
}

Test(dispatch, bulk_is_cut_into_pieces_and_two_of_a_node_are_under_way)
{
    struct dispatch *d = open_dispatch(1, 1, 4, 1000); /* 10 rows, 20 results */
    uint16_t routing[64 * TOP_K];
    for (uint32_t r = 0; r < 64; r++) {
        routing[2 * r] = r % 3;
        routing[2 * r + 1] = 3;
    }
    bool seen[64 * TOP_K] = {false};
    const struct dispatch_step *s[4];
    uint64_t flying[2], n_flying = 0, next_piece = 0;
    dispatch_start(d, 0, SLOT_BULK, 0, routing, no_skip, 64);
    while (dispatch_n_open(d, SLOT_BULK) > 0) {
        uint32_t n = take_sends(d, s, 4);
        for (uint32_t i = 0; i < n; i++) {
            cr_assert_lt(n_flying, 2);
            flying[n_flying++] = s[i]->id;
            cr_expect_eq(s[i]->piece, next_piece++);
            cr_expect_leq(s[i]->n_rows, 10);
            cr_expect_leq(s[i]->n_entries, 20);
            for (uint32_t k = 0; k < s[i]->n_entries; k++) {
                cr_expect_not(seen[s[i]->result_slot[k]]);
                seen[s[i]->result_slot[k]] = true;
            }
        }
        cr_assert_gt(n_flying, 0);
        dispatch_reply(d, 0, flying[0]);
        flying[0] = flying[1];
        n_flying--;
    }
    for (uint32_t i = 0; i < 128; i++)
        cr_expect(seen[i]);
    cr_expect_geq(next_piece, 13);
    dispatch_close(d);
}

Test(dispatch, a_piece_ends_before_an_expert_that_does_not_fit)
{
    struct dispatch *d = open_dispatch(1, 1, 4, 1600); /* 16 rows, 32 results */
    uint16_t routing[24 * TOP_K];
    for (uint32_t r = 0; r < 24;
         r++) { /* every expert has 12 rows: two in one piece would have to be cut */
        routing[2 * r] = r / 12;
        routing[2 * r + 1] = 2 + r / 12;
    }
    const struct dispatch_step *s[4];
    uint32_t n_pieces = 0;
    dispatch_start(d, 0, SLOT_BULK, 0, routing, no_skip, 24);
    while (dispatch_n_open(d, SLOT_BULK) > 0) {
        uint32_t n = take_sends(d, s, 4);
        cr_assert_gt(n, 0);
        uint64_t ids[4];
        for (uint32_t i = 0; i < n; i++) {
            cr_expect_eq(s[i]->n_experts, 1);
            cr_expect_eq(s[i]->expert_rows[0], 12);
            ids[i] = s[i]->id;
        }
        n_pieces += n;
        for (uint32_t i = 0; i < n; i++)
            dispatch_reply(d, 0, ids[i]);
    }
    cr_expect_eq(n_pieces, 4);
    dispatch_close(d);
}

Test(dispatch, a_row_larger_than_a_piece_still_goes)
{
    struct dispatch *d = open_dispatch(1, 1, 2, 10);
    const uint16_t routing[] = {0, 1, 0, 1};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_BULK, 0, routing, no_skip, 2);
    cr_expect_eq(take_sends(d, s, 4), 2);
    cr_expect_eq(s[0]->n_entries, 1);
    dispatch_close(d);
}

Test(dispatch, a_lost_lane_moves_its_steps_and_parks_what_nobody_else_holds)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 1, 0, 1};
    const struct dispatch_step *s[4];
    uint32_t layer, expert, live;
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 2);
    cr_assert_eq(take_sends(d, s, 4), 2);
    uint64_t old = s[1]->id;
    cr_assert_eq(s[1]->node, 1);
    dispatch_node_down(d, 5, 1, DISPATCH_BULK); /* the other lane: no matter */
    cr_expect_not_null(dispatch_find(d, old));
    dispatch_node_down(d, 5, 1, DISPATCH_DECODE);
    cr_expect_null(dispatch_find(d, old));
    cr_expect_eq(dispatch_n_unsent(d, SLOT_DECODE), 2);
    cr_expect(dispatch_find_unsent(d, SLOT_DECODE, 0, 2, &layer, &expert, &live));
    cr_expect(layer == 0 && expert == 1 && live == 0);
    cr_expect_eq(take_sends(d, s, 4), 0);
    dispatch_node_up(d, 9, 1, DISPATCH_DECODE);
    cr_assert_eq(take_sends(d, s, 4), 1);
    cr_expect(s[0]->is_replay && s[0]->id != old && s[0]->n_entries == 2);
    cr_expect_eq(dispatch_replays(d), 2);
    struct dispatch_node_stats st;
    dispatch_node_stats(d, 1, &st);
    cr_expect_eq(st.replays_from, 1);
    dispatch_close(d);
}

Test(dispatch, what_is_queued_behind_a_lost_lane_moves_too)
{
    struct dispatch *d = open_dispatch(2, 2, 2, 50); /* one result per piece */
    uint16_t routing[20];
    for (uint32_t i = 0; i < 20; i++)
        routing[i] = i % 2;
    const struct dispatch_step *s[8];
    dispatch_start(d, 0, SLOT_BULK, 0, routing, no_skip, 10);
    cr_assert_eq(take_sends(d, s, 8), 4);
    dispatch_reply(d, 1, s[0]->id);
    cr_assert_eq(take_sends(d, s, 8), 1);
    uint32_t lost = s[0]->node;
    dispatch_node_down(d, 2, lost, DISPATCH_BULK);
    for (uint32_t k = 0; k < 100 && dispatch_n_open(d, SLOT_BULK) > 0; k++) {
        take_sends(d, s, 8);
        const struct dispatch_step *sent = dispatch_first_sent(d, SLOT_BULK);
        cr_assert_not_null(sent);
        cr_expect_neq(sent->node, lost);
        dispatch_reply(d, 3, sent->id);
    }
    cr_expect_eq(dispatch_n_open(d, SLOT_BULK), 0);
    cr_expect_eq(dispatch_replays(d), 2, "only what was under way is asked for again");
    dispatch_close(d);
}

Test(dispatch, what_is_queued_behind_a_silent_step_moves_too)
{
    struct dispatch *d = open_dispatch(2, 2, 2, 50);
    uint16_t routing[20];
    for (uint32_t i = 0; i < 20; i++)
        routing[i] = i % 2;
    const struct dispatch_step *s[8];
    uint64_t now = 0, answering[64], n_answering = 0, answered = 0;
    dispatch_start(d, 0, SLOT_BULK, 0, routing, no_skip, 10);
    while (dispatch_n_open(d, SLOT_BULK) > 0) { /* node 0 never answers */
        uint32_t n = take_sends(d, s, 8);
        for (uint32_t i = 0; i < n; i++)
            if (s[i]->node == 1) answering[n_answering++] = s[i]->id;
        if (answered < n_answering)
            dispatch_reply(d, now, answering[answered++]);
        else
            dispatch_tick(d, now = dispatch_next_timer_us(d));
        cr_assert_leq(now, 4 * 250000, "one silence is enough for all ten results");
    }
    cr_expect_eq(answered, 20);
    cr_expect_eq(dispatch_replays(d), 2);
    dispatch_close(d);
}

Test(dispatch, a_refusal_asks_the_others_first_and_the_same_again_after_100_ms)
{
    struct dispatch *d = open_dispatch(3, 2, 3, 1000); /* expert 0 of layer 0: nodes 0, 1 */
    const uint16_t routing[] = {0, 1};
    bool skip[1] = {false};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, skip, 1);
    uint32_t n = take_sends(d, s, 4);
    const struct dispatch_step *mine = s[0]->experts[0] == 0 ? s[0] : s[1];
    cr_assert_eq(n, 2);
    uint32_t first = mine->node;
    dispatch_failed(d, 1000, mine->id);
    cr_assert_eq(take_sends(d, s, 4), 1);
    cr_expect_neq(s[0]->node, first);
    dispatch_failed(d, 2000, s[0]->id);
    cr_expect_eq(take_sends(d, s, 4), 0, "both have refused");
    cr_expect_eq(dispatch_n_unsent(d, SLOT_DECODE), 1);
    cr_expect_eq(dispatch_next_timer_us(d), 2000 + DISPATCH_RETRY_US);
    dispatch_tick(d, 2000 + DISPATCH_RETRY_US - 1);
    cr_expect_eq(take_sends(d, s, 4), 0);
    dispatch_tick(d, 2000 + DISPATCH_RETRY_US);
    cr_expect_eq(take_sends(d, s, 4), 1);
    dispatch_close(d);
}

Test(dispatch, silence_is_replayed_elsewhere_and_only_there)
{
    struct dispatch *d = open_dispatch(2, 2, 4, 1000);
    const uint16_t routing[] = {0, 1};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 1);
    cr_assert_eq(take_sends(d, s, 4), 2);
    uint64_t slow = s[0]->id;
    uint32_t slow_node = s[0]->node;
    dispatch_reply(d, 100, s[1]->id);
    dispatch_tick(d, 249999);
    cr_expect_eq(take_sends(d, s, 4), 0);
    dispatch_tick(d, 250000);
    cr_assert_eq(take_sends(d, s, 4), 1);
    cr_expect(s[0]->is_replay && s[0]->node != slow_node);
    cr_expect_null(dispatch_find(d, slow));
    uint64_t again = s[0]->id;
    dispatch_tick(d, 600000);
    cr_expect_eq(take_sends(d, s, 4), 0, "both were asked: keep waiting for the second");
    cr_expect_not_null(dispatch_find(d, again));
    cr_expect_gt(dispatch_next_timer_us(d), 600000);
    dispatch_reply(d, 700000, again);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 0);

    /* The silent node gets nothing new while others can, until it is heard. */
    const uint16_t four[] = {0, 1, 2, 3};
    dispatch_start(d, 700000, SLOT_DECODE, 1, four, no_skip, 2);
    cr_assert_eq(take_sends(d, s, 4), 1);
    cr_expect_neq(s[0]->node, slow_node);
    dispatch_reply(d, 700100, s[0]->id);
    dispatch_reply(d, 700200, slow);
    dispatch_start(d, 700300, SLOT_DECODE, 2, four, no_skip, 2);
    cr_expect_eq(take_sends(d, s, 4), 2);
    dispatch_close(d);
}

Test(dispatch, without_another_replica_silence_is_waited_out)
{
    struct dispatch *d = open_dispatch(1, 1, 2, 1000);
    const uint16_t routing[] = {0, 1};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 1);
    cr_assert_eq(take_sends(d, s, 4), 1);
    dispatch_tick(d, 10000000);
    cr_expect_eq(take_sends(d, s, 4), 0);
    dispatch_reply(d, 10000001, s[0]->id);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 0);
    dispatch_close(d);
}

Test(dispatch, dead_rows_are_not_sent_and_not_waited_for)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 2, 1, 3, 0, 1};
    const bool skip[] = {false, false, true};
    const struct dispatch_step *s[4];
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, skip, 3);
    cr_assert_eq(take_sends(d, s, 4), 2);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 4);
    dispatch_kill_rows(d, 0, SLOT_DECODE, 1, 1); /* all of node 1's step */
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 2);
    cr_expect_null(dispatch_find(d, s[1]->id));
    dispatch_reply(d, 0, s[0]->id);
    cr_expect_eq(dispatch_n_open(d, SLOT_DECODE), 0);
    dispatch_close(d);
}

Test(dispatch, a_new_placement_serves_waiting_rows)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {1, 3}; /* node 1 */
    const struct dispatch_step *s[4];
    struct placement *p;
    struct err why;
    dispatch_node_down(d, 0, 1, DISPATCH_DECODE);
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 1);
    cr_expect_eq(dispatch_n_unsent(d, SLOT_DECODE), 2);
    cr_expect_eq(dispatch_next_timer_us(d), UINT64_MAX, "nobody is there to be asked again");
    uint8_t all[4] = {0xf, 0xf, 0xf, 0xf};
    const uint8_t *held[2] = {all, NULL};
    cr_assert_eq(placement_from_holdings(4, 4, 2, held, 5, &p, &why), ERR_OK);
    cr_assert_eq(dispatch_set_placement(d, 1, p, &why), ERR_OK);
    placement_release(p);
    cr_assert_eq(take_sends(d, s, 4), 1);
    cr_expect(s[0]->node == 0 && s[0]->epoch == 5 && !s[0]->is_replay);
    cr_assert_eq(placement_spread(3, 4, 2, 1, 0, &p, &why), ERR_OK);
    cr_expect_eq(dispatch_set_placement(d, 1, p, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "3") && strstr(why.text, "4"), "%s", why.text);
    placement_release(p);
    dispatch_close(d);
}

Test(dispatch, a_new_placement_forgets_who_refused)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 2}; /* node 0 */
    const struct dispatch_step *s[4];
    struct placement *p;
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 1);
    cr_assert_eq(take_sends(d, s, 4), 1);
    dispatch_failed(d, 1000, s[0]->id);
    cr_expect_eq(take_sends(d, s, 4), 0);
    cr_assert_eq(placement_spread(4, 4, 2, 1, 0, &p, NULL), ERR_OK);
    cr_assert_eq(dispatch_set_placement(d, 1001, p, NULL), ERR_OK);
    placement_release(p);
    cr_expect_eq(take_sends(d, s, 4), 1, "at once: it says that the node holds them now");
    dispatch_close(d);
}

Test(dispatch, steps_are_used_again)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 1};
    const struct dispatch_step *s[4];
    for (uint64_t i = 0; i < 100; i++) {
        dispatch_start(d, i, SLOT_DECODE, 0, routing, no_skip, 1);
        cr_assert_eq(take_sends(d, s, 4), 2);
        for (int k = 0; k < 2; k++) {
            uint64_t id = s[k]->id;
            cr_assert_lt(id % STEP_POOL_MAX, 2, "two at a time need room for two");
            dispatch_reply(d, i, id);
            cr_assert_null(dispatch_find(d, id));
        }
    }
    dispatch_close(d);
}

Test(dispatch, short_memory_delays_steps_and_loses_none)
{
    struct dispatch *d = open_dispatch(2, 1, 4, 1000);
    const uint16_t routing[] = {0, 1, 2, 3};
    const struct dispatch_step *s[4];
    mem_fail_at(1);
    dispatch_start(d, 0, SLOT_DECODE, 0, routing, no_skip, 2);
    mem_fail_at(0);
    cr_expect_eq(take_sends(d, s, 4), 0);
    cr_expect_eq(dispatch_n_unsent(d, SLOT_DECODE), 4);
    cr_expect_eq(dispatch_next_timer_us(d), DISPATCH_NOMEM_RETRY_US);
    dispatch_tick(d, DISPATCH_NOMEM_RETRY_US);
    cr_expect_eq(take_sends(d, s, 4), 2);
    dispatch_close(d);
}

Test(dispatch, a_large_chunk_is_dispatched_in_well_under_a_millisecond)
{
    enum { ROWS = 512, K = 8, E = 64, N = 4, ROUNDS = 20 };
    static uint16_t routing[ROWS * K];
    static bool skip[ROWS];
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t k = 0; k < K; k++)
            routing[r * K + k] = (uint16_t)(k * 8 + rng_uniform(1, r * K + k, 0) * 8);
    struct placement *p;
    struct dispatch *d;
    struct dispatch_cfg cfg = {.n_nodes = N,
                               .row_bytes = 2304,
                               .result_bytes = 4096,
                               .piece_bytes = 256u << 10,
                               .bulk_outstanding = 2,
                               .min_silence_us = 250000};
    struct dispatch_shape shape = {.n_layers = 1,
                                   .n_experts = E,
                                   .top_k = K,
                                   .decode_slots = 1,
                                   .n_slots = 2,
                                   .max_rows = ROWS};
    cr_assert_eq(placement_spread(1, E, N, 2, 0, &p, NULL), ERR_OK);
    cr_assert_eq(dispatch_open(&cfg, &shape, p, &d, NULL), ERR_OK);
    for (uint32_t n = 0; n < N; n++)
        dispatch_node_up(d, 0, n, DISPATCH_BULK);
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t t0 = clock_now_us();
        dispatch_start(d, 0, 1, 0, routing, skip, ROWS);
        uint64_t t = clock_now_us() - t0;
        if (t < best) best = t;
        cr_assert_eq(dispatch_n_open(d, 1), ROWS * K);
        dispatch_drop(d, 0, 1);
    }
    fprintf(stderr, "512 rows x top 8 of 64 on 4 nodes: %llu us\n", (unsigned long long)best);
    cr_expect_lt(best, 1000 * 4, "a bound for sanitizers and busy machines");
    dispatch_close(d);
    placement_release(p);
}

Test(latency, percentiles_are_nearest_rank_over_the_last_256)
{
    struct latency l = {0};
    cr_expect_eq(latency_percentile(&l, 500), 0);
    for (uint64_t i = 0; i < 1000; i++)
        latency_add(&l, 5000000);
    for (uint64_t i = 1; i <= 256; i++)
        latency_add(&l, 257 - i);
    cr_expect_eq(latency_percentile(&l, 500), 128);
    cr_expect_eq(latency_percentile(&l, 990), 254);
    cr_expect_eq(latency_percentile(&l, 1000), 256);
}
