#include "coordinator/api/request.h"

#include <math.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/mem.h"

#define COMPLETION_MAX_TOKENS 16 /* OpenAI's default */

static const json_t *given(const json_t *body, const char *key)
{
    const json_t *v = json_object_get(body, key);
    return json_is_null(v) ? NULL : v; /* null is as good as absent */
}

static int take_int(const json_t *body, const char *key, int64_t low, int64_t high, bool *has,
                    int64_t *out, struct fault *why)
{
    const json_t *v = given(body, key);
    if (has != NULL) *has = v != NULL;
    if (v == NULL) return 0;
    if (!json_is_integer(v))
        return fault_set(why, 400, "invalid_type", key, "%s must be an integer", key);
    if (json_integer_value(v) < low || json_integer_value(v) > high)
        return fault_set(why, 400, "invalid_value", key, "%s is %lld; it must be from %lld to %lld",
                         key, (long long)json_integer_value(v), (long long)low, (long long)high);
    *out = json_integer_value(v);
    return 0;
}

static int take_number(const json_t *body, const char *key, double low, double high, double *out,
                       struct fault *why)
{
    const json_t *v = given(body, key);
    if (v == NULL) return 0;
    if (!json_is_number(v))
        return fault_set(why, 400, "invalid_type", key, "%s must be a number", key);
    double x = json_number_value(v);
    if (!(x >= low && x <= high)) /* a NaN cannot be written in JSON, but costs nothing to refuse */
        return fault_set(why, 400, "invalid_value", key, "%s is %g; it must be from %g to %g", key,
                         x, low, high);
    *out = x;
    return 0;
}

static int take_bool(const json_t *body, const char *key, bool *out, struct fault *why)
{
    const json_t *v = given(body, key);
    if (v == NULL) return 0;
    if (!json_is_boolean(v))
        return fault_set(why, 400, "invalid_type", key, "%s must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

static int take_max_tokens(const json_t *body, const struct generation_model *model,
                           struct request *r, struct fault *why)
{
    int64_t max = 0, completion = 0;
    bool has_max, has_completion = false;
    int status = take_int(body, "max_tokens", 0, model->ctx, &has_max, &max, why);
    if (status == 0 && r->kind == REQUEST_CHAT)
        status = take_int(body, "max_completion_tokens", 0, model->ctx, &has_completion,
                          &completion, why);
    if (status != 0) return status;
    r->has_max_tokens = has_max || has_completion;
    const char *name = has_completion ? "max_completion_tokens" : "max_tokens";
    if (r->has_max_tokens) {
        r->max_tokens = (uint32_t)(has_completion ? completion : max);
    } else {
        r->max_tokens = r->kind == REQUEST_COMPLETION ? COMPLETION_MAX_TOKENS : model->ctx;
    }
    if (r->has_max_tokens && r->max_tokens == 0 && !r->echo)
        return fault_set(why, 400, "invalid_value", name, "%s is 0; that is of use with echo only",
                         name);
    return 0;
}

static int take_sampling(const json_t *body, const struct generation_model *model,
                         struct request *r, struct fault *why)
{
    r->temperature = (double)model->default_temperature;
    r->top_p = (double)model->default_top_p;
    int64_t top_k = model->default_top_k, seed = 0, n = 1;
    int status = take_number(body, "temperature", 0, 2, &r->temperature, why);
    if (status == 0) status = take_number(body, "top_p", 0, 1, &r->top_p, why);
    if (status == 0 && r->top_p <= 0)
        status = fault_set(why, 400, "invalid_value", "top_p",
                           "top_p is 0; it must be above 0, up to 1");
    if (status == 0) status = take_number(body, "min_p", 0, 1, &r->min_p, why);
    /* -1 is how vLLM's clients write "off". */
    if (status == 0) status = take_int(body, "top_k", -1, model->vocab, NULL, &top_k, why);
    if (status == 0)
        status = take_int(body, "seed", INT64_MIN, INT64_MAX, &r->has_seed, &seed, why);
    if (status == 0) status = take_int(body, "n", 1, LIMIT_N, NULL, &n, why);
    r->top_k = top_k < 0 ? 0 : (uint32_t)top_k;
    r->seed = (uint64_t)seed;
    r->n = (uint32_t)n;
    return status;
}

/* Two names for one thing: vLLM's and llama.cpp's. */
static int take_repetition(const json_t *body, struct request *r, struct fault *why)
{
    static const char *const names[] = {"repetition_penalty", "repeat_penalty"};
    double both[2] = {1, 1};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        int status = take_number(body, names[i], 0, LIMIT_REPETITION_PENALTY, &both[i], why);
        if (status != 0) return status;
        if (both[i] <= 0)
            return fault_set(why, 400, "invalid_value", names[i],
                             "%s is 0; it must be above 0, up to %u", names[i],
                             LIMIT_REPETITION_PENALTY);
    }
    const bool two = given(body, names[0]) != NULL && given(body, names[1]) != NULL;
    if (two && both[0] != both[1])
        return fault_set(why, 400, "invalid_value", names[1],
                         "%s is %g and %s is %g; they are one parameter", names[0], both[0],
                         names[1], both[1]);
    r->repetition_penalty = given(body, names[1]) != NULL ? both[1] : both[0];
    return 0;
}

static int take_penalties(const json_t *body, const struct generation_model *model,
                          struct request *r, struct fault *why)
{
    int status = take_number(body, "presence_penalty", -2, 2, &r->presence_penalty, why);
    if (status == 0)
        status = take_number(body, "frequency_penalty", -2, 2, &r->frequency_penalty, why);
    if (status == 0) status = take_repetition(body, r, why);
    if (status == 0)
        status = request_logit_bias(given(body, "logit_bias"), model->vocab, &r->logit_bias,
                                    &r->n_logit_bias, why);
    return status;
}

static int take_logprobs(const json_t *body, struct request *r, struct fault *why)
{
    int64_t top = 0;
    int status;
    if (r->kind == REQUEST_CHAT) {
        status = take_bool(body, "logprobs", &r->logprobs, why);
        if (status == 0)
            status = take_int(body, "top_logprobs", 0, LIMIT_TOP_LOGPROBS, NULL, &top, why);
        if (status == 0 && top > 0 && !r->logprobs)
            status = fault_set(why, 400, "invalid_value", "top_logprobs",
                               "top_logprobs needs logprobs: true");
    } else {
        status = take_int(body, "logprobs", 0, LIMIT_TOP_LOGPROBS, &r->logprobs, &top, why);
    }
    r->top_logprobs = (uint32_t)top;
    return status;
}

static int add_stop(const json_t *v, struct request *r, struct fault *why)
{
    if (!json_is_string(v))
        return fault_set(why, 400, "invalid_type", "stop",
                         "stop must be a string or an array of strings");
    size_t n = json_string_length(v);
    if (n == 0 || n > LIMIT_STOP_BYTES)
        return fault_set(why, 400, "invalid_value", "stop",
                         "a stop string of %zu bytes; 1 to %u are allowed", n, LIMIT_STOP_BYTES);
    r->stop[r->n_stop++] = (struct request_string){json_string_value(v), n};
    return 0;
}

static int take_stop(const json_t *body, struct request *r, struct fault *why)
{
    const json_t *v = given(body, "stop");
    if (v == NULL) return 0;
    if (!json_is_array(v)) return add_stop(v, r, why);
    if (json_array_size(v) > LIMIT_STOP_STRINGS)
        return fault_set(why, 400, "invalid_value", "stop",
                         "%zu stop strings; at most %u are allowed", json_array_size(v),
                         LIMIT_STOP_STRINGS);
    for (size_t i = 0; i < json_array_size(v); i++) {
        int status = add_stop(json_array_get(v, i), r, why);
        if (status != 0) return status;
    }
    return 0;
}

static int take_stream(const json_t *body, struct request *r, struct fault *why)
{
    int status = take_bool(body, "stream", &r->stream, why);
    const json_t *options = given(body, "stream_options");
    if (status != 0 || options == NULL) return status;
    if (!json_is_object(options))
        return fault_set(why, 400, "invalid_type", "stream_options",
                         "stream_options must be an object");
    if (!r->stream)
        return fault_set(why, 400, "invalid_value", "stream_options",
                         "stream_options is for stream: true only");
    const json_t *usage = given(options, "include_usage");
    if (usage != NULL && !json_is_boolean(usage))
        return fault_set(why, 400, "invalid_type", "stream_options.include_usage",
                         "stream_options.include_usage must be true or false");
    r->include_usage = json_is_true(usage);
    return 0;
}

int request_model(const json_t *body, const struct generation_model *model, struct fault *why)
{
    const json_t *v = given(body, "model");
    if (v == NULL) return 0;
    if (!json_is_string(v))
        return fault_set(why, 400, "invalid_type", "model", "model must be a string");
    if (strcmp(json_string_value(v), model->id) != 0 || strlen(model->id) != json_string_length(v))
        return fault_set(why, 404, "model_not_found", "model",
                         "the model '%.150s' is not served here; '%.150s' is", json_string_value(v),
                         model->id);
    return 0;
}

int request_body_object(const char *body, size_t n, json_t **out, struct fault *why)
{
    struct err e;
    json_t *v = NULL;
    if (n == 0)
        return fault_set(why, 400, NULL, NULL, "the body is empty; it must be a JSON object");
    enum err_code rc = json_parse(body, n, LIMIT_JSON_DEPTH, &v, &e);
    if (rc != ERR_OK) return fault_from_err(why, &e);
    if (!json_is_object(v)) {
        json_decref(v);
        return fault_set(why, 400, NULL, NULL, "the body must be a JSON object");
    }
    *out = v;
    return 0;
}

int request_parse(enum request_kind kind, const char *body, size_t n,
                  const struct generation_model *model, struct request *out, struct fault *why)
{
    json_t *object = NULL;
    int status = request_body_object(body, n, &object, why);
    return status != 0 ? status : request_from_object(kind, object, model, out, why);
}

int request_from_object(enum request_kind kind, json_t *body, const struct generation_model *model,
                        struct request *out, struct fault *why)
{
    out->kind = kind;
    out->body = body;
    const json_t *b = body;
    int status = request_model(b, model, why);
    if (status == 0) status = request_unbuilt(kind, b, why);
    if (status == 0 && kind == REQUEST_COMPLETION) status = take_bool(b, "echo", &out->echo, why);
    if (status == 0) status = take_max_tokens(b, model, out, why);
    if (status == 0) status = take_sampling(b, model, out, why);
    if (status == 0) status = take_penalties(b, model, out, why);
    if (status == 0) status = take_logprobs(b, out, why);
    if (status == 0) status = take_stop(b, out, why);
    if (status == 0) status = take_stream(b, out, why);
    if (status == 0) status = take_bool(b, "ignore_eos", &out->ignore_eos, why);
    out->eos = model->eos;
    out->n_eos = out->ignore_eos ? 0 : model->n_eos;
    if (status == 0) status = take_bool(b, "return_token_ids", &out->return_token_ids, why);
    if (status != 0) return status;
    if (kind == REQUEST_CHAT) status = request_tools(b, model, out, why);
    if (status == 0 && kind == REQUEST_CHAT)
        status = request_template_kwargs(b, &out->template_kwargs, why);
    if (status != 0) return status;
    if (kind == REQUEST_CHAT)
        return request_messages(json_object_get(b, "messages"), &out->messages, why);
    return request_prompts(json_object_get(b, "prompt"), model, out, why);
}

int request_check_length(const struct request *r, size_t n_prompt, uint32_t ctx, struct fault *why)
{
    const char *param = r->kind == REQUEST_CHAT ? "messages" : "prompt";
    if (n_prompt == 0)
        return fault_set(why, 400, "invalid_value", param, "the prompt has no tokens");
    uint32_t wanted = r->has_max_tokens ? r->max_tokens : 1;
    if (n_prompt <= ctx && wanted <= ctx - n_prompt) return 0;
    fault_set(
        why, 400, "context_length_exceeded", param,
        "this model's maximum context length is %u tokens; the prompt has %zu and %u %s to be generated",
        ctx, n_prompt, wanted, r->has_max_tokens ? "are" : "at least");
    why->n_prompt_tokens = n_prompt > UINT32_MAX ? UINT32_MAX : (uint32_t)n_prompt;
    why->n_ctx = ctx;
    return 400;
}

void request_settle_seed(struct request *r)
{
    if (!r->has_seed && getrandom(&r->seed, sizeof r->seed, 0) != (ssize_t)sizeof r->seed)
        r->seed = clock_now_ns();
}

struct generation_spec request_spec(const struct request *r, const struct generation_model *model,
                                    const struct ids *prompt, uint32_t sample)
{
    uint32_t n_prompt = (uint32_t)prompt->len, left = model->ctx - n_prompt;
    return (struct generation_spec){
        .prompt = prompt->data,
        .n_prompt = n_prompt,
        .max_tokens = r->max_tokens < left ? r->max_tokens : left,
        .ignore_eos = r->ignore_eos,
        .sampling = {.temperature = r->temperature,
                     .top_p = r->top_p,
                     .min_p = r->min_p,
                     .top_k = r->top_k,
                     .seed = r->seed,
                     .choice = sample,
                     .adjust = {.repetition = r->repetition_penalty,
                                .frequency = r->frequency_penalty,
                                .presence = r->presence_penalty,
                                .bias = r->logit_bias,
                                .n_bias = r->n_logit_bias}},
        .top_logprobs = r->logprobs ? r->top_logprobs : 0,
        .logprobs = r->logprobs,
        /* Without a token to generate the engine still wants something to do. */
        .prompt_logprobs = r->echo && (r->logprobs || r->max_tokens == 0),
        .deadline_ms = model->request_ms > 0 ? model->request_ms : LIMIT_REQUEST_MS,
    };
}

void request_deinit(struct request *r)
{
    for (uint32_t i = 0; i < r->n_prompts; i++)
        mem_free(r->prompts[i].ids);
    mem_free(r->prompts);
    mem_free(r->logit_bias);
    json_decref(r->messages);
    json_decref(r->body);
    *r = (struct request){0};
}
