/* Answers that need the engine's view of the cluster: /readyz?verbose and /v1/cluster. The question goes out and
 * the answer comes later; the client may have left by then. */
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"
#include "coordinator/api/api_internal.h"

struct question {
    struct api *api;
    struct http_exchange *ex; /* NULL once the client left */
    const char *part;         /* NULL: all of it */
    bool readiness;
};

static void on_gone(void *ctx)
{
    struct question *q = ctx;
    q->ex = NULL;
}

static void reply_readiness(struct question *q, const json_t *view)
{
    struct buf b = {0};
    bool ok = json_is_true(json_object_get(view, "ready")) && !q->api->draining;
    const json_t *reasons = json_object_get(view, "reasons");
    buf_puts(&b, ok ? "ready\n" : "not ready\n");
    if (q->api->draining) buf_puts(&b, "- draining\n");
    for (size_t i = 0; i < json_array_size(reasons); i++) {
        const json_t *r = json_array_get(reasons, i);
        if (json_is_string(r)) buf_printf(&b, "- %s\n", json_string_value(r));
    }
    if (b.failed)
        http_abort(q->ex);
    else
        http_reply(q->ex, ok ? 200 : 503, "text/plain; charset=utf-8",
                   ok ? NULL : "Retry-After: 1\r\n", b.data, b.len);
    buf_free(&b);
}

static void reply_view(struct question *q, const char *text, const json_t *view)
{
    if (q->part == NULL) {
        http_reply(q->ex, 200, "application/json", NULL, text, strlen(text));
        return;
    }
    struct buf b = {0};
    char *part = json_to_text(json_object_get(view, q->part));
    const json_t *epoch = json_object_get(view, "epoch");
    buf_printf(&b, "{\"epoch\":%lld,\"%s\":%s}", (long long)json_integer_value(epoch), q->part,
               part == NULL || part[0] == '\0' ? "null" : part);
    mem_free(part);
    api_reply_json(q->ex, 200, &b);
}

static void on_answer(void *ctx, const char *text)
{
    struct question *q = ctx;
    struct err e;
    json_t *view = NULL;
    if (q->ex != NULL) {
        /* Our own text: the depth bound is a formality. */
        if (json_parse(text, strlen(text), LIMIT_JSON_DEPTH, &view, &e) != ERR_OK) {
            struct fault why;
            fault_set(&why, 500, NULL, NULL, "the cluster's state could not be read: %.300s",
                      e.text);
            http_reply_fault(q->ex, &why, NULL);
        } else if (q->readiness) {
            reply_readiness(q, view);
        } else {
            reply_view(q, text, view);
        }
    }
    json_decref(view);
    struct api *a = q->api;
    mem_free(q);
    api_release(a);
}

static void ask(struct api *a, struct http_exchange *ex, bool readiness, const char *part)
{
    struct question *q = mem_zalloc(sizeof *q);
    if (q == NULL) {
        struct fault why;
        fault_set(&why, 503, "overloaded", NULL, "no memory for the question");
        http_reply_fault(ex, &why, NULL);
        return;
    }
    *q = (struct question){a, ex, part, readiness};
    api_hold(a);
    http_watch(ex, q, on_gone, NULL);
    a->cfg.service.cluster(a->cfg.service.self, on_answer, q);
}

void admin_ready(struct api *a, struct http_exchange *ex)
{
    if (strncmp(http_query(ex), "verbose", 7) == 0)
        ask(a, ex, true, NULL);
    else
        admin_health(a, ex);
}

void admin_cluster(struct api *a, struct http_exchange *ex)
{
    const char *part = http_path(ex) + strlen("/v1/cluster");
    /* The routes allow "", "/nodes" and "/placement" only. */
    ask(a, ex, false,
        strcmp(part, "/nodes") == 0       ? "nodes"
        : strcmp(part, "/placement") == 0 ? "placement"
                                          : NULL);
}
