/* internal.h - what the files of common/rpc share; includes gRPC, so nobody else may include it.
 * One polling thread owns everything here; rpc_wake() and release callbacks are the exceptions. */
#ifndef MOESAIC_RPC_INTERNAL_H
#define MOESAIC_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <pthread.h>

#include "common/rpc/rpc.h"

/* ---- the queue -------------------------------------------------------------------------------- */

/* What a completion points to. Lives inside the object that must stay until the completion came back. */
struct rpc_tag {
    void (*done)(struct rpc_tag *tag, bool ok);
};

/* Fires once, on the polling thread. */
struct rpc_timer {
    struct rpc_timer *next, *prev;
    uint64_t due_us;
    void (*fire)(struct rpc_timer *t);
    bool armed;
};

struct rpc {
    grpc_completion_queue *cq;
    struct rpc_timer *timers; /* few: one per link that is down */
    uint32_t spin_us;

    /* Wake-up: an empty batch on a call that is never started puts its tag in the queue at once. */
    grpc_channel *wake_channel;
    grpc_call *wake_call;
    struct rpc_tag wake_tag;
    pthread_mutex_t wake_lock; /* one waker at a time: start_batch is not thread-safe per call */
    bool wake_pending;         /* under wake_lock */
};

void rpc_timer_arm(struct rpc *r, struct rpc_timer *t, uint64_t delay_us);
void rpc_timer_disarm(struct rpc *r, struct rpc_timer *t);

/* ---- security: the one place that makes credentials -------------------------------------------- */

grpc_channel_credentials *rpc_channel_credentials(void);
grpc_server_credentials *rpc_server_credentials(void);

/* "ipv4:1.2.3.4:80" for a numeric host, unix: and named hosts as they are; mem_free. NULL: no memory. */
char *rpc_target_uri(const char *target);
grpc_channel *rpc_channel_open(const char *target, enum rpc_lane lane, struct err *why);
grpc_server *rpc_server_make(void); /* with its arguments, no port yet */

/* A dead process is seen in milliseconds, a dead host by keepalive in at most the sum of these (design, 8). The
 * timeout must exceed the longest stretch in which a node computes and does not poll. */
#define RPC_KEEPALIVE_TIME_MS    2000
#define RPC_KEEPALIVE_TIMEOUT_MS 4000
/* Of connections to our servers: strangers that never speak HTTP/2, and clients without a call. */
#define RPC_HANDSHAKE_TIMEOUT_MS 10000
#define RPC_IDLE_MS              300000
#define RPC_BACKOFF_MIN_MS       100
#define RPC_BACKOFF_MAX_MS       2000
#define RPC_CONNECT_TIMEOUT_MS   1000

/* ---- messages ---------------------------------------------------------------------------------- */

/* Takes bb, also on failure. NULL: no memory, or a compressed message. */
struct rpc_message *rpc_message_take(grpc_byte_buffer *bb);
/* A byte buffer for `out`. NULL: too large or no memory, and out->release has been called. */
grpc_byte_buffer *rpc_message_build(const struct rpc_out *out);
void rpc_out_release(const struct rpc_out *out);

/* ---- one call's traffic, the same for both ends ------------------------------------------------ */

struct stream;
struct stream_ops {
    void (*message)(struct stream *s, struct rpc_message *m); /* takes m */
    void (*end)(struct stream *s);     /* no more messages will come (end, cancel, lost) */
    void (*flushed)(struct stream *s); /* the send queue ran empty, or was dropped */
    void (*idle)(struct stream *s);    /* nothing pending: free it */
};

struct stream_out; /* one queued message */

struct stream {
    struct rpc *r;
    grpc_call *call;
    const struct stream_ops *ops;
    unsigned pending; /* batches in gRPC's hands, plus callbacks that run */

    struct stream_out *head, *tail;
    size_t n_unsent;
    bool sending;
    bool broken;       /* takes no more messages to send */
    bool over;         /* the final status is known: nothing more can be received */
    bool quiet;        /* received messages are dropped and no more are asked for */
    bool lazy_initial; /* server: initial metadata goes with the first batch that sends */
    grpc_byte_buffer *incoming;
    struct rpc_tag send_tag, recv_tag;
};

void stream_init(struct stream *s, struct rpc *r, const struct stream_ops *ops);
void stream_batch(struct stream *s, const grpc_op *ops, size_t n, struct rpc_tag *tag); /* counts */
void stream_unpend(
    struct stream *s); /* at the end of each `done`; may free s by way of ops->idle */
void stream_receive(struct stream *s); /* ask for the first message; the rest follows by itself */
bool stream_send(struct stream *s, const struct rpc_out *out);
void stream_drop(struct stream *s); /* nothing more can be sent: forget what is queued */

#endif
