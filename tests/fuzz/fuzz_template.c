/* A chat template, then after lines "----" a JSON object of its variables (messages, tools among them) and a
 * tokenizer_config.json: within the bounds of limits.h, the same text each time, and taint for each of its bytes. */
// links: text
// covers: coordinator/text/chat_template.c coordinator/text/jinja_arithmetic.c coordinator/text/jinja_eval.c
// covers: coordinator/text/jinja_expression.c coordinator/text/jinja_filters.c coordinator/text/jinja_format.c
// covers: coordinator/text/jinja_functions.c coordinator/text/jinja_lexer.c coordinator/text/jinja_methods.c
// covers: coordinator/text/jinja_parser.c coordinator/text/jinja_run.c coordinator/text/jinja_strings.c
// covers: coordinator/text/jinja_tests.c coordinator/text/jinja_value.c
// max_len: 2048
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/vocab_source.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

static enum err_code open_template(const uint8_t *source, size_t n, const uint8_t *config,
                                   size_t n_config, struct chat_template **out, struct err *why)
{
    if (n_config == 0) return chat_template_parse((const char *)source, n, out, why);
    if (config[0] == '#') { /* a GGUF file's, whose bos and eos are the bytes that follow */
        struct vocab_source s = VOCAB_SOURCE_NONE;
        struct text_view tokens[2] = {{(const char *)config + 1, n_config - 1}, {"</s>", 4}};
        s.name = "fuzz";
        s.tokens = tokens;
        s.n_tokens = 2;
        s.bos = 0;
        s.eos = 1;
        s.padding = 7;
        if (n > 0) s.chat_template = (struct text_view){(const char *)source, n};
        return chat_template_open_vocab(&s, out, why);
    }
    /* Without a source the template is the config's; "-" is no config either. */
    fuzz_put_file("tokenizer_config.json", config[0] == '-' ? NULL : config, n_config);
    fuzz_put_file("chat_template.jinja", n > 0 ? source : NULL, n);
    return chat_template_open(fuzz_dir(), out, why);
}

static enum err_code render(const struct chat_template *t, json_t *variables, struct buf *out,
                            struct buf *taint)
{
    struct err why;
    json_t *empty = json_array();
    const json_t *messages = json_object_get(variables, "messages");
    const json_t *year = json_object_get(variables, "year");
    struct chat_template_input in = {
        .messages = json_is_false(messages) ? NULL
                    : messages != NULL      ? messages
                                            : empty,
        .tools = json_object_get(variables, "tools"),
        .variables = variables,
        .add_generation_prompt = !json_is_false(json_object_get(variables, "generate")),
        .now = {.tm_year = year == NULL ? 126 : (int)(json_integer_value(year) - 1900),
                .tm_mon = 2,
                .tm_mday = 4,
                .tm_hour = 5,
                .tm_min = 6,
                .tm_sec = 7}};
    bool wants_taint = !json_is_false(json_object_get(variables, "taint"));
    enum err_code rc = empty == NULL ? ERR_EXHAUSTED : ERR_OK;
    buf_puts(out, "before");
    if (rc == ERR_OK && !out->failed)
        rc = chat_template_render(t, &in, out, wants_taint ? taint : NULL, &why);
    if (rc == ERR_OK && out->failed) rc = ERR_EXHAUSTED;
    if (rc != ERR_OK && rc != ERR_EXHAUSTED)
        FUZZ_CHECK(out->len == 6 && taint->len == 0, "%zu bytes after a failure", out->len);
    if (rc == ERR_OK)
        FUZZ_CHECK(taint->len == (wants_taint ? out->len - 6 : 0) &&
                       out->len - 6 <= LIMIT_TEMPLATE_OUTPUT_BYTES,
                   "%zu bytes and %zu of taint", out->len - 6, taint->len);
    json_decref(empty);
    return rc;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    size_t n_source, n_variables;
    const uint8_t *source = fuzz_part(&data, &n, &n_source);
    const uint8_t *text = fuzz_part(&data, &n, &n_variables);
    json_t *variables = NULL;
    struct chat_template *t = NULL;
    struct buf out[2] = {{0}, {0}}, taint[2] = {{0}, {0}};
    struct err why;
    /* What is no object gives no variables. */
    if (n_variables > 0 && json_parse((const char *)text, n_variables, LIMIT_JSON_DEPTH, &variables,
                                      &why) == ERR_EXHAUSTED)
        return FUZZ_NO_MEMORY;
    enum err_code rc = open_template(source, n_source, data, n, &t, &why);
    if (rc == ERR_OK) {
        rc = render(t, variables, &out[0], &taint[0]);
        if (fuzz_calm()) {
            enum err_code again = render(t, variables, &out[1], &taint[1]);
            if (again == ERR_EXHAUSTED)
                rc = again;
            else
                FUZZ_CHECK(again == rc && out[0].len == out[1].len &&
                               memcmp(out[0].data, out[1].data, out[0].len) == 0,
                           "%d, then %d", (int)rc, (int)again);
        }
    }
    int answer = rc == ERR_OK          ? 100 + (int)out[0].len
                 : rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY
                                       : (int)rc;
    for (int i = 0; i < 2; i++) {
        buf_free(&out[i]);
        buf_free(&taint[i]);
    }
    chat_template_close(t);
    json_decref(variables);
    return answer;
}
