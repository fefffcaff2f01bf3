/* choice.h - one sequence of an answer: from tokens to text that may leave, with its logprobs.
 * Text runs through text_stream (whole characters), stop_matcher (no part of a stop string) and, in a chat, reply_parser
 * (content, reasoning, tool calls); a token's logprob leaves with the text it began. No loop, no engine; one owner. */
#ifndef MOESAIC_API_CHOICE_H
#define MOESAIC_API_CHOICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/message.h"
#include "coordinator/api/request.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/stop_matcher.h"
#include "coordinator/text/text_stream.h"

struct choice_logprob {
    int32_t id;
    bool of_prompt;
    bool has; /* the first token of a prompt has none */
    float logprob;
    uint32_t n_top;
    struct generation_logprob *top; /* owned */
    size_t start; /* where the token's text begins, in bytes of the generated text */
};

enum choice_end { CHOICE_OPEN, CHOICE_STOP, CHOICE_LENGTH };

struct choice {
    uint32_t index;
    enum choice_end end;
    struct text_stream stream;
    struct stop_matcher stops;
    bool with_logprobs;
    const int32_t *eos; /* borrowed from the model */
    uint32_t n_eos;
    size_t streamed; /* bytes out of text_stream so far */
    size_t passed;   /* bytes out of stop_matcher so far */
    struct buf text; /* passed, not yet taken */
    struct buf scratch;
    struct ids ids;                  /* not yet taken */
    struct choice_logprob *logprobs; /* not yet taken, oldest first */
    size_t n_logprobs, cap_logprobs;
    size_t text_offset; /* characters of the logprobs taken so far (completions) */
    uint32_t n_tokens;
    /* A chat's reply is read into content, reasoning and calls; then `text` is always taken already. */
    bool read;
    bool one_call; /* the reply ends with its first call */
    struct reply_parser parser;
    struct message message; /* not yet taken */
    bool failed;            /* memory ran out */
};

/* INVALID, EXHAUSTED. Zeroed storage; choice_deinit also after a failure. */
enum err_code choice_init(struct choice *c, uint32_t index, const struct request *r,
                          const struct tokenizer *t, struct err *why);
void choice_deinit(struct choice *c);
/* Read the reply by this format; before the first token. The choice then must not move. `serial` is the request's. */
void choice_read(struct choice *c, const struct reply_format *format, const struct request *r,
                 bool thinking, uint64_t serial);

/* A logprob of the prompt (echo). */
void choice_prompt_token(struct choice *c, const struct generation_event *ev);
/* A token of the output. True when a stop string ended the text: the engine may stop. */
bool choice_token(struct choice *c, const struct generation_event *ev);
/* No more tokens: what was held back passes. */
void choice_finish(struct choice *c, bool stopped_by_eos);

/* How many of the oldest logprobs may leave now; after taking text and logprobs, drop them. */
size_t choice_ready_logprobs(const struct choice *c);
void choice_drop(struct choice *c, size_t n_logprobs); /* and all text, parts and ids */

#endif
