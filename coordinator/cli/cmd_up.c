/* cmd_up.c - `moesaic up`: a whole cluster on this machine, each node its own process.
 *
 * A supervisor without gRPC (gRPC does not survive a fork): it starts the nodes, learns their ports, starts the
 * coordinator with them, writes the ready file, starts again what dies, and ends all in order:
 * coordinator first (it finishes its streams), then the nodes. */
#include <argp.h>
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/modelfile/plan.h"
#include "common/sys/memory.h"
#include "coordinator/cli/child.h"
#include "coordinator/cli/commands.h"

#define MAX_NODES        64u
#define RESTART_AFTER_US 200000u   /* pause before a dead process is started again */
#define RESTART_MOST_US  5000000u  /* it doubles up to this while the process keeps dying */
#define DRAIN_SECONDS    30u       /* the coordinator's limit, if none is given */
#define DRAIN_MORE_US    10000000u /* beyond it, before it is killed */
#define NODE_DRAIN_US    8000000u
#define SAY_EVERY_US     30000000u
#define MAX_ARGS         64

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
    OPT_READY_FILE,
    OPT_NO_RESTART,
    OPT_INSECURE,
    OPT_CPU,
    OPT_LOG_LEVEL,
    OPT_NAME,
    OPT_NODE_CPU,
    OPT_REQUEST_TIMEOUT,
    OPT_DRAIN
};

struct up_cfg {
    const char *model, *http, *grpc, *quantize, *ctx, *chunk, *seed, *ready_file, *cpu, *log_level,
        *name, *request_timeout, *drain_timeout;
    unsigned drain_seconds;
    const char *node_cpu[MAX_NODES];
    unsigned n_node_cpu, nodes, replicas, threads;
    bool replicas_given, no_restart, insecure;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Cluster", 1},
    {"nodes", OPT_NODES, "N", 0,
     "Expert nodes, each a process of its own; 0: compute all in one process (default 3)", 1},
    {"replicas", OPT_REPLICAS, "R", 0, "Copies of each expert on different nodes (default 1)", 1},
    {"placement-seed", OPT_SEED, "S", 0,
     "Permutes the start placement; the answers do not depend on it (default 0)", 1},
    {"no-restart", OPT_NO_RESTART, NULL, 0, "Do not start a process again that died", 1},
    {"ready-file", OPT_READY_FILE, "FILE", 0,
     "Write addresses and process numbers (JSON) here when the model answers", 1},
    {NULL, 0, NULL, 0, "Addresses", 2},
    {"http", OPT_HTTP, "HOST:PORT", 0,
     "OpenAI-compatible API (default 127.0.0.1:8080; port 0: a free one)", 2},
    {"grpc", OPT_GRPC, "HOST:PORT", 0, "gRPC API (default 127.0.0.1:8081)", 2},
    {"insecure", OPT_INSECURE, NULL, 0,
     "Allow addresses outside this machine without keys and encryption", 2},
    {NULL, 0, NULL, 0, "Model and memory", 3},
    {"quantize", OPT_QUANTIZE, "none|q8_0|q4_0|mxfp4", 0,
     "Pack 16-bit and FP8 weights to 8-bit or 4-bit blocks at load (default none)", 3},
    {"ctx", OPT_CTX, "N", 0, "Context in tokens (default: the model's, or what memory leaves)", 3},
    {"chunk", OPT_CHUNK, "N", 0, "Prompt tokens in one pass (default 256)", 3},
    {"threads", OPT_THREADS, "T", 0,
     "Threads of each process (default: all cores; processes take turns)", 3},
    {"cpu", OPT_CPU, "ref|avx2|avx512", 0, "Kernels (default: the best this CPU runs)", 3},
    {"node-cpu", OPT_NODE_CPU, "LIST", 0, "Kernels per node, for tests: ref,avx2,...", 3},
    {"name", OPT_NAME, "ID", 0, "Name of the model in the API (default: the folder's name)", 3},
    {"request-timeout", OPT_REQUEST_TIMEOUT, "SECONDS", 0, "A request's longest time (default 600)",
     3},
    {"drain-timeout", OPT_DRAIN, "SECONDS", 0,
     "At the end, time for requests under way (default 30)", 3},
    {"log-level", OPT_LOG_LEVEL, "LEVEL", 0, "error, warn, info, debug or trace (default warn)", 4},
    {0},
};

static void parse_node_cpu(struct up_cfg *c, char *list)
{
    for (char *s = strtok(list, ","); s != NULL && c->n_node_cpu < MAX_NODES; s = strtok(NULL, ","))
        c->node_cpu[c->n_node_cpu++] = s;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct up_cfg *c = state->input;
    enum quantize q;
    switch (key) {
    case OPT_NODES:
        c->nodes = (unsigned)options_number(state, "nodes", arg, 0, MAX_NODES);
        break;
    case OPT_REPLICAS:
        c->replicas = (unsigned)options_number(state, "replicas", arg, 1, MAX_NODES);
        c->replicas_given = true;
        break;
    case OPT_HTTP:
        c->http = arg;
        break;
    case OPT_GRPC:
        c->grpc = arg;
        break;
    case OPT_QUANTIZE:
        if (!quantize_find(arg, &q))
            argp_error(state, "--quantize=%s: one of %s is wanted", arg, quantize_names());
        c->quantize = arg;
        break;
    case OPT_THREADS:
        c->threads = (unsigned)options_number(state, "threads", arg, 1, 1024);
        break;
    case OPT_CTX:
        options_number(state, "ctx", arg, 1, LIMIT_CONTEXT);
        c->ctx = arg;
        break;
    case OPT_CHUNK:
        options_number(state, "chunk", arg, 1, 4096);
        c->chunk = arg;
        break;
    case OPT_SEED:
        options_number(state, "placement-seed", arg, 0, UINT64_MAX);
        c->seed = arg;
        break;
    case OPT_READY_FILE:
        c->ready_file = arg;
        break;
    case OPT_NO_RESTART:
        c->no_restart = true;
        break;
    case OPT_INSECURE:
        c->insecure = true;
        break;
    case OPT_CPU:
        c->cpu = arg;
        break;
    case OPT_NODE_CPU:
        parse_node_cpu(c, arg);
        break;
    case OPT_NAME:
        c->name = arg;
        break;
    case OPT_REQUEST_TIMEOUT:
        options_number(state, "request-timeout", arg, 1, 86400);
        c->request_timeout = arg;
        break;
    case OPT_DRAIN:
        c->drain_seconds = (unsigned)options_number(state, "drain-timeout", arg, 0, 86400);
        c->drain_timeout = arg;
        break;
    case OPT_LOG_LEVEL:
        c->log_level = arg;
        break;
    case ARGP_KEY_ARG:
        if (c->model != NULL) argp_error(state, "one MODEL is wanted, and '%s' is a second", arg);
        c->model = arg;
        break;
    case ARGP_KEY_END:
        if (c->model == NULL)
            argp_error(state, "MODEL is missing: a folder with config.json and safetensors files");
        if (c->nodes > 0 && c->replicas > c->nodes)
            argp_error(
                state,
                "--replicas=%u is more than --nodes=%u: copies of an expert live on different nodes",
                c->replicas, c->nodes);
        if (c->nodes == 0 && c->replicas > 1)
            argp_error(state, "--replicas=%u needs nodes, and --nodes is 0", c->replicas);
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
    "Start a whole cluster on this machine: a coordinator and expert nodes."
    "\vEvery option can stand in the environment: --ready-file is MOESAIC_READY_FILE.\n"
    "Ctrl-C or SIGTERM finishes what is under way and ends all; a second one ends at once.",
    NULL,
    NULL,
    NULL};

/* ---- the cluster ------------------------------------------------------------------------------ */

struct proc {
    struct child child;
    unsigned port; /* nodes: kept over restarts */
    bool usable;   /* nodes: the coordinator uses it */
    bool died;     /* nodes: and is not in use again yet */
    bool asked;    /* to end: a second signal would cut its drain short */
    uint64_t start_at_us, pause_us, started_us;
};

struct up {
    struct up_cfg cfg;
    struct proc nodes[MAX_NODES], coordinator;
    unsigned threads;
    bool spin;
    uint64_t say_us; /* when to say what is being waited for */
    char http[300], grpc[300];
    bool ready, was_ready, stopping, killed;
    uint64_t stop_by_us;
    int exit_code;
};

struct args {
    char *v[MAX_ARGS + 3];
    int n;
    struct buf text[MAX_ARGS];
    unsigned n_text;
    bool failed; /* memory was short */
};

static void add(struct args *a, const char *option, const char *value)
{
    if (value == NULL) return;
    assert(a->n < MAX_ARGS && a->n_text < MAX_ARGS);
    struct buf *b = &a->text[a->n_text++];
    buf_printf(b, "%s%s", option, value);
    if (b->failed)
        a->failed = true;
    else
        a->v[a->n++] = b->data;
}

static void add_number(struct args *a, const char *option, unsigned value)
{
    char text[16];
    snprintf(text, sizeof text, "%u", value);
    add(a, option, text);
}

/* Start with these arguments, and free them. */
static enum err_code start(struct proc *p, struct args *a, struct err *why)
{
    p->asked = false;
    p->started_us = clock_now_us();
    enum err_code rc =
        a->failed ? err_nomem(why, "arguments") : child_start(&p->child, a->v, a->n, why);
    for (unsigned i = 0; i < a->n_text; i++)
        buf_free(&a->text[i]);
    return rc;
}

static void common_args(const struct up *u, struct args *a)
{
    add(a, "", u->cfg.model);
    add(a, "--quantize=", u->cfg.quantize);
    add_number(a, "--threads=", u->threads);
    add(a, "--spin-us=", u->spin ? NULL : "0");
    add(a, "--log-level=", u->cfg.log_level);
    if (u->cfg.insecure) add(a, "--insecure", "");
}

static enum err_code start_node(struct up *u, unsigned i, struct err *why)
{
    struct args a = {.v = {(char[]){"moesaic-node"}}, .n = 1};
    struct proc *p = &u->nodes[i];
    common_args(u, &a);
    add(&a, "--cpu=", i < u->cfg.n_node_cpu ? u->cfg.node_cpu[i] : u->cfg.cpu);
    char text[64];
    snprintf(text, sizeof text, "127.0.0.1:%u", p->port);
    add(&a, "--listen=", text);
    add(&a, "--id=", p->child.name);
    return start(p, &a, why);
}

static enum err_code start_coordinator(struct up *u, struct err *why)
{
    struct args a = {.v = {(char[]){"moesaic-coordinator"}}, .n = 1};
    common_args(u, &a);
    struct buf list = {0};
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        buf_printf(&list, "%s127.0.0.1:%u", i > 0 ? "," : "", u->nodes[i].port);
    a.failed = a.failed || list.failed;
    add(&a, "--nodes=", u->cfg.nodes > 0 ? list.data : NULL);
    buf_free(&list);
    add(&a, "--cpu=", u->cfg.cpu);
    add_number(&a, "--replicas=", u->cfg.replicas);
    add(&a, "--http=", u->http);
    add(&a, "--grpc=", u->grpc);
    add(&a, "--ctx=", u->cfg.ctx);
    add(&a, "--chunk=", u->cfg.chunk);
    add(&a, "--placement-seed=", u->cfg.seed);
    add(&a, "--name=", u->cfg.name);
    add(&a, "--request-timeout=", u->cfg.request_timeout);
    add(&a, "--drain-timeout=", u->cfg.drain_timeout);
    return start(&u->coordinator, &a, why);
}

static void write_ready_file(struct up *u)
{
    if (u->cfg.ready_file == NULL) return;
    struct buf b = {0};
    buf_printf(
        &b,
        "{\"http\": \"http://%s\", \"grpc\": \"%s\", \"pid\": %d, \"coordinator\": {\"pid\": %d}, \"nodes\": [",
        u->http, u->grpc, (int)getpid(), (int)u->coordinator.child.pid);
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        buf_printf(&b, "%s{\"id\": \"%s\", \"pid\": %d, \"address\": \"127.0.0.1:%u\"}",
                   i > 0 ? ", " : "", u->nodes[i].child.name, (int)u->nodes[i].child.pid,
                   u->nodes[i].port);
    buf_puts(&b, "]}\n");
    struct err why;
    if (b.failed || file_replace(u->cfg.ready_file, b.data, b.len, &why) != ERR_OK)
        fprintf(stderr, "moesaic: ready file: %s\n", b.failed ? "no memory" : why.text);
    buf_free(&b);
}

/* Ready: the coordinator says so and every running node is in use, so that the file's process numbers are true. */
static void maybe_ready(struct up *u)
{
    bool all = u->ready;
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        if (u->nodes[i].child.pid > 0 && !u->nodes[i].usable) all = false;
    if (all) write_ready_file(u);
}

static bool all_nodes_listen(const struct up *u)
{
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        if (u->nodes[i].port == 0) return false;
    return true;
}

static void stop_all(struct up *u);

static void on_line(struct up *u, struct proc *p, const char *line)
{
    json_t *v;
    struct err why;
    if (json_parse(line, strlen(line), 8, &v, &why) != ERR_OK) return;
    const char *event = json_string_value(json_object_get(v, "event"));
    if (event != NULL && p != &u->coordinator && strcmp(event, "listening") == 0) {
        p->port = (unsigned)json_integer_value(json_object_get(v, "port"));
        if (!u->stopping && all_nodes_listen(u) && u->coordinator.child.pid == 0 &&
            u->coordinator.start_at_us == 0 && start_coordinator(u, &why) != ERR_OK) {
            fprintf(stderr, "moesaic: %s\n", why.text);
            u->exit_code = options_exit_code(why.code);
            stop_all(u);
        }
    } else if (event != NULL && p == &u->coordinator) {
        const char *http = json_string_value(json_object_get(v, "http"));
        const char *grpc = json_string_value(json_object_get(v, "grpc"));
        if (strcmp(event, "ready") == 0) {
            if (http != NULL)
                snprintf(u->http, sizeof u->http, "%s", http); /* kept, also over a restart */
            if (grpc != NULL) snprintf(u->grpc, sizeof u->grpc, "%s", grpc);
            u->ready = u->was_ready = true;
            maybe_ready(u);
        } else if (strcmp(event, "unready") == 0) {
            u->ready = false;
        } else if (strcmp(event, "node") == 0) {
            json_int_t i = json_integer_value(json_object_get(v, "node"));
            bool usable = json_is_true(json_object_get(v, "usable"));
            if (i >= 0 && i < u->cfg.nodes) {
                bool news = usable && !u->nodes[i].usable;
                u->nodes[i].usable = usable;
                if (news && u->was_ready) {
                    if (u->nodes[i].died)
                        fprintf(stderr, "moesaic: %s is back (process %d)\n",
                                u->nodes[i].child.name, (int)u->nodes[i].child.pid);
                    u->nodes[i].died = false;
                    maybe_ready(u);
                }
            }
        }
    }
    json_decref(v);
}

/* ---- deaths and the end ----------------------------------------------------------------------- */

static void describe(int status, char *out, size_t cap)
{
    if (WIFSIGNALED(status))
        snprintf(out, cap, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, cap, "ended with exit code %d", WEXITSTATUS(status));
}

static void on_death(struct up *u, struct proc *p, int status)
{
    char what[128];
    describe(status, what, sizeof what);
    pid_t pid = p->child.pid;
    child_gone(&p->child);
    p->usable = false;
    p->died = true;
    if (p == &u->coordinator) {
        u->ready = false;
        for (unsigned i = 0; i < u->cfg.nodes; i++)
            u->nodes[i].usable = false; /* the next one finds them again */
    }
    if (u->stopping) return;
    bool early = !u->was_ready;
    if (early || u->cfg.no_restart) {
        fprintf(stderr, "moesaic: %s (process %d) %s%s\n", p->child.name, (int)pid, what,
                early                  ? " before the cluster was ready; ending"
                : p == &u->coordinator ? "; ending"
                                       : "; --no-restart: it stays down");
        if (early || p == &u->coordinator) {
            u->exit_code = WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
            stop_all(u);
        }
        return;
    }
    uint64_t now = clock_now_us();
    bool lived = now - p->started_us > 10 * 1000000u;
    p->pause_us = lived || p->pause_us == 0 ? RESTART_AFTER_US : p->pause_us * 2;
    if (p->pause_us > RESTART_MOST_US) p->pause_us = RESTART_MOST_US;
    p->start_at_us = now + p->pause_us;
    fprintf(stderr, "moesaic: %s (process %d) %s; starting it again\n", p->child.name, (int)pid,
            what);
}

static void ask_to_end(struct proc *p)
{
    if (!p->asked) child_signal(&p->child, SIGTERM);
    p->asked = true;
}

static void stop_all(struct up *u)
{
    if (u->stopping) return;
    u->stopping = true;
    u->stop_by_us = clock_now_us() + u->cfg.drain_seconds * (uint64_t)1000000 + DRAIN_MORE_US;
    ask_to_end(&u->coordinator);
}

static void kill_all(struct up *u)
{
    child_signal(&u->coordinator.child, SIGKILL);
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        child_signal(&u->nodes[i].child, SIGKILL);
}

static bool any_node(const struct up *u)
{
    for (unsigned i = 0; i < u->cfg.nodes; i++)
        if (u->nodes[i].child.pid > 0) return true;
    return false;
}

/* One step of the way down: nodes are asked to end when the coordinator has; true when all are gone. */
static bool stopping_step(struct up *u)
{
    uint64_t now = clock_now_us();
    if (u->coordinator.child.pid == 0 && any_node(u) && !u->killed) {
        for (unsigned i = 0; i < u->cfg.nodes; i++)
            ask_to_end(&u->nodes[i]);
        if (u->stop_by_us > now + NODE_DRAIN_US) u->stop_by_us = now + NODE_DRAIN_US;
    }
    if (now >= u->stop_by_us && !u->killed) {
        u->killed = true;
        kill_all(u);
    }
    return u->coordinator.child.pid == 0 && !any_node(u);
}

static void reap(struct up *u)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == u->coordinator.child.pid) on_death(u, &u->coordinator, status);
        for (unsigned i = 0; i < u->cfg.nodes; i++)
            if (pid == u->nodes[i].child.pid) on_death(u, &u->nodes[i], status);
    }
}

static void restart_due(struct up *u)
{
    uint64_t now = clock_now_us();
    struct err why;
    for (unsigned i = 0; i <= u->cfg.nodes; i++) {
        struct proc *p = i < u->cfg.nodes ? &u->nodes[i] : &u->coordinator;
        if (p->start_at_us == 0 || now < p->start_at_us) continue;
        p->start_at_us = 0;
        enum err_code rc = i < u->cfg.nodes ? start_node(u, i, &why) : start_coordinator(u, &why);
        if (rc == ERR_OK) continue;
        fprintf(stderr, "moesaic: %s\n", why.text);
        p->start_at_us = now + RESTART_MOST_US;
    }
}

static void read_child(struct up *u, struct proc *p)
{
    if (p->child.fd < 0) return;
    bool open = child_read(&p->child);
    for (char *line; (line = child_next_line(&p->child)) != NULL; mem_free(line))
        on_line(u, p, line);
    if (!open) { /* the process is ending; waitpid tells the rest */
        close(p->child.fd);
        p->child.fd = -1;
    }
}

/* A child that hangs at its start would else be waited for in silence. */
static void say_what_is_missing(struct up *u)
{
    uint64_t now = clock_now_us();
    if (u->was_ready || u->stopping || now < u->say_us) return;
    if (u->say_us > 0) {
        unsigned deaf = 0;
        while (deaf < u->cfg.nodes && u->nodes[deaf].port > 0)
            deaf++;
        if (deaf < u->cfg.nodes)
            fprintf(stderr, "moesaic: still waiting for %s (process %d) to listen\n",
                    u->nodes[deaf].child.name, (int)u->nodes[deaf].child.pid);
        else
            fprintf(stderr, "moesaic: the model is still being loaded\n");
    }
    u->say_us = now + SAY_EVERY_US;
}

static int run(struct up *u, int signals)
{
    for (;;) {
        struct pollfd fds[MAX_NODES + 2] = {{signals, POLLIN, 0}};
        fds[1] = (struct pollfd){u->coordinator.child.fd, POLLIN, 0};
        for (unsigned i = 0; i < u->cfg.nodes; i++)
            fds[2 + i] = (struct pollfd){u->nodes[i].child.fd, POLLIN, 0};
        (void)poll(fds, u->cfg.nodes + 2, 100);
        if (fds[0].revents) {
            struct signalfd_siginfo info;
            if (read(signals, &info, sizeof info) == sizeof info && info.ssi_signo != SIGCHLD) {
                if (u->stopping)
                    u->stop_by_us = 0;
                else
                    fprintf(
                        stderr,
                        "moesaic: stopping; what is under way is finished first (again to end at once)\n");
                stop_all(u);
            }
        }
        if (fds[1].revents) read_child(u, &u->coordinator);
        for (unsigned i = 0; i < u->cfg.nodes; i++)
            if (fds[2 + i].revents) read_child(u, &u->nodes[i]);
        reap(u);
        if (u->stopping) {
            if (stopping_step(u)) return u->exit_code;
        } else {
            restart_due(u);
            say_what_is_missing(u);
        }
    }
}

int cmd_up(int argc, char **argv)
{
    struct up *u = mem_zalloc(sizeof *u);
    struct err why;
    if (u == NULL) return 1;
    u->cfg = (struct up_cfg){.http = "127.0.0.1:8080",
                             .grpc = "127.0.0.1:8081",
                             .quantize = "none",
                             .nodes = 3,
                             .replicas = 1,
                             .drain_seconds = DRAIN_SECONDS,
                             .log_level = "warn"};
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &u->cfg);
    unsetenv(
        "MOESAIC_NODES"); /* a number here, addresses to a coordinator: our children get theirs from us */
    unsigned processes = u->cfg.nodes + 1, n_cores = memory_cores();
    /* All cores for each: they mostly compute in turns, the coordinator between layers and the nodes within one. */
    u->threads = u->cfg.threads > 0 ? u->cfg.threads : n_cores;
    /* Spinning while waiting is faster only when every busy thread has a core of its own. */
    u->spin = u->threads * processes <= n_cores;
    snprintf(u->http, sizeof u->http, "%s", u->cfg.http);
    snprintf(u->grpc, sizeof u->grpc, "%s", u->cfg.grpc);
    if (u->cfg.ready_file != NULL)
        unlink(u->cfg.ready_file); /* an old one must not be taken for ours */

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);

    enum err_code rc = ERR_OK;
    snprintf(u->coordinator.child.name, sizeof u->coordinator.child.name, "coordinator");
    u->coordinator.child.fd = -1;
    for (unsigned i = 0; i < u->cfg.nodes; i++) {
        snprintf(u->nodes[i].child.name, sizeof u->nodes[i].child.name, "node-%u", i);
        u->nodes[i].child.fd = -1;
    }
    for (unsigned i = 0; i < u->cfg.nodes && rc == ERR_OK; i++)
        rc = start_node(u, i, &why);
    if (rc == ERR_OK && u->cfg.nodes == 0) rc = start_coordinator(u, &why);
    if (rc != ERR_OK) {
        fprintf(stderr, "moesaic: %s\n", why.text);
        u->exit_code = options_exit_code(rc);
        stop_all(u);
    }
    int code = run(u, signals);
    if (u->cfg.ready_file != NULL) unlink(u->cfg.ready_file);
    mem_free(u);
    return code;
}
