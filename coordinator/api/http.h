/* http.h - an HTTP/1.1 server on a libuv loop. Loop thread only.
 *
 * One request at a time per connection; pipelined ones wait their turn. Reading never stops, so a client that leaves
 * is noticed at once, queued or streaming: end of input counts as having left (a client that half-closes and
 * waits, as `nc -N` does, is cancelled). Refusals close lingering, so that their reply is not destroyed by a reset.
 * Every bound is in limits.h; the times can be shortened for tests. */
#ifndef MOESAIC_API_HTTP_H
#define MOESAIC_API_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "common/base/err.h"
#include "coordinator/api/error_body.h"

struct http_server;
struct http_exchange; /* one request and its reply */

struct http_cfg {
    const char *addresses; /* "HOST:PORT[,HOST:PORT...]"; [v6]:PORT; port 0: any */
    const char *hosts; /* "NAME[,NAME..]": further names that Host may have; "*": any; NULL: none */
    void (*on_request)(void *ctx, struct http_exchange *ex);
    void (*on_status)(void *ctx,
                      int status); /* each reply's head as it is sent, refusals too; may be NULL */
    void *ctx;
    /* 0: the default of limits.h */
    uint32_t head_ms, body_ms, idle_ms, stalled_ms, linger_ms, tick_ms;
    uint32_t connections;
    size_t bodies_bytes;
};

/* UNAVAILABLE when an address is in use (names it), INVALID for one that cannot be read. */
enum err_code http_open(uv_loop_t *loop, const struct http_cfg *cfg, struct http_server **out,
                        struct err *why);
int http_port(const struct http_server *s); /* of the first address */
uint32_t http_connections(const struct http_server *s);

/* No new connections; idle ones close, others after their present reply. `done` (may be NULL) once none is left. */
void http_drain(struct http_server *s, void (*done)(void *ctx), void *ctx);

/* Drop all connections; `done` (may be NULL) when the memory is freed, from the loop. NULL is fine (no done). */
void http_close(struct http_server *s, void (*done)(void *ctx), void *ctx);

/* ---- one exchange: valid from on_request until http_reply, http_stream_end, http_abort or on_gone ---- */

const char *http_method(const struct http_exchange *ex);
const char *http_path(const struct http_exchange *ex);  /* percent-decoded */
const char *http_query(const struct http_exchange *ex); /* raw, "" if none */
const char *http_header(const struct http_exchange *ex, const char *name);
const char *http_body(const struct http_exchange *ex, size_t *n); /* 0-terminated, "" if none */
bool http_has_body(const struct http_exchange *ex); /* Content-Length or chunked was sent */
const char *http_request_id(const struct http_exchange *ex);

/* gone: the client left before the reply was complete; called once, from the loop and never from within a call
 * of this API; the exchange is invalid afterwards. drained: the unsent bytes fell below LIMIT_HTTP_UNSENT_MARK again. */
void http_watch(struct http_exchange *ex, void *ctx, void (*on_gone)(void *ctx),
                void (*on_drained)(void *ctx));

/* The whole reply. `extra`: further header lines, each with CRLF; "" or NULL for none. Ends the exchange. */
void http_reply(struct http_exchange *ex, int status, const char *content_type, const char *extra,
                const void *body, size_t n);
void http_reply_fault(struct http_exchange *ex, const struct fault *f, const char *extra);

/* A reply in pieces: chunked, or plain and closed at the end for HTTP/1.0 clients. */
void http_stream_begin(struct http_exchange *ex, int status, const char *content_type,
                       const char *extra);
void http_stream_write(struct http_exchange *ex, const void *bytes, size_t n);
void http_stream_end(struct http_exchange *ex);
void http_abort(struct http_exchange *ex); /* close without an orderly end; no on_gone follows */
size_t http_unsent(const struct http_exchange *ex); /* bytes the kernel has not taken */

#endif
