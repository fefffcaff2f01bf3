/* cmd_demo.c - `moesaic demo`: the first thing a stranger runs. Starts a whole cluster, has a story told, shows which
 * node computed which share of it, and ends all. With --kill-a-node the same story is told twice, and in the middle of
 * the second telling one node is killed: the two texts must be equal, byte for byte. */
#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/modelfile/plan.h"
#include "coordinator/cli/ask.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/http_client.h"
#include "coordinator/cli/status_table.h"
#include "coordinator/cli/up_child.h"

/* With the model in deploy/demo this seed tells a story that comes to an end where the tokens do. */
#define DEMO_PROMPT      "Once upon a time there was a fox"
#define DEMO_SEED        5
#define DEMO_MAX_TOKENS  188
#define DEMO_TEMPERATURE 0.8
#define DEMO_TOP_P       0.95
#define MAX_NODES        64u
#define KILL_AT_LEAST    5u /* pieces of text before a node is killed */
#define OWES_AFTER_US    50000u
#define EXIT_INTERRUPTED 130

enum {
    OPT_NODES = 256,
    OPT_REPLICAS,
    OPT_KILL,
    OPT_KEEP,
    OPT_PROMPT,
    OPT_MAX_TOKENS,
    OPT_SEED,
    OPT_QUANTIZE,
    OPT_HTTP
};

struct demo_cfg {
    const char *model, *prompt, *quantize, *http;
    unsigned nodes, replicas;
    int max_tokens;
    int64_t seed;
    bool replicas_given, kill, keep;
};

static const struct argp_option options[] = {
    {"nodes", OPT_NODES, "N", 0,
     "Expert nodes, each a process of its own; 0: compute all in one process (default 3)", 1},
    {"replicas", OPT_REPLICAS, "R", 0,
     "Copies of each expert on different nodes (default 1; 2 with --kill-a-node)", 1},
    {"quantize", OPT_QUANTIZE, "none|q8_0|q4_0|mxfp4", 0,
     "Pack 16-bit weights to 8-bit blocks at load (default none)", 1},
    {"kill-a-node", OPT_KILL, NULL, 0,
     "Tell it twice, kill a node in the middle of the second telling, compare the two", 2},
    {"keep", OPT_KEEP, NULL, 0, "Leave the cluster running and say where and how to stop it", 2},
    {"http", OPT_HTTP, "HOST:PORT", 0,
     "Address of the API while it runs (default 127.0.0.1 and a free port)", 2},
    {"prompt", OPT_PROMPT, "TEXT", 0, "The beginning of the text that is to be continued", 3},
    {"max-tokens", OPT_MAX_TOKENS, "N", 0, "Longest answer (default 188)", 3},
    {"seed", OPT_SEED, "S", 0, "The same seed gives the same answer (default 5)", 3},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct demo_cfg *c = state->input;
    enum quantize q;
    switch (key) {
    case OPT_NODES:
        c->nodes = (unsigned)options_number(state, "nodes", arg, 0, MAX_NODES);
        break;
    case OPT_REPLICAS:
        c->replicas = (unsigned)options_number(state, "replicas", arg, 1, MAX_NODES);
        c->replicas_given = true;
        break;
    case OPT_QUANTIZE:
        if (!quantize_find(arg, &q))
            argp_error(state, "--quantize=%s: one of %s is wanted", arg, quantize_names());
        c->quantize = arg;
        break;
    case OPT_KILL:
        c->kill = true;
        break;
    case OPT_KEEP:
        c->keep = true;
        break;
    case OPT_HTTP:
        c->http = arg;
        break;
    case OPT_PROMPT:
        c->prompt = arg;
        break;
    case OPT_MAX_TOKENS:
        c->max_tokens = (int)options_number(state, "max-tokens", arg, 1, LIMIT_CONTEXT);
        break;
    case OPT_SEED:
        c->seed = (int64_t)options_number(state, "seed", arg, 0, INT64_MAX);
        break;
    case ARGP_KEY_ARG:
        if (c->model != NULL) argp_error(state, "one MODEL is wanted, and '%s' is a second", arg);
        c->model = arg;
        break;
    case ARGP_KEY_END:
        if (c->model == NULL)
            argp_error(state, "MODEL is missing; the demonstration model is deploy/demo");
        if (c->kill && !c->replicas_given) c->replicas = 2;
        if (c->kill && (c->nodes < 2 || c->replicas < 2))
            argp_error(
                state,
                "--kill-a-node needs --nodes and --replicas of 2 or more (they are %u and %u): "
                "another node must hold what the killed one held",
                c->nodes, c->replicas);
        if (c->nodes > 0 ? c->replicas > c->nodes : c->replicas > 1)
            argp_error(
                state,
                "--replicas=%u is more than --nodes=%u: copies of an expert live on different nodes",
                c->replicas, c->nodes);
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
    "Start a cluster on this machine, have a story told, and show which node computed what."
    "\vNothing is left running unless --keep is given. Exit code: 0 all went well; 1 it did not, "
    "or the two answers of --kill-a-node differ; 130 Ctrl-C.",
    NULL,
    NULL,
    NULL};

static volatile int interrupted; /* set by signals: stops whatever is waited for */

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

struct demo {
    struct demo_cfg cfg;
    char self[4096]; /* this program, as the user may type it */
    struct up_child up;
    char http[300];
    json_t *ready; /* the ready file; owned */
    bool tty;
    /* --kill-a-node */
    unsigned kill_at; /* piece of text after which; 0: not */
    unsigned victim;
    pid_t killed;
};

static const char *style(const struct demo *d, const char *code)
{
    return d->tty ? code : "";
}

#define BOLD(d)  style(d, "\033[1m")
#define DIM(d)   style(d, "\033[2m")
#define PLAIN(d) style(d, "\033[0m")

static void pause_us(unsigned us)
{
    struct timespec t = {0, (long)us * 1000};
    nanosleep(&t, NULL);
}

/* ---- the cluster as a child ------------------------------------------------------------------- */

static enum err_code start_up(struct demo *d, struct err *why)
{
    char nodes[32], replicas[32], http[320], ready[128], quantize[64];
    snprintf(nodes, sizeof nodes, "--nodes=%u", d->cfg.nodes);
    snprintf(replicas, sizeof replicas, "--replicas=%u", d->cfg.replicas);
    snprintf(http, sizeof http, "--http=%s", d->cfg.http);
    snprintf(ready, sizeof ready, "--ready-file=%s", d->up.ready_file);
    snprintf(quantize, sizeof quantize, "--quantize=%s", d->cfg.quantize);
    /* The model comes behind "--": its name may begin with a dash. */
    const char *argv[] = {"moesaic", "up",     nodes, replicas,     http, "--grpc=127.0.0.1:0",
                          ready,     quantize, "--",  d->cfg.model, NULL};
    return up_child_start(&d->up, NULL, argv, d->cfg.keep, why);
}

/* Wait for the ready file. The answer is an exit code; 0: d->ready and d->http are set. */
static int wait_ready(struct demo *d)
{
    uint64_t began = clock_now_us();
    char what[128];
    if (d->cfg.nodes > 0)
        snprintf(what, sizeof what,
                 "Starting a coordinator and %u expert node%s, each a process of its own",
                 d->cfg.nodes, d->cfg.nodes == 1 ? "" : "s");
    else
        snprintf(what, sizeof what, "Starting a coordinator that holds all experts itself");
    printf("%s ...", what);
    fflush(stdout);
    for (;;) {
        int status = 0;
        double s = (double)(clock_now_us() - began) * 1e-6;
        if (up_child_is_ready(&d->up)) {
            struct err why;
            const char *http = NULL;
            if (json_parse_file(d->up.ready_file, LIMIT_CONFIG_JSON_BYTES, 8, &d->ready, &why) ==
                ERR_OK)
                http = json_string_value(json_object_get(d->ready, "http"));
            if (http == NULL) {
                printf("\n");
                fprintf(stderr, "moesaic demo: the ready file cannot be read: %s\n",
                        d->ready == NULL ? why.text : "no address");
                return 1;
            }
            snprintf(d->http, sizeof d->http, "%s", http);
            if (d->tty)
                printf("\r%s: ready after %.1f s\n", what, s);
            else
                printf(" ready after %.1f s\n", s);
            return 0;
        }
        if (interrupted) {
            printf("\n");
            return EXIT_INTERRUPTED;
        }
        if (up_child_ended(&d->up, &status)) {
            printf("\n");
            fflush(stdout);
            up_child_print_log(&d->up);
            fprintf(stderr, "moesaic demo: the cluster could not start; the lines above say why\n");
            return WIFEXITED(status) && WEXITSTATUS(status) > 0 ? WEXITSTATUS(status) : 1;
        }
        if (d->tty) {
            printf("\r%s ... %.0f s ", what, s);
            fflush(stdout);
        }
        pause_us(UP_CHILD_POLL_US);
    }
}

/* ---- asking ----------------------------------------------------------------------------------- */

static void on_token(void *ctx, unsigned n)
{
    struct demo *d = ctx;
    if (d->kill_at == 0 || n < d->kill_at) return;
    d->kill_at = 0;
    const json_t *node = json_array_get(json_object_get(d->ready, "nodes"), d->victim);
    pid_t pid = (pid_t)json_integer_value(json_object_get(node, "pid"));
    if (pid <= 0) return;
    /* Stopped first, and killed once the next token must have asked it: so that it dies owing rows, which is the hard case. */
    kill(pid, SIGSTOP);
    pause_us(OWES_AFTER_US);
    if (kill(pid, SIGKILL) != 0) return;
    d->killed = pid;
    const char *id = json_string_value(json_object_get(node, "id"));
    printf("%s[kill -9 %d: %s is gone]%s", BOLD(d), (int)pid, id != NULL ? id : "a node", PLAIN(d));
    fflush(stdout);
}

/* The answer is an exit code; *out is the caller's to free in any case. */
static int tell(struct demo *d, struct ask_answer *out)
{
    struct ask a = {.server = d->http,
                    .prompt = d->cfg.prompt,
                    .max_tokens = d->cfg.max_tokens,
                    .temperature = DEMO_TEMPERATURE,
                    .top_p = DEMO_TOP_P,
                    .seed = d->cfg.seed,
                    .print = true,
                    .stop = &interrupted,
                    .on_token = on_token,
                    .ctx = d};
    struct err why;
    printf("\n%s%s%s", BOLD(d), d->cfg.prompt, PLAIN(d));
    fflush(stdout);
    enum err_code rc = ask_server(&a, out, &why);
    printf("\n");
    if (interrupted)
        return EXIT_INTERRUPTED; /* a signal can also break a connection that is being made */
    if (rc != ERR_OK) {
        fflush(stdout);
        fprintf(stderr, "moesaic demo: the answer failed: %s\n", why.text);
        up_child_print_log(&d->up);
        return 1;
    }
    double rest = out->total_s - out->first_s;
    printf("\n%s  %lld tokens in %.1f s", DIM(d), (long long)out->completion_tokens, out->total_s);
    if (out->completion_tokens > 1 && rest > 0)
        printf(": the first after %.2f s, then %.0f a second", out->first_s,
               (double)(out->completion_tokens - 1) / rest);
    printf("%s\n", PLAIN(d));
    return 0;
}

/* New reference; NULL with a message printed. */
static json_t *cluster_state(struct demo *d)
{
    struct http_answer answer;
    struct err why;
    json_t *v = NULL;
    enum err_code rc = http_client_request(d->http, "/v1/cluster", NULL, 10000, &answer, &why);
    if (rc == ERR_OK)
        rc = json_parse(answer.body.data, answer.body.len, LIMIT_JSON_DEPTH, &v, &why);
    if (rc != ERR_OK && !interrupted)
        fprintf(stderr, "moesaic demo: state of the cluster: %s\n", why.text);
    buf_free(&answer.body);
    return v;
}

static int show_shares(struct demo *d)
{
    json_t *state = cluster_state(d);
    if (state == NULL) return 1;
    printf("\n%sWho computed the experts' rows%s\n", BOLD(d), PLAIN(d));
    if (d->cfg.nodes > 0)
        status_print_nodes(state);
    else
        printf("  the coordinator itself (--nodes 0)\n");
    status_print_engine(state);
    json_decref(state);
    return 0;
}

/* The second telling, with a node killed half-way. */
static int tell_and_kill(struct demo *d, const struct ask_answer *first)
{
    if (first->pieces < 2 * KILL_AT_LEAST) {
        fprintf(
            stderr,
            "moesaic demo: the answer has %u pieces of text, too few to kill a node in its middle (%u)\n",
            first->pieces, 2 * KILL_AT_LEAST);
        return 1;
    }
    d->kill_at = first->pieces / 2;
    d->victim = (unsigned)json_array_size(json_object_get(d->ready, "nodes")) / 2;
    printf("\n%sThe same beginning and seed again; in the middle one node is killed%s\n", BOLD(d),
           PLAIN(d));
    struct ask_answer second;
    int code = tell(d, &second);
    bool same = code == 0 && first->text.len == second.text.len &&
                memcmp(first->text.data, second.text.data, first->text.len) == 0 &&
                strcmp(first->finish, second.finish) == 0;
    if (code == 0 && d->killed == 0) {
        fprintf(stderr, "moesaic demo: no node could be killed\n");
        code = 1;
    } else if (code == 0 && !same) {
        printf("\n");
        fflush(stdout);
        fprintf(
            stderr,
            "moesaic demo: THE ANSWERS DIFFER: %zu and %zu bytes. That breaks the promise; please report it.\n",
            first->text.len, second.text.len);
        code = 1;
    } else if (code == 0) {
        json_t *state = cluster_state(d);
        long long replayed =
            json_integer_value(json_object_get(json_object_get(state, "engine"), "rows_replayed"));
        printf(
            "\n%sThe same answer, byte for byte%s: %zu bytes, though process %d was killed while it was computed.\n",
            BOLD(d), PLAIN(d), first->text.len, (int)d->killed);
        if (replayed > 0)
            printf("Rows that it owed, computed again by the other nodes: %lld.\n", replayed);
        else
            printf("It owed no row at that moment; the other nodes took over its share.\n");
        json_decref(state);
    }
    buf_free(&second.text);
    return code;
}

static void show_next(const struct demo *d)
{
    const char *http = d->cfg.keep ? d->http : "http://127.0.0.1:8080";
    const char *host = strncmp(http, "http://", 7) == 0 ? http + 7 : http;
    if (d->cfg.keep) {
        const char *grpc = json_string_value(json_object_get(d->ready, "grpc"));
        printf("\n%sIt keeps running%s\n  HTTP %s   gRPC %s   process %d   log %s\n", BOLD(d),
               PLAIN(d), d->http, grpc != NULL ? grpc : "?", (int)d->up.pid, d->up.log_file);
        printf("  kill %d    # stops all of it\n", (int)d->up.pid);
        printf("\n%sTry next%s\n", BOLD(d), PLAIN(d));
        printf("  %s chat --http %s\n", d->self, host);
        printf("  %s status --http %s\n", d->self, host);
    } else {
        printf("\n%sNothing is left running. Try next%s\n", BOLD(d), PLAIN(d));
        printf("  %s up %s    # serves until Ctrl-C; then, in another terminal:\n", d->self,
               d->cfg.model);
        printf("  %s chat\n", d->self);
        printf("  %s status\n", d->self);
    }
    printf("  curl %s/v1/completions -H 'Content-Type: application/json' \\\n"
           "       -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 60}'\n",
           http);
    if (!d->cfg.kill)
        printf("  %s demo %s --kill-a-node    # kill -9 in the middle; the answer stays the same\n",
               d->self, d->cfg.model);
    printf("  %s up --help    # all options; `%s --help` lists all commands\n", d->self, d->self);
}

/* ---- the whole -------------------------------------------------------------------------------- */

/* This program's path, relative to the working directory if it is below it. */
static void find_self(char *out, size_t cap)
{
    char self[4096], cwd[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) n = snprintf(self, sizeof self, "moesaic");
    self[n] = '\0';
    size_t skip = getcwd(cwd, sizeof cwd) != NULL ? strlen(cwd) : 0;
    bool below = skip > 1 && strncmp(self, cwd, skip) == 0 && self[skip] == '/';
    snprintf(out, cap, "%s", below ? self + skip + 1 : self);
}

static int demo(struct demo *d)
{
    struct err why;
    if (start_up(d, &why) != ERR_OK) {
        fprintf(stderr, "moesaic demo: %s\n", why.text);
        return 1;
    }
    int code = wait_ready(d);
    if (code != 0) return code;
    struct ask_answer first;
    code = tell(d, &first);
    if (code == 0 && d->cfg.kill) code = tell_and_kill(d, &first);
    if (code == 0) code = show_shares(d);
    buf_free(&first.text);
    return interrupted ? EXIT_INTERRUPTED : code;
}

int cmd_demo(int argc, char **argv)
{
    struct demo d = {.cfg = {.prompt = DEMO_PROMPT,
                             .quantize = "none",
                             .http = "127.0.0.1:0",
                             .nodes = 3,
                             .replicas = 1,
                             .max_tokens = DEMO_MAX_TOKENS,
                             .seed = DEMO_SEED}};
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &d.cfg);
    find_self(d.self, sizeof d.self);
    d.tty = isatty(STDOUT_FILENO);
    struct err why;
    if (up_child_open(&d.up, "demo", &why) != ERR_OK) {
        fprintf(stderr, "moesaic demo: %s\n", why.text);
        return 1;
    }
    struct sigaction act = {.sa_handler =
                                on_signal}; /* no SA_RESTART: it also ends a waiting read */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGHUP, &act, NULL);
    signal(SIGPIPE,
           SIG_IGN); /* with a closed terminal or `| head` the cluster must still be ended */

    int code = demo(&d);
    bool keep = d.cfg.keep && code == 0 && d.up.pid != 0;
    if (!keep) up_child_stop(&d.up, &interrupted);
    if (code == 0)
        show_next(&d);
    else if (code == EXIT_INTERRUPTED)
        fprintf(stderr, "moesaic demo: interrupted; the cluster is ended\n");
    if (!keep) up_child_close(&d.up);
    json_decref(d.ready);
    return code;
}
