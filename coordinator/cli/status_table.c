#include "coordinator/cli/status_table.h"

#include <stdio.h>
#include <string.h>

#include "common/sys/memory.h"

static json_int_t number(const json_t *v, const char *key)
{
    return json_integer_value(json_object_get(v, key));
}

static const char *text(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s != NULL ? s : "";
}

bool status_all_ready(const json_t *cluster)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(cluster, "nodes"), i, node)
    {
        if (strcmp(text(node, "state"), "ready") != 0) return false;
    }
    return true;
}

void status_print_nodes(const json_t *cluster)
{
    const json_t *nodes = json_object_get(cluster, "nodes");
    size_t i;
    json_t *node;
    json_int_t rows = 0;
    json_array_foreach(nodes, i, node) rows += number(node, "rows_served");
    printf("  %-14s %-11s %-21s %7s %9s %10s %6s %9s %17s\n", "node", "state", "address", "experts",
           "memory", "rows", "share", "in flight", "p50 / p99");
    json_array_foreach(nodes, i, node)
    {
        char memory[32], trip[40] = "-";
        memory_text((uint64_t)number(node, "bytes"), memory);
        if (number(node, "round_trip_p50_us") > 0)
            snprintf(trip, sizeof trip, "%lld / %lld us",
                     (long long)number(node, "round_trip_p50_us"),
                     (long long)number(node, "round_trip_p99_us"));
        printf("  %-14s %-11s %-21s %7lld %9s %10lld %5.1f%% %9lld %17s\n",
               text(node, "id")[0] ? text(node, "id") : "?", text(node, "state"),
               text(node, "address"), (long long)number(node, "experts"), memory,
               (long long)number(node, "rows_served"),
               rows > 0 ? 100.0 * (double)number(node, "rows_served") / (double)rows : 0.0,
               (long long)number(node, "in_flight"), trip);
    }
}

void status_print_engine(const json_t *cluster)
{
    const json_t *e = json_object_get(cluster, "engine");
    printf(
        "  running %lld, waiting %lld, cache %lld of %lld blocks; %lld prompt tokens, %lld generated; %lld rows replayed\n",
        (long long)number(e, "running"), (long long)number(e, "waiting"),
        (long long)number(e, "kv_blocks_used"), (long long)number(e, "kv_blocks"),
        (long long)number(e, "tokens_prefilled"), (long long)number(e, "tokens_decoded"),
        (long long)number(e, "rows_replayed"));
}
