/* moesaic-node: an expert node. `moesaic node` runs it. */
#include <argp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/modelfile/plan.h"
#include "common/sys/descriptors.h"
#include "common/sys/memory.h"
#include "common/sys/watch.h"
#include "expert_node/service.h"

#define DEFAULT_PORT 7070u
#define DEFAULT_SPIN 200u

enum {
    OPT_LISTEN = 256,
    OPT_EXPERTS,
    OPT_QUANTIZE,
    OPT_THREADS,
    OPT_ID,
    OPT_INSECURE,
    OPT_CPU,
    OPT_SPIN,
    OPT_LOG_LEVEL,
    OPT_PARENT_FD,
    OPT_SLOW
};

struct node_options {
    const char *model, *listen, *experts, *quantize, *id, *cpu;
    unsigned threads, spin_us, slow_us;
    bool insecure, spin_given;
    int parent_fd;
    enum log_level log_level;
};

static const struct argp_option options[] = {
    {"listen", OPT_LISTEN, "HOST:PORT", 0,
     "Where coordinators connect (default 127.0.0.1:7070; port 0: a free one)", 0},
    {"experts", OPT_EXPERTS, "SPEC", 0,
     "Hold exactly these experts; without it the coordinator assigns them", 0},
    {"quantize", OPT_QUANTIZE, "none|q8_0|q4_0|mxfp4", 0,
     "As the coordinator has it (default none)", 0},
    {"threads", OPT_THREADS, "T", 0, "Threads that compute (default: all cores)", 0},
    {"id", OPT_ID, "NAME", 0, "Name in status pages (default: host name and process number)", 0},
    {"insecure", OPT_INSECURE, NULL, 0, "Allow an address outside this machine without encryption",
     0},
    {"cpu", OPT_CPU, "ref|avx2|avx512", 0, "Kernels (default: the best this CPU runs)", 0},
    {"spin-us", OPT_SPIN, "US", 0,
     "Poll busily so long before sleeping (default 200; 0 when threads exceed cores)", 0},
    {"log-level", OPT_LOG_LEVEL, "LEVEL", 0, "error, warn, info, debug or trace (default info)", 0},
    {"parent-fd", OPT_PARENT_FD, "FD", OPTION_HIDDEN, "", 0},
    {"slow-us", OPT_SLOW, "US", OPTION_HIDDEN, "", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct node_options *o = state->input;
    int level;
    enum quantize q;
    switch (key) {
    case OPT_LISTEN:
        o->listen = arg;
        break;
    case OPT_EXPERTS:
        o->experts = arg;
        break;
    case OPT_QUANTIZE:
        if (!quantize_find(arg, &q))
            argp_error(state, "--quantize=%s: one of %s is wanted", arg, quantize_names());
        o->quantize = arg;
        break;
    case OPT_THREADS:
        o->threads = (unsigned)options_number(state, "threads", arg, 1, 1024);
        break;
    case OPT_ID:
        o->id = arg;
        break;
    case OPT_INSECURE:
        o->insecure = true;
        break;
    case OPT_CPU:
        o->cpu = arg;
        break;
    case OPT_SPIN:
        o->spin_us = (unsigned)options_number(state, "spin-us", arg, 0, 1000000);
        o->spin_given = true;
        break;
    case OPT_LOG_LEVEL:
        level = log_level_parse(arg);
        if (level < 0)
            argp_error(state, "--log-level=%s: error, warn, info, debug or trace is wanted", arg);
        o->log_level = (enum log_level)level;
        break;
    case OPT_PARENT_FD:
        o->parent_fd = (int)options_number(state, "parent-fd", arg, 0, 1 << 20);
        break;
    case OPT_SLOW:
        o->slow_us = (unsigned)options_number(state, "slow-us", arg, 0, 10000000);
        break;
    case ARGP_KEY_ARG:
        if (o->model != NULL) argp_error(state, "one MODEL is wanted, and '%s' is a second", arg);
        o->model = arg;
        break;
    case ARGP_KEY_END:
        if (o->model == NULL)
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
    "An expert node: holds a part of a model's experts and computes their rows for coordinators."
    "\vSPEC is a comma list of: all; L:E (layer : expert), each a number, a range 0-7 or *; i/n: every expert with "
    "(layer + expert) mod n = i.\nEvery option can stand in the environment: --spin-us is MOESAIC_SPIN_US.",
    NULL,
    NULL,
    NULL};

/* What the watch thread may stop; NULL before and after: a signal then ends the process at once. The lock keeps the
 * service while it is being told. */
struct early {
    pthread_mutex_t lock;
    struct service *service;
};

static void set_service(struct early *e, struct service *service)
{
    pthread_mutex_lock(&e->lock);
    e->service = service;
    pthread_mutex_unlock(&e->lock);
}

static void on_watch(void *ctx, enum watch_event ev)
{
    struct early *e = ctx;
    pthread_mutex_lock(&e->lock);
    bool told = ev == WATCH_STOP && e->service != NULL;
    if (told) service_stop(e->service);
    pthread_mutex_unlock(&e->lock);
    if (!told) _exit(ev == WATCH_AGAIN ? 1 : 0);
}

static enum err_code check_address(const struct node_options *o, struct err *why)
{
    char host[256];
    unsigned port;
    enum err_code rc = options_address(o->listen, "127.0.0.1", DEFAULT_PORT, host, &port, why);
    if (rc != ERR_OK) return rc;
    if (!o->insecure && !options_is_loopback(host))
        return err_set(
            why, ERR_INVALID,
            "--listen=%s is reachable from other machines, and this port has no encryption and no keys yet: "
            "whoever reaches it can use the experts. Put it on a trusted network and say --insecure, or listen on 127.0.0.1",
            o->listen);
    return ERR_OK;
}

static enum err_code run(const struct node_options *o, struct early *early, struct err *why)
{
    struct model_file *file = NULL;
    struct workers *workers = NULL;
    struct rpc *rpc = NULL;
    struct service *service = NULL;
    struct expert_set pinned = {0};
    const struct kernels *kernels = NULL;
    char host[256], address[300], id[160], line[64], text[32];
    unsigned port;
    enum err_code rc = options_address(o->listen, "127.0.0.1", DEFAULT_PORT, host, &port, why);
    if (rc == ERR_OK) rc = kernels_pick(o->cpu, &kernels, why);
    if (rc == ERR_OK) rc = model_file_open_part(o->model, &file, why);
    if (rc == ERR_OK) {
        enum quantize q;
        quantize_find(o->quantize, &q);
        plan_log_repacks("node", file, q, true);
    }
    if (rc == ERR_OK && o->experts != NULL)
        rc = experts_spec_parse(o->experts, model_file_hparams(file), &pinned, why);
    if (rc == ERR_OK) rc = rpc_open(&rpc, why);
    if (rc == ERR_OK) rc = workers_open(o->threads, o->spin_us, &workers, why);
    if (rc == ERR_OK) {
        if (strcmp(kernels->name, "ref") == 0 && o->cpu == NULL)
            log_warn("node",
                     "msg=\"this CPU has no AVX2 and FMA: the portable kernels work, slowly\"");
        snprintf(address, sizeof address, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, port);
        char name[64] = "node";
        gethostname(name, sizeof name - 1);
        snprintf(id, sizeof id, "%s-%d", name, (int)getpid());
        struct service_cfg cfg = {.file = file,
                                  .quantize = o->quantize,
                                  .kernels = kernels,
                                  .workers = workers,
                                  .rpc = rpc,
                                  .listen = address,
                                  .id = o->id != NULL ? o->id : id,
                                  .pinned = o->experts != NULL ? &pinned : NULL,
                                  .spin_us = o->spin_us,
                                  .slow_us = o->slow_us};
        rc = service_open(&cfg, &service, why);
    }
    if (rc == ERR_OK) {
        set_service(early, service);
        log_info(
            "node", "listen=\"%s:%u\" kernels=%s threads=%u experts=%u bytes=\"%s\" msg=\"%s\"",
            host, service_port(service), kernels->name, o->threads, service_held(service),
            memory_text(service_bytes(service), text),
            o->experts != NULL ? "holds its experts" : "waits for a coordinator to assign experts");
        snprintf(line, sizeof line, "{\"event\": \"listening\", \"port\": %u}",
                 service_port(service));
        watch_tell_parent(o->parent_fd, line);
        service_run(service);
        log_info("node", "msg=\"drained, ending\"");
    }
    set_service(early, NULL);
    service_close(service);
    workers_close(workers);
    if (rpc != NULL) rpc_close(rpc);
    expert_set_deinit(&pinned);
    model_file_close(file);
    return rc;
}

int main(int argc, char **argv)
{
    struct node_options o = {.listen = "127.0.0.1",
                             .quantize = "none",
                             .threads = memory_cores(),
                             .spin_us = DEFAULT_SPIN,
                             .parent_fd = -1,
                             .log_level = LOG_INFO};
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &o);
    if (!o.spin_given && o.threads > memory_cores()) o.spin_us = 0;
    log_setup(o.log_level, o.id);
    descriptors_raise();
    struct err why;
    struct early early = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct watch *watch = NULL;
    enum err_code rc = check_address(&o, &why);
    if (rc == ERR_OK) rc = watch_open(o.parent_fd, on_watch, &early, &watch, &why);
    if (rc == ERR_OK) rc = run(&o, &early, &why);
    if (rc != ERR_OK) fprintf(stderr, "moesaic-node: %s\n", why.text);
    watch_close(watch);
    return options_exit_code(rc);
}
