/* The serving end: one outstanding request_call hands every new call to the method that its path names. */
#include <assert.h>
#include <errno.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <netdb.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

#define DETAILS_MAX 1024u /* of a status text: it travels in a header block */

struct rpc_server {
    struct rpc *r;
    grpc_server *server;
    struct rpc_method *methods;
    unsigned n_methods, port;
    struct rpc_tag accept_tag, shutdown_tag;
    grpc_call *new_call; /* filled in by gRPC while accepting */
    grpc_call_details details;
    grpc_metadata_array metadata;
    unsigned n_calls;
    bool accepting, closing, shut_down;
};

struct rpc_call {
    struct stream st;
    struct rpc_server *server;
    const struct rpc_method *method; /* NULL: no such method, or refused by on_call */
    void *ctx;
    grpc_metadata_array metadata;
    struct rpc_tag close_tag, status_tag;
    int cancelled;
    int status;
    grpc_slice details;
    bool finish_wanted, status_sent;
    char *peer;
};

/* ---- one call --------------------------------------------------------------------------------- */

static void on_status_sent(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* the close tells whether the client got it */
    struct rpc_call *c = (struct rpc_call *)((char *)tag - offsetof(struct rpc_call, status_tag));
    stream_unpend(&c->st);
}

static void send_status_if_due(struct rpc_call *c)
{
    if (!c->finish_wanted || c->status_sent || c->st.over || c->st.sending) return;
    c->status_sent = true;
    c->st.broken = true;
    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    size_t n = 0;
    if (c->st.lazy_initial) {
        c->st.lazy_initial = false;
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    }
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = (grpc_status_code)c->status;
    ops[n++].data.send_status_from_server.status_details = &c->details;
    stream_batch(&c->st, ops, n, &c->status_tag);
}

static void call_message(struct stream *st, struct rpc_message *m)
{
    struct rpc_call *c = (struct rpc_call *)st;
    c->method->handlers.on_message(c->ctx, c, m);
}

static void call_end(struct stream *st)
{
    struct rpc_call *c = (struct rpc_call *)st;
    if (c->method != NULL && !c->st.over && !c->finish_wanted &&
        c->method->handlers.on_half_close != NULL)
        c->method->handlers.on_half_close(c->ctx, c);
}

static void call_flushed(struct stream *st)
{
    send_status_if_due((struct rpc_call *)st);
}

static void call_idle(struct stream *st)
{
    struct rpc_call *c = (struct rpc_call *)st;
    if (c->method != NULL && c->method->handlers.on_done != NULL)
        c->method->handlers.on_done(c->ctx, c->cancelled != 0);
    grpc_slice_unref(c->details);
    grpc_metadata_array_destroy(&c->metadata);
    grpc_call_unref(c->st.call); /* last: the metadata's elements were its own */
    gpr_free(c->peer);
    c->server->n_calls--;
    mem_free(c);
}

static const struct stream_ops call_ops = {
    .message = call_message, .end = call_end, .flushed = call_flushed, .idle = call_idle};

static void on_closed(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* always a success */
    struct rpc_call *c = (struct rpc_call *)((char *)tag - offsetof(struct rpc_call, close_tag));
    c->st.over = true;
    stream_drop(&c->st);
    stream_unpend(&c->st);
}

/* ---- accepting -------------------------------------------------------------------------------- */

static void accept_next(struct rpc_server *s)
{
    grpc_metadata_array_init(&s->metadata);
    grpc_call_details_init(&s->details);
    grpc_call_error e = grpc_server_request_call(s->server, &s->new_call, &s->details, &s->metadata,
                                                 s->r->cq, s->r->cq, &s->accept_tag);
    assert(e == GRPC_CALL_OK);
    s->accepting = true;
}

static const struct rpc_method *find_method(const struct rpc_server *s, grpc_slice path)
{
    size_t n = GRPC_SLICE_LENGTH(path);
    for (unsigned i = 0; i < s->n_methods; i++)
        if (strlen(s->methods[i].path) == n &&
            memcmp(s->methods[i].path, GRPC_SLICE_START_PTR(path), n) == 0)
            return &s->methods[i];
    return NULL;
}

static void begin_call(struct rpc_server *s)
{
    struct rpc_call *c = mem_zalloc(sizeof *c);
    if (c == NULL) {
        grpc_metadata_array_destroy(&s->metadata);
        grpc_call_unref(s->new_call); /* cancels it */
        return;
    }
    _Static_assert(offsetof(struct rpc_call, st) == 0, "callbacks cast back");
    stream_init(&c->st, s->r, &call_ops);
    c->st.call = s->new_call;
    c->st.lazy_initial = true;
    c->server = s;
    c->metadata = s->metadata;
    c->close_tag.done = on_closed;
    c->status_tag.done = on_status_sent;
    c->details = grpc_empty_slice();
    s->n_calls++;

    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &c->cancelled;
    stream_batch(&c->st, &op, 1, &c->close_tag);

    const struct rpc_method *m = find_method(s, s->details.method);
    if (m == NULL) {
        char text[256];
        size_t n = GRPC_SLICE_LENGTH(s->details.method);
        snprintf(text, sizeof text, "no method %.*s", (int)(n < 200 ? n : 200),
                 (const char *)GRPC_SLICE_START_PTR(s->details.method));
        rpc_call_finish(c, GRPC_STATUS_UNIMPLEMENTED, text);
        return;
    }
    struct err why = {0};
    enum err_code rc = m->on_call(m->ctx, c, &c->ctx, &why);
    if (rc != ERR_OK) {
        rpc_call_finish(c, err_grpc_status(rc), why.text);
        return;
    }
    c->method = m;
    if (!c->finish_wanted) stream_receive(&c->st);
}

static void on_accepted(struct rpc_tag *tag, bool ok)
{
    struct rpc_server *s =
        (struct rpc_server *)((char *)tag - offsetof(struct rpc_server, accept_tag));
    s->accepting = false;
    if (ok)
        begin_call(s);
    else
        grpc_metadata_array_destroy(&s->metadata);
    grpc_call_details_destroy(&s->details);
    if (ok && !s->closing) accept_next(s);
}

static void on_shut_down(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_server *s =
        (struct rpc_server *)((char *)tag - offsetof(struct rpc_server, shutdown_tag));
    s->shut_down = true;
}

/* ---- open, close ------------------------------------------------------------------------------ */

/* gRPC says "failed" only; bind once more to learn why. */
static int listen_errno(const char *address)
{
    const char *colon = strrchr(address, ':');
    char host[256];
    if (colon == NULL || strncmp(address, "unix:", 5) == 0 ||
        (size_t)(colon - address) >= sizeof host)
        return 0;
    size_t n = (size_t)(colon - address), skip = 0;
    if (n >= 2 && address[0] == '[' && address[n - 1] == ']') {
        skip = 1;
        n -= 2;
    }
    memcpy(host, address + skip, n);
    host[n] = '\0';
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    if (getaddrinfo(host, colon + 1, &hints, &list) != 0) return EADDRNOTAVAIL;
    int found = 0;
    for (struct addrinfo *a = list; a != NULL && found == 0; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) continue;
        int one = 1;
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, 1) != 0) found = errno;
        close(fd);
    }
    freeaddrinfo(list);
    return found;
}

static enum err_code cannot_listen(const char *address, struct err *why)
{
    int e = listen_errno(address);
    if (e == EADDRINUSE)
        return err_set(why, ERR_UNAVAILABLE, "listen on %s: address in use", address);
    return err_set(why, ERR_UNAVAILABLE, "listen on %s: %s", address,
                   e != 0 ? strerror(e) : "not an address of this machine, or in use");
}

enum err_code rpc_server_open(struct rpc *r, const char *address, const struct rpc_method *methods,
                              unsigned n_methods, struct rpc_server **out, struct err *why)
{
    struct rpc_server *s = mem_zalloc(sizeof *s);
    if (s == NULL) return err_nomem(why, "rpc server");
    s->r = r;
    s->accept_tag.done = on_accepted;
    s->shutdown_tag.done = on_shut_down;
    s->methods = mem_zalloc_array(n_methods, sizeof *s->methods);
    if (s->methods == NULL) {
        mem_free(s);
        return err_nomem(why, "rpc server");
    }
    memcpy(s->methods, methods, n_methods * sizeof *methods);
    s->n_methods = n_methods;
    s->server = rpc_server_make();
    grpc_server_register_completion_queue(s->server, r->cq, NULL);

    grpc_server_credentials *creds = rpc_server_credentials();
    int port = grpc_server_add_http2_port(s->server, address, creds);
    grpc_server_credentials_release(creds);
    if (port <= 0) {
        enum err_code rc = cannot_listen(address, why);
        rpc_server_close(s, 0);
        return rc;
    }
    s->port = (unsigned)port;
    grpc_server_start(s->server);
    accept_next(s);
    *out = s;
    return ERR_OK;
}

unsigned rpc_server_port(const struct rpc_server *s)
{
    return s->port;
}

static bool settled(const struct rpc_server *s)
{
    return s->shut_down && !s->accepting && s->n_calls == 0;
}

void rpc_server_close(struct rpc_server *s, unsigned grace_ms)
{
    if (s == NULL) return;
    s->closing = true;
    grpc_server_shutdown_and_notify(s->server, s->r->cq, &s->shutdown_tag);
    uint64_t until_us = clock_now_us() + (uint64_t)grace_ms * 1000;
    while (!settled(s)) {
        uint64_t now = clock_now_us();
        if (now >= until_us) break;
        rpc_poll(s->r, until_us - now);
    }
    if (!settled(s)) {
        grpc_server_cancel_all_calls(s->server);
        while (!settled(s))
            rpc_poll(s->r, 1000000);
    }
    grpc_server_destroy(s->server);
    mem_free(s->methods);
    mem_free(s);
}

/* ---- the face of a call ----------------------------------------------------------------------- */

bool rpc_call_send(struct rpc_call *c, const struct rpc_out *out)
{
    if (!c->finish_wanted) return stream_send(&c->st, out);
    rpc_out_release(out);
    return false;
}

size_t rpc_call_unsent(const struct rpc_call *c)
{
    return c->st.n_unsent;
}

void rpc_call_finish(struct rpc_call *c, int grpc_status, const char *text)
{
    if (c->finish_wanted) return;
    c->finish_wanted = true;
    c->st.quiet = true;
    c->status = grpc_status;
    size_t n = text != NULL ? strlen(text) : 0;
    c->details =
        grpc_slice_from_copied_buffer(text != NULL ? text : "", n < DETAILS_MAX ? n : DETAILS_MAX);
    if (c->st.head == NULL) send_status_if_due(c);
}

const char *rpc_call_peer(const struct rpc_call *c)
{
    /* Made once, at the first question: it is for logs only. */
    struct rpc_call *mine = (struct rpc_call *)(uintptr_t)c;
    if (mine->peer == NULL) mine->peer = grpc_call_get_peer(c->st.call);
    return mine->peer != NULL ? mine->peer : "?";
}
