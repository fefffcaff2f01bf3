/* node_link.h - one expert node as the coordinator talks to it: two streams, the hello, what it holds, how far it is.
 * Turns messages into calls of its handlers; knows no engine. Engine thread. */
#ifndef MOESAIC_DRIVERS_NODE_LINK_H
#define MOESAIC_DRIVERS_NODE_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/rpc/frame.h"
#include "common/rpc/rpc.h"
#include "coordinator/cluster/dispatch.h"

struct node_link;

enum node_link_state {
    NODE_LINK_CONNECTING, /* no stream */
    NODE_LINK_REFUSED, /* another model, protocol, ...: `reason` has both values; or it could not load its experts */
    NODE_LINK_LOADING, /* hello agreed, experts are being loaded */
    NODE_LINK_READY,   /* the decode lane can be used; the bulk lane may be down for a while */
    NODE_LINK_DRAINING,
};

struct node_link_handlers {
    /* A lane can be used, or not any more. */
    void (*on_lane)(void *ctx, uint32_t node, enum dispatch_lane lane, bool up);
    /* State or holdings changed. */
    void (*on_state)(void *ctx, uint32_t node);
    /* A result or an error for a step. Not OK, with the reason: the message fits nothing that was asked, and the peer
     * is dropped. */
    enum err_code (*on_result)(void *ctx, uint32_t node, const struct expert_reply *r,
                               const struct rpc_message *m, struct err *why);
};

struct node_link_cfg {
    uint32_t node;
    const char *target;
    struct rpc *rpc;
    const struct expert_hello *hello; /* ours; borrowed; lane is filled in */
    uint32_t n_layers, n_experts;
    uint8_t *
        assign; /* bitmap [n_layers][(n_experts + 7) / 8] it is to hold unless pinned; taken (mem_free) */
    struct node_link_handlers handlers;
    void *ctx;
};

enum err_code node_link_open(const struct node_link_cfg *cfg, struct node_link **out,
                             struct err *why);
void node_link_close(struct node_link *l);

/* False: the lane is down or memory is short. `tensor` is taken (mem_free) in any case. */
bool node_link_send(struct node_link *l, enum dispatch_lane lane, const struct expert_request *q,
                    void *tensor, size_t tensor_bytes);

enum node_link_state node_link_state(const struct node_link *l);
const char *node_link_state_name(enum node_link_state s);
const char *node_link_reason(const struct node_link *l);
const char *node_link_target(const struct node_link *l);
/* Facts of the last hello; "" and 0 before it. */
const char *node_link_id(const struct node_link *l);
const char *node_link_kernels(const struct node_link *l);
uint32_t node_link_threads(const struct node_link *l);
uint64_t node_link_bytes(const struct node_link *l);
uint32_t node_link_n_held(const struct node_link *l);
const uint8_t *
node_link_held(const struct node_link *l); /* bitmap, all zero before the first hello */
uint64_t
node_link_round_trip_us(const struct node_link *l); /* measured once after each hello; 0: not yet */
uint64_t node_link_bytes_per_second(const struct node_link *l);

#endif
