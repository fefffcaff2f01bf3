/* dispatch.h - which node computes which rows: cuts the routing of a pass into steps, picks replicas, sends them
 * again when a node is lost, silent or refuses. Pure: time comes in, steps to send come out. Owned by the engine.
 *
 * A step is one message to one node. Bulk work (prefill) is cut into pieces of at most piece_bytes, of which at
 * most `bulk_outstanding` per node are under way. Results are functions of their rows alone, so any replica may be
 * asked again; a replay gets a new step number, and the late answer of the old one is unknown. */
#ifndef MOESAIC_CLUSTER_DISPATCH_H
#define MOESAIC_CLUSTER_DISPATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "coordinator/cluster/placement.h"

enum dispatch_lane { DISPATCH_DECODE, DISPATCH_BULK, DISPATCH_N_LANES };

struct dispatch_cfg {
    uint32_t n_nodes;
    uint32_t row_bytes;        /* of one input row on the wire */
    uint32_t result_bytes;     /* of one result row */
    uint32_t piece_bytes;      /* LIMIT_PIECE_BYTES */
    uint32_t bulk_outstanding; /* LIMIT_BULK_OUTSTANDING */
    uint64_t min_silence_us;   /* replay elsewhere after max(this, 10 x p99): 250000; bulk: 4x that */
};

struct dispatch_step {
    uint64_t id;
    uint32_t slot, layer, node;
    enum dispatch_lane lane;
    uint32_t piece;
    uint64_t epoch;
    uint32_t n_rows;             /* distinct rows sent */
    const uint32_t *rows;        /* [n_rows] pass rows, ascending */
    uint32_t n_experts;
    const uint16_t *experts;     /* [n_experts] ascending */
    const uint32_t *expert_rows; /* [n_experts] */
    uint32_t n_entries;          /* sum of expert_rows: result rows */
    const uint32_t *row_index;   /* [n_entries] into rows */
    const uint32_t *result_slot; /* [n_entries] where the result goes: pass row * top_k + k */
    uint64_t sent_us;
    bool is_replay;
};

/* Per node, for the status page. */
struct dispatch_node_stats {
    bool up[DISPATCH_N_LANES];
    uint32_t in_flight;          /* steps */
    uint64_t steps, rows;        /* answered: steps, result rows (= rows served) */
    uint64_t replays_from;       /* steps taken away from this node */
    uint64_t bytes_out, bytes_in;
    uint64_t p50_us, p99_us;     /* round trip over the last 256 decode-lane steps (bulk if there are none) */
};

struct dispatch;
void dispatch_node_stats(const struct dispatch *d, uint32_t node, struct dispatch_node_stats *out);
uint64_t dispatch_replays(const struct dispatch *d); /* result rows asked for again */

#endif
