/* sizing.h - context, cache and scratch from the memory there is: all decided before anything is loaded. Pure. */
#ifndef MOESAIC_COORDINATOR_SIZING_H
#define MOESAIC_COORDINATOR_SIZING_H

#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/plan.h"

struct sizing_input {
    const struct model_file *file;
    enum quantize quantize;
    bool local_experts; /* this process holds all experts */
    uint32_t ctx;       /* asked for; 0: the model's, or what memory leaves */
    uint64_t kv_bytes;  /* asked for; 0: by rule */
    uint32_t chunk;
    uint64_t available_bytes;
    uint64_t
        neighbours_bytes; /* what expert nodes on this machine will take of it: only the cache's rule looks at it */
};

struct sizing {
    uint32_t ctx, n_kv_blocks;
    uint32_t max_running; /* sequences with cache at once */
    uint64_t weights_bytes, experts_bytes, kv_bytes, scratch_bytes, total_bytes;
};

/* INVALID (a ctx beyond the model's, or beyond what kv_bytes hold: both are named), EXHAUSTED (what is needed and what there is, and what would fit). */
enum err_code sizing_decide(const struct sizing_input *in, struct sizing *out, struct err *why);

#endif
