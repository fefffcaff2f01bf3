/* A message of the coordinator's own gRPC API, a request or (odd first byte) a reply: what is accepted keeps the rules
 * of inference_frame.h, and packed again it reads as the same. */
// links: rpc
// covers: common/rpc/inference_frame.c
// max_len: 1024
#include <string.h>

#include "common/base/limits.h"
#include "common/base/utf8.h"
#include "common/rpc/inference_frame.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

static void check_text(const char *s)
{
    FUZZ_CHECK(utf8_valid(s, strlen(s)), "%s", s);
}

static void check_request(const struct generate_request *q)
{
    int given = (q->prompt != NULL) + (q->n_prompt_ids > 0) + (q->n_messages > 0);
    FUZZ_CHECK(given == 1, "%d prompts", given);
    FUZZ_CHECK(q->n_stop <= LIMIT_STOP_STRINGS && q->top_logprobs <= LIMIT_TOP_LOGPROBS,
               "%zu stops, %u logprobs", q->n_stop, q->top_logprobs);
    if (q->prompt != NULL) check_text(q->prompt);
    check_text(q->model);
    for (size_t i = 0; i < q->n_stop; i++) {
        FUZZ_CHECK(q->stop[i][0] != '\0' && strlen(q->stop[i]) <= LIMIT_STOP_BYTES, "stop %zu", i);
        check_text(q->stop[i]);
    }
    for (size_t i = 0; i < q->n_messages; i++) {
        check_text(q->messages[i].role);
        check_text(q->messages[i].content);
    }
}

static enum err_code request(const uint8_t *data, size_t n, struct buf *first, struct buf *second)
{
    struct generate_request *q = NULL, *again = NULL;
    struct err why;
    enum err_code rc = frame_decode_generate_request(data, n, &q, &why);
    if (rc != ERR_OK) return rc;
    check_request(q);
    rc = frame_encode_generate_request(q, first, &why);
    if (rc == ERR_OK) {
        rc = frame_decode_generate_request(first->data, first->len, &again, &why);
        FUZZ_CHECK(rc == ERR_OK || rc == ERR_EXHAUSTED, "packed again: %s", why.text);
    }
    if (rc == ERR_OK) rc = frame_encode_generate_request(again, second, &why);
    frame_generate_request_free(again);
    frame_generate_request_free(q);
    return rc;
}

static enum err_code reply(const uint8_t *data, size_t n, struct buf *first, struct buf *second)
{
    struct generate_reply *r = NULL, *again = NULL;
    struct err why;
    enum err_code rc = frame_decode_generate_reply(data, n, &r, &why);
    if (rc != ERR_OK) return rc;
    rc = frame_encode_generate_reply(r, first, &why);
    if (rc == ERR_OK) {
        rc = frame_decode_generate_reply(first->data, first->len, &again, &why);
        FUZZ_CHECK(rc == ERR_OK || rc == ERR_EXHAUSTED, "packed again: %s", why.text);
    }
    if (rc == ERR_OK) rc = frame_encode_generate_reply(again, second, &why);
    frame_generate_reply_free(again);
    frame_generate_reply_free(r);
    return rc;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    if (n == 0) return 0;
    struct buf first = {0}, second = {0};
    enum err_code rc = data[0] % 2 == 0 ? request(data + 1, n - 1, &first, &second)
                                        : reply(data + 1, n - 1, &first, &second);
    if (rc == ERR_OK)
        FUZZ_CHECK(first.len == second.len &&
                       (first.len == 0 || memcmp(first.data, second.data, first.len) == 0),
                   "packed to %zu, then to %zu bytes", first.len, second.len);
    buf_free(&first);
    buf_free(&second);
    return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
}
