/* What the request asks about: messages of a chat, prompts of a completion. */
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "coordinator/api/request.h"

static int no_memory(struct fault *why)
{
    return fault_set(why, 503, "overloaded", NULL, "no memory for the request");
}

static int part_text(const json_t *part, size_t message, size_t index, struct buf *out,
                     struct fault *why)
{
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].content[%zu]", message, index);
    const json_t *type = json_object_get(part, "type");
    if (!json_is_string(type))
        return fault_set(why, 400, "invalid_type", param, "%s is not a part with a type", param);
    if (strcmp(json_string_value(type), "text") != 0)
        return fault_set(why, 400, "unsupported_content", param,
                         "%s is of type '%.50s'; this model reads text only", param,
                         json_string_value(type));
    const json_t *text = json_object_get(part, "text");
    if (!json_is_string(text))
        return fault_set(why, 400, "invalid_type", param, "%s.text must be a string", param);
    if (index > 0) buf_putc(out, '\n'); /* as vLLM and llama-server join them */
    buf_append(out, json_string_value(text), json_string_length(text));
    return 0;
}

/* The content as one string; gives a reference. */
static int content_string(const json_t *content, size_t message, bool may_lack, json_t **out,
                          struct fault *why)
{
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].content", message);
    if (json_is_string(content)) {
        *out = json_stringn(json_string_value(content), json_string_length(content));
        return *out == NULL ? no_memory(why) : 0;
    }
    if ((content == NULL || json_is_null(content)) && may_lack) {
        *out = json_string("");
        return *out == NULL ? no_memory(why) : 0;
    }
    if (!json_is_array(content))
        return fault_set(why, 400, "invalid_type", param,
                         "%s must be a string or an array of parts", param);
    struct buf text = {0};
    int status = 0;
    for (size_t i = 0; i < json_array_size(content) && status == 0; i++)
        status = part_text(json_array_get(content, i), message, i, &text, why);
    if (status == 0) {
        *out = text.failed ? NULL : json_stringn(text.data == NULL ? "" : text.data, text.len);
        if (*out == NULL) status = no_memory(why);
    }
    buf_free(&text);
    return status;
}

static int one_message(const json_t *given, size_t i, json_t *into, struct fault *why)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    char param[64];
    snprintf(param, sizeof param, "messages[%zu]", i);
    if (!json_is_object(given))
        return fault_set(why, 400, "invalid_type", param, "%s must be an object", param);
    const char *role = json_string_value(json_object_get(given, "role"));
    bool known = false;
    for (size_t k = 0; role != NULL && k < sizeof roles / sizeof roles[0]; k++)
        known |= strcmp(role, roles[k]) == 0;
    if (!known) {
        snprintf(param, sizeof param, "messages[%zu].role", i);
        return fault_set(why, 400, "invalid_value", param,
                         "%s must be one of system, developer, user, assistant, tool", param);
    }
    const bool assistant = strcmp(role, "assistant") == 0;
    const json_t *calls = json_object_get(given, "tool_calls"),
                 *id = json_object_get(given, "tool_call_id");
    json_t *content = NULL;
    int status = request_tool_calls(given, i, why);
    if (status != 0) return status;
    if (id != NULL && !json_is_null(id) &&
        (!json_is_string(id) || json_string_length(id) > LIMIT_TOOL_ID_BYTES)) {
        snprintf(param, sizeof param, "messages[%zu].tool_call_id", i);
        return fault_set(why, 400, "invalid_type", param, "%s must be a string of at most %u bytes",
                         param, LIMIT_TOOL_ID_BYTES);
    }
    status = content_string(json_object_get(given, "content"), i, assistant, &content, why);
    if (status != 0) return status;
    json_t *copy = json_object();
    const char *key;
    const json_t *value;
    int failed = copy == NULL;
    json_object_foreach((json_t *)(uintptr_t)given, key, value) failed |=
        json_object_set_new(copy, key, json_incref((json_t *)(uintptr_t)value)) != 0;
    /* Templates ask whether there are calls, and null or an empty list would be an answer. */
    if (calls != NULL && (!assistant || json_array_size(calls) == 0))
        failed |= json_object_del(copy, "tool_calls") != 0;
    failed |= json_object_set(copy, "content", content) != 0;
    /* "developer" is OpenAI's newer word; templates know "system" (one that knows both treats them alike). */
    if (strcmp(role, "developer") == 0)
        failed |= json_object_set_new(copy, "role", json_string("system")) != 0;
    json_decref(content);
    failed |= json_array_append(into, copy) != 0;
    json_decref(copy);
    return failed ? no_memory(why) : 0;
}

int request_messages(const json_t *given, json_t **out, struct fault *why)
{
    if (given == NULL || json_is_null(given))
        return fault_set(why, 400, "missing_required_parameter", "messages", "messages is missing");
    if (!json_is_array(given))
        return fault_set(why, 400, "invalid_type", "messages", "messages must be an array");
    if (json_array_size(given) == 0)
        return fault_set(why, 400, "invalid_value", "messages", "messages must not be empty");
    json_t *list = json_array();
    if (list == NULL) return no_memory(why);
    int status = 0;
    for (size_t i = 0; i < json_array_size(given) && status == 0; i++)
        status = one_message(json_array_get(given, i), i, list, why);
    if (status != 0)
        json_decref(list);
    else
        *out = list;
    return status;
}

int request_ids(const json_t *given, const char *param, uint32_t vocab, int32_t **ids, uint32_t *n,
                struct fault *why)
{
    size_t count = json_array_size(given);
    if (!json_is_array(given))
        return fault_set(why, 400, "invalid_type", param, "%s must be an array of token ids",
                         param);
    if (count > LIMIT_CONTEXT)
        return fault_set(why, 400, "invalid_value", param, "%s has %zu tokens; the limit is %u",
                         param, count, LIMIT_CONTEXT);
    int32_t *list = mem_zalloc_array(count, sizeof *list);
    if (list == NULL) return no_memory(why);
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(given, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= vocab) {
            mem_free(list);
            return fault_set(why, 400, "invalid_value", param,
                             "%s: element %zu is not a token id from 0 to %u", param, i, vocab - 1);
        }
        list[i] = (int32_t)json_integer_value(v);
    }
    *ids = list;
    *n = (uint32_t)count;
    return 0;
}

static int one_prompt(const json_t *v, const char *param, uint32_t vocab,
                      struct request_prompt *out, struct fault *why)
{
    if (json_is_string(v)) {
        out->text = json_string_value(v);
        out->n_text = json_string_length(v);
        return 0;
    }
    if (!json_is_array(v))
        return fault_set(why, 400, "invalid_type", param,
                         "%s must be a string or an array of token ids", param);
    if (json_array_size(v) == 0)
        return fault_set(why, 400, "invalid_value", param, "%s must not be empty", param);
    return request_ids(v, param, vocab, &out->ids, &out->n_ids, why);
}

int request_prompts(const json_t *given, const struct generation_model *model, struct request *out,
                    struct fault *why)
{
    if (given == NULL || json_is_null(given))
        return fault_set(why, 400, "missing_required_parameter", "prompt", "prompt is missing");
    if (!json_is_string(given) && !json_is_array(given))
        return fault_set(why, 400, "invalid_type", "prompt",
                         "prompt must be a string, token ids, or an array of these");
    const json_t *first = json_array_get(given, 0);
    bool single = json_is_string(given) || json_array_size(given) == 0 || json_is_integer(first);
    size_t n = single ? 1 : json_array_size(given);
    if (n > LIMIT_PROMPTS)
        return fault_set(why, 400, "invalid_value", "prompt", "%zu prompts; at most %u are allowed",
                         n, LIMIT_PROMPTS);
    out->prompts = mem_zalloc_array(n, sizeof *out->prompts);
    if (out->prompts == NULL) return no_memory(why);
    out->n_prompts = (uint32_t)n;
    if (single) return one_prompt(given, "prompt", model->vocab, &out->prompts[0], why);
    for (size_t i = 0; i < n; i++) {
        char param[32];
        snprintf(param, sizeof param, "prompt[%zu]", i);
        int status =
            one_prompt(json_array_get(given, i), param, model->vocab, &out->prompts[i], why);
        if (status != 0) return status;
    }
    return 0;
}

int request_template_kwargs(const json_t *body, const json_t **out, struct fault *why)
{
    static const char name[] = "chat_template_kwargs";
    /* What the template has from the rest of the request, or from the model's own files. */
    static const char *const taken[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                        "eos_token"};
    const json_t *v = json_object_get(body, name);
    *out = NULL;
    if (v == NULL || json_is_null(v)) return 0;
    if (!json_is_object(v))
        return fault_set(why, 400, "invalid_type", name, "%s must be an object", name);
    for (size_t i = 0; i < ARRAY_LEN(taken); i++)
        if (json_object_get(v, taken[i]) != NULL)
            return fault_set(why, 400, "invalid_value", name,
                             "%s has '%s', which is not set that way", name, taken[i]);
    *out = v;
    return 0;
}
