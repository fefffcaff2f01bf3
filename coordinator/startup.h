/* startup.h - the one block that a coordinator prints when it can answer. Loop thread. */
#ifndef MOESAIC_COORDINATOR_STARTUP_H
#define MOESAIC_COORDINATOR_STARTUP_H

#include <jansson.h>
#include <stdbool.h>

#include "common/modelfile/model_file.h"
#include "coordinator/sizing.h"

struct startup_facts {
    const char *name, *quantize, *kernels, *http, *grpc;
    const struct model_file *file;
    const struct sizing *sizing;
    const json_t *cluster; /* as GET /v1/cluster */
    uint32_t threads, replicas;
    bool chat;
};

bool startup_measured(const json_t *cluster); /* the round trip to every ready node is known */
void startup_print(const struct startup_facts *f);

#endif
