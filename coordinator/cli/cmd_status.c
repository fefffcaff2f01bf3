/* cmd_status.c - `moesaic status`: one look at a cluster. Exit code 0 ok, 1 degraded, 2 down. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/rpc/frame.h"
#include "common/sys/memory.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/http_client.h"
#include "coordinator/cli/status_table.h"

enum { OPT_HTTP = 256, OPT_JSON, OPT_NODE };
enum { STATUS_OK = 0, STATUS_DEGRADED = 1, STATUS_DOWN = 2 };

struct status_options {
    const char *server, *node;
    bool json;
};

static const struct argp_option options[] = {
    {"http", OPT_HTTP, "HOST:PORT", 0, "The coordinator (default 127.0.0.1:8080)", 0},
    {"node", OPT_NODE, "HOST:PORT", 0, "Ask one expert node instead of a coordinator", 0},
    {"json", OPT_JSON, NULL, 0, "Print the state as JSON", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct status_options *o = state->input;
    switch (key) {
    case OPT_HTTP:
        o->server = arg;
        break;
    case OPT_NODE:
        o->node = arg;
        break;
    case OPT_JSON:
        o->json = true;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "no argument is wanted, and '%s' is one", arg);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    parse,
    "",
    "State of a running cluster.\vExit code: 0 every expert has a node and all nodes are ready; "
    "1 it answers, but a node is missing or an expert has none; 2 no coordinator answers.",
    NULL,
    NULL,
    NULL};

/* What a node says of itself: its Describe call. */
static int node_status(const struct status_options *o)
{
    struct rpc *rpc = NULL;
    struct expert_describe *d = NULL;
    uint8_t *bytes = NULL;
    size_t n;
    struct err why;
    char host[256], target[300];
    unsigned port;
    enum err_code rc = options_address(o->node, "127.0.0.1", 7070, host, &port, &why);
    if (rc == ERR_OK) rc = rpc_open(&rpc, &why);
    if (rc == ERR_OK)
        rc = rpc_unary(rpc, options_address_text(host, port, target, sizeof target),
                       "/moesaic.v1.ExpertService/Describe", "", 0, 5000, &bytes, &n, &why);
    if (rc == ERR_OK) rc = frame_decode_describe(bytes, n, &d, &why);
    if (rc == ERR_OK) {
        char held[32], resident[32];
        double mean = d->multiplications > 0 ? (double)d->rows / (double)d->multiplications : 0;
        if (o->json) {
            struct buf id = {0}, kernels = {0};
            buf_put_json_string(&id, d->hello->id, strlen(d->hello->id));
            buf_put_json_string(&kernels, d->hello->kernels, strlen(d->hello->kernels));
            printf(
                "{\"id\": %s, \"kernels\": %s, \"bytes\": %llu, \"resident_bytes\": %llu, \"steps\": %llu, \"rows\": %llu, "
                "\"multiplications\": %llu}\n",
                id.failed ? "\"\"" : id.data, kernels.failed ? "\"\"" : kernels.data,
                (unsigned long long)d->hello->expert_bytes, (unsigned long long)d->resident_bytes,
                (unsigned long long)d->steps, (unsigned long long)d->rows,
                (unsigned long long)d->multiplications);
            buf_free(&id);
            buf_free(&kernels);
        } else
            printf(
                "%s: %s of experts, %s resident, kernels %s\n  %llu steps, %llu rows in %llu expert multiplications (%.2f rows each)\n",
                d->hello->id, memory_text(d->hello->expert_bytes, held),
                memory_text(d->resident_bytes, resident), d->hello->kernels,
                (unsigned long long)d->steps, (unsigned long long)d->rows,
                (unsigned long long)d->multiplications, mean);
    } else {
        fprintf(stderr, "moesaic status: node %s: down: %s\n", o->node, why.text);
    }
    frame_describe_free(d);
    mem_free(bytes);
    if (rpc != NULL) rpc_close(rpc);
    return rc == ERR_OK ? STATUS_OK : STATUS_DOWN;
}

int cmd_status(int argc, char **argv)
{
    struct status_options o = {.server = "127.0.0.1:8080"};
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return STATUS_DOWN;
    argp_parse(&argp, argc, argv, 0, NULL, &o);
    if (o.node != NULL) return node_status(&o);
    struct http_answer answer;
    struct err why;
    json_t *v = NULL;
    enum err_code rc = http_client_request(o.server, "/v1/cluster", NULL, 5000, &answer, &why);
    if (rc == ERR_OK && answer.status != 200)
        rc = err_set(&why, ERR_MISMATCH,
                     "the server answers %d to /v1/cluster; is it a Moesaic coordinator?",
                     answer.status);
    if (rc == ERR_OK)
        rc = json_parse(answer.body.data, answer.body.len, LIMIT_JSON_DEPTH, &v, &why);
    if (rc != ERR_OK) {
        if (o.json) {
            struct buf b = {0};
            buf_put_json_string(&b, why.text, strlen(why.text));
            printf("{\"state\": \"down\", \"error\": %s}\n", b.failed ? "\"\"" : b.data);
            buf_free(&b);
        } else {
            fprintf(stderr, "moesaic status: down: %s\n", why.text);
        }
        return STATUS_DOWN;
    }
    bool ok = json_is_true(json_object_get(v, "ready")) && status_all_ready(v);
    if (o.json) {
        json_object_set_new(v, "state", json_string(ok ? "ok" : "degraded"));
        json_dumpf(v, stdout, JSON_INDENT(2));
        printf("\n");
    } else {
        printf("%s\n", ok ? "ok" : "degraded");
        status_print_nodes(v);
        status_print_engine(v);
        size_t i;
        json_t *reason;
        json_array_foreach(json_object_get(v, "reasons"), i, reason)
            printf("  %s\n", json_string_value(reason));
    }
    json_decref(v);
    buf_free(&answer.body);
    return ok ? STATUS_OK : STATUS_DEGRADED;
}
