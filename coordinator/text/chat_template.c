#include "coordinator/text/chat_template.h"

#include <stdio.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/jinja_run.h"

struct chat_template {
    struct arena arena;
    const char *source; /* in the arena */
    size_t n_source;
    struct jinja_tree tree;
    struct jinja_value *globals; /* per name: functions and tokens; the rest UNDEFINED */
};

static const char *const builtin_none[] = {"documents"};

static bool set_tokens(struct chat_template *t, const struct chat_template_token *tokens, size_t n)
{
    t->globals = arena_zalloc_array(&t->arena, t->tree.n_names, sizeof *t->globals);
    if (t->globals == NULL) return false;
    for (size_t i = 0; i < t->tree.n_names; i++) {
        const char *name = t->tree.names[i];
        int function = jinja_function_find(name);
        if (function >= 0)
            t->globals[i] = (struct jinja_value){.kind = JV_FUNCTION, .function = function};
        if (strcmp(name, builtin_none[0]) == 0) t->globals[i] = jinja_none();
        for (size_t k = 0; k < n; k++) {
            if (strcmp(tokens[k].name, name) != 0) continue;
            struct jinja_str *s = arena_zalloc_array(&t->arena, 1, sizeof *s);
            if (s == NULL) return false;
            s->len = strlen(tokens[k].text);
            s->bytes = arena_strndup(&t->arena, tokens[k].text, s->len);
            if (s->bytes == NULL) return false;
            t->globals[i] = (struct jinja_value){.kind = JV_STRING, .str = s};
        }
    }
    return true;
}

enum err_code chat_template_parse_with_tokens(const char *source, size_t n,
                                              const struct chat_template_token *tokens,
                                              size_t n_tokens, struct chat_template **out,
                                              struct err *why)
{
    if (n > LIMIT_TEMPLATE_BYTES)
        return err_set(why, ERR_INVALID, "chat template: %zu bytes, more than %u", n,
                       LIMIT_TEMPLATE_BYTES);
    struct chat_template *t = mem_zalloc(sizeof *t);
    if (t == NULL) return err_nomem(why, "chat template");
    t->arena.max_bytes = LIMIT_TEMPLATE_MEMORY_BYTES;
    enum err_code rc = jinja_parse(source, n, &t->arena, &t->tree, why);
    t->source = arena_strndup(&t->arena, source, n);
    t->n_source = n;
    if (rc == ERR_OK && t->source == NULL) rc = err_nomem(why, "its text");
    if (rc == ERR_OK && !set_tokens(t, tokens, n_tokens)) rc = err_nomem(why, "tokens");
    if (rc != ERR_OK) {
        chat_template_close(t);
        return err_wrap(why, rc, "chat template");
    }
    *out = t;
    return ERR_OK;
}

enum err_code chat_template_parse(const char *source, size_t n, struct chat_template **out,
                                  struct err *why)
{
    return chat_template_parse_with_tokens(source, n, NULL, 0, out, why);
}

const char *chat_template_source(const struct chat_template *t, size_t *n)
{
    *n = t->n_source;
    return t->source;
}

void chat_template_close(struct chat_template *t)
{
    if (t == NULL) return;
    arena_free(&t->arena);
    mem_free(t);
}

/* "chat_template" of a config: a string, or a list with one called "default". *out NULL: there is none. */
static enum err_code default_template(const json_t *config, const json_t **out, struct err *why)
{
    const json_t *v = json_object_get(config, "chat_template");
    *out = NULL;
    if (v == NULL || json_is_null(v)) return ERR_OK;
    if (json_is_string(v)) *out = v;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *one = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        const json_t *text = json_object_get(one, "template");
        if (name != NULL && strcmp(name, "default") == 0 && json_is_string(text)) *out = text;
    }
    if (*out != NULL) return ERR_OK;
    return err_set(why, ERR_CORRUPT,
                   "'chat_template' is neither a string nor a list with a string called 'default'");
}

/* The *_token entries of a config; returns how many were found, at most `room`. */
static size_t config_tokens(json_t *config, struct chat_template_token *tokens, size_t room)
{
    size_t n = 0;
    const char *key;
    json_t *v;
    json_object_foreach(config, key, v)
    {
        size_t len = strlen(key);
        const char *text = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
        if (text != NULL && n < room && len > 6 && strcmp(key + len - 6, "_token") == 0)
            tokens[n++] = (struct chat_template_token){key, text};
    }
    return n;
}

enum err_code chat_template_open(const char *dir, struct chat_template **out, struct err *why)
{
    char path[4096];
    struct chat_template_token tokens[32];
    char *file = NULL;
    size_t n = 0, n_tokens = 0;
    json_t *config = NULL;
    int k = snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (k < 0 || (size_t)k >= sizeof path)
        return err_set(why, ERR_INVALID, "%s: path too long", dir);
    enum err_code rc =
        json_parse_file(path, LIMIT_TOKENIZER_JSON_BYTES, LIMIT_FILE_JSON_DEPTH, &config, why);
    if (rc != ERR_OK && rc != ERR_NOT_FOUND) return rc;
    const json_t *text = NULL;
    if (config != NULL) {
        n_tokens = config_tokens(config, tokens, sizeof tokens / sizeof tokens[0]);
        rc = json_is_object(config) ? default_template(config, &text, why)
                                    : err_set(why, ERR_CORRUPT, "not an object");
        if (rc != ERR_OK) {
            json_decref(config);
            return err_wrap(why, rc, "%s", path);
        }
    }
    k = snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    rc = k < 0 || (size_t)k >= sizeof path ? err_set(why, ERR_INVALID, "%s: path too long", dir)
                                           : file_read(path, LIMIT_TEMPLATE_BYTES, &file, &n, why);
    const char *source = file;
    if (rc == ERR_NOT_FOUND && text != NULL) {
        source = json_string_value(text);
        n = json_string_length(text);
        rc = ERR_OK;
    } else if (rc == ERR_NOT_FOUND) {
        err_set(why, rc,
                "%s: neither chat_template.jinja nor a \"chat_template\" in tokenizer_config.json",
                dir);
    }
    if (rc == ERR_OK) {
        rc = chat_template_parse_with_tokens(source, n, tokens, n_tokens, out, why);
        if (rc != ERR_OK) err_wrap(why, rc, "%s", dir);
    }
    mem_free(file);
    json_decref(config);
    return rc;
}

/* The variables of this render over the template's own. */
static bool set_globals(struct jinja_run *r, const struct chat_template *t,
                        const struct chat_template_input *in)
{
    struct jinja_value *g = jinja_alloc(r, t->tree.n_names, sizeof *g);
    if (g == NULL) return false;
    memcpy(g, t->globals, t->tree.n_names * sizeof *g);
    for (size_t i = 0; i < t->tree.n_names; i++) {
        const char *name = t->tree.names[i];
        const json_t *given = json_object_get(in->variables, name);
        bool ok = true;
        if (strcmp(name, "messages") == 0)
            ok = jinja_from_json(r, in->messages, 0, &g[i]);
        else if (strcmp(name, "add_generation_prompt") == 0)
            g[i] = jinja_bool(in->add_generation_prompt);
        else if (strcmp(name, "tools") == 0 && in->tools != NULL)
            ok = jinja_from_json(r, in->tools, 0, &g[i]);
        else if (given != NULL)
            ok = jinja_from_json(r, given, 0, &g[i]);
        else if (strcmp(name, "tools") == 0)
            g[i] = jinja_none();
        if (!ok) return false;
    }
    r->globals = g;
    return true;
}

enum err_code chat_template_render(const struct chat_template *t,
                                   const struct chat_template_input *in, struct buf *out,
                                   struct buf *taint, struct err *why)
{
    if (in->messages == NULL) return err_set(why, ERR_INVALID, "chat template: no messages");
    struct buf text = {0}, flags = {0};
    struct jinja_run r = {
        .arena = {.max_bytes = LIMIT_TEMPLATE_MEMORY_BYTES},
        .out = &text,
        .taint = &flags,
        .names = t->tree.names,
        .n_names = t->tree.n_names,
        .now = in->now,
        .why = why,
    };
    r.now.tm_isdst = 0;
    struct jinja_scope scope = {0};
    if (timegm(&r.now) == (time_t)-1 && r.now.tm_year == 0) r.now = (struct tm){.tm_mday = 1};
    if (r.now.tm_year < -1900 || r.now.tm_year > 8099) jinja_fail(&r, "the year is out of range");
    if (r.rc == ERR_OK && set_globals(&r, t, in)) jinja_exec(&r, t->tree.body, &scope);
    if (r.rc == ERR_OK) {
        size_t had = out->len, had_taint = taint != NULL ? taint->len : 0;
        buf_append(out, text.len > 0 ? text.data : "", text.len);
        if (taint != NULL) buf_append(taint, flags.len > 0 ? flags.data : "", flags.len);
        if (out->failed || (taint != NULL && taint->failed)) {
            out->len = had;
            if (taint != NULL) taint->len = had_taint;
            r.rc = err_nomem(why, "prompt");
        }
    }
    buf_free(&text);
    buf_free(&flags);
    arena_free(&r.arena);
    return r.rc;
}
