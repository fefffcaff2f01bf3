#include "coordinator/cluster/dispatch.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/cluster/dispatch_parts.h"

static enum err_code check_placement(const struct dispatch *d, const struct placement *p,
                                     struct err *why)
{
    const struct dispatch_shape *s = &d->shape;
    if (placement_n_layers(p) != s->n_layers || placement_n_experts(p) != s->n_experts)
        return err_set(why, ERR_INVALID,
                       "placement of %u layers and %u experts for a model of %u and %u",
                       placement_n_layers(p), placement_n_experts(p), s->n_layers, s->n_experts);
    if (placement_n_nodes(p) > d->cfg.n_nodes)
        return err_set(why, ERR_INVALID, "placement on %u nodes, there are %u",
                       placement_n_nodes(p), d->cfg.n_nodes);
    return ERR_OK;
}

static bool lot_init(struct lot *lot, const struct dispatch_shape *shape)
{
    size_t entries = (size_t)shape->max_rows * shape->top_k;
    list_init(&lot->steps);
    lot->experts = mem_zalloc_array(entries + 1, sizeof *lot->experts);
    lot->flags = mem_zalloc_array(entries + 1, sizeof *lot->flags);
    lot->dead = mem_zalloc_array((size_t)shape->max_rows + 1, sizeof *lot->dead);
    lot->tried = mem_zalloc_array((size_t)shape->n_experts + 1, sizeof *lot->tried);
    lot->retry_us = UINT64_MAX;
    return lot->experts != NULL && lot->flags != NULL && lot->dead != NULL && lot->tried != NULL;
}

enum err_code dispatch_open(const struct dispatch_cfg *cfg, const struct dispatch_shape *shape,
                            struct placement *placement, struct dispatch **out, struct err *why)
{
    if (shape->n_experts > LIMIT_EXPERTS || shape->top_k > LIMIT_TOP_K ||
        cfg->n_nodes > LIMIT_NODES || shape->top_k > shape->n_experts ||
        cfg->bulk_outstanding == 0 || shape->max_rows > UINT32_MAX / (LIMIT_TOP_K * 2))
        return err_set(
            why, ERR_INVALID, "dispatch: %u experts, top %u, %u nodes, %u bulk pieces, %u rows",
            shape->n_experts, shape->top_k, cfg->n_nodes, cfg->bulk_outstanding, shape->max_rows);
    struct dispatch *d = mem_zalloc(sizeof *d);
    if (d == NULL) return err_nomem(why, "the dispatch");
    d->cfg = *cfg;
    d->shape = *shape;
    d->timer_us = UINT64_MAX;
    list_init(&d->out);
    enum err_code rc = check_placement(d, placement, why);
    if (rc != ERR_OK) goto fail;
    d->placement = placement_acquire(placement);

    rc = ERR_EXHAUSTED;
    size_t entries = (size_t)shape->max_rows * shape->top_k;
    d->order = mem_zalloc_array(entries + 1, sizeof *d->order);
    d->count = mem_zalloc_array((size_t)shape->n_experts + 1, sizeof *d->count);
    d->choice = mem_zalloc_array((size_t)shape->n_experts + 1, sizeof *d->choice);
    d->node_count = mem_zalloc_array((size_t)cfg->n_nodes + 1, sizeof *d->node_count);
    d->row_bits = mem_zalloc_array((size_t)shape->max_rows / 64 + 1, sizeof *d->row_bits);
    d->row_at = mem_zalloc_array((size_t)shape->max_rows + 1, sizeof *d->row_at);
    d->nodes = mem_zalloc_array((size_t)cfg->n_nodes + 1, sizeof *d->nodes);
    d->lots = mem_zalloc_array((size_t)shape->n_slots + 1, sizeof *d->lots);
    bool ok = d->order != NULL && d->count != NULL && d->choice != NULL && d->node_count != NULL &&
              d->row_bits != NULL && d->row_at != NULL && d->nodes != NULL && d->lots != NULL;
    for (uint32_t i = 0; ok && i < shape->n_slots; i++) {
        ok = lot_init(&d->lots[i], shape);
        d->lots[i].lane = i < shape->decode_slots ? DISPATCH_DECODE : DISPATCH_BULK;
    }
    if (!ok) {
        err_nomem(why, "the dispatch");
        goto fail;
    }
    for (uint32_t n = 0; n < cfg->n_nodes; n++)
        for (int lane = 0; lane < DISPATCH_N_LANES; lane++) {
            list_init(&d->nodes[n].lanes[lane].sent);
            list_init(&d->nodes[n].lanes[lane].queued);
        }
    *out = d;
    return ERR_OK;
fail:
    dispatch_close(d);
    return rc;
}

void dispatch_close(struct dispatch *d)
{
    if (d == NULL) return;
    for (uint32_t i = 0; d->lots != NULL && i < d->shape.n_slots; i++) {
        mem_free(d->lots[i].experts);
        mem_free(d->lots[i].flags);
        mem_free(d->lots[i].dead);
        mem_free(d->lots[i].tried);
    }
    mem_free(d->lots);
    mem_free(d->nodes);
    mem_free(d->order);
    mem_free(d->count);
    mem_free(d->choice);
    mem_free(d->node_count);
    mem_free(d->row_bits);
    mem_free(d->row_at);
    step_pool_deinit(&d->pool);
    placement_release(d->placement);
    mem_free(d);
}

/* ---- steps leave ------------------------------------------------------------------------------- */

static void unlink_step(struct dispatch *d, struct step *s)
{
    struct lane *lane = &d->nodes[s->pub.node].lanes[s->pub.lane];
    if (s->state == STEP_SENT) lane->in_flight--;
    lane->load -= s->pub.n_entries;
    list_remove(&s->in_lot);
    list_remove(&s->in_lane);
    list_remove(&s->in_out);
}

/* Its entries become unsent again, except those of dead rows, which are needed no more. */
static void take_back(struct dispatch *d, struct step *s)
{
    struct lot *lot = &d->lots[s->pub.slot];
    if (s->state == STEP_SENT) d->nodes[s->pub.node].replays_from++;
    for (uint32_t i = 0; i < s->pub.n_entries; i++) {
        uint32_t entry = s->pub.result_slot[i];
        if (lot->dead[entry / d->shape.top_k]) {
            lot->n_open--;
        } else {
            lot->flags[entry] |= ENTRY_UNSENT;
            lot->n_unsent++;
        }
    }
    unlink_step(d, s);
    step_pool_release(&d->pool, s);
}

static void place_all(struct dispatch *d, enum dispatch_lane lane, uint64_t now_us)
{
    for (uint32_t i = 0; i < d->shape.n_slots; i++)
        if (d->lots[i].active && d->lots[i].lane == lane) dispatch_place(d, &d->lots[i], now_us);
}

/* ---- lots -------------------------------------------------------------------------------------- */

void dispatch_start(struct dispatch *d, uint64_t now_us, uint32_t slot, uint32_t layer,
                    const uint16_t *experts, const bool *skip, uint32_t n_rows)
{
    assert(slot < d->shape.n_slots && layer < d->shape.n_layers && n_rows <= d->shape.max_rows);
    struct lot *lot = &d->lots[slot];
    assert(!lot->active || lot->n_open == 0);
    uint32_t top_k = d->shape.top_k;
    lot->active = true;
    lot->layer = layer;
    lot->n_rows = n_rows;
    lot->n_unsent = 0;
    lot->retry_us = UINT64_MAX;
    memset(lot->tried, 0, d->shape.n_experts * sizeof *lot->tried);
    memcpy(lot->experts, experts, (size_t)n_rows * top_k * sizeof *experts);
    for (uint32_t row = 0; row < n_rows; row++) {
        lot->dead[row] = skip[row];
        memset(lot->flags + (size_t)row * top_k, skip[row] ? 0 : ENTRY_UNSENT, top_k);
        if (skip[row]) continue;
        for (uint32_t k = 0; k < top_k; k++)
            assert(experts[(size_t)row * top_k + k] < d->shape.n_experts);
        lot->n_unsent += top_k;
    }
    lot->n_open = lot->n_unsent;
    dispatch_place(d, lot, now_us);
}

void dispatch_kill_rows(struct dispatch *d, uint64_t now_us, uint32_t slot, uint32_t first,
                        uint32_t n)
{
    struct lot *lot = &d->lots[slot];
    if (!lot->active || lot->n_open == 0) return;
    uint32_t top_k = d->shape.top_k;
    for (uint32_t row = first; row < first + n; row++) {
        lot->dead[row] = true;
        for (uint32_t i = row * top_k; i < (row + 1) * top_k; i++) {
            if (!(lot->flags[i] & ENTRY_UNSENT)) continue;
            lot->flags[i] &= (uint8_t)~ENTRY_UNSENT;
            lot->n_unsent--;
            lot->n_open--;
        }
    }
    for (struct list *l = lot->steps.next, *next; l != &lot->steps; l = next) {
        next = l->next;
        struct step *s = LIST_OBJECT(l, struct step, in_lot);
        bool needed = false;
        for (uint32_t i = 0; i < s->pub.n_rows && !needed; i++)
            needed = !lot->dead[s->pub.rows[i]];
        if (needed) continue;
        uint32_t node = s->pub.node;
        lot->n_open -= s->pub.n_entries;
        unlink_step(d, s);
        step_pool_release(&d->pool, s);
        dispatch_pump(d, node, lot->lane, now_us);
    }
}

void dispatch_drop(struct dispatch *d, uint64_t now_us, uint32_t slot)
{
    struct lot *lot = &d->lots[slot];
    while (!list_empty(&lot->steps)) {
        struct step *s = LIST_OBJECT(lot->steps.next, struct step, in_lot);
        uint32_t node = s->pub.node;
        unlink_step(d, s);
        step_pool_release(&d->pool, s);
        dispatch_pump(d, node, lot->lane, now_us);
    }
    lot->active = false;
    lot->n_open = lot->n_unsent = 0;
    lot->retry_us = UINT64_MAX;
}

uint32_t dispatch_n_open(const struct dispatch *d, uint32_t slot)
{
    return d->lots[slot].n_open;
}

uint32_t dispatch_n_unsent(const struct dispatch *d, uint32_t slot)
{
    return d->lots[slot].n_unsent;
}

bool dispatch_find_unsent(const struct dispatch *d, uint32_t slot, uint32_t first, uint32_t n,
                          uint32_t *layer, uint32_t *expert, uint32_t *n_live)
{
    const struct lot *lot = &d->lots[slot];
    uint32_t top_k = d->shape.top_k;
    if (lot->n_unsent == 0) return false;
    for (uint32_t i = first * top_k; i < (first + n) * top_k; i++) {
        if (!(lot->flags[i] & ENTRY_UNSENT)) continue;
        const uint16_t *nodes;
        uint32_t n_replicas = placement_replicas(d->placement, lot->layer, lot->experts[i], &nodes);
        *n_live = 0;
        for (uint32_t r = 0; r < n_replicas; r++)
            *n_live += d->nodes[nodes[r]].lanes[lot->lane].up;
        *layer = lot->layer;
        *expert = lot->experts[i];
        return true;
    }
    return false;
}

const struct dispatch_step *dispatch_first_sent(const struct dispatch *d, uint32_t slot)
{
    const struct lot *lot = &d->lots[slot];
    for (struct list *l = lot->steps.next; l != &lot->steps; l = l->next) {
        const struct step *s = LIST_OBJECT(l, const struct step, in_lot);
        if (s->state == STEP_SENT) return &s->pub;
    }
    return NULL;
}

const struct dispatch_step *dispatch_find(const struct dispatch *d, uint64_t step)
{
    const struct step *s = step_pool_find(&d->pool, step);
    return s == NULL ? NULL : &s->pub;
}

bool dispatch_was_given(const struct dispatch *d, uint64_t step)
{
    return step_pool_was_given(&d->pool, step);
}

/* ---- events ------------------------------------------------------------------------------------ */

/* A late answer: unknown, but a sign of life of whoever was silent. */
static void hear_from(struct dispatch *d, uint64_t step)
{
    for (uint32_t n = 0; n < d->cfg.n_nodes; n++)
        for (int i = 0; i < DISPATCH_N_LANES; i++)
            if (d->nodes[n].lanes[i].silent_step == step) {
                d->nodes[n].lanes[i].silent_step = 0;
                d->nodes[n].lanes[i].suspect_until_us = 0;
            }
}

void dispatch_reply(struct dispatch *d, uint64_t now_us, uint64_t step)
{
    struct step *s = step_pool_find(&d->pool, step);
    if (s == NULL || s->state != STEP_SENT) {
        if (s == NULL) hear_from(d, step);
        return;
    }
    uint32_t node = s->pub.node;
    enum dispatch_lane lane = s->pub.lane;
    struct node *n = &d->nodes[node];
    n->steps++;
    n->rows += s->pub.n_entries;
    n->bytes_in += (uint64_t)s->pub.n_entries * d->cfg.result_bytes;
    n->lanes[lane].suspect_until_us = 0;
    latency_add(&n->lanes[lane].latency, now_us - s->pub.sent_us);
    d->lots[s->pub.slot].n_open -= s->pub.n_entries;
    unlink_step(d, s);
    step_pool_release(&d->pool, s);
    dispatch_pump(d, node, lane, now_us);
}

void dispatch_failed(struct dispatch *d, uint64_t now_us, uint64_t step)
{
    struct step *s = step_pool_find(&d->pool, step);
    if (s == NULL || s->state != STEP_SENT) return;
    struct lot *lot = &d->lots[s->pub.slot];
    uint32_t node = s->pub.node;
    enum dispatch_lane lane = s->pub.lane;
    dispatch_mark_tried(d, lot, s);
    take_back(d, s);
    dispatch_place(d, lot, now_us);
    dispatch_pump(d, node, lane, now_us);
}

void dispatch_node_up(struct dispatch *d, uint64_t now_us, uint32_t node, enum dispatch_lane lane)
{
    struct lane *l = &d->nodes[node].lanes[lane];
    if (l->up) return;
    l->up = true;
    l->suspect_until_us = 0;
    place_all(d, lane, now_us);
}

void dispatch_node_down(struct dispatch *d, uint64_t now_us, uint32_t node, enum dispatch_lane lane)
{
    struct lane *l = &d->nodes[node].lanes[lane];
    if (!l->up) return;
    l->up = false;
    while (!list_empty(&l->sent))
        take_back(d, LIST_OBJECT(l->sent.next, struct step, in_lane));
    while (!list_empty(&l->queued))
        take_back(d, LIST_OBJECT(l->queued.next, struct step, in_lane));
    place_all(d, lane, now_us);
}

enum err_code dispatch_set_placement(struct dispatch *d, uint64_t now_us,
                                     struct placement *placement, struct err *why)
{
    enum err_code rc = check_placement(d, placement, why);
    if (rc != ERR_OK) return rc;
    struct placement *old = d->placement;
    d->placement = placement_acquire(placement);
    placement_release(old);
    for (uint32_t i = 0; i < d->shape.n_slots; i++) {
        /* `tried` counts replicas of the old placement. */
        memset(d->lots[i].tried, 0, d->shape.n_experts * sizeof *d->lots[i].tried);
        if (d->lots[i].active) dispatch_place(d, &d->lots[i], now_us);
    }
    return ERR_OK;
}

/* One lane's silent steps go elsewhere, and what is queued behind them, where there is an elsewhere. */
static void check_silence(struct dispatch *d, uint32_t node, enum dispatch_lane lane,
                          uint64_t now_us)
{
    struct lane *l = &d->nodes[node].lanes[lane];
    bool silent = false;
    for (struct list *i = l->sent.next, *next; i != &l->sent; i = next) {
        next = i->next;
        struct step *s = LIST_OBJECT(i, struct step, in_lane);
        if (s->timer_us > now_us) continue;
        if (!dispatch_has_alternative(d, &d->lots[s->pub.slot], s)) {
            s->timer_us = now_us + dispatch_silence_us(d, node, lane);
            continue;
        }
        silent = true;
        l->silent_step = s->pub.id;
        dispatch_mark_tried(d, &d->lots[s->pub.slot], s);
        take_back(d, s);
    }
    if (!silent) return;
    l->suspect_until_us = now_us + 4 * dispatch_silence_us(d, node, lane);
    for (struct list *i = l->queued.next, *next; i != &l->queued; i = next) {
        next = i->next;
        struct step *s = LIST_OBJECT(i, struct step, in_lane);
        if (dispatch_has_alternative(d, &d->lots[s->pub.slot], s)) take_back(d, s);
    }
}

void dispatch_tick(struct dispatch *d, uint64_t now_us)
{
    if (now_us < d->timer_us) return;
    d->timer_us = UINT64_MAX;
    for (uint32_t n = 0; n < d->cfg.n_nodes; n++)
        for (int lane = 0; lane < DISPATCH_N_LANES; lane++)
            check_silence(d, n, (enum dispatch_lane)lane, now_us);
    for (uint32_t i = 0; i < d->shape.n_slots; i++) {
        struct lot *lot = &d->lots[i];
        if (!lot->active) continue;
        if (lot->retry_us <= now_us) {
            lot->retry_us = UINT64_MAX;
            memset(lot->tried, 0, d->shape.n_experts * sizeof *lot->tried);
        }
        dispatch_place(d, lot, now_us);
        if (lot->n_unsent > 0 && lot->retry_us < d->timer_us) d->timer_us = lot->retry_us;
    }
    for (uint32_t n = 0; n < d->cfg.n_nodes; n++)
        for (int lane = 0; lane < DISPATCH_N_LANES; lane++) {
            dispatch_pump(d, n, (enum dispatch_lane)lane, now_us);
            const struct list *sent = &d->nodes[n].lanes[lane].sent;
            for (struct list *i = sent->next; i != sent; i = i->next) {
                const struct step *s = LIST_OBJECT(i, const struct step, in_lane);
                if (s->timer_us < d->timer_us) d->timer_us = s->timer_us;
            }
        }
}

uint64_t dispatch_next_timer_us(const struct dispatch *d)
{
    return d->timer_us;
}

const struct dispatch_step *dispatch_next_send(struct dispatch *d)
{
    if (list_empty(&d->out)) return NULL;
    struct step *s = LIST_OBJECT(d->out.next, struct step, in_out);
    list_remove(&s->in_out);
    return &s->pub;
}

bool dispatch_has_sends(const struct dispatch *d)
{
    return !list_empty(&d->out);
}

/* ---- what people see --------------------------------------------------------------------------- */

void dispatch_node_stats(const struct dispatch *d, uint32_t node, struct dispatch_node_stats *out)
{
    assert(node < d->cfg.n_nodes);
    const struct node *n = &d->nodes[node];
    const struct lane *shown =
        &n->lanes[n->lanes[DISPATCH_DECODE].latency.n > 0 ? DISPATCH_DECODE : DISPATCH_BULK];
    *out = (struct dispatch_node_stats){
        .steps = n->steps,
        .rows = n->rows,
        .replays_from = n->replays_from,
        .bytes_out = n->bytes_out,
        .bytes_in = n->bytes_in,
        .p50_us = latency_percentile(&shown->latency, 500),
        .p99_us = latency_percentile(&shown->latency, 990),
    };
    for (int lane = 0; lane < DISPATCH_N_LANES; lane++) {
        out->up[lane] = n->lanes[lane].up;
        out->in_flight += n->lanes[lane].in_flight;
    }
}

uint64_t dispatch_replays(const struct dispatch *d)
{
    return d->replays;
}
