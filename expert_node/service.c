#include "expert_node/service.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/experts/experts.h"
#include "common/modelfile/plan.h"
#include "common/rpc/frame.h"
#include "common/sys/memory.h"
#include "expert_node/batcher.h"
#include "expert_node/node.h"

#define IDLE_WAIT_US   200000u
#define MAX_BATCH_ROWS 4096u
#define MAX_QUEUED     4096u
#define MAX_QUEUED_BYTES                                                                           \
    (512u << 20)             /* rows of steps that wait; a coordinator keeps far less under way */
#define MAX_UNSENT     1024u /* answers that a peer does not read, then its stream is ended */
#define MAX_PING_BYTES (1u << 20)
#define DRAIN_GRACE_MS 3000u
#define REFUSED_AGAIN_US                                                                           \
    60000000u /* the same refusal is logged once a minute: a coordinator comes back every 2 s */
#define MEMORY_MARGIN                                                                              \
    (64u << 20) /* left free beside the experts: scratch, network, the rest of the process */

struct stream {
    struct stream *next;
    struct service *service;
    struct rpc_call *call;
    uint64_t id;
    bool agreed, bulk;
};

struct service {
    struct service_cfg cfg;
    const struct hparams *hp;
    struct node *node;
    struct expert_store *store;
    struct rpc_server *server;
    struct rpc_health *health;
    struct stream *streams;
    uint64_t next_stream, incarnation;
    char digest[33];
    struct frame_bitmap *held_maps; /* [n_layers] views of the core's bitmap */

    const struct node_batch *batch; /* waits to be computed */
    bool load_waits;
    uint32_t load_layer, load_expert;
    _Atomic bool stop;
    bool draining;       /* takes no more steps and streams */
    size_t queued_bytes; /* rows of steps under way */
    char refused[ERR_TEXT_MAX];
    uint64_t refused_us;

    struct batcher *batcher;
};

/* ---- answers ---------------------------------------------------------------------------------- */

static struct stream *find_stream(struct service *s, uint64_t id)
{
    for (struct stream *st = s->streams; st != NULL; st = st->next)
        if (st->id == id) return st;
    return NULL;
}

/* `tensor` is taken. */
static void send_reply(struct stream *st, const struct expert_reply *r, void *tensor, size_t bytes)
{
    struct buf header = {0};
    struct err why;
    if (frame_encode_reply(r, &header, &why) == ERR_OK) {
        struct rpc_part part = {tensor, bytes};
        struct rpc_out out = {header.data,
                              header.len,
                              bytes > 0 ? &part : NULL,
                              bytes > 0 ? 1 : 0,
                              bytes > 0 ? mem_free : NULL,
                              tensor};
        (void)rpc_call_send(st->call, &out); /* false: the coordinator is gone, nobody waits */
        if (bytes == 0) mem_free(tensor);
    } else {
        log_error("node", "msg=\"an answer could not be sent: %s\"", why.text);
        mem_free(tensor);
        rpc_call_finish(st->call, err_grpc_status(ERR_EXHAUSTED), why.text);
    }
    buf_free(&header);
}

static void send_error(struct stream *st, uint64_t step, enum err_code code, const char *text)
{
    struct expert_reply r = {
        .kind = EXPERT_REPLY_ERROR, .step = step, .error = code, .error_text = text};
    send_reply(st, &r, NULL, 0);
}

static struct expert_hello hello(struct service *s)
{
    for (uint32_t l = 0; l < s->hp->n_layers; l++)
        s->held_maps[l] = (struct frame_bitmap){node_held(s->node) + l * node_bitmap_row(s->node),
                                                node_bitmap_row(s->node)};
    return (struct expert_hello){.protocol = FRAME_PROTOCOL,
                                 .model_digest = s->digest,
                                 .numerics = NUMERICS_VERSION,
                                 .wire_profile = WIRE_PROFILE,
                                 .quantize = s->cfg.quantize,
                                 .id = s->cfg.id,
                                 .incarnation = s->incarnation,
                                 .kernels = s->cfg.kernels->name,
                                 .held = s->held_maps,
                                 .n_layers = s->hp->n_layers,
                                 .expert_bytes = expert_store_bytes(s->store),
                                 .threads = workers_count(s->cfg.workers),
                                 .pinned = s->cfg.pinned != NULL};
}

static void send_holdings(struct service *s, struct stream *st, enum err_code code,
                          const char *text)
{
    struct expert_hello h = hello(s);
    struct expert_reply r = {
        .kind = EXPERT_REPLY_HOLDINGS, .hello = &h, .error = code, .error_text = text};
    send_reply(st, &r, NULL, 0);
}

static void free_item(struct service *s, struct item *it)
{
    s->queued_bytes -= it->bytes;
    mem_free(it->results);
    frame_request_free(it->frame);
    rpc_message_free(it->message);
    mem_free(it);
}

static void reply(struct service *s, struct item *it)
{
    struct stream *st = find_stream(s, it->request.stream);
    size_t row_bytes = (size_t)s->hp->hidden * (expert_store_reply_bf16(s->store) ? 2 : 4);
    uint64_t now = clock_now_us();
    struct expert_reply r = {.kind = EXPERT_REPLY_RESULT,
                             .step = it->request.step,
                             .rows = it->request.n_results,
                             .format = expert_store_reply_bf16(s->store) ? FRAME_BF16 : FRAME_F32,
                             .queue_us = (uint32_t)(it->request.begun_us - it->request.arrived_us),
                             .compute_us = (uint32_t)(now - it->request.begun_us)};
    if (st != NULL) {
        send_reply(st, &r, it->results, row_bytes * it->request.n_results);
        it->results = NULL;
    }
    free_item(s, it);
}

/* ---- the core's actions ----------------------------------------------------------------------- */

static void step(struct service *s, struct node_event *ev)
{
    struct node_actions todo;
    struct err why;
    ev->now_us = clock_now_us();
    if (node_step(s->node, ev, &todo, &why) != ERR_OK) {
        log_error("node", "msg=\"%s\"", why.text);
        struct stream *st;
        if (ev->kind == NODE_ASSIGN && (st = find_stream(s, ev->assign.stream)) != NULL)
            send_holdings(s, st, ERR_EXHAUSTED, why.text);
        if (ev->kind != NODE_STEP) return;
        struct item *it = (struct item *)ev->request;
        st = find_stream(s, it->request.stream);
        if (st != NULL) send_error(st, it->request.step, ERR_EXHAUSTED, why.text);
        free_item(s, it);
        return;
    }
    for (size_t i = 0; i < todo.n; i++) {
        const struct node_action *a = &todo.items[i];
        struct stream *st;
        switch (a->kind) {
        case NODE_ACT_COMPUTE:
            s->batch = a->batch;
            break;
        case NODE_ACT_REPLY:
            reply(s, (struct item *)a->request);
            break;
        case NODE_ACT_REFUSE:
            st = find_stream(s, a->request->stream);
            if (st != NULL) send_error(st, a->request->step, a->code, a->text);
            free_item(s, (struct item *)a->request);
            break;
        case NODE_ACT_DISCARD:
            free_item(s, (struct item *)a->request);
            break;
        case NODE_ACT_LOAD:
            s->load_waits = true;
            s->load_layer = a->layer;
            s->load_expert = a->expert;
            break;
        case NODE_ACT_UNLOAD:
            expert_store_unload(s->store, a->layer, a->expert);
            break;
        case NODE_ACT_HOLDINGS: {
            char text[32];
            st = find_stream(s, a->stream);
            if (a->code != ERR_OK)
                log_error("node", "msg=\"%s\"", a->text);
            else
                log_info("node", "experts=%u bytes=\"%s\" msg=\"holds what it was assigned\"",
                         expert_store_count(s->store),
                         memory_text(expert_store_bytes(s->store), text));
            if (st != NULL) send_holdings(s, st, a->code, a->code != ERR_OK ? a->text : "");
            break;
        }
        }
    }
}

/* For tests: a batch, and an expert that is loaded, take at least slow_us. */
static void be_slow(struct service *s, uint64_t began_us)
{
    while (clock_now_us() - began_us < s->cfg.slow_us)
        rpc_poll(s->cfg.rpc, 100);
}

static void run_batch(struct service *s)
{
    const struct node_batch *b = s->batch;
    s->batch = NULL;
    struct err why;
    uint64_t began = clock_now_us();
    enum err_code rc = batcher_run(s->batcher, b, s->cfg.workers, &why);
    be_slow(s, began);
    struct node_event done = {.kind = NODE_COMPUTED, .done = {rc == ERR_OK, &why}};
    step(s, &done);
}

static void run_load(struct service *s)
{
    s->load_waits = false;
    struct err why;
    uint64_t began = clock_now_us();
    enum err_code rc =
        expert_store_load(s->store, s->load_layer, s->load_expert, s->cfg.workers, &why);
    be_slow(s, began);
    struct node_event done = {.kind = NODE_LOADED, .done = {rc == ERR_OK, &why}};
    step(s, &done);
}

/* ---- messages --------------------------------------------------------------------------------- */

static void on_hello(struct stream *st, const struct expert_hello *theirs)
{
    struct service *s = st->service;
    struct expert_hello ours = hello(s);
    struct err why;
    if (frame_hello_check(&ours, theirs, &why) != ERR_OK) {
        uint64_t now = clock_now_us();
        if (strcmp(s->refused, why.text) != 0 || now - s->refused_us >= REFUSED_AGAIN_US) {
            log_error("node", "peer=%s coordinator=\"%s\" msg=\"refused: %s\"",
                      rpc_call_peer(st->call), theirs->id, why.text);
            memcpy(s->refused, why.text, sizeof s->refused);
            s->refused_us = now;
        }
        rpc_call_finish(st->call, err_grpc_status(ERR_MISMATCH), why.text);
        return;
    }
    st->agreed = true;
    st->bulk = theirs->lane == RPC_LANE_BULK;
    ours.lane = theirs->lane;
    struct expert_reply r = {.kind = EXPERT_REPLY_HELLO, .hello = &ours};
    send_reply(st, &r, NULL, 0);
}

static void on_assign(struct stream *st, const struct expert_request *q)
{
    struct service *s = st->service;
    size_t row = node_bitmap_row(s->node);
    char need_text[32], have_text[32];
    if (s->cfg.pinned != NULL || q->n_layers != s->hp->n_layers) {
        send_holdings(s, st, ERR_INVALID,
                      s->cfg.pinned != NULL
                          ? "this node was started with --experts and takes no assignment"
                          : "the assignment is for another number of layers");
        return;
    }
    uint8_t *held = mem_zalloc(row * s->hp->n_layers);
    if (held == NULL) {
        send_holdings(s, st, ERR_EXHAUSTED, "no memory for an assignment");
        return;
    }
    uint64_t missing = 0, need = 0;
    for (uint32_t l = 0; l < q->n_layers; l++)
        for (uint32_t e = 0; e < s->hp->n_experts && s->hp->is_moe[l]; e++) {
            if (!frame_bitmap_has(q->assign[l], e)) continue;
            held[l * row + e / 8] |= (uint8_t)(1u << (e % 8));
            if (expert_store_holds(s->store, l, e)) continue;
            missing++;
            need += expert_store_bytes_each(s->store, l);
        }
    uint64_t have = memory_available();
    if (missing > 0 && need + MEMORY_MARGIN > have) {
        char text[256];
        snprintf(text, sizeof text,
                 "%llu more experts need %s, and %s are available; use more nodes or --quantize",
                 (unsigned long long)missing, memory_text(need + MEMORY_MARGIN, need_text),
                 memory_text(have, have_text));
        log_error("node", "msg=\"%s\"", text);
        send_holdings(s, st, ERR_EXHAUSTED, text);
    } else {
        struct node_event ev = {.kind = NODE_ASSIGN, .assign = {st->id, held}};
        step(s, &ev);
    }
    mem_free(held);
}

/* What only the model can tell: the width and format of the rows, the number of experts. */
static enum err_code check_step(const struct service *s, const struct expert_request *q,
                                size_t tensor_bytes, struct err *why)
{
    if (q->layer >= s->hp->n_layers || !s->hp->is_moe[q->layer])
        return err_set(why, ERR_INVALID, "layer %u has no experts", q->layer);
    enum row_format f = expert_store_rows(s->store, q->layer);
    size_t want = q->rows * (row_data_bytes(f, s->hp->hidden) + row_scale_bytes(f, s->hp->hidden));
    size_t back = (size_t)q->n_index * s->hp->hidden * (expert_store_reply_bf16(s->store) ? 2 : 4);
    if ((int)q->format != (int)f)
        return err_set(why, ERR_INVALID, "rows come in format %d, this model's experts take %d",
                       (int)q->format, (int)f);
    if (tensor_bytes != want)
        return err_set(why, ERR_INVALID, "%u rows of this model are %zu bytes, the tensor has %zu",
                       q->rows, want, tensor_bytes);
    if (q->experts[q->n_experts - 1] >= s->hp->n_experts)
        return err_set(why, ERR_INVALID, "expert %u: the model has %u",
                       q->experts[q->n_experts - 1], s->hp->n_experts);
    if (back > LIMIT_FRAME_BYTES)
        return err_set(why, ERR_TOO_LARGE,
                       "%u results of this model are %zu bytes, an answer has at most %u",
                       q->n_index, back, LIMIT_FRAME_BYTES);
    if (s->queued_bytes + tensor_bytes > MAX_QUEUED_BYTES)
        return err_set(why, ERR_EXHAUSTED, "%zu bytes of rows wait here already, %u is the limit",
                       s->queued_bytes, MAX_QUEUED_BYTES);
    return ERR_OK;
}

/* Quantised rows are in -127..127. With -128 the kernels' results would depend on the instruction set. */
static enum err_code check_rows(const struct service *s, const struct expert_request *q,
                                const struct rpc_message *m, struct err *why)
{
    if (expert_store_rows(s->store, q->layer) != ROW_Q8) return ERR_OK;
    int8_t part[4096];
    for (size_t at = 0, all = q->rows * row_data_bytes(ROW_Q8, s->hp->hidden), n; at < all;
         at += n) {
        n = all - at < sizeof part ? all - at : sizeof part;
        rpc_message_tensor_copy(m, at, part, n);
        unsigned bad = 0;
        for (size_t i = 0; i < n; i++)
            bad |= part[i] == -128;
        for (size_t i = 0; bad && i < n; i++)
            if (part[i] == -128)
                return err_set(why, ERR_INVALID,
                               "row %zu has the value -128; quantised rows are in -127..127",
                               (at + i) / s->hp->hidden);
    }
    return ERR_OK;
}

/* Takes q and m. */
static void on_step(struct stream *st, struct expert_request *q, struct rpc_message *m)
{
    struct service *s = st->service;
    struct err why;
    enum err_code rc = s->draining ? err_set(&why, ERR_UNAVAILABLE, "the node is ending")
                                   : check_step(s, q, rpc_message_tensor_bytes(m), &why);
    if (rc == ERR_OK) rc = check_rows(s, q, m, &why);
    struct item *it = rc == ERR_OK ? mem_zalloc(sizeof *it) : NULL;
    if (rc == ERR_OK && it == NULL) rc = err_nomem(&why, "a step");
    if (rc != ERR_OK) {
        send_error(st, q->step, rc, why.text);
        frame_request_free(q);
        rpc_message_free(m);
        return;
    }
    it->frame = q;
    it->message = m;
    it->bytes = rpc_message_tensor_bytes(m);
    s->queued_bytes += it->bytes;
    it->request = (struct node_request){.stream = st->id,
                                        .step = q->step,
                                        .layer = q->layer,
                                        .bulk = st->bulk,
                                        .n_rows = q->rows,
                                        .n_experts = q->n_experts,
                                        .experts = q->experts,
                                        .expert_rows = q->expert_rows,
                                        .row_index = q->row_index,
                                        .n_results = q->n_index,
                                        .arrived_us = clock_now_us()};
    struct node_event ev = {.kind = NODE_STEP, .request = &it->request};
    step(s, &ev);
}

static void on_ping(struct stream *st, const struct expert_request *q, const struct rpc_message *m)
{
    size_t n = rpc_message_tensor_bytes(m);
    if (n > MAX_PING_BYTES) {
        struct err why;
        err_set(&why, ERR_TOO_LARGE, "a ping of %zu bytes, %u is the limit", n, MAX_PING_BYTES);
        rpc_call_finish(st->call, err_grpc_status(why.code), why.text);
        return;
    }
    void *echo = n > 0 ? mem_alloc(n) : NULL;
    if (echo != NULL) rpc_message_tensor_copy(m, 0, echo, n);
    struct expert_reply r = {.kind = EXPERT_REPLY_PONG, .step = q->step};
    send_reply(st, &r, echo, echo != NULL ? n : 0);
}

static void on_message(void *call_ctx, struct rpc_call *c, struct rpc_message *m)
{
    struct stream *st = call_ctx;
    struct expert_request *q = NULL;
    struct err why;
    enum err_code rc = frame_decode_request(m, &q, &why);
    if (rc == ERR_OK && !st->agreed && q->kind != EXPERT_REQUEST_HELLO)
        rc = err_set(&why, ERR_MISMATCH, "the first message of a stream is a hello");
    if (rc == ERR_OK && rpc_call_unsent(c) > MAX_UNSENT)
        rc = err_set(&why, ERR_EXHAUSTED, "%zu answers were not read, %u is the limit",
                     rpc_call_unsent(c), MAX_UNSENT);
    if (rc != ERR_OK) {
        log_warn("node", "peer=%s msg=\"stream ended: %s\"", rpc_call_peer(c), why.text);
        rpc_call_finish(c, err_grpc_status(rc), why.text);
    } else if (q->kind == EXPERT_REQUEST_STEP) {
        on_step(st, q, m);
        return;
    } else if (q->kind == EXPERT_REQUEST_HELLO) {
        on_hello(st, q->hello);
    } else if (q->kind == EXPERT_REQUEST_ASSIGN) {
        on_assign(st, q);
    } else {
        on_ping(st, q, m);
    }
    frame_request_free(q);
    rpc_message_free(m);
}

static enum err_code on_call(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    struct service *s = ctx;
    if (s->draining) return err_set(why, ERR_UNAVAILABLE, "the node is ending");
    struct stream *st = mem_zalloc(sizeof *st);
    if (st == NULL) return err_nomem(why, "a stream");
    *st = (struct stream){.next = s->streams, .service = s, .call = c, .id = ++s->next_stream};
    s->streams = st;
    *call_ctx = st;
    return ERR_OK;
}

static void on_half_close(void *call_ctx, struct rpc_call *c)
{
    (void)call_ctx;
    rpc_call_finish(c, 0, "");
}

static void on_done(void *call_ctx, bool cancelled)
{
    struct stream *st = call_ctx;
    struct service *s = st->service;
    (void)cancelled;
    for (struct stream **at = &s->streams; *at != NULL; at = &(*at)->next) {
        if (*at != st) continue;
        *at = st->next;
        break;
    }
    struct node_event ev = {.kind = NODE_CLOSED, .stream = st->id};
    mem_free(st);
    step(s, &ev);
}

/* ---- Describe --------------------------------------------------------------------------------- */

static enum err_code describe_call(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    (void)c;
    (void)why;
    *call_ctx = ctx;
    return ERR_OK;
}

static void describe_message(void *call_ctx, struct rpc_call *c, struct rpc_message *m)
{
    struct service *s = call_ctx;
    struct node_stats stats;
    struct expert_hello h = hello(s);
    struct buf b = {0};
    struct err why;
    node_stats(s->node, &stats);
    struct expert_describe d = {.hello = &h,
                                .steps = stats.steps,
                                .rows = stats.rows,
                                .multiplications = stats.multiplications,
                                .resident_bytes = memory_resident()};
    if (frame_encode_describe(&d, &b, &why) == ERR_OK) {
        struct rpc_out out = {.header = b.data, .header_bytes = b.len};
        (void)rpc_call_send(c, &out);
        rpc_call_finish(c, 0, "");
    } else {
        rpc_call_finish(c, err_grpc_status(ERR_EXHAUSTED), why.text);
    }
    buf_free(&b);
    rpc_message_free(m);
}

static void describe_done(void *call_ctx, bool cancelled)
{
    (void)call_ctx;
    (void)cancelled;
}

/* ---- life ------------------------------------------------------------------------------------- */

static enum err_code load_pinned(struct service *s, struct err *why)
{
    const struct expert_set *p = s->cfg.pinned;
    uint64_t need = MEMORY_MARGIN;
    for (uint32_t l = 0; l < p->n_layers; l++)
        need += (uint64_t)expert_set_count_layer(p, l) * expert_store_bytes_each(s->store, l);
    uint64_t have = memory_available();
    char need_text[32], have_text[32];
    if (need > have)
        return err_set(
            why, ERR_EXHAUSTED,
            "%u experts need %s, and %s are available; give this node fewer with --experts, or use --quantize",
            expert_set_count(p), memory_text(need, need_text), memory_text(have, have_text));
    uint8_t *held = mem_zalloc(node_bitmap_row(s->node) * s->hp->n_layers);
    if (held == NULL) return err_nomem(why, "experts");
    for (uint32_t l = 0; l < s->hp->n_layers; l++)
        for (uint32_t e = 0; e < s->hp->n_experts; e++)
            if (expert_set_has(p, l, e))
                held[l * node_bitmap_row(s->node) + e / 8] |= (uint8_t)(1u << (e % 8));
    struct node_event ev = {.kind = NODE_ASSIGN, .assign = {0, held}};
    step(s, &ev);
    mem_free(held);
    while (s->load_waits)
        run_load(s);
    if (expert_store_count(s->store) != expert_set_count(p))
        return err_set(why, ERR_CORRUPT, "%u of %u experts could be loaded; the log above says why",
                       expert_store_count(s->store), expert_set_count(p));
    return ERR_OK;
}

static void pump(void *ctx)
{
    rpc_poll(((struct service *)ctx)->cfg.rpc, 0);
}

enum err_code service_open(const struct service_cfg *cfg, struct service **out, struct err *why)
{
    struct service *s = mem_zalloc(sizeof *s);
    if (s == NULL) return err_nomem(why, "expert node");
    s->cfg = *cfg;
    s->hp = model_file_hparams(cfg->file);
    s->incarnation = clock_now_ns();
    model_file_digest(cfg->file, cfg->quantize, s->digest);
    struct node_cfg nc = {s->hp->n_layers, s->hp->n_experts, s->hp->is_moe, MAX_BATCH_ROWS,
                          MAX_QUEUED};
    enum err_code rc = node_open(&nc, &s->node, why);
    if (rc == ERR_OK)
        rc = expert_store_open(cfg->file, cfg->quantize, cfg->kernels, &s->store, why);
    if (rc == ERR_OK)
        rc = batcher_open(s->store, s->hp->hidden, s->hp->n_experts, &s->batcher, why);
    s->held_maps = mem_zalloc_array(s->hp->n_layers, sizeof *s->held_maps);
    s->health = rpc_health_open();
    if (rc == ERR_OK && (s->held_maps == NULL || s->health == NULL))
        rc = err_nomem(why, "expert node");
    if (rc == ERR_OK && cfg->pinned != NULL) rc = load_pinned(s, why);
    if (rc == ERR_OK) {
        struct rpc_method methods[4] = {
            {"/moesaic.v1.ExpertService/Stream", on_call, {on_message, on_half_close, on_done}, s},
            {"/moesaic.v1.ExpertService/Describe",
             describe_call,
             {describe_message, NULL, describe_done},
             s}};
        rpc_health_methods(s->health, methods + 2);
        rc = rpc_server_open(cfg->rpc, cfg->listen, methods, 4, &s->server, why);
    }
    if (rc != ERR_OK) {
        service_close(s);
        return rc;
    }
    rpc_health_set(s->health, true);
    rpc_set_spin(cfg->rpc, cfg->spin_us);
    workers_set_pump(cfg->workers, pump, s);
    *out = s;
    return ERR_OK;
}

unsigned service_port(const struct service *s)
{
    return rpc_server_port(s->server);
}

uint32_t service_held(const struct service *s)
{
    return expert_store_count(s->store);
}

uint64_t service_bytes(const struct service *s)
{
    return expert_store_bytes(s->store);
}

/* Steps under way are finished, new ones are refused; what is being loaded is not finished. */
static void begin_drain(struct service *s)
{
    struct expert_reply r = {.kind = EXPERT_REPLY_DRAINING};
    s->draining = true;
    s->load_waits = false;
    rpc_health_set(s->health, false);
    for (struct stream *st = s->streams; st != NULL; st = st->next)
        if (st->agreed) send_reply(st, &r, NULL, 0);
}

void service_run(struct service *s)
{
    for (;;) {
        if (atomic_load(&s->stop) && !s->draining) begin_drain(s);
        /* A batch before a load: loading is the patient part. */
        if (s->batch != NULL)
            run_batch(s);
        else if (s->load_waits && !s->draining)
            run_load(s);
        else if (s->draining && !node_has_steps(s->node))
            return;
        bool busy = s->batch != NULL || (s->load_waits && !s->draining);
        rpc_poll(s->cfg.rpc, busy ? 0 : IDLE_WAIT_US);
    }
}

void service_stop(struct service *s)
{
    atomic_store(&s->stop, true);
    rpc_wake(s->cfg.rpc);
}

void service_close(struct service *s)
{
    if (s == NULL) return;
    workers_set_pump(s->cfg.workers, NULL, NULL);
    s->draining = true;
    for (struct stream *st = s->streams; st != NULL;
         st = st->next) /* else they would last for the whole grace */
        rpc_call_finish(st->call, err_grpc_status(ERR_UNAVAILABLE), "the node is ending");
    if (s->health != NULL) rpc_health_finish(s->health);
    if (s->server != NULL) rpc_server_close(s->server, DRAIN_GRACE_MS);
    assert(s->streams == NULL);
    /* A step that came in while the port was being closed: its stream is gone. */
    for (uint32_t i = 0; s->batch != NULL && i < s->batch->n_requests; i++)
        free_item(s, (struct item *)s->batch->requests[i]);
    rpc_health_close(s->health);
    node_close(s->node);
    expert_store_close(s->store);
    mem_free(s->held_maps);
    batcher_close(s->batcher);
    mem_free(s);
}
