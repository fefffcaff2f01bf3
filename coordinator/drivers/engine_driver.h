/* engine_driver.h - the engine thread: takes orders from the loop, polls the network, runs jobs, and carries out what
 * the engine says. Owns engine, compute driver and node driver. */
#ifndef MOESAIC_DRIVERS_ENGINE_DRIVER_H
#define MOESAIC_DRIVERS_ENGINE_DRIVER_H

#include "coordinator/drivers/client_driver.h"
#include "coordinator/drivers/node_driver.h"

struct engine_driver;
struct metrics;

struct engine_driver_cfg {
    const struct model_file *file;
    const struct model *model;
    const struct kernels *kernels;
    struct workers *workers;    /* led by the engine thread from start on */
    struct expert_store *local; /* NULL with nodes */
    const char *quantize;
    const char *const *targets;
    uint32_t n_targets, replicas;
    uint64_t placement_seed;
    uint32_t ctx, chunk, n_kv_blocks, max_waiting, max_running, max_decode_rows, decode_slots,
        prefill_slots;
    uint32_t spin_us;
    struct metrics *metrics;
    /* Called on the engine thread. */
    void (*node_changed)(void *ctx, uint32_t node, bool usable, const char *reason);
    void (*ready_changed)(void *ctx, bool ready);
    void (*after_poll)(
        void *ctx); /* after every rpc_poll, also between the tasks of a job; may be NULL */
    void *callback_ctx;
};

enum err_code engine_driver_open(const struct engine_driver_cfg *cfg, struct rpc *rpc,
                                 struct engine_driver **out, struct err *why);
/* For client_driver_open. */
void engine_driver_wake(void *self);
/* Start the thread; `clients` must be open. */
enum err_code engine_driver_start(struct engine_driver *d, struct client_driver *clients,
                                  struct err *why);
/* Ask the thread to end and wait for it. Nobody may wait for a sequence any more: no event comes after this. */
void engine_driver_stop(struct engine_driver *d);
void engine_driver_close(struct engine_driver *d);

size_t engine_driver_bytes(const struct engine_driver_cfg *cfg); /* KV and scratch */

#endif
