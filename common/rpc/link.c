/* A client stream that reconnects.
 *
 *   waiting --timer--> connecting --channel READY--> session (one call) --all its batches back--> waiting
 *
 * The channel retries the connection with gRPC's own backoff; `backoff_us` is for streams that end soon after
 * they began (refused, reset by us), which would else be opened again in a hot loop. A session is its own heap object: it
 * outlives a closed link until gRPC gave everything back. */
#include <assert.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

#define WATCH_MS      500 /* a watch returns by then, so that a closed link is not held for long */
#define STEADY_US     5000000 /* a stream that lasted so long begins its backoff anew */
#define DOWN_TEXT_MAX 512

struct session {
    struct stream st;
    struct rpc_link *link; /* NULL: the link was closed */
    struct rpc_tag start_tag, status_tag;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    const char *error_string;
    uint64_t opened_us;
};

struct rpc_link {
    struct rpc *r;
    char *target, *method;
    grpc_channel *channel;
    struct rpc_link_handlers h;
    void *ctx;
    struct session *session;
    struct rpc_timer timer;
    struct rpc_tag watch_tag;
    uint64_t backoff_us;
    unsigned pins; /* a pending watch, callbacks that run: the memory stays */
    bool told_down, closed;
};

static void connect_now(struct rpc_link *l);

static void unpin(struct rpc_link *l)
{
    if (--l->pins > 0 || !l->closed) return;
    mem_free(l->target);
    mem_free(l->method);
    mem_free(l);
}

/* ---- session ---------------------------------------------------------------------------------- */

static void tell_down(struct rpc_link *l, int status, const char *text)
{
    l->told_down = true;
    if (!l->closed && l->h.on_down != NULL) l->h.on_down(l->ctx, l, status, text);
}

static void on_started(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* a failure shows in the status */
    struct session *s = (struct session *)((char *)tag - offsetof(struct session, start_tag));
    stream_unpend(&s->st);
}

static void on_status(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* always a success */
    struct session *s = (struct session *)((char *)tag - offsetof(struct session, status_tag));
    s->st.over = true;
    stream_drop(&s->st);
    stream_unpend(&s->st);
}

static void session_message(struct stream *st, struct rpc_message *m)
{
    struct rpc_link *l = ((struct session *)st)->link;
    if (l == NULL) {
        rpc_message_free(m);
        return;
    }
    l->pins++;
    l->h.on_message(l->ctx, l, m);
    unpin(l);
}

static void session_nothing(struct stream *st)
{
    (void)st; /* the end shows in the status; an empty send queue needs nothing */
}

static uint64_t jittered(uint64_t us)
{
    return us - us / 5 +
           clock_now_ns() % (2 * us / 5 + 1); /* +-20 %: nodes restarted together spread out */
}

static void wait_and_reconnect(struct rpc_link *l, bool was_steady)
{
    if (l->closed) return;
    if (was_steady) l->backoff_us = RPC_BACKOFF_MIN_MS * 1000u;
    rpc_timer_arm(l->r, &l->timer, jittered(l->backoff_us));
    l->backoff_us *= 2;
    if (l->backoff_us > RPC_BACKOFF_MAX_MS * 1000u) l->backoff_us = RPC_BACKOFF_MAX_MS * 1000u;
}

/* Everything is back: report, schedule the next one, free. */
static void session_idle(struct stream *st)
{
    struct session *s = (struct session *)st;
    struct rpc_link *l = s->link;
    if (l != NULL) {
        char text[DOWN_TEXT_MAX];
        size_t n = GRPC_SLICE_LENGTH(s->details);
        if (n > sizeof text - 1) n = sizeof text - 1;
        memcpy(text, GRPC_SLICE_START_PTR(s->details), n);
        text[n] = '\0';
        l->pins++;
        l->session = NULL;
        tell_down(l, (int)s->status, text);
        wait_and_reconnect(l, clock_now_us() - s->opened_us > STEADY_US);
        unpin(l);
    }
    grpc_metadata_array_destroy(&s->initial);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_slice_unref(s->details);
    gpr_free((void *)(uintptr_t)s->error_string);
    grpc_call_unref(s->st.call);
    mem_free(s);
}

static const struct stream_ops session_ops = {
    .message = session_message,
    .end = session_nothing,
    .flushed = session_nothing,
    .idle = session_idle,
};

static bool session_begin(struct rpc_link *l)
{
    struct session *s = mem_zalloc(sizeof *s);
    if (s == NULL) return false;
    _Static_assert(offsetof(struct session, st) == 0, "callbacks cast back");
    stream_init(&s->st, l->r, &session_ops);
    s->link = l;
    s->start_tag.done = on_started;
    s->status_tag.done = on_status;
    s->details = grpc_empty_slice();
    s->opened_us = clock_now_us();
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    grpc_slice method = grpc_slice_from_copied_string(l->method);
    s->st.call = grpc_channel_create_call(l->channel, NULL, GRPC_PROPAGATE_DEFAULTS, l->r->cq,
                                          method, NULL, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    grpc_slice_unref(method);
    l->session = s;

    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[0].data.recv_status_on_client.trailing_metadata = &s->trailing;
    ops[0].data.recv_status_on_client.status = &s->status;
    ops[0].data.recv_status_on_client.status_details = &s->details;
    ops[0].data.recv_status_on_client.error_string = &s->error_string;
    stream_batch(&s->st, ops, 1, &s->status_tag);

    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY;
    ops[1].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &s->initial;
    stream_batch(&s->st, ops, 2, &s->start_tag);
    stream_receive(&s->st);
    return true;
}

/* ---- connecting ------------------------------------------------------------------------------- */

static void on_watch(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* changed or timed out: look again */
    struct rpc_link *l = (struct rpc_link *)((char *)tag - offsetof(struct rpc_link, watch_tag));
    if (!l->closed) connect_now(l);
    unpin(l);
}

static void on_timer(struct rpc_timer *t)
{
    connect_now((struct rpc_link *)((char *)t - offsetof(struct rpc_link, timer)));
}

static void connect_now(struct rpc_link *l)
{
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(l->channel, 1);
    l->pins++;
    if (state == GRPC_CHANNEL_READY) {
        if (session_begin(l)) {
            l->told_down = false;
            l->h.on_open(l->ctx, l);
        } else {
            wait_and_reconnect(l, false); /* memory is short */
        }
        unpin(l);
        return;
    }
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE && !l->told_down) {
        char text[DOWN_TEXT_MAX];
        snprintf(text, sizeof text, "cannot connect to %s", l->target);
        tell_down(l, GRPC_STATUS_UNAVAILABLE, text);
    }
    if (!l->closed) {
        l->pins++; /* until on_watch */
        grpc_channel_watch_connectivity_state(
            l->channel, state,
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                         gpr_time_from_millis(WATCH_MS, GPR_TIMESPAN)),
            l->r->cq, &l->watch_tag);
    }
    unpin(l);
}

/* ---- the face --------------------------------------------------------------------------------- */

enum err_code rpc_link_open(struct rpc *r, const char *target, enum rpc_lane lane,
                            const char *method, const struct rpc_link_handlers *h, void *ctx,
                            struct rpc_link **out, struct err *why)
{
    assert(h->on_open != NULL && h->on_message != NULL);
    struct rpc_link *l = mem_zalloc(sizeof *l);
    if (l == NULL) return err_nomem(why, "rpc link");
    l->r = r;
    l->h = *h;
    l->ctx = ctx;
    l->backoff_us = RPC_BACKOFF_MIN_MS * 1000u;
    l->watch_tag.done = on_watch;
    l->timer.fire = on_timer;
    l->target = mem_strdup(target);
    l->method = mem_strdup(method);
    enum err_code rc = ERR_OK;
    if (l->target == NULL || l->method == NULL) {
        rc = err_nomem(why, "rpc link");
    } else {
        struct err inner;
        l->channel = rpc_channel_open(target, lane, &inner);
        if (l->channel == NULL) rc = err_set(why, inner.code, "%s", inner.text);
    }
    if (rc != ERR_OK) {
        rpc_link_close(l);
        return rc;
    }
    rpc_timer_arm(r, &l->timer, 0); /* at the next poll: no callback before *out is known */
    *out = l;
    return ERR_OK;
}

bool rpc_link_send(struct rpc_link *l, const struct rpc_out *out)
{
    if (l->session != NULL) return stream_send(&l->session->st, out);
    rpc_out_release(out);
    return false;
}

size_t rpc_link_unsent(const struct rpc_link *l)
{
    return l->session != NULL ? l->session->st.n_unsent : 0;
}

bool rpc_link_is_open(const struct rpc_link *l)
{
    return l->session != NULL && !l->session->st.broken;
}

static void session_cancel(struct session *s, grpc_status_code status, const char *reason)
{
    s->st.quiet = true;
    stream_drop(&s->st);
    grpc_call_cancel_with_status(s->st.call, status, reason, NULL);
}

void rpc_link_reset(struct rpc_link *l, const char *reason)
{
    if (l->session != NULL) session_cancel(l->session, GRPC_STATUS_ABORTED, reason);
}

void rpc_link_close(struct rpc_link *l)
{
    if (l == NULL || l->closed) return;
    l->closed = true;
    rpc_timer_disarm(l->r, &l->timer);
    if (l->session != NULL) {
        l->session->link = NULL;
        session_cancel(l->session, GRPC_STATUS_CANCELLED, "closed");
        l->session = NULL;
    }
    if (l->channel != NULL) grpc_channel_destroy(l->channel);
    l->pins++;
    unpin(l);
}
