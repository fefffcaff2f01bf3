#include "coordinator/cli/bench_requests.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "coordinator/cli/http_client.h"

#define FIRST_TOKEN 300u /* those before may be special */

struct event {
    uint64_t at_ns;
    char *data; /* parsed when all has come: until then the cores are the server's */
};

struct request {
    const struct bench_requests *q;
    pthread_t thread;
    char *body;
    struct event *events; /* grows */
    size_t n, cap;
    uint64_t *at_ns; /* [tokens] */
    enum err_code rc;
    struct err why;
};

static bool on_data(void *ctx, const char *data, size_t n)
{
    struct request *r = ctx;
    if (r->n == r->cap) {
        size_t cap = r->cap * 2 + 64;
        struct event *grown = mem_realloc(r->events, cap * sizeof *grown);
        if (grown == NULL) return false;
        r->events = grown;
        r->cap = cap;
    }
    r->events[r->n++] = (struct event){clock_now_ns(), mem_strndup(data, n)};
    return true;
}

/* Which tokens came with which event. */
static enum err_code read_events(struct request *r, struct err *why)
{
    unsigned n = 0;
    for (size_t i = 0; i < r->n; i++) {
        json_t *v;
        struct err ignored;
        if (r->events[i].data == NULL) return err_nomem(why, "an answer");
        if (strcmp(r->events[i].data, "[DONE]") == 0 ||
            json_parse(r->events[i].data, strlen(r->events[i].data), LIMIT_JSON_DEPTH, &v,
                       &ignored) != ERR_OK)
            continue;
        const char *error =
            json_string_value(json_object_get(json_object_get(v, "error"), "message"));
        if (error != NULL) err_set(why, ERR_UNAVAILABLE, "the server says: %s", error);
        json_t *choice = json_array_get(json_object_get(v, "choices"), 0);
        size_t here = json_array_size(json_object_get(choice, "token_ids"));
        json_decref(v);
        if (error != NULL) return ERR_UNAVAILABLE;
        for (; here > 0 && n < r->q->tokens; here--)
            r->at_ns[n++] = r->events[i].at_ns;
    }
    if (n == r->q->tokens) return ERR_OK;
    return err_set(why, ERR_UNAVAILABLE, "%u of %u tokens came", n, r->q->tokens);
}

static void *run_request(void *ctx)
{
    struct request *r = ctx;
    struct http_answer answer;
    r->rc = http_client_stream(r->q->http, "/v1/completions", r->body, on_data, r, r->q->stop,
                               &answer, &r->why);
    if (r->rc == ERR_OK && answer.status != 200)
        r->rc = err_set(&r->why, ERR_UNAVAILABLE, "the server answers %d: %.200s", answer.status,
                        answer.body.len > 0 ? answer.body.data : "");
    buf_free(&answer.body);
    return NULL;
}

static enum err_code open_request(const struct bench_requests *q, unsigned number, uint64_t *at_ns,
                                  struct request *r, struct err *why)
{
    *r = (struct request){.q = q, .at_ns = at_ns};
    struct buf body = {0};
    buf_puts(
        &body,
        "{\"stream\":true,\"ignore_eos\":true,\"temperature\":0,\"return_token_ids\":true,\"prompt\":[");
    const unsigned first = q->vocab > 2 * FIRST_TOKEN ? FIRST_TOKEN : 0;
    for (unsigned i = 0; i < q->prompt; i++)
        buf_printf(&body, "%s%u", i > 0 ? "," : "",
                   first + (unsigned)(rng_uniform(clock_now_ns(), i, number) * (q->vocab - first)));
    buf_printf(&body, "],\"max_tokens\":%u}", q->tokens);
    r->body = buf_take(&body, NULL);
    return r->body == NULL ? err_nomem(why, "a request") : ERR_OK;
}

static void close_request(struct request *r)
{
    for (size_t i = 0; i < r->n; i++)
        mem_free(r->events[i].data);
    mem_free(r->events);
    mem_free(r->body);
}

enum err_code bench_requests_run(const struct bench_requests *q, uint64_t *began_ns,
                                 uint64_t *at_ns, struct err *why)
{
    struct request *r = mem_zalloc_array(q->n, sizeof *r);
    if (r == NULL) return err_nomem(why, "requests");
    enum err_code rc = ERR_OK;
    unsigned started = 0;
    for (unsigned i = 0; i < q->n && rc == ERR_OK; i++)
        rc = open_request(q, i, at_ns + (size_t)i * q->tokens, &r[i], why);
    *began_ns = clock_now_ns();
    for (; started < q->n && rc == ERR_OK; started++)
        if (pthread_create(&r[started].thread, NULL, run_request, &r[started]) != 0) {
            rc = err_set(why, ERR_EXHAUSTED, "%u of %u threads started", started, q->n);
            break;
        }
    for (unsigned i = 0; i < started; i++)
        pthread_join(r[i].thread, NULL);
    for (unsigned i = 0; i < started && rc == ERR_OK; i++)
        rc = r[i].rc != ERR_OK ? err_set(why, r[i].rc, "%s", r[i].why.text)
                               : read_events(&r[i], why);
    for (unsigned i = 0; i < q->n; i++)
        close_request(&r[i]);
    mem_free(r);
    return *q->stop ? err_set(why, ERR_CANCELLED, "interrupted") : rc;
}
