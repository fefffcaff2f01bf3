/* inference_frame.h - the messages of the coordinator's own gRPC API as plain structs (proto/moesaic/v1/inference.proto).
 * Pure functions, any thread. Ownership as in frame.h: decoded structs own everything through `owner`; for encoding
 * the caller's memory is borrowed. Texts are valid UTF-8 without NUL, or decoding fails. */
#ifndef MOESAIC_RPC_INFERENCE_FRAME_H
#define MOESAIC_RPC_INFERENCE_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/rpc/rpc.h"

struct generate_message {
    const char *role, *content;
};

struct generate_bias {
    int32_t id;
    double bias;
};

struct generate_request {
    /* Exactly one of the three after decoding. */
    const char *prompt; /* NULL: not given */
    const int32_t *prompt_ids;
    size_t n_prompt_ids;
    const struct generate_message *messages;
    size_t n_messages;

    bool has_max_tokens, has_temperature, has_top_p, has_top_k, has_min_p, has_seed,
        has_top_logprobs, has_presence_penalty, has_frequency_penalty, has_repetition_penalty;
    uint32_t max_tokens;
    double temperature, top_p; /* as sent: NaN is possible, the API checks ranges */
    uint32_t top_k;
    double min_p, presence_penalty, frequency_penalty, repetition_penalty;
    const struct generate_bias *logit_bias; /* <= LIMIT_LOGIT_BIAS; ids and values as sent */
    size_t n_logit_bias;
    int64_t seed;
    uint32_t top_logprobs;   /* <= LIMIT_TOP_LOGPROBS */
    const char *const *stop; /* <= LIMIT_STOP_STRINGS of <= LIMIT_STOP_BYTES */
    size_t n_stop;
    bool ignore_eos;
    const char *model; /* "" : the one that is served; never NULL after decoding */
    void *owner;
};

struct generate_logprob {
    int32_t id;
    float logprob;
};

struct generate_reply {
    const char *text;
    const int32_t *token_ids;
    size_t n_token_ids;
    const struct generate_logprob *logprobs, *top_logprobs;
    size_t n_logprobs, n_top_logprobs;
    const char *finish_reason;
    bool has_usage;
    uint32_t prompt_tokens, completion_tokens;
    const int32_t *prompt_token_ids;
    size_t n_prompt_token_ids;
    void *owner;
};

/* Append the packed message to `out` (an rpc_out header). */
enum err_code frame_encode_generate_request(const struct generate_request *q, struct buf *out,
                                            struct err *why);
enum err_code frame_encode_generate_reply(const struct generate_reply *p, struct buf *out,
                                          struct err *why);

/* Gives *out. ERR_INVALID, ERR_TOO_LARGE (over LIMIT_HTTP_BODY_BYTES: same bound as the HTTP API), ERR_EXHAUSTED. */
enum err_code frame_decode_generate_request(const void *bytes, size_t n,
                                            struct generate_request **out, struct err *why);
enum err_code frame_decode_generate_reply(const void *bytes, size_t n, struct generate_reply **out,
                                          struct err *why);
void frame_generate_request_free(struct generate_request *q); /* NULL is fine */
void frame_generate_reply_free(struct generate_reply *p);

#endif
