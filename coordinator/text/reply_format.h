/* reply_format.h - how a model writes its replies: where its reasoning is, how it calls tools, and in which shape its
 * chat template wants such replies back. Found out once, at start, from the template and the tokenizer; then immutable,
 * any thread. reply_parser.h reads replies by it. */
#ifndef MOESAIC_TEXT_REPLY_FORMAT_H
#define MOESAIC_TEXT_REPLY_FORMAT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct chat_template;
struct tokenizer;
struct reply_grammar;

struct reply_format {
    const struct reply_grammar *tools;     /* NULL: the model calls none */
    const struct reply_grammar *reasoning; /* NULL: all is content */
    /* Bit m: marker m of the grammar is a special token of the tokenizer, so only the token is the marker, and the same
     * text in plain tokens is text. */
    uint32_t special_tools, special_reasoning;
    /* The template of an assistant's message that calls tools: */
    bool null_content;         /* wants content null, not "", where there is none */
    bool string_arguments;     /* wants arguments as JSON text, not as an object */
    bool renders_calls;        /* shows them at all */
    const char *reasoning_key; /* of a message, where the template looks for its reasoning */
};

/* `tools` and `reasoning` name a row of the tables, or "none"; NULL or "auto": found by what the template's text holds.
 * INVALID: no such name, or two that do not go together; says which there are. `t` may be NULL: the model has no template. */
enum err_code reply_format_find(const struct chat_template *t, const struct tokenizer *tokenizer,
                                const char *tools, const char *reasoning, struct reply_format *out,
                                struct err *why);

/* The same without a model: from a template's source; no marker is special. For tests, and for reply_format_find. */
enum err_code reply_format_detect(const char *source, size_t n, const char *tools,
                                  const char *reasoning, struct reply_format *out, struct err *why);

const char *reply_format_tools_name(const struct reply_format *f); /* "none" if there are none */
const char *reply_format_reasoning_name(const struct reply_format *f); /* likewise */

/* Does a prompt that ends with these bytes leave the model inside its reasoning (the template wrote "<think>")? */
bool reply_format_opens_reasoning(const struct reply_format *f, const char *prompt_end, size_t n);

/* Messages as OpenAI's clients send them (contents are strings, arguments JSON text) to messages as the template wants
 * them; gives a new array. INVALID: arguments that are no JSON object, naming the message; EXHAUSTED. */
enum err_code reply_format_history(const struct reply_format *f, const json_t *messages,
                                   json_t **out, struct err *why);

/* The tools of a request as the template wants them (harmony's fails on one without a description); NULL for NULL. Gives
 * a reference. EXHAUSTED. */
enum err_code reply_format_offered(const struct reply_format *f, const json_t *tools, json_t **out,
                                   struct err *why);

#endif
