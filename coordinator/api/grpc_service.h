/* grpc_service.h - InferenceService.Generate: the API over gRPC, with the checks, texts and tokens of the HTTP API.
 *
 * Two halves, each with its own thread. The polling half (the thread that polls the rpc: the engine thread while it runs)
 * decodes requests and sends replies; the loop half checks, tokenizes, generates and makes text. Between them are two
 * mailboxes; a call is freed when both halves have let go of it.
 *
 *   client -> rpc_call -> decode --REQUEST, FLOW, GONE--> tokenize -> generation_service
 *   client <- rpc_call <- pump   <--REPLY, END, RELEASED--  text   <- generation_sink
 *
 * Order at the end: drain (loop) -> stop (loop; wait for its `done`) -> [the polling thread may change] -> pump once more
 * -> rpc_server_close with a little grace -> close. */
#ifndef MOESAIC_API_GRPC_SERVICE_H
#define MOESAIC_API_GRPC_SERVICE_H

#include <stdbool.h>
#include <uv.h>

#include "common/base/err.h"
#include "common/base/metrics.h"
#include "common/rpc/rpc.h"
#include "coordinator/api/generation.h"

struct grpc_service;

struct grpc_service_cfg {
    struct generation_model model; /* strings and tables are borrowed and outlive the service */
    struct generation_service service;
    struct metrics *metrics;   /* may be NULL */
    struct rpc_health *health; /* told of readiness by the pump; may be NULL */
    void (*wake)(
        void *ctx); /* any thread: make the polling thread come to grpc_service_pump soon */
    void *wake_ctx;
};

enum err_code grpc_service_open(uv_loop_t *loop, const struct grpc_service_cfg *cfg,
                                struct grpc_service **out, struct err *why);
/* For rpc_server_open; its callbacks come to the polling half. */
struct rpc_method grpc_service_method(struct grpc_service *s);

/* ---- any thread ---- */
/* What health tells; not ready at first. */
void grpc_service_set_ready(struct grpc_service *s, bool ready);

/* ---- polling thread ---- */
/* Send what the loop half has made; after every rpc_poll. Not from a callback. */
void grpc_service_pump(struct grpc_service *s);

/* ---- loop thread ---- */
/* New calls get UNAVAILABLE, health says not serving, what runs is finished; `done` (may run at once) when the last
 * answer has left. */
void grpc_service_drain(struct grpc_service *s, void (*done)(void *ctx), void *ctx);
/* Cancel what runs: its calls end as UNAVAILABLE at the next pump. `done` (may be NULL) from the loop when the service
 * has no more to do with the loop. generation_service must live until then. NULL is fine, `done` runs at once. */
void grpc_service_stop(struct grpc_service *s, void (*done)(void *ctx), void *ctx);

/* After `done` and rpc_server_close. NULL is fine. */
void grpc_service_close(struct grpc_service *s);

#endif
