/* grpc_internal.h - what the two halves of grpc_service share. */
#ifndef MOESAIC_API_GRPC_INTERNAL_H
#define MOESAIC_API_GRPC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/rpc/inference_frame.h"
#include "common/sys/mailbox.h"
#include "coordinator/api/choice.h"
#include "coordinator/api/grpc_service.h"

/* Polling half to loop half: bits of grpc_call.news, so that a call has at most one mail under way and posting cannot
 * fail. GONE is the last. */
enum grpc_news { GRPC_NEWS_REQUEST = 1, GRPC_NEWS_FLOW = 2, GRPC_NEWS_GONE = 4 };

/* Loop half to polling half. After RELEASED, the answer to GONE, the loop half knows the call no more. */
enum grpc_mail_kind { GRPC_MAIL_REPLY, GRPC_MAIL_END, GRPC_MAIL_RELEASED };

struct grpc_mail {
    struct mail mail;
    enum grpc_mail_kind kind;
    struct grpc_call *call;
    struct buf bytes; /* REPLY, which is freed with its mail; the others live in the call */
};

struct grpc_call {
    struct grpc_service *service;

    /* polling half */
    struct grpc_call *prev, *next;
    struct rpc_call *rpc; /* NULL: over */
    bool asked, finished; /* the request was posted; a status was given */

    /* the hand-over */
    struct mail to_loop;
    _Atomic unsigned news;
    _Atomic bool stalled;           /* the client reads too slowly */
    struct generate_request *query; /* the loop half's from REQUEST on */
    size_t query_bytes;
    struct grpc_mail end, released;
    struct err end_why; /* code OK: a complete answer */

    /* loop half */
    struct grpc_call *job_prev, *job_next;
    uv_work_t work;
    bool working, gone, ended, live, paused, counted;
    struct request request;
    struct fault fault;
    int status; /* of the preparation: 0 or that of `fault` */
    struct choice choice;
    struct ids prompt; /* until the first reply */
    uint32_t n_prompt;
    bool logprobs;
    uint64_t handle, begun_ms, first_ms, last_ms;
};

struct grpc_service {
    struct grpc_service_cfg cfg;
    struct mailbox to_loop, to_rpc;
    _Atomic bool ready, draining, stopped;
    _Atomic size_t query_bytes; /* of requests that are not tokenized yet */
    pthread_mutex_t async_lock; /* the polling half must not signal a handle that is closed */
    bool async_open;

    /* polling half */
    struct grpc_call *calls;
    uint32_t n_calls, n_stalled;

    /* loop half */
    uv_loop_t *loop;
    uv_async_t async;
    struct grpc_call *jobs;
    uint32_t n_working;
    bool async_closed, told_stopped;
    void (*on_drained)(void *ctx);
    void *drained_ctx;
    void (*on_stopped)(void *ctx);
    void *stopped_ctx;
};

/* ---- grpc_generate.c, loop thread ---- */
void grpc_generate_on_async(uv_async_t *a);
/* Let go of all of it that the loop half made. */
void grpc_generate_deinit(struct grpc_call *c);
void grpc_generate_check_drained(struct grpc_service *s);
void grpc_generate_check_stopped(struct grpc_service *s);
void grpc_generate_cancel(struct grpc_call *c);

#endif
