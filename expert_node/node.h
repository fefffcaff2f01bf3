/* node.h - the expert node as a pure state machine: which requests are computed together, what is held, who gets
 * which answer. No clock, socket, thread or arithmetic inside; the service drives it. One owner thread.
 *
 * Decode before bulk. Requests for the same layer that wait together, from several streams and coordinators, are
 * merged: one task per expert, so the weights cross memory once. A step is refused only for an expert that is not held. */
#ifndef MOESAIC_NODE_H
#define MOESAIC_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct node;

struct node_cfg {
    uint32_t n_layers, n_experts;
    const bool *is_moe; /* [n_layers], copied */
    uint32_t
        max_batch_rows;  /* result rows computed in one go; at least one request is always taken */
    uint32_t max_queued; /* requests, then EXHAUSTED for that step */
};

/* One step as it came in. The caller owns it from before NODE_STEP until a REPLY, REFUSE or DISCARD action names it. */
struct node_request {
    uint64_t stream, step;
    uint32_t layer;
    bool bulk;
    uint32_t n_rows; /* input rows */
    uint32_t n_experts;
    const uint32_t *experts;     /* ascending */
    const uint32_t *expert_rows; /* [n_experts] */
    const uint32_t *row_index;   /* [sum of expert_rows] into n_rows */
    uint32_t n_results;          /* sum of expert_rows */
    uint64_t arrived_us, begun_us;
    struct node_request *next; /* the core's */
};

/* Rows of one expert in a batch: result i is request `request[i]`, result row `result[i]`, input row `row[i]` of all the
 * batch's rows one behind the other (request by request). */
struct node_task {
    uint32_t expert, m;
    const uint32_t *row, *request, *result;
};

struct node_batch {
    uint32_t layer;
    uint32_t n_requests, n_rows, n_tasks;
    struct node_request *const *requests;
    const uint32_t *row_base; /* [n_requests] first of its rows */
    const struct node_task *tasks;
};

enum node_event_kind {
    NODE_STEP,     /* request */
    NODE_CLOSED,   /* stream: its waiting requests are discarded */
    NODE_COMPUTED, /* the batch is done (ok), or failed (why) */
    NODE_ASSIGN,   /* hold exactly `held`; stream is told HOLDINGS when that is so */
    NODE_LOADED,   /* the expert asked for by LOAD is there (ok) or not (why) */
};

struct node_event {
    enum node_event_kind kind;
    uint64_t now_us;
    union {
        struct node_request *request;
        uint64_t stream;
        struct {
            bool ok;
            const struct err *why;
        } done; /* COMPUTED, LOADED */
        struct {
            uint64_t stream;
            const uint8_t *held; /* [n_layers][(n_experts + 7) / 8] */
        } assign;
    };
};

enum node_action_kind {
    NODE_ACT_COMPUTE,  /* batch; valid until NODE_COMPUTED */
    NODE_ACT_REPLY,    /* request: its results are computed */
    NODE_ACT_REFUSE,   /* request, code, text */
    NODE_ACT_DISCARD,  /* request: nobody waits for it */
    NODE_ACT_LOAD,     /* layer, expert; answer with NODE_LOADED; one at a time */
    NODE_ACT_UNLOAD,   /* layer, expert */
    NODE_ACT_HOLDINGS, /* tell stream what is held now; code != OK: loading failed, text says why */
};

struct node_action {
    enum node_action_kind kind;
    const struct node_batch *batch;
    struct node_request *request;
    uint64_t stream;
    uint32_t layer, expert;
    enum err_code code;
    const char *text; /* valid until the next step */
};

struct node_actions {
    const struct node_action *items;
    size_t n;
};

enum err_code node_open(const struct node_cfg *cfg, struct node **out, struct err *why);
void node_close(struct node *n); /* no request may be inside: close the streams first */

/* EXHAUSTED when memory is short: the event (STEP or ASSIGN; CLOSED before there was any step) was not taken. */
enum err_code node_step(struct node *n, const struct node_event *ev, struct node_actions *todo,
                        struct err *why);

bool node_holds(const struct node *n, uint32_t layer, uint32_t expert);
const uint8_t *node_held(const struct node *n); /* bitmap [n_layers][(n_experts + 7) / 8] */
size_t node_bitmap_row(const struct node *n);   /* (n_experts + 7) / 8 */
bool node_busy(const struct node *n);      /* a batch or a load is under way, or something waits */
bool node_has_steps(const struct node *n); /* a batch is under way, or steps wait */

struct node_stats {
    uint64_t steps, rows, multiplications, refused;
    uint32_t queued;
};
void node_stats(const struct node *n, struct node_stats *out);

#endif
