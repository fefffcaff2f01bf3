#include "coordinator/startup.h"

#include <stdio.h>
#include <string.h>

#include "common/modelfile/plan.h"
#include "common/sys/memory.h"

static json_int_t number(const json_t *node, const char *key)
{
    return json_integer_value(json_object_get(node, key));
}

static const char *text(const json_t *node, const char *key)
{
    const char *s = json_string_value(json_object_get(node, key));
    return s != NULL ? s : "?";
}

static bool is_remote(const json_t *node)
{
    return strcmp(text(node, "id"), "local") != 0;
}

bool startup_measured(const json_t *cluster)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(cluster, "nodes"), i, node)
    {
        if (is_remote(node) && strcmp(text(node, "state"), "ready") == 0 &&
            number(node, "link_round_trip_us") == 0)
            return false;
    }
    return true;
}

/* The network alone allows so many tokens per second to one stream: a round trip to the slowest node in each MoE layer,
 * with one row out and top_k results back over all nodes. */
static double ceiling(const struct hparams *hp, const json_t *nodes)
{
    double worst_us = 0;
    size_t i, n = json_array_size(nodes);
    json_t *node;
    json_array_foreach(nodes, i, node)
    {
        double bytes = (double)hp->hidden * 4 * (1 + (double)hp->top_k / (double)n);
        double rate = (double)number(node, "link_bytes_per_second");
        double us =
            (double)number(node, "link_round_trip_us") + (rate > 0 ? bytes / rate * 1e6 : 0);
        if (us > worst_us) worst_us = us;
    }
    uint32_t layers = 0;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        layers += hp->is_moe[l];
    return worst_us > 0 && layers > 0 ? 1e6 / (worst_us * layers) : 0;
}

static void print_nodes(const struct startup_facts *f)
{
    const json_t *nodes = json_object_get(f->cluster, "nodes");
    size_t i;
    json_t *node;
    json_array_foreach(nodes, i, node)
    {
        char bytes[32], rate[32];
        memory_text((uint64_t)number(node, "bytes"), bytes);
        memory_text((uint64_t)number(node, "link_bytes_per_second"), rate);
        printf("  node %-2zu %-14s %-10s %5lld experts %9s  %s, %lld thread%s", i, text(node, "id"),
               text(node, "state"), (long long)number(node, "experts"), bytes,
               text(node, "kernels"), (long long)number(node, "threads"),
               number(node, "threads") == 1 ? "" : "s");
        if (is_remote(node)) {
            printf("  %s", text(node, "address"));
            if (number(node, "link_round_trip_us") > 0)
                printf("  %lld us, %s/s", (long long)number(node, "link_round_trip_us"), rate);
        }
        printf("\n");
    }
    double limit = ceiling(model_file_hparams(f->file), nodes);
    if (limit > 0)
        printf(
            "  network  allows at most %.0f tokens/s to one stream (slowest node, every layer)\n",
            limit);
}

void startup_print(const struct startup_facts *f)
{
    const struct hparams *hp = model_file_hparams(f->file);
    const struct sizing *z = f->sizing;
    struct plan_params params = plan_params(f->file);
    char weights[32], kv[32], resident[32], experts[32];
    printf("\nMoesaic %s is ready\n", MOESAIC_VERSION);
    printf(
        "  model    %s (%s): %.1f M parameters, %.1f M active; %u layers, %u experts, top %u%s%s\n",
        f->name, hp->family_name, (double)params.total / 1e6, (double)params.active / 1e6,
        hp->n_layers, hp->n_experts, hp->top_k,
        strcmp(f->quantize, "none") == 0 ? "" : ", packed as ",
        strcmp(f->quantize, "none") == 0 ? "" : f->quantize);
    printf("  memory   weights %s%s%s, cache %s for %u tokens; resident now %s\n",
           memory_text(z->weights_bytes, weights), z->experts_bytes > 0 ? ", experts " : "",
           z->experts_bytes > 0 ? memory_text(z->experts_bytes, experts) : "",
           memory_text(z->kv_bytes, kv), z->n_kv_blocks * 64,
           memory_text(memory_resident(), resident));
    printf("  context  %u tokens of the model's %u\n", z->ctx, hp->ctx_max);
    printf("  kernels  %s, %u thread%s\n", f->kernels, f->threads, f->threads == 1 ? "" : "s");
    print_nodes(f);
    if (f->replicas > 1)
        printf("  replicas %u: the loss of any %u node%s is not noticed\n", f->replicas,
               f->replicas - 1, f->replicas == 2 ? "" : "s");
    else if (json_array_size(json_object_get(f->cluster, "nodes")) > 1)
        printf(
            "  replicas 1: while a node is down, answers wait for it (--replicas 2 to go on at once)\n");
    printf("  http     http://%s\n  grpc     %s\n", f->http, f->grpc);
    printf("  try      curl -s http://%s/v1/%s -H 'Content-Type: application/json' \\\n", f->http,
           f->chat ? "chat/completions" : "completions");
    if (f->chat)
        printf(
            "             -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me a story.\"}], \"max_tokens\": 100}'\n");
    else
        printf("             -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 100}'\n");
    printf("           moesaic chat --http %s      moesaic status --http %s\n\n", f->http, f->http);
    fflush(stdout);
}
