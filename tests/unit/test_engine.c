/* The engine event by event: passes, replies in any order, leaving in every state, deadlines, pauses, prompt logits. */
// links: engine
// sources: ../sim/rig.c ../sim/fake_model.c
#include <criterion/criterion.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "tests/sim/rig.h"

#define SLOT_DECODE  0
#define SLOT_PREFILL 1
#define NEVER        UINT64_MAX

static const bool moe[4] = {true, true, true, true};

static struct engine_cfg small_cfg(void)
{
    return (struct engine_cfg){
        .n_layers = 2,
        .n_experts = 6,
        .top_k = 2,
        .is_moe = moe,
        .ctx = 256,
        .n_kv_blocks = 16,
        .chunk = 16,
        .max_decode_rows = 4,
        .decode_slots = 1,
        .prefill_slots = 1,
        .max_running = 8,
        .max_waiting = 4,
        .dispatch = {.n_nodes = 2,
                     .row_bytes = 8,
                     .result_bytes = 8,
                     .piece_bytes = 4096,
                     .bulk_outstanding = 2,
                     .min_silence_us = 250000},
    };
}

static void open_rig(struct rig *r, struct engine_cfg cfg, uint32_t replicas)
{
    struct placement *p;
    memset(r, 0, sizeof *r);
    r->eos = -1;
    cr_assert_eq(
        placement_spread(cfg.n_layers, cfg.n_experts, cfg.dispatch.n_nodes, replicas, 0, &p, NULL),
        ERR_OK);
    rig_open(r, &cfg, p, 42);
    placement_release(p);
    cr_assert_eq(r->wrong[0], 0, "%s", r->wrong);
    for (uint32_t n = 0; n < cfg.dispatch.n_nodes; n++) {
        rig_node(r, n, DISPATCH_DECODE, true);
        rig_node(r, n, DISPATCH_BULK, true);
    }
}

static struct engine_stats stats_of(struct rig *r)
{
    struct engine_stats st;
    engine_stats(r->engine, &st);
    return st;
}

static void close_rig(struct rig *r)
{
    cr_expect_eq(r->wrong[0], 0, "%s", r->wrong);
    rig_close(r);
}

/* Everybody has gone: nothing may be left. */
static void close_idle_rig(struct rig *r)
{
    struct engine_stats st = stats_of(r);
    cr_expect(st.kv_blocks_used == 0 && st.passes == 0 && st.running == 0 && st.waiting == 0,
              "left: %u blocks, %u passes, %u running, %u waiting", st.kv_blocks_used, st.passes,
              st.running, st.waiting);
    close_rig(r);
}

static void run_to_the_end(struct rig *r)
{
    cr_expect_lt(rig_run(r, 100000), 100000);
    cr_assert_eq(r->wrong[0], 0, "%s", r->wrong);
}

/* Until the decode slot waits for replies. */
static void run_until_decode_is_sent(struct rig *r)
{
    for (int i = 0; i < 1000; i++) {
        for (uint32_t m = 0; m < r->n_wire; m++)
            if (r->wire[m]->slot == SLOT_DECODE) return;
        cr_assert_eq(rig_run(r, 1), 1, "no decode pass came: %s", r->wrong);
    }
}

Test(engine, one_request_gives_the_tokens_of_the_model)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *c = rig_submit(&r, 1, 50, 10, false, NEVER, NULL);
    cr_assert_not_null(c);
    run_to_the_end(&r);
    cr_expect(c->state == CLIENT_DONE && c->n_told == 10 && c->reason == ENGINE_FINISH_LENGTH);
    struct engine_stats st = stats_of(&r);
    cr_expect_eq(st.tokens_prefilled, 50);
    cr_expect_eq(st.tokens_decoded, 10);
    close_idle_rig(&r);
}

Test(engine, two_passes_advance_with_replies_out_of_order)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *a = rig_submit(&r, 1, 5, 6, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    struct rig_client *b = rig_submit(&r, 2, 40, 6, false, NEVER, NULL);
    cr_assert(r.has_job[SLOT_PREFILL]);
    rig_compute(&r, SLOT_PREFILL);
    bool both = false;
    while (r.wrong[0] == 0) { /* the youngest answer first, jobs only when nothing is on the wire */
        uint32_t decode = 0, prefill = 0;
        for (uint32_t i = 0; i < r.n_wire; i++)
            *(r.wire[i]->slot == SLOT_DECODE ? &decode : &prefill) += 1;
        both |= decode > 0 && prefill > 0;
        if (r.n_wire > 0)
            rig_answer(&r, r.wire[r.n_wire - 1]);
        else if (r.has_job[SLOT_PREFILL])
            rig_compute(&r, SLOT_PREFILL);
        else if (r.has_job[SLOT_DECODE])
            rig_compute(&r, SLOT_DECODE);
        else
            break;
    }
    cr_expect(both, "both passes had steps under way");
    cr_expect(a->state == CLIENT_DONE && b->state == CLIENT_DONE);
    close_idle_rig(&r);
}

Test(engine, decoding_does_not_wait_for_a_prompt)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *a = rig_submit(&r, 1, 5, 8, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    rig_submit(&r, 2, 100, 1, false, NEVER, NULL);
    while (a->state == CLIENT_WAITING &&
           r.wrong[0] == 0) { /* the prompt's job never gets its turn */
        if (r.has_job[SLOT_DECODE])
            rig_compute(&r, SLOT_DECODE);
        else
            rig_answer(&r, r.wire[0]);
    }
    cr_expect_eq(a->n_told, 8);
    cr_expect(r.has_job[SLOT_PREFILL]);
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, several_prompts_share_a_prefill_pass)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_submit(&r, 9, 3, 0, false, NEVER, NULL); /* occupies the slot while the others queue */
    rig_submit(&r, 1, 6, 1, false, NEVER, NULL);
    rig_submit(&r, 2, 6, 1, false, NEVER, NULL);
    rig_submit(&r, 3, 30, 1, false, NEVER, NULL);
    while (rig_find(&r, 9) != NULL)
        cr_assert_eq(rig_run(&r, 1), 1);
    uint32_t n;
    const struct engine_row *rows = engine_rows(r.engine, SLOT_PREFILL, &n);
    cr_assert_eq(n, 16);
    cr_expect(rows[0].sequence == 1 && rows[5].sequence == 1 && rows[6].sequence == 2 &&
              rows[12].sequence == 3);
    cr_expect(rows[5].samples && rows[5].wants_logits && !rows[4].wants_logits &&
              !rows[15].wants_logits);
    cr_expect_eq(rows[15].position, 3);
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, decode_rows_are_taken_in_turn_when_not_all_fit)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.max_decode_rows = 2;
    open_rig(&r, cfg, 1);
    struct rig_client *c[4];
    for (uint64_t i = 0; i < 4; i++)
        c[i] = rig_submit(&r, i + 1, 4, 30, false, NEVER, NULL);
    for (int i = 0; i < 100000 && c[0]->n_told < 25; i++)
        cr_assert_eq(rig_run(&r, 1), 1);
    for (int i = 1; i < 4; i++)
        cr_expect_geq(c[i]->n_told, 20, "client %d got %u tokens", i, c[i]->n_told);
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, eos_ends_a_request_unless_it_is_ignored)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    open_rig(&r, cfg, 1);
    struct rig_client *c = rig_submit(&r, 1, 9, 20, false, NEVER, NULL);
    int32_t eos = c->truth[4];
    uint32_t at = 0;
    while (c->truth[at] != eos)
        at++;
    run_to_the_end(&r);
    rig_close(&r);

    struct placement *p;
    memset(&r, 0, sizeof r);
    r.eos = eos;
    cr_assert_eq(placement_spread(2, 6, 2, 1, 0, &p, NULL), ERR_OK);
    rig_open(&r, &cfg, p, 42);
    placement_release(p);
    for (uint32_t n = 0; n < 2; n++) {
        rig_node(&r, n, DISPATCH_DECODE, true);
        rig_node(&r, n, DISPATCH_BULK, true);
    }
    c = rig_submit(&r, 1, 9, 20, false, NEVER, NULL);
    run_to_the_end(&r);
    cr_expect_eq(c->reason, ENGINE_FINISH_EOS);
    cr_expect_eq(c->n_told, at + 1, "the eos token is told too");
    close_idle_rig(&r);
}

Test(engine, prompt_logits_come_once_each_in_order_and_zero_tokens_end_after_the_prompt)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.prefill_logit_rows = 5;
    open_rig(&r, cfg, 1);
    struct rig_client *a = rig_submit(&r, 1, 37, 3, true, NEVER, NULL);
    struct rig_client *b = rig_submit(&r, 2, 20, 0, true, NEVER, NULL);
    struct rig_client *c = rig_submit(&r, 3, 20, 0, false, NEVER, NULL);
    run_to_the_end(&r);
    cr_expect(a->n_prompt_told == 37 && a->n_told == 3 && a->state == CLIENT_DONE);
    cr_expect(b->n_prompt_told == 20 && b->n_told == 0 && b->reason == ENGINE_FINISH_LENGTH);
    cr_expect(c->n_prompt_told == 0 && c->n_told == 0 && c->state == CLIENT_DONE);
    close_idle_rig(&r);
}

/* Long rope: what was computed for a short sequence does not fit a long one. */
Test(engine, a_sequence_that_grows_past_the_rope_length_is_computed_anew)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.rope_length = 24;
    open_rig(&r, cfg, 1);
    struct rig_client *grows = rig_submit(&r, 1, 20, 12, true, NEVER, NULL);
    struct rig_client *is_long = rig_submit(&r, 2, 25, 4, false, NEVER, NULL);
    struct rig_client *stays = rig_submit(&r, 3, 20, 4, false, NEVER, NULL);
    run_to_the_end(&r);
    cr_expect(grows->n_told == 12 && is_long->n_told == 4 && stays->n_told == 4);
    cr_expect_eq(grows->n_prompt_told, 20u, "the prompt's logits are told once");
    struct engine_stats st = stats_of(&r);
    cr_expect_eq(st.tokens_prefilled, 20u + 25 + 25 + 20, "20 tokens and, grown to 25, all again");
    close_idle_rig(&r);
}

Test(engine, an_encoder_sees_the_prompt_in_one_pass_and_the_decoder_goes_on_from_it)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.n_layers = 4;
    cfg.n_encoder_layers = 2;
    open_rig(&r, cfg, 1);
    struct rig_client *a = rig_submit(&r, 1, 13, 6, false, NEVER, NULL);
    struct rig_client *b =
        rig_submit(&r, 2, 17, 5, false, NEVER, NULL); /* 16 rows: a whole chunk */
    run_to_the_end(&r);
    cr_expect(a->n_told == 6 && b->n_told == 5);
    struct err why;
    cr_expect_null(rig_submit(&r, 3, 18, 1, false, NEVER, &why));
    cr_expect(why.code == ERR_CONTEXT && strstr(why.text, "17") && strstr(why.text, "16"), "%s",
              why.text);
    cr_expect_null(rig_submit(&r, 3, 9, 1, true, NEVER, &why));
    cr_expect(why.code == ERR_INVALID && strstr(why.text, "log-prob"), "%s", why.text);
    cr_expect_null(rig_submit(&r, 3, 1, 1, false, NEVER, &why));
    cr_expect_eq(why.code, ERR_INVALID);
    close_idle_rig(&r);
}

Test(engine, dense_layers_are_one_job_and_a_dense_model_one_job_per_pass)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    const bool mixed[4] = {false, false, true, false};
    cfg.n_layers = 4;
    cfg.is_moe = mixed;
    open_rig(&r, cfg, 1);
    struct rig_client *c = rig_submit(&r, 1, 6, 4, false, NEVER, NULL);
    cr_expect(r.job[SLOT_PREFILL].begin && r.job[SLOT_PREFILL].first_layer == 0 &&
              r.job[SLOT_PREFILL].last_layer == 2 && r.job[SLOT_PREFILL].combine_layer == -1 &&
              !r.job[SLOT_PREFILL].head);
    rig_compute(&r, SLOT_PREFILL);
    while (r.n_wire > 0)
        rig_answer(&r, r.wire[0]);
    cr_expect(!r.job[SLOT_PREFILL].begin && r.job[SLOT_PREFILL].first_layer == 3 &&
              r.job[SLOT_PREFILL].last_layer == 3 && r.job[SLOT_PREFILL].combine_layer == 2 &&
              r.job[SLOT_PREFILL].head);
    run_to_the_end(&r);
    cr_expect_eq(c->n_told, 4);
    close_idle_rig(&r);

    const bool dense[4] = {false, false, false, false};
    cfg.is_moe = dense;
    cfg.n_experts = cfg.top_k = 0;
    open_rig(&r, cfg, 1);
    c = rig_submit(&r, 1, 6, 4, false, NEVER, NULL);
    cr_expect(r.job[SLOT_PREFILL].first_layer == 0 && r.job[SLOT_PREFILL].last_layer == 3 &&
              r.job[SLOT_PREFILL].head);
    cr_expect_eq(rig_run(&r, 100), 4, "one job per token: the first comes with the prompt");
    cr_expect_eq(c->n_told, 4);
    close_idle_rig(&r);
}

Test(engine, every_row_has_its_experts_in_the_last_layer_too)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_submit(&r, 1, 17, 1, false, NEVER, NULL);
    rig_compute(&r, SLOT_PREFILL); /* layer 0 of rows 0..15 */
    while (r.n_wire > 0)
        rig_answer(&r, r.wire[0]);
    rig_compute(&r,
                SLOT_PREFILL); /* layer 1: nobody reads these rows, but rows served must add up */
    cr_expect_gt(r.n_wire, 0);
    while (r.n_wire > 0)
        rig_answer(&r, r.wire[0]);
    cr_expect(r.has_job[SLOT_PREFILL] && r.job[SLOT_PREFILL].begin, "the next chunk");
    run_to_the_end(&r);
    close_idle_rig(&r);
}

/* ---- leaving ----------------------------------------------------------------------------------- */

Test(engine, cancel_while_waiting)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.max_running = 1;
    open_rig(&r, cfg, 1);
    rig_submit(&r, 1, 10, 2, false, NEVER, NULL);
    rig_submit(&r, 2, 10, 2, false, NEVER, NULL);
    cr_expect_eq(stats_of(&r).waiting, 1);
    rig_cancel(&r, 2);
    cr_expect_eq(stats_of(&r).waiting, 0);
    rig_cancel(&r, 2); /* gone: nothing happens */
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, cancel_while_a_prompt_is_computed)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_submit(&r, 1, 10, 2, false, NEVER, NULL);
    rig_cancel(&r, 1);
    cr_expect_gt(stats_of(&r).kv_blocks_used, 0, "the job still writes there");
    rig_submit(&r, 1, 12, 3, false, NEVER, NULL); /* the name is free at once */
    rig_compute(&r, SLOT_PREFILL);
    cr_expect_eq(r.n_wire, 0);
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, cancel_while_replies_are_due_drops_the_pass)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_submit(&r, 1, 10, 2, false, NEVER, NULL);
    rig_compute(&r, SLOT_PREFILL);
    cr_assert_gt(r.n_wire, 0);
    rig_cancel(&r, 1);
    cr_expect_eq(stats_of(&r).passes, 0);
    cr_expect_eq(stats_of(&r).kv_blocks_used, 0);
    for (uint32_t i = 0; i < r.n_wire; i++)
        cr_expect_null(engine_find_step(r.engine, r.wire[i]->step));
    while (r.n_wire > 0)
        rig_answer(&r, r.wire[0]); /* late: nobody minds */
    close_idle_rig(&r);
}

Test(engine, cancel_one_of_two_leaves_the_other_its_tokens)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *a = rig_submit(&r, 1, 5, 12, false, NEVER, NULL);
    struct rig_client *b = rig_submit(&r, 2, 5, 12, false, NEVER, NULL);
    uint32_t n = 0;
    while (n != 2) {
        cr_assert_eq(rig_run(&r, 1), 1);
        engine_rows(r.engine, SLOT_DECODE, &n);
    }
    while (r.n_wire == 0)
        cr_assert_eq(rig_run(&r, 1), 1);
    rig_cancel(&r, 1);
    rig_submit(&r, 3, 30, 3, false, NEVER,
               NULL); /* must not get the blocks of 1 while the pass writes to them */
    run_to_the_end(&r);
    cr_expect(a->state == CLIENT_CANCELLED && b->state == CLIENT_DONE && b->n_told == 12);
    close_idle_rig(&r);
}

Test(engine, cancel_while_waiting_for_experts)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_node(&r, 0, DISPATCH_BULK, false);
    rig_node(&r, 1, DISPATCH_BULK, false);
    rig_submit(&r, 1, 10, 2, false, NEVER, NULL);
    rig_compute(&r, SLOT_PREFILL);
    cr_expect_eq(stats_of(&r).passes_waiting_for_experts, 1);
    rig_cancel(&r, 1);
    cr_expect_eq(stats_of(&r).passes, 0);
    close_idle_rig(&r);
}

/* ---- nodes ------------------------------------------------------------------------------------- */

Test(engine, a_lost_node_in_the_middle_costs_no_token)
{
    struct rig r;
    open_rig(&r, small_cfg(), 2);
    struct rig_client *c = rig_submit(&r, 1, 40, 8, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    uint32_t node = r.wire[0]->node;
    rig_node(&r, node, DISPATCH_DECODE, false);
    rig_node(&r, node, DISPATCH_BULK, false);
    cr_assert_gt(r.n_wire, 0);
    cr_expect(r.wire[r.n_wire - 1]->is_replay);
    run_to_the_end(&r);
    cr_expect_eq(c->n_told, 8);
    cr_expect_gt(dispatch_replays(engine_dispatch(r.engine)), 0);
    close_idle_rig(&r);
}

Test(engine, without_a_replica_a_pass_waits_and_goes_on_when_the_node_is_back)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *c = rig_submit(&r, 1, 40, 8, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    for (uint32_t n = 0; n < 2; n++)
        rig_node(&r, n, DISPATCH_DECODE, false);
    cr_expect_eq(rig_run(&r, 100), 0);
    cr_expect_eq(stats_of(&r).passes_waiting_for_experts, 1);
    rig_tick(&r, r.now_us + 5000000);
    cr_expect_eq(rig_run(&r, 100), 0);
    for (uint32_t n = 0; n < 2; n++)
        rig_node(&r, n, DISPATCH_DECODE, true);
    cr_expect_eq(stats_of(&r).passes_waiting_for_experts, 0);
    run_to_the_end(&r);
    cr_expect_eq(c->n_told, 8);
    close_idle_rig(&r);
}

Test(engine, at_the_deadline_missing_experts_are_one_retriable_error)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *c = rig_submit(&r, 1, 40, 8, false, 3000000, NULL);
    run_until_decode_is_sent(&r);
    for (uint32_t n = 0; n < 2; n++)
        rig_node(&r, n, DISPATCH_DECODE, false);
    cr_expect_eq(engine_next_timer_us(r.engine) <= 3000000, true);
    rig_tick(&r, 2999999);
    cr_expect_eq(c->state, CLIENT_WAITING);
    rig_tick(&r, 3000000);
    cr_expect(c->state == CLIENT_FAILED && c->code == ERR_UNAVAILABLE && err_retriable(c->code));
    cr_expect(strncmp(c->text, "no node holds expert ", 21) == 0, "%s", c->text);
    close_idle_rig(&r);
}

Test(engine, at_the_deadline_a_slow_node_is_named)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *c = rig_submit(&r, 1, 4, 8, false, 3000000, NULL);
    rig_compute(&r, SLOT_PREFILL);
    rig_tick(&r, 3000000);
    cr_expect(c->state == CLIENT_FAILED && c->code == ERR_TIMEOUT);
    cr_expect(strstr(c->text, "waiting for node"), "%s", c->text);
    close_idle_rig(&r);
}

Test(engine, bulk_pieces_of_a_node_under_way_never_exceed_two)
{
    struct rig r;
    struct engine_cfg cfg = small_cfg();
    cfg.dispatch.piece_bytes = 24;
    cfg.prefill_slots = 2;
    open_rig(&r, cfg, 2);
    rig_submit(&r, 1, 60, 2, false, NEVER, NULL);
    rig_submit(&r, 2, 60, 2, false, NEVER, NULL);
    run_to_the_end(&r);
    cr_expect_eq(r.most_bulk, 2);
    close_idle_rig(&r);
}

Test(engine, a_row_that_is_not_finite_fails_its_request_only)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *a = rig_submit(&r, 1, 5, 5, false, NEVER, NULL);
    struct rig_client *b = rig_submit(&r, 2, 5, 5, false, NEVER, NULL);
    uint32_t n = 0;
    while (n != 2) {
        cr_assert_eq(rig_run(&r, 1), 1);
        engine_rows(r.engine, SLOT_DECODE, &n);
    }
    r.bad_row_layer = 1;
    run_to_the_end(&r);
    struct rig_client *bad = a->state == CLIENT_FAILED ? a : b, *good = bad == a ? b : a;
    cr_expect(bad->state == CLIENT_FAILED && bad->code == ERR_INTERNAL);
    cr_expect(strncmp(bad->text, "not finite at layer 1", 21) == 0, "%s", bad->text);
    cr_expect(good->state == CLIENT_DONE && good->n_told == 5);
    close_idle_rig(&r);
}

/* ---- clients ----------------------------------------------------------------------------------- */

Test(engine, a_paused_request_gets_no_token_until_it_is_resumed)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    struct rig_client *c = rig_submit(&r, 1, 5, 9, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    rig_pause(&r, 1, true);
    run_to_the_end(&r); /* the pass under way ends */
    uint32_t told = c->n_told;
    cr_expect(told > 0 && told < 9);
    cr_expect_eq(stats_of(&r).paused, 1);
    rig_tick(&r, r.now_us + 1000000);
    cr_expect_eq(rig_run(&r, 10), 0);
    rig_pause(&r, 1, false);
    run_to_the_end(&r);
    cr_expect_eq(c->n_told, 9);
    close_idle_rig(&r);
}

Test(engine, a_full_queue_and_a_bad_request_are_refused_with_numbers)
{
    struct rig r;
    struct err why;
    struct engine_cfg cfg = small_cfg();
    cfg.max_running = 1;
    open_rig(&r, cfg, 1);
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_not_null(rig_submit(&r, i, 5, 2, false, NEVER, NULL));
    cr_expect_null(rig_submit(&r, 6, 5, 2, false, NEVER, &why));
    cr_expect_eq(why.code, ERR_EXHAUSTED);
    cr_expect(strstr(why.text, "4"), "%s", why.text);
    cr_expect_null(rig_submit(&r, 7, 200, 57, false, NEVER, &why));
    cr_expect_eq(why.code, ERR_CONTEXT);
    cr_expect(strstr(why.text, "257") && strstr(why.text, "256"), "%s", why.text);
    cr_expect_null(rig_submit(&r, 8, 0, 3, false, NEVER, &why));
    cr_expect_eq(why.code, ERR_INVALID);
    cr_expect_eq(stats_of(&r).waiting, 4);
    run_to_the_end(&r);
    close_idle_rig(&r);
}

Test(engine, a_submission_without_memory_changes_nothing)
{
    struct rig r;
    struct err why;
    open_rig(&r, small_cfg(), 1);
    r.starve_memory = true;
    cr_expect_null(rig_submit(&r, 1, 5, 2, false, NEVER, &why));
    cr_expect_eq(why.code, ERR_EXHAUSTED);
    r.starve_memory = false;
    struct rig_client *c = rig_submit(&r, 1, 5, 2, false, NEVER, &why);
    run_to_the_end(&r);
    cr_expect_eq(c->n_told, 2);
    close_idle_rig(&r);
}

Test(engine, open_fails_cleanly_at_every_allocation_and_names_bad_settings)
{
    struct engine_cfg cfg = small_cfg();
    struct placement *p;
    struct engine *e;
    struct err why;
    cr_assert_eq(placement_spread(2, 6, 2, 1, 0, &p, NULL), ERR_OK);
    cfg.placement = p;
    enum err_code rc = ERR_EXHAUSTED;
    for (uint64_t n = 1; rc != ERR_OK; n++) {
        cr_assert_lt(n, 1000);
        mem_fail_at(n);
        rc = engine_open(&cfg, &e, &why);
        mem_fail_at(0);
        cr_expect(rc == ERR_OK || rc == ERR_EXHAUSTED, "%s", why.text);
    }
    engine_close(e);
    cfg.n_kv_blocks = 3;
    cr_expect_eq(engine_open(&cfg, &e, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "256") && strstr(why.text, "3"), "%s", why.text);
    placement_release(p);
}

/* One setting too small or too large: refused. Its neighbor that is allowed: taken. */
Test(engine, every_setting_has_bounds)
{
    static const struct {
        size_t field;
        uint32_t bad, good;
    } settings[] = {
#define SETTING(name, bad, good) {offsetof(struct engine_cfg, name), bad, good}
        SETTING(n_layers, 0, 2),
        SETTING(n_layers, LIMIT_LAYERS + 1, 2),
        SETTING(ctx, 0, 1),
        SETTING(ctx, LIMIT_CONTEXT + 1, 256),
        SETTING(ctx, 16 * 64 + 1, 16 * 64),
        SETTING(chunk, 0, 1),
        SETTING(chunk, (1u << 20) + 1, 16),
        SETTING(max_decode_rows, 0, 1),
        SETTING(max_decode_rows, (1u << 20) + 1, 16),
        SETTING(decode_slots, 0, 1),
        SETTING(decode_slots, LIMIT_LAYERS + 1, LIMIT_LAYERS),
        SETTING(prefill_slots, 0, 1),
        SETTING(prefill_slots, LIMIT_LAYERS + 1, LIMIT_LAYERS),
        SETTING(max_running, 0, 1),
        SETTING(max_running, (1u << 20) + 1, 16),
        SETTING(max_waiting, 0, 1),
        SETTING(max_waiting, (1u << 20) + 1, 16),
        SETTING(n_encoder_layers, 2, 1),
#undef SETTING
    };
    struct placement *p;
    struct engine *e;
    struct err why;
    cr_assert_eq(placement_spread(2, 6, 2, 1, 0, &p, NULL), ERR_OK);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        struct engine_cfg cfg = small_cfg();
        cfg.placement = p;
        char *field = (char *)&cfg + settings[i].field;
        memcpy(field, &settings[i].bad, sizeof settings[i].bad);
        cr_expect_eq(engine_open(&cfg, &e, &why), ERR_INVALID, "setting %zu: %u", i,
                     settings[i].bad);
        memcpy(field, &settings[i].good, sizeof settings[i].good);
        cr_assert_eq(engine_open(&cfg, &e, &why), ERR_OK, "setting %zu: %s", i, why.text);
        engine_close(e);
    }
    placement_release(p);

    static const bool none[LIMIT_LAYERS];
    struct engine_cfg cfg = small_cfg();
    cfg.n_layers = LIMIT_LAYERS;
    cfg.is_moe = none;
    cfg.ctx = LIMIT_CONTEXT;
    cfg.n_kv_blocks = (LIMIT_CONTEXT + 63) / 64;
    cr_assert_eq(placement_spread(LIMIT_LAYERS, 6, 2, 1, 0, &cfg.placement, NULL), ERR_OK);
    cr_assert_eq(engine_open(&cfg, &e, &why), ERR_OK, "%s", why.text);
    engine_close(e);
    placement_release(cfg.placement);
}

Test(engine, closing_in_the_middle_leaks_nothing)
{
    struct rig r;
    open_rig(&r, small_cfg(), 1);
    rig_submit(&r, 1, 40, 8, false, NEVER, NULL);
    rig_submit(&r, 2, 4, 8, false, NEVER, NULL);
    rig_submit(&r, 3, 4, 8, false, NEVER, NULL);
    run_until_decode_is_sent(&r);
    rig_run(&r, 1);
    rig_cancel(&r, 2);
    close_rig(&r);
}
