/* dispatch_parts.h - the inside of a dispatch, shared by dispatch.c (events) and dispatch_cut.c (choosing replicas
 * and cutting). Nobody else includes it. */
#ifndef MOESAIC_CLUSTER_DISPATCH_PARTS_H
#define MOESAIC_CLUSTER_DISPATCH_PARTS_H

#include "coordinator/cluster/dispatch.h"
#include "coordinator/cluster/latency.h"
#include "coordinator/cluster/list.h"
#include "coordinator/cluster/step_pool.h"

enum { ENTRY_UNSENT = 1, ENTRY_WAS_SENT = 2 };

/* What one pass waits for. Entry number = row * top_k + k, which is also its result slot. */
struct lot {
    bool active;
    enum dispatch_lane lane;
    uint32_t layer, n_rows;
    uint32_t n_open, n_unsent;
    uint16_t *experts; /* [n_rows, top_k] */
    uint8_t *flags;    /* [n_rows, top_k] ENTRY_ */
    bool *dead;        /* [n_rows] */
    uint32_t
        *tried; /* [n_experts] bit i: replica i (31: it or a later one) refused or kept silent */
    uint64_t
        retry_us; /* when unsent entries are looked at again with `tried` cleared; UINT64_MAX: never */
    struct list steps;
};

struct lane {
    bool up;
    /* A silent node is asked only where nobody else can be, until it answers or this time has passed: else its
     * empty books would draw work to it. */
    uint64_t suspect_until_us, silent_step;
    uint32_t in_flight; /* steps in `sent` */
    uint32_t load;      /* entries in sent and queued */
    struct list sent, queued;
    struct latency latency;
};

struct node {
    struct lane lanes[DISPATCH_N_LANES];
    uint64_t steps, rows, replays_from, bytes_out, bytes_in;
};

struct dispatch {
    struct dispatch_cfg cfg;
    struct dispatch_shape shape;
    struct placement *placement;
    struct node *nodes; /* [n_nodes] */
    struct lot *lots;   /* [n_slots] */
    struct step_pool pool;
    struct list out;   /* steps to hand over */
    uint64_t timer_us; /* nothing is due before */
    uint64_t replays;

    /* Scratch of dispatch_cut.c, sized at open. */
    uint32_t *order;      /* [max_rows * top_k] entries by (node, expert, row) */
    uint32_t *count;      /* [n_experts] unsent entries, then where they go in order */
    int32_t *choice;      /* [n_experts] node, or CHOICE_ */
    uint32_t *node_count; /* [n_nodes] */
    uint64_t *row_bits;   /* [(max_rows + 63) / 64] rows of the piece being cut */
    uint32_t *row_at;     /* [max_rows] their places in it */
};

/* Put as many unsent entries as possible into steps. */
void dispatch_place(struct dispatch *d, struct lot *lot, uint64_t now_us);
/* Whether each expert of the step has another live replica that was not tried yet. */
bool dispatch_has_alternative(const struct dispatch *d, const struct lot *lot,
                              const struct step *step);
/* Remember that the step's node was tried for its experts. */
void dispatch_mark_tried(const struct dispatch *d, struct lot *lot, const struct step *step);
/* Send queued steps of a lane as its limit allows. */
void dispatch_pump(struct dispatch *d, uint32_t node, enum dispatch_lane lane, uint64_t now_us);
uint64_t dispatch_silence_us(const struct dispatch *d, uint32_t node, enum dispatch_lane lane);

#endif
