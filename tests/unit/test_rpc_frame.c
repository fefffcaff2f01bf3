/* Splitting a message into header and tensor, and the messages between coordinator and node. */
// links: rpc base
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/rpc/frame.h"

static struct rpc *r;

static void setup(void)
{
    struct err why;
    cr_assert_eq(rpc_open(&r, &why), ERR_OK);
}

static void teardown(void)
{
    rpc_close(r);
}

TestSuite(frame, .init = setup, .fini = teardown);

static struct rpc_message *message(const void *bytes, size_t n)
{
    struct rpc_part part = {bytes, n};
    return rpc_message_from_parts(&part, 1);
}

static struct rpc_message *with_tensor(const struct buf *header, const void *tensor, size_t n)
{
    uint8_t tag[11] = {0x7a};
    size_t k = 1, v = n;
    do {
        tag[k++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        v >>= 7;
    } while (v);
    struct rpc_part parts[3] = {{header->data, header->len}, {tag, k}, {tensor, n}};
    return rpc_message_from_parts(parts, 3);
}

/* ---- the split ---------------------------------------------------------------------------------- */

static void expect_split(const struct rpc_message *m, const char *header, size_t nh,
                         const char *tensor, size_t nt)
{
    size_t n;
    const uint8_t *h = rpc_message_header(m, &n);
    cr_assert_eq(n, nh);
    cr_expect(memcmp(h, header, nh) == 0);
    cr_assert_eq(rpc_message_tensor_bytes(m), nt);
    char got[4096];
    rpc_message_tensor_copy(m, 0, got, nt);
    cr_expect(memcmp(got, tensor, nt) == 0);
    if (nt > 2) {
        rpc_message_tensor_copy(m, 1, got, nt - 2);
        cr_expect(memcmp(got, tensor + 1, nt - 2) == 0);
    }
    rpc_message_tensor_copy(m, nt, got, 0);
}

/* All field kinds, then field 15 with 9 bytes. */
#define HEAD                                                                                       \
    "\x08\x96\x01"                                                                                 \
    "\x11"                                                                                         \
    "12345678"                                                                                     \
    "\x1a\x03\x7a\x7a\x7a"                                                                         \
    "\x25"                                                                                         \
    "abcd"                                                                                         \
    "\x80\x01\x05"
#define TAIL "tensor..!"

Test(frame, every_way_to_cut_a_message_into_spans_splits_the_same)
{
    const char bytes[] = HEAD "\x7a\x09" TAIL;
    size_t n = sizeof bytes - 1;
    for (size_t i = 0; i <= n; i++)
        for (size_t k = i; k <= n; k++) {
            struct rpc_part parts[3] = {{bytes, i}, {bytes + i, k - i}, {bytes + k, n - k}};
            struct rpc_message *m = rpc_message_from_parts(parts, 3);
            expect_split(m, HEAD, sizeof HEAD - 1, TAIL, 9);
            rpc_message_free(m);
        }
}

Test(frame, field_15_may_stand_anywhere_and_the_last_one_counts)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *header, *tensor;
    } cases[] = {
        {"\x7a\x02"
         "ab"
         "\x08\x05",
         6, "\x08\x05", "ab"},
        {"\x08\x05\x7a\x02"
         "ab"
         "\x10\x06",
         8, "\x08\x05\x10\x06", "ab"},
        {"\x7a\x02"
         "ab"
         "\x08\x05\x7a\x03"
         "xyz",
         11, "\x08\x05", "xyz"},
        {"\x7a\x03"
         "xyz"
         "\x7a\x00",
         7, "", ""},
        {"\x08\x05", 2, "\x08\x05", ""},
        {"\x7a\x00", 2, "", ""},
        {"", 0, "", ""},
        {"\x08\x05\x7a\x83\x00"
         "xyz",
         8, "\x08\x05", "xyz"}, /* a length with a needless byte */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t cut = 0; cut <= cases[i].n; cut++) {
            struct rpc_part parts[2] = {{cases[i].bytes, cut},
                                        {cases[i].bytes + cut, cases[i].n - cut}};
            struct rpc_message *m = rpc_message_from_parts(parts, 2);
            expect_split(m, cases[i].header, strlen(cases[i].header), cases[i].tensor,
                         strlen(cases[i].tensor));
            rpc_message_free(m);
        }
}

Test(frame, malformed_bytes_are_all_header)
{
    static const struct {
        const char *bytes;
        size_t n;
    } cases[] = {
        {"\x08\x05\x7a\x05"
         "ab",
         6}, /* tensor longer than what is left */
        {"\x08\x05\x7a\x01"
         "ab",
         6}, /* 'b' is no whole field */
        {"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
         "a",
         12}, /* length 2^64 - 1 */
        {"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
         "a",
         13},                    /* varint without end */
        {"\x0b\x08\x01\x0c", 4}, /* a group */
        {"\x11"
         "1234567",
         8},
        {"\x25"
         "abc",
         4},
        {"\x08", 1},
        {"\x80", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rpc_message *m = message(cases[i].bytes, cases[i].n);
        expect_split(m, cases[i].bytes, cases[i].n, "", 0);
        struct expert_request *q;
        struct err why;
        cr_expect_eq(frame_decode_request(m, &q, &why), ERR_INVALID, "case %zu", i);
        rpc_message_free(m);
    }
}

/* ---- round trips -------------------------------------------------------------------------------- */

static const uint8_t bits0[] = {0x81, 0x02}, bits1[] = {0};
static const struct frame_bitmap held[] = {{bits0, 2}, {bits1, 0}, {bits1, 1}};
static const struct expert_hello hello = {.protocol = FRAME_PROTOCOL,
                                          .model_digest = "abc",
                                          .numerics = 3,
                                          .wire_profile = 1,
                                          .quantize = "q8_0",
                                          .id = "node-1",
                                          .incarnation = UINT64_MAX,
                                          .epoch = 12,
                                          .lane = RPC_LANE_BULK,
                                          .kernels = "avx2",
                                          .held = held,
                                          .n_layers = 3,
                                          .expert_bytes = 1ull << 40,
                                          .threads = 8,
                                          .pinned = true};

static void expect_hello(const struct expert_hello *h)
{
    cr_assert(h);
    cr_expect_eq(h->protocol, hello.protocol);
    cr_expect_str_eq(h->model_digest, "abc");
    cr_expect_eq(h->numerics, 3u);
    cr_expect_eq(h->wire_profile, 1u);
    cr_expect_str_eq(h->quantize, "q8_0");
    cr_expect_str_eq(h->id, "node-1");
    cr_expect_eq(h->incarnation, UINT64_MAX);
    cr_expect_eq(h->epoch, 12u);
    cr_expect_eq(h->lane, RPC_LANE_BULK);
    cr_expect_str_eq(h->kernels, "avx2");
    cr_expect_eq(h->expert_bytes, 1ull << 40);
    cr_expect_eq(h->threads, 8u);
    cr_expect(h->pinned);
    cr_assert_eq(h->n_layers, 3u);
    cr_expect(frame_bitmap_has(h->held[0], 0) && frame_bitmap_has(h->held[0], 7) &&
              frame_bitmap_has(h->held[0], 9));
    cr_expect_not(frame_bitmap_has(h->held[0], 1) || frame_bitmap_has(h->held[0], 16) ||
                  frame_bitmap_has(h->held[1], 0));
    cr_expect_not(frame_bitmap_has(h->held[0], UINT32_MAX));
}

static const uint32_t experts[] = {0, 3, 1023}, expert_rows[] = {1, 2, 1},
                      row_index[] = {4, 0, 299, 299};
static const struct expert_request step = {.kind = EXPERT_REQUEST_STEP,
                                           .step = 1ull << 63,
                                           .epoch = 7,
                                           .layer = 60,
                                           .format = FRAME_Q8,
                                           .rows = 300,
                                           .experts = experts,
                                           .expert_rows = expert_rows,
                                           .n_experts = 3,
                                           .row_index = row_index,
                                           .n_index = 4};

Test(frame, requests_survive_the_wire)
{
    struct buf b = {0};
    struct err why;
    struct expert_request *q;
    cr_assert_eq(frame_encode_request(&step, &b, &why), ERR_OK);
    struct rpc_message *m = with_tensor(&b, "0123456789", 10);
    cr_assert_eq(frame_decode_request(m, &q, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(rpc_message_tensor_bytes(m), 10u);
    rpc_message_free(m); /* what was decoded does not lean on it */
    cr_expect(q->kind == EXPERT_REQUEST_STEP && q->step == 1ull << 63 && q->epoch == 7 &&
              q->layer == 60);
    cr_expect(q->format == FRAME_Q8 && q->rows == 300 && q->n_experts == 3 && q->n_index == 4 &&
              q->hello == NULL);
    cr_expect_arr_eq(q->experts, experts, sizeof experts);
    cr_expect_arr_eq(q->expert_rows, expert_rows, sizeof expert_rows);
    cr_expect_arr_eq(q->row_index, row_index, sizeof row_index);
    frame_request_free(q);

    struct expert_request other = {
        .kind = EXPERT_REQUEST_HELLO, .hello = &hello, .assign = held, .n_layers = 3};
    for (int i = 0; i < 3; i++) {
        other.kind = i == 0   ? EXPERT_REQUEST_HELLO
                     : i == 1 ? EXPERT_REQUEST_ASSIGN
                              : EXPERT_REQUEST_PING;
        buf_clear(&b);
        cr_assert_eq(frame_encode_request(&other, &b, &why), ERR_OK);
        m = message(b.data, b.len);
        cr_assert_eq(frame_decode_request(m, &q, &why), ERR_OK, "%s", why.text);
        cr_expect_eq(q->kind, other.kind);
        expect_hello(q->hello);
        cr_assert_eq(q->n_layers, 3u);
        cr_expect_eq(q->assign[0].bytes, 2u);
        cr_expect_arr_eq(q->assign[0].bits, bits0, 2);
        frame_request_free(q);
        rpc_message_free(m);
    }
    buf_free(&b);
}

Test(frame, replies_survive_the_wire)
{
    struct buf b = {0};
    struct err why;
    struct expert_reply *p;
    struct expert_reply result = {.kind = EXPERT_REPLY_RESULT,
                                  .step = 9,
                                  .rows = 2,
                                  .format = FRAME_BF16,
                                  .queue_us = 5,
                                  .compute_us = 700};
    cr_assert_eq(frame_encode_reply(&result, &b, &why), ERR_OK);
    struct rpc_message *m = with_tensor(&b, "0123", 4);
    cr_assert_eq(frame_decode_reply(m, &p, &why), ERR_OK, "%s", why.text);
    cr_expect(p->kind == EXPERT_REPLY_RESULT && p->step == 9 && p->rows == 2 &&
              p->format == FRAME_BF16);
    cr_expect(p->queue_us == 5 && p->compute_us == 700 && p->error == ERR_OK);
    frame_reply_free(p);
    rpc_message_free(m);
    m = with_tensor(&b, "012", 3);
    cr_expect_eq(frame_decode_reply(m, &p, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "2 rows") && strstr(why.text, "3 bytes") &&
                  strstr(why.text, "step 9"),
              "%s", why.text);
    rpc_message_free(m);

    struct expert_reply failed = {.kind = EXPERT_REPLY_ERROR,
                                  .step = 10,
                                  .error = ERR_NOT_FOUND,
                                  .error_text = "expert 3 is not held"};
    buf_clear(&b);
    cr_assert_eq(frame_encode_reply(&failed, &b, &why), ERR_OK);
    m = message(b.data, b.len);
    cr_assert_eq(frame_decode_reply(m, &p, &why), ERR_OK);
    cr_expect_eq(p->error, ERR_NOT_FOUND);
    cr_expect_str_eq(p->error_text, "expert 3 is not held");
    frame_reply_free(p);
    rpc_message_free(m);

    struct expert_reply holdings = {.kind = EXPERT_REPLY_HOLDINGS, .hello = &hello};
    buf_clear(&b);
    cr_assert_eq(frame_encode_reply(&holdings, &b, &why), ERR_OK);
    m = message(b.data, b.len);
    cr_assert_eq(frame_decode_reply(m, &p, &why), ERR_OK);
    expect_hello(p->hello);
    frame_reply_free(p);
    rpc_message_free(m);

    m = message("\x08\x03\x3a\x06"
                "STRANGE",
                11); /* the text is cut: malformed */
    cr_expect_eq(frame_decode_reply(m, &p, &why), ERR_INVALID);
    rpc_message_free(m);
    m = message("\x08\x03\x3a\x07"
                "STRANGE",
                11);
    cr_assert_eq(frame_decode_reply(m, &p, &why), ERR_OK);
    cr_expect_eq(p->error, ERR_INTERNAL);
    frame_reply_free(p);
    rpc_message_free(m);

    struct expert_describe d = {.hello = &hello,
                                .steps = 1,
                                .rows = 2,
                                .multiplications = 3,
                                .resident_bytes = 4},
                           *got;
    buf_clear(&b);
    cr_assert_eq(frame_encode_describe(&d, &b, &why), ERR_OK);
    cr_assert_eq(frame_decode_describe(b.data, b.len, &got, &why), ERR_OK);
    expect_hello(got->hello);
    cr_expect(got->steps == 1 && got->rows == 2 && got->multiplications == 3 &&
              got->resident_bytes == 4);
    frame_describe_free(got);
    cr_expect_eq(frame_decode_describe(NULL, 0, &got, &why), ERR_INVALID);
    buf_free(&b);
}

/* ---- refusals ----------------------------------------------------------------------------------- */

static void expect_refused(const struct expert_request *q, enum err_code code, const char *part)
{
    struct buf b = {0};
    struct err why;
    struct expert_request *got;
    cr_assert_eq(frame_encode_request(q, &b, &why), ERR_OK);
    struct rpc_message *m = message(b.data, b.len);
    cr_expect_eq(frame_decode_request(m, &got, &why), code, "%s", part);
    cr_expect(strstr(why.text, part), "'%s' lacks '%s'", why.text, part);
    rpc_message_free(m);
    buf_free(&b);
}

Test(frame, requests_that_contradict_themselves_are_refused)
{
    struct expert_request q = step;
    q.experts = (uint32_t[]){0, 3, 3};
    expect_refused(&q, ERR_INVALID, "experts[2] is 3 after 3");
    q.experts = (uint32_t[]){0, 3, 1024};
    expect_refused(&q, ERR_INVALID, "1024");
    q = step;
    q.expert_rows = (uint32_t[]){1, 2, 2};
    expect_refused(&q, ERR_INVALID, "sum to 5 but there are 4");
    q.expert_rows = (uint32_t[]){2, 2, 0};
    expect_refused(&q, ERR_INVALID, "expert_rows[2] is 0");
    q.expert_rows = (uint32_t[]){UINT32_MAX, UINT32_MAX, 6}; /* 4 in 32 bits */
    expect_refused(&q, ERR_INVALID, "8589934596");
    q = step;
    q.rows = 299;
    expect_refused(&q, ERR_INVALID, "row_index[2] is 299 of 299 rows");
    q.rows = LIMIT_FRAME_ROWS + 1;
    expect_refused(&q, ERR_TOO_LARGE, "65537");
    q = step;
    q.n_experts = 0;
    expect_refused(&q, ERR_INVALID, "without experts");
    q = step;
    q.kind = (enum expert_request_kind)9;
    expect_refused(&q, ERR_INVALID, "kind 9");
    q = step;
    q.format = (enum frame_format)3;
    expect_refused(&q, ERR_INVALID, "row format 3");
    q = step;
    q.layer = LIMIT_LAYERS;
    expect_refused(&q, ERR_INVALID, "layer 512");
    q = (struct expert_request){.kind = EXPERT_REQUEST_HELLO};
    expect_refused(&q, ERR_INVALID, "without a hello");

    static struct frame_bitmap many[LIMIT_LAYERS + 1];
    q = (struct expert_request){
        .kind = EXPERT_REQUEST_ASSIGN, .assign = many, .n_layers = LIMIT_LAYERS + 1};
    expect_refused(&q, ERR_TOO_LARGE, "513 layers");
    static const uint8_t wide[LIMIT_EXPERTS / 8 + 1];
    struct frame_bitmap one = {wide, sizeof wide};
    q = (struct expert_request){.kind = EXPERT_REQUEST_ASSIGN, .assign = &one, .n_layers = 1};
    expect_refused(&q, ERR_TOO_LARGE, "1032 experts");
    char name[300];
    memset(name, 'x', sizeof name);
    name[299] = '\0';
    struct expert_hello long_id = hello;
    long_id.id = name;
    q = (struct expert_request){.kind = EXPERT_REQUEST_HELLO, .hello = &long_id};
    expect_refused(&q, ERR_TOO_LARGE, "hello.id: 299");

    /* Different lengths cannot be encoded from the struct: fields 7 = [1], 8 = [1, 1]. */
    struct rpc_message *m =
        message("\x08\x02\x30\x05\x3a\x01\x01\x42\x02\x01\x01\x4a\x02\x00\x00", 15);
    struct expert_request *got;
    struct err why;
    cr_expect_eq(frame_decode_request(m, &got, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "1 experts but 2 expert_rows"), "%s", why.text);
    rpc_message_free(m);
}

Test(frame, memory_is_bounded_by_the_message)
{
    /* A million unknown fields of two bytes: each would cost over 24 bytes. */
    size_t n = 2u << 20;
    char *bytes = malloc(n);
    for (size_t i = 0; i < n; i += 2)
        memcpy(bytes + i, "\x60\x01", 2); /* field 12 */
    struct rpc_message *m = message(bytes, n);
    struct expert_request *q;
    struct err why;
    cr_expect_eq(frame_decode_request(m, &q, &why), ERR_TOO_LARGE);
    rpc_message_free(m);
    free(bytes);
    bytes = calloc(1, LIMIT_HEADER_BYTES + 1);
    m = message(bytes, LIMIT_HEADER_BYTES + 1);
    cr_expect_eq(frame_decode_request(m, &q, &why), ERR_TOO_LARGE);
    cr_expect(strstr(why.text, "16777217"), "%s", why.text);
    rpc_message_free(m);
    free(bytes);
}

Test(frame, every_failing_allocation_is_an_answer)
{
    struct expert_request q = {
        .kind = EXPERT_REQUEST_HELLO, .hello = &hello, .assign = held, .n_layers = 3};
    unsigned failures = 0;
    for (uint64_t at = 1;; at++) {
        struct buf b = {0};
        struct err why;
        struct expert_request *got;
        mem_fail_at(at);
        enum err_code rc = frame_encode_request(&q, &b, &why);
        struct rpc_message *m = rc == ERR_OK ? message(b.data, b.len) : NULL;
        if (rc == ERR_OK) rc = m != NULL ? frame_decode_request(m, &got, &why) : ERR_EXHAUSTED;
        mem_fail_at(0);
        rpc_message_free(m);
        buf_free(&b);
        if (rc == ERR_OK) {
            frame_request_free(got);
            break;
        }
        cr_assert_eq(rc, ERR_EXHAUSTED, "allocation %lu", (unsigned long)at);
        failures++;
    }
    cr_expect_gt(failures, 10u);
}

Test(frame, garbage_never_crashes)
{
    /* Mutations of a good message and plain noise, from a fixed seed. */
    struct buf good = {0};
    struct err why;
    struct expert_request both = step;
    both.hello = &hello;
    cr_assert_eq(frame_encode_request(&both, &good, &why), ERR_OK);
    unsigned seed = 12345, accepted = 0;
    for (unsigned i = 0; i < 20000; i++) {
        char bytes[256];
        size_t n = good.len;
        memcpy(bytes, good.data, n);
        if (i % 2) {
            n = (size_t)rand_r(&seed) % sizeof bytes;
            for (size_t k = 0; k < n; k++)
                bytes[k] = (char)rand_r(&seed);
        } else {
            for (unsigned k = 0; k < 1 + i % 4; k++)
                bytes[(size_t)rand_r(&seed) % n] = (char)rand_r(&seed);
            if (i % 8 == 0) n = (size_t)rand_r(&seed) % n;
        }
        size_t cut = n ? (size_t)rand_r(&seed) % n : 0;
        struct rpc_part parts[2] = {{bytes, cut}, {bytes + cut, n - cut}};
        struct rpc_message *m = rpc_message_from_parts(parts, 2);
        struct expert_request *q;
        struct expert_reply *p;
        if (frame_decode_request(m, &q, &why) == ERR_OK) {
            accepted++;
            frame_request_free(q);
        }
        if (frame_decode_reply(m, &p, &why) == ERR_OK) frame_reply_free(p);
        rpc_message_free(m);
    }
    cr_expect(accepted > 100 && accepted < 10000, "%u", accepted);
    buf_free(&good);
}

Test(frame, a_mismatch_names_the_field_and_both_values)
{
    struct err why;
    struct expert_hello other = hello;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_OK);
    other.id = "else";
    other.epoch = 1;
    other.lane = RPC_LANE_DECODE;
    other.n_layers = 0;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_OK);
    other.model_digest = "abd";
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_MISMATCH);
    cr_expect(strstr(why.text, "model digest") && strstr(why.text, "\"abc\"") &&
                  strstr(why.text, "\"abd\""),
              "%s", why.text);
    other.quantize = NULL;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_MISMATCH);
    cr_expect(strstr(why.text, "quantize") && strstr(why.text, "\"q8_0\""), "%s", why.text);
    other.wire_profile = 2;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_MISMATCH);
    cr_expect(strstr(why.text, "wire profile"), "%s", why.text);
    other.numerics = 4;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_MISMATCH);
    cr_expect(strstr(why.text, "numerics version differs: ours is 3, the peer's is 4"), "%s",
              why.text);
    other.protocol = 99;
    cr_expect_eq(frame_hello_check(&hello, &other, &why), ERR_MISMATCH);
    cr_expect(strstr(why.text, "protocol") && strstr(why.text, "99"), "%s", why.text);
}
