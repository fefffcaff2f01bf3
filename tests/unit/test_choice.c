/* Tokens of published tokenizers to a chat's message, one by one: what the family's template writes is what is read, also
 * where the markers are special tokens that never become text. */
// links: api
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"
#include "coordinator/api/choice.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

static const char *shared(void)
{
    const char *root = getenv("MOESAIC_SHARED"), *require = getenv("MOESAIC_REQUIRE_SHARED");
    static char path[4096];
    snprintf(path, sizeof path, "%s/tokenizers", root != NULL ? root : PROJECT_ROOT "/../shared");
    char file[4200];
    snprintf(file, sizeof file, "%s/templates.json", path);
    FILE *f = fopen(file, "r");
    if (f == NULL) {
        cr_assert(require == NULL || strcmp(require, "1") != 0, "%s is missing", file);
        cr_skip_test("%s is missing", file);
    }
    fclose(f);
    return path;
}

static struct tokenizer *open_tokenizer(const char *folder)
{
    char dir[] = "/tmp/moesaic-test-XXXXXX", command[9000];
    cr_assert(mkdtemp(dir) != NULL);
    snprintf(command, sizeof command, "xz -dc '%s/%s/tokenizer.json.xz' > '%s/tokenizer.json'",
             shared(), folder, dir);
    cr_assert_eq(system(command), 0);
    struct tokenizer *t = NULL;
    struct err why;
    enum err_code rc = tokenizer_open(dir, &t, &why);
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    return t;
}

static struct chat_template *open_template(const char *name)
{
    char path[8200];
    json_t *rows;
    struct err why;
    struct chat_template *t = NULL;
    snprintf(path, sizeof path, "%s/templates.json", shared());
    cr_assert_eq(json_parse_file(path, 64u << 20, 64, &rows, &why), ERR_OK, "%s", why.text);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *source = json_object_get(row, "template");
        if (strcmp(json_string_value(json_object_get(row, "name")), name) != 0) continue;
        const struct chat_template_token tokens[] = {
            {"bos_token", json_string_value(json_object_get(row, "bos_token"))},
            {"eos_token", json_string_value(json_object_get(row, "eos_token"))}};
        cr_assert_eq(chat_template_parse_with_tokens(json_string_value(source),
                                                     json_string_length(source), tokens, 2, &t,
                                                     &why),
                     ERR_OK, "%s", why.text);
    }
    json_decref(rows);
    cr_assert_not_null(t, "%s", name);
    return t;
}

static void render(const struct chat_template *t, const struct reply_format *f, const json_t *tools,
                   const char *messages, bool prompt, struct buf *out)
{
    json_t *list = NULL, *history = NULL, *offered = NULL;
    struct err why;
    cr_assert_eq(json_parse(messages, strlen(messages), 64, &list, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(reply_format_history(f, list, &history, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(reply_format_offered(f, tools, &offered, &why), ERR_OK, "%s", why.text);
    struct chat_template_input in = {.messages = history,
                                     .tools = offered,
                                     .add_generation_prompt = prompt,
                                     .now = {.tm_mday = 1, .tm_year = 126}};
    cr_assert_eq(chat_template_render(t, &in, out, NULL, &why), ERR_OK, "%s", why.text);
    json_decref(list);
    json_decref(history);
    json_decref(offered);
}

#define USER "{\"role\":\"user\",\"content\":\"Go\"}"
#define CALL                                                                                                  \
    "\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":" \
    "\"{\\\"s\\\": \\\"Z\xc3\xbcrich \xf0\x9f\xa6\x8a\\\", \\\"i\\\": [1, 2]}\"}}]"
static const struct {
    const char *tokenizer, *name, *message, *end; /* end: what the template writes behind a reply */
    uint32_t special_tools;
    const char *want;
} rows[] = {
    {"qwen3", "qwen3", "\"content\":\"So:\",\"reasoning_content\":\"why \xf0\x9f\xa6\x8a?\"," CALL,
     "<|im_end|>\n", 0,
     "{\"role\":\"assistant\",\"content\":\"So:\",\"reasoning_content\":\"why \xf0\x9f\xa6\x8a?\",\"tool_calls\":"},
    {"qwen3", "qwen3-coder", "\"content\":\"So:\"," CALL, "<|im_end|>\n", 0,
     "{\"role\":\"assistant\",\"content\":\"So:\",\"tool_calls\":"},
    {"deepseek_v3", "deepseek-v3.1", "\"content\":\"So:\"," CALL,
     "<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
     0, "{\"role\":\"assistant\",\"content\":\"So:\",\"tool_calls\":"},
    {"gpt_oss", "gpt-oss", "\"content\":\"\",\"reasoning_content\":\"why \xf0\x9f\xa6\x8a?\"," CALL,
     "<|call|>", 0x7f,
     "{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"why \xf0\x9f\xa6\x8a?\",\"tool_calls\":"},
    {"gpt_oss", "gpt-oss", "\"content\":\"It is 2.\",\"reasoning_content\":\"1 + 1\"", "<|return|>",
     0x7f,
     "{\"role\":\"assistant\",\"content\":\"It is 2.\",\"reasoning_content\":\"1 + 1\",\"refusal\":null}"},
    {"llama3", "llama-3.1", "\"content\":\"\"," CALL, "<|eot_id|>", 0,
     "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"},
    {"mixtral", "mistral-nemo", "\"content\":\"\"," CALL, "</s>", 0,
     "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"},
};

Test(choice, published_tokenizers_replies_are_read_token_by_token, .timeout = 120)
{
    json_t *tools =
        json_pack("[{s:s,s:{s:s,s:s,s:{s:{s:{s:s}}}}}]", "type", "function", "function", "name",
                  "f", "description", "d", "parameters", "properties", "s", "type", "string");
    cr_assert_not_null(tools);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tokenizer *tokenizer = open_tokenizer(rows[i].tokenizer);
        struct chat_template *t = open_template(rows[i].name);
        struct reply_format f;
        struct err why;
        cr_assert_eq(reply_format_find(t, tokenizer, NULL, NULL, &f, &why), ERR_OK, "%s", why.text);
        cr_expect_eq(f.special_tools, rows[i].special_tools, "%s: markers %x are special",
                     rows[i].name, f.special_tools);
        struct buf prompt = {0}, all = {0}, message = {0};
        render(t, &f, tools, "[" USER "]", true, &prompt);
        buf_printf(&message, "[" USER ",{\"role\":\"assistant\",%s}]", rows[i].message);
        render(t, &f, tools, message.data, false, &all);
        size_t n_end = strlen(rows[i].end);
        cr_assert(all.len > prompt.len + n_end && memcmp(all.data, prompt.data, prompt.len) == 0,
                  "%s: %s", rows[i].name, all.data);
        cr_assert_str_eq(all.data + all.len - n_end, rows[i].end);

        struct ids ids = {0};
        cr_assert_eq(tokenizer_encode(tokenizer, all.data + prompt.len,
                                      all.len - prompt.len - n_end, TOKENIZER_ADD_NONE,
                                      TOKENIZER_PARSE_SPECIAL, &ids, &why),
                     ERR_OK);
        const struct request r = {.kind = REQUEST_CHAT, .tools = tools};
        for (int streamed = 0; streamed < 2; streamed++) {
            struct choice c = {0};
            cr_assert_eq(choice_init(&c, 0, &r, tokenizer, &why), ERR_OK);
            choice_read(&c, &f, &r, reply_format_opens_reasoning(&f, prompt.data, prompt.len), 7);
            unsigned n_deltas = 0;
            for (size_t k = 0; k < ids.len; k++) {
                struct generation_event ev = {
                    .kind = GENERATION_TOKEN, .index = (uint32_t)k, .token = ids.data[k]};
                cr_expect(!choice_token(&c, &ev));
                n_deltas += message_has_delta(&c.message);
                if (streamed != 0) choice_drop(&c, 0);
            }
            choice_finish(&c, true);
            cr_expect(!c.failed);
            struct buf got = {0};
            message_put(&c.message, &got);
            if (streamed == 0)
                cr_expect(strncmp(got.data, rows[i].want, strlen(rows[i].want)) == 0, "%s: %s",
                          rows[i].name, got.data);
            else
                cr_expect_gt(n_deltas, 2, "%s: it streams", rows[i].name);
            if (streamed == 0 && strstr(rows[i].message, "tool_calls") != NULL) {
                cr_expect_eq(c.message.n_ended, 1);
                json_t *v = NULL, *arguments = NULL;
                cr_assert_eq(json_parse(got.data, got.len, 64, &v, &why), ERR_OK);
                json_t *function = json_object_get(
                    json_array_get(json_object_get(v, "tool_calls"), 0), "function");
                cr_expect_str_eq(json_string_value(json_object_get(function, "name")), "f");
                const char *text = json_string_value(json_object_get(function, "arguments"));
                cr_assert_eq(json_parse(text, strlen(text), 64, &arguments, &why), ERR_OK, "%s",
                             text);
                json_t *want =
                    json_pack("{s:s,s:[i,i]}", "s", "Z\xc3\xbcrich \xf0\x9f\xa6\x8a", "i", 1, 2);
                cr_expect(json_equal(arguments, want), "%s: %s", rows[i].name, text);
                json_decref(want);
                json_decref(arguments);
                json_decref(v);
            }
            buf_free(&got);
            choice_deinit(&c);
        }
        ids_free(&ids);
        buf_free(&prompt);
        buf_free(&all);
        buf_free(&message);
        chat_template_close(t);
        tokenizer_close(tokenizer);
    }
    json_decref(tools);
}
