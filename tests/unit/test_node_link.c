/* A node as the coordinator talks to it, against a fake node: an rpc server on the same queue whose answers the test
 * chooses. */
// links: drivers
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "coordinator/drivers/node_link.h"

#define LAYERS  3u
#define EXPERTS 10u
#define ROW     2u /* bytes of a bitmap row */

/* ---- the fake node ------------------------------------------------------------------------------ */

struct fake;
struct fake_call {
    struct fake *fake;
    struct rpc_call *call;
    unsigned lane; /* 0: no hello yet */
    bool used;
};

struct fake {
    struct rpc *r;
    struct rpc_server *server;
    struct fake_call calls[16];
    uint8_t held[LAYERS * ROW], asked[LAYERS * ROW];
    uint64_t incarnation;
    const char *digest, *id;
    bool pinned, mute, refuse; /* no hello; FAILED_PRECONDITION instead */
    unsigned hellos, assigns, pings, steps;
    size_t largest_ping;
};

static struct expert_hello fake_hello(const struct fake *f, struct frame_bitmap maps[LAYERS])
{
    for (unsigned l = 0; l < LAYERS; l++)
        maps[l] = (struct frame_bitmap){f->held + l * ROW, ROW};
    return (struct expert_hello){.protocol = FRAME_PROTOCOL,
                                 .model_digest = f->digest,
                                 .numerics = 1,
                                 .wire_profile = 1,
                                 .quantize = "none",
                                 .id = f->id,
                                 .incarnation = f->incarnation,
                                 .kernels = "avx2",
                                 .held = maps,
                                 .n_layers = LAYERS,
                                 .expert_bytes = 1000,
                                 .threads = 2,
                                 .pinned = f->pinned};
}

static void say(struct fake_call *c, const struct expert_reply *r)
{
    struct buf header = {0};
    /* Without memory the call ends, as a node's does. */
    if (frame_encode_reply(r, &header, NULL) != ERR_OK ||
        !rpc_call_send(c->call,
                       &(struct rpc_out){.header = header.data, .header_bytes = header.len}))
        rpc_call_finish(c->call, 8, "no memory");
    buf_free(&header);
}

static struct fake_call *lane(struct fake *f, unsigned number)
{
    for (unsigned i = 0; i < 16; i++)
        if (f->calls[i].used && f->calls[i].lane == number) return &f->calls[i];
    cr_assert_fail("lane %u is not open", number);
    return NULL;
}

static void tell_holdings(struct fake *f, enum err_code code, const char *text)
{
    struct frame_bitmap maps[LAYERS];
    struct expert_hello h = fake_hello(f, maps);
    say(lane(f, 1),
        &(struct expert_reply){
            .kind = EXPERT_REPLY_HOLDINGS, .hello = &h, .error = code, .error_text = text});
}

static enum err_code fake_on_call(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    struct fake *f = ctx;
    for (unsigned i = 0; i < 16; i++) {
        if (f->calls[i].used) continue;
        f->calls[i] = (struct fake_call){f, c, 0, true};
        *call_ctx = &f->calls[i];
        return ERR_OK;
    }
    return err_set(why, ERR_EXHAUSTED, "too many calls");
}

static void fake_on_message(void *ctx, struct rpc_call *call, struct rpc_message *m)
{
    struct fake_call *c = ctx;
    struct fake *f = c->fake;
    struct expert_request *q;
    struct err why = {0};
    struct frame_bitmap maps[LAYERS];
    enum err_code rc = frame_decode_request(m, &q, &why);
    if (rc ==
        ERR_EXHAUSTED) { /* the test of failing allocations: the node is of the same process */
        rpc_call_finish(call, err_grpc_status(rc), why.text);
        rpc_message_free(m);
        return;
    }
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    if (q->kind == EXPERT_REQUEST_HELLO) {
        f->hellos++;
        c->lane = q->hello->lane;
        struct expert_hello h = fake_hello(f, maps);
        if (f->refuse)
            rpc_call_finish(call, 9, "model digest: ours is B, theirs A");
        else if (!f->mute)
            say(c, &(struct expert_reply){.kind = EXPERT_REPLY_HELLO, .hello = &h});
    } else if (q->kind == EXPERT_REQUEST_ASSIGN) {
        f->assigns++;
        cr_assert_eq(q->n_layers, LAYERS);
        for (unsigned l = 0; l < LAYERS; l++)
            memcpy(f->asked + l * ROW, q->assign[l].bits, q->assign[l].bytes);
    } else if (q->kind == EXPERT_REQUEST_PING) {
        f->pings++;
        if (rpc_message_tensor_bytes(m) > f->largest_ping)
            f->largest_ping = rpc_message_tensor_bytes(m);
        say(c, &(struct expert_reply){.kind = EXPERT_REPLY_PONG, .step = q->step});
    } else {
        f->steps++;
    }
    frame_request_free(q);
    rpc_message_free(m);
}

static void fake_on_done(void *ctx, bool cancelled)
{
    (void)cancelled;
    ((struct fake_call *)ctx)->used = false;
}

static void fake_open(struct fake *f, struct rpc *r, unsigned port)
{
    char address[64];
    struct err why = {0};
    f->r = r;
    struct rpc_method m = {
        "/moesaic.v1.ExpertService/Stream", fake_on_call, {fake_on_message, NULL, fake_on_done}, f};
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    cr_assert_eq(rpc_server_open(r, address, &m, 1, &f->server, &why), ERR_OK, "%s", why.text);
}

/* ---- the coordinator's side --------------------------------------------------------------------- */

struct rig {
    struct rpc *r;
    struct fake fake;
    struct expert_hello hello;
    struct node_link *link;
    bool up[DISPATCH_N_LANES];
    unsigned ups, downs, states, results;
    bool fits; /* what on_result answers */
};

static void on_lane(void *ctx, uint32_t node, enum dispatch_lane l, bool up)
{
    struct rig *g = ctx;
    cr_expect_eq(node, 4u);
    cr_expect_neq(g->up[l], up, "told twice");
    g->up[l] = up;
    if (up)
        g->ups++;
    else
        g->downs++;
}

static void on_state(void *ctx, uint32_t node)
{
    (void)node;
    ((struct rig *)ctx)->states++;
}

static enum err_code on_result(void *ctx, uint32_t node, const struct expert_reply *r,
                               const struct rpc_message *m, struct err *why)
{
    (void)node;
    (void)r;
    (void)m;
    struct rig *g = ctx;
    g->results++;
    return g->fits ? ERR_OK : err_set(why, ERR_INVALID, "it does not fit");
}

static bool is_state(struct rig *g, enum node_link_state s)
{
    return node_link_state(g->link) == s;
}

/* Poll until the condition holds, 5 s at most. */
#define REACH(condition)                                                                           \
    do {                                                                                           \
        uint64_t end = clock_now_us() + 5000000;                                                   \
        while (!(condition) && clock_now_us() < end)                                               \
            rpc_poll(g->r, 10000);                                                                 \
        cr_assert(condition, "state %s: %s", node_link_state_name(node_link_state(g->link)),       \
                  node_link_reason(g->link));                                                      \
    } while (0)

static void rig_open(struct rig *g)
{
    struct err why = {0};
    log_setup(LOG_ERROR, NULL);
    cr_assert_eq(rpc_open(&g->r, &why), ERR_OK);
    g->fake.digest = g->fake.digest ? g->fake.digest : "A";
    g->fake.id = g->fake.id ? g->fake.id : "fake";
    g->fake.incarnation = 1;
    g->fits = true;
    fake_open(&g->fake, g->r, 0);
    g->hello = (struct expert_hello){.protocol = FRAME_PROTOCOL,
                                     .model_digest = "A",
                                     .numerics = 1,
                                     .wire_profile = 1,
                                     .quantize = "none",
                                     .id = "test",
                                     .epoch = 1};
    uint8_t *assign = mem_zalloc(LAYERS * ROW);
    cr_assert_not_null(assign);
    assign[0] = 0x05;
    assign[3] = 0x02;
    char target[64];
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(g->fake.server));
    struct node_link_cfg cfg = {.node = 4,
                                .target = target,
                                .rpc = g->r,
                                .hello = &g->hello,
                                .n_layers = LAYERS,
                                .n_experts = EXPERTS,
                                .assign = assign,
                                .handlers = {on_lane, on_state, on_result},
                                .ctx = g};
    cr_assert_eq(node_link_open(&cfg, &g->link, &why), ERR_OK, "%s", why.text);
}

static void rig_close(struct rig *g)
{
    node_link_close(g->link);
    rpc_server_close(g->fake.server, 1000);
    rpc_close(g->r);
}

static void hold_all(struct rig *g)
{
    g->fake.held[0] = 0x05;
    g->fake.held[3] = 0x02;
}

/* ---- tests -------------------------------------------------------------------------------------- */

Test(node_link, an_empty_node_is_assigned_its_experts_and_is_ready_when_it_holds_them)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g);
    REACH(g->fake.assigns == 1);
    cr_expect(is_state(g, NODE_LINK_LOADING));
    cr_expect_eq(g->fake.asked[0], 0x05);
    cr_expect_eq(g->fake.asked[3], 0x02);
    cr_expect_eq(g->fake.pings, 0u, "not measured while it loads");
    g->fake.held[0] = 0x05;
    tell_holdings(&g->fake, ERR_OK, "");
    unsigned states = g->states;
    REACH(g->states > states);
    cr_expect(is_state(g, NODE_LINK_LOADING), "one is missing");
    cr_expect_eq(g->ups, 0u);
    hold_all(g);
    tell_holdings(&g->fake, ERR_OK, "");
    REACH(g->up[0] && g->up[1]);
    cr_expect(is_state(g, NODE_LINK_READY));
    cr_expect_eq(node_link_n_held(g->link), 3u);
    cr_expect_eq(node_link_bytes(g->link), 1000u);
    REACH(node_link_round_trip_us(g->link) > 0);
    cr_expect_gt(node_link_bytes_per_second(g->link), 0u);
    cr_expect_eq(g->fake.largest_ping, 256u << 10);
    rig_close(g);
}

Test(node_link, a_node_that_holds_enough_is_ready_at_once)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    g->fake.held[5] = 0x01; /* one more */
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    cr_expect_eq(g->fake.assigns, 0u);
    rig_close(g);
}

Test(node_link, a_pinned_node_is_taken_as_it_is)
{
    struct rig rig = {0}, *g = &rig;
    g->fake.pinned = true;
    g->fake.held[1] = 0x01;
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    cr_expect_eq(g->fake.assigns, 0u);
    cr_expect_eq(node_link_held(g->link)[1], 0x01);
    rig_close(g);
}

Test(node_link, a_lost_bulk_lane_comes_back_and_decoding_goes_on)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    rpc_call_finish(lane(&g->fake, RPC_LANE_BULK)->call, 14, "broken");
    REACH(!g->up[DISPATCH_BULK]);
    cr_expect(g->up[DISPATCH_DECODE]);
    cr_expect(is_state(g, NODE_LINK_READY));
    REACH(g->up[DISPATCH_BULK]);
    cr_expect_eq(g->downs, 1u);
    rig_close(g);
}

Test(node_link, a_lost_decode_lane_takes_both_down_and_both_come_back)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    rpc_call_finish(lane(&g->fake, RPC_LANE_DECODE)->call, 14, "broken");
    REACH(!g->up[0] && !g->up[1]);
    cr_expect(is_state(g, NODE_LINK_CONNECTING));
    REACH(g->up[0] && g->up[1]);
    rig_close(g);
}

Test(node_link, the_bulk_lane_of_another_process_is_not_used)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    g->fake.incarnation =
        2; /* as if the node had been restarted, and the bulk lane noticed first */
    unsigned hellos = g->fake.hellos;
    rpc_call_finish(lane(&g->fake, RPC_LANE_BULK)->call, 14, "broken");
    REACH(g->fake.hellos > hellos);
    for (int i = 0; i < 20; i++)
        rpc_poll(g->r, 5000);
    cr_expect_not(g->up[DISPATCH_BULK]);
    rpc_call_finish(lane(&g->fake, RPC_LANE_DECODE)->call, 14, "broken");
    REACH(g->up[0] && g->up[1]);
    rig_close(g);
}

Test(node_link, another_model_is_refused_with_both_values_and_never_used)
{
    struct rig rig = {.fake = {.digest = "B"}}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(is_state(g, NODE_LINK_REFUSED));
    cr_expect_not_null(strstr(node_link_reason(g->link), "A"));
    cr_expect_not_null(strstr(node_link_reason(g->link), "B"));
    cr_expect_eq(g->ups, 0u);
    rig_close(g);
}

Test(node_link, a_node_that_refuses_us_is_asked_again_until_it_agrees)
{
    struct rig rig = {.fake = {.refuse = true}}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(is_state(g, NODE_LINK_REFUSED) && g->fake.hellos >= 4);
    cr_expect_not_null(strstr(node_link_reason(g->link), "model digest"));
    g->fake.refuse = false;
    REACH(g->up[0] && g->up[1]);
    cr_expect(is_state(g, NODE_LINK_READY));
    rig_close(g);
}

Test(node_link, a_node_that_cannot_load_says_why)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g);
    REACH(g->fake.assigns == 1);
    tell_holdings(&g->fake, ERR_EXHAUSTED,
                  "3 more experts need 2 GiB, and 1 GiB are available\n\x01\xff");
    REACH(is_state(g, NODE_LINK_REFUSED));
    cr_expect_str_eq(node_link_reason(g->link),
                     "3 more experts need 2 GiB, and 1 GiB are available???");
    rpc_call_finish(lane(&g->fake, RPC_LANE_BULK)->call, 14, "broken");
    for (int i = 0; i < 100 && !g->fake.calls[1].used; i++)
        rpc_poll(g->r, 5000);
    for (int i = 0; i < 40; i++)
        rpc_poll(g->r, 10000);
    cr_expect(is_state(g, NODE_LINK_REFUSED), "the bulk lane changes nothing");
    rig_close(g);
}

Test(node_link, a_draining_node_gets_nothing_more)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    say(lane(&g->fake, 2), &(struct expert_reply){.kind = EXPERT_REPLY_DRAINING});
    REACH(is_state(g, NODE_LINK_DRAINING));
    cr_expect_not(g->up[0] || g->up[1]);
    rig_close(g);
}

Test(node_link, an_answer_that_does_not_fit_drops_the_lane)
{
    struct rig rig = {0}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    g->fits = false;
    say(lane(&g->fake, 1),
        &(struct expert_reply){
            .kind = EXPERT_REPLY_ERROR, .step = 9, .error = ERR_INTERNAL, .error_text = "x"});
    REACH(g->results == 1 && !g->up[0]);
    REACH(g->up[0] && g->up[1]);
    /* Garbage, and an answer before the hello. */
    unsigned downs = g->downs;
    cr_expect(rpc_call_send(lane(&g->fake, 2)->call,
                            &(struct rpc_out){.header = "\xff\xff\xff", .header_bytes = 3}));
    REACH(g->downs > downs);
    g->fake.mute = true;
    rpc_call_finish(lane(&g->fake, 1)->call, 14, "broken");
    unsigned hellos = g->fake.hellos;
    REACH(g->fake.hellos > hellos);
    cr_expect_not(g->up[0]);
    rig_close(g);
}

Test(node_link, a_name_from_the_wire_is_cut_and_cleaned)
{
    char name[200];
    memset(name, 'n', sizeof name);
    name[3] = '\n';
    name[199] = '\0';
    struct rig rig = {.fake = {.id = name}}, *g = &rig;
    hold_all(g);
    rig_open(g);
    REACH(g->up[0] && g->up[1]);
    cr_expect_eq(strlen(node_link_id(g->link)), 63u);
    cr_expect_eq(strncmp(node_link_id(g->link), "nnn?nn", 6), 0);
    rig_close(g);
}

Test(node_link, sending_on_a_lane_that_is_down_frees_the_rows)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g);
    struct expert_request q = {.kind = EXPERT_REQUEST_PING, .step = 1};
    void *rows = mem_zalloc(100);
    cr_expect_not(node_link_send(g->link, DISPATCH_BULK, &q, rows, 100),
                  "not connected yet"); /* a leak shows in the sanitizer */
    REACH(g->fake.hellos == 2);
    rig_close(g);
}

Test(node_link, lack_of_memory_delays_and_breaks_nothing)
{
    struct rig rig = {0}, *g = &rig;
    rig_open(g);
    for (uint64_t n = 1; n < 60;
         n++) { /* each time the lanes come up, allocation n and those after it fail for a while */
        mem_fail_at(n);
        for (int i = 0; i < 3; i++)
            rpc_poll(g->r, 500);
        mem_fail_at(0);
    }
    hold_all(g);
    REACH(g->fake.assigns >= 1 || g->up[0]);
    if (!g->up[0]) tell_holdings(&g->fake, ERR_OK, "");
    REACH(g->up[0] && g->up[1]);
    rig_close(g);
}
