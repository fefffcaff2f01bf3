/* api.h - the coordinator's HTTP face: OpenAI's endpoints, health, metrics, views of the cluster.
 * Loop thread only. The engine is behind struct generation_service, so this module knows no engine. */
#ifndef MOESAIC_API_H
#define MOESAIC_API_H

#include <stdint.h>
#include <uv.h>

#include "common/base/err.h"
#include "common/base/metrics.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/http.h"

struct api;

struct api_cfg {
    const char *addresses;         /* "HOST:PORT[,HOST:PORT...]"; port 0: any */
    struct generation_model model; /* strings and tables are borrowed and outlive the api */
    struct generation_service service;
    struct metrics *metrics;           /* may be NULL */
    const char *version, *git, *build; /* static */
    uint32_t protocol_version;
    uint32_t ping_ms;     /* 0: 15 s */
    struct http_cfg http; /* its hosts, times and counts are read; 0: defaults */
};

/* UNAVAILABLE "... address already in use", INVALID. After a failure the loop must run once more before it closes. */
enum err_code api_open(uv_loop_t *loop, const struct api_cfg *cfg, struct api **out,
                       struct err *why);
int api_port(const struct api *a);

/* Readiness turns false, new generations get 503, what runs is finished; `done` when no connection is left. */
void api_drain(struct api *a, void (*done)(void *ctx), void *ctx);

/* Cancel what runs, drop the connections; `done` (may be NULL) from the loop when the memory is freed. */
void api_close(struct api *a, void (*done)(void *ctx), void *ctx);

#endif
