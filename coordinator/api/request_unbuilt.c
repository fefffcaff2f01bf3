/* Parameters that other servers have and that would change the answer here, if they were built. A client that sends one
 * must hear about it; a client that sends its neutral value, as many libraries always do, must not. */
#include <string.h>

#include "common/base/check.h"
#include "coordinator/api/request.h"

enum neutral { EMPTY, ZERO, ONE, FALSE, TRUE, NONE_OR_AUTO, TEXT_FORMAT, TEXT_ONLY, BEST_OF };
enum { CHAT = 1, COMPLETION = 2, BOTH = 3 };

static const struct {
    const char *name;
    int kinds;
    enum neutral neutral;
} parameters[] = {
    {"tools", COMPLETION, EMPTY},
    {"functions", BOTH, EMPTY},
    {"tool_choice", COMPLETION, NONE_OR_AUTO},
    {"function_call", BOTH, NONE_OR_AUTO},
    {"response_format", BOTH, TEXT_FORMAT},
    {"json_schema", BOTH, EMPTY},
    {"grammar", BOTH, EMPTY},
    {"structured_outputs", BOTH, EMPTY},
    {"guided_json", BOTH, EMPTY},
    {"guided_regex", BOTH, EMPTY},
    {"guided_choice", BOTH, EMPTY},
    {"guided_grammar", BOTH, EMPTY},
    {"length_penalty", BOTH, ONE},
    {"typical_p", BOTH, ONE},
    {"mirostat", BOTH, ZERO},
    {"dry_multiplier", BOTH, ZERO},
    {"xtc_probability", BOTH, ZERO},
    {"use_beam_search", BOTH, FALSE},
    {"suffix", COMPLETION, EMPTY},
    {"best_of", COMPLETION, BEST_OF},
    {"prompt_logprobs", BOTH, EMPTY},
    {"prompt_embeds", BOTH, EMPTY},
    {"truncate_prompt_tokens", BOTH, EMPTY},
    {"min_tokens", BOTH, ZERO},
    {"stop_token_ids", BOTH, EMPTY},
    {"allowed_token_ids", BOTH, EMPTY},
    {"bad_words", BOTH, EMPTY},
    {"include_stop_str_in_output", BOTH, FALSE},
    {"skip_special_tokens", BOTH, TRUE},
    {"chat_template", CHAT, EMPTY},
    {"chat_template_kwargs", COMPLETION, EMPTY},
    {"continue_final_message", CHAT, FALSE},
    {"add_generation_prompt", CHAT, TRUE},
    {"documents", CHAT, EMPTY},
    {"reasoning_effort", CHAT, NONE_OR_AUTO},
    {"modalities", CHAT, TEXT_ONLY},
    {"audio", CHAT, EMPTY},
    {"web_search_options", CHAT, EMPTY},
    {"moe", BOTH, EMPTY},
};

static bool is_string(const json_t *v, const char *text)
{
    return json_is_string(v) && strcmp(json_string_value(v), text) == 0;
}

static bool is_neutral(const json_t *v, enum neutral neutral, const json_t *body)
{
    if (json_is_null(v)) return true;
    switch (neutral) {
    case EMPTY:
        return (json_is_array(v) && json_array_size(v) == 0) ||
               (json_is_object(v) && json_object_size(v) == 0) ||
               (json_is_string(v) && json_string_length(v) == 0);
    case ZERO:
        return json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0);
    case ONE:
        return json_is_number(v) && json_number_value(v) == 1;
    case FALSE:
        return json_is_false(v);
    case TRUE:
        return json_is_true(v);
    case NONE_OR_AUTO:
        return is_string(v, "none") || is_string(v, "auto");
    case TEXT_FORMAT:
        return json_is_object(v) && is_string(json_object_get(v, "type"), "text");
    case TEXT_ONLY:
        return json_is_array(v) && json_array_size(v) == 1 &&
               is_string(json_array_get(v, 0), "text");
    case BEST_OF: {
        /* The best of as many as are returned is all of them. */
        const json_t *n = json_object_get(body, "n");
        json_int_t all = json_is_integer(n) ? json_integer_value(n) : 1;
        return json_is_integer(v) && json_integer_value(v) == all;
    }
    }
    return false;
}

int request_unbuilt(enum request_kind kind, const json_t *body, struct fault *why)
{
    int bit = kind == REQUEST_CHAT ? CHAT : COMPLETION;
    for (size_t i = 0; i < ARRAY_LEN(parameters); i++) {
        const json_t *v = json_object_get(body, parameters[i].name);
        if (v == NULL || (parameters[i].kinds & bit) == 0 ||
            is_neutral(v, parameters[i].neutral, body))
            continue;
        return fault_set(why, 400, "unsupported_parameter", parameters[i].name,
                         "%s is not supported by this server; leave it out", parameters[i].name);
    }
    return 0;
}
