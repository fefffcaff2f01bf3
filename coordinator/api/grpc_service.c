/* The polling half, and the beginning and the end of both. */
#include "coordinator/api/grpc_service.h"

#include <assert.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/api/grpc_internal.h"

#define STALL_MESSAGES 256u /* unsent, then the sequence rests */
#define FLOW_MESSAGES  64u  /* and goes on from here */

static const char shutting_down[] = "the server is shutting down";

/* ---- polling half ----------------------------------------------------------------------------- */

static void tell_loop(struct grpc_call *c, unsigned news)
{
    struct grpc_service *s = c->service;
    if (atomic_fetch_or(&c->news, news) != 0) return; /* its mail is under way */
    if (!mailbox_post(&s->to_loop, &c->to_loop)) return;
    pthread_mutex_lock(&s->async_lock);
    if (s->async_open) uv_async_send(&s->async);
    pthread_mutex_unlock(&s->async_lock);
}

static void finish(struct grpc_call *c, enum err_code code, const char *text)
{
    if (c->finished || c->rpc == NULL) return;
    c->finished = true;
    rpc_call_finish(c->rpc, code == ERR_OK ? 0 : err_grpc_status(code), text);
}

static void call_free(struct grpc_call *c)
{
    struct grpc_service *s = c->service;
    if (atomic_load(&c->stalled)) s->n_stalled--;
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->calls = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    s->n_calls--;
    grpc_generate_deinit(c);
    mem_free(c);
}

static enum err_code on_call(void *ctx, struct rpc_call *rpc, void **call_ctx, struct err *why)
{
    struct grpc_service *s = ctx;
    if (atomic_load(&s->draining)) return err_set(why, ERR_UNAVAILABLE, "%s", shutting_down);
    if (s->n_calls >= LIMIT_GRPC_CALLS)
        return err_set(why, ERR_EXHAUSTED, "%u calls are open, the limit; try again later",
                       s->n_calls);
    struct grpc_call *c = mem_zalloc(sizeof *c);
    if (c == NULL) return err_nomem(why, "a call");
    c->service = s;
    c->rpc = rpc;
    c->end = (struct grpc_mail){.kind = GRPC_MAIL_END, .call = c};
    c->released = (struct grpc_mail){.kind = GRPC_MAIL_RELEASED, .call = c};
    c->next = s->calls;
    if (s->calls != NULL) s->calls->prev = c;
    s->calls = c;
    s->n_calls++;
    *call_ctx = c;
    return ERR_OK;
}

static enum err_code take_request(struct grpc_call *c, const struct rpc_message *m, struct err *why)
{
    struct grpc_service *s = c->service;
    size_t n;
    const uint8_t *bytes = rpc_message_header(m, &n);
    if (atomic_load(&s->draining)) return err_set(why, ERR_UNAVAILABLE, "%s", shutting_down);
    if (c->asked)
        return err_set(why, ERR_INVALID, "Generate takes one message, this is the second");
    size_t held = atomic_fetch_add(&s->query_bytes, n) + n;
    enum err_code rc = ERR_OK;
    if (held > LIMIT_HTTP_BODIES_BYTES)
        rc = err_set(why, ERR_EXHAUSTED,
                     "%zu bytes of requests wait to be read, the limit is %u; try again later",
                     held, LIMIT_HTTP_BODIES_BYTES);
    if (rc == ERR_OK) rc = frame_decode_generate_request(bytes, n, &c->query, why);
    if (rc != ERR_OK) {
        atomic_fetch_sub(&s->query_bytes, n);
        return rc;
    }
    c->query_bytes = n;
    c->asked = true;
    tell_loop(c, GRPC_NEWS_REQUEST);
    return ERR_OK;
}

static void on_message(void *call_ctx, struct rpc_call *rpc, struct rpc_message *m)
{
    (void)rpc;
    struct grpc_call *c = call_ctx;
    struct err why;
    enum err_code rc = take_request(c, m, &why);
    rpc_message_free(m);
    if (rc != ERR_OK) finish(c, rc, why.text);
}

static void on_half_close(void *call_ctx, struct rpc_call *rpc)
{
    (void)rpc;
    struct grpc_call *c = call_ctx;
    if (!c->asked) finish(c, ERR_INVALID, "the call has no GenerateRequest");
}

static void on_done(void *call_ctx, bool cancelled)
{
    (void)cancelled; /* the loop half knows whether its answer was complete */
    struct grpc_call *c = call_ctx;
    c->rpc = NULL;
    if (c->asked)
        tell_loop(c, GRPC_NEWS_GONE);
    else
        call_free(c);
}

static void set_stalled(struct grpc_call *c, bool stalled)
{
    if (atomic_load(&c->stalled) == stalled) return;
    atomic_store(&c->stalled, stalled);
    if (stalled)
        c->service->n_stalled++;
    else
        c->service->n_stalled--;
    if (c->rpc != NULL) tell_loop(c, GRPC_NEWS_FLOW);
}

static void send_reply(struct grpc_mail *m)
{
    struct grpc_call *c = m->call;
    if (c->rpc != NULL && !c->finished) {
        struct rpc_out out = {.header = m->bytes.data, .header_bytes = m->bytes.len};
        /* Either the call is over, then this finds nobody, or a token is lost and the answer must not go on. */
        if (!rpc_call_send(c->rpc, &out))
            finish(c, ERR_EXHAUSTED, "no memory for the answer");
        else if (rpc_call_unsent(c->rpc) > STALL_MESSAGES)
            set_stalled(c, true);
    }
    buf_free(&m->bytes);
    mem_free(m);
}

static void look_for_flow(struct grpc_service *s)
{
    for (struct grpc_call *c = s->calls; c != NULL && s->n_stalled > 0; c = c->next)
        if (c->rpc == NULL || rpc_call_unsent(c->rpc) <= FLOW_MESSAGES) set_stalled(c, false);
}

void grpc_service_pump(struct grpc_service *s)
{
    /* Read first: when it says stopped, all that the loop half will ever post is in the mailbox. */
    bool stopped = atomic_load(&s->stopped);
    for (struct mail *m = mailbox_take_all(&s->to_rpc), *next; m != NULL; m = next) {
        next = m->next;
        struct grpc_mail *g = (struct grpc_mail *)m;
        switch (g->kind) {
        case GRPC_MAIL_REPLY:
            send_reply(g);
            break;
        case GRPC_MAIL_END:
            finish(g->call, g->call->end_why.code, g->call->end_why.text);
            break;
        case GRPC_MAIL_RELEASED:
            call_free(g->call);
            break;
        }
    }
    if (s->n_stalled > 0) look_for_flow(s);
    if (stopped)
        for (struct grpc_call *c = s->calls; c != NULL; c = c->next)
            finish(c, ERR_UNAVAILABLE, shutting_down);
    if (s->cfg.health != NULL)
        rpc_health_set(s->cfg.health, atomic_load(&s->ready) && !atomic_load(&s->draining));
}

struct rpc_method grpc_service_method(struct grpc_service *s)
{
    return (struct rpc_method){
        "/moesaic.v1.InferenceService/Generate", on_call, {on_message, on_half_close, on_done}, s};
}

/* ---- open, close ------------------------------------------------------------------------------ */

enum err_code grpc_service_open(uv_loop_t *loop, const struct grpc_service_cfg *cfg,
                                struct grpc_service **out, struct err *why)
{
    struct grpc_service *s = mem_zalloc(sizeof *s);
    if (s == NULL) return err_nomem(why, "the gRPC API");
    s->cfg = *cfg;
    s->loop = loop;
    int e = uv_async_init(loop, &s->async, grpc_generate_on_async);
    if (e != 0) {
        mem_free(s);
        return err_set(why, ERR_IO, "the gRPC API: %s", uv_strerror(e));
    }
    s->async.data = s;
    s->async_open = true;
    mailbox_init(&s->to_loop);
    mailbox_init(&s->to_rpc);
    pthread_mutex_init(&s->async_lock, NULL);
    *out = s;
    return ERR_OK;
}

void grpc_service_set_ready(struct grpc_service *s, bool ready)
{
    atomic_store(&s->ready, ready);
    s->cfg.wake(s->cfg.wake_ctx);
}

void grpc_service_drain(struct grpc_service *s, void (*done)(void *ctx), void *ctx)
{
    s->on_drained = done;
    s->drained_ctx = ctx;
    atomic_store(&s->draining, true);
    s->cfg.wake(s->cfg.wake_ctx);
    grpc_generate_check_drained(s);
}

static void on_async_closed(uv_handle_t *h)
{
    struct grpc_service *s = h->data;
    s->async_closed = true;
    grpc_generate_check_stopped(s);
}

void grpc_service_stop(struct grpc_service *s, void (*done)(void *ctx), void *ctx)
{
    if (s == NULL) {
        if (done != NULL) done(ctx);
        return;
    }
    assert(!atomic_load(&s->stopped));
    s->on_drained = NULL;
    s->on_stopped = done;
    s->stopped_ctx = ctx;
    for (struct grpc_call *c = s->jobs; c != NULL; c = c->job_next)
        grpc_generate_cancel(c);
    atomic_store(&s->draining, true);
    atomic_store(&s->stopped, true);
    pthread_mutex_lock(&s->async_lock);
    s->async_open = false;
    pthread_mutex_unlock(&s->async_lock);
    uv_close((uv_handle_t *)&s->async, on_async_closed);
    s->cfg.wake(s->cfg.wake_ctx);
}

void grpc_service_close(struct grpc_service *s)
{
    if (s == NULL) return;
    /* No other thread and no rpc call is left; what is in the mailboxes finds nobody. */
    (void)mailbox_take_all(&s->to_loop);
    for (struct mail *m = mailbox_take_all(&s->to_rpc), *next; m != NULL; m = next) {
        next = m->next;
        struct grpc_mail *g = (struct grpc_mail *)m;
        if (g->kind != GRPC_MAIL_REPLY) continue;
        buf_free(&g->bytes);
        mem_free(g);
    }
    while (s->calls != NULL)
        call_free(s->calls);
    mailbox_deinit(&s->to_loop);
    mailbox_deinit(&s->to_rpc);
    pthread_mutex_destroy(&s->async_lock);
    mem_free(s);
}
