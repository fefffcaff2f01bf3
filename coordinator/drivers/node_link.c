#include "coordinator/drivers/node_link.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define METHOD        "/moesaic.v1.ExpertService/Stream"
#define PINGS_SMALL   32u
#define PINGS_LARGE   8u
#define PING_LARGE    (256u << 10)
#define REASON_MAX    ERR_TEXT_MAX
#define NAME_MAX_TEXT 64
#define SAY_AGAIN_US                                                                               \
    60000000u /* the same complaint is logged once a minute: links come back every 2 s */

/* The decode lane decides what state the node is in; the bulk lane is used while it speaks to the same process. */
struct lane {
    struct rpc_link *link;
    bool agreed, announced;
    uint64_t incarnation; /* of the process that answered the hello */
};

struct node_link {
    struct node_link_cfg cfg;
    char target[300];
    struct lane lanes[DISPATCH_N_LANES];
    enum node_link_state state;
    char reason[REASON_MAX];
    size_t row, bitmap_bytes;
    uint8_t *held;
    bool pinned, load_failed;
    char id[NAME_MAX_TEXT], kernels[NAME_MAX_TEXT];
    uint64_t incarnation, bytes, round_trip_us, bytes_per_second;
    uint32_t threads;

    char said[REASON_MAX]; /* the last complaint in the log, and when */
    uint64_t said_us;

    bool measured;       /* pings were begun since the hello */
    unsigned pings_left; /* of PINGS_SMALL + PINGS_LARGE */
    uint64_t ping_sent_us, best_small_us, best_large_us;
};

static struct lane *lane_of(struct node_link *l, const struct rpc_link *link)
{
    return l->lanes[DISPATCH_DECODE].link == link ? &l->lanes[DISPATCH_DECODE]
                                                  : &l->lanes[DISPATCH_BULK];
}

static enum dispatch_lane lane_number(const struct node_link *l, const struct lane *lane)
{
    return lane == &l->lanes[DISPATCH_DECODE] ? DISPATCH_DECODE : DISPATCH_BULK;
}

bool node_link_send(struct node_link *l, enum dispatch_lane lane, const struct expert_request *q,
                    void *tensor, size_t tensor_bytes)
{
    struct buf header = {0};
    struct err why;
    bool ok = frame_encode_request(q, &header, &why) == ERR_OK && l->lanes[lane].link != NULL;
    if (ok) {
        struct rpc_part part = {tensor, tensor_bytes};
        struct rpc_out out = {header.data,
                              header.len,
                              tensor_bytes > 0 ? &part : NULL,
                              tensor_bytes > 0 ? 1 : 0,
                              tensor_bytes > 0 ? mem_free : NULL,
                              tensor};
        ok = rpc_link_send(l->lanes[lane].link, &out); /* releases the tensor, also on failure */
        if (tensor_bytes == 0) mem_free(tensor);
    } else {
        mem_free(tensor);
    }
    buf_free(&header);
    return ok;
}

/* ---- state ------------------------------------------------------------------------------------ */

/* A peer's text: what is not printable ASCII would spoil logs and JSON, and a cut could fall into a character. */
static void copy_text(char *out, size_t cap, const char *text)
{
    size_t n = 0;
    for (; n + 1 < cap && text[n] != '\0'; n++)
        out[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
    out[n] = '\0';
}

static void complain(struct node_link *l, const char *what, const char *text)
{
    char line[REASON_MAX], clean[900];
    copy_text(clean, sizeof clean, text);
    snprintf(line, sizeof line, "%s: %s", what, clean);
    uint64_t now = clock_now_us();
    if (strcmp(line, l->said) == 0 && now - l->said_us < SAY_AGAIN_US) return;
    memcpy(l->said, line, sizeof l->said);
    l->said_us = now;
    log_error("nodes", "node=%u address=%s msg=\"%s\"", l->cfg.node, l->target, line);
}

static void set_state(struct node_link *l, enum node_link_state s, const char *reason)
{
    l->state = s;
    copy_text(l->reason, sizeof l->reason, reason);
    l->cfg.handlers.on_state(l->cfg.ctx, l->cfg.node);
}

/* Tell the engine which lanes can be used: agreed ones of a node that is ready. */
static void announce(struct node_link *l)
{
    for (int i = 0; i < DISPATCH_N_LANES; i++) {
        struct lane *lane = &l->lanes[i];
        bool up =
            lane->agreed && l->state == NODE_LINK_READY && lane->incarnation == l->incarnation;
        if (up == lane->announced) continue;
        lane->announced = up;
        l->cfg.handlers.on_lane(l->cfg.ctx, l->cfg.node, (enum dispatch_lane)i, up);
    }
}

static bool holds_what_it_should(const struct node_link *l)
{
    if (l->pinned || l->cfg.assign == NULL) return true;
    for (size_t i = 0; i < l->bitmap_bytes; i++)
        if (l->cfg.assign[i] & ~l->held[i]) return false;
    return true;
}

/* ---- measuring -------------------------------------------------------------------------------- */

static void ping(struct node_link *l)
{
    bool large = l->pings_left <= PINGS_LARGE;
    void *payload = large ? mem_zalloc(PING_LARGE) : NULL;
    if (large && payload == NULL) {
        l->pings_left = 0; /* no figure is better than a wrong one */
        return;
    }
    struct expert_request q = {.kind = EXPERT_REQUEST_PING, .step = l->pings_left};
    l->ping_sent_us = clock_now_us();
    if (!node_link_send(l, DISPATCH_DECODE, &q, payload, large ? PING_LARGE : 0)) l->pings_left = 0;
}

/* Not while the node loads: its echo would wait behind the packing. */
static void measure(struct node_link *l)
{
    if (l->measured) return;
    l->measured = true;
    l->pings_left = PINGS_SMALL + PINGS_LARGE;
    l->best_small_us = l->best_large_us = 0;
    ping(l);
}

static void on_pong(struct node_link *l)
{
    if (l->pings_left == 0) return;
    uint64_t took = clock_now_us() - l->ping_sent_us;
    if (took == 0) took = 1;
    uint64_t *best = l->pings_left <= PINGS_LARGE ? &l->best_large_us : &l->best_small_us;
    if (*best == 0 || took < *best) *best = took;
    if (--l->pings_left > 0) {
        ping(l);
        return;
    }
    l->round_trip_us = l->best_small_us;
    /* What the payload adds to an empty round trip; where that is lost in the noise, all of it. */
    uint64_t extra = l->best_large_us;
    if (l->best_large_us > 2 * l->best_small_us) extra -= l->best_small_us;
    l->bytes_per_second = (uint64_t)2 * PING_LARGE * 1000000u / extra;
    l->cfg.handlers.on_state(l->cfg.ctx, l->cfg.node);
}

/* ---- messages --------------------------------------------------------------------------------- */

static void send_assign(struct node_link *l)
{
    struct frame_bitmap *maps = mem_zalloc_array(l->cfg.n_layers, sizeof *maps);
    if (maps == NULL) {
        rpc_link_reset(l->lanes[DISPATCH_DECODE].link, "no memory for the assignment");
        return;
    }
    for (uint32_t i = 0; i < l->cfg.n_layers; i++)
        maps[i] = (struct frame_bitmap){l->cfg.assign + i * l->row, l->row};
    struct expert_request q = {.kind = EXPERT_REQUEST_ASSIGN,
                               .assign = maps,
                               .n_layers = l->cfg.n_layers,
                               .epoch = l->cfg.hello->epoch};
    if (!node_link_send(l, DISPATCH_DECODE, &q, NULL, 0))
        rpc_link_reset(l->lanes[DISPATCH_DECODE].link,
                       "the assignment could not be sent"); /* tried again after the hello */
    mem_free(maps);
}

static void take_facts(struct node_link *l, const struct expert_hello *h)
{
    copy_text(l->id, sizeof l->id, h->id);
    copy_text(l->kernels, sizeof l->kernels, h->kernels);
    l->threads = h->threads;
    l->bytes = h->expert_bytes;
    l->pinned = h->pinned;
    l->incarnation = h->incarnation;
    memset(l->held, 0, l->bitmap_bytes);
    for (uint32_t layer = 0; layer < h->n_layers && layer < l->cfg.n_layers; layer++) {
        size_t n = h->held[layer].bytes < l->row ? h->held[layer].bytes : l->row;
        memcpy(l->held + layer * l->row, h->held[layer].bits, n);
    }
}

/* From what the node holds: ready, or still loading. */
static void look_at_holdings(struct node_link *l)
{
    if (holds_what_it_should(l)) {
        if (l->state != NODE_LINK_READY)
            log_info("nodes", "node=%u address=%s experts=%u msg=\"ready\"", l->cfg.node, l->target,
                     node_link_n_held(l));
        set_state(l, NODE_LINK_READY, "");
        measure(l);
    } else {
        set_state(l, NODE_LINK_LOADING, "loading its experts");
    }
}

static void on_hello(struct node_link *l, struct lane *lane, const struct expert_hello *h)
{
    struct err why;
    if (frame_hello_check(l->cfg.hello, h, &why) != ERR_OK) {
        complain(l, "refused", why.text);
        lane->agreed = false;
        set_state(l, NODE_LINK_REFUSED, why.text);
        announce(l);
        return;
    }
    lane->agreed = true;
    lane->incarnation = h->incarnation;
    if (lane == &l->lanes[DISPATCH_DECODE]) {
        take_facts(l, h);
        l->measured = false;
        look_at_holdings(l);
        if (l->state == NODE_LINK_LOADING) send_assign(l);
    } else if (l->lanes[DISPATCH_DECODE].agreed && l->state == NODE_LINK_READY) {
        set_state(l, NODE_LINK_READY, "");
    } else if (l->lanes[DISPATCH_DECODE].agreed && l->state == NODE_LINK_REFUSED &&
               !l->load_failed) {
        look_at_holdings(l); /* it was this lane that had been refused */
    }
    announce(l);
}

static void on_holdings(struct node_link *l, const struct expert_reply *r)
{
    take_facts(l, r->hello);
    l->lanes[DISPATCH_DECODE].incarnation = l->incarnation;
    l->load_failed = r->error != ERR_OK;
    if (l->load_failed) {
        complain(l, "could not load its experts", r->error_text);
        set_state(l, NODE_LINK_REFUSED, r->error_text);
    } else {
        look_at_holdings(l);
    }
    announce(l);
}

static void on_open(void *ctx, struct rpc_link *link)
{
    struct node_link *l = ctx;
    struct expert_hello hello = *l->cfg.hello;
    enum dispatch_lane lane = lane_number(l, lane_of(l, link));
    hello.lane = lane == DISPATCH_DECODE ? RPC_LANE_DECODE : RPC_LANE_BULK;
    struct expert_request q = {.kind = EXPERT_REQUEST_HELLO, .hello = &hello};
    if (!node_link_send(l, lane, &q, NULL, 0))
        rpc_link_reset(link, "the hello could not be sent"); /* comes again */
}

static void on_message(void *ctx, struct rpc_link *link, struct rpc_message *m)
{
    struct node_link *l = ctx;
    struct lane *lane = lane_of(l, link);
    struct expert_reply *r = NULL;
    struct err why;
    enum err_code rc = frame_decode_reply(m, &r, &why);
    if (rc == ERR_OK && !lane->agreed && r->kind != EXPERT_REPLY_HELLO)
        rc = err_set(&why, ERR_INVALID, "an answer before the hello");
    if (rc == ERR_OK) {
        switch (r->kind) {
        case EXPERT_REPLY_HELLO:
            on_hello(l, lane, r->hello);
            break;
        case EXPERT_REPLY_HOLDINGS:
            if (lane == &l->lanes[DISPATCH_DECODE])
                on_holdings(l, r);
            else
                rc = err_set(&why, ERR_INVALID,
                             "holdings on the lane for prompts, where no assignment goes out");
            break;
        case EXPERT_REPLY_DRAINING: /* on both lanes; told once */
            if (l->state != NODE_LINK_DRAINING) {
                log_info("nodes", "node=%u address=%s msg=\"is ending: it gets nothing more\"",
                         l->cfg.node, l->target);
                set_state(l, NODE_LINK_DRAINING, "the node is ending");
            }
            announce(l);
            break;
        case EXPERT_REPLY_PONG:
            on_pong(l);
            break;
        case EXPERT_REPLY_RESULT:
        case EXPERT_REPLY_ERROR:
            rc = l->cfg.handlers.on_result(l->cfg.ctx, l->cfg.node, r, m, &why);
            break;
        }
    }
    if (rc != ERR_OK) {
        complain(l, "dropped", why.text);
        rpc_link_reset(link, "an answer that does not fit");
    }
    frame_reply_free(r);
    rpc_message_free(m);
}

static void on_down(void *ctx, struct rpc_link *link, int grpc_status, const char *text)
{
    struct node_link *l = ctx;
    struct lane *lane = lane_of(l, link);
    bool was_agreed = lane->agreed;
    lane->agreed = false;
    if (grpc_status == 9 /* FAILED_PRECONDITION: the node's own check refused us */) {
        complain(l, "refuses us", text);
        set_state(l, NODE_LINK_REFUSED, text);
    } else if (lane == &l->lanes[DISPATCH_DECODE]) {
        if (l->state == NODE_LINK_READY)
            log_warn("nodes", "node=%u address=%s msg=\"lost: %s\"", l->cfg.node, l->target, text);
        else if (!was_agreed)
            complain(l, "not reached", text);
        l->load_failed = false;
        set_state(l, NODE_LINK_CONNECTING, text);
    } else if (l->state == NODE_LINK_READY) {
        if (was_agreed)
            log_warn("nodes", "node=%u address=%s msg=\"lost its lane for prompts: %s\"",
                     l->cfg.node, l->target, text);
        set_state(l, NODE_LINK_READY, text); /* decoding goes on; the lane comes back by itself */
    }
    announce(l);
}

/* ---- life ------------------------------------------------------------------------------------- */

enum err_code node_link_open(const struct node_link_cfg *cfg, struct node_link **out,
                             struct err *why)
{
    struct node_link *l = mem_zalloc(sizeof *l);
    if (l == NULL) {
        mem_free(cfg->assign);
        return err_nomem(why, "a node");
    }
    l->cfg = *cfg;
    snprintf(l->target, sizeof l->target, "%s", cfg->target);
    snprintf(l->reason, sizeof l->reason, "connecting");
    l->row = (cfg->n_experts + 7) / 8;
    l->bitmap_bytes = l->row * cfg->n_layers;
    l->held = mem_zalloc(l->bitmap_bytes);
    static const struct rpc_link_handlers handlers = {on_open, on_message, on_down};
    enum err_code rc = l->held == NULL ? err_nomem(why, "a node") : ERR_OK;
    for (int i = 0; i < DISPATCH_N_LANES && rc == ERR_OK; i++)
        rc = rpc_link_open(cfg->rpc, l->target,
                           i == DISPATCH_DECODE ? RPC_LANE_DECODE : RPC_LANE_BULK, METHOD,
                           &handlers, l, &l->lanes[i].link, why);
    if (rc != ERR_OK) {
        node_link_close(l);
        return rc;
    }
    *out = l;
    return ERR_OK;
}

void node_link_close(struct node_link *l)
{
    if (l == NULL) return;
    for (int i = 0; i < DISPATCH_N_LANES; i++)
        if (l->lanes[i].link != NULL) rpc_link_close(l->lanes[i].link);
    mem_free(l->cfg.assign);
    mem_free(l->held);
    mem_free(l);
}

enum node_link_state node_link_state(const struct node_link *l)
{
    return l->state;
}

const char *node_link_state_name(enum node_link_state s)
{
    static const char *const names[] = {"connecting", "refused", "loading", "ready", "draining"};
    return names[s];
}

const char *node_link_reason(const struct node_link *l)
{
    return l->reason;
}

const char *node_link_target(const struct node_link *l)
{
    return l->target;
}

const char *node_link_id(const struct node_link *l)
{
    return l->id;
}

const char *node_link_kernels(const struct node_link *l)
{
    return l->kernels;
}

uint32_t node_link_threads(const struct node_link *l)
{
    return l->threads;
}

uint64_t node_link_bytes(const struct node_link *l)
{
    return l->bytes;
}

uint32_t node_link_n_held(const struct node_link *l)
{
    uint32_t n = 0;
    for (size_t i = 0; i < l->bitmap_bytes; i++)
        n += (uint32_t)__builtin_popcount(l->held[i]);
    return n;
}

const uint8_t *node_link_held(const struct node_link *l)
{
    return l->held;
}

uint64_t node_link_round_trip_us(const struct node_link *l)
{
    return l->round_trip_us;
}

uint64_t node_link_bytes_per_second(const struct node_link *l)
{
    return l->bytes_per_second;
}
