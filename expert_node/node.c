#include "expert_node/node.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

#define TEXT_MAX 256

struct queue {
    struct node_request *first, **last;
    uint32_t n;
};

/* Arrays that grow and are kept: a batch is rebuilt in them each time. */
struct lists {
    struct node_request **requests;
    uint32_t *row_base;
    struct node_task *tasks;
    uint32_t *row, *request, *result;
    uint32_t cap_requests, cap_tasks, cap_entries;
};

struct node {
    struct node_cfg cfg;
    bool *is_moe;
    size_t bitmap_row, bitmap_bytes;
    uint8_t *held, *wanted;

    struct queue decode, bulk;
    bool computing;
    struct node_batch batch;
    struct lists lists;
    struct {
        bool active, loading;
        uint64_t stream;
        size_t at;              /* layer * n_experts + expert: next to look at */
        uint32_t layer, expert; /* being loaded */
    } assign;

    struct node_action *actions;
    size_t n_actions, cap_actions;
    char text[TEXT_MAX];
    struct node_stats stats;
};

static bool bit(const struct node *n, const uint8_t *map, uint32_t layer, uint32_t expert)
{
    return map[layer * n->bitmap_row + expert / 8] >> (expert % 8) & 1;
}

static void set_bit(const struct node *n, uint8_t *map, uint32_t layer, uint32_t expert, bool on)
{
    uint8_t mask = (uint8_t)(1u << (expert % 8)), *byte = &map[layer * n->bitmap_row + expert / 8];
    *byte = (uint8_t)(on ? *byte | mask : *byte & ~mask);
}

static bool grow(void **p, uint32_t *cap, uint32_t need, size_t each)
{
    if (need <= *cap) return true;
    uint32_t cap2 = *cap ? *cap : 16;
    while (cap2 < need)
        cap2 *= 2;
    size_t bytes;
    if (!size_mul(cap2, each, &bytes)) return false;
    void *q = mem_realloc(*p, bytes);
    if (q == NULL) return false;
    *p = q;
    *cap = cap2;
    return true;
}

/* Room for `more` actions before anything changes, so that a step either happens whole or not at all. */
static bool reserve_actions(struct node *n, size_t more)
{
    if (n->n_actions + more <= n->cap_actions) return true;
    size_t cap = n->cap_actions ? n->cap_actions : 32;
    while (cap < n->n_actions + more)
        cap *= 2;
    void *p = mem_realloc(n->actions, cap * sizeof *n->actions);
    if (p == NULL) return false;
    n->actions = p;
    n->cap_actions = cap;
    return true;
}

static struct node_action *act(struct node *n, enum node_action_kind kind)
{
    assert(n->n_actions < n->cap_actions);
    struct node_action *a = &n->actions[n->n_actions++];
    *a = (struct node_action){.kind = kind};
    return a;
}

enum err_code node_open(const struct node_cfg *cfg, struct node **out, struct err *why)
{
    struct node *n = mem_zalloc(sizeof *n);
    if (n == NULL) return err_nomem(why, "expert node");
    n->cfg = *cfg;
    n->bitmap_row = (cfg->n_experts + 7) / 8;
    n->bitmap_bytes = n->bitmap_row * cfg->n_layers;
    n->decode.last = &n->decode.first;
    n->bulk.last = &n->bulk.first;
    n->is_moe = mem_zalloc_array(cfg->n_layers, sizeof *n->is_moe);
    n->held = mem_zalloc(n->bitmap_bytes);
    n->wanted = mem_zalloc(n->bitmap_bytes);
    if (n->is_moe == NULL || n->held == NULL || n->wanted == NULL) {
        node_close(n);
        return err_nomem(why, "expert node");
    }
    memcpy(n->is_moe, cfg->is_moe, cfg->n_layers * sizeof *n->is_moe);
    n->cfg.is_moe = n->is_moe;
    *out = n;
    return ERR_OK;
}

void node_close(struct node *n)
{
    if (n == NULL) return;
    assert(n->decode.first == NULL && n->bulk.first == NULL);
    mem_free(n->is_moe);
    mem_free(n->held);
    mem_free(n->wanted);
    mem_free(n->lists.requests);
    mem_free(n->lists.row_base);
    mem_free(n->lists.tasks);
    mem_free(n->lists.row);
    mem_free(n->lists.request);
    mem_free(n->lists.result);
    mem_free(n->actions);
    mem_free(n);
}

bool node_holds(const struct node *n, uint32_t layer, uint32_t expert)
{
    return layer < n->cfg.n_layers && expert < n->cfg.n_experts && bit(n, n->held, layer, expert);
}

const uint8_t *node_held(const struct node *n)
{
    return n->held;
}

size_t node_bitmap_row(const struct node *n)
{
    return n->bitmap_row;
}

bool node_busy(const struct node *n)
{
    return n->assign.active || node_has_steps(n);
}

bool node_has_steps(const struct node *n)
{
    return n->computing || n->decode.first != NULL || n->bulk.first != NULL;
}

void node_stats(const struct node *n, struct node_stats *out)
{
    *out = n->stats;
    out->queued = n->decode.n + n->bulk.n;
}

static void push(struct queue *q, struct node_request *r)
{
    r->next = NULL;
    *q->last = r;
    q->last = &r->next;
    q->n++;
}

static void unlink_request(struct queue *q, struct node_request **at)
{
    struct node_request *r = *at;
    *at = r->next;
    if (q->last == &r->next) q->last = at;
    q->n--;
}

/* ---- assignment: unload what is not wanted, load what is missing, one at a time --------------- */

static void assign_go_on(struct node *n)
{
    if (!n->assign.active || n->assign.loading) return;
    size_t total = (size_t)n->cfg.n_layers * n->cfg.n_experts;
    for (; n->assign.at < total; n->assign.at++) {
        uint32_t layer = (uint32_t)(n->assign.at / n->cfg.n_experts);
        uint32_t expert = (uint32_t)(n->assign.at % n->cfg.n_experts);
        if (!bit(n, n->wanted, layer, expert) || bit(n, n->held, layer, expert)) continue;
        n->assign.loading = true;
        n->assign.layer = layer;
        n->assign.expert = expert;
        struct node_action *a = act(n, NODE_ACT_LOAD);
        a->layer = layer;
        a->expert = expert;
        return;
    }
    n->assign.active = false;
    act(n, NODE_ACT_HOLDINGS)->stream = n->assign.stream;
}

static void refuse(struct node *n, struct node_request *r, enum err_code code, const char *text)
{
    struct node_action *a = act(n, NODE_ACT_REFUSE);
    a->request = r;
    a->code = code;
    a->text = text;
    n->stats.refused++;
}

/* The first expert of a request that is not held; -1 if all are. */
static int64_t first_unheld(const struct node *n, const struct node_request *r)
{
    for (uint32_t k = 0; k < r->n_experts; k++)
        if (!node_holds(n, r->layer, r->experts[k])) return r->experts[k];
    return -1;
}

/* Requests that wait for an expert that has just been given up. */
static void refuse_unheld(struct node *n, struct queue *q)
{
    for (struct node_request **at = &q->first; *at != NULL;) {
        struct node_request *r = *at;
        if (first_unheld(n, r) < 0) {
            at = &r->next;
            continue;
        }
        unlink_request(q, at);
        refuse(n, r, ERR_NOT_FOUND, "an expert of this step was assigned elsewhere");
    }
}

static enum err_code on_assign(struct node *n, uint64_t stream, const uint8_t *held,
                               struct err *why)
{
    size_t unloads = 0;
    for (uint32_t l = 0; l < n->cfg.n_layers; l++)
        for (uint32_t e = 0; e < n->cfg.n_experts; e++)
            if (bit(n, n->held, l, e) && !bit(n, held, l, e)) unloads++;
    if (!reserve_actions(n, unloads + n->decode.n + n->bulk.n + 2))
        return err_nomem(why, "assignment");
    for (uint32_t l = 0; l < n->cfg.n_layers; l++) {
        for (uint32_t e = 0; e < n->cfg.n_experts; e++) {
            /* The batch under way may still use an expert: what it computes with is unloaded with the next assignment. */
            bool in_use = n->computing && n->batch.layer == l;
            if (!bit(n, n->held, l, e) || bit(n, held, l, e) || in_use) continue;
            set_bit(n, n->held, l, e, false);
            struct node_action *a = act(n, NODE_ACT_UNLOAD);
            a->layer = l;
            a->expert = e;
        }
    }
    refuse_unheld(n, &n->decode);
    refuse_unheld(n, &n->bulk);
    memcpy(n->wanted, held, n->bitmap_bytes);
    n->assign.active = true;
    n->assign.stream = stream;
    n->assign.at = 0;
    assign_go_on(n);
    return ERR_OK;
}

static enum err_code on_loaded(struct node *n, bool ok, const struct err *failed, struct err *why)
{
    assert(n->assign.loading);
    if (!reserve_actions(n, 1)) return err_nomem(why, "assignment");
    n->assign.loading = false;
    if (ok) {
        set_bit(n, n->held, n->assign.layer, n->assign.expert, true);
        assign_go_on(n);
        return ERR_OK;
    }
    n->assign.active = false;
    struct node_action *a = act(n, NODE_ACT_HOLDINGS);
    a->stream = n->assign.stream;
    a->code = failed->code;
    snprintf(n->text, sizeof n->text, "%.*s", (int)sizeof n->text - 1, failed->text);
    a->text = n->text;
    return ERR_OK;
}

/* ---- batches ---------------------------------------------------------------------------------- */

/* Merge the requests of the batch: one task per expert over all of them, in order of request. */
static void build_tasks(struct node *n)
{
    struct lists *li = &n->lists;
    struct node_batch *b = &n->batch;
    uint32_t base = 0, entry = 0, n_tasks = 0;
    for (uint32_t i = 0; i < b->n_requests; i++) {
        li->row_base[i] = base;
        base += li->requests[i]->n_rows;
    }
    b->n_rows = base;
    for (uint32_t e = 0; e < n->cfg.n_experts; e++) {
        uint32_t first = entry;
        for (uint32_t i = 0; i < b->n_requests; i++) {
            const struct node_request *r = li->requests[i];
            uint32_t at = 0;
            for (uint32_t k = 0; k < r->n_experts; at += r->expert_rows[k], k++) {
                if (r->experts[k] != e) continue;
                for (uint32_t j = 0; j < r->expert_rows[k]; j++, entry++) {
                    li->row[entry] = li->row_base[i] + r->row_index[at + j];
                    li->request[entry] = i;
                    li->result[entry] = at + j;
                }
                break;
            }
        }
        if (entry == first) continue;
        li->tasks[n_tasks++] = (struct node_task){e, entry - first, li->row + first,
                                                  li->request + first, li->result + first};
    }
    b->n_tasks = n_tasks;
    b->requests = li->requests;
    b->row_base = li->row_base;
    b->tasks = li->tasks;
}

/* Make room for a batch of `requests` requests with `entries` result rows. */
static bool reserve_lists(struct lists *li, uint32_t requests, uint32_t entries, uint32_t tasks)
{
    uint32_t cap = li->cap_requests, cap2 = li->cap_requests;
    if (!grow((void **)&li->requests, &cap, requests, sizeof *li->requests)) return false;
    if (!grow((void **)&li->row_base, &cap2, requests, sizeof *li->row_base)) return false;
    li->cap_requests = cap;
    if (!grow((void **)&li->tasks, &li->cap_tasks, tasks, sizeof *li->tasks)) return false;
    cap = cap2 = li->cap_entries;
    uint32_t cap3 = cap;
    if (!grow((void **)&li->row, &cap, entries, sizeof *li->row)) return false;
    if (!grow((void **)&li->request, &cap2, entries, sizeof *li->request)) return false;
    if (!grow((void **)&li->result, &cap3, entries, sizeof *li->result)) return false;
    li->cap_entries = cap;
    return true;
}

/* No event need come any more that would try again, so those who wait are told; the coordinator asks elsewhere or later. */
static void refuse_waiting(struct node *n, struct queue *q)
{
    while (q->first != NULL) {
        struct node_request *r = q->first;
        unlink_request(q, &q->first);
        refuse(n, r, ERR_EXHAUSTED, "the node has no memory for a batch");
    }
}

/* Begin the next batch if nothing is being computed: the oldest waiting step (decode first) and all others of its
 * lane and layer, up to max_batch_rows. */
static void begin_batch(struct node *n, uint64_t now_us)
{
    struct queue *q = n->decode.first != NULL ? &n->decode : &n->bulk;
    if (n->computing || q->first == NULL) return;
    uint32_t layer = q->first->layer, requests = 0, entries = 0;
    for (struct node_request *r = q->first; r != NULL; r = r->next) {
        if (r->layer != layer || (requests > 0 && entries + r->n_results > n->cfg.max_batch_rows))
            continue;
        requests++;
        entries += r->n_results;
    }
    if (!reserve_lists(&n->lists, requests, entries, n->cfg.n_experts) || !reserve_actions(n, 1)) {
        refuse_waiting(n, &n->decode); /* node_step has made room for one action per step */
        refuse_waiting(n, &n->bulk);
        return;
    }
    uint32_t taken = 0, sum = 0;
    for (struct node_request **at = &q->first; *at != NULL;) {
        struct node_request *r = *at;
        if (r->layer != layer || (taken > 0 && sum + r->n_results > n->cfg.max_batch_rows)) {
            at = &r->next;
            continue;
        }
        sum += r->n_results;
        n->lists.requests[taken++] = r;
        unlink_request(q, at);
    }
    n->batch = (struct node_batch){.layer = layer, .n_requests = taken};
    build_tasks(n);
    for (uint32_t i = 0; i < taken; i++)
        n->lists.requests[i]->begun_us = now_us;
    n->computing = true;
    act(n, NODE_ACT_COMPUTE)->batch = &n->batch;
}

static void on_request(struct node *n, struct node_request *r)
{
    if (r->layer >= n->cfg.n_layers || !n->is_moe[r->layer]) {
        refuse(n, r, ERR_INVALID, "layer has no routed experts");
        return;
    }
    int64_t missing = first_unheld(n, r);
    if (missing >= 0) {
        snprintf(n->text, sizeof n->text, "expert %lld of layer %u is not held by this node",
                 (long long)missing, r->layer);
        refuse(n, r, ERR_NOT_FOUND, n->text);
        return;
    }
    if (n->decode.n + n->bulk.n >= n->cfg.max_queued) {
        refuse(n, r, ERR_EXHAUSTED, "the node's queue is full");
        return;
    }
    push(r->bulk ? &n->bulk : &n->decode, r);
}

static void discard_stream(struct node *n, struct queue *q, uint64_t stream)
{
    for (struct node_request **at = &q->first; *at != NULL;) {
        struct node_request *r = *at;
        if (r->stream != stream) {
            at = &r->next;
            continue;
        }
        unlink_request(q, at);
        act(n, NODE_ACT_DISCARD)->request = r;
    }
}

static void on_computed(struct node *n, bool ok, const struct err *failed)
{
    assert(n->computing);
    n->computing = false;
    n->stats.steps += n->batch.n_requests;
    n->stats.multiplications += n->batch.n_tasks;
    for (uint32_t t = 0; t < n->batch.n_tasks; t++)
        n->stats.rows += n->batch.tasks[t].m;
    if (!ok) snprintf(n->text, sizeof n->text, "%.*s", (int)sizeof n->text - 1, failed->text);
    for (uint32_t i = 0; i < n->batch.n_requests; i++) {
        if (ok)
            act(n, NODE_ACT_REPLY)->request = n->batch.requests[i];
        else
            refuse(n, n->batch.requests[i], failed->code, n->text);
    }
}

enum err_code node_step(struct node *n, const struct node_event *ev, struct node_actions *todo,
                        struct err *why)
{
    enum err_code rc = ERR_OK;
    n->n_actions = 0;
    /* One more than this event needs: with a step that waits or computes its answer's room is there, so that only STEP
     * and ASSIGN can be refused, never what ends a batch, a load or a stream. */
    size_t most = 3 + n->decode.n + n->bulk.n + (n->computing ? n->batch.n_requests : 0);
    if (!reserve_actions(n, most)) return err_nomem(why, "expert node");
    switch (ev->kind) {
    case NODE_STEP:
        on_request(n, ev->request);
        break;
    case NODE_CLOSED:
        discard_stream(n, &n->decode, ev->stream);
        discard_stream(n, &n->bulk, ev->stream);
        break;
    case NODE_COMPUTED:
        on_computed(n, ev->done.ok, ev->done.why);
        break;
    case NODE_ASSIGN:
        rc = on_assign(n, ev->assign.stream, ev->assign.held, why);
        break;
    case NODE_LOADED:
        rc = on_loaded(n, ev->done.ok, ev->done.why, why);
        break;
    }
    if (rc == ERR_OK) begin_batch(n, ev->now_us);
    *todo = (struct node_actions){n->actions, n->n_actions};
    return rc;
}
