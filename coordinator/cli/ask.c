#include "coordinator/cli/ask.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/cli/http_client.h"

struct reading {
    const struct ask *ask;
    struct ask_answer *out;
    uint64_t began_us;
    bool done;
    bool dimmed;       /* the terminal is, while reasoning comes */
    struct err failed; /* from an error event */
};

static void begin_piece(struct reading *r)
{
    if (r->out->pieces == 0) r->out->first_s = (double)(clock_now_us() - r->began_us) * 1e-6;
    r->out->pieces++;
}

static void undim(struct reading *r)
{
    if (r->dimmed) fputs("\033[0m\n\n", stdout);
    r->dimmed = false;
}

static void on_reasoning(struct reading *r, const json_t *text)
{
    if (!json_is_string(text) || json_string_length(text) == 0) return;
    begin_piece(r);
    if (r->ask->print && r->ask->dim_reasoning) {
        if (!r->dimmed) fputs("\033[2m", stdout);
        r->dimmed = true;
        fwrite(json_string_value(text), 1, json_string_length(text), stdout);
        fflush(stdout);
    }
    if (r->ask->on_token != NULL) r->ask->on_token(r->ask->ctx, r->out->pieces);
}

static bool on_data(void *ctx, const char *data, size_t n)
{
    struct reading *r = ctx;
    if (n == 6 && memcmp(data, "[DONE]", 6) == 0) {
        r->done = true;
        return false;
    }
    json_t *v;
    struct err why;
    if (json_parse(data, n, LIMIT_JSON_DEPTH, &v, &why) != ERR_OK) return true;
    json_t *error = json_object_get(v, "error");
    if (error != NULL) {
        const char *text = json_string_value(json_object_get(error, "message"));
        err_set(&r->failed, ERR_UNAVAILABLE, "%s", text != NULL ? text : "the server failed");
        json_decref(v);
        return false;
    }
    json_t *choice = json_array_get(json_object_get(v, "choices"), 0);
    json_t *text = r->ask->messages != NULL
                       ? json_object_get(json_object_get(choice, "delta"), "content")
                       : json_object_get(choice, "text");
    on_reasoning(r, json_object_get(json_object_get(choice, "delta"), "reasoning_content"));
    if (json_is_string(text) && json_string_length(text) > 0) {
        begin_piece(r);
        buf_append(&r->out->text, json_string_value(text), json_string_length(text));
        if (r->ask->print) {
            undim(r);
            fwrite(json_string_value(text), 1, json_string_length(text), stdout);
            fflush(stdout);
        }
        if (r->ask->on_token != NULL) r->ask->on_token(r->ask->ctx, r->out->pieces);
    }
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (finish != NULL) snprintf(r->out->finish, sizeof r->out->finish, "%s", finish);
    json_t *usage = json_object_get(v, "usage");
    if (json_is_object(usage)) {
        r->out->prompt_tokens = json_integer_value(json_object_get(usage, "prompt_tokens"));
        r->out->completion_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    }
    json_decref(v);
    return true;
}

static char *request_body(const struct ask *a)
{
    json_t *body = json_pack("{s:b,s:{s:b}}", "stream", 1, "stream_options", "include_usage", 1);
    if (body == NULL) return NULL;
    if (a->messages != NULL)
        json_object_set_new(body, "messages", json_deep_copy(a->messages));
    else
        json_object_set_new(body, "prompt", json_string(a->prompt));
    if (a->max_tokens >= 0) json_object_set_new(body, "max_tokens", json_integer(a->max_tokens));
    if (a->temperature >= 0) json_object_set_new(body, "temperature", json_real(a->temperature));
    if (a->top_p >= 0) json_object_set_new(body, "top_p", json_real(a->top_p));
    if (a->seed >= 0) json_object_set_new(body, "seed", json_integer(a->seed));
    char *text = json_to_text(body);
    json_decref(body);
    return text;
}

enum err_code ask_server(const struct ask *a, struct ask_answer *out, struct err *why)
{
    *out = (struct ask_answer){0};
    char *body = request_body(a);
    if (body == NULL) return err_nomem(why, "a request");
    struct reading r = {.ask = a, .out = out, .began_us = clock_now_us()};
    struct http_answer answer;
    enum err_code rc = http_client_stream(
        a->server, a->messages != NULL ? "/v1/chat/completions" : "/v1/completions", body, on_data,
        &r, a->stop, &answer, why);
    undim(&r);
    out->total_s = (double)(clock_now_us() - r.began_us) * 1e-6;
    if (rc == ERR_OK && r.failed.code != ERR_OK)
        rc = err_set(why, r.failed.code, "%s", r.failed.text);
    if (rc == ERR_OK && answer.status != 200) {
        json_t *v = NULL;
        struct err ignored;
        const char *text = NULL;
        if (answer.body.len > 0 &&
            json_parse(answer.body.data, answer.body.len, LIMIT_JSON_DEPTH, &v, &ignored) == ERR_OK)
            text = json_string_value(json_object_get(json_object_get(v, "error"), "message"));
        rc = err_set(why, answer.status >= 500 ? ERR_UNAVAILABLE : ERR_INVALID,
                     "the server answers %d: %s", answer.status, text != NULL ? text : "");
        json_decref(v);
    } else if (rc == ERR_OK && !r.done) {
        rc = err_set(why, ERR_UNAVAILABLE, "the answer broke off");
    }
    buf_free(&answer.body);
    mem_free(body);
    return rc;
}
