#include "coordinator/api/api.h"

#include <string.h>
#include <strings.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "coordinator/api/api_internal.h"

#define TICK_MS         250
#define PING_DEFAULT_MS 15000

static void do_chat(struct api *a, struct http_exchange *ex)
{
    job_begin(a, ex, REQUEST_CHAT);
}

static void do_completion(struct api *a, struct http_exchange *ex)
{
    job_begin(a, ex, REQUEST_COMPLETION);
}

/* GET stands for HEAD too. A path ending in a slash matches what begins with it. */
static const struct route {
    const char *method, *path;
    void (*handle)(struct api *a, struct http_exchange *ex);
} routes[] = {
    {"GET", "/", admin_front},
    {"GET", "/health", admin_health},
    {"GET", "/v1/health", admin_health},
    {"GET", "/livez", admin_live},
    {"GET", "/readyz", admin_ready},
    {"GET", "/version", admin_version},
    {"GET", "/metrics", admin_metrics},
    {"GET", "/v1/models", admin_models},
    {"GET", "/models", admin_models},
    {"GET", "/v1/models/", admin_model},
    {"GET", "/v1/cluster", admin_cluster},
    {"GET", "/v1/cluster/nodes", admin_cluster},
    {"GET", "/v1/cluster/placement", admin_cluster},
    {"POST", "/v1/chat/completions", do_chat},
    {"POST", "/chat/completions", do_chat},
    {"POST", "/v1/completions", do_completion},
    {"POST", "/completions", do_completion},
    {"POST", "/tokenize", admin_tokenize},
    {"POST", "/detokenize", admin_detokenize},
    {"POST", "/v1/embeddings", admin_not_built},
    {"POST", "/v1/responses", admin_not_built},
};

static bool path_matches(const char *route, const char *path)
{
    size_t n = strlen(route);
    if (n > 1 && route[n - 1] == '/') return strncmp(path, route, n) == 0 && path[n] != '\0';
    return strcmp(path, route) == 0;
}

static void on_request(void *ctx, struct http_exchange *ex)
{
    struct api *a = ctx;
    const char *method = http_method(ex), *path = http_path(ex);
    const struct route *same_path = NULL;
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        if (!path_matches(routes[i].path, path)) continue;
        same_path = &routes[i];
        bool head = strcmp(method, "HEAD") == 0 && strcmp(routes[i].method, "GET") == 0;
        if (!head && strcmp(method, routes[i].method) != 0) continue;
        routes[i].handle(a, ex);
        return;
    }
    struct fault why;
    if (same_path == NULL) {
        fault_set(&why, 404, "not_found", NULL, "there is nothing at %.200s", path);
        http_reply_fault(ex, &why, NULL);
        return;
    }
    fault_set(&why, 405, "method_not_allowed", NULL, "%.200s takes %s, not %.20s", path,
              same_path->method, method);
    http_reply_fault(ex, &why,
                     strcmp(same_path->method, "GET") == 0 ? "Allow: GET, HEAD\r\n"
                                                           : "Allow: POST\r\n");
}

static void on_status(void *ctx, int status)
{
    struct api *a = ctx;
    metrics_count(a->cfg.metrics,
                  status < 400   ? METRIC_HTTP_2XX
                  : status < 500 ? METRIC_HTTP_4XX
                                 : METRIC_HTTP_5XX,
                  1);
}

bool api_check_json_post(struct http_exchange *ex)
{
    struct fault why;
    const char *type = http_header(ex, "Content-Type");
    if (!http_has_body(ex)) {
        fault_set(&why, 411, NULL, NULL,
                  "the request has no body (neither Content-Length nor chunked)");
    } else if (type != NULL && strncasecmp(type, "application/json", 16) != 0) {
        fault_set(&why, 415, NULL, NULL, "Content-Type is '%.100s'; it must be application/json",
                  type);
    } else {
        return true;
    }
    http_reply_fault(ex, &why, NULL);
    return false;
}

void api_reply_json(struct http_exchange *ex, int status, struct buf *b)
{
    if (b->failed) {
        struct fault why;
        fault_set(&why, 503, "overloaded", NULL, "no memory for the reply");
        http_reply_fault(ex, &why, NULL);
    } else {
        http_reply(ex, status, "application/json", NULL, b->data, b->len);
    }
    buf_free(b);
}

static void on_timer(uv_timer_t *t)
{
    struct api *a = t->data;
    job_tick(a->jobs, uv_now(a->loop));
    metrics_set(a->cfg.metrics, METRIC_HTTP_CONNECTIONS, http_connections(a->http));
}

static void finish_close(struct api *a)
{
    if (!a->closing || a->timer_open || !a->http_closed || a->n_held > 0) return;
    void (*closed)(void *) = a->closed;
    void *ctx = a->closed_ctx;
    mem_free(a);
    if (closed != NULL) closed(ctx);
}

void api_hold(struct api *a)
{
    a->n_held++;
}

void api_release(struct api *a)
{
    a->n_held--;
    finish_close(a);
}

static void on_timer_closed(uv_handle_t *h)
{
    struct api *a = h->data;
    a->timer_open = false;
    finish_close(a);
}

static void on_http_closed(void *ctx)
{
    struct api *a = ctx;
    a->http_closed = true;
    finish_close(a);
}

enum err_code api_open(uv_loop_t *loop, const struct api_cfg *cfg, struct api **out,
                       struct err *why)
{
    struct api *a = mem_zalloc(sizeof *a);
    if (a == NULL) return err_nomem(why, "the API");
    a->loop = loop;
    a->cfg = *cfg;
    if (a->cfg.ping_ms == 0) a->cfg.ping_ms = PING_DEFAULT_MS;
    a->next_id = clock_now_ns();
    struct http_cfg http = cfg->http;
    http.addresses = cfg->addresses;
    http.on_request = on_request;
    http.on_status = on_status;
    http.ctx = a;
    enum err_code rc = http_open(loop, &http, &a->http, why);
    if (rc != ERR_OK) {
        mem_free(a);
        return rc;
    }
    uint64_t tick = a->cfg.ping_ms < TICK_MS ? a->cfg.ping_ms : TICK_MS;
    int e = uv_timer_init(loop, &a->timer);
    a->timer.data = a;
    a->timer_open = e == 0;
    if (e == 0) e = uv_timer_start(&a->timer, on_timer, tick, tick);
    if (e != 0) {
        api_close(a, NULL, NULL);
        return err_set(why, ERR_IO, "the API's timer: %s", uv_strerror(e));
    }
    *out = a;
    return ERR_OK;
}

int api_port(const struct api *a)
{
    return http_port(a->http);
}

void api_drain(struct api *a, void (*done)(void *ctx), void *ctx)
{
    a->draining = true;
    http_drain(a->http, done, ctx);
}

void api_close(struct api *a, void (*done)(void *ctx), void *ctx)
{
    if (a == NULL) return;
    a->closing = true;
    a->closed = done;
    a->closed_ctx = ctx;
    if (a->timer_open) uv_close((uv_handle_t *)&a->timer, on_timer_closed);
    http_close(a->http, on_http_closed, a);
}
