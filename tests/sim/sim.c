#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/rng.h"
#include "tests/sim/rig.h"

#define FAULTS_UNTIL_US 8000000u /* later everything works */
#define STUCK_AFTER_US  2000000000u
#define MAX_EVENTS      400000u

enum what { DO_COMPUTE, DO_ANSWER, DO_REFUSE, DO_UP, DO_FAULT, DO_CLIENT, DO_PLACE };

struct happening {
    uint64_t at, order; /* order: equal times keep the order of planning */
    enum what what;
    uint32_t a, b;
    uint64_t step; /* ANSWER, REFUSE */
};

struct sim {
    struct rig rig;
    uint64_t seed, draws, planned, n_events;
    struct happening *heap;
    uint32_t n_heap, cap_heap;
    uint32_t n_nodes, n_submits, n_submitted;
    bool far_deadlines, short_memory;
    uint64_t frozen_until[RIG_MAX_NODES];
    uint64_t epoch;
    uint64_t next_id;
    struct sim_totals *totals;
};

/* Uniform in [lo, hi]. At most one draw in the arguments of a call: their order is the compiler's, and a seed must be
 * the same world everywhere. */
static uint64_t draw(struct sim *s, uint64_t lo, uint64_t hi)
{
    return lo + (uint64_t)(rng_uniform(s->seed, s->draws++, 77) * (double)(hi - lo + 1));
}

static bool chance(struct sim *s, uint32_t percent)
{
    return draw(s, 0, 99) < percent;
}

static bool before(const struct happening *a, const struct happening *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void plan(struct sim *s, uint64_t at, enum what what, uint32_t a, uint32_t b, uint64_t step)
{
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap == 0 ? 256 : 2 * s->cap_heap;
        s->heap = realloc(s->heap, s->cap_heap * sizeof *s->heap);
        if (s->heap == NULL) abort();
    }
    uint32_t i = s->n_heap++;
    struct happening h = {
        .at = at, .order = s->planned++, .what = what, .a = a, .b = b, .step = step};
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

/* ---- jobs and nodes ---------------------------------------------------------------------------- */

static void on_job(void *ctx, uint32_t slot)
{
    struct sim *s = ctx;
    plan(s, s->rig.now_us + draw(s, 20, 400), DO_COMPUTE, slot, 0, 0);
}

static void on_message(void *ctx, struct rig_message *m)
{
    struct sim *s = ctx;
    uint64_t at = s->rig.now_us + draw(s, 50, 2000);
    bool faults = s->rig.now_us < FAULTS_UNTIL_US;
    if (faults && chance(s, 1))
        at += draw(s, 100000, 5000000); /* very late, without any other sign */
    if (at < s->frozen_until[m->node]) at = s->frozen_until[m->node] + draw(s, 0, 1000);
    bool refuse = !m->holds_all || (faults && chance(s, 2));
    plan(s, at, refuse ? DO_REFUSE : DO_ANSWER, m->node, m->lane, m->step);
}

static struct rig_message *find_message(struct sim *s, uint64_t step)
{
    for (uint32_t i = 0; i < s->rig.n_wire; i++)
        if (s->rig.wire[i]->step == step) return s->rig.wire[i];
    return NULL; /* its stream was lost */
}

static void lose_stream(struct sim *s, uint32_t node, enum dispatch_lane lane, uint64_t for_us)
{
    if (!s->rig.up[node][lane]) return;
    rig_node(&s->rig, node, lane, false);
    plan(s, s->rig.now_us + for_us, DO_UP, node, lane, 0);
    s->totals->lost++;
}

static void do_fault(struct sim *s)
{
    uint32_t node = (uint32_t)draw(s, 0, s->n_nodes - 1);
    uint64_t for_us;
    switch (draw(s, 0, 3)) {
    case 0: /* one stream */
        for_us = draw(s, 100, 50000);
        lose_stream(s, node, chance(s, 50) ? DISPATCH_DECODE : DISPATCH_BULK, for_us);
        break;
    case 1: /* the process: both streams, and the time to load everything */
        for_us = draw(s, 1000, 3000000);
        lose_stream(s, node, DISPATCH_DECODE, for_us);
        lose_stream(s, node, DISPATCH_BULK, for_us + draw(s, 0, 1000));
        break;
    case 2: /* stopped, then goes on */
        s->frozen_until[node] = s->rig.now_us + draw(s, 1000, 3000000);
        break;
    case 3: /* everybody at once */
        for (uint32_t n = 0; n < s->n_nodes; n++)
            for (int lane = 0; lane < DISPATCH_N_LANES; lane++)
                lose_stream(s, n, (enum dispatch_lane)lane, draw(s, 1000, 500000));
        break;
    }
    uint64_t at = s->rig.now_us + draw(s, 1000, 1500000);
    if (at < FAULTS_UNTIL_US) plan(s, at, DO_FAULT, 0, 0, 0);
}

/* Some experts move, some are nowhere for a while; in the end all are somewhere. */
static void do_place(struct sim *s)
{
    const struct engine_cfg *c = &s->rig.cfg;
    bool is_last = s->rig.now_us >= FAULTS_UNTIL_US;
    size_t row_bytes = (c->n_experts + 7) / 8;
    uint8_t *held[RIG_MAX_NODES];
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        held[n] = calloc(c->n_layers * row_bytes + 1, 1);
        for (size_t i = 0; i < c->n_layers * row_bytes; i++)
            held[n][i] = is_last && n == 0 ? 0xff : (uint8_t)draw(s, 0, 255);
    }
    struct placement *p;
    struct err why;
    if (placement_from_holdings(c->n_layers, c->n_experts, s->n_nodes, (const uint8_t *const *)held,
                                ++s->epoch, &p, &why) != ERR_OK)
        abort();
    for (uint32_t n = 0; n < s->n_nodes; n++)
        free(held[n]);
    rig_place(&s->rig, p);
    placement_release(p);
    if (!is_last) {
        uint64_t at = s->rig.now_us + draw(s, 100000, 3000000);
        plan(s, at < FAULTS_UNTIL_US ? at : FAULTS_UNTIL_US, DO_PLACE, 0, 0, 0);
    }
}

/* ---- clients ----------------------------------------------------------------------------------- */

static void submit(struct sim *s)
{
    const struct engine_cfg *c = &s->rig.cfg;
    uint32_t longest = chance(s, 30) ? c->ctx - 1 : (c->ctx - 1) / 3 + 1;
    uint32_t n_prompt = (uint32_t)draw(s, 1, longest);
    uint32_t room = c->ctx - n_prompt;
    uint32_t most = chance(s, 20) ? 90 : 20;
    uint32_t max_tokens = (uint32_t)draw(s, 0, room < most ? room : most);
    uint64_t deadline = s->rig.now_us + (s->far_deadlines ? 1000000000u : draw(s, 50000, 6000000));
    bool prompt_logits = chance(s, 25);
    /* A name is free again as soon as its request has ended. */
    uint64_t id = s->next_id;
    if (s->rig.n_clients > 0 && chance(s, 30))
        id = s->rig.clients[draw(s, 0, s->rig.n_clients - 1)].id;
    if (rig_find(&s->rig, id) != NULL) id = s->next_id;
    if (id == s->next_id) s->next_id++;
    struct err why;
    if (rig_submit(&s->rig, id, n_prompt, max_tokens, prompt_logits, deadline, &why) != NULL) {
        s->totals->submitted++;
        s->n_submitted++;
    } else if (why.code != ERR_EXHAUSTED) {
        rig_fail(&s->rig, "submit: %s", why.text);
    } else {
        s->totals->refused++;
        s->n_submitted++; /* given up */
    }
}

static void do_client(struct sim *s)
{
    struct rig *r = &s->rig;
    uint64_t waiting[RIG_MAX_CLIENTS], n = 0;
    for (uint32_t i = 0; i < r->n_clients; i++)
        if (r->clients[i].state == CLIENT_WAITING) waiting[n++] = r->clients[i].id;
    uint64_t who = n > 0 ? waiting[draw(s, 0, n - 1)] : 0;
    bool faults = r->now_us < FAULTS_UNTIL_US;
    uint64_t kind = draw(s, 0, 9);
    if (s->n_submitted < s->n_submits && (kind < 6 || n == 0))
        submit(s);
    else if (n > 0 && kind == 6 && faults)
        rig_cancel(r, who);
    else if (n > 0 && kind == 7 && faults)
        rig_pause(r, who, true);
    else if (!faults)
        for (uint64_t i = 0; i < n; i++)
            rig_pause(r, waiting[i], false);
    else if (n > 0)
        rig_pause(r, who, false);
    if (s->n_submitted < s->n_submits || faults || n > 0) {
        bool burst = chance(s, 50);
        plan(s, r->now_us + (burst ? draw(s, 0, 3000) : draw(s, 1000, 700000)), DO_CLIENT, 0, 0, 0);
    }
}

/* ---- the world --------------------------------------------------------------------------------- */

static void draw_world(struct sim *s, struct engine_cfg *c, bool is_moe[FAKE_MAX_LAYERS])
{
    bool dense = chance(s, 5);
    c->n_layers = (uint32_t)draw(s, 1, 4);
    c->n_experts = dense ? 0 : (uint32_t)draw(s, 2, 12);
    c->top_k = dense ? 0 : (uint32_t)draw(s, 1, c->n_experts < 3 ? c->n_experts : 3);
    for (uint32_t i = 0; i < c->n_layers; i++)
        is_moe[i] = !dense && !chance(s, 30);
    c->is_moe = is_moe;
    uint32_t most = chance(s, 30) ? 400 : 200;
    c->ctx = (uint32_t)draw(s, 20, most);
    c->n_kv_blocks =
        (c->ctx + 63) / 64 + (uint32_t)(chance(s, 60) ? draw(s, 0, 2) : draw(s, 0, 30));
    most = chance(s, 50) ? 20 : 130;
    c->chunk = (uint32_t)draw(s, 1, most);
    c->max_decode_rows = (uint32_t)draw(s, 1, 8);
    c->prefill_logit_rows = chance(s, 50) ? 0 : (uint32_t)draw(s, 1, 9);
    c->decode_slots = (uint32_t)draw(s, 1, 3);
    c->prefill_slots = (uint32_t)draw(s, 1, 3);
    c->max_running = (uint32_t)draw(s, 1, 10);
    c->max_waiting = (uint32_t)draw(s, 1, 12);
    s->n_nodes = (uint32_t)draw(s, 1, 4);
    c->dispatch = (struct dispatch_cfg){
        .n_nodes = s->n_nodes,
        .row_bytes = 32,
        .result_bytes = 64,
        .piece_bytes = (uint32_t)draw(s, 16, 2000),
        .bulk_outstanding = 2,
        .min_silence_us = 250000,
    };
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
        if (c->state == CLIENT_FAILED && s->far_deadlines)
            rig_fail(r, "%llu failed though there was time: %s", id, c->text);
        if (c->state == CLIENT_FAILED && c->code != ERR_UNAVAILABLE && c->code != ERR_TIMEOUT)
            rig_fail(r, "%llu failed in another way: %s", id, c->text);
        if (c->ended_us > c->deadline_us + 1000)
            rig_fail(r, "%llu ended %llu us after its deadline", id,
                     (unsigned long long)(c->ended_us - c->deadline_us));
        s->totals->completed += c->state == CLIENT_DONE;
        s->totals->cancelled += c->state == CLIENT_CANCELLED;
        s->totals->unavailable += c->state == CLIENT_FAILED && c->code == ERR_UNAVAILABLE;
        s->totals->timeout += c->state == CLIENT_FAILED && c->code == ERR_TIMEOUT;
    }
    s->totals->preemptions += st.preemptions;
    s->totals->replays += dispatch_replays(engine_dispatch(r->engine));
}

static void happen(struct sim *s, const struct happening *h)
{
    struct rig *r = &s->rig;
    struct rig_message *m;
    switch (h->what) {
    case DO_COMPUTE:
        rig_compute(r, h->a);
        break;
    case DO_ANSWER:
    case DO_REFUSE:
        m = find_message(s, h->step);
        if (m == NULL) break;
        if (engine_find_step(r->engine, h->step) == NULL) s->totals->late++;
        if (h->what == DO_ANSWER)
            rig_answer(r, m);
        else
            rig_refuse(r, m);
        break;
    case DO_UP:
        rig_node(r, h->a, (enum dispatch_lane)h->b, true);
        break;
    case DO_FAULT:
        do_fault(s);
        break;
    case DO_CLIENT:
        do_client(s);
        break;
    case DO_PLACE:
        do_place(s);
        break;
    }
}

static void run(struct sim *s)
{
    struct rig *r = &s->rig;
    while (r->wrong[0] == 0) {
        uint64_t timer = engine_next_timer_us(r->engine);
        if (s->n_heap == 0 && timer == UINT64_MAX) break;
        if (++s->n_events > MAX_EVENTS) rig_fail(r, "no end after %u events", MAX_EVENTS);
        r->starve_memory = s->short_memory && chance(s, 20);
        if (s->n_heap == 0 || timer < s->heap[0].at) {
            if (timer > STUCK_AFTER_US) break;
            rig_tick(r, timer > r->now_us ? timer : r->now_us);
        } else {
            struct happening h = next_happening(s);
            r->now_us = h.at;
            happen(s, &h);
        }
        struct engine_stats st;
        if (s->n_events % 16 == 0) {
            engine_stats(r->engine, &st);
            s->totals->waits_for_experts += st.passes_waiting_for_experts > 0;
        }
    }
    for (uint32_t i = 0; i < r->n_clients; i++)
        if (r->clients[i].state == CLIENT_WAITING)
            rig_fail(r, "%llu never ended", (unsigned long long)r->clients[i].id);
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
    s->far_deadlines = chance(s, 50);
    s->short_memory = chance(s, 20);
    s->n_submits = (uint32_t)draw(s, 1, 24);
    s->rig.eos = chance(s, 50) ? (int32_t)draw(s, 0, FAKE_VOCAB - 1) : -1;
    s->rig.trace = trace;
    s->rig.on_job = on_job;
    s->rig.on_message = on_message;
    s->rig.ctx = s;

    struct placement *p;
    struct err err;
    uint32_t replicas = (uint32_t)draw(s, 1, s->n_nodes);
    if (placement_spread(cfg.n_layers, cfg.n_experts, s->n_nodes, replicas, draw(s, 0, 3), &p,
                         &err) != ERR_OK)
        abort();
    rig_open(&s->rig, &cfg, p, seed);
    placement_release(p);
    for (uint32_t n = 0; n < s->n_nodes; n++)
        for (uint32_t lane = 0; lane < DISPATCH_N_LANES; lane++)
            plan(s, draw(s, 0, 3000), DO_UP, n, lane, 0);
    plan(s, 0, DO_CLIENT, 0, 0, 0);
    if (chance(s, 70)) plan(s, draw(s, 0, 100000), DO_FAULT, 0, 0, 0);
    if (chance(s, 40)) plan(s, draw(s, 0, 1000000), DO_PLACE, 0, 0, 0);
    run(s);
    if (s->rig.wrong[0] == 0) check_end(s);

    bool ok = s->rig.wrong[0] == 0;
    memcpy(why, s->rig.wrong, 512);
    s->totals->seeds++;
    s->totals->events += s->n_events;
    rig_close(&s->rig);
    free(s->heap);
    free(s);
    return ok;
}
