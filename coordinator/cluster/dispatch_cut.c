/* dispatch_cut.c - from routing to steps: count the entries of each expert, choose a node for each expert, lay the
 * entries out by (node, expert, row) and cut them into steps. Linear in entries, experts and nodes. */
#include <string.h>

#include "common/base/check.h"
#include "coordinator/cluster/dispatch_parts.h"

enum { CHOICE_NONE = -1, CHOICE_OPEN = -2 };

static uint32_t tried_bit(uint32_t replica)
{
    return 1u << (replica < 31 ? replica : 31);
}

static struct lane *lane_of(const struct dispatch *d, uint32_t node, enum dispatch_lane lane)
{
    return &d->nodes[node].lanes[lane];
}

/* The node for all unsent entries of one expert: live, not tried, not suspect if possible, then least loaded, then
 * first in the order of preference. With only_forced, experts that have several live replicas are left open. */
static int32_t choose(struct dispatch *d, struct lot *lot, uint32_t expert, uint64_t now_us,
                      bool only_forced)
{
    const uint16_t *nodes;
    uint32_t n = placement_replicas(d->placement, lot->layer, expert, &nodes);
    int32_t best = CHOICE_NONE;
    bool best_suspect = false;
    uint32_t best_load = 0, n_live = 0, n_candidates = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct lane *lane = lane_of(d, nodes[i], lot->lane);
        if (!lane->up) continue;
        n_live++;
        if (lot->tried[expert] & tried_bit(i)) continue;
        n_candidates++;
        bool suspect = now_us < lane->suspect_until_us;
        uint32_t load = lane->load + d->node_count[nodes[i]];
        if (best != CHOICE_NONE &&
            (suspect > best_suspect || (suspect == best_suspect && load >= best_load)))
            continue;
        best = nodes[i];
        best_suspect = suspect;
        best_load = load;
    }
    if (n_live > 0 && best == CHOICE_NONE && lot->retry_us == UINT64_MAX)
        lot->retry_us = now_us + DISPATCH_RETRY_US; /* all of them refused: not again at once */
    if (only_forced && n_candidates > 1) return CHOICE_OPEN;
    return best;
}

static void enqueue(struct dispatch *d, struct lot *lot, struct step *s)
{
    struct lane *lane = lane_of(d, s->pub.node, s->pub.lane);
    list_append(&lot->steps, &s->in_lot);
    list_append(&lane->queued, &s->in_lane);
    lane->load += s->pub.n_entries;
}

/* One step of the n entries at `entries`, which are ascending by (expert, row); row_bits holds their rows and is
 * empty again afterwards. */
static bool make_step(struct dispatch *d, struct lot *lot, uint32_t node, const uint32_t *entries,
                      uint32_t n, uint32_t piece)
{
    struct step *s = step_pool_acquire(&d->pool, n);
    uint32_t top_k = d->shape.top_k, n_words = (lot->n_rows + 63) / 64, n_rows = 0;
    for (uint32_t w = 0; w < n_words; w++) {
        for (uint64_t bits = d->row_bits[w]; bits != 0 && s != NULL; bits &= bits - 1) {
            uint32_t row = w * 64 + (uint32_t)__builtin_ctzll(bits);
            d->row_at[row] = n_rows;
            step_arrays(s).rows[n_rows++] = row;
        }
        d->row_bits[w] = 0;
    }
    if (s == NULL) return false;

    struct step_arrays a = step_arrays(s);
    s->pub.slot = (uint32_t)(lot - d->lots);
    s->pub.layer = lot->layer;
    s->pub.node = node;
    s->pub.lane = lot->lane;
    s->pub.piece = piece;
    s->pub.epoch = placement_epoch(d->placement);
    s->pub.n_rows = n_rows;
    s->pub.n_entries = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t entry = entries[i];
        uint16_t expert = lot->experts[entry];
        if (s->pub.n_experts == 0 || a.experts[s->pub.n_experts - 1] != expert) {
            a.experts[s->pub.n_experts] = expert;
            a.expert_rows[s->pub.n_experts++] = 0;
        }
        a.expert_rows[s->pub.n_experts - 1]++;
        a.row_index[i] = d->row_at[entry / top_k];
        a.result_slot[i] = entry;
        if (lot->flags[entry] & ENTRY_WAS_SENT) {
            s->pub.is_replay = true;
            d->replays++;
        }
        lot->flags[entry] &= (uint8_t)~ENTRY_UNSENT;
    }
    lot->n_unsent -= n;
    enqueue(d, lot, s);
    return true;
}

/* Of the expert that entry `i` begins: its entries, and how many of their rows the piece does not have yet. */
static uint32_t expert_run(const struct dispatch *d, const struct lot *lot, const uint32_t *entries,
                           uint32_t n, uint32_t i, uint32_t *new_rows)
{
    uint32_t end = i;
    *new_rows = 0;
    for (; end < n && lot->experts[entries[end]] == lot->experts[entries[i]]; end++) {
        uint32_t row = entries[end] / d->shape.top_k;
        *new_rows += (d->row_bits[row / 64] >> (row % 64) & 1) == 0;
    }
    return end - i;
}

/* Decode steps are never cut: the frame limit bounds them, and a cut would only add messages.
 *
 * An expert that is cut is read from memory once per piece, so a piece of a quarter or more ends before an expert
 * that does not fit in it as a whole. */
static void cut_node(struct dispatch *d, struct lot *lot, uint32_t node, const uint32_t *entries,
                     uint32_t n, uint64_t now_us)
{
    uint32_t max_rows = UINT32_MAX, max_entries = UINT32_MAX;
    if (lot->lane == DISPATCH_BULK) {
        max_rows = d->cfg.piece_bytes / (d->cfg.row_bytes == 0 ? 1 : d->cfg.row_bytes);
        max_entries = d->cfg.piece_bytes / (d->cfg.result_bytes == 0 ? 1 : d->cfg.result_bytes);
        if (max_rows == 0) max_rows = 1;
        if (max_entries == 0) max_entries = 1;
    }
    uint32_t from = 0, rows = 0, piece = 0;
    bool ok = true;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = entries[i] / d->shape.top_k;
        bool is_new = (d->row_bits[row / 64] >> (row % 64) & 1) == 0;
        bool full = i - from == max_entries || (is_new && rows == max_rows);
        bool begins = i > from && lot->experts[entries[i]] != lot->experts[entries[i - 1]];
        if (!full && begins && (i - from >= max_entries / 4 || rows >= max_rows / 4)) {
            uint32_t new_rows, run = expert_run(d, lot, entries, n, i, &new_rows);
            full = run > max_entries - (i - from) || new_rows > max_rows - rows;
        }
        if (full) {
            ok &= make_step(d, lot, node, entries + from, i - from, piece++);
            from = i;
            rows = 0;
            is_new = true;
        }
        d->row_bits[row / 64] |= (uint64_t)1 << (row % 64);
        rows += is_new;
    }
    ok &= make_step(d, lot, node, entries + from, n - from, piece);
    if (!ok && lot->retry_us > now_us + DISPATCH_NOMEM_RETRY_US)
        lot->retry_us = now_us + DISPATCH_NOMEM_RETRY_US;
}

void dispatch_place(struct dispatch *d, struct lot *lot, uint64_t now_us)
{
    if (lot->n_unsent == 0) return;
    uint32_t n_entries = lot->n_rows * d->shape.top_k, n_experts = d->shape.n_experts;
    memset(d->count, 0, n_experts * sizeof *d->count);
    memset(d->node_count, 0, d->cfg.n_nodes * sizeof *d->node_count);
    for (uint32_t i = 0; i < n_entries; i++)
        if (lot->flags[i] & ENTRY_UNSENT) d->count[lot->experts[i]]++;

    /* Experts that can go to one node only come first, so that the others can avoid that node. */
    for (int round = 0; round < 2; round++)
        for (uint32_t e = 0; e < n_experts; e++) {
            if (d->count[e] == 0 || (round == 1 && d->choice[e] != CHOICE_OPEN)) continue;
            d->choice[e] = choose(d, lot, e, now_us, round == 0);
            if (d->choice[e] >= 0) d->node_count[d->choice[e]] += d->count[e];
        }

    uint32_t end = 0;
    for (uint32_t node = 0; node < d->cfg.n_nodes;
         node++) { /* node_count becomes where the node begins */
        uint32_t count = d->node_count[node];
        d->node_count[node] = end;
        end += count;
    }
    for (uint32_t e = 0; e < n_experts;
         e++) { /* count becomes where the expert begins; node_count where it ends */
        if (d->count[e] == 0 || d->choice[e] < 0) continue;
        uint32_t count = d->count[e];
        d->count[e] = d->node_count[d->choice[e]];
        d->node_count[d->choice[e]] += count;
    }
    for (uint32_t i = 0; i < n_entries; i++) {
        if (!(lot->flags[i] & ENTRY_UNSENT) || d->choice[lot->experts[i]] < 0) continue;
        d->order[d->count[lot->experts[i]]++] = i;
    }
    uint32_t from = 0;
    for (uint32_t node = 0; node < d->cfg.n_nodes; node++) {
        uint32_t to = d->node_count[node];
        if (to > from) {
            cut_node(d, lot, node, d->order + from, to - from, now_us);
            dispatch_pump(d, node, lot->lane, now_us);
        }
        from = to;
    }
    if (d->timer_us > lot->retry_us) d->timer_us = lot->retry_us;
}

uint64_t dispatch_silence_us(const struct dispatch *d, uint32_t node, enum dispatch_lane lane)
{
    uint64_t us = 10 * lane_of(d, node, lane)->latency.p99_us;
    if (us < d->cfg.min_silence_us) us = d->cfg.min_silence_us;
    return lane == DISPATCH_BULK ? 4 * us : us;
}

void dispatch_pump(struct dispatch *d, uint32_t node, enum dispatch_lane lane, uint64_t now_us)
{
    struct lane *l = lane_of(d, node, lane);
    uint32_t limit = lane == DISPATCH_BULK ? d->cfg.bulk_outstanding : DISPATCH_DECODE_OUTSTANDING;
    while (l->up && l->in_flight < limit && !list_empty(&l->queued)) {
        struct step *s = LIST_OBJECT(l->queued.next, struct step, in_lane);
        struct lot *lot = &d->lots[s->pub.slot];
        list_remove(&s->in_lane);
        list_append(&l->sent, &s->in_lane);
        list_append(&d->out, &s->in_out);
        l->in_flight++;
        s->state = STEP_SENT;
        s->pub.sent_us = now_us;
        s->timer_us = now_us + dispatch_silence_us(d, node, lane);
        if (d->timer_us > s->timer_us) d->timer_us = s->timer_us;
        for (uint32_t i = 0; i < s->pub.n_entries; i++)
            lot->flags[s->pub.result_slot[i]] |= ENTRY_WAS_SENT;
        d->nodes[node].bytes_out += (uint64_t)s->pub.n_rows * d->cfg.row_bytes;
    }
}

bool dispatch_has_alternative(const struct dispatch *d, const struct lot *lot,
                              const struct step *step)
{
    for (uint32_t i = 0; i < step->pub.n_experts; i++) {
        uint32_t expert = step->pub.experts[i];
        const uint16_t *nodes;
        uint32_t n = placement_replicas(d->placement, lot->layer, expert, &nodes);
        bool found = false;
        for (uint32_t r = 0; r < n && !found; r++)
            found = nodes[r] != step->pub.node && lane_of(d, nodes[r], lot->lane)->up &&
                    !(lot->tried[expert] & tried_bit(r));
        if (!found) return false;
    }
    return true;
}

void dispatch_mark_tried(const struct dispatch *d, struct lot *lot, const struct step *step)
{
    for (uint32_t i = 0; i < step->pub.n_experts; i++) {
        uint32_t expert = step->pub.experts[i];
        const uint16_t *nodes;
        uint32_t n = placement_replicas(d->placement, lot->layer, expert, &nodes);
        for (uint32_t r = 0; r < n; r++)
            if (nodes[r] == step->pub.node) lot->tried[expert] |= tried_bit(r);
    }
}
