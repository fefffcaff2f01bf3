/* compute_driver.h - runs the jobs the engine names: stages of the model on the workers, and the sampling after a
 * head. Engine thread. */
#ifndef MOESAIC_DRIVERS_COMPUTE_DRIVER_H
#define MOESAIC_DRIVERS_COMPUTE_DRIVER_H

#include "coordinator/drivers/client_driver.h"
#include "coordinator/engine/engine.h"
#include "coordinator/model/model.h"

struct compute_driver;

struct compute_cfg {
    const struct model *model;
    const struct kernels *kernels;
    struct workers *workers;
    uint32_t n_kv_blocks;
    uint32_t decode_slots, prefill_slots;
    uint32_t max_decode_rows, chunk;
};

/* Most rows with logits in one prefill pass: those of a large vocabulary are large. */
uint32_t compute_driver_logit_rows(const struct compute_cfg *cfg);

/* Bytes that the slots' scratch and the KV blocks take. */
size_t compute_driver_bytes(const struct compute_cfg *cfg);

enum err_code compute_driver_open(const struct compute_cfg *cfg, struct compute_driver **out,
                                  struct err *why);
void compute_driver_close(struct compute_driver *d);

/* The pass in a slot: rows for experts, results, logits. */
struct model_pass *compute_driver_pass(struct compute_driver *d, uint32_t slot);

bool compute_driver_reply_bf16(
    const struct compute_driver *d); /* results of experts are bf16, else f32 */

/* Run a job to its end and describe that as a COMPUTED event (now_us is the caller's to set). */
void compute_driver_run(struct compute_driver *d, const struct engine *e,
                        const struct engine_job *job, const struct client_driver *clients,
                        struct engine_event *done);

/* The shared expert of the layer that a job ended with, if its rows now wait for routed experts. Changes nothing but when
 * it is computed. */
void compute_driver_shared(struct compute_driver *d, const struct engine_job *job);

/* Fill logprob and alternatives of an event from logits of a slot: of `token`, which may be -1 (none). */
void compute_driver_logprobs(struct compute_driver *d, uint32_t slot, uint32_t logit_row,
                             int32_t token, uint32_t n_top, struct generation_event *ev);

#endif
