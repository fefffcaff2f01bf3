/* generation.h - what the API asks of the engine, and what comes back: the seam between the loop thread
 * (HTTP, gRPC bodies, text) and the engine thread (tokens). Everything here is called and called back on the
 * loop thread; the driver behind it does the hand-over. A fake of this interface drives the API's own tests. */
#ifndef MOESAIC_API_GENERATION_H
#define MOESAIC_API_GENERATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"
#include "coordinator/model/sampler.h"

/* One sequence to generate (a request with n = 3 is three of these with choice 0, 1, 2). */
struct generation_spec {
    const int32_t *prompt; /* copied */
    uint32_t n_prompt;     /* >= 1 */
    uint32_t max_tokens;   /* 0 allowed when prompt_logprobs */
    bool ignore_eos;
    struct sampler_params sampling; /* seed, choice inside; its bias is copied */
    uint32_t top_logprobs;          /* alternatives per token, 0..20 */
    bool logprobs;                  /* logprob of each chosen token */
    bool prompt_logprobs;           /* those of the prompt too */
    uint32_t deadline_ms;           /* from now */
};

struct generation_logprob {
    int32_t id;
    float logprob;
};

enum generation_event_kind {
    GENERATION_PROMPT, /* logprobs of prompt tokens [index, index + 1): one event each, ascending; the first has none */
    GENERATION_TOKEN,
    GENERATION_FINISHED, /* last event: stop (eos), length */
    GENERATION_FAILED,   /* last event: `error` */
};

struct generation_event {
    enum generation_event_kind kind;
    uint32_t index;   /* of the token in the prompt or in the output */
    int32_t token;    /* of the first prompt token it may be -1: the asker knows it */
    bool has_logprob; /* false for the first prompt token */
    float logprob;
    uint32_t n_top;
    struct generation_logprob
        top[LIMIT_TOP_LOGPROBS]; /* descending logprob, ties to the lower id */
    bool
        stopped_by_eos; /* FINISHED: eos (its token is sent as a TOKEN event too; it is counted, not shown) or length */
    uint32_t n_cached;       /* FINISHED: tokens of the prompt that came out of the prefix cache */
    const struct err *error; /* FAILED */
};

typedef void (*generation_sink)(void *ctx, const struct generation_event *ev);

/* What the API shows of the engine and the cluster. */
struct generation_service {
    void *self;
    /* Begin; *handle names it until its last event. EXHAUSTED when the queue is full, UNAVAILABLE while loading
     * or draining, CONTEXT when prompt + max_tokens exceed the context. The sink is not called before start returns. */
    enum err_code (*start)(void *self, const struct generation_spec *spec, generation_sink sink,
                           void *ctx, uint64_t *handle, struct err *why);
    /* The client left or has enough (stop string): no event follows. */
    void (*cancel)(void *self, uint64_t handle);
    /* Slow reader: stop decoding this sequence for now / go on. Events already under way still arrive. */
    void (*pause)(void *self, uint64_t handle, bool paused);
    /* Ask for the cluster's state: `done` gets a JSON object text (valid during the call): {"epoch":..,"nodes":[..],
     * "placement":{..},"engine":{..},"ready":bool,"reasons":[..]}. Answers later, on the loop thread, always once. */
    void (*cluster)(void *self, void (*done)(void *ctx, const char *json), void *ctx);
    /* Cheap, at any time: may requests be answered now? If not, a reason (static or owned by self). */
    bool (*ready)(void *self, const char **reason);
};

/* Facts about the model that the API needs; immutable. */
struct tokenizer;
struct chat_template;
struct reply_format;
struct generation_model {
    const char *id; /* the served name */
    int64_t created;
    uint32_t ctx, vocab;
    uint32_t n_layers, n_experts, top_k;
    uint64_t n_params, bytes;
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL: chat answers 400 */
    const struct reply_format *reply_format;  /* NULL: a reply is content, and there are no tools */
    float default_temperature, default_top_p; /* from generation_config.json, else 1 */
    uint32_t default_top_k;                   /* 0: off */
    const int32_t *eos;                       /* tokens that end an output, unless ignore_eos */
    uint32_t n_eos;
    const char *digest;
    uint32_t request_ms; /* a request's longest time; 0: LIMIT_REQUEST_MS */
};

#endif
