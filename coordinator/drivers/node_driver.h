/* node_driver.h - the nodes as the engine sees them: links, hello, assignment, steps out, results in.
 * The local node (a coordinator without nodes) is one more of these, not a special case. Engine thread. */
#ifndef MOESAIC_DRIVERS_NODE_DRIVER_H
#define MOESAIC_DRIVERS_NODE_DRIVER_H

#include <jansson.h>

#include "common/experts/experts.h"
#include "common/rpc/rpc.h"
#include "coordinator/drivers/compute_driver.h"
#include "coordinator/engine/engine.h"

struct node_driver;
struct metrics;

struct node_driver_cfg {
    const struct model_file *file;
    const char *quantize;
    const char *const *targets; /* "host:port"; n 0: experts are computed here */
    uint32_t n_targets;
    uint32_t replicas;
    uint64_t placement_seed;
    struct rpc *rpc;
    struct compute_driver *compute;
    struct expert_store *local; /* the experts of a coordinator without nodes; else NULL */
    struct workers *workers;
    const char *kernels_name;
    struct metrics *metrics; /* may be NULL */
    /* What the driver learns: it is given to the engine at once. */
    void (*event)(void *ctx, const struct engine_event *ev);
    /* A node became usable or not; index and a short reason. */
    void (*changed)(void *ctx, uint32_t node, bool usable, const char *reason);
    const struct engine *(*engine)(void *ctx);
    void *ctx;
};

/* The placement the engine begins with (nothing held yet, or all of it locally); acquired for the caller. */
enum err_code node_driver_open(const struct node_driver_cfg *cfg, struct node_driver **out,
                               struct placement **placement, struct err *why);
/* Begin to connect; the engine must exist by now. */
enum err_code node_driver_start(struct node_driver *d, struct err *why);
void node_driver_close(struct node_driver *d);

uint32_t node_driver_count(const struct node_driver *d); /* >= 1 */
/* Carry out a SEND action. Gives the engine no event: false means that the step could not be sent. */
bool node_driver_send(struct node_driver *d, const struct dispatch_step *step);
/* What had to wait for memory; cheap when nothing did. Not from a callback. */
void node_driver_retry(struct node_driver *d);
/* Compute one waiting local step; false if there is none. */
bool node_driver_run_local(struct node_driver *d);

/* How many (layer, expert) have no usable node; the first of them if wanted. */
uint32_t node_driver_unserved(const struct node_driver *d, uint32_t *layer, uint32_t *expert);
uint64_t node_driver_epoch(const struct node_driver *d);
/* Every (layer, expert) has a usable node; if not, `reason` is filled. */
bool node_driver_complete(const struct node_driver *d, char *reason, size_t reason_bytes);
/* For /v1/cluster: an array of nodes, and the placement. New references; NULL when memory is short. */
json_t *node_driver_nodes_json(const struct node_driver *d);
json_t *node_driver_placement_json(const struct node_driver *d);

/* What start-up measured to each node; 0 where unknown. */
struct node_driver_facts {
    const char *address, *id, *kernels;
    const char
        *state; /* connecting, refused, loading, ready, suspect (one lane is down), draining */
    uint32_t experts, threads;
    uint64_t bytes, round_trip_us, bytes_per_second;
    bool usable, local;
};
void node_driver_facts(const struct node_driver *d, uint32_t node, struct node_driver_facts *out);

#endif
