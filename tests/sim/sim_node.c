#include "tests/sim/sim_node.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"

struct sim_request *sim_request_make(uint32_t n_rows, uint32_t n_experts, uint32_t n_results)
{
    struct sim_request *q = calloc(1, sizeof *q);
    if (q == NULL) abort();
    q->core.n_rows = n_rows;
    q->core.n_experts = n_experts;
    q->core.n_results = n_results;
    q->core.experts = calloc(n_experts, sizeof *q->core.experts);
    q->core.expert_rows = calloc(n_experts, sizeof *q->core.expert_rows);
    q->core.row_index = calloc(n_results, sizeof *q->core.row_index);
    q->inputs = calloc(n_rows, sizeof *q->inputs);
    q->results = calloc(n_results, sizeof *q->results);
    return q;
}

static void free_request(struct sim_request *q)
{
    free((void *)(uintptr_t)q->core.experts);
    free((void *)(uintptr_t)q->core.expert_rows);
    free((void *)(uintptr_t)q->core.row_index);
    free(q->inputs);
    free(q->results);
    free(q);
}

/* Out of the node, to be freed by the caller. */
static struct sim_request *let_go(struct sim_node *n, struct node_request *core)
{
    struct sim_request *q = (struct sim_request *)core, **at = &n->inside;
    while (*at != NULL && *at != q)
        at = &(*at)->next;
    if (*at == NULL) {
        n->wrong(n->ctx, "a node names a request that it does not have");
        return NULL;
    }
    *at = q->next;
    return q;
}

static size_t at_of(const struct sim_node *n, uint32_t layer, uint32_t expert)
{
    return (size_t)layer * n->model->n_experts + expert;
}

void sim_node_start(struct sim_node *n, uint32_t max_batch_rows, uint32_t max_queued)
{
    struct err why;
    struct node_cfg cfg = {n->model->n_layers, n->model->n_experts, n->model->is_moe,
                           max_batch_rows, max_queued};
    if (node_open(&cfg, &n->core, &why) != ERR_OK) abort();
    n->loaded = calloc(at_of(n, n->model->n_layers, 0) + 1, sizeof *n->loaded);
    n->batch = NULL;
    n->loading = false;
}

void sim_node_crash(struct sim_node *n)
{
    /* The core is told of each stream, so that it lets go of what waits; the batch dies with the process. */
    while (n->inside != NULL) {
        struct sim_request *q = n->inside;
        bool computing = false;
        for (uint32_t i = 0; n->batch != NULL && i < n->batch->n_requests; i++)
            computing |= n->batch->requests[i] == &q->core;
        if (computing) {
            n->inside = q->next;
            free_request(q);
            continue;
        }
        struct node_actions todo;
        struct err why;
        struct node_event ev = {.kind = NODE_CLOSED, .stream = q->core.stream};
        if (node_step(n->core, &ev, &todo, &why) != ERR_OK) abort();
        for (size_t i = 0; i < todo.n; i++)
            if (todo.items[i].kind == NODE_ACT_DISCARD)
                free_request(let_go(n, todo.items[i].request));
    }
    node_close(n->core);
    free(n->loaded);
    n->core = NULL;
    n->loaded = NULL;
    n->batch = NULL;
}

/* Each task of the batch, as expert_node/batcher.c does it: the rows of all requests one behind the other. */
static void compute_batch(struct sim_node *n)
{
    const struct node_batch *b = n->batch;
    uint64_t *rows = calloc(b->n_rows + 1, sizeof *rows);
    uint32_t base = 0;
    for (uint32_t i = 0; i < b->n_requests; i++) {
        const struct sim_request *q = (const struct sim_request *)b->requests[i];
        if (b->row_base[i] != base) n->wrong(n->ctx, "a batch's rows are not one behind the other");
        memcpy(rows + base, q->inputs, q->core.n_rows * sizeof *rows);
        base += q->core.n_rows;
    }
    for (uint32_t t = 0; t < b->n_tasks; t++) {
        const struct node_task *task = &b->tasks[t];
        if (!n->loaded[at_of(n, b->layer, task->expert)])
            n->wrong(n->ctx, "a node computes with an expert whose weights are not there");
        for (uint32_t i = 0; i < task->m; i++) {
            struct sim_request *q = (struct sim_request *)b->requests[task->request[i]];
            q->results[task->result[i]] =
                fake_expert(n->model, b->layer, task->expert, rows[task->row[i]]);
        }
    }
    free(rows);
}

static void act(struct sim_node *n, const struct node_action *a)
{
    struct sim_request *q = NULL;
    switch (a->kind) {
    case NODE_ACT_COMPUTE:
        if (n->batch != NULL) n->wrong(n->ctx, "a node computes two batches at once");
        n->batch = a->batch;
        n->compute(n->ctx, n);
        break;
    case NODE_ACT_REPLY:
    case NODE_ACT_REFUSE:
    case NODE_ACT_DISCARD:
        q = let_go(n, a->request);
        if (q == NULL) break;
        if (a->kind == NODE_ACT_DISCARD)
            n->discard(n->ctx, n, q);
        else
            n->answer(n->ctx, n, q, a->kind == NODE_ACT_REPLY ? ERR_OK : a->code, a->text);
        free_request(q);
        break;
    case NODE_ACT_LOAD:
        if (n->loading || n->loaded[at_of(n, a->layer, a->expert)])
            n->wrong(n->ctx, "a node loads two at once, or what it has");
        n->loading = true;
        n->load_layer = a->layer;
        n->load_expert = a->expert;
        n->load(n->ctx, n);
        break;
    case NODE_ACT_UNLOAD:
        if (!n->loaded[at_of(n, a->layer, a->expert)])
            n->wrong(n->ctx, "a node gives up what it does not have");
        n->loaded[at_of(n, a->layer, a->expert)] = false;
        n->unload(n->ctx, n, a->layer, a->expert);
        break;
    case NODE_ACT_HOLDINGS:
        n->holdings(n->ctx, n, a->stream, a->code == ERR_OK);
        break;
    }
}

static enum err_code step(struct sim_node *n, const struct node_event *ev, bool no_memory,
                          struct err *why)
{
    struct node_actions todo = {0};
    if (no_memory) mem_fail_at(1);
    enum err_code rc = node_step(n->core, ev, &todo, why);
    mem_fail_at(0);
    for (size_t i = 0; rc == ERR_OK && i < todo.n; i++)
        act(n, &todo.items[i]);
    if (rc != ERR_OK && ev->kind != NODE_STEP && ev->kind != NODE_ASSIGN)
        n->wrong(n->ctx, "a node refuses an event that it must take");
    return rc;
}

void sim_node_take(struct sim_node *n, struct sim_request *q, uint64_t now_us, bool no_memory)
{
    struct err why;
    struct node_event ev = {.kind = NODE_STEP, .now_us = now_us, .request = &q->core};
    q->next = n->inside;
    n->inside = q;
    if (step(n, &ev, no_memory, &why) == ERR_OK) return;
    let_go(n, &q->core);
    n->answer(n->ctx, n, q, ERR_EXHAUSTED, why.text);
    free_request(q);
}

void sim_node_closed(struct sim_node *n, uint64_t stream, uint64_t now_us)
{
    struct err why;
    struct node_event ev = {.kind = NODE_CLOSED, .now_us = now_us, .stream = stream};
    step(n, &ev, false, &why);
}

bool sim_node_assign(struct sim_node *n, uint64_t stream, const uint8_t *held, uint64_t now_us,
                     bool no_memory)
{
    struct err why;
    struct node_event ev = {
        .kind = NODE_ASSIGN, .now_us = now_us, .assign = {.stream = stream, .held = held}};
    return step(n, &ev, no_memory, &why) == ERR_OK;
}

void sim_node_computed(struct sim_node *n, bool ok, uint64_t now_us)
{
    struct err why, failed = {.code = ERR_INTERNAL, .text = "a batch failed"};
    struct node_event ev = {
        .kind = NODE_COMPUTED, .now_us = now_us, .done = {.ok = ok, .why = &failed}};
    if (ok) compute_batch(n);
    n->batch = NULL;
    step(n, &ev, false, &why);
}

void sim_node_loaded(struct sim_node *n, bool ok, uint64_t now_us)
{
    struct err why, failed = {.code = ERR_IO, .text = "an expert cannot be read"};
    struct node_event ev = {
        .kind = NODE_LOADED, .now_us = now_us, .done = {.ok = ok, .why = &failed}};
    if (ok) n->loaded[at_of(n, n->load_layer, n->load_expert)] = true;
    n->loading = false;
    step(n, &ev, false, &why);
}
