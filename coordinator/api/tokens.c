/* /tokenize and /detokenize: both request shapes that clients use (llama-server's `content`, vLLM's `prompt` or
 * `messages`), answered with the union of both. */
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/api/api_internal.h"
#include "coordinator/api/prompt.h"
#include "coordinator/text/tokenizer.h"

static int take_flag(const json_t *body, const char *key, bool otherwise, bool *out,
                     struct fault *why)
{
    const json_t *v = json_object_get(body, key);
    *out = otherwise;
    if (v == NULL || json_is_null(v)) return 0;
    if (!json_is_boolean(v))
        return fault_set(why, 400, "invalid_type", key, "%s must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

static int encode(const struct api *a, const json_t *body, struct ids *ids, struct fault *why)
{
    const json_t *messages = json_object_get(body, "messages"),
                 *content = json_object_get(body, "content"),
                 *prompt = json_object_get(body, "prompt");
    if (messages != NULL) {
        json_t *checked = NULL;
        struct request r = {.kind = REQUEST_CHAT}; /* its tools are the body's */
        const json_t *kwargs = NULL;
        int status = request_tools(body, &a->cfg.model, &r, why);
        if (status == 0) status = request_template_kwargs(body, &kwargs, why);
        if (status == 0) status = request_messages(messages, &checked, why);
        if (status == 0)
            status = prompt_from_messages(&a->cfg.model, checked, r.tools, kwargs, ids, NULL, why);
        json_decref(checked);
        return status;
    }
    const char *key = content != NULL ? "content" : "prompt";
    const json_t *text = content != NULL ? content : prompt;
    if (!json_is_string(text))
        return fault_set(why, 400, "invalid_type", key, "%s must be a string", key);
    /* The two shapes differ in their default: llama-server adds nothing, vLLM what the tokenizer wants. */
    bool add, add_vllm;
    int status = take_flag(body, "add_special", content == NULL, &add, why);
    if (status == 0) status = take_flag(body, "add_special_tokens", add, &add_vllm, why);
    if (status != 0) return status;
    return prompt_from_text(&a->cfg.model, json_string_value(text), json_string_length(text),
                            add_vllm, ids, why);
}

static void put_piece(const struct api *a, int32_t id, struct buf *b)
{
    size_t n = 0;
    const char *s = tokenizer_bytes(a->cfg.model.tokenizer, id, &n);
    buf_printf(b, "{\"id\":%d,\"piece\":", id);
    if (s == NULL) {
        buf_puts(b, "\"\"");
    } else if (utf8_valid(s, n)) {
        buf_put_json_string(b, s, n);
    } else {
        for (size_t i = 0; i < n; i++)
            buf_printf(b, i == 0 ? "[%u" : ",%u", (unsigned)(unsigned char)s[i]);
        buf_putc(b, ']');
    }
    buf_putc(b, '}');
}

void admin_tokenize(struct api *a, struct http_exchange *ex)
{
    if (!api_check_json_post(ex)) return;
    size_t n;
    const char *text = http_body(ex, &n);
    struct fault why;
    struct ids ids = {0};
    json_t *body = NULL;
    bool pieces = false;
    int status = request_body_object(text, n, &body, &why);
    if (status == 0) status = take_flag(body, "with_pieces", false, &pieces, &why);
    if (status == 0) status = encode(a, body, &ids, &why);
    json_decref(body);
    if (status != 0) {
        http_reply_fault(ex, &why, NULL);
    } else {
        struct buf b = {0};
        buf_puts(&b, "{\"tokens\":[");
        for (size_t i = 0; i < ids.len; i++) {
            if (i > 0) buf_putc(&b, ',');
            if (pieces)
                put_piece(a, ids.data[i], &b);
            else
                buf_printf(&b, "%d", ids.data[i]);
        }
        buf_printf(&b, "],\"count\":%zu,\"max_model_len\":%u}", ids.len, a->cfg.model.ctx);
        api_reply_json(ex, 200, &b);
    }
    ids_free(&ids);
}

void admin_detokenize(struct api *a, struct http_exchange *ex)
{
    if (!api_check_json_post(ex)) return;
    size_t n;
    const char *text = http_body(ex, &n);
    struct fault why;
    struct err e;
    struct buf out = {0}, b = {0};
    json_t *body = NULL;
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    int status = request_body_object(text, n, &body, &why);
    if (status == 0)
        status = request_ids(json_object_get(body, "tokens"), "tokens", a->cfg.model.vocab, &ids,
                             &n_ids, &why);
    if (status == 0 &&
        tokenizer_decode(a->cfg.model.tokenizer, ids, n_ids, false, &out, &e) != ERR_OK)
        status = fault_from_err(&why, &e);
    if (status != 0) {
        http_reply_fault(ex, &why, NULL);
    } else {
        buf_puts(&b, "{\"content\":");
        buf_put_json_string(&b, out.data, out.len);
        buf_puts(&b, ",\"prompt\":");
        buf_put_json_string(&b, out.data, out.len);
        buf_putc(&b, '}');
        if (out.failed) b.failed = true;
        api_reply_json(ex, 200, &b);
    }
    json_decref(body);
    mem_free(ids);
    buf_free(&out);
}
