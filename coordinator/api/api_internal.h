/* api_internal.h - what the endpoints share. Loop thread only. */
#ifndef MOESAIC_API_INTERNAL_H
#define MOESAIC_API_INTERNAL_H

#include "coordinator/api/api.h"
#include "coordinator/api/request.h"

struct job;

struct api {
    uv_loop_t *loop;
    struct api_cfg cfg;
    struct http_server *http;
    uv_timer_t timer; /* pings */
    bool timer_open, draining, closing, http_closed;
    struct job *jobs; /* list */
    uint32_t n_held;  /* jobs and cluster questions that still need this struct */
    uint64_t next_id;
    void (*closed)(void *ctx);
    void *closed_ctx;
};

/* Hold the struct until a later callback came; releasing the last one may free it. */
void api_hold(struct api *a);
void api_release(struct api *a);

/* openai endpoints (job.c) */
void job_begin(struct api *a, struct http_exchange *ex, enum request_kind kind);
void job_tick(struct job *list, uint64_t now_ms);

/* admin endpoints (admin.c, cluster_view.c, tokens.c) */
void admin_front(struct api *a, struct http_exchange *ex);
void admin_live(struct api *a, struct http_exchange *ex);
void admin_health(struct api *a, struct http_exchange *ex);
void admin_ready(struct api *a, struct http_exchange *ex);
void admin_version(struct api *a, struct http_exchange *ex);
void admin_metrics(struct api *a, struct http_exchange *ex);
void admin_models(struct api *a, struct http_exchange *ex);
void admin_model(struct api *a, struct http_exchange *ex); /* path after /v1/models/ */
void admin_not_built(struct api *a, struct http_exchange *ex);
void admin_cluster(struct api *a, struct http_exchange *ex);
void admin_tokenize(struct api *a, struct http_exchange *ex);
void admin_detokenize(struct api *a, struct http_exchange *ex);

/* Reply with JSON; consumes *b. */
void api_reply_json(struct http_exchange *ex, int status, struct buf *b);
/* Is this POST's body JSON that is there? Else replied, and false. */
bool api_check_json_post(struct http_exchange *ex);

#endif
