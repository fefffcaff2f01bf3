/* sim_cluster.c - the simulated nodes, the streams to them, and what goes wrong with both. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/sim/sim_parts.h"

#define STARVED_PERCENT 20u

static struct rig_message *find_message(struct sim *s, uint64_t step)
{
    for (uint32_t i = 0; i < s->rig.n_wire; i++)
        if (s->rig.wire[i]->step == step) return s->rig.wire[i];
    return NULL; /* answered, or its stream was lost */
}

static bool faults(const struct sim *s)
{
    return s->rig.now_us < FAULTS_UNTIL_US;
}

static unsigned long long short_id(uint64_t step)
{
    return step >> 20;
}

/* When a message that is sent now arrives: not before those sent earlier by the same way. */
static uint64_t arrival(struct sim *s, uint64_t *last_us)
{
    uint64_t at = s->rig.now_us + sim_draw(s, 20, 900);
    if (faults(s) && sim_chance(s, 1) && sim_chance(s, 50)) {
        at += sim_draw(s, 100000, 5000000);
        SIM_COUNT(s, VERY_LATE);
    }
    if (at < *last_us) at = *last_us;
    *last_us = at;
    return at;
}

void sim_answer_free(struct sim_answer *a)
{
    if (a == NULL) return;
    free(a->results);
    free(a->held);
    free(a);
}

/* ---- what a node wants ------------------------------------------------------------------------ */

static struct machine *machine_of(struct sim *s, const struct sim_node *n)
{
    return &s->machines[n->number];
}

static void on_compute(void *ctx, struct sim_node *n)
{
    struct sim *s = ctx;
    struct machine *m = machine_of(s, n);
    uint64_t us = sim_draw(s, 20, 800) * m->slowness;
    if (n->batch->n_requests > 1) SIM_COUNT(s, MERGED);
    char together[40] = "";
    if (n->batch->n_requests > 1)
        snprintf(together, sizeof together, " of %u steps together", n->batch->n_requests);
    rig_note(&s->rig, "node %u computes %u expert%s of layer %u%s", n->number, n->batch->n_tasks,
             n->batch->n_tasks == 1 ? "" : "s", n->batch->layer, together);
    sim_plan(s, (struct happening){
                    .at = s->rig.now_us + us, .what = DO_BATCH, .a = n->number, .b = m->life});
}

static void on_load(void *ctx, struct sim_node *n)
{
    struct sim *s = ctx;
    struct machine *m = machine_of(s, n);
    if (m->starting) return;
    uint64_t us = sim_draw(s, 1000, 50000);
    sim_plan(s, (struct happening){
                    .at = s->rig.now_us + us, .what = DO_LOAD, .a = n->number, .b = m->life});
}

static void on_unload(void *ctx, struct sim_node *n, uint32_t layer, uint32_t expert)
{
    struct sim *s = ctx;
    SIM_COUNT(s, UNLOADED);
    rig_note(&s->rig, "node %u gives up expert %u of layer %u", n->number, expert, layer);
}

static void send_back(struct sim *s, uint32_t node, enum dispatch_lane lane, enum what what,
                      struct sim_answer *a)
{
    struct machine *m = &s->machines[node];
    struct connection *c = &m->lanes[lane];
    a->node = node;
    a->lane = lane;
    if (a->stream == 0 || c->stream != a->stream) { /* nobody reads it */
        if (a->stream != 0) SIM_COUNT(s, LOST_ON_WAY);
        sim_answer_free(a);
        return;
    }
    uint64_t at = arrival(s, &c->back_us);
    sim_plan(s, (struct happening){.at = at, .what = what, .a = node, .b = m->life, .answer = a});
}

static void on_answer(void *ctx, struct sim_node *n, const struct sim_request *q,
                      enum err_code code, const char *text)
{
    struct sim *s = ctx;
    struct sim_answer *a = calloc(1, sizeof *a);
    *a = (struct sim_answer){.stream = q->core.stream, .step = q->core.step, .code = code};
    if (code == ERR_OK) {
        a->n = q->core.n_results;
        a->results = malloc(a->n * sizeof *a->results);
        memcpy(a->results, q->results, a->n * sizeof *a->results);
    } else {
        if (code == ERR_NOT_FOUND)
            SIM_COUNT(s, NOT_HELD);
        else if (code == ERR_INTERNAL)
            SIM_COUNT(s, BATCH_FAILED);
        else if (strstr(text, "full") != NULL)
            SIM_COUNT(s, QUEUE_FULL);
        else
            SIM_COUNT(s, NODE_SHORT);
        rig_note(&s->rig, "node %u refuses step %llu: %s", n->number, short_id(q->core.step), text);
    }
    send_back(s, n->number, q->lane, DO_ANSWER, a);
}

static void on_discard(void *ctx, struct sim_node *n, const struct sim_request *q)
{
    struct sim *s = ctx;
    SIM_COUNT(s, DISCARDED);
    rig_note(&s->rig, "node %u drops step %llu: its stream is gone", n->number,
             short_id(q->core.step));
}

static uint8_t *copy_held(const struct sim *s, const struct sim_node *n)
{
    uint8_t *held = malloc(s->bitmap_bytes + 1);
    memcpy(held, node_held(n->core), s->bitmap_bytes);
    return held;
}

static void on_holdings(void *ctx, struct sim_node *n, uint64_t stream, bool ok)
{
    struct sim *s = ctx;
    if (machine_of(s, n)->starting) return; /* the hello will say it */
    struct sim_answer *a = calloc(1, sizeof *a);
    *a = (struct sim_answer){
        .stream = stream, .code = ok ? ERR_OK : ERR_IO, .held = copy_held(s, n)};
    rig_note(&s->rig, "node %u tells what it holds%s", n->number, ok ? "" : ", and a failure");
    send_back(s, n->number, DISPATCH_DECODE, DO_HOLDINGS, a);
}

static void on_wrong(void *ctx, const char *text)
{
    rig_fail(&((struct sim *)ctx)->rig, "%s", text);
}

/* ---- steps to nodes --------------------------------------------------------------------------- */

void sim_cluster_send(void *ctx, struct rig_message *m)
{
    struct sim *s = ctx;
    struct machine *to = &s->machines[m->node];
    struct connection *c = &to->lanes[m->lane];
    memset(m->results, 0,
           m->n_entries * sizeof *m->results); /* the node's own come in their place */
    struct happening h = {.at = arrival(s, &c->to_us),
                          .what = DO_TAKE,
                          .a = m->node,
                          .b = to->life,
                          .step = m->step,
                          .stream = c->stream};
    sim_plan(s, h);
    if (faults(s) && sim_chance(s, 2)) {
        SIM_COUNT(s, DUPLICATED);
        sim_plan(s, h);
    }
}

static void take(struct sim *s, struct machine *to, const struct happening *h)
{
    const struct rig_message *m = find_message(s, h->step);
    if (m == NULL || to->lanes[m->lane].stream != h->stream) {
        SIM_COUNT(s, LOST_ON_WAY);
        return;
    }
    struct sim_request *q = sim_request_make(m->n_rows, m->n_experts, m->n_entries);
    q->lane = m->lane;
    q->core.stream = h->stream;
    q->core.step = m->step;
    q->core.layer = m->layer;
    q->core.bulk = m->lane == DISPATCH_BULK;
    q->core.arrived_us = s->rig.now_us;
    memcpy(q->inputs, m->inputs, m->n_rows * sizeof *m->inputs);
    memcpy((void *)(uintptr_t)q->core.experts, m->experts, m->n_experts * sizeof *m->experts);
    memcpy((void *)(uintptr_t)q->core.expert_rows, m->expert_rows,
           m->n_experts * sizeof *m->expert_rows);
    memcpy((void *)(uintptr_t)q->core.row_index, m->row_index, m->n_entries * sizeof *m->row_index);
    SIM_COUNT(s, STEPS);
    rig_note(&s->rig, "node %u takes step %llu", m->node, short_id(m->step));
    bool short_here = s->short_memory && faults(s) && sim_chance(s, STARVED_PERCENT);
    sim_node_take(&to->node, q, s->rig.now_us, short_here);
}

static void answer_arrives(struct sim *s, const struct sim_answer *a)
{
    struct rig *r = &s->rig;
    if (s->machines[a->node].lanes[a->lane].stream != a->stream) {
        SIM_COUNT(s, LOST_ON_WAY);
        return;
    }
    struct rig_message *m = find_message(s, a->step);
    if (m == NULL) {
        SIM_COUNT(s, ANSWERED_AGAIN);
        rig_answer_again(r, a->step);
        return;
    }
    if (engine_find_step(r->engine, a->step) == NULL) SIM_COUNT(s, LATE);
    if (m->born < s->last_born_us) SIM_COUNT(s, OVERTAKEN);
    s->last_born_us = m->born;
    if (a->code != ERR_OK) {
        rig_refuse(r, m);
        return;
    }
    if (a->n != m->n_entries)
        rig_fail(r, "an answer has %u results, the step %u", a->n, m->n_entries);
    memcpy(m->results, a->results, a->n * sizeof *a->results);
    rig_answer(r, m);
}

/* ---- who holds what --------------------------------------------------------------------------- */

static void place(struct sim *s)
{
    const struct engine_cfg *c = &s->rig.cfg;
    const uint8_t *told[RIG_MAX_NODES];
    struct placement *p;
    struct err why;
    for (uint32_t n = 0; n < s->n_nodes; n++)
        told[n] = s->machines[n].told;
    if (placement_from_holdings(c->n_layers, c->n_experts, s->n_nodes, told, ++s->epoch, &p,
                                &why) != ERR_OK)
        abort();
    SIM_COUNT(s, PLACED);
    rig_place(&s->rig, p);
    placement_release(p);
}

static bool is_satisfied(const struct sim *s, const struct machine *m)
{
    for (size_t i = 0; i < s->bitmap_bytes; i++)
        if (m->wanted[i] & ~m->told[i]) return false;
    return true;
}

static void plan_assign(struct sim *s, uint32_t node, uint64_t after_us)
{
    struct machine *m = &s->machines[node];
    uint64_t at = s->rig.now_us + after_us;
    struct connection *c = &m->lanes[DISPATCH_DECODE];
    if (at < c->to_us) at = c->to_us;
    sim_plan(s, (struct happening){
                    .at = at, .what = DO_ASSIGN, .a = node, .b = m->life, .stream = c->stream});
}

static void learn(struct sim *s, uint32_t node, const uint8_t *held)
{
    struct machine *m = &s->machines[node];
    if (memcmp(m->told, held, s->bitmap_bytes) == 0) return;
    memcpy(m->told, held, s->bitmap_bytes);
    place(s);
}

static void assign(struct sim *s, struct machine *m, const struct happening *h)
{
    if (h->stream == 0 || m->lanes[DISPATCH_DECODE].stream != h->stream) return;
    SIM_COUNT(s, ASSIGNED);
    bool short_here = s->short_memory && faults(s) && sim_chance(s, STARVED_PERCENT);
    rig_note(&s->rig, "node %u is assigned its experts", h->a);
    if (!sim_node_assign(&m->node, h->stream, m->wanted, s->rig.now_us, short_here))
        plan_assign(s, h->a, 10000);
}

static void holdings_arrive(struct sim *s, uint32_t node, const struct sim_answer *a)
{
    struct machine *m = &s->machines[node];
    if (m->lanes[DISPATCH_DECODE].stream != a->stream) return;
    learn(s, node, a->held);
    if (!is_satisfied(s, m)) plan_assign(s, node, sim_draw(s, 1000, 200000));
}

/* Other experts for everybody, some for nobody; in the end node 0 has them all. */
static void move(struct sim *s)
{
    bool is_last = !faults(s);
    const struct engine_cfg *c = &s->rig.cfg;
    const size_t row = (c->n_experts + 7) / 8;
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        struct machine *m = &s->machines[n];
        for (uint32_t l = 0; l < c->n_layers; l++)
            for (uint32_t e = 0; e < c->n_experts; e++) {
                uint8_t bit = (uint8_t)(1u << (e % 8));
                bool has = c->is_moe[l] && ((is_last && n == 0) || sim_chance(s, 50));
                if (has)
                    m->wanted[l * row + e / 8] |= bit;
                else
                    m->wanted[l * row + e / 8] &= (uint8_t)~bit;
            }
        plan_assign(s, n, sim_draw(s, 100, 2000));
    }
    rig_note(&s->rig, "experts move");
    if (is_last) return;
    uint64_t at = s->rig.now_us + sim_draw(s, 100000, 3000000);
    sim_plan(
        s, (struct happening){.at = at < FAULTS_UNTIL_US ? at : FAULTS_UNTIL_US, .what = DO_MOVE});
}

/* ---- processes and streams -------------------------------------------------------------------- */

static void start(struct sim *s, uint32_t node)
{
    struct machine *m = &s->machines[node];
    if (m->node.core != NULL) return;
    m->life++;
    m->slowness = 1;
    sim_node_start(&m->node, m->max_batch_rows, m->max_queued);
    if (m->preloads) {
        m->starting = true;
        if (!sim_node_assign(&m->node, 0, m->wanted, s->rig.now_us, false)) abort();
        while (m->node.loading)
            sim_node_loaded(&m->node, true, s->rig.now_us);
        m->starting = false;
    }
    rig_note(&s->rig, "node %u starts%s", node, m->preloads ? ", with its experts" : "");
    for (uint32_t lane = 0; lane < DISPATCH_N_LANES; lane++)
        sim_plan(s, (struct happening){.at = s->rig.now_us + sim_draw(s, 0, 3000),
                                       .what = DO_UP,
                                       .a = node,
                                       .b = lane});
}

/* A stream and its hello, which says what the node holds. */
static void up(struct sim *s, uint32_t node, enum dispatch_lane lane)
{
    struct machine *m = &s->machines[node];
    if (m->node.core == NULL || s->rig.up[node][lane]) return;
    m->lanes[lane] = (struct connection){.stream = ++s->next_stream};
    if (lane == DISPATCH_DECODE) {
        learn(s, node, node_held(m->node.core));
        if (!is_satisfied(s, m)) plan_assign(s, node, sim_draw(s, 100, 2000));
    }
    rig_node(&s->rig, node, lane, true);
}

static void lose_stream(struct sim *s, uint32_t node, enum dispatch_lane lane)
{
    struct machine *m = &s->machines[node];
    if (!s->rig.up[node][lane]) return;
    SIM_COUNT(s, STREAM_LOST);
    uint64_t stream = m->lanes[lane].stream;
    m->lanes[lane].stream = 0;
    sim_plan(s, (struct happening){.at = s->rig.now_us + sim_draw(s, 0, 3000),
                                   .what = DO_CLOSED,
                                   .a = node,
                                   .b = m->life,
                                   .stream = stream});
    rig_node(&s->rig, node, lane, false);
}

static void break_stream(struct sim *s, uint32_t node, enum dispatch_lane lane, uint64_t for_us)
{
    if (!s->rig.up[node][lane]) return;
    lose_stream(s, node, lane);
    sim_plan(s,
             (struct happening){.at = s->rig.now_us + for_us, .what = DO_UP, .a = node, .b = lane});
}

static void crash(struct sim *s, uint32_t node, uint64_t for_us)
{
    struct machine *m = &s->machines[node];
    if (m->node.core == NULL) return;
    SIM_COUNT(s, CRASHED);
    if (m->node.inside != NULL) SIM_COUNT(s, DIED_BUSY);
    rig_note(&s->rig, "node %u dies%s", node, m->node.inside != NULL ? " with steps inside" : "");
    sim_node_crash(&m->node);
    m->life++;
    m->frozen_until_us = 0;
    for (int lane = 0; lane < DISPATCH_N_LANES; lane++)
        lose_stream(s, node, (enum dispatch_lane)lane);
    sim_plan(s, (struct happening){.at = s->rig.now_us + for_us, .what = DO_START, .a = node});
}

static void fault(struct sim *s)
{
    uint32_t node = (uint32_t)sim_draw(s, 0, s->n_nodes - 1);
    struct machine *m = &s->machines[node];
    uint64_t for_us;
    bool coin;
    switch (sim_draw(s, 0, 5)) {
    case 0:
        for_us = sim_draw(s, 100, 50000);
        break_stream(s, node, sim_chance(s, 50) ? DISPATCH_DECODE : DISPATCH_BULK, for_us);
        break;
    case 1:
    case 2:
        coin = sim_chance(s, 50);
        crash(s, node, coin ? sim_draw(s, 1000, 100000) : sim_draw(s, 1000, 3000000));
        break;
    case 3:
        SIM_COUNT(s, FROZEN);
        m->frozen_until_us = s->rig.now_us + sim_draw(s, 1000, 3000000);
        rig_note(&s->rig, "node %u is stopped until %.3f ms", node,
                 (double)m->frozen_until_us / 1000.0);
        break;
    case 4:
        SIM_COUNT(s, SLOWED);
        m->slowness = (uint32_t)sim_draw(s, 1, 100);
        rig_note(&s->rig, "node %u becomes %u times slower", node, m->slowness);
        break;
    case 5: /* everybody at once */
        coin = sim_chance(s, 50);
        for (uint32_t n = 0; n < s->n_nodes; n++)
            if (coin)
                crash(s, n, sim_draw(s, 1000, 500000));
            else
                for (int lane = 0; lane < DISPATCH_N_LANES; lane++)
                    break_stream(s, n, (enum dispatch_lane)lane, sim_draw(s, 1000, 500000));
        break;
    }
    uint64_t at = s->rig.now_us + sim_draw(s, 1000, 1500000);
    if (at < FAULTS_UNTIL_US) sim_plan(s, (struct happening){.at = at, .what = DO_FAULT});
}

/* ---- the whole -------------------------------------------------------------------------------- */

static void node_happens(struct sim *s, const struct happening *h)
{
    struct machine *m = &s->machines[h->a];
    bool ok = !faults(s) || !sim_chance(s, 2);
    if (h->b != m->life || m->node.core == NULL) {
        if (h->what == DO_TAKE) SIM_COUNT(s, LOST_ON_WAY);
        return; /* it was the process before */
    }
    if (s->rig.now_us < m->frozen_until_us) {
        struct happening later = *h;
        later.at = m->frozen_until_us;
        sim_plan(s, later);
        return;
    }
    switch (h->what) {
    case DO_TAKE:
        take(s, m, h);
        break;
    case DO_CLOSED:
        sim_node_closed(&m->node, h->stream, s->rig.now_us);
        break;
    case DO_ASSIGN:
        assign(s, m, h);
        break;
    case DO_BATCH:
        sim_node_computed(&m->node, ok, s->rig.now_us);
        break;
    case DO_LOAD:
        if (ok)
            SIM_COUNT(s, LOADED);
        else
            SIM_COUNT(s, LOAD_FAILED);
        sim_node_loaded(&m->node, ok, s->rig.now_us);
        break;
    default:
        abort();
    }
}

void sim_cluster_happen(struct sim *s, const struct happening *h)
{
    switch (h->what) {
    case DO_ANSWER:
        answer_arrives(s, h->answer);
        break;
    case DO_HOLDINGS:
        holdings_arrive(s, h->a, h->answer);
        break;
    case DO_UP:
        up(s, h->a, (enum dispatch_lane)h->b);
        break;
    case DO_MOVE:
        move(s);
        break;
    case DO_FAULT:
        fault(s);
        break;
    case DO_START:
        SIM_COUNT(s, RESTARTED);
        start(s, h->a);
        break;
    default:
        node_happens(s, h);
    }
}

void sim_cluster_open(struct sim *s)
{
    const struct engine_cfg *c = &s->rig.cfg;
    const size_t row = (c->n_experts + 7) / 8;
    s->bitmap_bytes = c->n_layers * row;
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        struct machine *m = &s->machines[n];
        m->node = (struct sim_node){.model = &s->rig.model,
                                    .number = n,
                                    .compute = on_compute,
                                    .load = on_load,
                                    .unload = on_unload,
                                    .answer = on_answer,
                                    .discard = on_discard,
                                    .holdings = on_holdings,
                                    .wrong = on_wrong,
                                    .ctx = s};
        m->preloads = sim_chance(s, 60);
        m->max_batch_rows = (uint32_t)sim_draw(s, 1, 200);
        bool narrow = sim_chance(s, 30);
        m->max_queued = narrow ? (uint32_t)sim_draw(s, 1, 3) : 4096;
        m->wanted = placement_node_bitmap(s->rig.placement, n);
        if (m->wanted == NULL) abort();
        for (uint32_t l = 0; l < c->n_layers; l++)
            if (!c->is_moe[l]) memset(m->wanted + l * row, 0, row);
        m->told = malloc(s->bitmap_bytes + 1);
        memcpy(m->told, m->wanted, s->bitmap_bytes);
        start(s, n);
    }
    if (sim_chance(s, 70))
        sim_plan(s, (struct happening){.at = sim_draw(s, 0, 100000), .what = DO_FAULT});
    bool moves = c->n_experts > 0 && sim_chance(s, 40);
    sim_plan(s, (struct happening){.at = moves ? sim_draw(s, 0, 1000000) : FAULTS_UNTIL_US,
                                   .what = DO_MOVE});
}

void sim_cluster_check_end(struct sim *s)
{
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        const struct sim_node *node = &s->machines[n].node;
        if (node->core == NULL)
            rig_fail(&s->rig, "node %u never came back", n);
        else if (node->inside != NULL || node_has_steps(node->core))
            rig_fail(&s->rig, "left over: steps inside node %u", n);
    }
}

void sim_cluster_close(struct sim *s)
{
    for (uint32_t n = 0; n < s->n_nodes; n++) {
        struct machine *m = &s->machines[n];
        if (m->node.core != NULL) sim_node_crash(&m->node);
        mem_free(m->wanted);
        free(m->told);
    }
}
