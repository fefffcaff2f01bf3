/* Too few KV blocks: the youngest gives way, the oldest goes on, and nobody can tell from the tokens. */
// links: engine
// sources: ../sim/rig.c ../sim/fake_model.c
#include <criterion/criterion.h>
#include <string.h>

#include "tests/sim/rig.h"

#define NEVER UINT64_MAX

static const bool moe[2] = {true, true};

static void open_tight_with(struct rig *r, uint32_t n_kv_blocks, uint32_t decode_slots,
                            uint32_t prefill_slots, uint32_t max_decode_rows)
{
    struct engine_cfg cfg = {
        .n_layers = 2,
        .n_experts = 4,
        .top_k = 2,
        .is_moe = moe,
        .ctx = 256,
        .n_kv_blocks = n_kv_blocks,
        .chunk = 64,
        .max_decode_rows = max_decode_rows,
        .decode_slots = decode_slots,
        .prefill_slots = prefill_slots,
        .max_running = 8,
        .max_waiting = 8,
        .dispatch = {.n_nodes = 1,
                     .row_bytes = 8,
                     .result_bytes = 8,
                     .piece_bytes = 4096,
                     .bulk_outstanding = 2,
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

static void open_tight(struct rig *r, uint32_t n_kv_blocks)
{
    open_tight_with(r, n_kv_blocks, 2, 1, 8);
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
    for (uint64_t i = 0; i < 4; i++)
        c[i] = rig_submit(&r, i + 1, 60, 150, i % 2 == 1, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    for (int i = 0; i < 4; i++) {
        cr_expect(c[i]->state == CLIENT_DONE && c[i]->n_told == 150, "client %d: %u tokens", i,
                  c[i]->n_told);
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
    while (a->n_told < 3)
        cr_assert_eq(rig_run(&r, 1), 1);
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

Test(engine_preemption, one_that_was_preempted_is_not_overtaken_by_one_that_came_later)
{
    struct rig r;
    open_tight(&r, 4);
    struct rig_client *a = rig_submit(&r, 1, 60, 120, false, NEVER, NULL);
    struct rig_client *b = rig_submit(&r, 2, 120, 60, false, NEVER, NULL);
    while (stats_of(&r).preemptions == 0 && a->state == CLIENT_WAITING) {
        if (a->n_told == 20 && r.n_clients == 2) rig_submit(&r, 3, 100, 20, false, NEVER, NULL);
        cr_assert_eq(rig_run(&r, 1), 1);
    }
    struct rig_client *c = &r.clients[2];
    cr_assert(a->state == CLIENT_WAITING && b->n_told > 0 && c->n_told == 0);
    while (c->n_told == 0)
        cr_assert_eq(rig_run(&r, 1), 1, "%s", r.wrong);
    cr_expect_eq(b->state, CLIENT_DONE);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    rig_close(&r);
}

Test(engine_preemption, an_older_one_that_reads_never_gives_way)
{
    struct rig r;
    open_tight_with(&r, 4, 1, 1, 1); /* of two that decode one always waits for its turn */
    struct rig_client *old[2] = {rig_submit(&r, 1, 30, 30, false, NEVER, NULL),
                                 rig_submit(&r, 2, 30, 30, false, NEVER, NULL)};
    struct rig_client *young = rig_submit(&r, 3, 200, 5, false, NEVER, NULL);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    cr_expect_eq(stats_of(&r).preemptions, 0);
    cr_expect(old[0]->n_told == 30 && old[1]->n_told == 30 && young->n_told == 5);
    cr_expect(old[0]->ended_us < young->ended_us || old[1]->ended_us < young->ended_us);
    rig_close(&r);
}

/* Jobs and answers of these slots only, until they wait for something else. */
static void run_slots(struct rig *r, uint32_t first, uint32_t last)
{
    for (bool more = true; more && r->wrong[0] == 0;) {
        more = false;
        for (uint32_t slot = first; slot <= last; slot++)
            if (r->has_job[slot]) {
                rig_compute(r, slot);
                more = true;
            }
        for (uint32_t i = 0; i < r->n_wire; i++)
            if (r->wire[i]->slot >= first && r->wire[i]->slot <= last) {
                rig_answer(r, r->wire[i]);
                more = true;
                break;
            }
    }
}

Test(engine_preemption, an_older_prompt_is_not_starved_by_a_younger_that_decodes)
{
    struct rig r;
    open_tight_with(&r, 4, 1, 2, 8);
    struct rig_client *old =
        rig_submit(&r, 1, 250, 2, false, NEVER, NULL); /* its first chunk is in slot 1 */
    struct rig_client *young = rig_submit(&r, 2, 60, 190, false, NEVER, NULL);
    run_slots(&r, 2, 2);
    while (young->n_told < 100) { /* it has taken the other three blocks */
        cr_assert(r.has_job[0] || r.n_wire > 0, "%s", r.wrong);
        if (r.has_job[0])
            rig_compute(&r, 0);
        else
            rig_answer(&r, r.wire[0]);
    }
    cr_assert(r.has_job[0] && r.job[0].begin);
    run_slots(&r, 1, 1); /* the chunk ends; there is no block for the next one */
    cr_assert(!r.has_job[1] && !r.has_job[2]);
    uint32_t told = young->n_told;
    for (int i = 0; i < 100 && !r.has_job[1]; i++) {
        if (r.has_job[0])
            rig_compute(&r, 0);
        else
            rig_answer(&r, r.wire[0]);
    }
    cr_expect(r.has_job[1] && r.job[1].begin, "the next chunk");
    cr_expect_eq(young->n_told, told + 1, "the young one ended its pass and entered no other");
    cr_expect_eq(stats_of(&r).preemptions, 1);
    cr_expect_lt(rig_run(&r, 100000), 100000);
    cr_expect(old->n_told == 2 && young->n_told == 190);
    cr_expect_eq(r.wrong[0], 0, "%s", r.wrong);
    rig_close(&r);
}
