/* Tools and reasoning over HTTP, with a fake engine that says what a model would: whole and streamed answers say the
 * same, in OpenAI's shape; what is offered and what was called reach the template as it wants them. */
// links: api
// threads: yes
#include <jansson.h>

#include "common/base/json.h"
#include "coordinator/text/reply_format.h"

#include "tests/unit/api_fixture.h"

#define CHAT "/v1/chat/completions"
#define HI   "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define TOOLS                                                                                                        \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"W\",\"parameters\":" \
    "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"}}}}},"                                       \
    "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]"
#define CALL                                                                                       \
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris \\\"P\\\"\", \"days\": 2}}\n</tool_call>"

/* Qwen's way of writing, short. */
static const char hermes_template[] =
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": "
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static struct reply_format format;

static void use_template(struct api_fixture *f, const char *source)
{
    struct err why;
    chat_template_close(f->chat_template);
    f->chat_template = NULL;
    cr_assert_eq(chat_template_parse(source, strlen(source), &f->chat_template, &why), ERR_OK, "%s",
                 why.text);
    cr_assert_eq(reply_format_find(f->chat_template, f->tokenizer, NULL, NULL, &format, &why),
                 ERR_OK, "%s", why.text);
    f->cfg.model.chat_template = f->chat_template;
    f->cfg.model.reply_format = &format;
}

static void start(struct api_fixture *f, const char *source, const char *says)
{
    api_fixture_init(f, says);
    use_template(f, source);
    api_fixture_start(f);
}

static json_t *post(struct api_fixture *f, const char *json, int status)
{
    char *reply = client_post(f->port, CHAT, json);
    cr_assert_eq(client_status(reply), status, "%s -> %s", json, reply);
    json_error_t e;
    json_t *v = json_loads(client_body(reply), 0, &e);
    cr_assert(v != NULL, "%s", reply);
    mem_free(reply);
    return v;
}

static json_t *at(json_t *v, const char *path)
{
    char copy[200], *save = NULL;
    snprintf(copy, sizeof copy, "%s", path);
    for (char *key = strtok_r(copy, ".", &save); key != NULL; key = strtok_r(NULL, ".", &save))
        v = key[0] >= '0' && key[0] <= '9' ? json_array_get(v, (size_t)atoi(key))
                                           : json_object_get(v, key);
    return v;
}

static const char *text_at(json_t *v, const char *path)
{
    const char *s = json_string_value(at(v, path));
    return s == NULL ? "(none)" : s;
}

static void prompt_is(struct api_fixture *f, const char *want)
{
    struct buf text = {0};
    tokenizer_decode(f->tokenizer, f->fake.last_prompt, f->fake.n_last_prompt, false, &text, NULL);
    cr_expect_str_eq(text.data, want);
    buf_free(&text);
}

/* A streamed answer as a client puts it together: the same shape as a whole one's choice. Checks the chunks on the way. */
static json_t *streamed_choice(struct api_fixture *f, const char *json)
{
    char *reply = client_post(f->port, CHAT, json);
    cr_assert_eq(client_status(reply), 200, "%s", reply);
    struct buf content = {0}, reasoning = {0}, arguments[8] = {{0}};
    json_t *calls = json_array(), *choice = json_object();
    bool finished = false, role = false, done = false;
    for (char *line = strstr(reply, "data: "); line != NULL; line = strstr(line + 1, "\ndata: ")) {
        line += line[0] == '\n';
        if (strncmp(line, "data: [DONE]", 12) == 0) {
            done = true;
            break;
        }
        json_error_t e;
        json_t *v = json_loads(line + 6, JSON_DISABLE_EOF_CHECK, &e);
        cr_assert(v != NULL, "%s in %s", e.text, line);
        cr_assert(!finished, "nothing follows the finish");
        json_t *delta = at(v, "choices.0.delta"), *finish = at(v, "choices.0.finish_reason");
        if (json_is_string(finish)) {
            finished = true;
            cr_expect_eq(json_object_size(delta), 0, "the last delta is empty");
            json_object_set(choice, "finish_reason", finish);
        } else if (!role) {
            role = true;
            cr_expect_str_eq(text_at(delta, "role"), "assistant");
        } else {
            cr_expect_eq(json_object_size(delta), 1, "one kind of thing at a time: %s", line);
            buf_puts(&content,
                     json_is_string(at(delta, "content")) ? text_at(delta, "content") : "");
            buf_puts(&reasoning, json_is_string(at(delta, "reasoning_content"))
                                     ? text_at(delta, "reasoning_content")
                                     : "");
            json_t *call = at(delta, "tool_calls.0");
            if (call != NULL) {
                json_int_t index = json_integer_value(json_object_get(call, "index"));
                cr_assert(json_is_integer(json_object_get(call, "index")) && index < 8);
                if ((size_t)index ==
                    json_array_size(calls)) { /* the first of it: all but the arguments */
                    cr_expect_str_eq(text_at(call, "type"), "function");
                    cr_expect_eq(strlen(text_at(call, "id")), 9);
                    cr_expect_str_eq(text_at(call, "function.arguments"), "");
                    json_array_append(calls, call);
                } else {
                    cr_expect_eq((size_t)index + 1, json_array_size(calls));
                    cr_expect(at(call, "id") == NULL && at(call, "type") == NULL &&
                              at(call, "function.name") == NULL);
                    cr_expect_gt(strlen(text_at(call, "function.arguments")), 0);
                    buf_puts(&arguments[index], text_at(call, "function.arguments"));
                }
            }
        }
        json_decref(v);
    }
    cr_expect(done && finished, "%s", reply);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");
        json_object_set_new(function, "arguments",
                            json_string(arguments[i].len > 0 ? arguments[i].data : ""));
        json_object_del(json_array_get(calls, i), "index");
        buf_free(&arguments[i]);
    }
    json_t *message = json_object();
    json_object_set_new(message, "role", json_string("assistant"));
    json_object_set_new(message, "content",
                        content.len == 0 && json_array_size(calls) > 0
                            ? json_null()
                            : json_string(content.len > 0 ? content.data : ""));
    if (reasoning.len > 0)
        json_object_set_new(message, "reasoning_content", json_string(reasoning.data));
    if (json_array_size(calls) > 0) json_object_set(message, "tool_calls", calls);
    json_object_set_new(message, "refusal", json_null());
    json_object_set_new(choice, "message", message);
    json_decref(calls);
    buf_free(&content);
    buf_free(&reasoning);
    mem_free(reply);
    return choice;
}

/* Ids of calls differ from reply to reply. */
static void forget_ids(json_t *message)
{
    for (size_t i = 0; i < json_array_size(json_object_get(message, "tool_calls")); i++)
        json_object_del(json_array_get(json_object_get(message, "tool_calls"), i), "id");
}

static void same_streamed(struct api_fixture *f, json_t *whole, const char *json)
{
    json_t *choice = streamed_choice(f, json),
           *message = json_deep_copy(at(whole, "choices.0.message"));
    forget_ids(message);
    forget_ids(json_object_get(choice, "message"));
    char *a = json_dumps(json_object_get(choice, "message"), JSON_SORT_KEYS),
         *b = json_dumps(message, JSON_SORT_KEYS);
    cr_expect_str_eq(a, b);
    cr_expect_str_eq(text_at(choice, "finish_reason"), text_at(whole, "choices.0.finish_reason"));
    mem_free(a);
    mem_free(b);
    json_decref(message);
    json_decref(choice);
}

Test(tools, a_call_has_openais_shape_whole_and_streamed)
{
    struct api_fixture f;
    start(&f, hermes_template,
          "<think>\nThe weather.\n</think>\n\nLet me look.\n" CALL
          "\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>");
    json_t *v = post(&f, "{" HI "," TOOLS "}", 200);
    prompt_is(&f, "[get_weather][now]<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "The weather.");
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "Let me look.");
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "tool_calls");
    cr_expect_eq(json_array_size(at(v, "choices.0.message.tool_calls")), 2);
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.0.type"), "function");
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.0.function.name"), "get_weather");
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.0.function.arguments"),
                     "{\"city\": \"Paris \\\"P\\\"\", \"days\": 2}");
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.1.function.name"), "now");
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.1.function.arguments"), "{}");
    const char *id = text_at(v, "choices.0.message.tool_calls.0.id");
    cr_expect_eq(strlen(id), 9);
    cr_expect_neq(strcmp(id, text_at(v, "choices.0.message.tool_calls.1.id")), 0);
    same_streamed(&f, v, "{" HI "," TOOLS ",\"stream\":true}");
    /* With logprobs every token is still there. */
    json_t *l = post(&f, "{" HI "," TOOLS ",\"logprobs\":true}", 200);
    cr_expect_eq(json_array_size(at(l, "choices.0.logprobs.content")), f.script.len);
    json_decref(l);
    same_streamed(&f, v, "{" HI "," TOOLS ",\"stream\":true,\"logprobs\":true}");
    json_decref(v);
    /* One call, then the end. */
    v = post(&f, "{" HI "," TOOLS ",\"parallel_tool_calls\":false}", 200);
    cr_expect_eq(json_array_size(at(v, "choices.0.message.tool_calls")), 1);
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "tool_calls");
    cr_expect(api_fixture_becomes(&f.fake.n_cancelled, 1), "the engine was told");
    same_streamed(&f, v, "{" HI "," TOOLS ",\"stream\":true,\"parallel_tool_calls\":false}");
    json_decref(v);
    /* tool_choice none: the model does not hear of them, and what it writes is text. */
    v = post(&f, "{" HI "," TOOLS ",\"tool_choice\":\"none\"}", 200);
    prompt_is(&f, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    cr_expect_null(at(v, "choices.0.message.tool_calls"));
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "The weather.");
    cr_expect_eq(strncmp(text_at(v, "choices.0.message.content"), "Let me look.\n<tool_call>", 24),
                 0);
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "stop");
    json_decref(v);
    /* Several choices have calls of their own. */
    v = post(&f, "{" HI "," TOOLS ",\"n\":2,\"tool_choice\":\"auto\"}", 200);
    cr_expect_eq(json_array_size(at(v, "choices.1.message.tool_calls")), 2);
    cr_expect_neq(strcmp(text_at(v, "choices.0.message.tool_calls.0.id"),
                         text_at(v, "choices.1.message.tool_calls.0.id")),
                  0);
    json_decref(v);
    api_fixture_stop(&f);
}

Test(tools, content_is_null_beside_calls_alone)
{
    struct api_fixture f;
    start(&f, hermes_template, CALL);
    json_t *v = post(&f, "{" HI "," TOOLS "}", 200);
    cr_expect(json_is_null(at(v, "choices.0.message.content")));
    cr_expect_null(at(v, "choices.0.message.reasoning_content"));
    same_streamed(&f, v, "{" HI "," TOOLS ",\"stream\":true}");
    json_decref(v);
    api_fixture_stop(&f);
}

Test(tools, a_call_that_is_none_is_content)
{
    static const char *const broken[] = {
        "So:\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": Paris}}\n</tool_call>",
        "<tool_call>\nget_weather(Paris)\n</tool_call>",
        "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1"};
    for (size_t i = 0; i < 3; i++) {
        struct api_fixture f;
        start(&f, hermes_template, broken[i]);
        json_t *v = post(&f, "{" HI "," TOOLS "}", 200);
        cr_expect_str_eq(text_at(v, "choices.0.message.content"), broken[i]);
        cr_expect_null(at(v, "choices.0.message.tool_calls"));
        cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "stop");
        json_t *choice = streamed_choice(&f, "{" HI "," TOOLS ",\"stream\":true}");
        cr_expect_str_eq(text_at(choice, "message.content"), broken[i]);
        cr_expect_str_eq(text_at(choice, "finish_reason"), "stop");
        json_decref(choice);
        json_decref(v);
        api_fixture_stop(&f);
    }
}

Test(tools, an_answer_cut_by_length_says_so)
{
    struct api_fixture f;
    start(&f, hermes_template, "<think>a b c d e f g h i j");
    json_t *v = post(&f, "{" HI ",\"max_tokens\":12}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "length");
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "");
    cr_expect_eq(text_at(v, "choices.0.message.reasoning_content")[0], 'a');
    same_streamed(&f, v, "{" HI ",\"max_tokens\":12,\"stream\":true}");
    json_decref(v);
    /* A stop string ends it wherever it stands. */
    v = post(&f, "{" HI ",\"stop\":\" d\"}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "a b c");
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "stop");
    same_streamed(&f, v, "{" HI ",\"stop\":\" d\",\"stream\":true}");
    json_decref(v);
    api_fixture_stop(&f);
}

Test(tools, a_conversation_with_calls_reaches_the_template)
{
    struct api_fixture f;
    start(&f, hermes_template, "21 degrees.");
    json_t *v = post(
        &f,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":null,"
        "\"reasoning_content\":\"R\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":"
        "{\"name\":\"now\",\"arguments\":\"{\\\"b\\\":1,\\\"a\\\":[]}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"call00001\",\"content\":[{\"type\":\"text\",\"text\":\"12:00\"}]}]," TOOLS
        "}",
        200);
    prompt_is(
        &f,
        "[get_weather][now]<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nR\n</think>\n\n"
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"b\": 1, \"a\": []}}\n</tool_call><|im_end|>\n"
        "<|im_start|>tool\n12:00<|im_end|>\n<|im_start|>assistant\n");
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "21 degrees.");
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "stop");
    json_decref(v);
    api_fixture_stop(&f);
}

Test(tools, a_prompt_that_opens_the_reasoning_begins_in_it)
{
    struct api_fixture f;
    static const char opens[] =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n{# </think> #}";
    start(&f, opens, "Hm.\n</think>\n\nYes.");
    json_t *v = post(&f, "{" HI "}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "Hm.");
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "Yes.");
    same_streamed(&f, v, "{" HI ",\"stream\":true}");
    json_decref(v);
    api_fixture_stop(&f);
    /* A user's own words open nothing. */
    static const char last[] = "{# </think> #}{% for m in messages %}{{ m.content }}{% endfor %}";
    start(&f, last, "Hm.");
    v = post(&f, "{\"messages\":[{\"role\":\"user\",\"content\":\"say <think>\"}]}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "Hm.");
    json_decref(v);
    api_fixture_stop(&f);
}

static void expect_error(struct api_fixture *f, const char *json, const char *param)
{
    json_t *v = post(f, json, 400);
    cr_expect_str_eq(text_at(v, "error.param"), param, "%s: %s", json, text_at(v, "error.message"));
    json_decref(v);
}

Test(tools, what_cannot_be_done_is_refused_by_name)
{
    struct api_fixture f;
    start(&f, hermes_template, "x");
    expect_error(&f, "{" HI "," TOOLS ",\"tool_choice\":\"required\"}", "tool_choice");
    expect_error(&f,
                 "{" HI "," TOOLS
                 ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"now\"}}}",
                 "tool_choice");
    expect_error(&f, "{" HI "," TOOLS ",\"tool_choice\":\"some\"}", "tool_choice");
    expect_error(&f, "{" HI "," TOOLS ",\"tool_choice\":1}", "tool_choice");
    expect_error(&f, "{" HI "," TOOLS ",\"parallel_tool_calls\":1}", "parallel_tool_calls");
    expect_error(&f, "{" HI ",\"tools\":{}}", "tools");
    expect_error(&f, "{" HI ",\"tools\":[1]}", "tools[0]");
    expect_error(&f, "{" HI ",\"tools\":[{\"type\":\"web\"}]}", "tools[0]");
    expect_error(&f, "{" HI ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]}",
                 "tools[0].function.name");
    expect_error(&f, "{" HI ",\"tools\":[{\"type\":\"function\",\"function\":{}}]}",
                 "tools[0].function.name");
    expect_error(
        &f,
        "{" HI
        ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"parameters\":[]}}]}",
        "tools[0]");
    expect_error(
        &f,
        "{" HI
        ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"description\":1}}]}",
        "tools[0]");
    struct buf many = {0};
    buf_puts(&many, "{" HI ",\"tools\":[");
    for (unsigned i = 0; i <= LIMIT_TOOLS; i++)
        buf_printf(&many, "%s{\"type\":\"function\",\"function\":{\"name\":\"f%u\"}}",
                   i > 0 ? "," : "", i);
    buf_puts(&many, "]}");
    expect_error(&f, many.data, "tools");
    buf_free(&many);
#define SAID(calls)                                                                                                       \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":" calls \
    "}]}"
    expect_error(&f, SAID("1"), "messages[1].tool_calls");
    expect_error(&f, SAID("[{\"id\":1,\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]"),
                 "messages[1].tool_calls");
    expect_error(&f, SAID("[{\"function\":{\"name\":\"f\"}}]"), "messages[1].tool_calls");
    expect_error(&f, SAID("[{\"function\":{\"name\":\"\",\"arguments\":\"{}\"}}]"),
                 "messages[1].tool_calls");
    expect_error(&f, SAID("[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]"), "messages");
    expect_error(&f, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":1}]}",
                 "messages[0].tool_call_id");
    json_decref(post(
        &f, "{" HI ",\"tools\":[],\"tool_choice\":\"auto\",\"parallel_tool_calls\":true}", 200));
    json_decref(post(&f, SAID("[]"), 200));
    json_decref(post(&f, SAID("null"), 200));
    api_fixture_stop(&f);
    /* A model that knows no tools. */
    api_fixture_init(&f, "x");
    api_fixture_start(&f);
    expect_error(&f, "{" HI "," TOOLS "}", "tools");
    expect_error(&f, SAID("[{\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]"),
                 "messages[1].tool_calls");
    api_fixture_stop(&f);
}

/* ---- markers that are special tokens ---- */

/* The demonstration tokenizer with harmony's control tokens added. */
static void open_harmony_tokenizer(struct tokenizer **out)
{
    static const char *const texts[] = {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>",
                                        "<|end|>",   "<|return|>",  "<|call|>"};
    json_t *v = NULL;
    struct err why;
    cr_assert_eq(
        json_parse_file(PROJECT_ROOT "/deploy/demo/tokenizer.json", 64u << 20, 64, &v, &why),
        ERR_OK);
    struct tokenizer *plain;
    cr_assert_eq(tokenizer_open(PROJECT_ROOT "/deploy/demo", &plain, &why), ERR_OK);
    json_int_t id = tokenizer_vocab_size(plain);
    tokenizer_close(plain);
    for (size_t i = 0; i < 7; i++)
        json_array_append_new(json_object_get(v, "added_tokens"),
                              json_pack("{s:I,s:s,s:b,s:b,s:b,s:b,s:b}", "id", id + (json_int_t)i,
                                        "content", texts[i], "single_word", 0, "lstrip", 0,
                                        "rstrip", 0, "normalized", 0, "special", 1));
    char dir[] = "/tmp/moesaic-test-XXXXXX", path[64];
    cr_assert(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    cr_assert_eq(json_dump_file(v, path, 0), 0);
    cr_assert_eq(tokenizer_open(dir, out, &why), ERR_OK, "%s", why.text);
    unlink(path);
    rmdir(dir);
    json_decref(v);
}

Test(tools, channels_are_marked_by_tokens)
{
    struct api_fixture f;
    api_fixture_init(&f, "x");
    tokenizer_close(f.tokenizer);
    open_harmony_tokenizer(&f.tokenizer);
    f.cfg.model.tokenizer = f.tokenizer;
    f.cfg.model.vocab = tokenizer_vocab_size(f.tokenizer);
    use_template(
        &f,
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>"
        "{{ m.thinking }}<|end|>{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant");
    cr_expect_eq(format.special_tools, 0x7fu);
    f.script.len = 0;
    api_fixture_say(
        &f,
        "<|channel|>analysis<|message|>I need \xf0\x9f\xa6\x8a.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
        "<|constrain|>json<|message|>{\"a\": \"b\"}<|call|>");
    api_fixture_start(&f);
    json_t *v = post(&f, "{" HI "," TOOLS "}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "I need \xf0\x9f\xa6\x8a.");
    cr_expect(json_is_null(at(v, "choices.0.message.content")));
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.0.function.name"), "now");
    cr_expect_str_eq(text_at(v, "choices.0.message.tool_calls.0.function.arguments"),
                     "{\"a\": \"b\"}");
    cr_expect_str_eq(text_at(v, "choices.0.finish_reason"), "tool_calls");
    same_streamed(&f, v, "{" HI "," TOOLS ",\"stream\":true}");
    json_decref(v);
    /* What was said in the analysis goes back under harmony's name. */
    json_decref(post(
        &f,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"c\",\"reasoning_content\":\"r\"}]}",
        200));
    prompt_is(
        &f,
        "<|start|>user<|message|>u<|end|><|start|>assistant<|channel|>analysis<|message|>r<|end|><|message|>c<|end|><|start|>assistant");
    /* A stop string that was only begun when the channel ended is text of that channel. */
    v = post(&f, "{" HI ",\"stop\":[\".<\",\".assistant\"]}", 200);
    cr_expect_str_eq(text_at(v, "choices.0.message.reasoning_content"), "I need \xf0\x9f\xa6\x8a.");
    cr_expect_str_eq(text_at(v, "choices.0.message.content"), "{\"a\": \"b\"}",
                     "no tools were offered");
    json_decref(v);
    api_fixture_stop(&f);
}
