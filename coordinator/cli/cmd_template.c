/* moesaic template DIR: render conversations with a model's chat template, JSON lines in and out. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/cli/commands.h"
#include "coordinator/modeltext/model_text.h"
#include "coordinator/text/chat_template.h"

static const char help[] =
    "usage: moesaic template DIR\n"
    "\n"
    "Renders conversations with the chat template of the model in DIR, which needs no more than\n"
    "chat_template.jinja or tokenizer_config.json. Reads one JSON object a line from standard input,\n"
    "  {\"messages\": [..], \"tools\": [..], \"add_generation_prompt\": true, \"variables\": {..},\n"
    "   \"now\": \"2026-03-14T15:09:26\"}\n"
    "of which only messages is needed, and writes {\"text\": ..} or {\"error\": ..} for each.\n";

static enum err_code read_now(const json_t *now, struct tm *out, struct err *why)
{
    if (now == NULL) {
        time_t t = time(NULL);
        localtime_r(&t, out);
        return ERR_OK;
    }
    const char *s = json_string_value(now);
    struct tm tm = {0};
    const char *rest = s == NULL ? NULL : strptime(s, "%Y-%m-%dT%H:%M:%S", &tm);
    if (rest == NULL || *rest != '\0')
        return err_set(why, ERR_INVALID, "\"now\" must look like 2026-03-14T15:09:26");
    *out = tm;
    return ERR_OK;
}

static enum err_code render_line(const struct chat_template *t, const char *line, size_t n,
                                 struct buf *out, struct err *why)
{
    json_t *request = NULL;
    enum err_code rc = json_parse(line, n, LIMIT_JSON_DEPTH, &request, why);
    if (rc != ERR_OK) return rc;
    struct chat_template_input in = {
        .messages = json_object_get(request, "messages"),
        .tools = json_object_get(request, "tools"),
        .variables = json_object_get(request, "variables"),
        .add_generation_prompt = json_is_true(json_object_get(request, "add_generation_prompt")),
    };
    if (json_is_null(in.tools)) in.tools = NULL;
    if (!json_is_array(in.messages))
        rc = err_set(why, ERR_INVALID, "\"messages\" must be a list");
    else if (in.variables != NULL && !json_is_null(in.variables) && !json_is_object(in.variables))
        rc = err_set(why, ERR_INVALID, "\"variables\" must be an object");
    else
        rc = read_now(json_object_get(request, "now"), &in.now, why);
    if (rc == ERR_OK) rc = chat_template_render(t, &in, out, NULL, why);
    json_decref(request);
    return rc;
}

int cmd_template(int argc, char **argv)
{
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return 0;
    }
    if (argc != 2 || argv[1][0] == '-') {
        fputs(help, stderr);
        return 2;
    }
    struct chat_template *t;
    struct err why;
    if (model_text_template(argv[1], &t, &why) != ERR_OK) {
        fprintf(stderr, "moesaic template: %s\n", why.text);
        return 1;
    }
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        struct buf text = {0}, answer = {0};
        enum err_code rc = render_line(t, line, (size_t)n, &text, &why);
        buf_puts(&answer, rc == ERR_OK ? "{\"text\": " : "{\"error\": ");
        if (rc == ERR_OK)
            buf_put_json_string(&answer, text.len > 0 ? text.data : "", text.len);
        else
            buf_put_json_string(&answer, why.text, strlen(why.text));
        buf_puts(&answer, "}\n");
        if (answer.failed)
            fputs("{\"error\": \"no memory for the answer\"}\n", stdout);
        else
            fwrite(answer.data, 1, answer.len, stdout);
        fflush(stdout);
        buf_free(&text);
        buf_free(&answer);
    }
    free(line);
    chat_template_close(t);
    return ferror(stdin) || ferror(stdout) ? 1 : 0;
}
