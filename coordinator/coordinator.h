/* coordinator.h - a coordinator from its options to its end: opens the parts in order, prints the start-up block, drains. */
#ifndef MOESAIC_COORDINATOR_H
#define MOESAIC_COORDINATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"

struct coordinator_options {
    const char *model, *name; /* name NULL: the folder's */
    const char *nodes[LIMIT_NODES];
    uint32_t n_nodes, replicas;
    uint64_t placement_seed;
    const char *http, *grpc, *quantize, *cpu;
    uint32_t threads, ctx /* 0: what memory leaves */, chunk, queue;
    uint64_t kv_bytes; /* 0: by rule */
    uint32_t spin_us, drain_ms, request_ms;
    const char *tool_parser, *reasoning_parser; /* NULL: as the chat template suggests */
    bool insecure;
    int parent_fd;
};

/* Runs until a signal has drained it. The code and text of `why` say why it could not start. */
enum err_code coordinator_run(const struct coordinator_options *o, struct err *why);

#endif
