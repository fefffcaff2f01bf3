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
    uint64_t min_silence_us; /* replay elsewhere after max(this, 10 x p99): 250000; bulk: 4x that */
};

struct dispatch_step {
    uint64_t id;
    uint32_t slot, layer, node;
    enum dispatch_lane lane;
    uint32_t piece;
    uint64_t epoch;
    uint32_t n_rows;      /* distinct rows sent */
    const uint32_t *rows; /* [n_rows] pass rows, ascending */
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
    uint32_t in_flight;    /* steps */
    uint64_t steps, rows;  /* answered: steps, result rows (= rows served) */
    uint64_t replays_from; /* steps taken away from this node */
    uint64_t bytes_out, bytes_in;
    uint64_t p50_us,
        p99_us; /* round trip over the last 256 decode-lane steps (bulk if there are none) */
};

struct dispatch;
void dispatch_node_stats(const struct dispatch *d, uint32_t node, struct dispatch_node_stats *out);
uint64_t dispatch_replays(const struct dispatch *d); /* result rows asked for again */

/* ---- what the engine calls; a driver needs none of it ------------------------------------------
 *
 * One lot per slot: the entries (row, k) of one MoE layer of the pass in that slot. An entry is unsent, in a step
 * (queued behind the limit of its lane, or sent), or answered. Nothing here fails for want of memory after open:
 * entries for which no step can be had stay unsent and are looked at again 10 ms later. */

#define DISPATCH_DECODE_OUTSTANDING 64u     /* steps per node; more wait at home */
#define DISPATCH_RETRY_US           100000u /* after every live replica has refused an expert */
#define DISPATCH_NOMEM_RETRY_US     10000u

struct dispatch_shape {
    uint32_t n_layers, n_experts, top_k;
    uint32_t decode_slots,
        n_slots;       /* slots below decode_slots use the decode lane, the others the bulk lane */
    uint32_t max_rows; /* of any pass */
};

/* The placement is acquired; it must have the layers and experts of the shape and at most cfg->n_nodes nodes. */
enum err_code dispatch_open(const struct dispatch_cfg *cfg, const struct dispatch_shape *shape,
                            struct placement *placement, struct dispatch **out, struct err *why);
void dispatch_close(struct dispatch *d);

/* Begin the lot of a slot (which has none): experts [n_rows, top_k] ascending, copied; rows with skip[row] set have
 * no entries. */
void dispatch_start(struct dispatch *d, uint64_t now_us, uint32_t slot, uint32_t layer,
                    const uint16_t *experts, const bool *skip, uint32_t n_rows);
/* Rows [first, first + n) are needed no more. Steps that serve only such rows are forgotten. */
void dispatch_kill_rows(struct dispatch *d, uint64_t now_us, uint32_t slot, uint32_t first,
                        uint32_t n);
/* Forget the lot and its steps. */
void dispatch_drop(struct dispatch *d, uint64_t now_us, uint32_t slot);

uint32_t dispatch_n_open(const struct dispatch *d,
                         uint32_t slot); /* entries without an answer; 0: done */
uint32_t dispatch_n_unsent(const struct dispatch *d,
                           uint32_t slot); /* of these, not in a step: no node can be asked */
/* An expert for which the rows [first, first + n) wait unsent; false if there is none. *n_live: nodes that hold it
 * and are up (all of them refuse it), 0: none is up. */
bool dispatch_find_unsent(const struct dispatch *d, uint32_t slot, uint32_t first, uint32_t n,
                          uint32_t *layer, uint32_t *expert, uint32_t *n_live);
/* A step of the slot that was sent and not answered, NULL if there is none. */
const struct dispatch_step *dispatch_first_sent(const struct dispatch *d, uint32_t slot);
const struct dispatch_step *dispatch_find(const struct dispatch *d, uint64_t step);
/* Was this number ever given to a step? An answer for one that was is at worst late. */
bool dispatch_was_given(const struct dispatch *d, uint64_t step);

void dispatch_reply(struct dispatch *d, uint64_t now_us, uint64_t step);
void dispatch_failed(struct dispatch *d, uint64_t now_us, uint64_t step);
void dispatch_node_up(struct dispatch *d, uint64_t now_us, uint32_t node, enum dispatch_lane lane);
void dispatch_node_down(struct dispatch *d, uint64_t now_us, uint32_t node,
                        enum dispatch_lane lane);
/* INVALID: not the shape of this dispatch. */
enum err_code dispatch_set_placement(struct dispatch *d, uint64_t now_us,
                                     struct placement *placement, struct err *why);
void dispatch_tick(struct dispatch *d, uint64_t now_us);
/* When dispatch_tick has something to do; may be early. UINT64_MAX: never. */
uint64_t dispatch_next_timer_us(const struct dispatch *d);

/* The next step that is to be sent now, each once; NULL: no more. */
const struct dispatch_step *dispatch_next_send(struct dispatch *d);
bool dispatch_has_sends(const struct dispatch *d);

#endif
