#include "coordinator/coordinator.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/metrics.h"
#include "common/base/options.h"
#include "common/modelfile/plan.h"
#include "common/rpc/frame.h"
#include "common/sys/descriptors.h"
#include "common/sys/memory.h"
#include "common/sys/watch.h"
#include "coordinator/api/api.h"
#include "coordinator/api/grpc_service.h"
#include "coordinator/drivers/engine_driver.h"
#include "coordinator/modeltext/model_text.h"
#include "coordinator/sizing.h"
#include "coordinator/startup.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_format.h"
#include "coordinator/text/tokenizer.h"

#define MAX_DECODE_ROWS 64u
#define READY_TRY_MS    20u
#define READY_TRIES     150u
#define GRPC_GRACE_MS   500u /* for the last statuses to leave */
#define ADDRESS_CAP     300u
#define HTTP_PORT       8080u
#define GRPC_PORT       8081u
#define NODE_PORT       7070u

struct coordinator {
    const struct coordinator_options *o;
    uint32_t descriptors; /* files and sockets this process may open */
    char digest[33], name[256];
    char http_at[ADDRESS_CAP], grpc_at[ADDRESS_CAP]; /* as asked for, with host and port */
    char (*node_text)[ADDRESS_CAP];                  /* [n_nodes] */
    const char **targets;                            /* [n_nodes] views of them */
    bool *told_usable; /* [n_nodes] engine thread: what the parent was told last */
    struct model_file *file;
    const struct kernels *kernels;
    struct workers *workers;
    struct rpc *rpc;
    struct rpc_server *grpc;
    struct rpc_health *health;
    struct grpc_service *generate; /* the gRPC API */
    struct expert_store *local;
    struct model *model;
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    struct reply_format reply_format;
    struct metrics *metrics;
    struct client_driver *clients;
    struct engine_driver *engine;
    struct api *api;
    struct sizing sizing;

    struct watch *watch;
    uv_loop_t loop;
    _Atomic bool loop_open; /* read by the watch thread */
    uv_async_t signal, news;
    uv_timer_t drain_timer, ready_timer;
    _Atomic bool asked_to_stop, ready_news;
    bool draining, printed, engine_stopped;
    unsigned ready_tries, n_draining;
};

/* ---- loop thread: the end --------------------------------------------------------------------- */

static void close_handle(uv_handle_t *h, void *ctx)
{
    (void)ctx;
    if (!uv_is_closing(h)) uv_close(h, NULL);
}

static void on_clients_closed(void *ctx)
{
    struct coordinator *c = ctx;
    c->clients = NULL;
    uv_walk(&c->loop, close_handle, NULL);
}

static void on_api_closed(void *ctx)
{
    struct coordinator *c = ctx;
    c->api = NULL;
    engine_driver_stop(c->engine); /* answers are out or their clients are gone */
    client_driver_close(c->clients, on_clients_closed, c);
}

static void on_generate_stopped(void *ctx)
{
    struct coordinator *c = ctx;
    api_close(c->api, on_api_closed, c);
}

static void end_now(struct coordinator *c)
{
    if (c->engine_stopped) return;
    c->engine_stopped = true;
    uv_timer_stop(&c->drain_timer);
    grpc_service_stop(c->generate, on_generate_stopped, c);
}

static void on_drained(void *ctx)
{
    struct coordinator *c = ctx;
    if (--c->n_draining == 0) end_now(c);
}

static void on_drain_late(uv_timer_t *t)
{
    log_warn("coordinator", "msg=\"the drain limit has passed; what is left is cut off\"");
    end_now(t->data);
}

static void on_signal(uv_async_t *a)
{
    struct coordinator *c = a->data;
    if (!atomic_load(&c->asked_to_stop) || c->draining) return;
    c->draining = true;
    log_info("coordinator", "msg=\"draining: requests under way are finished\"");
    uv_timer_start(&c->drain_timer, on_drain_late, c->o->drain_ms, 0);
    c->n_draining = 2;
    api_drain(c->api, on_drained, c);
    grpc_service_drain(c->generate, on_drained, c);
}

/* Watch thread. */
static void on_watch(void *ctx, enum watch_event ev)
{
    struct coordinator *c = ctx;
    if (ev != WATCH_STOP || !atomic_load(&c->loop_open)) _exit(ev == WATCH_AGAIN ? 1 : 0);
    atomic_store(&c->asked_to_stop, true);
    uv_async_send(&c->signal);
}

/* ---- readiness -------------------------------------------------------------------------------- */

/* Engine thread. */
static void on_node_changed(void *ctx, uint32_t node, bool usable, const char *reason)
{
    struct coordinator *c = ctx;
    (void)reason;
    if (node >= c->o->n_nodes || c->told_usable[node] == usable)
        return; /* a change of state only, every 2 s perhaps */
    c->told_usable[node] = usable;
    char line[128];
    snprintf(line, sizeof line, "{\"event\": \"node\", \"node\": %u, \"usable\": %s}", node,
             usable ? "true" : "false");
    watch_tell_parent(c->o->parent_fd, line);
}

static void on_ready_changed(void *ctx, bool ready)
{
    struct coordinator *c = ctx;
    if (!ready) watch_tell_parent(c->o->parent_fd, "{\"event\": \"unready\"}");
    grpc_service_set_ready(c->generate, ready);
    atomic_store(&c->ready_news, ready);
    uv_async_send(&c->news);
}

static void after_poll(void *ctx)
{
    grpc_service_pump(((struct coordinator *)ctx)->generate);
}

static void on_ready_tick(uv_timer_t *t);

static void listen_text(const char *address, unsigned port, char *out, size_t cap)
{
    char host[256] = "";
    unsigned asked;
    (void)options_address(address, "127.0.0.1", 0, host, &asked,
                          NULL); /* was checked at the start */
    options_address_text(host, port, out, cap);
}

static void announce(struct coordinator *c, const json_t *cluster)
{
    char http[300], grpc[300], line[800];
    listen_text(c->http_at, (unsigned)api_port(c->api), http, sizeof http);
    listen_text(c->grpc_at, rpc_server_port(c->grpc), grpc, sizeof grpc);
    if (!c->printed) {
        struct startup_facts f = {.name = c->name,
                                  .file = c->file,
                                  .quantize = c->o->quantize,
                                  .kernels = c->kernels->name,
                                  .threads = c->o->threads,
                                  .sizing = &c->sizing,
                                  .http = http,
                                  .grpc = grpc,
                                  .cluster = cluster,
                                  .replicas = c->o->replicas,
                                  .chat = c->chat != NULL};
        startup_print(&f);
        c->printed = true;
    }
    snprintf(line, sizeof line, "{\"event\": \"ready\", \"http\": \"%s\", \"grpc\": \"%s\"}", http,
             grpc);
    watch_tell_parent(c->o->parent_fd, line);
}

/* The block shows round trips, so it waits until they are measured (milliseconds), but not for ever. */
static void on_cluster(void *ctx, const char *text)
{
    struct coordinator *c = ctx;
    json_t *cluster = NULL;
    struct err why;
    if (!atomic_load(&c->ready_news) || c->draining) return;
    if (json_parse(text, strlen(text), LIMIT_JSON_DEPTH, &cluster, &why) == ERR_OK &&
        (startup_measured(cluster) || c->printed || ++c->ready_tries > READY_TRIES)) {
        announce(c, cluster);
    } else {
        uv_timer_start(&c->ready_timer, on_ready_tick, READY_TRY_MS, 0);
    }
    json_decref(cluster);
}

static void on_ready_tick(uv_timer_t *t)
{
    struct coordinator *c = t->data;
    struct generation_service service;
    client_driver_service(c->clients, &service);
    service.cluster(service.self, on_cluster, c);
}

static void on_news(uv_async_t *a)
{
    struct coordinator *c = a->data;
    if (atomic_load(&c->ready_news) && !c->draining) on_ready_tick(&c->ready_timer);
}

/* ---- start ------------------------------------------------------------------------------------ */

/* Check an address to listen on, and put host and port in where they are left out. */
static enum err_code check_address(const char *option, const char *address, unsigned default_port,
                                   bool insecure, char out[ADDRESS_CAP], struct err *why)
{
    char host[256];
    unsigned port;
    enum err_code rc = options_address(address, "127.0.0.1", default_port, host, &port, why);
    if (rc != ERR_OK) return err_wrap(why, rc, "--%s", option);
    options_address_text(host, port, out, ADDRESS_CAP);
    if (insecure || options_is_loopback(host)) return ERR_OK;
    return err_set(
        why, ERR_INVALID,
        "--%s=%s is reachable from other machines, and there are no keys and no encryption yet: whoever reaches it "
        "can use the model. Put a proxy in front, or say --insecure on a trusted network",
        option, address);
}

static enum err_code check_node(struct coordinator *c, uint32_t i, struct err *why)
{
    const char *text = c->o->nodes[i];
    char host[256];
    unsigned port;
    enum err_code rc = options_address(text, "127.0.0.1", NODE_PORT, host, &port, why);
    if (rc != ERR_OK) return err_wrap(why, rc, "--nodes");
    if (port == 0) return err_set(why, ERR_INVALID, "--nodes: %s: port 0 is nobody's", text);
    if (!c->o->insecure && !options_is_loopback(host))
        return err_set(
            why, ERR_INVALID,
            "--nodes: %s is another machine, and the link to it has no encryption yet: whoever is on the way can read "
            "and change what is computed. Say --insecure on a trusted network",
            text);
    c->targets[i] = options_address_text(host, port, c->node_text[i], ADDRESS_CAP);
    for (uint32_t j = 0; j < i; j++)
        if (strcmp(c->targets[i], c->targets[j]) == 0)
            return err_set(why, ERR_INVALID, "--nodes: %s is there twice", c->targets[i]);
    return ERR_OK;
}

static enum err_code check_nodes(struct coordinator *c, struct err *why)
{
    const struct coordinator_options *o = c->o;
    if (o->n_nodes > 0 && o->replicas > o->n_nodes)
        return err_set(
            why, ERR_INVALID,
            "--replicas=%u is more than the %u nodes: copies of an expert live on different nodes",
            o->replicas, o->n_nodes);
    c->node_text = mem_zalloc_array(o->n_nodes, sizeof *c->node_text);
    c->targets = mem_zalloc_array(o->n_nodes, sizeof *c->targets);
    c->told_usable = mem_zalloc_array(o->n_nodes, sizeof *c->told_usable);
    if (c->node_text == NULL || c->targets == NULL || c->told_usable == NULL)
        return err_nomem(why, "node addresses");
    enum err_code rc = ERR_OK;
    for (uint32_t i = 0; i < o->n_nodes && rc == ERR_OK; i++)
        rc = check_node(c, i, why);
    return rc;
}

/* Experts that nodes on this very machine will load: the cache must leave them room. */
static uint64_t neighbours_bytes(const struct coordinator *c, enum quantize quantize)
{
    const struct hparams *hp = model_file_hparams(c->file);
    uint64_t all = 0, here = 0;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        if (hp->is_moe[l]) all += hp->n_experts * plan_expert_bytes(c->file, quantize, l);
    for (uint32_t i = 0; i < c->o->n_nodes; i++) {
        char host[256];
        unsigned port;
        if (options_address(c->targets[i], "", 0, host, &port, NULL) == ERR_OK &&
            options_is_loopback(host))
            here++;
    }
    return c->o->n_nodes > 0 ? all / c->o->n_nodes * here * c->o->replicas : 0;
}

static enum err_code load_local_experts(struct coordinator *c, struct err *why)
{
    const struct hparams *hp = model_file_hparams(c->file);
    enum err_code rc = expert_store_open(c->file, c->o->quantize, c->kernels, &c->local, why);
    for (uint32_t l = 0; l < hp->n_layers && rc == ERR_OK; l++)
        for (uint32_t e = 0; e < hp->n_experts && hp->is_moe[l] && rc == ERR_OK; e++)
            rc = expert_store_load(c->local, l, e, c->workers, why);
    return rc;
}

static void served_name(struct coordinator *c)
{
    if (c->o->name != NULL) {
        snprintf(c->name, sizeof c->name, "%s", c->o->name);
        return;
    }
    char real[4096];
    const char *path = realpath(c->o->model, real) != NULL ? real : c->o->model;
    const char *slash = strrchr(path, '/');
    snprintf(c->name, sizeof c->name, "%.255s",
             slash != NULL && slash[1] != '\0' ? slash + 1 : path);
}

static enum err_code load(struct coordinator *c, struct err *why)
{
    const struct coordinator_options *o = c->o;
    enum err_code rc = check_address("http", o->http, HTTP_PORT, o->insecure, c->http_at, why);
    if (rc == ERR_OK) rc = check_address("grpc", o->grpc, GRPC_PORT, o->insecure, c->grpc_at, why);
    if (rc == ERR_OK) rc = check_nodes(c, why);
    if (rc == ERR_OK) rc = kernels_pick(o->cpu, &c->kernels, why);
    if (rc == ERR_OK) rc = model_file_open(o->model, &c->file, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(c->kernels->name, "ref") == 0 && o->cpu == NULL)
        log_warn("coordinator",
                 "msg=\"this CPU has no AVX2 and FMA: the portable kernels work, slowly\"");
    served_name(c);
    model_file_digest(c->file, o->quantize, c->digest);
    struct sizing_input in = {.file = c->file,
                              .local_experts = o->n_nodes == 0,
                              .ctx = o->ctx,
                              .kv_bytes = o->kv_bytes,
                              .chunk = o->chunk,
                              .available_bytes = memory_available()};
    quantize_find(o->quantize, &in.quantize);
    in.neighbours_bytes = neighbours_bytes(c, in.quantize);
    plan_log_repacks("coordinator", c->file, in.quantize, false);
    if (o->n_nodes == 0) plan_log_repacks("coordinator", c->file, in.quantize, true);
    rc = sizing_decide(&in, &c->sizing, why);
    if (rc == ERR_OK) rc = model_text_tokenizer(model_file_dir(c->file), &c->tokenizer, why);
    if (rc != ERR_OK) return rc;
    struct err chat_why;
    enum err_code chat = model_text_template(model_file_dir(c->file), &c->chat, &chat_why);
    if (chat != ERR_OK && chat != ERR_NOT_FOUND)
        log_warn("coordinator", "msg=\"no chat: %s\"",
                 chat_why.text); /* completions work without one */
    rc = reply_format_find(c->chat, c->tokenizer, o->tool_parser, o->reasoning_parser,
                           &c->reply_format, why);
    if (rc != ERR_OK) return rc;
    log_info("coordinator", "tool_parser=%s reasoning_parser=%s",
             reply_format_tools_name(&c->reply_format),
             reply_format_reasoning_name(&c->reply_format));
    rc = rpc_open(&c->rpc, why);
    if (rc == ERR_OK) rc = workers_open(o->threads, o->spin_us, &c->workers, why);
    if (rc == ERR_OK) rc = model_open(c->file, o->quantize, c->kernels, c->workers, &c->model, why);
    if (rc == ERR_OK && o->n_nodes == 0) rc = load_local_experts(c, why);
    return rc;
}

static enum err_code open_drivers(struct coordinator *c, struct err *why)
{
    const struct coordinator_options *o = c->o;
    bool remote = o->n_nodes > 0;
    c->metrics = metrics_open();
    if (c->metrics == NULL) return err_nomem(why, "metrics");
    struct engine_driver_cfg cfg = {
        .file = c->file,
        .model = c->model,
        .kernels = c->kernels,
        .workers = c->workers,
        .local = c->local,
        .quantize = o->quantize,
        .targets = c->targets,
        .n_targets = o->n_nodes,
        .replicas = o->replicas,
        .placement_seed = o->placement_seed,
        .ctx = c->sizing.ctx,
        .chunk = o->chunk,
        .n_kv_blocks = c->sizing.n_kv_blocks,
        .max_waiting = o->queue,
        .max_running = c->sizing.max_running,
        .max_decode_rows = MAX_DECODE_ROWS,
        /* Decoding reads weights: two half batches read more experts than a whole one, which costs more
                                     * than overlapping attention with experts gains. Prompts compute, so they overlap. */
        .decode_slots = 1,
        .prefill_slots = remote ? 2 : 1,
        .spin_us = o->spin_us,
        .metrics = c->metrics,
        .node_changed = on_node_changed,
        .ready_changed = on_ready_changed,
        .after_poll = after_poll,
        .callback_ctx = c};
    enum err_code rc = engine_driver_open(&cfg, c->rpc, &c->engine, why);
    if (rc == ERR_OK)
        rc = client_driver_open(&c->loop, engine_driver_wake, c->engine, &c->clients, why);
    return rc;
}

static uint64_t stored_bytes(const struct model_file *f)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < model_file_n_paths(f); i++)
        bytes += model_file_size(f, i);
    return bytes;
}

static struct generation_model describe_model(const struct coordinator *c)
{
    const struct hparams *hp = model_file_hparams(c->file);
    return (struct generation_model){
        .id = c->name,
        .created = clock_unix_seconds(),
        .ctx = c->sizing.ctx,
        .vocab = hp->vocab,
        .n_layers = hp->n_layers,
        .n_experts = hp->n_experts,
        .top_k = hp->top_k,
        .n_params = plan_params(c->file).total,
        .bytes = stored_bytes(c->file),
        .tokenizer = c->tokenizer,
        .chat_template = c->chat,
        .reply_format = &c->reply_format,
        .default_temperature =
            hp->do_sample && hp->temperature == hp->temperature ? hp->temperature : 1.0f,
        .default_top_p = hp->do_sample && hp->top_p == hp->top_p ? hp->top_p : 1.0f,
        .default_top_k = hp->do_sample ? hp->top_k_default : 0,
        .eos = hp->eos,
        .n_eos = hp->n_eos,
        .digest = c->digest,
        .request_ms = c->o->request_ms,
    };
}

/* Clients must leave descriptors to the links to nodes and to gRPC; 0: the default. */
static uint32_t connections_allowed(const struct coordinator *c)
{
    uint32_t share = c->descriptors / 4;
    if (share >= LIMIT_HTTP_CONNECTIONS) return 0;
    log_warn(
        "coordinator",
        "msg=\"this process may open %u files and sockets: HTTP gets %u connections instead of "
        "%u (raise the hard limit, ulimit -Hn)\"",
        c->descriptors, share, LIMIT_HTTP_CONNECTIONS);
    return share;
}

static enum err_code open_api(struct coordinator *c, struct err *why)
{
    struct api_cfg cfg = {.addresses = c->http_at,
                          .model = describe_model(c),
                          .metrics = c->metrics,
                          .version = MOESAIC_VERSION,
                          .git = "",
                          .build = c->kernels->name,
                          .protocol_version = FRAME_PROTOCOL,
                          .http = {.connections = connections_allowed(c)}};
    client_driver_service(c->clients, &cfg.service);
    return api_open(&c->loop, &cfg, &c->api, why);
}

static enum err_code open_grpc(struct coordinator *c, struct err *why)
{
    c->health = rpc_health_open();
    if (c->health == NULL) return err_nomem(why, "gRPC health");
    struct grpc_service_cfg cfg = {.model = describe_model(c),
                                   .metrics = c->metrics,
                                   .health = c->health,
                                   .wake = engine_driver_wake,
                                   .wake_ctx = c->engine};
    client_driver_service(c->clients, &cfg.service);
    enum err_code rc = grpc_service_open(&c->loop, &cfg, &c->generate, why);
    if (rc != ERR_OK) return rc;
    struct rpc_method methods[3];
    rpc_health_methods(c->health, methods);
    methods[2] = grpc_service_method(c->generate);
    return rpc_server_open(c->rpc, c->grpc_at, methods, 3, &c->grpc, why);
}

static enum err_code open_loop(struct coordinator *c, struct err *why)
{
    int e = uv_loop_init(&c->loop);
    if (e != 0) return err_set(why, ERR_IO, "event loop: %s", uv_strerror(e));
    e = uv_async_init(&c->loop, &c->signal, on_signal);
    if (e == 0) e = uv_async_init(&c->loop, &c->news, on_news);
    if (e != 0) {
        uv_walk(&c->loop, close_handle, NULL);
        uv_run(&c->loop, UV_RUN_DEFAULT);
        uv_loop_close(&c->loop);
        return err_set(why, ERR_IO, "event loop: %s", uv_strerror(e));
    }
    uv_timer_init(&c->loop, &c->drain_timer);
    uv_timer_init(&c->loop, &c->ready_timer);
    c->signal.data = c->news.data = c->drain_timer.data = c->ready_timer.data = c;
    atomic_store(&c->loop_open, true);
    return ERR_OK;
}

static void close_rest(struct coordinator *c)
{
    if (c->loop_open) {
        uv_walk(&c->loop, close_handle, NULL);
        uv_run(&c->loop, UV_RUN_DEFAULT);
        uv_loop_close(&c->loop);
    }
    engine_driver_close(c->engine); /* first: polling below must not bring it news of its nodes */
    if (c->generate != NULL) grpc_service_pump(c->generate);
    if (c->health != NULL) rpc_health_finish(c->health);
    rpc_server_close(c->grpc, GRPC_GRACE_MS);
    grpc_service_close(c->generate);
    rpc_health_close(c->health);
    model_close(c->model);
    expert_store_close(c->local);
    workers_close(c->workers);
    if (c->rpc != NULL) rpc_close(c->rpc);
    chat_template_close(c->chat);
    tokenizer_close(c->tokenizer);
    metrics_close(c->metrics);
    model_file_close(c->file);
    mem_free(c->node_text);
    mem_free(c->targets);
    mem_free(c->told_usable);
}

enum err_code coordinator_run(const struct coordinator_options *o, struct err *why)
{
    struct coordinator *c = mem_zalloc(sizeof *c);
    if (c == NULL) return err_nomem(why, "coordinator");
    c->o = o;
    c->descriptors = descriptors_raise();
    enum err_code rc = watch_open(o->parent_fd, on_watch, c, &c->watch, why);
    if (rc == ERR_OK) rc = load(c, why);
    if (rc == ERR_OK) rc = open_loop(c, why);
    if (rc == ERR_OK) rc = open_drivers(c, why);
    if (rc == ERR_OK) rc = open_api(c, why);
    if (rc == ERR_OK) rc = open_grpc(c, why);
    if (rc == ERR_OK) rc = engine_driver_start(c->engine, c->clients, why);
    if (rc == ERR_OK) {
        if (atomic_load(&c->asked_to_stop)) uv_async_send(&c->signal);
        uv_run(&c->loop, UV_RUN_DEFAULT);
        log_info("coordinator", "msg=\"drained, ending\"");
    } else {
        grpc_service_stop(c->generate, NULL, NULL);
        if (c->api != NULL) api_close(c->api, NULL, NULL);
        if (c->clients != NULL) client_driver_close(c->clients, NULL, NULL);
    }
    watch_close(c->watch);
    close_rest(c);
    mem_free(c);
    return rc;
}
