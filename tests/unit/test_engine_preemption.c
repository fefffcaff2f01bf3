/* Too few KV blocks: the youngest gives way, the oldest goes on, and nobody can tell from the tokens. */
// links: engine
// sources: ../sim/rig.c ../sim/fake_model.c
#include <criterion/criterion.h>
#include <string.h>

#include "tests/sim/rig.h"

#define NEVER UINT64_MAX

static const bool moe[2] = {true, true};

static void open_tight(struct rig *r, uint32_t n_kv_blocks)
{
    struct engine_cfg cfg = {
        .n_layers = 2, .n_experts = 4, .top_k = 2, .is_moe = moe, .ctx = 256, .n_kv_blocks = n_kv_blocks,
        .chunk = 64, .max_decode_rows = 8, .decode_slots = 2, .prefill_slots = 1, .max_running = 8, .max_waiting = 8,
        .dispatch = {.n_nodes = 1, .row_bytes = 8, .result_bytes = 8, .piece_bytes = 4096, .bulk_outstanding = 2,
                     .min_silence_us = 250000},
    };
    struct placement *p;
    memset(r, 0, sizeof *r);
    r->eos = -1;
    cr_assert_eq(placement_spread(2, 4, 1, 1, 0, &p, NULL), ERR_OK);
    rig_open(r, &cfg, p, 7);
    placement_release(p);
    rig_node(r, 0, DISPATCH_DECODE, true);
    rig_node(r, 0, DISPATCH_BULK, true);
}

static struct engine_stats stats_of(struct rig *r)
{
    struct engine_stats st;
    engine_stats(r->engine, &st);
    return st;
}

Test(engine_preemption, the_tokens_are_the_same_and_the_oldest_ends_first)
{
    struct rig r;
    open_tight(&r, 4);
    struct rig_client *c[4];
    for (uint64_t i = 0; i < 4; i++) c[i] = rig_submit(&r, i + 1, 60, 150, i % 2 == 1, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    for (int i = 0; i < 4; i++) {
        cr_expect(c[i]->state == CLIENT_DONE && c[i]->n_told == 150, "client %d: %u tokens", i, c[i]->n_told);
        if (i > 0) cr_expect_leq(c[i - 1]->ended_us, c[i]->ended_us);
    }
    cr_expect_gt(stats_of(&r).preemptions, 2);
    cr_expect_eq(stats_of(&r).kv_blocks_used, 0);
    rig_close(&r);
}

Test(engine_preemption, it_costs_little_when_blocks_are_only_just_short)
{
    struct rig r;
    open_tight(&r, 5);
    rig_submit(&r, 1, 100, 100, false, NEVER, NULL);
    rig_submit(&r, 2, 100, 100, false, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    cr_expect(stats_of(&r).preemptions >= 1 && stats_of(&r).preemptions <= 2, "%llu",
              (unsigned long long)stats_of(&r).preemptions);
    rig_close(&r);
}

Test(engine_preemption, a_stopped_reader_gives_way_even_when_it_is_older)
{
    struct rig r;
    open_tight(&r, 4);
    struct rig_client *a = rig_submit(&r, 1, 120, 60, false, NEVER, NULL);
    while (a->n_told < 3) cr_assert_eq(rig_run(&r, 1), 1);
    rig_pause(&r, 1, true);
    struct rig_client *b = rig_submit(&r, 2, 100, 150, false, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(b->state, CLIENT_DONE);
    cr_expect_eq(stats_of(&r).preemptions, 1);
    rig_pause(&r, 1, false);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(a->n_told, 60);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    cr_expect_eq(stats_of(&r).kv_blocks_used, 0);
    rig_close(&r);
}

Test(engine_preemption, one_request_of_the_whole_context_fits)
{
    struct rig r;
    open_tight(&r, 4);
    struct rig_client *a = rig_submit(&r, 1, 56, 200, false, NEVER, NULL);
    struct rig_client *b = rig_submit(&r, 2, 200, 56, false, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    cr_expect(a->n_told == 200 && b->n_told == 56);
    rig_close(&r);
}
