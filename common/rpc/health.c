/* grpc.health.v1: Check answers once, Watch answers at each change. Only the whole server ("") has a state here. */
#include <string.h>

#include "common/base/mem.h"
#include "common/rpc/internal.h"
#include "moesaic/v1/health.pb-c.h"

struct rpc_health {
    bool serving, finished;
    struct watcher *watchers;
};

/* A call of either method. */
struct watcher {
    struct rpc_health *health;
    struct rpc_call *call;
    struct watcher *next, *prev;
    bool watching; /* in the list */
    bool one_shot; /* Check */
};

static bool send_status(struct rpc_call *c,
                        Grpc__Health__V1__HealthCheckResponse__ServingStatus status)
{
    uint8_t body[2] = {0x08, (uint8_t)status}; /* field 1; UNKNOWN (0) is never sent */
    return rpc_call_send(c, &(struct rpc_out){.header = body, .header_bytes = sizeof body});
}

static bool send_state(struct watcher *w)
{
    return send_status(w->call,
                       w->health->serving
                           ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                           : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING);
}

static enum err_code begin(struct rpc_health *h, struct rpc_call *c, bool one_shot, void **call_ctx,
                           struct err *why)
{
    struct watcher *w = mem_zalloc(sizeof *w);
    if (w == NULL) return err_nomem(why, "health call");
    w->health = h;
    w->call = c;
    w->one_shot = one_shot;
    *call_ctx = w;
    return ERR_OK;
}

static enum err_code on_check(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    return begin(ctx, c, true, call_ctx, why);
}

static enum err_code on_watch(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    struct rpc_health *h = ctx;
    if (h->finished) return err_set(why, ERR_UNAVAILABLE, "shutting down");
    return begin(h, c, false, call_ctx, why);
}

static void unlist(struct watcher *w)
{
    if (!w->watching) return;
    if (w->prev != NULL)
        w->prev->next = w->next;
    else
        w->health->watchers = w->next;
    if (w->next != NULL) w->next->prev = w->prev;
    w->watching = false;
}

static void on_request(void *call_ctx, struct rpc_call *c, struct rpc_message *m)
{
    struct watcher *w = call_ctx;
    size_t n;
    const uint8_t *bytes = rpc_message_header(m, &n);
    Grpc__Health__V1__HealthCheckRequest *q =
        n <= 4096 ? grpc__health__v1__health_check_request__unpack(NULL, n, bytes) : NULL;
    rpc_message_free(m);
    bool known = q != NULL && q->service[0] == '\0';
    if (q == NULL) {
        rpc_call_finish(c, GRPC_STATUS_INVALID_ARGUMENT, "not a HealthCheckRequest");
    } else if (w->one_shot) {
        if (!known)
            rpc_call_finish(c, GRPC_STATUS_NOT_FOUND, "unknown service; ask for \"\"");
        else if (send_state(w))
            rpc_call_finish(c, GRPC_STATUS_OK, "");
        else
            rpc_call_finish(c, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory");
    } else if (!known) {
        (void)send_status(c,
                          GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN);
    } else if (!w->watching) {
        (void)send_state(w);
        w->next = w->health->watchers;
        if (w->next != NULL) w->next->prev = w;
        w->health->watchers = w;
        w->watching = true;
    }
    if (q != NULL) grpc__health__v1__health_check_request__free_unpacked(q, NULL);
}

static void on_half_close(void *call_ctx, struct rpc_call *c)
{
    struct watcher *w = call_ctx;
    if (w->one_shot) rpc_call_finish(c, GRPC_STATUS_INVALID_ARGUMENT, "no request message");
}

static void on_done(void *call_ctx, bool cancelled)
{
    (void)cancelled;
    unlist(call_ctx);
    mem_free(call_ctx);
}

struct rpc_health *rpc_health_open(void)
{
    return mem_zalloc(sizeof(struct rpc_health));
}

void rpc_health_methods(struct rpc_health *h, struct rpc_method out[2])
{
    struct rpc_call_handlers handlers = {on_request, on_half_close, on_done};
    out[0] = (struct rpc_method){"/grpc.health.v1.Health/Check", on_check, handlers, h};
    out[1] = (struct rpc_method){"/grpc.health.v1.Health/Watch", on_watch, handlers, h};
}

void rpc_health_set(struct rpc_health *h, bool serving)
{
    if (h->serving == serving) return;
    h->serving = serving;
    for (struct watcher *w = h->watchers; w != NULL; w = w->next)
        (void)send_state(w);
}

void rpc_health_finish(struct rpc_health *h)
{
    rpc_health_set(h, false);
    h->finished = true;
    for (struct watcher *w = h->watchers; w != NULL; w = w->next)
        rpc_call_finish(w->call, GRPC_STATUS_OK, "");
}

void rpc_health_close(struct rpc_health *h)
{
    mem_free(h);
}
