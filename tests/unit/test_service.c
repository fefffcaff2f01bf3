/* An expert node as a coordinator meets it: the real service on a thread of its own, spoken to over a socket, politely
 * and not. */
// links: node
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/modelfile/plan.h"
#include "common/rpc/frame.h"
#include "expert_node/service.h"

#define METHOD "/moesaic.v1.ExpertService/Stream"

/* ---- the node, and one stream to it -------------------------------------------------------------- */

struct rig {
    struct model_file *file;
    const struct hparams *hp;
    const struct kernels *kernels;
    struct workers *workers;
    struct rpc *node_rpc, *r;
    struct service *service;
    pthread_t thread;
    bool stopped;
    char target[64], digest[33];
    const char *quantize;
    struct expert_set pinned;

    struct rpc_link *link;
    unsigned opens, downs, replies;
    int status;
    char down_text[1024];
    struct expert_reply *reply; /* the last */
    struct rpc_message *message;
};

static void *serve(void *ctx)
{
    service_run(ctx);
    return NULL;
}

static void *close_service(void *ctx)
{
    service_close(ctx);
    return NULL;
}

static void forget(struct rig *g)
{
    frame_reply_free(g->reply);
    rpc_message_free(g->message);
    g->reply = NULL;
    g->message = NULL;
}

static void on_open(void *ctx, struct rpc_link *l)
{
    (void)l;
    ((struct rig *)ctx)->opens++;
}

static void on_message(void *ctx, struct rpc_link *l, struct rpc_message *m)
{
    (void)l;
    struct rig *g = ctx;
    struct err why = {0};
    forget(g);
    cr_assert_eq(frame_decode_reply(m, &g->reply, &why), ERR_OK, "%s", why.text);
    g->message = m;
    g->replies++;
}

static void on_down(void *ctx, struct rpc_link *l, int status, const char *text)
{
    (void)l;
    struct rig *g = ctx;
    g->downs++;
    g->status = status;
    snprintf(g->down_text, sizeof g->down_text, "%s", text);
}

static bool reach(struct rig *g, const unsigned *what, unsigned n)
{
    uint64_t end = clock_now_us() + 5000000;
    while (*what < n && clock_now_us() < end)
        rpc_poll(g->r, 10000);
    return *what >= n;
}

static void send(struct rig *g, const struct expert_request *q, const void *tensor, size_t bytes)
{
    struct buf header = {0};
    struct err why = {0};
    cr_assert_eq(frame_encode_request(q, &header, &why), ERR_OK, "%s", why.text);
    struct rpc_part part = {tensor, bytes};
    struct rpc_out out = {.header = header.data,
                          .header_bytes = header.len,
                          .tensor = bytes > 0 ? &part : NULL,
                          .n_parts = bytes > 0};
    cr_assert(rpc_link_send(g->link, &out));
    buf_free(&header);
}

/* Send and wait for the answer. */
static const struct expert_reply *ask(struct rig *g, const struct expert_request *q,
                                      const void *tensor, size_t bytes)
{
    unsigned n = g->replies;
    send(g, q, tensor, bytes);
    cr_assert(reach(g, &g->replies, n + 1), "no answer; %u downs, %s", g->downs, g->down_text);
    return g->reply;
}

static struct expert_hello our_hello(const struct rig *g)
{
    return (struct expert_hello){.protocol = FRAME_PROTOCOL,
                                 .model_digest = g->digest,
                                 .numerics = NUMERICS_VERSION,
                                 .wire_profile = WIRE_PROFILE,
                                 .quantize = g->quantize,
                                 .id = "test",
                                 .lane = RPC_LANE_DECODE};
}

static void connect_to(struct rig *g)
{
    static const struct rpc_link_handlers handlers = {on_open, on_message, on_down};
    struct err why = {0};
    cr_assert_eq(
        rpc_link_open(g->r, g->target, RPC_LANE_DECODE, METHOD, &handlers, g, &g->link, &why),
        ERR_OK);
    cr_assert(reach(g, &g->opens, 1));
}

static void agree(struct rig *g)
{
    struct expert_hello h = our_hello(g);
    cr_assert_eq(
        ask(g, &(struct expert_request){.kind = EXPERT_REQUEST_HELLO, .hello = &h}, NULL, 0)->kind,
        EXPERT_REPLY_HELLO);
}

static void rig_open(struct rig *g, const char *model, const char *quantize, const char *pinned)
{
    char path[1024];
    struct err why = {0};
    log_setup(LOG_ERROR, NULL);
    snprintf(path, sizeof path, "%s/models/%s", TEST_DATA, model);
    cr_assert_eq(model_file_open(path, &g->file, &why), ERR_OK, "%s", why.text);
    g->hp = model_file_hparams(g->file);
    g->quantize = quantize;
    model_file_digest(g->file, quantize, g->digest);
    cr_assert_eq(kernels_pick(NULL, &g->kernels, &why), ERR_OK);
    cr_assert_eq(rpc_open(&g->node_rpc, &why), ERR_OK);
    cr_assert_eq(rpc_open(&g->r, &why), ERR_OK);
    cr_assert_eq(workers_open(2, 0, &g->workers, &why), ERR_OK);
    if (pinned != NULL)
        cr_assert_eq(experts_spec_parse(pinned, g->hp, &g->pinned, &why), ERR_OK, "%s", why.text);
    struct service_cfg cfg = {.file = g->file,
                              .quantize = quantize,
                              .kernels = g->kernels,
                              .workers = g->workers,
                              .rpc = g->node_rpc,
                              .listen = "127.0.0.1:0",
                              .id = "node",
                              .pinned = pinned != NULL ? &g->pinned : NULL};
    cr_assert_eq(service_open(&cfg, &g->service, &why), ERR_OK, "%s", why.text);
    snprintf(g->target, sizeof g->target, "127.0.0.1:%u", service_port(g->service));
    cr_assert_eq(pthread_create(&g->thread, NULL, serve, g->service), 0);
    connect_to(g);
}

static void stop_node(struct rig *g)
{
    if (g->stopped) return;
    g->stopped = true;
    service_stop(g->service);
    pthread_join(g->thread, NULL);
}

static void rig_close(struct rig *g)
{
    rpc_link_close(g->link);
    forget(g);
    stop_node(g);
    service_close(g->service);
    workers_close(g->workers);
    rpc_close(g->r);
    rpc_close(g->node_rpc);
    expert_set_deinit(&g->pinned);
    model_file_close(g->file);
}

/* One step: `rows` rows for one expert, each asked once. */
static const struct expert_reply *ask_step(struct rig *g, uint32_t layer, uint32_t expert,
                                           uint32_t rows, enum frame_format f, const void *tensor,
                                           size_t bytes)
{
    static uint64_t step;
    uint16_t e = (uint16_t)expert;
    uint32_t experts[1] = {e}, n[1] = {rows}, index[64];
    for (uint32_t i = 0; i < rows; i++)
        index[i] = i;
    struct expert_request q = {.kind = EXPERT_REQUEST_STEP,
                               .step = ++step,
                               .layer = layer,
                               .format = f,
                               .rows = rows,
                               .experts = experts,
                               .expert_rows = n,
                               .n_experts = 1,
                               .row_index = index,
                               .n_index = rows};
    const struct expert_reply *r = ask(g, &q, tensor, bytes);
    cr_expect_eq(r->step, step);
    return r;
}

/* ---- tests -------------------------------------------------------------------------------------- */

Test(service, a_step_is_computed_and_other_steps_are_refused_one_by_one)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", "0:0-2,1:5");
    agree(g);
    cr_expect_eq(g->reply->hello->n_layers, 2u);
    cr_expect(g->reply->hello->pinned);
    cr_expect_eq(g->reply->hello->held[0].bits[0], 0x07);
    float rows[3 * 64];
    for (int i = 0; i < 3 * 64; i++)
        rows[i] = (float)i / 64;

    const struct expert_reply *r = ask_step(g, 0, 1, 3, FRAME_F32, rows, sizeof rows);
    cr_expect_eq(r->kind, EXPERT_REPLY_RESULT, "%s", r->error_text);
    cr_expect_eq(r->rows, 3u);
    cr_expect_eq(rpc_message_tensor_bytes(g->message), 3u * 64 * 4);
    float whole[3 * 64], alone[64];
    rpc_message_tensor_copy(g->message, 0, whole, sizeof whole);
    ask_step(g, 0, 1, 1, FRAME_F32, rows + 128, 256);
    rpc_message_tensor_copy(g->message, 0, alone, sizeof alone);
    cr_expect_arr_eq(alone, whole + 128, sizeof alone,
                     "a row's result does not depend on the others");

    r = ask_step(g, 0, 3, 1, FRAME_F32, rows, 256);
    cr_expect_eq(r->error, ERR_NOT_FOUND);
    cr_expect_not_null(strstr(r->error_text, "expert 3 of layer 0"), "%s", r->error_text);
    r = ask_step(g, 1, 0, 1, FRAME_F32, rows, 256);
    cr_expect_eq(r->error, ERR_NOT_FOUND);
    r = ask_step(g, 2, 0, 1, FRAME_F32, rows, 256);
    cr_expect_eq(r->error, ERR_INVALID, "no such layer");
    r = ask_step(g, 0, 6, 1, FRAME_F32, rows, 256);
    cr_expect_eq(r->error, ERR_INVALID);
    cr_expect_not_null(strstr(r->error_text, "the model has 6"), "%s", r->error_text);
    r = ask_step(g, 0, 1, 2, FRAME_F32, rows, 256);
    cr_expect_eq(r->error, ERR_INVALID);
    cr_expect_not_null(strstr(r->error_text, "512"), "%s", r->error_text);
    cr_expect_not_null(strstr(r->error_text, "256"), "%s", r->error_text);
    r = ask_step(g, 0, 1, 1, FRAME_BF16, rows, 128);
    cr_expect_eq(r->error, ERR_INVALID, "another format");
    r = ask_step(g, 0, 1, 1, FRAME_F32, rows, 0);
    cr_expect_eq(r->error, ERR_INVALID, "no tensor");
    r = ask_step(g, 0, 1, 1, FRAME_F32, rows, 256);
    cr_expect_eq(r->kind, EXPERT_REPLY_RESULT, "the stream lives on");
    cr_expect_eq(g->downs, 0u);
    rig_close(g);
}

Test(service, quantised_rows_with_minus_128_are_refused)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe-bf16", "q8_0", "all");
    agree(g);
    uint32_t d = g->hp->hidden, each = d + d / 32 * 4;
    uint8_t *rows = mem_zalloc(40 * each);
    float scale = 0.5f;
    for (uint32_t i = 0; i < 40 * d; i++)
        rows[i] = (uint8_t)(int8_t)(i % 255 - 127);
    for (uint32_t i = 0; i < 40 * d / 32; i++)
        memcpy(rows + 40 * d + 4 * i, &scale, 4);
    const struct expert_reply *r = ask_step(g, 0, 0, 40, FRAME_Q8, rows, 40 * each);
    cr_expect_eq(r->kind, EXPERT_REPLY_RESULT, "%s", r->error_text);
    rows[39 * d + d - 1] = 0x80;
    r = ask_step(g, 0, 0, 40, FRAME_Q8, rows, 40 * each);
    cr_expect_eq(r->error, ERR_INVALID);
    cr_expect_not_null(strstr(r->error_text, "row 39 has the value -128"), "%s", r->error_text);
    rows[39 * d + d - 1] = 0x81;
    memset(rows + 40 * d, 0x80, 4); /* scales may be anything */
    r = ask_step(g, 0, 0, 40, FRAME_Q8, rows, 40 * each);
    cr_expect_eq(r->kind, EXPERT_REPLY_RESULT, "%s", r->error_text);
    mem_free(rows);
    rig_close(g);
}

Test(service, a_result_larger_than_an_answer_is_refused_before_it_is_made)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", "all");
    agree(g);
    uint32_t n = (64u << 20) / (64 * 4) + 1, experts[1] = {0};
    uint32_t *index = mem_zalloc_array(n, sizeof *index);
    float row[64] = {1};
    struct expert_request q = {.kind = EXPERT_REQUEST_STEP,
                               .step = 1,
                               .format = FRAME_F32,
                               .rows = 1,
                               .experts = experts,
                               .expert_rows = &n,
                               .n_experts = 1,
                               .row_index = index,
                               .n_index = n};
    const struct expert_reply *r = ask(g, &q, row, sizeof row);
    cr_expect_eq(r->error, ERR_TOO_LARGE, "%s", r->error_text);
    mem_free(index);
    rig_close(g);
}

Test(service, another_model_is_refused_with_both_values)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", NULL);
    struct expert_hello h = our_hello(g);
    h.model_digest = "0123456789abcdef0123456789abcdef";
    send(g, &(struct expert_request){.kind = EXPERT_REQUEST_HELLO, .hello = &h}, NULL, 0);
    cr_assert(reach(g, &g->downs, 1));
    cr_expect_eq(g->status, 9);
    cr_expect_not_null(strstr(g->down_text, h.model_digest), "%s", g->down_text);
    cr_expect_not_null(strstr(g->down_text, g->digest), "%s", g->down_text);
    rig_close(g);
}

Test(service, garbage_and_a_missing_hello_end_the_stream_only)
{
    struct rig rig = {0}, *g = &rig;
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {{"\xff\xff\xff\xff", 4}, {"", 0},
               {"\x08\x02", 2},         {"\x08\x63", 2},
               {"\x7a\x05zzzzz", 7},    {"\x08\x01\x12\x7f", 4}};
    rig_open(g, "tiny-qwen3_moe", "none", "all");
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert(reach(g, &g->opens, i + 1));
        cr_assert(rpc_link_send(
            g->link, &(struct rpc_out){.header = bad[i].bytes, .header_bytes = bad[i].n}));
        cr_assert(reach(g, &g->downs, i + 1), "case %u", i);
        cr_expect_neq(g->status, 0);
        cr_expect_gt(strlen(g->down_text), 0u);
    }
    rpc_link_close(g->link); /* its backoff has grown */
    g->opens = 0;
    connect_to(g);
    agree(g);
    rig_close(g);
}

Test(service, pings_are_echoed_up_to_a_size)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", NULL);
    agree(g);
    uint8_t *payload = mem_zalloc((1u << 20) + 1);
    for (uint32_t i = 0; i < 256u << 10; i++)
        payload[i] = (uint8_t)(i * 7);
    cr_expect_eq(
        ask(g, &(struct expert_request){.kind = EXPERT_REQUEST_PING, .step = 77}, NULL, 0)->step,
        77u);
    cr_expect_eq(ask(g, &(struct expert_request){.kind = EXPERT_REQUEST_PING, .step = 78}, payload,
                     256u << 10)
                     ->kind,
                 EXPERT_REPLY_PONG);
    cr_assert_eq(rpc_message_tensor_bytes(g->message), 256u << 10);
    uint8_t *back = mem_alloc(256u << 10);
    rpc_message_tensor_copy(g->message, 0, back, 256u << 10);
    cr_expect(memcmp(back, payload, 256u << 10) == 0);
    send(g, &(struct expert_request){.kind = EXPERT_REQUEST_PING}, payload, (1u << 20) + 1);
    cr_assert(reach(g, &g->downs, 1));
    cr_expect_not_null(strstr(g->down_text, "1048577"), "%s", g->down_text);
    mem_free(payload);
    mem_free(back);
    rig_close(g);
}

Test(service, an_assignment_loads_what_is_missing_and_gives_up_the_rest)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", NULL);
    agree(g);
    cr_expect_not(g->reply->hello->pinned);
    uint8_t bits[2] = {0x03, 0x20};
    struct frame_bitmap maps[3] = {{&bits[0], 1}, {&bits[1], 1}, {&bits[0], 1}};
    struct expert_request q = {.kind = EXPERT_REQUEST_ASSIGN, .assign = maps, .n_layers = 2};
    const struct expert_reply *r = ask(g, &q, NULL, 0);
    cr_expect_eq(r->kind, EXPERT_REPLY_HOLDINGS);
    cr_expect_eq(r->error, ERR_OK);
    cr_expect_eq(r->hello->held[0].bits[0], 0x03);
    cr_expect_eq(r->hello->held[1].bits[0], 0x20);
    cr_expect_eq(service_held(g->service), 3u);
    bits[0] = 0xfe; /* numbers beyond the model's are not there to be loaded */
    bits[1] = 0;
    r = ask(g, &q, NULL, 0);
    cr_expect_eq(r->hello->held[0].bits[0], 0x3e);
    cr_expect_eq(r->hello->held[1].bits[0], 0x00);
    q.n_layers = 3;
    r = ask(g, &q, NULL, 0);
    cr_expect_eq(r->error, ERR_INVALID);
    float row[64] = {1};
    cr_expect_eq(ask_step(g, 0, 0, 1, FRAME_F32, row, sizeof row)->error, ERR_NOT_FOUND);
    cr_expect_eq(ask_step(g, 0, 5, 1, FRAME_F32, row, sizeof row)->kind, EXPERT_REPLY_RESULT);
    rig_close(g);
}

Test(service, a_pinned_node_takes_no_assignment)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", "0:0");
    agree(g);
    uint8_t bits = 0xff;
    struct frame_bitmap maps[2] = {{&bits, 1}, {&bits, 1}};
    const struct expert_reply *r = ask(
        g, &(struct expert_request){.kind = EXPERT_REQUEST_ASSIGN, .assign = maps, .n_layers = 2},
        NULL, 0);
    cr_expect_eq(r->error, ERR_INVALID);
    cr_expect_eq(service_held(g->service), 1u);
    rig_close(g);
}

Test(service, a_node_that_ends_says_so_and_is_gone_soon)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", "all");
    agree(g);
    unsigned n = g->replies;
    stop_node(g);
    /* Its end polls its queue alone, and needs our side to be polled too: one thread each. */
    struct service *s = g->service;
    uint64_t began = clock_now_us();
    pthread_t closer;
    cr_assert_eq(pthread_create(&closer, NULL, close_service, s), 0);
    cr_assert(reach(g, &g->downs, 1));
    pthread_join(closer, NULL);
    cr_expect_lt(clock_now_us() - began, 2000000u,
                 "a coordinator's open streams do not hold it up");
    cr_expect_eq(g->replies, n + 1);
    cr_expect_eq(g->reply->kind, EXPERT_REPLY_DRAINING);
    cr_expect_eq(g->status, 14);
    cr_expect_str_eq(g->down_text, "the node is ending");
    g->service = NULL;
    rig_close(g);
}

Test(service, lack_of_memory_costs_steps_but_no_crash)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", "all");
    agree(g);
    float row[64] = {1};
    uint32_t experts[1] = {1}, one[1] = {1}, index[1] = {0};
    struct expert_request q = {.kind = EXPERT_REQUEST_STEP,
                               .format = FRAME_F32,
                               .rows = 1,
                               .experts = experts,
                               .expert_rows = one,
                               .n_experts = 1,
                               .row_index = index,
                               .n_index = 1};
    for (uint64_t n = 1; n < 40; n++) {
        unsigned downs = g->downs;
        q.step = n;
        send(g, &q, row, sizeof row);
        mem_fail_at(
            n); /* on the node, while we sleep: an answer, an error, a broken stream, or silence */
        usleep(5000);
        mem_fail_at(0);
        for (int i = 0; i < 4; i++)
            rpc_poll(g->r, 1000);
        if (g->downs == downs && rpc_link_is_open(g->link)) continue;
        rpc_link_close(g->link);
        g->opens = 0;
        connect_to(g);
        agree(g);
    }
    rpc_link_close(g->link);
    g->opens = 0;
    connect_to(g);
    agree(g);
    const struct expert_reply *r = ask_step(g, 0, 1, 1, FRAME_F32, row, sizeof row);
    cr_expect_eq(r->kind, EXPERT_REPLY_RESULT, "%s", r->error_text);
    rig_close(g);
}

Test(service, a_taken_port_is_named)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g, "tiny-qwen3_moe", "none", NULL);
    struct service_cfg cfg = {.file = g->file,
                              .quantize = "none",
                              .kernels = g->kernels,
                              .workers = g->workers,
                              .rpc = g->r,
                              .listen = g->target,
                              .id = "second"};
    struct service *second = NULL;
    struct err why = {0};
    cr_expect_eq(service_open(&cfg, &second, &why), ERR_UNAVAILABLE);
    cr_expect_not_null(strstr(why.text, g->target), "%s", why.text);
    rig_close(g);
}
