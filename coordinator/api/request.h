/* request.h - a request's JSON body, checked and bounded. Pure, any thread.
 * What would change the answer and is not built is refused by name, unless its value is neutral; fields not known
 * are ignored, as OpenAI's servers do. Nothing is clamped silently. */
#ifndef MOESAIC_API_REQUEST_H
#define MOESAIC_API_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "coordinator/api/error_body.h"
#include "coordinator/api/generation.h"
#include "coordinator/text/ids.h"

enum request_kind { REQUEST_CHAT, REQUEST_COMPLETION };

/* Text or token ids. */
struct request_prompt {
    const char *text; /* NULL: ids; borrowed from the body */
    size_t n_text;
    int32_t *ids; /* owned */
    uint32_t n_ids;
};

struct request_string {
    const char *s;
    size_t n;
};

struct request {
    enum request_kind kind;
    json_t *body;        /* owns the strings below */
    json_t *messages;    /* chat: every content is a string */
    const json_t *tools; /* chat: those the model may call; NULL: none */
    bool one_call;       /* parallel_tool_calls: false */
    const json_t
        *template_kwargs; /* chat: an object of further variables of the template, or NULL */
    struct request_prompt *prompts; /* completions */
    uint32_t n_prompts;
    bool has_max_tokens;
    uint32_t max_tokens; /* not given: as many as that, if the context has them */
    double temperature, top_p, min_p;
    uint32_t top_k; /* 0: off */
    bool has_seed;
    uint64_t seed;
    uint32_t n;
    double repetition_penalty, frequency_penalty, presence_penalty;
    struct logit_bias *logit_bias; /* owned, [n_logit_bias] */
    uint32_t n_logit_bias;
    struct request_string stop[LIMIT_STOP_STRINGS];
    uint32_t n_stop;
    const int32_t *eos; /* the model's; none with ignore_eos */
    uint32_t n_eos;
    bool logprobs;
    uint32_t top_logprobs;
    bool echo, ignore_eos, stream, include_usage, return_token_ids;
};

/* Zero *out first. Returns 0, or the status of the fault; request_deinit in both cases. */
int request_parse(enum request_kind kind, const char *body, size_t n,
                  const struct generation_model *model, struct request *out, struct fault *why);
/* The same from an object that is there already; takes `body`, also after a failure. */
int request_from_object(enum request_kind kind, json_t *body, const struct generation_model *model,
                        struct request *out, struct fault *why);
void request_deinit(struct request *r);

/* Do the prompt's tokens and what is to be generated fit? 0 or 400. */
int request_check_length(const struct request *r, size_t n_prompt, uint32_t ctx, struct fault *why);
/* Without a seed from the client, one from the system. */
void request_settle_seed(struct request *r);
/* What the engine is asked for: choice number `sample` for a prompt whose length was checked; borrows the ids. */
struct generation_spec request_spec(const struct request *r, const struct generation_model *model,
                                    const struct ids *prompt, uint32_t sample);

/* ---- for the parts of this module, and for other JSON endpoints ---- */

/* A body that must be a JSON object. Gives a reference. */
int request_body_object(const char *body, size_t n, json_t **out, struct fault *why);
int request_messages(const json_t *given, json_t **out, struct fault *why);
/* chat_template_kwargs of a body; borrowed, NULL if there are none. */
int request_template_kwargs(const json_t *body, const json_t **out, struct fault *why);
int request_prompts(const json_t *given, const struct generation_model *model, struct request *out,
                    struct fault *why);
/* tools, tool_choice, parallel_tool_calls. */
int request_tools(const json_t *body, const struct generation_model *model, struct request *out,
                  struct fault *why);
/* The tool_calls of message i, if it has any. */
int request_tool_calls(const json_t *message, size_t i, struct fault *why);
/* An array of token ids. *ids: mem_free. `param` names it in messages. */
int request_ids(const json_t *given, const char *param, uint32_t vocab, int32_t **ids, uint32_t *n,
                struct fault *why);
/* logit_bias, an object from token ids to numbers. *out: mem_free. */
int request_logit_bias(const json_t *given, uint32_t vocab, struct logit_bias **out, uint32_t *n,
                       struct fault *why);
/* 400 if a parameter that is not built has a value that is not neutral. */
int request_unbuilt(enum request_kind kind, const json_t *body, struct fault *why);
/* 404 model_not_found, or 0. */
int request_model(const json_t *body, const struct generation_model *model, struct fault *why);

#endif
