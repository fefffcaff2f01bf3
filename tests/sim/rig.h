/* rig.h - the real engine between a fake model, fake wires and fake clients, each of which checks it.
 *
 * The rig never acts by itself: jobs wait in `job`, messages in `wire`, until somebody (a unit test step by step, or
 * the simulator by a virtual clock) lets one happen. What is wrong first is kept in `wrong`, with the story so far in
 * `trace` if it was asked for. */
#ifndef MOESAIC_TESTS_SIM_RIG_H
#define MOESAIC_TESTS_SIM_RIG_H

#include "common/base/buf.h"
#include "coordinator/engine/engine.h"
#include "tests/sim/fake_model.h"

#define RIG_MAX_NODES   8
#define RIG_MAX_SLOTS   8
#define RIG_MAX_CLIENTS 64
#define RIG_MAX_WIRE    4096

/* A step on its way: what a node gets, and what it is to answer. */
struct rig_message {
    uint64_t step;
    uint32_t node, slot, layer, piece, n_rows, n_experts, n_entries;
    enum dispatch_lane lane;
    bool is_replay;
    uint64_t born;         /* when, us */
    uint64_t *inputs;      /* [n_rows] hidden states */
    uint32_t *experts;     /* [n_experts] */
    uint32_t *expert_rows; /* [n_experts] */
    uint32_t *row_index;   /* [n_entries] */
    uint32_t *slots;       /* [n_entries] result slots */
    uint64_t
        *results; /* [n_entries] the right ones; a simulated node puts its own in their place */
};

enum rig_client_state {
    CLIENT_UNUSED,
    CLIENT_WAITING,
    CLIENT_DONE,
    CLIENT_FAILED,
    CLIENT_CANCELLED
};

struct rig_client {
    enum rig_client_state state;
    uint64_t id, submit_us, deadline_us, ended_us;
    uint32_t n_prompt, max_tokens;
    bool prompt_logits, ignore_eos;
    bool begun;  /* a pass has had rows of it */
    bool paused; /* by the client */
    int32_t *prompt, *truth;
    uint32_t n_prompt_told, n_told;
    enum engine_finish reason;
    enum err_code code;
    char text[256];
};

struct rig {
    struct engine *engine;
    struct fake_model model;
    struct engine_cfg cfg;
    struct placement *placement; /* the one in force */
    bool up[RIG_MAX_NODES][DISPATCH_N_LANES];
    uint64_t now_us, told_us; /* told: when a client was last told something */

    bool has_job[RIG_MAX_SLOTS];
    struct engine_job job[RIG_MAX_SLOTS];
    struct fake_pass passes[RIG_MAX_SLOTS];
    struct rig_message *wire[RIG_MAX_WIRE]; /* in order of sending */
    uint32_t n_wire;
    struct rig_client clients[RIG_MAX_CLIENTS];
    uint32_t n_clients;

    int32_t eos;
    int bad_row_layer; /* the next job that runs this layer reports its first live row not finite; -1 */
    bool time_enough;   /* deadlines are so far that nobody may fail */
    bool starve_memory; /* no allocation succeeds inside the engine */
    uint32_t most_bulk; /* bulk steps of one node seen under way together */
    struct buf *trace;  /* may be NULL */
    char wrong[512];    /* "" while all is well */
    struct err refusal; /* of the last event that was not taken */

    /* Told when the list of actions named a job, or a message was put on the wire; may be NULL. */
    void (*on_job)(void *ctx, uint32_t slot);
    void (*on_message)(void *ctx, struct rig_message *m);
    void *ctx;
};

/* cfg without placement and eos; all nodes are down. The model is made of seed and cfg. */
void rig_open(struct rig *r, const struct engine_cfg *cfg, struct placement *placement,
              uint64_t seed);
void rig_close(struct rig *r);

/* Give an event with kind and contents set; now_us is filled in. */
enum err_code rig_step(struct rig *r, struct engine_event ev);
/* A prompt drawn from `seed`. Answers the client, NULL if it was refused (*why says). */
struct rig_client *rig_submit(struct rig *r, uint64_t id, uint32_t n_prompt, uint32_t max_tokens,
                              bool prompt_logits, uint64_t deadline_us, struct err *why);
struct rig_client *rig_find(struct rig *r,
                            uint64_t id); /* the one of that name that is waiting, or NULL */
void rig_cancel(struct rig *r, uint64_t id);
void rig_pause(struct rig *r, uint64_t id, bool paused);
void rig_compute(struct rig *r, uint32_t slot);        /* run the job that waits there */
void rig_answer(struct rig *r, struct rig_message *m); /* its reply arrives */
void rig_refuse(struct rig *r, struct rig_message *m);
/* Another answer to a step that was answered. */
void rig_answer_again(struct rig *r, uint64_t step);
void rig_lose(struct rig *r, struct rig_message *m); /* it never arrives */
void rig_node(struct rig *r, uint32_t node, enum dispatch_lane lane,
              bool up);                             /* down: its messages are lost */
void rig_place(struct rig *r, struct placement *p); /* acquired */
void rig_tick(struct rig *r, uint64_t now_us);
/* Jobs and messages, oldest first, until nothing waits or n events have happened; answers how many did. */
uint32_t rig_run(struct rig *r, uint32_t n);

void rig_fail(struct rig *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void rig_note(struct rig *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
