#include "coordinator/api/prompt.h"

#include <stdio.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_format.h"
#include "coordinator/text/tokenizer.h"

/* The end of the run of bytes from `from` on that are all tainted or all not. */
static size_t run_end(const char *taint, size_t from, size_t n)
{
    size_t i = from + 1;
    while (i < n && (taint[i] != 0) == (taint[from] != 0))
        i++;
    return i;
}

/* Does this text mean something else when control tokens are recognized? */
static enum err_code spells_control(const struct tokenizer *t, const char *text, size_t n,
                                    bool *spells, struct err *why)
{
    struct ids plain = {0}, parsed = {0};
    enum err_code rc =
        tokenizer_encode(t, text, n, TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, &plain, why);
    if (rc == ERR_OK)
        rc =
            tokenizer_encode(t, text, n, TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, &parsed, why);
    if (rc == ERR_OK)
        *spells =
            plain.len != parsed.len ||
            (plain.len > 0 && memcmp(plain.data, parsed.data, plain.len * sizeof *plain.data) != 0);
    ids_free(&plain);
    ids_free(&parsed);
    return rc;
}

static enum err_code append_piece(const struct tokenizer *t, const char *text, size_t n,
                                  enum tokenizer_special special, struct ids *out, struct err *why)
{
    if (n == 0) return ERR_OK;
    struct ids piece = {0};
    enum err_code rc = tokenizer_encode(t, text, n, TOKENIZER_ADD_NONE, special, &piece, why);
    if (rc == ERR_OK && !ids_append(out, piece.data, piece.len))
        rc = err_nomem(why, "the prompt's tokens");
    ids_free(&piece);
    return rc;
}

static size_t count_special(const struct tokenizer *t, const struct ids *ids, size_t from)
{
    size_t n = 0;
    for (size_t i = from; i < ids->len; i++)
        n += tokenizer_is_special(t, ids->data[i]);
    return n;
}

/* Encode every run by itself. *n_special: control tokens in the template's own runs. */
static enum err_code encode_runs(const struct tokenizer *t, const char *text, const char *taint,
                                 size_t n, struct ids *out, size_t *n_special, struct err *why)
{
    enum err_code rc = ERR_OK;
    *n_special = 0;
    for (size_t at = 0, end; at < n && rc == ERR_OK; at = end) {
        end = run_end(taint, at, n);
        size_t before = out->len;
        rc =
            append_piece(t, text + at, end - at,
                         taint[at] != 0 ? TOKENIZER_NO_SPECIAL : TOKENIZER_PARSE_SPECIAL, out, why);
        if (rc == ERR_OK && taint[at] == 0) *n_special += count_special(t, out, before);
    }
    return rc;
}

/* Text is cut only around user text that spells a control token, which is then encoded without them; everything
 * else is encoded in one piece, so that tokens merge across the borders of messages as they did in training. */
static enum err_code encode_merged(const struct tokenizer *t, const char *text, const char *taint,
                                   size_t n, struct ids *out, struct err *why)
{
    size_t piece = 0;
    for (size_t at = 0; at < n;) {
        size_t end = run_end(taint, at, n);
        bool spells = false;
        if (taint[at] != 0) {
            enum err_code rc = spells_control(t, text + at, end - at, &spells, why);
            if (rc != ERR_OK) return rc;
        }
        if (spells) {
            enum err_code rc =
                append_piece(t, text + piece, at - piece, TOKENIZER_PARSE_SPECIAL, out, why);
            if (rc == ERR_OK)
                rc = append_piece(t, text + at, end - at, TOKENIZER_NO_SPECIAL, out, why);
            if (rc != ERR_OK) return rc;
            piece = end;
        }
        at = end;
    }
    return append_piece(t, text + piece, n - piece, TOKENIZER_PARSE_SPECIAL, out, why);
}

enum err_code prompt_encode_tainted(const struct tokenizer *t, const char *text, const char *taint,
                                    size_t n, struct ids *out, struct err *why)
{
    size_t n_special = 0;
    struct ids runs = {0};
    enum err_code rc = encode_merged(t, text, taint, n, out, why);
    if (rc == ERR_OK) rc = encode_runs(t, text, taint, n, &runs, &n_special, why);
    /* More control tokens than the template wrote: one is half the template's and half the user's. */
    if (rc == ERR_OK && count_special(t, out, 0) > n_special) {
        out->len = 0;
        if (!ids_append(out, runs.data, runs.len)) rc = err_nomem(why, "the prompt's tokens");
    }
    ids_free(&runs);
    return rc;
}

static enum err_code render(const struct generation_model *model, const json_t *messages,
                            const json_t *tools, const json_t *variables, struct buf *text,
                            struct buf *taint, struct err *why)
{
    struct chat_template_input in = {.messages = messages,
                                     .tools = tools,
                                     .variables = variables,
                                     .add_generation_prompt = true};
    json_t *history = NULL, *offered = NULL;
    if (model->reply_format != NULL) {
        enum err_code rc = reply_format_history(model->reply_format, messages, &history, why);
        if (rc == ERR_OK) rc = reply_format_offered(model->reply_format, tools, &offered, why);
        if (rc != ERR_OK) {
            json_decref(history);
            return rc;
        }
        in.messages = history;
        in.tools = offered;
    }
    time_t now = (time_t)clock_unix_seconds();
    if (localtime_r(&now, &in.now) == NULL) in.now = (struct tm){.tm_mday = 1, .tm_year = 100};
    enum err_code rc = chat_template_render(model->chat_template, &in, text, taint, why);
    json_decref(history);
    json_decref(offered);
    return rc;
}

/* A tokenizer may have more tokens than the model has rows: fine-tuned ones often do, by a padding token. */
static int check_ids(const struct generation_model *model, const char *param, const struct ids *ids,
                     struct fault *why)
{
    for (size_t i = 0; i < ids->len; i++)
        if ((uint32_t)ids->data[i] >= model->vocab)
            return fault_set(why, 400, "invalid_value", param,
                             "token %zu of the text has the id %d; the model's ids are 0 to %u", i,
                             ids->data[i], model->vocab - 1);
    return 0;
}

/* The bytes at the prompt's end that are the template's own. */
static size_t own_end(const struct buf *text, const struct buf *taint)
{
    size_t n = 0;
    while (n < text->len && taint->data[text->len - 1 - n] == 0)
        n++;
    return n;
}

/* A template that shows no calls would leave out what was said. */
static int check_history(const struct generation_model *model, const json_t *messages,
                         struct fault *why)
{
    const struct reply_format *f = model->reply_format;
    if (f != NULL && (f->tools != NULL || f->renders_calls)) return 0;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        if (json_object_get(json_array_get(messages, i), "tool_calls") == NULL) continue;
        char param[64];
        snprintf(param, sizeof param, "messages[%zu].tool_calls", i);
        return fault_set(why, 400, "unsupported_parameter", param,
                         "%s: the chat template of the model '%.150s' knows no tool calls", param,
                         model->id);
    }
    return 0;
}

int prompt_from_messages(const struct generation_model *model, const json_t *messages,
                         const json_t *tools, const json_t *variables, struct ids *out,
                         bool *thinking, struct fault *why)
{
    if (model->chat_template == NULL)
        return fault_set(why, 400, "no_chat_template", "messages",
                         "the model '%.150s' has no chat template; use /v1/completions", model->id);
    int status = check_history(model, messages, why);
    if (status != 0) return status;
    struct buf text = {0}, taint = {0};
    struct err e;
    enum err_code rc = render(model, messages, tools, variables, &text, &taint, &e);
    /* What a template raises, it raises about the messages. */
    if (rc == ERR_INVALID)
        status = fault_set(why, 400, "invalid_value", "messages", "%.500s", e.text);
    else if (rc != ERR_OK)
        status = fault_from_err(why, &e);
    if (status == 0) {
        rc = prompt_encode_tainted(model->tokenizer, text.data, taint.data, text.len, out, &e);
        status = rc != ERR_OK ? fault_from_err(why, &e) : check_ids(model, "messages", out, why);
    }
    if (status == 0 && thinking != NULL) {
        size_t n = own_end(&text, &taint);
        *thinking = model->reply_format != NULL && n > 0 &&
                    reply_format_opens_reasoning(model->reply_format, text.data + text.len - n, n);
    }
    buf_free(&text);
    buf_free(&taint);
    return status;
}

int prompt_from_text(const struct generation_model *model, const char *text, size_t n,
                     bool add_special, struct ids *out, struct fault *why)
{
    struct err e;
    enum err_code rc = tokenizer_encode(model->tokenizer, text, n,
                                        add_special ? TOKENIZER_ADD_CONFIG : TOKENIZER_ADD_NONE,
                                        TOKENIZER_PARSE_SPECIAL, out, &e);
    return rc != ERR_OK ? fault_from_err(why, &e) : check_ids(model, "prompt", out, why);
}
