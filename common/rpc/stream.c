/* One call's traffic: a send queue (gRPC takes one SEND_MESSAGE at a time) and a receive that is always
 * outstanding. Client streams and server calls embed it; it never starts or ends the call. */
#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/rpc/internal.h"

struct stream_out {
    struct stream_out *next;
    grpc_byte_buffer *bb;
};

static void on_sent(struct rpc_tag *tag, bool ok);
static void on_received(struct rpc_tag *tag, bool ok);

void stream_init(struct stream *s, struct rpc *r, const struct stream_ops *ops)
{
    memset(s, 0, sizeof *s);
    s->r = r;
    s->ops = ops;
    s->send_tag.done = on_sent;
    s->recv_tag.done = on_received;
}

void stream_batch(struct stream *s, const grpc_op *ops, size_t n, struct rpc_tag *tag)
{
    s->pending++;
    grpc_call_error e = grpc_call_start_batch(s->call, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK); /* else our order of operations is wrong: no peer can cause it */
}

void stream_unpend(struct stream *s)
{
    assert(s->pending > 0);
    if (--s->pending == 0) s->ops->idle(s);
}

/* ---- sending ---------------------------------------------------------------------------------- */

static void send_next(struct stream *s)
{
    struct stream_out *o = s->head;
    if (o == NULL || s->sending) return;
    s->sending = true;
    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    size_t n = 0;
    if (s->lazy_initial) {
        s->lazy_initial = false;
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    }
    ops[n].op = GRPC_OP_SEND_MESSAGE;
    ops[n++].data.send_message.send_message = o->bb;
    stream_batch(s, ops, n, &s->send_tag);
    grpc_byte_buffer_destroy(o->bb); /* its slices are gRPC's now */
    o->bb = NULL;
}

static void pop(struct stream *s)
{
    struct stream_out *o = s->head;
    s->head = o->next;
    if (s->head == NULL) s->tail = NULL;
    s->n_unsent--;
    if (o->bb != NULL) grpc_byte_buffer_destroy(o->bb);
    mem_free(o);
}

void stream_drop(struct stream *s)
{
    s->broken = true;
    while (s->head != NULL)
        pop(s);
}

static void on_sent(struct rpc_tag *tag, bool ok)
{
    struct stream *s = (struct stream *)((char *)tag - offsetof(struct stream, send_tag));
    s->sending = false;
    if (s->head != NULL) pop(s); /* empty: dropped while gRPC had it */
    if (!ok) stream_drop(s);
    if (s->head != NULL)
        send_next(s);
    else
        s->ops->flushed(s);
    stream_unpend(s);
}

bool stream_send(struct stream *s, const struct rpc_out *out)
{
    struct stream_out *o = s->broken ? NULL : mem_alloc(sizeof *o);
    if (o == NULL) {
        rpc_out_release(out);
        return false;
    }
    o->next = NULL;
    o->bb = rpc_message_build(out);
    if (o->bb == NULL) {
        mem_free(o);
        return false;
    }
    if (s->tail != NULL)
        s->tail->next = o;
    else
        s->head = o;
    s->tail = o;
    s->n_unsent++;
    send_next(s);
    return true;
}

/* ---- receiving -------------------------------------------------------------------------------- */

void stream_receive(struct stream *s)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &s->incoming;
    stream_batch(s, &op, 1, &s->recv_tag);
}

static void on_received(struct rpc_tag *tag, bool ok)
{
    struct stream *s = (struct stream *)((char *)tag - offsetof(struct stream, recv_tag));
    grpc_byte_buffer *bb = s->incoming;
    s->incoming = NULL;
    if (!ok && bb != NULL) {
        grpc_byte_buffer_destroy(bb);
        bb = NULL;
    }
    if (bb == NULL) {
        s->ops->end(s);
    } else if (s->quiet) {
        grpc_byte_buffer_destroy(bb);
    } else {
        struct rpc_message *m = rpc_message_take(bb);
        if (m != NULL) {
            s->ops->message(s, m); /* may close the owner: it stays until our pending count falls */
        } else {
            /* Dropping one message and going on would leave its step unanswered for good. */
            grpc_call_cancel_with_status(s->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                         "no memory for a message", NULL);
            s->quiet = true;
        }
        if (!s->quiet && !s->over) stream_receive(s);
    }
    stream_unpend(s);
}
