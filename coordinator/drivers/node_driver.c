#include "coordinator/drivers/node_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/metrics.h"
#include "coordinator/drivers/node_link.h"

#define LOCAL_QUEUE 256u /* steps: dispatch keeps at most a few per slot under way */

struct node_driver {
    struct node_driver_cfg cfg;
    const struct hparams *hp;
    uint32_t n_nodes;
    struct node_link **links; /* [n_targets] */
    bool *usable, *lane_up;   /* [n_nodes], [n_nodes * lanes] */
    bool place_again;         /* the placement is older than what nodes hold */
    struct placement *placement;
    uint64_t epoch;
    struct expert_hello hello;
    char digest[33], id[64];

    uint64_t local_steps[LOCAL_QUEUE]; /* ring of step numbers */
    uint32_t local_head, local_count;
    void **out; /* scratch of local steps */
    struct expert_task *tasks;
    uint32_t *rows;
    size_t cap_entries;
};

/* ---- placement: always what nodes say they hold ------------------------------------------------ */

static size_t bitmap_row(const struct node_driver *d)
{
    return (d->hp->n_experts + 7) / 8;
}

static enum err_code placement_now(struct node_driver *d, struct placement **out, struct err *why)
{
    if (d->cfg.n_targets == 0)
        return placement_spread(d->hp->n_layers, d->hp->n_experts, 1, 1, 0, out, why);
    const uint8_t **held = mem_zalloc_array(d->n_nodes, sizeof *held);
    if (held == NULL) return err_nomem(why, "placement");
    for (uint32_t i = 0; i < d->n_nodes; i++)
        held[i] = d->links[i] != NULL ? node_link_held(d->links[i]) : NULL;
    enum err_code rc = placement_from_holdings(d->hp->n_layers, d->hp->n_experts, d->n_nodes, held,
                                               ++d->epoch, out, why);
    mem_free(held);
    return rc;
}

/* Something changed in what is held: a new placement for the engine. */
static void place(struct node_driver *d)
{
    struct placement *p;
    struct err why;
    d->place_again = placement_now(d, &p, &why) != ERR_OK;
    if (d->place_again) return; /* memory is short: node_driver_retry */
    placement_release(d->placement);
    d->placement = p;
    struct engine_event ev = {.kind = ENGINE_PLACEMENT, .placement = p};
    d->cfg.event(d->cfg.ctx, &ev);
}

void node_driver_retry(struct node_driver *d)
{
    if (d->place_again) place(d);
}

static void on_lane(void *ctx, uint32_t node, enum dispatch_lane lane, bool up)
{
    struct node_driver *d = ctx;
    if (up) place(d); /* before NODE_UP, so that waiting steps find the node */
    d->lane_up[node * DISPATCH_N_LANES + lane] = up;
    struct engine_event ev = {.kind = up ? ENGINE_NODE_UP : ENGINE_NODE_DOWN, .node = {node, lane}};
    d->cfg.event(d->cfg.ctx, &ev);
    bool *lanes = &d->lane_up[node * DISPATCH_N_LANES];
    bool usable = lanes[DISPATCH_DECODE] && lanes[DISPATCH_BULK];
    if (usable == d->usable[node]) return;
    d->usable[node] = usable;
    d->cfg.changed(d->cfg.ctx, node, usable, node_link_reason(d->links[node]));
}

static void on_state(void *ctx, uint32_t node)
{
    struct node_driver *d = ctx;
    if (d->links[node] == NULL) return;
    d->cfg.changed(d->cfg.ctx, node, d->usable[node], node_link_reason(d->links[node]));
}

/* ---- results ---------------------------------------------------------------------------------- */

/* What can be told from a right answer is refused here. Numbers that are wrong and nothing else cannot: a node is trusted
 * with them. No text names the step, so that one complaint over and over is logged once a minute. */
static enum err_code on_result(void *ctx, uint32_t node, const struct expert_reply *r,
                               const struct rpc_message *m, struct err *why)
{
    struct node_driver *d = ctx;
    const struct engine *e = d->cfg.engine(d->cfg.ctx);
    const struct dispatch_step *s = engine_find_step(e, r->step);
    struct engine_event ev = {.kind = ENGINE_REPLY, .reply = {.step = r->step, .why = ""}};
    if (s ==
        NULL) { /* late: it was replayed, or its pass is gone; but the node is not silent any more */
        if (!dispatch_was_given(engine_dispatch(e), r->step))
            return err_set(why, ERR_INVALID, "an answer for a step that was never asked");
        d->cfg.event(d->cfg.ctx, &ev);
        return ERR_OK;
    }
    if (s->node != node)
        return err_set(why, ERR_INVALID, "an answer for a step that was asked of node %u", s->node);
    if (s->sent_us == 0)
        return err_set(why, ERR_INVALID, "an answer for a step that is not sent yet");
    uint64_t sent_us = s->sent_us;
    if (r->kind == EXPERT_REPLY_ERROR) {
        ev.kind = ENGINE_STEP_FAILED;
        ev.reply.why = r->error_text;
        d->cfg.event(d->cfg.ctx, &ev);
        return ERR_OK;
    }
    bool bf16 = compute_driver_reply_bf16(d->cfg.compute);
    size_t row_bytes = (size_t)d->hp->hidden * (bf16 ? 2 : 4);
    struct model_pass *pass = compute_driver_pass(d->cfg.compute, s->slot);
    if (r->rows != s->n_entries || (r->format == FRAME_BF16) != bf16 ||
        rpc_message_tensor_bytes(m) != row_bytes * s->n_entries)
        return err_set(
            why, ERR_INVALID,
            "an answer of %u rows of format %d in %zu bytes to a step that has %u rows of "
            "format %d, %zu bytes",
            r->rows, (int)r->format, rpc_message_tensor_bytes(m), s->n_entries,
            bf16 ? FRAME_BF16 : FRAME_F32, row_bytes * s->n_entries);
    uint8_t *results = model_pass_results(pass);
    for (uint32_t i = 0; i < s->n_entries; i++)
        rpc_message_tensor_copy(m, i * row_bytes, results + s->result_slot[i] * row_bytes,
                                row_bytes);
    metrics_observe(d->cfg.metrics, METRIC_EXPERT_RPC, (double)(clock_now_us() - sent_us) * 1e-6);
    d->cfg.event(d->cfg.ctx, &ev);
    return ERR_OK;
}

/* ---- steps out -------------------------------------------------------------------------------- */

/* The rows of a step, gathered: they must outlive the pass' scratch, which goes on when a step is replayed. */
static void *gather(const struct rows *in, const struct dispatch_step *s, size_t *bytes)
{
    size_t data = row_data_bytes(in->format, in->k), scales = row_scale_bytes(in->format, in->k);
    *bytes = (data + scales) * s->n_rows;
    uint8_t *out = mem_alloc(*bytes), *at = out;
    if (out == NULL) return NULL;
    for (uint32_t i = 0; i < s->n_rows; i++, at += data)
        memcpy(at, (uint8_t *)in->data + s->rows[i] * data, data);
    for (uint32_t i = 0; i < s->n_rows && scales > 0; i++, at += scales)
        memcpy(at, (uint8_t *)in->scales + s->rows[i] * scales, scales);
    return out;
}

static bool send_remote(struct node_driver *d, const struct dispatch_step *s)
{
    const struct rows *in = model_pass_expert_rows(compute_driver_pass(d->cfg.compute, s->slot));
    size_t bytes;
    void *tensor = gather(in, s, &bytes);
    uint32_t experts[LIMIT_EXPERTS];
    for (uint32_t i = 0; i < s->n_experts; i++)
        experts[i] = s->experts[i];
    struct expert_request q = {.kind = EXPERT_REQUEST_STEP,
                               .step = s->id,
                               .epoch = s->epoch,
                               .layer = s->layer,
                               .format = (enum frame_format)in->format,
                               .rows = s->n_rows,
                               .experts = experts,
                               .expert_rows = s->expert_rows,
                               .n_experts = s->n_experts,
                               .row_index = s->row_index,
                               .n_index = s->n_entries};
    return tensor != NULL && node_link_send(d->links[s->node], s->lane, &q, tensor, bytes);
}

bool node_driver_send(struct node_driver *d, const struct dispatch_step *step)
{
    if (d->cfg.n_targets > 0) return send_remote(d, step);
    if (d->local_count == LOCAL_QUEUE) return false;
    d->local_steps[(d->local_head + d->local_count++) % LOCAL_QUEUE] = step->id;
    return true;
}

static bool reserve_entries(struct node_driver *d, size_t n)
{
    if (n <= d->cap_entries) return true;
    void **out = mem_realloc(d->out, n * sizeof *out);
    if (out != NULL) d->out = out;
    uint32_t *rows = mem_realloc(d->rows, n * sizeof *rows);
    if (rows != NULL) d->rows = rows;
    if (out == NULL || rows == NULL) return false;
    d->cap_entries = n;
    return true;
}

bool node_driver_run_local(struct node_driver *d)
{
    if (d->local_count == 0) return false;
    uint64_t id = d->local_steps[d->local_head];
    d->local_head = (d->local_head + 1) % LOCAL_QUEUE;
    d->local_count--;
    const struct dispatch_step *s = engine_find_step(d->cfg.engine(d->cfg.ctx), id);
    if (s == NULL) return true; /* its pass is gone */
    struct model_pass *pass = compute_driver_pass(d->cfg.compute, s->slot);
    if (!reserve_entries(d, s->n_entries)) {
        struct engine_event failed = {.kind = ENGINE_STEP_FAILED,
                                      .reply = {.step = id, .why = "no memory"}};
        d->cfg.event(d->cfg.ctx, &failed);
        return true;
    }
    size_t row_bytes = (size_t)d->hp->hidden * (compute_driver_reply_bf16(d->cfg.compute) ? 2 : 4);
    uint8_t *results = model_pass_results(pass);
    for (uint32_t i = 0; i < s->n_entries; i++) {
        d->rows[i] = s->rows[s->row_index[i]];
        d->out[i] = results + s->result_slot[i] * row_bytes;
    }
    for (uint32_t i = 0, at = 0; i < s->n_experts; at += s->expert_rows[i], i++)
        d->tasks[i] = (struct expert_task){s->experts[i], s->expert_rows[i],
                                           model_pass_expert_rows(pass), d->rows + at, d->out + at};
    struct err why;
    struct engine_event ev = {.kind = ENGINE_REPLY, .reply = {.step = id, .why = ""}};
    /* While this computes, the pump may take events that end the pass: the step is looked up again by the engine. */
    if (expert_store_run(d->cfg.local, s->layer, d->tasks, s->n_experts, d->cfg.workers, &why) !=
        ERR_OK) {
        ev.kind = ENGINE_STEP_FAILED;
        ev.reply.why = why.text;
    }
    d->cfg.event(d->cfg.ctx, &ev);
    return true;
}

/* ---- life ------------------------------------------------------------------------------------- */

enum err_code node_driver_open(const struct node_driver_cfg *cfg, struct node_driver **out,
                               struct placement **placement, struct err *why)
{
    struct node_driver *d = mem_zalloc(sizeof *d);
    if (d == NULL) return err_nomem(why, "node driver");
    d->cfg = *cfg;
    d->hp = model_file_hparams(cfg->file);
    d->n_nodes = cfg->n_targets > 0 ? cfg->n_targets : 1;
    model_file_digest(cfg->file, cfg->quantize, d->digest);
    snprintf(d->id, sizeof d->id, "coordinator-%d", (int)getpid());
    d->hello = (struct expert_hello){.protocol = FRAME_PROTOCOL,
                                     .model_digest = d->digest,
                                     .numerics = NUMERICS_VERSION,
                                     .wire_profile = WIRE_PROFILE,
                                     .quantize = cfg->quantize,
                                     .id = d->id,
                                     .incarnation = clock_now_ns(),
                                     .epoch = 1,
                                     .kernels = cfg->kernels_name};
    d->links = mem_zalloc_array(d->n_nodes, sizeof *d->links);
    d->usable = mem_zalloc_array(d->n_nodes, sizeof *d->usable);
    d->lane_up = mem_zalloc_array(d->n_nodes, DISPATCH_N_LANES * sizeof *d->lane_up);
    d->tasks = mem_zalloc_array(d->hp->n_experts + 1, sizeof *d->tasks);
    enum err_code rc = ERR_OK;
    if (d->links == NULL || d->usable == NULL || d->lane_up == NULL || d->tasks == NULL)
        rc = err_nomem(why, "node driver");
    if (rc == ERR_OK) rc = placement_now(d, &d->placement, why);
    if (rc != ERR_OK) {
        node_driver_close(d);
        return rc;
    }
    *placement = placement_acquire(d->placement);
    *out = d;
    return ERR_OK;
}

enum err_code node_driver_start(struct node_driver *d, struct err *why)
{
    if (d->cfg.n_targets == 0) {
        d->usable[0] = true;
        for (int lane = 0; lane < DISPATCH_N_LANES; lane++) {
            struct engine_event up = {.kind = ENGINE_NODE_UP,
                                      .node = {0, (enum dispatch_lane)lane}};
            d->cfg.event(d->cfg.ctx, &up);
        }
        d->cfg.changed(d->cfg.ctx, 0, true, "");
        return ERR_OK;
    }
    struct placement *plan;
    enum err_code rc = placement_spread(d->hp->n_layers, d->hp->n_experts, d->n_nodes,
                                        d->cfg.replicas, d->cfg.placement_seed, &plan, why);
    if (rc != ERR_OK) return rc;
    for (uint32_t i = 0; i < d->n_nodes && rc == ERR_OK; i++) {
        uint8_t *assign = placement_node_bitmap(plan, i);
        if (assign == NULL) {
            rc = err_nomem(why, "placement");
            break;
        }
        for (uint32_t l = 0; l < d->hp->n_layers; l++) /* dense layers have nothing to hold */
            if (!d->hp->is_moe[l]) memset(assign + l * bitmap_row(d), 0, bitmap_row(d));
        struct node_link_cfg cfg = {.node = i,
                                    .target = d->cfg.targets[i],
                                    .rpc = d->cfg.rpc,
                                    .hello = &d->hello,
                                    .n_layers = d->hp->n_layers,
                                    .n_experts = d->hp->n_experts,
                                    .assign = assign,
                                    .handlers = {on_lane, on_state, on_result},
                                    .ctx = d};
        rc = node_link_open(&cfg, &d->links[i], why);
    }
    placement_release(plan);
    return rc;
}

void node_driver_close(struct node_driver *d)
{
    if (d == NULL) return;
    for (uint32_t i = 0; d->links != NULL && i < d->n_nodes; i++)
        node_link_close(d->links[i]);
    placement_release(d->placement);
    mem_free(d->links);
    mem_free(d->usable);
    mem_free(d->lane_up);
    mem_free(d->tasks);
    mem_free(d->out);
    mem_free(d->rows);
    mem_free(d);
}

uint32_t node_driver_count(const struct node_driver *d)
{
    return d->n_nodes;
}

/* ---- what people see -------------------------------------------------------------------------- */

static bool is_served(const struct node_driver *d, uint32_t layer, uint32_t expert)
{
    const uint16_t *nodes;
    uint32_t n = placement_replicas(d->placement, layer, expert, &nodes);
    for (uint32_t i = 0; i < n; i++)
        if (d->usable[nodes[i]]) return true;
    return false;
}

uint32_t node_driver_unserved(const struct node_driver *d, uint32_t *layer, uint32_t *expert)
{
    uint32_t missing = 0;
    for (uint32_t l = 0; l < d->hp->n_layers; l++) {
        for (uint32_t e = 0; d->hp->is_moe[l] && e < d->hp->n_experts; e++) {
            if (is_served(d, l, e)) continue;
            if (missing == 0 && layer != NULL) *layer = l;
            if (missing == 0 && expert != NULL) *expert = e;
            missing++;
        }
    }
    return missing;
}

uint64_t node_driver_epoch(const struct node_driver *d)
{
    return placement_epoch(d->placement);
}

bool node_driver_complete(const struct node_driver *d, char *reason, size_t reason_bytes)
{
    uint32_t layer = 0, expert = 0;
    if (reason_bytes > 0) reason[0] = '\0';
    if (node_driver_unserved(d, &layer, &expert) == 0) return true;
    int len = snprintf(reason, reason_bytes, "no node holds expert %u of layer %u;", expert, layer);
    for (uint32_t i = 0;
         i < d->n_nodes && d->links[i] != NULL && len > 0 && (size_t)len < reason_bytes; i++)
        if (!d->usable[i])
            len += snprintf(reason + len, reason_bytes - (size_t)len, " node %u (%s) %s: %s;", i,
                            node_link_target(d->links[i]),
                            node_link_state_name(node_link_state(d->links[i])),
                            node_link_reason(d->links[i]));
    return false;
}

void node_driver_facts(const struct node_driver *d, uint32_t node, struct node_driver_facts *out)
{
    if (d->cfg.n_targets == 0) {
        *out = (struct node_driver_facts){"in this process",
                                          "local",
                                          d->cfg.kernels_name,
                                          "ready",
                                          expert_store_count(d->cfg.local),
                                          workers_count(d->cfg.workers),
                                          expert_store_bytes(d->cfg.local),
                                          0,
                                          0,
                                          true,
                                          true};
        return;
    }
    const struct node_link *l = d->links[node];
    const char *state = node_link_state_name(node_link_state(l));
    if (node_link_state(l) == NODE_LINK_READY && !d->usable[node])
        state = "suspect"; /* one lane of two is down */
    *out = (struct node_driver_facts){node_link_target(l),
                                      node_link_id(l),
                                      node_link_kernels(l),
                                      state,
                                      node_link_n_held(l),
                                      node_link_threads(l),
                                      node_link_bytes(l),
                                      node_link_round_trip_us(l),
                                      node_link_bytes_per_second(l),
                                      d->usable[node],
                                      false};
}

json_t *node_driver_nodes_json(const struct node_driver *d)
{
    json_t *all = json_array();
    for (uint32_t i = 0; i < d->n_nodes; i++) {
        struct node_driver_facts f;
        struct dispatch_node_stats s;
        node_driver_facts(d, i, &f);
        dispatch_node_stats(engine_dispatch(d->cfg.engine(d->cfg.ctx)), i, &s);
        json_t *n = json_pack(
            "{s:i,s:s,s:s,s:s,s:s,s:i,s:i,s:I,s:i,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "index", i,
            "id", f.id, "state", f.state, "address", f.address, "kernels", f.kernels, "threads",
            f.threads, "experts", f.experts, "bytes", (json_int_t)f.bytes, "in_flight", s.in_flight,
            "rows_served", (json_int_t)s.rows, "steps", (json_int_t)s.steps, "replays_from",
            (json_int_t)s.replays_from, "bytes_out", (json_int_t)s.bytes_out, "bytes_in",
            (json_int_t)s.bytes_in, "round_trip_p50_us", (json_int_t)s.p50_us, "round_trip_p99_us",
            (json_int_t)s.p99_us, "link_round_trip_us", (json_int_t)f.round_trip_us,
            "link_bytes_per_second", (json_int_t)f.bytes_per_second);
        if (n != NULL && !f.local && !f.usable)
            json_object_set_new(n, "reason", json_string(node_link_reason(d->links[i])));
        json_array_append_new(all, n);
    }
    return all;
}

json_t *node_driver_placement_json(const struct node_driver *d)
{
    json_t *layers = json_object();
    for (uint32_t l = 0; l < d->hp->n_layers; l++) {
        if (!d->hp->is_moe[l]) continue;
        json_t *experts = json_array();
        for (uint32_t e = 0; e < d->hp->n_experts; e++) {
            const uint16_t *nodes;
            uint32_t n = placement_replicas(d->placement, l, e, &nodes);
            json_t *list = json_array();
            for (uint32_t i = 0; i < n; i++)
                json_array_append_new(list, json_integer(nodes[i]));
            json_array_append_new(experts, list);
        }
        char key[16];
        snprintf(key, sizeof key, "%u", l);
        json_object_set_new(layers, key, experts);
    }
    return json_pack("{s:I,s:o}", "epoch", (json_int_t)placement_epoch(d->placement), "layers",
                     layers);
}
