/* sim_node.h - a simulated expert node: the real core (expert_node/node.h) with the fake model's arithmetic, and no
 * process, clock or network. It is checked that it computes with weights that are there, and ends every request once. */
#ifndef MOESAIC_TESTS_SIM_SIM_NODE_H
#define MOESAIC_TESTS_SIM_SIM_NODE_H

#include "coordinator/cluster/dispatch.h"
#include "expert_node/node.h"
#include "tests/sim/fake_model.h"

/* A step at the node: copies of what came, owned by the node from sim_node_take on. */
struct sim_request {
    struct node_request core; /* first */
    enum dispatch_lane lane;
    uint64_t *inputs;  /* [n_rows] hidden states */
    uint64_t *results; /* [n_results] */
    struct sim_request *next;
};

struct sim_node {
    const struct fake_model *model;
    uint32_t number;
    struct node *core; /* NULL: there is no process */
    bool *loaded;      /* [n_layers * n_experts] weights that are in memory */
    const struct node_batch *batch;
    bool loading;
    uint32_t load_layer, load_expert;
    struct sim_request *inside;

    /* What the core wants done. The request of `answer` (code OK: with results) and `discard` is gone afterwards. */
    void (*compute)(void *ctx, struct sim_node *n);
    void (*load)(void *ctx, struct sim_node *n);
    void (*unload)(void *ctx, struct sim_node *n, uint32_t layer, uint32_t expert);
    void (*answer)(void *ctx, struct sim_node *n, const struct sim_request *q, enum err_code code,
                   const char *text);
    void (*discard)(void *ctx, struct sim_node *n, const struct sim_request *q);
    void (*holdings)(void *ctx, struct sim_node *n, uint64_t stream, bool ok);
    void (*wrong)(void *ctx, const char *text);
    void *ctx;
};

/* A request with room for its arrays, to be filled in; inputs, results and the lists of core are its own. */
struct sim_request *sim_request_make(uint32_t n_rows, uint32_t n_experts, uint32_t n_results);

/* model, number, handlers and ctx are set; an empty node. */
void sim_node_start(struct sim_node *n, uint32_t max_batch_rows, uint32_t max_queued);
/* The process dies with all that is inside. Nothing is told. */
void sim_node_crash(struct sim_node *n);

/* `no_memory`: no allocation succeeds meanwhile. */
void sim_node_take(struct sim_node *n, struct sim_request *q, uint64_t now_us, bool no_memory);
void sim_node_closed(struct sim_node *n, uint64_t stream, uint64_t now_us);
/* False: no memory for it. */
bool sim_node_assign(struct sim_node *n, uint64_t stream, const uint8_t *held, uint64_t now_us,
                     bool no_memory);
void sim_node_computed(struct sim_node *n, bool ok, uint64_t now_us);
void sim_node_loaded(struct sim_node *n, bool ok, uint64_t now_us);

#endif
