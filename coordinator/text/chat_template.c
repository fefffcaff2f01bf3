#include "coordinator/text/chat_template.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/jinja_run.h"
#include "coordinator/text/text_view.h"
#include "coordinator/text/vocab_source.h"

struct chat_template {
    struct arena arena;
    const char *source; /* in the arena */
    size_t n_source;
    struct jinja_tree tree;
    struct jinja_value *globals;      /* per name: functions and tokens; the rest UNDEFINED */
    struct chat_template *with_tools; /* another one, for requests with tools; usually NULL */
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
    chat_template_close(t->with_tools);
    arena_free(&t->arena);
    mem_free(t);
}

/* The two templates of a model; `with_tools` may be missing, then `plain` has both. */
struct sources {
    struct text_view plain, with_tools;
};

static struct text_view view_of(const json_t *text)
{
    return (struct text_view){json_string_value(text), json_string_length(text)};
}

/* "chat_template" of a config: a string, or a list of named ones, of which "default" must be there. */
static enum err_code config_templates(const json_t *config, struct sources *out, struct err *why)
{
    const json_t *v = json_object_get(config, "chat_template");
    if (v == NULL || json_is_null(v)) return ERR_OK;
    if (json_is_string(v)) out->plain = view_of(v);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *one = json_array_get(v, i), *text = json_object_get(one, "template");
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name == NULL || !json_is_string(text)) continue;
        if (strcmp(name, "default") == 0) out->plain = view_of(text);
        if (strcmp(name, "tool_use") == 0) out->with_tools = view_of(text);
    }
    if (out->plain.data != NULL) return ERR_OK;
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

static enum err_code parse_sources(const struct sources *from,
                                   const struct chat_template_token *tokens, size_t n_tokens,
                                   struct chat_template **out, struct err *why)
{
    struct chat_template *t = NULL;
    enum err_code rc =
        chat_template_parse_with_tokens(from->plain.data, from->plain.n, tokens, n_tokens, &t, why);
    if (rc == ERR_OK && from->with_tools.data != NULL) {
        rc = chat_template_parse_with_tokens(from->with_tools.data, from->with_tools.n, tokens,
                                             n_tokens, &t->with_tools, why);
        if (rc != ERR_OK) err_wrap(why, rc, "tool_use");
    }
    if (rc == ERR_OK)
        *out = t;
    else
        chat_template_close(t);
    return rc;
}

/* A file of the folder over what the config has; NOT_FOUND changes nothing. *text: mem_free. */
static enum err_code file_template(const char *dir, const char *name, char **text,
                                   struct text_view *out, struct err *why)
{
    char path[4096];
    size_t n = 0;
    int k = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (k < 0 || (size_t)k >= sizeof path)
        return err_set(why, ERR_INVALID, "%s: path too long", dir);
    enum err_code rc = file_read(path, LIMIT_TEMPLATE_BYTES, text, &n, why);
    if (rc == ERR_OK) *out = (struct text_view){*text, n};
    return rc == ERR_NOT_FOUND ? ERR_OK : rc;
}

static enum err_code read_config(const char *dir, json_t **config, struct sources *from,
                                 struct err *why)
{
    char path[4096];
    int k = snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (k < 0 || (size_t)k >= sizeof path)
        return err_set(why, ERR_INVALID, "%s: path too long", dir);
    enum err_code rc =
        json_parse_file(path, LIMIT_TOKENIZER_JSON_BYTES, LIMIT_FILE_JSON_DEPTH, config, why);
    if (rc == ERR_NOT_FOUND) return ERR_OK;
    if (rc != ERR_OK) return rc;
    rc = json_is_object(*config) ? config_templates(*config, from, why)
                                 : err_set(why, ERR_CORRUPT, "not an object");
    return rc == ERR_OK ? ERR_OK : err_wrap(why, rc, "%s", path);
}

enum err_code chat_template_open(const char *dir, struct chat_template **out, struct err *why)
{
    struct chat_template_token tokens[32];
    struct sources from = {0};
    char *plain = NULL, *with_tools = NULL;
    json_t *config = NULL;
    enum err_code rc = read_config(dir, &config, &from, why);
    if (rc == ERR_OK) rc = file_template(dir, "chat_template.jinja", &plain, &from.plain, why);
    if (rc == ERR_OK)
        rc = file_template(dir, "additional_chat_templates/tool_use.jinja", &with_tools,
                           &from.with_tools, why);
    if (rc == ERR_OK && from.plain.data == NULL)
        rc = err_set(why, ERR_NOT_FOUND,
                     "%s: neither chat_template.jinja nor a \"chat_template\" in "
                     "tokenizer_config.json",
                     dir);
    if (rc == ERR_OK) {
        size_t n_tokens = config_tokens(config, tokens, ARRAY_LEN(tokens));
        rc = parse_sources(&from, tokens, n_tokens, out, why);
        if (rc != ERR_OK) err_wrap(why, rc, "%s", dir);
    }
    mem_free(plain);
    mem_free(with_tools);
    json_decref(config);
    return rc;
}

enum err_code chat_template_open_vocab(const struct vocab_source *source,
                                       struct chat_template **out, struct err *why)
{
    const struct {
        const char *name;
        int64_t id;
    } named[] = {{"bos_token", source->bos},
                 {"eos_token", source->eos},
                 {"unk_token", source->unknown},
                 {"pad_token", source->padding}};
    struct chat_template_token tokens[ARRAY_LEN(named)];
    char *texts[ARRAY_LEN(named)] = {0};
    size_t n = 0;
    enum err_code rc = ERR_OK;
    if (source->chat_template.data == NULL)
        return err_set(why, ERR_NOT_FOUND, "%s: no tokenizer.chat_template", source->name);
    for (size_t i = 0; i < ARRAY_LEN(named) && rc == ERR_OK; i++) {
        if (named[i].id < 0 || (uint64_t)named[i].id >= source->n_tokens) continue;
        struct text_view text = source->tokens[named[i].id];
        texts[n] = mem_strndup(text.n > 0 ? text.data : "", text.n);
        if (texts[n] == NULL) rc = err_nomem(why, "tokens");
        tokens[n] = (struct chat_template_token){named[i].name, texts[n]};
        n++;
    }
    struct sources from = {.plain = source->chat_template};
    if (rc == ERR_OK) rc = parse_sources(&from, tokens, n, out, why);
    for (size_t i = 0; i < n; i++)
        mem_free(texts[i]);
    return rc == ERR_OK ? ERR_OK : err_wrap(why, rc, "%s", source->name);
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
    if (in->tools != NULL && t->with_tools != NULL) t = t->with_tools;
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
