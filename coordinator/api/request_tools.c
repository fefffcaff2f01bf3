/* What the model may call, and the calls that it made before. A tool_choice that would force a call needs a sampler that
 * can be held to a grammar, which is not built: it is refused, never taken for "auto". */
#include <stdio.h>
#include <string.h>

#include "coordinator/api/request.h"
#include "coordinator/text/reply_format.h"

static const json_t *given(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

/* A name as it may stand in a reply: visible ASCII or any other character beyond it. */
static bool good_name(const json_t *name)
{
    size_t n = json_string_length(name);
    const char *s = json_string_value(name);
    bool good = n > 0 && n <= LIMIT_TOOL_NAME_BYTES;
    for (size_t i = 0; i < n && good; i++)
        good = (unsigned char)s[i] > ' ' && s[i] != 0x7f;
    return good;
}

static bool is_function(const json_t *v, bool may_lack)
{
    const json_t *type = given(v, "type");
    if (type == NULL) return may_lack;
    return json_is_string(type) && strcmp(json_string_value(type), "function") == 0;
}

static int check_tool(const json_t *tool, size_t i, struct fault *why)
{
    char param[80];
    snprintf(param, sizeof param, "tools[%zu]", i);
    const json_t *function = given(tool, "function");
    if (!json_is_object(tool) || !is_function(tool, false) || !json_is_object(function))
        return fault_set(why, 400, "invalid_value", param,
                         "%s must be {\"type\": \"function\", \"function\": {..}}", param);
    const json_t *parameters = given(function, "parameters"),
                 *description = given(function, "description");
    if (parameters != NULL && !json_is_object(parameters))
        return fault_set(why, 400, "invalid_type", param,
                         "%s.function.parameters must be an object", param);
    if (description != NULL && !json_is_string(description))
        return fault_set(why, 400, "invalid_type", param,
                         "%s.function.description must be a string", param);
    if (good_name(given(function, "name"))) return 0;
    snprintf(param, sizeof param, "tools[%zu].function.name", i);
    return fault_set(why, 400, "invalid_value", param,
                     "%s must be a string of 1 to %u bytes without spaces", param,
                     LIMIT_TOOL_NAME_BYTES);
}

static int take_tools(const json_t *body, const struct generation_model *model, struct request *out,
                      struct fault *why)
{
    const json_t *tools = given(body, "tools");
    if (tools == NULL) return 0;
    if (!json_is_array(tools))
        return fault_set(why, 400, "invalid_type", "tools", "tools must be an array");
    size_t n = json_array_size(tools);
    if (n > LIMIT_TOOLS)
        return fault_set(why, 400, "invalid_value", "tools", "%zu tools; at most %u are allowed", n,
                         LIMIT_TOOLS);
    if (n == 0) return 0;
    if (model->reply_format == NULL || model->reply_format->tools == NULL)
        return fault_set(why, 400, "unsupported_parameter", "tools",
                         "tools: how the model '%.150s' calls tools is not known (its tool parser "
                         "is none); leave them out",
                         model->id);
    for (size_t i = 0; i < n; i++) {
        int status = check_tool(json_array_get(tools, i), i, why);
        if (status != 0) return status;
    }
    out->tools = tools;
    return 0;
}

static int take_choice(const json_t *body, struct request *out, struct fault *why)
{
    const json_t *choice = given(body, "tool_choice");
    if (choice == NULL) return 0;
    const char *s = json_string_value(choice);
    if (s != NULL && strcmp(s, "none") == 0)
        out->tools = NULL; /* the model does not hear of them */
    if (s != NULL && (strcmp(s, "none") == 0 || strcmp(s, "auto") == 0)) return 0;
    if (json_is_object(choice) || (s != NULL && strcmp(s, "required") == 0))
        return fault_set(why, 400, "unsupported_parameter", "tool_choice",
                         "tool_choice can be 'auto' or 'none'; to force a call is not supported by "
                         "this server");
    return fault_set(why, 400, "invalid_value", "tool_choice",
                     "tool_choice must be 'none', 'auto', 'required' or a tool");
}

int request_tools(const json_t *body, const struct generation_model *model, struct request *out,
                  struct fault *why)
{
    int status = take_tools(body, model, out, why);
    if (status == 0) status = take_choice(body, out, why);
    if (status != 0) return status;
    const json_t *parallel = given(body, "parallel_tool_calls");
    if (parallel != NULL && !json_is_boolean(parallel))
        return fault_set(why, 400, "invalid_type", "parallel_tool_calls",
                         "parallel_tool_calls must be true or false");
    out->one_call = json_is_false(parallel);
    return 0;
}

int request_tool_calls(const json_t *message, size_t i, struct fault *why)
{
    const json_t *calls = given(message, "tool_calls");
    if (calls == NULL) return 0;
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].tool_calls", i);
    if (!json_is_array(calls) || json_array_size(calls) > LIMIT_TOOL_CALLS)
        return fault_set(why, 400, "invalid_type", param, "%s must be an array of at most %u calls",
                         param, LIMIT_TOOL_CALLS);
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k), *function = given(call, "function"),
                     *arguments = given(function, "arguments"), *id = given(call, "id");
        if (!json_is_object(call) || !is_function(call, true) || !json_is_object(function))
            return fault_set(why, 400, "invalid_value", param,
                             "%s[%zu] must be {\"id\", \"type\": \"function\", \"function\": {..}}",
                             param, k);
        if (id != NULL && (!json_is_string(id) || json_string_length(id) > LIMIT_TOOL_ID_BYTES))
            return fault_set(why, 400, "invalid_type", param,
                             "%s[%zu].id must be a string of at most %u bytes", param, k,
                             LIMIT_TOOL_ID_BYTES);
        if (!json_is_string(arguments) && !json_is_object(arguments))
            return fault_set(why, 400, "invalid_type", param,
                             "%s[%zu].function.arguments must be the text of a JSON object", param,
                             k);
        if (!good_name(given(function, "name")))
            return fault_set(why, 400, "invalid_value", param,
                             "%s[%zu].function.name must be a string of 1 to %u bytes without "
                             "spaces",
                             param, k, LIMIT_TOOL_NAME_BYTES);
    }
    return 0;
}
