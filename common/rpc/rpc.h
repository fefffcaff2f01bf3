/* rpc.h - gRPC core behind a small face: one completion queue, one thread, callbacks.
 *
 * Everything but rpc_wake() is called on the thread that polls; callbacks run inside rpc_poll() on that thread.
 * A message on the wire is [small fields packed by protobuf-c][0x7A][varint length][tensor]: see reference
 * "transport" section 3. Callbacks may send, finish and close; objects are freed only after their last
 * completion, so closing inside a callback is safe. */
#ifndef MOESAIC_RPC_H
#define MOESAIC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

/* ---- the queue -------------------------------------------------------------------------------- */

struct rpc;

/* Process-wide switches (malloc thresholds, abseil's detector, gRPC log to log.h) and grpc_init are done on the
 * first open; call before any other thread exists. Counted: the last close shuts gRPC down. */
enum err_code rpc_open(struct rpc **out, struct err *why);
void rpc_close(struct rpc *r); /* links and servers must be closed first; drains the queue */

/* Handle what is there; wait up to timeout_us for the first event (0: do not wait; UINT64_MAX: for ever). Returns the
 * number of events handled, wake-ups included. Not to be called from a callback. */
unsigned rpc_poll(struct rpc *r, uint64_t timeout_us);
void rpc_wake(struct rpc *r); /* any thread: make a waiting rpc_poll return */

/* Spin budget: rpc_poll polls busily for up to spin_us before it blocks (0: block at once). */
void rpc_set_spin(struct rpc *r, uint32_t spin_us);

/* ---- messages --------------------------------------------------------------------------------- */

struct rpc_message; /* a received message; owned by whoever got it in on_message */

/* The bytes before field 15 (all of it if there is none), contiguous; valid until free. */
const uint8_t *rpc_message_header(const struct rpc_message *m, size_t *len);
size_t rpc_message_tensor_bytes(const struct rpc_message *m);
/* Copy tensor bytes [off, off + n) to dst; the range must lie inside. */
void rpc_message_tensor_copy(const struct rpc_message *m, size_t off, void *dst, size_t n);
void rpc_message_free(struct rpc_message *m);

/* What to send. `header`: packed fields, copied. `tensor`: parts of caller's memory, sent without a copy and kept
 * unchanged until `release` runs (any thread!); release may be NULL when tensor bytes are to be copied. */
struct rpc_part {
    const void *data;
    size_t bytes;
};
struct rpc_out {
    const void *header;
    size_t header_bytes;
    const struct rpc_part *tensor; /* up to RPC_MAX_PARTS parts; may be NULL */
    unsigned n_parts;
    void (*release)(void *ctx);
    void *release_ctx;
};
#define RPC_MAX_PARTS 8u

/* A message as if it had been received, one span per part (copied); for tests, fuzzing and in-process peers. An rpc
 * must be open. NULL: no memory. */
struct rpc_message *rpc_message_from_parts(const struct rpc_part *parts, unsigned n);

/* ---- client: one bidirectional stream that reconnects ----------------------------------------- */

struct rpc_link;
enum rpc_lane { RPC_LANE_DECODE = 1, RPC_LANE_BULK = 2 };

struct rpc_link_handlers {
    void (*on_open)(void *ctx, struct rpc_link *l); /* connected, stream begun: send the hello */
    void (*on_message)(void *ctx, struct rpc_link *l, struct rpc_message *m); /* takes m */
    /* The stream ended (peer died, refused, finished). Unless closed, the link reconnects with backoff
     * 100 ms .. 2 s and calls on_open again. grpc_status and text as received. */
    void (*on_down)(void *ctx, struct rpc_link *l, int grpc_status, const char *text);
};

/* target "host:port" or "unix:/path". Begins to connect at once; failures show in on_down (once per change to down). */
enum err_code rpc_link_open(struct rpc *r, const char *target, enum rpc_lane lane,
                            const char *method, const struct rpc_link_handlers *h, void *ctx,
                            struct rpc_link **out, struct err *why);
/* Queued in order; false if the link is down (nothing sent, release has been called) or memory is short. */
bool rpc_link_send(struct rpc_link *l, const struct rpc_out *out);
bool rpc_link_is_open(const struct rpc_link *l);  /* between on_open and the end of the stream */
size_t rpc_link_unsent(const struct rpc_link *l); /* messages queued, not yet accepted by gRPC */
void rpc_link_reset(struct rpc_link *l,
                    const char *reason); /* drop the stream (bad peer); reconnects */
void rpc_link_close(struct rpc_link *l); /* no callbacks after this returns */

/* One unary call, for tools: blocks (polls r) up to timeout_ms. *reply is mem_free'd bytes. */
enum err_code rpc_unary(struct rpc *r, const char *target, const char *method, const void *request,
                        size_t bytes, unsigned timeout_ms, uint8_t **reply, size_t *reply_bytes,
                        struct err *why);

/* ---- server ----------------------------------------------------------------------------------- */

struct rpc_server;
struct rpc_call; /* one incoming call of any kind: messages in, messages out, a status at the end */

struct rpc_call_handlers {
    void (*on_message)(void *call_ctx, struct rpc_call *c, struct rpc_message *m); /* takes m */
    /* The client will send no more (it may also be gone: then on_done with `cancelled` follows); may be NULL. */
    void (*on_half_close)(void *call_ctx, struct rpc_call *c);
    /* The call is over (finished by us, cancelled by the client, connection lost). Last callback; c is gone after it. */
    void (*on_done)(void *call_ctx, bool cancelled);
};

struct rpc_method {
    const char *path; /* "/moesaic.v1.ExpertService/Stream" */
    /* A call began. Set *call_ctx. Returning an error finishes the call with its status and text, without on_done. */
    enum err_code (*on_call)(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why);
    struct rpc_call_handlers handlers;
    void *ctx;
};

/* `methods` are copied, their paths borrowed. address "host:port" or "unix:/path", port 0 takes a free one. UNAVAILABLE "address in use" names the address. Unknown methods answer UNIMPLEMENTED. */
enum err_code rpc_server_open(struct rpc *r, const char *address, const struct rpc_method *methods,
                              unsigned n_methods, struct rpc_server **out, struct err *why);
unsigned rpc_server_port(const struct rpc_server *s);
/* Refuse new calls and finish the rest: GOAWAY; open calls end by themselves or are cancelled after grace_ms. Polls r,
 * so not from a callback. */
void rpc_server_close(struct rpc_server *s, unsigned grace_ms);

bool rpc_call_send(struct rpc_call *c,
                   const struct rpc_out *out); /* false: the call is over or memory is short */
size_t rpc_call_unsent(const struct rpc_call *c);
void rpc_call_finish(struct rpc_call *c, int grpc_status,
                     const char *text); /* after what is queued was sent */
const char *rpc_call_peer(const struct rpc_call *c);

/* ---- grpc.health.v1 --------------------------------------------------------------------------- */

/* Fills two methods (Check, Watch) for the service "" (the whole server). Not serving until rpc_health_set(). */
struct rpc_health;
struct rpc_health *rpc_health_open(void);
void rpc_health_methods(struct rpc_health *h, struct rpc_method out[2]);
void rpc_health_set(struct rpc_health *h, bool serving); /* polling thread */
void rpc_health_finish(struct rpc_health *h); /* end the Watch calls, before rpc_server_close */
void rpc_health_close(struct rpc_health *h);  /* after rpc_server_close */

#endif
