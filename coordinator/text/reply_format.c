#include "coordinator/text/reply_format.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_grammar.h"
#include "coordinator/text/tokenizer.h"

/* ---- the tables: the first row whose sign is in the template's text counts ---- */

#define JSON_CALLS                                                                                 \
    .begin = reply_json_begin, .byte = reply_json_byte, .marker = reply_json_marker,               \
    .end = reply_json_end
#define SECTIONS                                                                                   \
    .begin = reply_section_begin, .byte = reply_section_byte, .marker = reply_section_marker,      \
    .end = reply_section_end
#define TAGS                                                                                       \
    .begin = reply_tags_begin, .byte = reply_tags_byte, .marker = reply_tags_marker,               \
    .end = reply_tags_end

static const struct reply_grammar qwen3_coder = {
    .name = "qwen3_coder",
    .sign = "<function=",
    .markers = {"<tool_call>", "<function=", "<parameter=", "</parameter>", "</function>",
                "</tool_call>"},
    .begins = 3,
    .python = true,
    TAGS,
};
static const struct reply_grammar glm45 = {
    .name = "glm45",
    .sign = "<arg_key>",
    .markers = {"<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
                "</tool_call>"},
    .begins = 1,
    TAGS,
};
static const struct reply_grammar kimi_k2 = {
    .name = "kimi_k2",
    .sign = "<|tool_calls_section_begin|>",
    .markers = {"<|tool_calls_section_begin|>", "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"},
    .begins = 3,
    SECTIONS,
};
#define BAR "\xef\xbd\x9c" /* U+FF5C */
#define LOW "\xe2\x96\x81" /* U+2581 */
static const struct reply_grammar deepseek_v3 = {
    .name = "deepseek_v3",
    .sign = "<" BAR "tool" LOW "calls" LOW "begin" BAR ">",
    .markers = {"<" BAR "tool" LOW "calls" LOW "begin" BAR ">",
                "<" BAR "tool" LOW "call" LOW "begin" BAR ">", "<" BAR "tool" LOW "sep" BAR ">",
                "<" BAR "tool" LOW "call" LOW "end" BAR ">",
                "<" BAR "tool" LOW "calls" LOW "end" BAR ">"},
    .begins = 3,
    SECTIONS,
};
static const struct reply_grammar mistral = {
    .name = "mistral",
    .sign = "[TOOL_CALLS]",
    .markers = {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"},
    .begins = 1,
    .begin = reply_mistral_begin,
    .byte = reply_mistral_byte,
    .marker = reply_mistral_marker,
    .end = reply_mistral_end,
};
static const struct reply_grammar granite = {
    .name = "granite",
    .sign = "<|tool_call|>",
    .markers = {"<|tool_call|>"},
    .begins = 1,
    JSON_CALLS,
};
static const struct reply_grammar hermes = {
    .name = "hermes",
    .sign = "<tool_call>",
    .markers = {"<tool_call>", "</tool_call>"},
    .begins = 1,
    .closed = true,
    JSON_CALLS,
};
static const struct reply_grammar llama3_json = {
    .name = "llama3_json",
    .sign = "{\"name\": function name, \"parameters\":",
    .markers = {"<|python_tag|>"},
    .begins = 1,
    .bare = true,
    JSON_CALLS,
};
static const struct reply_grammar *const tool_grammars[] = {
    &reply_harmony, &qwen3_coder, &glm45,  &kimi_k2,    &deepseek_v3,
    &mistral,       &granite,     &hermes, &llama3_json};

static const struct reply_grammar think_answer = {
    .name = "granite",
    .sign = "<response>",
    .markers = {"<think>", "</think>", "<response>", "</response>"}};
static const struct reply_grammar think_brackets = {
    .name = "mistral", .sign = "[THINK]", .markers = {"[THINK]", "[/THINK]"}};
static const struct reply_grammar think = {
    .name = "think", .sign = "</think>", .markers = {"<think>", "</think>"}};
static const struct reply_grammar *const reasoning_grammars[] = {&reply_harmony, &think_answer,
                                                                 &think_brackets, &think};

/* ---- which one ---- */

static const struct reply_grammar *by_sign(const struct reply_grammar *const *rows, size_t n_rows,
                                           const char *source, size_t n)
{
    for (size_t i = 0; i < n_rows; i++)
        if (n > 0 && memmem(source, n, rows[i]->sign, strlen(rows[i]->sign)) != NULL)
            return rows[i];
    return NULL;
}

static enum err_code choose(const struct reply_grammar *const *rows, size_t n_rows,
                            const char *what, const char *name, const char *source, size_t n,
                            const struct reply_grammar **out, struct err *why)
{
    if (name == NULL || strcmp(name, "auto") == 0) {
        *out = by_sign(rows, n_rows, source, n);
        return ERR_OK;
    }
    *out = NULL;
    if (strcmp(name, "none") == 0) return ERR_OK;
    struct buf known = {0};
    for (size_t i = 0; i < n_rows; i++) {
        if (strcmp(name, rows[i]->name) == 0) *out = rows[i];
        buf_printf(&known, "%s, ", rows[i]->name);
    }
    enum err_code rc = ERR_OK;
    if (*out == NULL)
        rc = err_set(why, ERR_INVALID, "%s parser '%.50s' is not known; there are %sauto and none",
                     what, name, known.failed ? "" : known.data);
    buf_free(&known);
    return rc;
}

enum err_code reply_format_detect(const char *source, size_t n, const char *tools,
                                  const char *reasoning, struct reply_format *out, struct err *why)
{
    *out = (struct reply_format){.reasoning_key = "reasoning_content"};
    enum err_code rc =
        choose(tool_grammars, ARRAY_LEN(tool_grammars), "tool", tools, source, n, &out->tools, why);
    if (rc == ERR_OK)
        rc = choose(reasoning_grammars, ARRAY_LEN(reasoning_grammars), "reasoning", reasoning,
                    source, n, &out->reasoning, why);
    if (rc != ERR_OK) return rc;
    bool harmony_tools = out->tools == &reply_harmony,
         harmony_reasoning = out->reasoning == &reply_harmony;
    if (harmony_tools != harmony_reasoning && out->tools != NULL && out->reasoning != NULL)
        return err_set(why, ERR_INVALID,
                       "tool parser '%s' and reasoning parser '%s' do not go together",
                       out->tools->name, out->reasoning->name);
    if (harmony_reasoning || harmony_tools) out->reasoning_key = "thinking";
    return ERR_OK;
}

/* ---- the template's shape of a message that calls tools ---- */

static const char probe[] =
    "[{\"role\":\"user\",\"content\":\"u\"},"
    "{\"role\":\"assistant\",\"content\":%s,\"tool_calls\":[{\"id\":\"call00001\",\"type\":"
    "\"function\",\"function\":{\"name\":\"probe_name\",\"arguments\":%s}}]},"
    "{\"role\":\"tool\",\"name\":\"probe_name\",\"tool_call_id\":\"call00001\",\"content\":\"r\"}]";

/* Shown, and not as a string in a string (\"probe_key\") or as Python prints it ('probe_key'). */
static bool shows_call(const struct buf *text)
{
    const char *s = text->data == NULL ? "" : text->data;
    return strstr(s, "probe_name") != NULL && strstr(s, "probe_key") != NULL &&
           strstr(s, "probe_value") != NULL && strstr(s, "\\\"probe_key") == NULL &&
           strstr(s, "'probe_key'") == NULL;
}

static enum err_code try_shape(const struct chat_template *t, bool null_content,
                               bool string_arguments, bool *shown, struct err *why)
{
    struct buf source = {0}, text = {0};
    json_t *messages = NULL;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    buf_printf(&source, probe, null_content ? "null" : "\"\"",
               string_arguments ? "\"{\\\"probe_key\\\": \\\"probe_value\\\"}\""
                                : "{\"probe_key\": \"probe_value\"}");
#pragma GCC diagnostic pop
    enum err_code rc = source.failed
                           ? err_nomem(why, "a probe of the chat template")
                           : json_parse(source.data, source.len, LIMIT_JSON_DEPTH, &messages, why);
    *shown = false;
    if (rc == ERR_OK) {
        struct chat_template_input in = {.messages = messages,
                                         .now = {.tm_mday = 1, .tm_year = 100}};
        struct err refused; /* by the template: it wants another shape */
        rc = chat_template_render(t, &in, &text, NULL, &refused);
        if (rc == ERR_OK) *shown = shows_call(&text);
        rc = rc == ERR_EXHAUSTED ? err_nomem(why, "a probe of the chat template") : ERR_OK;
    }
    json_decref(messages);
    buf_free(&source);
    buf_free(&text);
    return rc;
}

static enum err_code find_shape(const struct chat_template *t, struct reply_format *f,
                                struct err *why)
{
    for (int i = 0; i < 4 && !f->renders_calls; i++) {
        bool null_content = (i & 1) != 0, string_arguments = (i & 2) != 0;
        enum err_code rc = try_shape(t, null_content, string_arguments, &f->renders_calls, why);
        if (rc != ERR_OK) return rc;
        if (!f->renders_calls) continue;
        f->null_content = null_content;
        f->string_arguments = string_arguments;
    }
    return ERR_OK;
}

/* ---- special tokens ---- */

static uint32_t special_markers(const struct reply_grammar *g, const struct tokenizer *t)
{
    uint32_t bits = 0;
    for (uint32_t m = 0; g != NULL && t != NULL && m < GRAMMAR_MARKERS && g->markers[m] != NULL;
         m++) {
        int32_t id = tokenizer_find(t, g->markers[m], strlen(g->markers[m]));
        if (id >= 0 && tokenizer_is_special(t, id)) bits |= 1u << m;
    }
    return bits;
}

enum err_code reply_format_find(const struct chat_template *t, const struct tokenizer *tokenizer,
                                const char *tools, const char *reasoning, struct reply_format *out,
                                struct err *why)
{
    size_t n = 0;
    const char *source = t == NULL ? "" : chat_template_source(t, &n);
    enum err_code rc = reply_format_detect(source, n, tools, reasoning, out, why);
    if (rc != ERR_OK) return rc;
    /* A template need not speak of the tags that its model writes. */
    bool automatic = reasoning == NULL || strcmp(reasoning, "auto") == 0;
    if (automatic && t != NULL && tokenizer != NULL && out->reasoning == NULL &&
        out->tools != &reply_harmony && tokenizer_find(tokenizer, "<think>", 7) >= 0)
        out->reasoning = &think;
    bool harmony = out->tools == &reply_harmony || out->reasoning == &reply_harmony;
    out->special_tools = special_markers(harmony ? &reply_harmony : out->tools, tokenizer);
    if (!harmony) out->special_reasoning = special_markers(out->reasoning, tokenizer);
    return t == NULL ? ERR_OK : find_shape(t, out, why);
}

const char *reply_format_tools_name(const struct reply_format *f)
{
    return f->tools == NULL ? "none" : f->tools->name;
}

const char *reply_format_reasoning_name(const struct reply_format *f)
{
    return f->reasoning == NULL ? "none" : f->reasoning->name;
}

bool reply_format_opens_reasoning(const struct reply_format *f, const char *prompt_end, size_t n)
{
    if (f->reasoning == NULL || f->reasoning == &reply_harmony) return false;
    while (n > 0 && reply_is_space(prompt_end[n - 1]))
        n--;
    const char *open = f->reasoning->markers[THINK_OPEN];
    size_t n_open = strlen(open);
    return n >= n_open && memcmp(prompt_end + n - n_open, open, n_open) == 0;
}

/* ---- history ---- */

static json_t *borrowed(const json_t *v)
{
    return json_incref((json_t *)(uintptr_t)v);
}

static enum err_code call_for_template(const struct reply_format *f, const json_t *call,
                                       size_t message, size_t index, json_t *into, struct err *why)
{
    const json_t *function = json_object_get(call, "function"),
                 *given = json_object_get(function, "arguments");
    json_t *arguments = NULL;
    if (!json_is_object(function) || given == NULL) /* not this module's to check */
        return json_array_append_new(into, borrowed(call)) != 0 ? err_nomem(why, "a tool call")
                                                                : ERR_OK;
    if (json_is_string(given) && !f->string_arguments) {
        struct err e;
        const char *text = json_string_value(given);
        size_t n = json_string_length(given);
        if (n == 0) {
            text = "{}";
            n = 2;
        }
        enum err_code rc = json_parse(text, n, LIMIT_JSON_DEPTH, &arguments, &e);
        if (rc == ERR_EXHAUSTED) return err_nomem(why, "a tool call's arguments");
        if (rc != ERR_OK || !json_is_object(arguments)) {
            json_decref(arguments);
            return err_set(why, ERR_INVALID,
                           "messages[%zu].tool_calls[%zu].function.arguments is not the text of a "
                           "JSON object%s%.200s",
                           message, index, rc != ERR_OK ? ": " : "", rc != ERR_OK ? e.text : "");
        }
    } else if (json_is_object(given) && f->string_arguments) {
        char *text = json_to_text(given);
        arguments = text == NULL ? NULL : json_string(text);
        mem_free(text);
    } else {
        arguments = borrowed(given);
    }
    json_t *function_copy = json_copy((json_t *)(uintptr_t)function),
           *copy = json_copy((json_t *)(uintptr_t)call);
    bool failed = json_object_set(function_copy, "arguments", arguments) != 0 ||
                  json_object_set(copy, "function", function_copy) != 0 ||
                  json_array_append(into, copy) != 0;
    json_decref(arguments);
    json_decref(function_copy);
    json_decref(copy);
    return failed ? err_nomem(why, "a tool call") : ERR_OK;
}

/* harmony's template raises on content and thinking side by side in a message that calls. */
static bool keeps_reasoning(const struct reply_format *f, const json_t *message)
{
    bool calls = json_array_size(json_object_get(message, "tool_calls")) > 0,
         content = json_string_length(json_object_get(message, "content")) > 0;
    return strcmp(f->reasoning_key, "thinking") != 0 || !calls || !content;
}

static enum err_code assistant_for_template(const struct reply_format *f, const json_t *message,
                                            size_t i, json_t *into, struct err *why)
{
    json_t *copy = json_copy((json_t *)(uintptr_t)message);
    if (copy == NULL) return err_nomem(why, "a message");
    bool failed = false;
    const json_t *reasoning = json_object_get(message, "reasoning_content"),
                 *calls = json_object_get(message, "tool_calls");
    if (reasoning != NULL && (!json_is_string(reasoning) || !keeps_reasoning(f, message))) {
        json_object_del(copy, "reasoning_content");
    } else if (reasoning != NULL && strcmp(f->reasoning_key, "reasoning_content") != 0) {
        failed = json_object_set_new(copy, f->reasoning_key, borrowed(reasoning)) != 0;
        json_object_del(copy, "reasoning_content");
    }
    enum err_code rc = ERR_OK;
    if (json_array_size(calls) > 0) {
        json_t *list = json_array();
        failed |= list == NULL;
        for (size_t k = 0; k < json_array_size(calls) && rc == ERR_OK && !failed; k++)
            rc = call_for_template(f, json_array_get(calls, k), i, k, list, why);
        failed |= json_object_set(copy, "tool_calls", list) != 0;
        json_decref(list);
        if (f->null_content && json_string_length(json_object_get(copy, "content")) == 0)
            failed |= json_object_set_new(copy, "content", json_null()) != 0;
    }
    failed |= json_array_append(into, copy) != 0;
    json_decref(copy);
    return rc == ERR_OK && failed ? err_nomem(why, "a message") : rc;
}

enum err_code reply_format_history(const struct reply_format *f, const json_t *messages,
                                   json_t **out, struct err *why)
{
    json_t *list = json_array();
    if (list == NULL) return err_nomem(why, "messages");
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < json_array_size(messages) && rc == ERR_OK; i++) {
        const json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        if (role != NULL && strcmp(role, "assistant") == 0)
            rc = assistant_for_template(f, message, i, list, why);
        else if (json_array_append(list, (json_t *)(uintptr_t)message) != 0)
            rc = err_nomem(why, "messages");
    }
    if (rc != ERR_OK)
        json_decref(list);
    else
        *out = list;
    return rc;
}

/* ---- tools ---- */

static bool describe(json_t *list, const json_t *tool)
{
    const json_t *function = json_object_get(tool, "function");
    if (!json_is_object(function)) return json_array_append_new(list, borrowed(tool)) == 0;
    json_t *copy = json_copy((json_t *)(uintptr_t)tool),
           *function_copy = json_copy((json_t *)(uintptr_t)function);
    bool good = copy != NULL && function_copy != NULL;
    if (good && !json_is_string(json_object_get(function, "description")))
        good = json_object_set_new(function_copy, "description", json_string("")) == 0;
    good = good && json_object_set(copy, "function", function_copy) == 0 &&
           json_array_append(list, copy) == 0;
    json_decref(copy);
    json_decref(function_copy);
    return good;
}

enum err_code reply_format_offered(const struct reply_format *f, const json_t *tools, json_t **out,
                                   struct err *why)
{
    if (tools == NULL || f->tools != &reply_harmony) {
        *out = borrowed(tools);
        return ERR_OK;
    }
    json_t *list = json_array();
    bool good = list != NULL;
    for (size_t i = 0; i < json_array_size(tools) && good; i++)
        good = describe(list, json_array_get(tools, i));
    if (!good) {
        json_decref(list);
        return err_nomem(why, "tools");
    }
    *out = list;
    return ERR_OK;
}
