/* client_driver.h - the hand-over between the loop thread (API) and the engine thread (tokens).
 *
 * Loop side: implements struct generation_service; sinks are called on the loop thread, woken by one uv_async_send
 * per batch of tokens. Engine side: takes submissions as engine events, and posts what the engine emits.
 * A sequence is named by a handle: table index in the low half, generation of that entry in the high half. */
#ifndef MOESAIC_DRIVERS_CLIENT_DRIVER_H
#define MOESAIC_DRIVERS_CLIENT_DRIVER_H

#include <stdbool.h>
#include <uv.h>

#include "coordinator/api/generation.h"
#include "coordinator/engine/engine.h"

#define CLIENT_MAX_SEQUENCES                                                                       \
    1024u /* running, waiting and on their way: 64 requests with n = 8 and room */

struct client_driver;

/* What the engine thread needs to know of a sequence to compute its tokens. */
struct client_sequence {
    struct sampler_params sampling;
    uint32_t top_logprobs;
    bool logprobs, prompt_logprobs;
};

enum client_order_kind {
    CLIENT_SUBMIT,
    CLIENT_CANCEL,
    CLIENT_PAUSE,
    CLIENT_RESUME,
    CLIENT_CLUSTER
};

/* One order from the loop, for the engine thread. */
struct client_order {
    enum client_order_kind kind;
    uint64_t sequence;
    const struct generation_spec *spec; /* SUBMIT; valid in `take` */
    uint64_t submitted_us;
};

/* `wake` makes the engine thread look at its mailbox (any thread). */
enum err_code client_driver_open(uv_loop_t *loop, void (*wake)(void *ctx), void *wake_ctx,
                                 struct client_driver **out, struct err *why);
/* Loop thread, after the engine thread ended: frees what is left; `done` runs when the uv handle is closed. */
void client_driver_close(struct client_driver *c, void (*done)(void *ctx), void *ctx);

/* ---- loop thread ------------------------------------------------------------------------------ */
void client_driver_service(struct client_driver *c, struct generation_service *out);
uint32_t client_driver_active(const struct client_driver *c); /* sequences begun and not ended */

/* ---- engine thread ---------------------------------------------------------------------------- */
/* Take all orders; each is passed to `take` and freed. Returns how many. */
unsigned client_driver_orders(struct client_driver *c,
                              void (*take)(void *ctx, const struct client_order *o), void *ctx);
const struct client_sequence *client_driver_find(const struct client_driver *c, uint64_t sequence);
/* Post an event to the loop; `why` for GENERATION_FAILED. A last event frees the engine side's entry. Without memory
 * for a token the sequence ends as FAILED. An unknown sequence (ended, cancelled): nothing happens. */
void client_driver_post(struct client_driver *c, uint64_t sequence,
                        const struct generation_event *ev, const struct err *why);
void client_driver_answer_cluster(struct client_driver *c,
                                  char *json); /* takes json (may be NULL) */

/* Either thread. `ready`: every expert has a node; `accepting`: requests are taken, be it to wait. reason is copied. */
void client_driver_set_ready(struct client_driver *c, bool ready, bool accepting,
                             const char *reason);

#endif
