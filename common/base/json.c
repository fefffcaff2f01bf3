#include "common/base/json.h"

#include <stdbool.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/mem.h"

/* jansson recurses per level, so depth is bounded before it sees the text. */
static bool depth_within(const char *s, size_t n, unsigned max_depth)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > max_depth) return false;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

/* Integers beyond 64 bits are legal JSON, and Hugging Face writes them (model_max_length); jansson only
 * reads them as reals. Copy the text with "e0" after each integer that might be too long. */
static void widen_integers(const char *s, size_t n, struct buf *out)
{
    bool in_string = false;
    for (size_t i = 0; i < n;) {
        size_t start = i;
        if (!in_string && s[i] >= '0' && s[i] <= '9') {
            while (i < n && s[i] >= '0' && s[i] <= '9')
                i++;
            bool real = i < n && (s[i] == '.' || s[i] == 'e' || s[i] == 'E');
            bool part = start > 0 && strchr(".eE+", s[start - 1]) != NULL;
            if (start > 1 && s[start - 1] == '-' && (s[start - 2] == 'e' || s[start - 2] == 'E'))
                part = true;
            buf_append(out, s + start, i - start);
            if (i - start >= 19 && !real && !part) buf_puts(out, "e0");
            continue;
        }
        if (s[i] == '"') in_string = !in_string;
        i += in_string && s[i] == '\\' && i + 1 < n ? 2 : 1;
        buf_append(out, s + start, i - start);
    }
}

enum err_code json_parse(const char *text, size_t n, unsigned max_depth, json_t **out,
                         struct err *why)
{
    if (!depth_within(text, n, max_depth))
        return err_set(why, ERR_INVALID, "JSON is nested deeper than %u levels", max_depth);
    json_error_t e;
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_t *v = json_loadb(text, n, flags, &e);
    if (v == NULL && json_error_code(&e) == json_error_numeric_overflow) {
        struct buf wide = {0};
        widen_integers(text, n, &wide);
        if (!wide.failed) v = json_loadb(wide.data, wide.len, flags, &e);
        bool failed = wide.failed;
        buf_free(&wide);
        if (failed) return err_nomem(why, "JSON");
    }
    if (v == NULL) {
        if (json_error_code(&e) == json_error_out_of_memory) return err_nomem(why, "JSON");
        return err_set(why, ERR_INVALID, "not valid JSON: line %d column %d: %s", e.line, e.column,
                       e.text);
    }
    *out = v;
    return ERR_OK;
}

enum err_code json_parse_file(const char *path, size_t max_bytes, unsigned max_depth, json_t **out,
                              struct err *why)
{
    char *text;
    size_t n;
    enum err_code rc = file_read(path, max_bytes, &text, &n, why);
    if (rc != ERR_OK) return rc;
    rc = json_parse(text, n, max_depth, out, why);
    mem_free(text);
    if (rc == ERR_INVALID) rc = ERR_CORRUPT;
    return rc == ERR_OK ? rc : err_wrap(why, rc, "%s", path);
}

static int append(const char *bytes, size_t n, void *b)
{
    buf_append(b, bytes, n);
    return 0;
}

char *json_to_text(const json_t *value)
{
    struct buf b = {0};
    if (json_dump_callback(value, append, &b, JSON_COMPACT | JSON_ENCODE_ANY) != 0) b.failed = true;
    return buf_take(&b, NULL);
}
