/* chat_template.h - messages to prompt text, by the model's own template (a bounded subset of Jinja2).
 * A parsed template never changes: any thread may render it. */
#ifndef MOESAIC_TEXT_CHAT_TEMPLATE_H
#define MOESAIC_TEXT_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct chat_template;
struct vocab_source;

struct chat_template_token {
    const char *name,
        *text; /* "bos_token", "<s>": a variable of the template whose text is trusted */
};

/* INVALID with line and what (an unknown statement, filter or test by its name, or a bound of limits.h);
 * EXHAUSTED. Keeps nothing of its arguments. `tokens` may be NULL. */
enum err_code chat_template_parse(const char *source, size_t n, struct chat_template **out,
                                  struct err *why);
enum err_code chat_template_parse_with_tokens(const char *source, size_t n,
                                              const struct chat_template_token *tokens,
                                              size_t n_tokens, struct chat_template **out,
                                              struct err *why);

/* From a model's folder: chat_template.jinja if present, else "chat_template" of tokenizer_config.json (a
 * string, or a list of {name, template}: the one called "default"). Requests with tools get the one called "tool_use",
 * of that list or of additional_chat_templates/, if there is one. The config's *_token entries (a string, or an
 * object with "content") become variables. NOT_FOUND if the folder has no template; CORRUPT, INVALID, IO,
 * TOO_LARGE, EXHAUSTED. */
enum err_code chat_template_open(const char *dir, struct chat_template **out, struct err *why);
/* From a container's metadata: its template, and its bos, eos, unk and pad tokens as variables. NOT_FOUND if it has none. */
enum err_code chat_template_open_vocab(const struct vocab_source *source,
                                       struct chat_template **out, struct err *why);
void chat_template_close(struct chat_template *t); /* NULL is fine */

/* The text it was made from; borrowed, not 0-terminated. */
const char *chat_template_source(const struct chat_template *t, size_t *n);

struct chat_template_input {
    const json_t *messages;  /* array */
    const json_t *tools;     /* array; NULL: none */
    const json_t *variables; /* object of further variables; may be NULL */
    bool add_generation_prompt;
    struct tm now; /* what strftime_now() prints; only year to second are read */
};

/* Appends the prompt to `out` and, unless it is NULL, one byte per byte of prompt to `taint`: 1 where the
 * byte came from a string of messages, tools or variables, so that no special token may be recognised
 * there; 0 where it is the template's own. Strings keep their taint through every operation; the JSON or
 * repr text of a value is tainted as a whole if any string inside is.
 *
 * Bounded by LIMIT_TEMPLATE_*: steps, output, recursion and memory; passing one is INVALID and named.
 * raise_exception() is INVALID with exactly its message in `why`; whatever else fails is INVALID with line
 * and reason. EXHAUSTED when memory is short. On failure both buffers are as before. */
enum err_code chat_template_render(const struct chat_template *t,
                                   const struct chat_template_input *in, struct buf *out,
                                   struct buf *taint, struct err *why);

#endif
