/* service.h - drives an expert node: receives frames, steps the core, computes, answers. One thread polls and computes
 * (with its workers), so that poller and products never fight for a core. */
#ifndef MOESAIC_NODE_SERVICE_H
#define MOESAIC_NODE_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/experts_spec.h"
#include "common/modelfile/model_file.h"
#include "common/rpc/rpc.h"
#include "common/sys/workers.h"

struct service;

struct service_cfg {
    const struct model_file *file;
    const char *quantize;
    const struct kernels *kernels;
    struct workers *workers;
    struct rpc *rpc;
    const char *listen; /* "host:port", port 0: a free one */
    const char *id;
    const struct expert_set *pinned; /* hold exactly these; NULL: wait to be assigned */
    uint32_t spin_us;
    uint32_t slow_us; /* tests: a batch, and the load of an expert, last at least so long; 0 */
};

/* Opens the port and loads pinned experts. UNAVAILABLE names the address when it is in use; EXHAUSTED names both sizes when
 * memory is short. */
enum err_code service_open(const struct service_cfg *cfg, struct service **out, struct err *why);
unsigned service_port(const struct service *s);
uint32_t service_held(const struct service *s);
uint64_t service_bytes(const struct service *s);

/* Serve until service_stop, then drain: tell coordinators, finish what is queued. */
void service_run(struct service *s);
void service_stop(struct service *s); /* any thread */
void service_close(struct service *s);

#endif
