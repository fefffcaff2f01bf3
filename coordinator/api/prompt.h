/* prompt.h - from messages or text to token ids, all of which the model has. Pure, any thread. */
#ifndef MOESAIC_API_PROMPT_H
#define MOESAIC_API_PROMPT_H

#include <jansson.h>

#include "coordinator/api/error_body.h"
#include "coordinator/api/generation.h"
#include "coordinator/text/ids.h"

/* A conversation, through the model's template. Text that came from the request never becomes a control token, even
 * where it spells one. tools: those offered, or NULL. variables: an object of further variables of the template, or NULL.
 * *thinking (may be NULL): the template left the model inside its reasoning. Answers 0 or a status. */
int prompt_from_messages(const struct generation_model *model, const json_t *messages,
                         const json_t *tools, const json_t *variables, struct ids *out,
                         bool *thinking, struct fault *why);

/* A raw prompt: control tokens spelled out in it count, as OpenAI's completions have it; bos as the tokenizer's files
 * say, when asked for. */
int prompt_from_text(const struct generation_model *model, const char *text, size_t n,
                     bool add_special, struct ids *out, struct fault *why);

/* For tests: encode `text`, of which the bytes with taint[i] != 0 came from the request. */
enum err_code prompt_encode_tainted(const struct tokenizer *t, const char *text, const char *taint,
                                    size_t n, struct ids *out, struct err *why);

#endif
