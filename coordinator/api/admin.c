/* What operators and probes read: front page, health, version, metrics, models. */
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "coordinator/api/api_internal.h"

static void reply_text(struct http_exchange *ex, int status, struct buf *b)
{
    if (b->failed)
        http_abort(ex);
    else
        http_reply(ex, status, "text/plain; charset=utf-8",
                   status == 503 ? "Retry-After: 1\r\n" : NULL, b->data, b->len);
    buf_free(b);
}

/* May generations be asked for now? */
static bool ready(const struct api *a, const char **reason)
{
    if (a->draining) {
        *reason = "draining";
        return false;
    }
    *reason = "loading";
    return a->cfg.service.ready(a->cfg.service.self, reason);
}

void admin_front(struct api *a, struct http_exchange *ex)
{
    const char *reason;
    struct buf b = {0};
    bool ok = ready(a, &reason);
    const struct generation_model *m = &a->cfg.model;
    buf_printf(&b, "moesaic %s serves %s (%u layers, %u experts, %u per token, context %u)\n",
               a->cfg.version, m->id, m->n_layers, m->n_experts, m->top_k, m->ctx);
    buf_printf(&b, "state: %s%s%s\n\nTry:\n", ok ? "ready" : "not ready", ok ? "" : ", ",
               ok ? "" : reason);
    const char *path = m->chat_template != NULL ? "/v1/chat/completions" : "/v1/completions";
    buf_printf(&b, "  curl http://%s%s -H 'Content-Type: application/json' \\\n    -d '",
               http_header(ex, "Host") == NULL ? "localhost" : http_header(ex, "Host"), path);
    buf_puts(&b,
             m->chat_template != NULL
                 ? "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"stream\":true}'\n"
                 : "{\"prompt\":\"Once upon a time\",\"max_tokens\":32}'\n");
    buf_puts(&b, "\nAlso: /v1/models /v1/cluster /health /readyz?verbose /metrics /version\n");
    reply_text(ex, 200, &b);
}

/* The loop turns: that is all liveness says. */
void admin_live(struct api *a, struct http_exchange *ex)
{
    (void)a;
    http_reply(ex, 200, "text/plain; charset=utf-8", NULL, "ok\n", 3);
}

void admin_health(struct api *a, struct http_exchange *ex)
{
    const char *reason;
    if (ready(a, &reason)) {
        http_reply(ex, 200, "application/json", NULL, "{\"status\":\"ok\"}", 15);
        return;
    }
    struct fault why;
    fault_set(&why, 503, "not_ready", NULL, "not ready: %s", reason);
    http_reply_fault(ex, &why, NULL);
}

void admin_version(struct api *a, struct http_exchange *ex)
{
    struct buf b = {0};
    const struct {
        const char *key, *value;
    } facts[] = {{"version", a->cfg.version},
                 {"git", a->cfg.git},
                 {"build", a->cfg.build},
                 {"model", a->cfg.model.id},
                 {"model_digest", a->cfg.model.digest}};
    buf_printf(&b, "{\"protocol\":%u", a->cfg.protocol_version);
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        const char *value = facts[i].value == NULL ? "" : facts[i].value;
        buf_printf(&b, ",\"%s\":", facts[i].key);
        buf_put_json_string(&b, value, strlen(value));
    }
    buf_putc(&b, '}');
    api_reply_json(ex, 200, &b);
}

void admin_metrics(struct api *a, struct http_exchange *ex)
{
    struct buf b = {0};
    buf_puts(&b, "# HELP moesaic_build_info What runs here.\n# TYPE moesaic_build_info gauge\n");
    buf_printf(&b, "moesaic_build_info{version=\"%s\",git=\"%s\"} 1\n", a->cfg.version,
               a->cfg.git == NULL ? "" : a->cfg.git);
    metrics_put_text(a->cfg.metrics, &b);
    size_t resident;
    uv_rusage_t used;
    if (uv_resident_set_memory(&resident) == 0)
        buf_printf(
            &b,
            "# HELP process_resident_memory_bytes Resident memory.\n# TYPE process_resident_memory_bytes gauge\n"
            "process_resident_memory_bytes %zu\n",
            resident);
    if (uv_getrusage(&used) == 0)
        buf_printf(
            &b,
            "# HELP process_cpu_seconds_total Processor time used.\n# TYPE process_cpu_seconds_total counter\n"
            "process_cpu_seconds_total %.6f\n",
            (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    if (b.failed)
        http_abort(ex);
    else
        http_reply(ex, 200, "text/plain; version=0.0.4; charset=utf-8", NULL, b.data, b.len);
    buf_free(&b);
}

static void put_model(const struct generation_model *m, struct buf *b)
{
    buf_puts(b, "{\"id\":");
    buf_put_json_string(b, m->id, strlen(m->id));
    buf_printf(
        b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"moesaic\",\"max_model_len\":%u",
        (long long)m->created, m->ctx);
    buf_printf(
        b,
        ",\"meta\":{\"n_vocab\":%u,\"n_ctx_train\":%u,\"n_params\":%llu,\"size\":%llu,\"n_layers\":%u,"
        "\"n_experts\":%u,\"top_k\":%u}}",
        m->vocab, m->ctx, (unsigned long long)m->n_params, (unsigned long long)m->bytes,
        m->n_layers, m->n_experts, m->top_k);
}

void admin_models(struct api *a, struct http_exchange *ex)
{
    struct buf b = {0};
    buf_puts(&b, "{\"object\":\"list\",\"data\":[");
    put_model(&a->cfg.model, &b);
    buf_puts(&b, "]}");
    api_reply_json(ex, 200, &b);
}

void admin_model(struct api *a, struct http_exchange *ex)
{
    const char *id = http_path(ex) + strlen("/v1/models/");
    if (strcmp(id, a->cfg.model.id) != 0) {
        struct fault why;
        fault_set(&why, 404, "model_not_found", "model",
                  "the model '%.150s' is not served here; '%.150s' is", id, a->cfg.model.id);
        http_reply_fault(ex, &why, NULL);
        return;
    }
    struct buf b = {0};
    put_model(&a->cfg.model, &b);
    api_reply_json(ex, 200, &b);
}

void admin_not_built(struct api *a, struct http_exchange *ex)
{
    (void)a;
    struct fault why;
    fault_set(&why, 501, "not_supported", NULL, "%.100s is not built", http_path(ex));
    http_reply_fault(ex, &why, NULL);
}
