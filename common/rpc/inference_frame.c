#include "common/rpc/inference_frame.h"

#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/rpc/pb.h"
#include "moesaic/v1/inference.pb-c.h"

#define IS_SET(p, FIELD, Name)                                                                     \
    ((p)->opt_##FIELD##_case != MOESAIC__V1__GENERATE_REQUEST__OPT_##Name##__NOT_SET)

/* ---- request ---------------------------------------------------------------------------------- */

struct request_box {
    struct generate_request q;
    struct generate_message *messages;
    struct generate_bias *bias;
    Moesaic__V1__GenerateRequest *pb;
};

void frame_generate_request_free(struct generate_request *q)
{
    if (q == NULL) return;
    struct request_box *box = q->owner;
    if (box->pb != NULL) pb_free(&box->pb->base);
    mem_free(box->messages);
    mem_free(box->bias);
    mem_free(box);
}

static enum err_code check_text(const char *field, size_t i, const char *s, struct err *why)
{
    if (utf8_valid(s, strlen(s))) return ERR_OK;
    return err_set(why, ERR_INVALID, "%s[%zu] is not valid UTF-8", field, i);
}

static bool read_varint(const uint8_t **p, const uint8_t *end, uint64_t *v)
{
    *v = 0;
    for (unsigned shift = 0; shift < 64 && *p < end; shift += 7) {
        uint8_t b = *(*p)++;
        *v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) return true;
    }
    return false;
}

/* Does a text field hold a NUL? protobuf-c hands texts out 0-terminated without their length, so a prompt would
 * silently be cut there. `texts` is a set of field numbers; `nested` a field whose fields are texts. The bytes were
 * unpacked already, so they are well-formed; depth 2. */
static bool text_has_nul(const uint8_t *p, size_t n, uint32_t texts, uint32_t nested)
{
    const uint8_t *end = p + n;
    while (p < end) {
        uint64_t tag, v = 0;
        if (!read_varint(&p, end, &tag)) return false;
        uint64_t field = tag >> 3;
        switch (tag & 7) {
        case 0:
            if (!read_varint(&p, end, &v)) return false;
            v = 0;
            break;
        case 1:
            v = 8;
            break;
        case 5:
            v = 4;
            break;
        case 2:
            if (!read_varint(&p, end, &v)) return false;
            break;
        default:
            return false;
        }
        if (v > (size_t)(end - p)) return false;
        if ((tag & 7) == 2 && field < 32) {
            if ((texts >> field & 1) && memchr(p, 0, (size_t)v) != NULL) return true;
            if (nested != 0 && field == nested && text_has_nul(p, (size_t)v, 1u << 1 | 1u << 2, 0))
                return true;
        }
        p += v;
    }
    return false;
}

static enum err_code check_request(const Moesaic__V1__GenerateRequest *p, struct err *why)
{
    bool prompt = IS_SET(p, prompt, PROMPT);
    int given = prompt + (p->n_prompt_ids > 0) + (p->n_messages > 0);
    if (given != 1)
        return err_set(why, ERR_INVALID,
                       "give exactly one of prompt, prompt_ids and messages; there are %d", given);
    if (p->n_stop > LIMIT_STOP_STRINGS)
        return err_set(why, ERR_INVALID, "%zu stop strings, the limit is %u", p->n_stop,
                       LIMIT_STOP_STRINGS);
    if (IS_SET(p, top_logprobs, TOP_LOGPROBS) && p->top_logprobs > LIMIT_TOP_LOGPROBS)
        return err_set(why, ERR_INVALID, "top_logprobs is %u, the limit is %u", p->top_logprobs,
                       LIMIT_TOP_LOGPROBS);
    if (p->n_logit_bias > LIMIT_LOGIT_BIAS)
        return err_set(why, ERR_INVALID, "%zu entries of logit_bias, the limit is %u",
                       p->n_logit_bias, LIMIT_LOGIT_BIAS);
    enum err_code rc = prompt ? check_text("prompt", 0, p->prompt, why) : ERR_OK;
    if (rc == ERR_OK) rc = check_text("model", 0, p->model, why);
    for (size_t i = 0; rc == ERR_OK && i < p->n_stop; i++) {
        size_t n = strlen(p->stop[i]);
        if (n == 0 || n > LIMIT_STOP_BYTES)
            return err_set(why, ERR_INVALID, "stop[%zu] has %zu bytes, allowed are 1 to %u", i, n,
                           LIMIT_STOP_BYTES);
        rc = check_text("stop", i, p->stop[i], why);
    }
    for (size_t i = 0; rc == ERR_OK && i < p->n_messages; i++) {
        rc = check_text("messages.role", i, p->messages[i]->role, why);
        if (rc == ERR_OK) rc = check_text("messages.content", i, p->messages[i]->content, why);
    }
    return rc;
}

enum err_code frame_decode_generate_request(const void *bytes, size_t n,
                                            struct generate_request **out, struct err *why)
{
    if (n > LIMIT_HTTP_BODY_BYTES)
        return err_set(why, ERR_TOO_LARGE, "GenerateRequest: %zu bytes, the limit is %u", n,
                       LIMIT_HTTP_BODY_BYTES);
    struct request_box *box = mem_zalloc(sizeof *box);
    if (box == NULL) return err_nomem(why, "GenerateRequest");
    struct generate_request *q = &box->q;
    q->owner = box;
    ProtobufCMessage *base = NULL;
    enum err_code rc = pb_unpack(&moesaic__v1__generate_request__descriptor, "GenerateRequest",
                                 bytes, n, &base, why);
    if (rc != ERR_OK) goto fail;
    Moesaic__V1__GenerateRequest *p = box->pb = (Moesaic__V1__GenerateRequest *)base;
    rc = check_request(p, why);
    if (rc == ERR_OK && text_has_nul(bytes, n, 1u << 1 | 1u << 10 | 1u << 13, 3))
        rc = err_set(why, ERR_INVALID, "a text contains a NUL character");
    if (rc == ERR_OK) {
        box->messages = mem_zalloc_array(p->n_messages, sizeof *box->messages);
        box->bias = mem_zalloc_array(p->n_logit_bias, sizeof *box->bias);
        if (box->messages == NULL || box->bias == NULL) rc = err_nomem(why, "messages");
    }
    if (rc != ERR_OK) {
        err_wrap(why, rc, "GenerateRequest");
        goto fail;
    }
    for (size_t i = 0; i < p->n_messages; i++)
        box->messages[i] = (struct generate_message){p->messages[i]->role, p->messages[i]->content};
    for (size_t i = 0; i < p->n_logit_bias; i++)
        box->bias[i] = (struct generate_bias){p->logit_bias[i]->id, p->logit_bias[i]->bias};
    q->prompt = IS_SET(p, prompt, PROMPT) ? p->prompt : NULL;
    q->prompt_ids = p->prompt_ids;
    q->n_prompt_ids = p->n_prompt_ids;
    q->messages = box->messages;
    q->n_messages = p->n_messages;
    q->logit_bias = box->bias;
    q->n_logit_bias = p->n_logit_bias;
    if ((q->has_max_tokens = IS_SET(p, max_tokens, MAX_TOKENS))) q->max_tokens = p->max_tokens;
    if ((q->has_temperature = IS_SET(p, temperature, TEMPERATURE))) q->temperature = p->temperature;
    if ((q->has_top_p = IS_SET(p, top_p, TOP_P))) q->top_p = p->top_p;
    if ((q->has_top_k = IS_SET(p, top_k, TOP_K))) q->top_k = p->top_k;
    if ((q->has_min_p = IS_SET(p, min_p, MIN_P))) q->min_p = p->min_p;
    if ((q->has_presence_penalty = IS_SET(p, presence_penalty, PRESENCE_PENALTY)))
        q->presence_penalty = p->presence_penalty;
    if ((q->has_frequency_penalty = IS_SET(p, frequency_penalty, FREQUENCY_PENALTY)))
        q->frequency_penalty = p->frequency_penalty;
    if ((q->has_repetition_penalty = IS_SET(p, repetition_penalty, REPETITION_PENALTY)))
        q->repetition_penalty = p->repetition_penalty;
    if ((q->has_seed = IS_SET(p, seed, SEED))) q->seed = p->seed;
    if ((q->has_top_logprobs = IS_SET(p, top_logprobs, TOP_LOGPROBS)))
        q->top_logprobs = p->top_logprobs;
    q->stop = (const char *const *)p->stop;
    q->n_stop = p->n_stop;
    q->ignore_eos = p->ignore_eos != 0;
    q->model = p->model;
    *out = q;
    return ERR_OK;
fail:
    frame_generate_request_free(q);
    return rc;
}

#define PUT_OPTIONAL(p, q, field, NAME)                                                            \
    if ((q)->has_##field) {                                                                        \
        (p)->opt_##field##_case = MOESAIC__V1__GENERATE_REQUEST__OPT_##NAME##_##NAME;              \
        (p)->field = (q)->field;                                                                   \
    }

enum err_code frame_encode_generate_request(const struct generate_request *q, struct buf *out,
                                            struct err *why)
{
    Moesaic__V1__GenerateRequest p;
    moesaic__v1__generate_request__init(&p);
    if (q->prompt != NULL) {
        p.opt_prompt_case = MOESAIC__V1__GENERATE_REQUEST__OPT_PROMPT_PROMPT;
        p.prompt = pb_text(q->prompt);
    }
    p.n_prompt_ids = q->n_prompt_ids;
    p.prompt_ids = pb_borrow(q->prompt_ids);
    PUT_OPTIONAL(&p, q, max_tokens, MAX_TOKENS)
    PUT_OPTIONAL(&p, q, temperature, TEMPERATURE)
    PUT_OPTIONAL(&p, q, top_p, TOP_P)
    PUT_OPTIONAL(&p, q, top_k, TOP_K)
    PUT_OPTIONAL(&p, q, min_p, MIN_P)
    PUT_OPTIONAL(&p, q, presence_penalty, PRESENCE_PENALTY)
    PUT_OPTIONAL(&p, q, frequency_penalty, FREQUENCY_PENALTY)
    PUT_OPTIONAL(&p, q, repetition_penalty, REPETITION_PENALTY)
    PUT_OPTIONAL(&p, q, seed, SEED)
    PUT_OPTIONAL(&p, q, top_logprobs, TOP_LOGPROBS)
    p.n_stop = q->n_stop;
    p.stop = pb_borrow(q->stop);
    p.ignore_eos = q->ignore_eos;
    p.model = pb_text(q->model);

    Moesaic__V1__ChatMessage *messages = mem_zalloc_array(q->n_messages, sizeof *messages);
    p.messages = mem_zalloc_array(q->n_messages, sizeof *p.messages);
    Moesaic__V1__LogitBias *bias = mem_zalloc_array(q->n_logit_bias, sizeof *bias);
    p.logit_bias = mem_zalloc_array(q->n_logit_bias, sizeof *p.logit_bias);
    enum err_code rc =
        messages != NULL && p.messages != NULL && bias != NULL && p.logit_bias != NULL
            ? ERR_OK
            : err_nomem(why, "messages");
    if (rc == ERR_OK) {
        p.n_logit_bias = q->n_logit_bias;
        for (size_t i = 0; i < q->n_logit_bias; i++) {
            moesaic__v1__logit_bias__init(&bias[i]);
            bias[i].id = q->logit_bias[i].id;
            bias[i].bias = q->logit_bias[i].bias;
            p.logit_bias[i] = &bias[i];
        }
        p.n_messages = q->n_messages;
        for (size_t i = 0; i < q->n_messages; i++) {
            moesaic__v1__chat_message__init(&messages[i]);
            messages[i].role = pb_text(q->messages[i].role);
            messages[i].content = pb_text(q->messages[i].content);
            p.messages[i] = &messages[i];
        }
        rc = pb_pack(&p.base, "GenerateRequest", out, why);
    }
    mem_free(messages);
    mem_free(p.messages);
    mem_free(bias);
    mem_free(p.logit_bias);
    return rc;
}

/* ---- reply ------------------------------------------------------------------------------------ */

/* protobuf-c wants an array of pointers to messages: one block of both, mem_free'd. */
static Moesaic__V1__TokenLogprob **encode_logprobs(const struct generate_logprob *in, size_t n)
{
    Moesaic__V1__TokenLogprob **out = mem_zalloc_array(n, sizeof *out + sizeof **out);
    if (out == NULL) return NULL;
    _Static_assert(_Alignof(Moesaic__V1__TokenLogprob) <= sizeof(void *),
                   "messages follow the pointers");
    Moesaic__V1__TokenLogprob *all = (Moesaic__V1__TokenLogprob *)(void *)(out + n);
    for (size_t i = 0; i < n; i++) {
        moesaic__v1__token_logprob__init(&all[i]);
        all[i].id = in[i].id;
        all[i].logprob = in[i].logprob;
        out[i] = &all[i];
    }
    return out;
}

static struct generate_logprob *decode_logprobs(Moesaic__V1__TokenLogprob **in, size_t n)
{
    struct generate_logprob *out = mem_zalloc_array(n, sizeof *out);
    for (size_t i = 0; out != NULL && i < n; i++)
        out[i] = (struct generate_logprob){in[i]->id, in[i]->logprob};
    return out;
}

enum err_code frame_encode_generate_reply(const struct generate_reply *r, struct buf *out,
                                          struct err *why)
{
    Moesaic__V1__GenerateReply p;
    Moesaic__V1__Usage usage;
    moesaic__v1__generate_reply__init(&p);
    p.text = pb_text(r->text);
    p.n_token_ids = r->n_token_ids;
    p.token_ids = pb_borrow(r->token_ids);
    p.n_prompt_token_ids = r->n_prompt_token_ids;
    p.prompt_token_ids = pb_borrow(r->prompt_token_ids);
    p.finish_reason = pb_text(r->finish_reason);
    if (r->has_usage) {
        moesaic__v1__usage__init(&usage);
        usage.prompt_tokens = r->prompt_tokens;
        usage.completion_tokens = r->completion_tokens;
        p.usage = &usage;
    }
    p.logprobs = encode_logprobs(r->logprobs, r->n_logprobs);
    p.top_logprobs = encode_logprobs(r->top_logprobs, r->n_top_logprobs);
    enum err_code rc =
        p.logprobs != NULL && p.top_logprobs != NULL ? ERR_OK : err_nomem(why, "logprobs");
    if (rc == ERR_OK) {
        p.n_logprobs = r->n_logprobs;
        p.n_top_logprobs = r->n_top_logprobs;
        rc = pb_pack(&p.base, "GenerateReply", out, why);
    }
    mem_free(p.logprobs);
    mem_free(p.top_logprobs);
    return rc;
}

struct reply_box {
    struct generate_reply r;
    struct generate_logprob *logprobs, *top;
    Moesaic__V1__GenerateReply *pb;
};

void frame_generate_reply_free(struct generate_reply *r)
{
    if (r == NULL) return;
    struct reply_box *box = r->owner;
    if (box->pb != NULL) pb_free(&box->pb->base);
    mem_free(box->logprobs);
    mem_free(box->top);
    mem_free(box);
}

enum err_code frame_decode_generate_reply(const void *bytes, size_t n, struct generate_reply **out,
                                          struct err *why)
{
    struct reply_box *box = mem_zalloc(sizeof *box);
    if (box == NULL) return err_nomem(why, "GenerateReply");
    struct generate_reply *r = &box->r;
    r->owner = box;
    ProtobufCMessage *base = NULL;
    enum err_code rc =
        pb_unpack(&moesaic__v1__generate_reply__descriptor, "GenerateReply", bytes, n, &base, why);
    if (rc != ERR_OK) goto fail;
    Moesaic__V1__GenerateReply *p = box->pb = (Moesaic__V1__GenerateReply *)base;
    box->logprobs = decode_logprobs(p->logprobs, p->n_logprobs);
    box->top = decode_logprobs(p->top_logprobs, p->n_top_logprobs);
    if (box->logprobs == NULL || box->top == NULL) {
        rc = err_nomem(why, "logprobs");
        goto fail;
    }
    r->text = p->text;
    r->token_ids = p->token_ids;
    r->n_token_ids = p->n_token_ids;
    r->logprobs = box->logprobs;
    r->n_logprobs = p->n_logprobs;
    r->top_logprobs = box->top;
    r->n_top_logprobs = p->n_top_logprobs;
    r->finish_reason = p->finish_reason;
    r->prompt_token_ids = p->prompt_token_ids;
    r->n_prompt_token_ids = p->n_prompt_token_ids;
    if ((r->has_usage = p->usage != NULL)) {
        r->prompt_tokens = p->usage->prompt_tokens;
        r->completion_tokens = p->usage->completion_tokens;
    }
    *out = r;
    return ERR_OK;
fail:
    frame_generate_reply_free(r);
    return rc;
}
