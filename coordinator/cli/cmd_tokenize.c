/* moesaic tokenize DIR - JSON lines from standard input to ids, or back; one answer a line, flushed, so
 * that another program can hold the conversation through pipes. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "common/base/buf.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/cli/commands.h"
#include "coordinator/modeltext/model_text.h"
#include "coordinator/text/tokenizer.h"

static const char help[] =
    "Usage: moesaic tokenize DIR\n"
    "Turn text into token ids and back. DIR holds tokenizer.json.\n"
    "\n"
    "Each line of standard input is one JSON object; each gets one line of output:\n"
    "  {\"text\": \"Hello\"}           -> {\"ids\": [...]}\n"
    "  {\"bytes_hex\": \"48ff\"}       -> {\"ids\": [...]}   input that need not be UTF-8\n"
    "  {\"ids\": [1, 2]}             -> {\"text\": \"...\"}\n"
    "  \"add_special_tokens\": BOOL    with text: also what the file adds around it (default true)\n"
    "  \"skip_special_tokens\": BOOL   with ids: leave out special tokens (default false)\n"
    "A line that cannot be answered gets {\"error\": \"...\"}.\n"
    "\n"
    "  -h, --help                  this text\n";

static enum err_code read_bool(const json_t *line, const char *key, bool fallback, bool *out,
                               struct err *why)
{
    const json_t *v = json_object_get(line, key);
    if (v != NULL && !json_is_boolean(v))
        return err_set(why, ERR_INVALID, "'%s' is not a boolean", key);
    *out = v == NULL ? fallback : json_is_true(v);
    return ERR_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static enum err_code read_hex(const char *hex, size_t n, struct buf *out, struct err *why)
{
    if (n % 2 != 0)
        return err_set(why, ERR_INVALID, "'bytes_hex' has an odd number of digits (%zu)", n);
    for (size_t i = 0; i < n; i += 2) {
        int high = hex_digit(hex[i]), low = hex_digit(hex[i + 1]);
        if (high < 0 || low < 0)
            return err_set(why, ERR_INVALID, "'bytes_hex': no hexadecimal digit at %zu", i);
        buf_putc(out, (char)(high << 4 | low));
    }
    return out->failed ? err_nomem(why, "text") : ERR_OK;
}

static enum err_code encode_line(const struct tokenizer *t, const json_t *line, struct buf *out,
                                 struct err *why)
{
    const json_t *text = json_object_get(line, "text"), *hex = json_object_get(line, "bytes_hex");
    const json_t *given = text != NULL ? text : hex;
    struct buf bytes = {0};
    struct ids ids = {0};
    bool add = true;
    if (text != NULL && hex != NULL)
        return err_set(why, ERR_INVALID, "both 'text' and 'bytes_hex'");
    if (!json_is_string(given))
        return err_set(why, ERR_INVALID, "'%s' is not a string",
                       text != NULL ? "text" : "bytes_hex");
    enum err_code rc = read_bool(line, "add_special_tokens", true, &add, why);
    const char *s = json_string_value(given);
    size_t n = json_string_length(given);
    if (rc == ERR_OK && hex != NULL) {
        rc = read_hex(s, n, &bytes, why);
        s = bytes.data == NULL ? "" : bytes.data;
        n = bytes.len;
    }
    if (rc == ERR_OK)
        rc = tokenizer_encode(t, s, n, add ? TOKENIZER_ADD_FILE : TOKENIZER_ADD_NONE,
                              TOKENIZER_PARSE_SPECIAL, &ids, why);
    if (rc == ERR_OK) {
        buf_puts(out, "{\"ids\": [");
        for (size_t i = 0; i < ids.len; i++)
            buf_printf(out, "%s%d", i ? ", " : "", ids.data[i]);
        buf_puts(out, "]}\n");
    }
    ids_free(&ids);
    buf_free(&bytes);
    return rc;
}

static enum err_code decode_line(const struct tokenizer *t, const json_t *line, struct buf *out,
                                 struct err *why)
{
    const json_t *list = json_object_get(line, "ids");
    struct ids ids = {0};
    struct buf text = {0};
    bool skip = false;
    if (!json_is_array(list)) return err_set(why, ERR_INVALID, "'ids' is not an array");
    enum err_code rc = read_bool(line, "skip_special_tokens", false, &skip, why);
    for (size_t i = 0; i < json_array_size(list) && rc == ERR_OK; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v))
            rc = err_set(why, ERR_INVALID, "ids[%zu] is not an integer", i);
        else if (json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            rc = err_set(why, ERR_INVALID, "ids[%zu] is %lld, outside 0..%d", i,
                         (long long)json_integer_value(v), INT32_MAX);
        else if (!ids_push(&ids, (int32_t)json_integer_value(v)))
            rc = err_nomem(why, "ids");
    }
    if (rc == ERR_OK) rc = tokenizer_decode(t, ids.data, ids.len, skip, &text, why);
    if (rc == ERR_OK) {
        buf_puts(out, "{\"text\": ");
        buf_put_json_string(out, text.len > 0 ? text.data : "", text.len);
        buf_puts(out, "}\n");
    }
    ids_free(&ids);
    buf_free(&text);
    return rc;
}

static enum err_code answer(const struct tokenizer *t, const char *text, size_t n, struct buf *out,
                            struct err *why)
{
    json_t *line;
    enum err_code rc = json_parse(text, n, LIMIT_JSON_DEPTH, &line, why);
    if (rc != ERR_OK) return rc;
    bool text_in =
        json_object_get(line, "text") != NULL || json_object_get(line, "bytes_hex") != NULL;
    bool ids_in = json_object_get(line, "ids") != NULL;
    if (text_in && ids_in)
        rc = err_set(why, ERR_INVALID, "both a text and 'ids'");
    else if (text_in)
        rc = encode_line(t, line, out, why);
    else if (ids_in)
        rc = decode_line(t, line, out, why);
    else
        rc =
            err_set(why, ERR_INVALID, "a line must be an object with 'text', 'bytes_hex' or 'ids'");
    json_decref(line);
    if (rc == ERR_OK && out->failed) rc = err_nomem(why, "answer");
    return rc;
}

/* 0, or 1 if the output is gone. */
static int answer_lines(const struct tokenizer *t)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool ok = true;
    while (ok && (n = getline(&line, &cap, stdin)) >= 0) {
        struct buf out = {0};
        struct err why;
        if (answer(t, line, (size_t)n, &out, &why) != ERR_OK) {
            buf_clear(&out);
            buf_puts(&out, "{\"error\": ");
            buf_put_json_string(&out, why.text, strlen(why.text));
            buf_puts(&out, "}\n");
        }
        const char *text = out.failed ? "{\"error\": \"no memory\"}\n" : out.data;
        size_t text_n = out.failed ? strlen(text) : out.len;
        ok = fwrite(text, 1, text_n, stdout) == text_n && fflush(stdout) == 0;
        buf_free(&out);
    }
    free(line); /* getline's own */
    return ok ? 0 : 1;
}

int cmd_tokenize(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c != 'h') {
            fputs("Try 'moesaic tokenize --help'.\n", stderr);
            return 2;
        }
        fputs(help, stdout);
        return 0;
    }
    if (argc - optind != 1) {
        fputs(
            "moesaic tokenize: one folder with a tokenizer.json, or one GGUF file, is needed\nTry 'moesaic tokenize --help'.\n",
            stderr);
        return 2;
    }
    struct tokenizer *t;
    struct err why;
    if (model_text_tokenizer(argv[optind], &t, &why) != ERR_OK) {
        fprintf(stderr, "moesaic tokenize: %s\n", why.text);
        return 1;
    }
    int status = answer_lines(t);
    tokenizer_close(t);
    return status;
}
