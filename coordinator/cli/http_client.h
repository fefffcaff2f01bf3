/* http_client.h - the little HTTP/1.1 that the command line needs: one request, whole or as server-sent events.
 * Blocking; one thread. */
#ifndef MOESAIC_CLI_HTTP_CLIENT_H
#define MOESAIC_CLI_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct http_answer {
    int status;
    struct buf body; /* buf_free */
};

/* `server`: "host:port" or "http://host:port". body NULL: GET, else POST of JSON. UNAVAILABLE when nobody listens. */
enum err_code http_client_request(const char *server, const char *path, const char *body,
                                  unsigned timeout_ms, struct http_answer *out, struct err *why);

/* POST and take events: on_data gets each "data:" line's text ("[DONE]" too); false from it ends the request (the
 * connection is closed, which cancels it at the server). A reply that is no event stream: its body is in *out. `stop`
 * (may be NULL) is looked at while waiting: when it becomes nonzero the request ends with CANCELLED. */
enum err_code http_client_stream(const char *server, const char *path, const char *body,
                                 bool (*on_data)(void *ctx, const char *data, size_t n), void *ctx,
                                 const volatile int *stop, struct http_answer *out,
                                 struct err *why);

#endif
