/* A message between coordinator and node, from its bytes on the wire: what is accepted keeps the rules of frame.h, and
 * packed again it reads as the same. The first byte chooses the kind of message, the second how the rest is cut into
 * slices. 254 and 255 as the first byte repeat the rest until it is over the limit of a header, or long enough to be over
 * what may be unpacked. */
// links: rpc
// covers: common/rpc/frame.c common/rpc/pb.c
// max_len: 1024
#include <stdlib.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/rpc/frame.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void)
{
    static struct rpc *r; /* gRPC's own memory needs one; kept to the end */
    struct err why;
    FUZZ_CHECK(rpc_open(&r, &why) == ERR_OK, "%s", why.text);
}

static int answer(enum err_code rc)
{
    return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
}

static struct rpc_message *message(const uint8_t *data, size_t n, size_t slice)
{
    struct rpc_part parts[64];
    unsigned n_parts = 0;
    while (n > 0 && n_parts < 63 && slice > 0) {
        size_t take = slice < n ? slice : n;
        parts[n_parts++] = (struct rpc_part){data, take};
        data += take;
        n -= take;
    }
    if (n > 0 || n_parts == 0) parts[n_parts++] = (struct rpc_part){data, n};
    return rpc_message_from_parts(parts, n_parts);
}

/* The tensor by halves is the tensor whole. */
static void read_tensor(const struct rpc_message *m)
{
    uint8_t whole[1024], halves[1024];
    size_t n = rpc_message_tensor_bytes(m);
    FUZZ_CHECK(n <= sizeof whole, "%zu bytes of tensor", n);
    rpc_message_tensor_copy(m, 0, whole, n);
    rpc_message_tensor_copy(m, 0, halves, n / 2);
    rpc_message_tensor_copy(m, n / 2, halves + n / 2, n - n / 2);
    FUZZ_CHECK(memcmp(whole, halves, n) == 0, "%zu bytes of tensor", n);
}

static void check_hello(const struct expert_hello *h)
{
    if (h == NULL) return;
    struct err why;
    FUZZ_CHECK(h->n_layers <= LIMIT_LAYERS && strlen(h->id) <= 256, "%u layers", h->n_layers);
    for (uint32_t i = 0; i < h->n_layers; i++)
        for (uint32_t e = 0; e < LIMIT_EXPERTS; e++)
            (void)frame_bitmap_has(h->held[i], e);
    FUZZ_CHECK(frame_hello_check(h, h, &why) == ERR_OK, "%s", why.text);
    struct expert_hello other = {
        .protocol = FRAME_PROTOCOL, .model_digest = "abc", .quantize = "none"};
    (void)frame_hello_check(h, &other, &why);
}

static void check_request(const struct expert_request *q)
{
    check_hello(q->hello);
    if (q->kind != EXPERT_REQUEST_STEP) return;
    uint64_t sum = 0;
    FUZZ_CHECK(q->n_experts > 0 && q->layer < LIMIT_LAYERS, "%u experts", q->n_experts);
    for (uint32_t i = 0; i < q->n_experts; i++) {
        FUZZ_CHECK(q->experts[i] < LIMIT_EXPERTS && (i == 0 || q->experts[i] > q->experts[i - 1]),
                   "expert %u", q->experts[i]);
        sum += q->expert_rows[i];
    }
    FUZZ_CHECK(sum == q->n_index, "%llu of %u", (unsigned long long)sum, q->n_index);
    for (uint32_t i = 0; i < q->n_index; i++)
        FUZZ_CHECK(q->row_index[i] < q->rows, "row %u of %u", q->row_index[i], q->rows);
}

/* Twice packed, the second time from what the first was read as: the same bytes. */
static enum err_code repack_request(const struct expert_request *q, struct buf *first,
                                    struct buf *second)
{
    struct err why;
    struct expert_request *again = NULL;
    enum err_code rc = frame_encode_request(q, first, &why);
    struct rpc_part part = {first->data, first->len};
    struct rpc_message *m = rc == ERR_OK ? rpc_message_from_parts(&part, 1) : NULL;
    if (m == NULL) return ERR_EXHAUSTED;
    rc = frame_decode_request(m, &again, &why);
    FUZZ_CHECK(rc == ERR_OK || rc == ERR_EXHAUSTED, "packed again: %s", why.text);
    if (rc == ERR_OK) rc = frame_encode_request(again, second, &why);
    frame_request_free(again);
    rpc_message_free(m);
    return rc;
}

static enum err_code repack_reply(const struct expert_reply *r, const struct rpc_message *old,
                                  struct buf *first, struct buf *second)
{
    struct err why;
    struct expert_reply *again = NULL;
    static const uint8_t tensor[1024];
    size_t n = rpc_message_tensor_bytes(old), n_tag = 1;
    uint8_t tag[4] = {0x7a};
    for (size_t v = n; n_tag == 1 || v > 0; v >>= 7)
        tag[n_tag++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
    enum err_code rc = frame_encode_reply(r, first, &why);
    struct rpc_part parts[] = {{first->data, first->len}, {tag, n_tag}, {tensor, n}};
    struct rpc_message *m = rc == ERR_OK ? rpc_message_from_parts(parts, 3) : NULL;
    if (m == NULL) return ERR_EXHAUSTED;
    rc = frame_decode_reply(m, &again, &why);
    FUZZ_CHECK(rc == ERR_OK || rc == ERR_EXHAUSTED, "packed again: %s", why.text);
    if (rc == ERR_OK) rc = frame_encode_reply(again, second, &why);
    frame_reply_free(again);
    rpc_message_free(m);
    return rc;
}

static enum err_code repack_describe(const struct expert_describe *d, struct buf *first,
                                     struct buf *second)
{
    struct err why;
    struct expert_describe *again = NULL;
    enum err_code rc = frame_encode_describe(d, first, &why);
    if (rc != ERR_OK) return rc;
    rc = frame_decode_describe(first->data, first->len, &again, &why);
    FUZZ_CHECK(rc == ERR_OK || rc == ERR_EXHAUSTED, "packed again: %s", why.text);
    if (rc == ERR_OK) rc = frame_encode_describe(again, second, &why);
    frame_describe_free(again);
    return rc;
}

/* `wrapped`: as the value of one unknown field. Millions of fields take a second to walk, and stop the search. */
static void check_repeated(const uint8_t *data, size_t n, size_t total, bool wrapped)
{
    uint8_t *all = malloc(total);
    FUZZ_CHECK(all != NULL, "the harness has no memory");
    size_t begin = 0;
    if (wrapped) {
        all[begin++] = 0xa2; /* field 100, bytes */
        all[begin++] = 0x06;
        size_t left = total - 6;
        for (int i = 0; i < 4; i++, left >>= 7)
            all[begin++] = (uint8_t)((left & 0x7f) | (i < 3 ? 0x80 : 0));
    }
    for (size_t i = begin; i < total; i += n)
        memcpy(all + i, data, n < total - i ? n : total - i);
    struct rpc_message *m = message(all, total, 0);
    struct expert_request *q = NULL;
    struct err why;
    if (m != NULL) (void)frame_decode_request(m, &q, &why);
    frame_request_free(q);
    rpc_message_free(m);
    free(all);
}

int fuzz_one(const uint8_t *data, size_t n)
{
    if (n < 2) return 0;
    if (data[0] >= 254 && n > 2) {
        const bool over = data[0] == 254;
        check_repeated(data + 2, n - 2, over ? LIMIT_HEADER_BYTES + 1 : 300000, over);
        return 0;
    }
    int kind = data[0] % 3;
    struct rpc_message *m = message(data + 2, n - 2, data[1]);
    if (m == NULL) return FUZZ_NO_MEMORY;
    struct buf first = {0}, second = {0};
    struct err why;
    enum err_code rc;
    read_tensor(m);
    if (kind == 0) {
        struct expert_request *q = NULL;
        rc = frame_decode_request(m, &q, &why);
        if (rc == ERR_OK) {
            check_request(q);
            rc = repack_request(q, &first, &second);
        }
        frame_request_free(q);
    } else if (kind == 1) {
        struct expert_reply *r = NULL;
        rc = frame_decode_reply(m, &r, &why);
        if (rc == ERR_OK) {
            FUZZ_CHECK(r->kind != EXPERT_REPLY_ERROR || r->error != ERR_OK,
                       "an error without a code");
            check_hello(r->hello);
            rc = repack_reply(r, m, &first, &second);
        }
        frame_reply_free(r);
    } else {
        struct expert_describe *d = NULL;
        rc = frame_decode_describe(data + 2, n - 2, &d, &why);
        if (rc == ERR_OK) {
            check_hello(d->hello);
            rc = repack_describe(d, &first, &second);
        }
        frame_describe_free(d);
    }
    if (rc == ERR_OK)
        FUZZ_CHECK(first.len == second.len &&
                       (first.len == 0 || memcmp(first.data, second.data, first.len) == 0),
                   "packed to %zu, then to %zu bytes", first.len, second.len);
    buf_free(&first);
    buf_free(&second);
    rpc_message_free(m);
    return answer(rc);
}
