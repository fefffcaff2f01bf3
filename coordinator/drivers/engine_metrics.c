#include "coordinator/drivers/engine_metrics.h"

#include <string.h>

#include "common/base/check.h"

#define EVERY_US 250000u

static void publish_states(struct metrics *m, const struct node_driver *nodes)
{
    static const struct {
        const char *state;
        enum metric id;
    } gauges[] = {{"connecting", METRIC_NODES_JOINING}, {"loading", METRIC_NODES_LOADING},
                  {"ready", METRIC_NODES_READY},        {"suspect", METRIC_NODES_SUSPECT},
                  {"draining", METRIC_NODES_DRAINING},  {"refused", METRIC_NODES_DEAD}};
    unsigned counts[ARRAY_LEN(gauges)] = {0};
    for (uint32_t i = 0; i < node_driver_count(nodes); i++) {
        struct node_driver_facts f;
        node_driver_facts(nodes, i, &f);
        for (size_t g = 0; g < ARRAY_LEN(gauges); g++)
            counts[g] += strcmp(f.state, gauges[g].state) == 0;
    }
    for (size_t g = 0; g < ARRAY_LEN(gauges); g++)
        metrics_set(m, gauges[g].id, counts[g]);
}

static void feed(struct metrics *m, enum metric id, uint64_t total, uint64_t *last)
{
    metrics_count(m, id, total - *last);
    *last = total;
}

void engine_metrics_publish(struct engine_metrics *last, struct metrics *m, const struct engine *e,
                            const struct node_driver *nodes, uint64_t now_us)
{
    if (now_us < last->next_us) return;
    last->next_us = now_us + EVERY_US;
    struct engine_stats s;
    engine_stats(e, &s);
    metrics_set(m, METRIC_REQUESTS_RUNNING, s.running);
    metrics_set(m, METRIC_REQUESTS_WAITING, s.waiting);
    metrics_set(m, METRIC_KV_CACHE_USAGE,
                s.kv_blocks > 0 ? (double)s.kv_blocks_used / s.kv_blocks : 0);
    uint64_t steps = 0, out = 0, in = 0;
    for (uint32_t i = 0; i < node_driver_count(nodes); i++) {
        struct dispatch_node_stats n;
        dispatch_node_stats(engine_dispatch(e), i, &n);
        steps += n.steps;
        out += n.bytes_out;
        in += n.bytes_in;
    }
    feed(m, METRIC_EXPERT_RPCS, steps, &last->steps);
    feed(m, METRIC_EXPERT_RPC_REPLAYS, dispatch_replays(engine_dispatch(e)), &last->replays);
    feed(m, METRIC_EXPERT_RPC_SENT, out, &last->bytes_out);
    feed(m, METRIC_EXPERT_RPC_RECEIVED, in, &last->bytes_in);
    publish_states(m, nodes);
    metrics_set(m, METRIC_EXPERTS_WITHOUT_REPLICA, node_driver_unserved(nodes, NULL, NULL));
    metrics_set(m, METRIC_PLACEMENT_EPOCH, (double)node_driver_epoch(nodes));
}
