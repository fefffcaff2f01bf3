/* moesaic-coordinator: attention, router, scheduler and API. `moesaic coordinator` runs it. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/options.h"
#include "common/modelfile/plan.h"
#include "common/sys/memory.h"
#include "coordinator/coordinator.h"

enum {
    OPT_NODES = 256,
    OPT_REPLICAS,
    OPT_HTTP,
    OPT_GRPC,
    OPT_QUANTIZE,
    OPT_THREADS,
    OPT_CTX,
    OPT_CHUNK,
    OPT_SEED,
    OPT_INSECURE,
    OPT_CPU,
    OPT_SPIN,
    OPT_LOG_LEVEL,
    OPT_PARENT_FD,
    OPT_NAME,
    OPT_QUEUE,
    OPT_KV_BYTES,
    OPT_DRAIN,
    OPT_REQUEST_TIMEOUT,
    OPT_TOOL_PARSER,
    OPT_REASONING_PARSER
};

struct all_options {
    struct coordinator_options c;
    enum log_level log_level;
    bool spin_given;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Cluster", 1},
    {"nodes", OPT_NODES, "HOST:PORT,...", 0,
     "Expert nodes (default port 7070); without it experts are computed here", 1},
    {"replicas", OPT_REPLICAS, "R", 0, "Copies of each expert on different nodes (default 1)", 1},
    {"placement-seed", OPT_SEED, "S", 0,
     "Permutes the start placement; the answers do not depend on it (default 0)", 1},
    {NULL, 0, NULL, 0, "Addresses", 2},
    {"http", OPT_HTTP, "HOST:PORT", 0,
     "OpenAI-compatible API (default 127.0.0.1:8080; port 0: a free one)", 2},
    {"grpc", OPT_GRPC, "HOST:PORT", 0, "gRPC API (default 127.0.0.1:8081)", 2},
    {"insecure", OPT_INSECURE, NULL, 0,
     "Allow addresses outside this machine without keys and encryption", 2},
    {NULL, 0, NULL, 0, "Model and memory", 3},
    {"name", OPT_NAME, "ID", 0, "Name of the model in the API (default: the folder's name)", 3},
    {"quantize", OPT_QUANTIZE, "none|q8_0|q4_0|mxfp4", 0,
     "Pack 16-bit and FP8 weights to 8-bit or 4-bit blocks at load (default none)", 3},
    {"ctx", OPT_CTX, "N", 0, "Context in tokens (default: the model's, or what memory leaves)", 3},
    {"kv-bytes", OPT_KV_BYTES, "BYTES", 0,
     "Memory for keys and values of all sequences (default: by rule, half of what is free)", 3},
    {"chunk", OPT_CHUNK, "N", 0, "Prompt tokens in one pass (default 256)", 3},
    {"threads", OPT_THREADS, "T", 0, "Threads that compute (default: all cores)", 3},
    {"cpu", OPT_CPU, "ref|avx2|avx512", 0, "Kernels (default: the best this CPU runs)", 3},
    {"spin-us", OPT_SPIN, "US", 0,
     "Poll busily so long before sleeping (default 200; 0 when threads exceed cores)", 3},
    {NULL, 0, NULL, 0, "Requests", 4},
    {"queue", OPT_QUEUE, "N", 0, "Waiting sequences, then 503 (default 64)", 4},
    {"request-timeout", OPT_REQUEST_TIMEOUT, "SECONDS", 0, "A request's longest time (default 600)",
     4},
    {"tool-parser", OPT_TOOL_PARSER, "NAME", 0,
     "How the model calls tools: hermes, qwen3_coder, glm45, kimi_k2, deepseek_v3, mistral, granite, llama3_json, "
     "harmony, none, or auto: as its chat template says (default auto)",
     4},
    {"reasoning-parser", OPT_REASONING_PARSER, "NAME", 0,
     "How it marks its reasoning: think, granite, mistral, harmony, none or auto (default auto)",
     4},
    {"drain-timeout", OPT_DRAIN, "SECONDS", 0,
     "At SIGTERM, time for requests under way (default 30)", 4},
    {"log-level", OPT_LOG_LEVEL, "LEVEL", 0, "error, warn, info, debug or trace (default info)", 5},
    {"parent-fd", OPT_PARENT_FD, "FD", OPTION_HIDDEN, "", 5},
    {0},
};

static void parse_nodes(struct coordinator_options *c, char *list, struct argp_state *state)
{
    c->n_nodes = 0;
    for (char *at = list, *end; at != NULL; at = end) {
        end = strchr(at, ',');
        if (end != NULL) *end++ = '\0';
        if (at[0] == '\0')
            argp_error(state, "--nodes: an address is empty; want HOST:PORT,HOST:PORT");
        if (c->n_nodes == LIMIT_NODES) argp_error(state, "--nodes: more than %u", LIMIT_NODES);
        c->nodes[c->n_nodes++] = at;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct all_options *a = state->input;
    struct coordinator_options *c = &a->c;
    enum quantize q;
    int level;
    switch (key) {
    case OPT_NODES:
        parse_nodes(c, arg, state);
        break;
    case OPT_REPLICAS:
        c->replicas = (uint32_t)options_number(state, "replicas", arg, 1, LIMIT_NODES);
        break;
    case OPT_SEED:
        c->placement_seed = options_number(state, "placement-seed", arg, 0, UINT64_MAX);
        break;
    case OPT_HTTP:
        c->http = arg;
        break;
    case OPT_GRPC:
        c->grpc = arg;
        break;
    case OPT_INSECURE:
        c->insecure = true;
        break;
    case OPT_NAME:
        c->name = arg;
        break;
    case OPT_QUANTIZE:
        if (!quantize_find(arg, &q))
            argp_error(state, "--quantize=%s: one of %s is wanted", arg, quantize_names());
        c->quantize = arg;
        break;
    case OPT_CTX:
        c->ctx = (uint32_t)options_number(state, "ctx", arg, 1, LIMIT_CONTEXT);
        break;
    case OPT_KV_BYTES:
        c->kv_bytes = options_number(state, "kv-bytes", arg, 1 << 16, UINT64_MAX / 2);
        break;
    case OPT_CHUNK:
        c->chunk = (uint32_t)options_number(state, "chunk", arg, 1, 4096);
        break;
    case OPT_THREADS:
        c->threads = (uint32_t)options_number(state, "threads", arg, 1, 1024);
        break;
    case OPT_CPU:
        c->cpu = arg;
        break;
    case OPT_SPIN:
        c->spin_us = (uint32_t)options_number(state, "spin-us", arg, 0, 1000000);
        a->spin_given = true;
        break;
    case OPT_QUEUE:
        c->queue = (uint32_t)options_number(state, "queue", arg, 1, 512);
        break;
    case OPT_REQUEST_TIMEOUT:
        c->request_ms = (uint32_t)options_number(state, "request-timeout", arg, 1, 86400) * 1000;
        break;
    case OPT_TOOL_PARSER:
        c->tool_parser = arg;
        break;
    case OPT_REASONING_PARSER:
        c->reasoning_parser = arg;
        break;
    case OPT_DRAIN:
        c->drain_ms = (uint32_t)options_number(state, "drain-timeout", arg, 0, 86400) * 1000;
        break;
    case OPT_LOG_LEVEL:
        level = log_level_parse(arg);
        if (level < 0)
            argp_error(state, "--log-level=%s: error, warn, info, debug or trace is wanted", arg);
        a->log_level = (enum log_level)level;
        break;
    case OPT_PARENT_FD:
        c->parent_fd = (int)options_number(state, "parent-fd", arg, 0, 1 << 20);
        break;
    case ARGP_KEY_ARG:
        if (c->model != NULL) argp_error(state, "one MODEL is wanted, and '%s' is a second", arg);
        c->model = arg;
        break;
    case ARGP_KEY_END:
        if (c->model == NULL)
            argp_error(state, "MODEL is missing: a folder with config.json and safetensors files");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    parse,
    "MODEL",
    "The coordinator: attention, router, scheduler, HTTP and gRPC API."
    "\vEvery option can stand in the environment: --kv-bytes is MOESAIC_KV_BYTES.\n"
    "SIGTERM finishes what is under way; a second one ends at once.",
    NULL,
    NULL,
    NULL};

int main(int argc, char **argv)
{
    static struct all_options a = {.c = {.http = "127.0.0.1:8080",
                                         .grpc = "127.0.0.1:8081",
                                         .quantize = "none",
                                         .replicas = 1,
                                         .chunk = 256,
                                         .queue = LIMIT_QUEUE,
                                         .spin_us = 200,
                                         .drain_ms = 30000,
                                         .request_ms = LIMIT_REQUEST_MS,
                                         .parent_fd = -1},
                                   .log_level = LOG_INFO};
    a.c.threads = memory_cores();
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &a);
    if (!a.spin_given && a.c.threads > memory_cores()) a.c.spin_us = 0;
    log_setup(a.log_level, "coordinator");
    struct err why;
    enum err_code rc = coordinator_run(&a.c, &why);
    if (rc != ERR_OK) fprintf(stderr, "moesaic-coordinator: %s\n", why.text);
    return options_exit_code(rc);
}
