#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/rng.h"
#include "tests/sim/sim_parts.h"

#define STUCK_AFTER_US 2000000000u
#define WAIT_US        20000000u
#define MAX_EVENTS     400000u

uint64_t sim_draw(struct sim *s, uint64_t lo, uint64_t hi)
{
    return lo + (uint64_t)(rng_uniform(s->seed, s->draws++, 77) * (double)(hi - lo + 1));
}

bool sim_chance(struct sim *s, uint32_t percent)
{
    return sim_draw(s, 0, 99) < percent;
}

static bool before(const struct happening *a, const struct happening *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_plan(struct sim *s, struct happening h)
{
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap == 0 ? 256 : 2 * s->cap_heap;
        s->heap = realloc(s->heap, s->cap_heap * sizeof *s->heap);
        if (s->heap == NULL) abort();
    }
    uint32_t i = s->n_heap++;
    h.order = s->planned++;
    for (; i > 0 && before(&h, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = h;
}

static struct happening next_happening(struct sim *s)
{
    struct happening first = s->heap[0], last = s->heap[--s->n_heap];
    uint32_t i = 0;
    while (2 * i + 1 < s->n_heap) {
        uint32_t child = 2 * i + 1;
        if (child + 1 < s->n_heap && before(&s->heap[child + 1], &s->heap[child])) child++;
        if (!before(&s->heap[child], &last)) break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return first;
}

static void on_job(void *ctx, uint32_t slot)
{
    struct sim *s = ctx;
    sim_plan(s, (struct happening){
                    .at = s->rig.now_us + sim_draw(s, 20, 400), .what = DO_JOB, .a = slot});
}

/* ---- clients ----------------------------------------------------------------------------------- */

static void submit(struct sim *s)
{
    const struct engine_cfg *c = &s->rig.cfg;
    uint32_t longest = sim_chance(s, 30) ? c->ctx - 1 : (c->ctx - 1) / 3 + 1;
    uint32_t n_prompt = (uint32_t)sim_draw(s, 1, longest);
    if (c->n_encoder_layers > 0) { /* at least one token for each side; the encoder's in one pass */
        if (n_prompt > c->chunk + 1) n_prompt = c->chunk + 1;
        if (n_prompt < 2) n_prompt = 2;
    }
    uint32_t room = c->ctx - n_prompt;
    uint32_t most = sim_chance(s, s->tight ? 80 : 20) ? 90 : 20;
    uint32_t max_tokens = (uint32_t)sim_draw(s, 0, room < most ? room : most);
    uint64_t deadline =
        s->rig.now_us + (s->far_deadlines ? 1000000000u : sim_draw(s, 50000, 6000000));
    bool prompt_logits = c->n_encoder_layers == 0 && sim_chance(s, 25);
    /* A name is free again as soon as its request has ended. */
    uint64_t id = s->next_id;
    if (s->rig.n_clients > 0 && sim_chance(s, 30))
        id = s->rig.clients[sim_draw(s, 0, s->rig.n_clients - 1)].id;
    if (rig_find(&s->rig, id) != NULL) id = s->next_id;
    if (id == s->next_id) s->next_id++;
    struct err why;
    if (rig_submit(&s->rig, id, n_prompt, max_tokens, prompt_logits, deadline, &why) != NULL) {
        SIM_COUNT(s, SUBMITTED);
        s->n_submitted++;
    } else if (why.code != ERR_EXHAUSTED) {
        rig_fail(&s->rig, "submit: %s", why.text);
    } else {
        SIM_COUNT(s, REFUSED);
        s->n_submitted++; /* given up */
    }
}

static void do_client(struct sim *s)
{
    struct rig *r = &s->rig;
    uint64_t waiting[RIG_MAX_CLIENTS], n = 0;
    for (uint32_t i = 0; i < r->n_clients; i++)
        if (r->clients[i].state == CLIENT_WAITING) waiting[n++] = r->clients[i].id;
    uint64_t who = n > 0 ? waiting[sim_draw(s, 0, n - 1)] : 0;
    bool faults = r->now_us < FAULTS_UNTIL_US;
    uint64_t kind = sim_draw(s, 0, 9);
    if (s->n_submitted < s->n_submits && (kind < 6 || n == 0))
        submit(s);
    else if (n > 0 && kind == 6 && faults)
        rig_cancel(r, who);
    else if (n > 0 && kind == 7 && faults) {
        SIM_COUNT(s, PAUSED);
        rig_pause(r, who, true);
    } else if (!faults)
        for (uint64_t i = 0; i < n; i++) {
            if (rig_find(r, waiting[i])->paused) rig_pause(r, waiting[i], false);
        }
    else if (n > 0)
        rig_pause(r, who, false);
    if (s->n_submitted < s->n_submits || faults || n > 0) {
        bool burst = sim_chance(s, 50);
        uint64_t after = burst ? sim_draw(s, 0, 3000) : sim_draw(s, 1000, 700000);
        sim_plan(s, (struct happening){.at = r->now_us + after, .what = DO_CLIENT});
    }
}

/* ---- the world --------------------------------------------------------------------------------- */

static void draw_world(struct sim *s, struct engine_cfg *c, bool is_moe[FAKE_MAX_LAYERS])
{
    bool dense = sim_chance(s, 5);
    c->n_layers = (uint32_t)sim_draw(s, 1, 4);
    c->n_experts = dense ? 0 : (uint32_t)sim_draw(s, 2, 12);
    c->top_k = dense ? 0 : (uint32_t)sim_draw(s, 1, c->n_experts < 3 ? c->n_experts : 3);
    for (uint32_t i = 0; i < c->n_layers; i++)
        is_moe[i] = !dense && !sim_chance(s, 30);
    c->is_moe = is_moe;
    uint32_t most = sim_chance(s, 30) ? 400 : 200;
    s->tight = sim_chance(s, 30);
    c->ctx = (uint32_t)sim_draw(s, s->tight ? 130 : 20, most);
    if (sim_chance(s, 25)) c->rope_length = (uint32_t)sim_draw(s, 1, c->ctx);
    bool encodes = c->n_layers > 1 && c->rope_length == 0 && sim_chance(s, 25);
    if (encodes) c->n_encoder_layers = (uint32_t)sim_draw(s, 1, c->n_layers - 1);
    c->n_kv_blocks =
        (c->ctx + 63) / 64 +
        (uint32_t)(s->tight || sim_chance(s, 60) ? sim_draw(s, 0, 2) : sim_draw(s, 0, 30));
    most = sim_chance(s, 50) ? 20 : 130;
    c->chunk = (uint32_t)sim_draw(s, 1, most);
    c->max_decode_rows = (uint32_t)sim_draw(s, 1, 8);
    c->prefill_logit_rows = sim_chance(s, 50) ? 0 : (uint32_t)sim_draw(s, 1, 9);
    c->decode_slots = (uint32_t)sim_draw(s, 1, 3);
    c->prefill_slots = (uint32_t)sim_draw(s, 1, 3);
    c->max_running = (uint32_t)sim_draw(s, s->tight ? 3 : 1, 10);
    c->max_waiting = (uint32_t)sim_draw(s, 1, 12);
    s->n_nodes = (uint32_t)sim_draw(s, 1, 4);
    c->dispatch = (struct dispatch_cfg){
        .n_nodes = s->n_nodes,
        .piece_bytes = (uint32_t)sim_draw(s, 16, 2000),
        .bulk_outstanding = 2,
        .min_silence_us = 250000,
    };
    c->dispatch.row_bytes = (uint32_t)sim_draw(s, 8, 200);
    c->dispatch.result_bytes = (uint32_t)sim_draw(s, 8, 200);
}

/* The first lines of the story. */
static void tell_world(struct sim *s, uint32_t replicas)
{
    const struct engine_cfg *c = &s->rig.cfg;
    struct buf *t = s->rig.trace;
    buf_printf(t, "The world of seed %llu: %u node%s, each expert on %u of them; %u request%s.\n",
               (unsigned long long)s->seed, s->n_nodes, s->n_nodes == 1 ? "" : "s", replicas,
               s->n_submits, s->n_submits == 1 ? "" : "s");
    buf_printf(t, "The model: %u layer(s), %u experts of which a token sees %u, in layers",
               c->n_layers, c->n_experts, c->top_k);
    const char *comma = "";
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (!s->rig.model.is_moe[i]) continue;
        buf_printf(t, "%s %u", comma, i);
        comma = ",";
    }
    if (c->n_encoder_layers > 0)
        buf_printf(t, "; the first %u layers are an encoder", c->n_encoder_layers);
    if (c->rope_length > 0) buf_printf(t, "; its long rope begins after %u tokens", c->rope_length);
    if (s->rig.eos >= 0) buf_printf(t, "; token %d ends a text", (int)s->rig.eos);
    buf_printf(t, ".\n");
    buf_printf(
        t,
        "The engine: slots 0 to %u for decode (%u rows), %u to %u for prompts (%u rows); context %u, "
        "%u KV blocks of %u tokens; %u requests run, %u wait.\n",
        c->decode_slots - 1, c->max_decode_rows, c->decode_slots,
        c->decode_slots + c->prefill_slots - 1, c->chunk, c->ctx, c->n_kv_blocks,
        ENGINE_KV_BLOCK_TOKENS, c->max_running, c->max_waiting);
    buf_printf(t, "Deadlines are %s%s. Until %.0f ms things go wrong.\n",
               s->far_deadlines ? "far: nobody may fail" : "near",
               s->short_memory ? "; the engine's allocations fail now and then" : "",
               (double)FAULTS_UNTIL_US / 1000.0);
}

static void check_end(struct sim *s)
{
    struct rig *r = &s->rig;
    struct engine_stats st;
    engine_stats(r->engine, &st);
    if (st.kv_blocks_used != 0 || st.passes != 0 || st.running != 0 || st.waiting != 0)
        rig_fail(r, "left over: %u KV blocks, %u passes, %u running, %u waiting", st.kv_blocks_used,
                 st.passes, st.running, st.waiting);
    if (r->most_bulk > r->cfg.dispatch.bulk_outstanding)
        rig_fail(r, "%u bulk pieces of one node under way, %u allowed", r->most_bulk,
                 r->cfg.dispatch.bulk_outstanding);
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        struct dispatch_node_stats ns;
        dispatch_node_stats(engine_dispatch(r->engine), n, &ns);
        if (ns.in_flight != 0) rig_fail(r, "left over: %u steps of node %u", ns.in_flight, n);
    }
    for (uint32_t i = 0; i < r->n_clients; i++) {
        const struct rig_client *c = &r->clients[i];
        unsigned long long id = c->id;
        if (c->state == CLIENT_FAILED && c->code != ERR_UNAVAILABLE && c->code != ERR_TIMEOUT)
            rig_fail(r, "client %llu failed in another way: %s", id, c->text);
        if (c->ended_us > c->deadline_us + 1000)
            rig_fail(r, "client %llu ended %llu us after its deadline", id,
                     (unsigned long long)(c->ended_us - c->deadline_us));
        uint64_t *counts = s->totals->counts;
        counts[SIM_COMPLETED] += c->state == CLIENT_DONE;
        counts[SIM_CANCELLED] += c->state == CLIENT_CANCELLED;
        counts[SIM_UNAVAILABLE] += c->state == CLIENT_FAILED && c->code == ERR_UNAVAILABLE;
        counts[SIM_TIMED_OUT] += c->state == CLIENT_FAILED && c->code == ERR_TIMEOUT;
    }
    sim_cluster_check_end(s);
    s->totals->counts[SIM_PREEMPTED] += st.preemptions;
    s->totals->counts[SIM_REPLAYED] += dispatch_replays(engine_dispatch(r->engine));
}

/* Nothing is under way though somebody could go on. With paused ones, which may hold all blocks, that is in order. */
static void check_idle(struct rig *r)
{
    if (r->n_wire > 0) return;
    for (uint32_t slot = 0; slot < RIG_MAX_SLOTS; slot++)
        if (r->has_job[slot]) return;
    struct engine_stats st;
    engine_stats(r->engine, &st);
    if (st.passes == 0 && st.paused == 0 && st.running + st.waiting > 0)
        rig_fail(r, "all slots are free while %u requests run and %u wait", st.running, st.waiting);
}

/* Once all works again, somebody is always told something soon. */
static void check_wait(struct sim *s)
{
    struct rig *r = &s->rig;
    if (r->now_us < FAULTS_UNTIL_US + WAIT_US || r->now_us < r->told_us + WAIT_US) return;
    for (uint32_t i = 0; i < r->n_clients; i++) {
        const struct rig_client *c = &r->clients[i];
        if (c->state == CLIENT_WAITING && !c->paused && r->now_us > c->submit_us + WAIT_US)
            rig_fail(r, "client %llu waits, and nobody was told anything for %u s",
                     (unsigned long long)c->id, WAIT_US / 1000000);
    }
}

static void happen(struct sim *s, const struct happening *h)
{
    if (h->what == DO_JOB)
        rig_compute(&s->rig, h->a);
    else if (h->what == DO_CLIENT)
        do_client(s);
    else
        sim_cluster_happen(s, h);
}

static void run(struct sim *s)
{
    struct rig *r = &s->rig;
    while (r->wrong[0] == 0) {
        uint64_t timer = engine_next_timer_us(r->engine);
        if (s->n_heap == 0 && timer == UINT64_MAX) break;
        if (++s->n_events > MAX_EVENTS) rig_fail(r, "no end after %u events", MAX_EVENTS);
        r->starve_memory = s->short_memory && sim_chance(s, 20);
        if (r->starve_memory) SIM_COUNT(s, SHORT_MEMORY);
        if (s->n_heap == 0 || timer < s->heap[0].at) {
            if (timer > STUCK_AFTER_US) break;
            rig_tick(r, timer > r->now_us ? timer : r->now_us);
        } else {
            struct happening h = next_happening(s);
            r->now_us = h.at;
            happen(s, &h);
            sim_answer_free(h.answer);
        }
        struct engine_stats st;
        check_idle(r);
        check_wait(s);
        if (s->n_events % 16 == 0) {
            engine_stats(r->engine, &st);
            s->totals->counts[SIM_WAITED] += st.passes_waiting_for_experts > 0;
        }
    }
    for (uint32_t i = 0; i < r->n_clients; i++)
        if (r->clients[i].state == CLIENT_WAITING)
            rig_fail(r, "client %llu never ended", (unsigned long long)r->clients[i].id);
}

bool sim_run(uint64_t seed, struct buf *trace, struct sim_totals *totals, char why[512])
{
    static const struct sim_totals none;
    struct sim_totals own = none;
    struct sim *s = calloc(1, sizeof *s);
    if (s == NULL) abort();
    s->seed = seed;
    s->next_id = 1;
    s->epoch = 1;
    s->totals = totals == NULL ? &own : totals;
    struct engine_cfg cfg = {0};
    bool is_moe[FAKE_MAX_LAYERS];
    draw_world(s, &cfg, is_moe);
    s->far_deadlines = sim_chance(s, 50);
    s->short_memory = sim_chance(s, 20);
    s->n_submits = (uint32_t)sim_draw(s, 1, 24);
    s->rig.eos = sim_chance(s, 50) ? (int32_t)sim_draw(s, 0, FAKE_VOCAB - 1) : -1;
    s->rig.trace = trace;
    s->rig.on_job = on_job;
    s->rig.on_message = sim_cluster_send;
    s->rig.time_enough = s->far_deadlines;
    s->rig.ctx = s;

    struct placement *p;
    struct err err;
    uint32_t replicas = (uint32_t)sim_draw(s, 1, s->n_nodes);
    if (placement_spread(cfg.n_layers, cfg.n_experts, s->n_nodes, replicas, sim_draw(s, 0, 3), &p,
                         &err) != ERR_OK)
        abort();
    rig_open(&s->rig, &cfg, p, seed);
    placement_release(p);
    if (trace != NULL) tell_world(s, replicas);
    sim_cluster_open(s);
    sim_plan(s, (struct happening){.at = 0, .what = DO_CLIENT});
    run(s);
    if (s->rig.wrong[0] == 0) check_end(s);

    bool ok = s->rig.wrong[0] == 0;
    memcpy(why, s->rig.wrong, 512);
    s->totals->seeds++;
    s->totals->events += s->n_events;
    sim_cluster_close(s);
    rig_close(&s->rig);
    for (uint32_t i = 0; i < s->n_heap; i++)
        sim_answer_free(s->heap[i].answer);
    free(s->heap);
    free(s);
    return ok;
}
