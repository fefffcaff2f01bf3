/* sim_parts.h - what the files of the simulator share; private to them. */
#ifndef MOESAIC_TESTS_SIM_SIM_PARTS_H
#define MOESAIC_TESTS_SIM_SIM_PARTS_H

#include "tests/sim/rig.h"
#include "tests/sim/sim.h"
#include "tests/sim/sim_node.h"

#define FAULTS_UNTIL_US 8000000u /* later everything works */

enum what {
    /* The coordinator's side. */
    DO_JOB,      /* a: slot */
    DO_ANSWER,   /* answer */
    DO_HOLDINGS, /* a: node, b: its life; answer */
    DO_UP,       /* a: node, b: lane */
    DO_CLIENT,
    DO_MOVE, /* other experts for the nodes */
    DO_FAULT,
    /* The node's side: a is the node, b its life; a node that is frozen does them later. */
    DO_TAKE,   /* step, by `stream` */
    DO_CLOSED, /* stream */
    DO_ASSIGN,
    DO_BATCH,
    DO_LOAD,
    DO_START /* b is not used */
};

/* What a node sends, on its way. */
struct sim_answer {
    uint32_t node;
    enum dispatch_lane lane;
    uint64_t stream, step;
    enum err_code code;
    uint32_t n;
    uint64_t *results; /* [n] */
    uint8_t *held;     /* HOLDINGS */
};

struct happening {
    uint64_t at, order; /* order: equal times keep the order of planning */
    enum what what;
    uint32_t a, b;
    uint64_t step, stream;
    struct sim_answer *answer; /* owned */
};

/* One stream of a node: what is sent first arrives first. */
struct connection {
    uint64_t stream;         /* 0: down */
    uint64_t to_us, back_us; /* when the last one arrives */
};

struct machine {
    struct sim_node node;
    uint32_t life; /* counts processes */
    uint64_t frozen_until_us;
    uint32_t slowness; /* times */
    uint32_t max_batch_rows, max_queued;
    bool preloads; /* holds all that it is to hold before it listens */
    bool starting; /* nothing is planned meanwhile */
    struct connection lanes[DISPATCH_N_LANES];
    uint8_t *wanted; /* bitmaps as of node.h: what the coordinator assigns */
    uint8_t *told;   /* what it believes */
};

struct sim {
    struct rig rig;
    uint64_t seed, draws, planned, n_events;
    struct happening *heap;
    uint32_t n_heap, cap_heap;
    uint32_t n_nodes, n_submits, n_submitted;
    bool far_deadlines, short_memory;
    bool tight; /* few KV blocks for long texts: sequences are preempted */
    struct machine machines[RIG_MAX_NODES];
    size_t bitmap_bytes;
    uint64_t epoch, next_id, next_stream, last_born_us;
    struct sim_totals *totals;
};

/* Uniform in [lo, hi]. At most one draw in the arguments of a call: their order is the compiler's, and a seed must be
 * the same world everywhere. */
uint64_t sim_draw(struct sim *s, uint64_t lo, uint64_t hi);
bool sim_chance(struct sim *s, uint32_t percent);
void sim_plan(struct sim *s, struct happening h); /* at and what are set; the order is given here */
#define SIM_COUNT(s, event) ((s)->totals->counts[SIM_##event]++)

/* sim_cluster.c: nodes, their streams and what goes wrong with them. */
void sim_cluster_open(struct sim *s);
void sim_cluster_close(struct sim *s);
void sim_cluster_send(void *ctx, struct rig_message *m); /* the rig's on_message */
void sim_cluster_happen(struct sim *s, const struct happening *h);
void sim_cluster_check_end(struct sim *s);
void sim_answer_free(struct sim_answer *a);

#endif
