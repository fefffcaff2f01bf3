/* moesaic bench wire: the round trip of the gRPC stream that carries expert rows (zero copy
 * out, one gather copy in, at both ends) beside a raw TCP ping-pong in the same waiting mode. Absolute times drift
 * by 10-15 % over minutes, so both are run in turns and only their ratio is compared with a target. */
#include <argp.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/rpc/rpc.h"
#include "coordinator/cli/bench.h"
#include "coordinator/cli/slow_link.h"
#include "coordinator/cli/wire_echo.h"

#define MAX_REPETITIONS 50u
#define RUN_US          300000u /* 2 kinds x 3 sizes x 5 repetitions: 9 s */
#define WARM_UP         10u     /* rounds that are not counted */
#define MIN_ROUNDS      20u     /* on a machine that is busy with other things */
#define MAX_ROUNDS      20000u
#define CALL_MS         5000u

extern char **environ;

static const struct {
    uint32_t bytes;
    double target; /* ratio of the medians, design section 5 */
} sizes[] = {
    {16u << 10, 2.0},
    {64u << 10, 1.5},
    {1u << 20, 1.1},
};

struct bench {
    bool spin, json, pin, mode_said;
    unsigned repetitions;
    struct slow_link_cfg slow; /* all 0: loopback as it is */

    struct rpc *r;
    struct rpc_link *link;
    char control[32]; /* where raw runs are asked for, never through a slow link */
    int tcp, child_in;
    pid_t child;
    struct slow_link *links[2]; /* gRPC, raw TCP */
    uint8_t *out, *in;          /* the largest size each */
    uint64_t *samples_ns;
    uint64_t received; /* messages that came back */
    bool open, down;
    char down_text[256];
};

struct quantiles {
    double p50_us, p99_us;
};

/* ---- the stream ------------------------------------------------------------------------------- */

static void on_open(void *ctx, struct rpc_link *l)
{
    (void)l;
    ((struct bench *)ctx)->open = true;
}

static void on_message(void *ctx, struct rpc_link *l, struct rpc_message *m)
{
    struct bench *b = ctx;
    (void)l;
    rpc_message_tensor_copy(m, 0, b->in, rpc_message_tensor_bytes(m));
    rpc_message_free(m);
    b->received++;
}

static void on_down(void *ctx, struct rpc_link *l, int status, const char *text)
{
    struct bench *b = ctx;
    (void)l;
    b->down = true;
    snprintf(b->down_text, sizeof b->down_text, "status %d, %s", status, text);
}

static void kept(void *ctx)
{
    (void)ctx; /* the buffer is ours all along */
}

static bool stream_round(struct bench *b, uint32_t bytes)
{
    static const uint8_t header[] = {0x08, 0x04, 0x10, 0x01}; /* ExpertRequest: ping, step 1 */
    struct rpc_part part = {b->out, bytes};
    struct rpc_out out = {.header = header,
                          .header_bytes = sizeof header,
                          .tensor = &part,
                          .n_parts = 1,
                          .release = kept};
    uint64_t want = b->received + 1, end_us = clock_now_us() + CALL_MS * 1000;
    if (!rpc_link_send(b->link, &out)) return false;
    while (b->received < want && !b->down)
        if (rpc_poll(b->r, CALL_MS * 1000) == 0 && clock_now_us() > end_us) return false;
    return b->received == want;
}

/* ---- runs ------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static enum err_code run(struct bench *b, bool raw, uint32_t bytes, struct quantiles *q,
                         struct err *why)
{
    if (raw) {
        uint8_t *reply;
        size_t n;
        enum err_code rc =
            rpc_unary(b->r, b->control, WIRE_RAW, &bytes, sizeof bytes, CALL_MS, &reply, &n, why);
        if (rc != ERR_OK) return rc;
        mem_free(reply);
    }
    uint32_t rounds = 0;
    uint64_t end_ns = clock_now_ns() + RUN_US * 1000ull;
    for (bool last = false; !last;) {
        uint64_t begin = clock_now_ns();
        last = rounds + 1 >= WARM_UP + MAX_ROUNDS ||
               (begin > end_ns && rounds + 1 >= WARM_UP + MIN_ROUNDS);
        bool ok =
            raw ? wire_raw_round(b->tcp, b->spin, b->in, bytes, last) : stream_round(b, bytes);
        if (!ok)
            return err_set(why, ERR_UNAVAILABLE, "%s at %u bytes ended in round %u: %s",
                           raw ? "TCP" : "stream", bytes, rounds,
                           b->down ? b->down_text : "no answer");
        if (rounds >= WARM_UP) b->samples_ns[rounds - WARM_UP] = clock_now_ns() - begin;
        rounds++;
    }
    rounds -= WARM_UP;
    qsort(b->samples_ns, rounds, sizeof *b->samples_ns, by_value);
    q->p50_us = (double)b->samples_ns[rounds / 2] / 1000.0;
    q->p99_us = (double)b->samples_ns[rounds - 1 - rounds / 100] / 1000.0;
    return ERR_OK;
}

/* ---- setting up ------------------------------------------------------------------------------- */

static enum err_code start_child(struct bench *b, unsigned *grpc_port, unsigned *tcp_port,
                                 struct err *why)
{
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    char self[] = "/proc/self/exe", bench[] = "bench", echo[] = "wire-echo";
    char mode[] = "spin", pin[] = "pin";
    if (!b->spin) memcpy(mode, "wait", 4);
    char *argv[] = {self, bench, echo, mode, b->pin ? pin : NULL, NULL};
    enum err_code rc = ERR_OK;
    posix_spawn_file_actions_t fa;
    if (pipe(to) != 0 || pipe(from) != 0) rc = err_set(why, ERR_IO, "pipe: %s", strerror(errno));
    if (rc == ERR_OK && posix_spawn_file_actions_init(&fa) == 0) {
        posix_spawn_file_actions_adddup2(&fa, to[0], STDIN_FILENO);
        posix_spawn_file_actions_adddup2(&fa, from[1], STDOUT_FILENO);
        posix_spawn_file_actions_addclose(&fa, to[1]);
        posix_spawn_file_actions_addclose(&fa, from[0]);
        int e = posix_spawn(&b->child, self, &fa, NULL, argv, environ);
        posix_spawn_file_actions_destroy(&fa);
        if (e != 0) rc = err_set(why, ERR_IO, "start the echo process: %s", strerror(e));
    }
    if (to[0] >= 0) close(to[0]);
    if (from[1] >= 0) close(from[1]);
    b->child_in = to[1];
    char line[64] = "";
    if (rc == ERR_OK) {
        size_t n = 0;
        ssize_t k;
        while (n < sizeof line - 1 && strchr(line, '\n') == NULL &&
               (k = read(from[0], line + n, sizeof line - 1 - n)) > 0)
            n += (size_t)k;
        if (sscanf(line, "%u %u", grpc_port, tcp_port) != 2)
            rc = err_set(why, ERR_UNAVAILABLE, "the echo process did not start");
    }
    if (from[0] >= 0) close(from[0]);
    return rc;
}

static bool is_slow(const struct bench *b)
{
    return b->slow.delay_us > 0 || b->slow.mbit > 0;
}

static enum err_code connect_tcp(struct bench *b, unsigned port, struct err *why)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    b->tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (b->tcp < 0 || connect(b->tcp, (struct sockaddr *)&a, sizeof a) != 0 ||
        setsockopt(b->tcp, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        return err_set(why, ERR_IO, "connect to the echo process: %s", strerror(errno));
    return ERR_OK;
}

static enum err_code set_up(struct bench *b, struct err *why)
{
    static const struct rpc_link_handlers handlers = {on_open, on_message, on_down};
    unsigned grpc_port = 0, tcp_port = 0;
    uint32_t largest = sizes[ARRAY_LEN(sizes) - 1].bytes;
    b->out = mem_zalloc(largest);
    b->in = mem_zalloc(largest);
    b->samples_ns = mem_zalloc_array(MAX_ROUNDS, sizeof *b->samples_ns);
    if (b->out == NULL || b->in == NULL || b->samples_ns == NULL) return err_nomem(why, "buffers");
    enum err_code rc = start_child(b, &grpc_port, &tcp_port, why); /* before gRPC has threads */
    if (rc == ERR_OK) rc = rpc_open(&b->r, why);
    snprintf(b->control, sizeof b->control, "127.0.0.1:%u", grpc_port);
    if (rc == ERR_OK && is_slow(b))
        rc = slow_link_open(&b->slow, grpc_port, &b->links[0], &grpc_port, why);
    if (rc == ERR_OK && is_slow(b))
        rc = slow_link_open(&b->slow, tcp_port, &b->links[1], &tcp_port, why);
    if (rc == ERR_OK) rc = connect_tcp(b, tcp_port, why);
    if (rc != ERR_OK) return rc;
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%u", grpc_port);
    rc = rpc_link_open(b->r, target, RPC_LANE_DECODE, WIRE_STREAM, &handlers, b, &b->link, why);
    if (rc != ERR_OK) return rc;
    uint64_t end_us = clock_now_us() + CALL_MS * 1000;
    while (!b->open && !b->down && clock_now_us() < end_us)
        rpc_poll(b->r, 100000);
    if (!b->open)
        return err_set(why, ERR_UNAVAILABLE, "no stream to the echo process: %s", b->down_text);
    if (b->pin) (void)wire_pin(0);
    if (b->spin) rpc_set_spin(b->r, WIRE_SPIN_US);
    return ERR_OK;
}

static void tear_down(struct bench *b)
{
    rpc_link_close(b->link);
    rpc_close(b->r);
    if (b->tcp >= 0) close(b->tcp);
    slow_link_close(b->links[0]);
    slow_link_close(b->links[1]);
    if (b->child_in >= 0) close(b->child_in);
    if (b->child > 0) (void)waitpid(b->child, NULL, 0);
    mem_free(b->out);
    mem_free(b->in);
    mem_free(b->samples_ns);
}

/* ---- the command ------------------------------------------------------------------------------ */

/* Us that the slow links alone take for a round trip. */
static double cable_us(const struct bench *b, uint32_t bytes)
{
    const double rate = b->slow.mbit > 0 ? bytes * 8.0 / b->slow.mbit : 0;
    return 2 * (b->slow.delay_us + rate);
}

static void print_row(const struct bench *b, size_t i, const struct quantiles *raw,
                      const struct quantiles *stream, double ratio)
{
    if (b->json) {
        printf(
            "%s{\"bytes\":%u,\"tcp_p50_us\":%.1f,\"tcp_p99_us\":%.1f,\"grpc_p50_us\":%.1f,\"grpc_p99_us\":%.1f,"
            "\"cable_us\":%.1f,\"ratio\":%.3f,\"target\":%.1f}",
            i > 0 ? "," : "", sizes[i].bytes, raw->p50_us, raw->p99_us, stream->p50_us,
            stream->p99_us, cable_us(b, sizes[i].bytes), ratio, sizes[i].target);
        return;
    }
    if (is_slow(b)) printf("%9.0f", cable_us(b, sizes[i].bytes));
    printf("%6u KiB  %9.1f / %-9.1f %9.1f / %-9.1f %6.2f   <= %.1f %s\n", sizes[i].bytes >> 10,
           raw->p50_us, raw->p99_us, stream->p50_us, stream->p99_us, ratio, sizes[i].target,
           ratio <= sizes[i].target ? "" : "missed");
}

static enum err_code measure(struct bench *b, struct err *why)
{
    if (b->json)
        printf(
            "{\"mode\":\"%s\",\"pinned\":%s,\"delay_us\":%u,\"mbit\":%u,\"repetitions\":%u,\"sizes\":[",
            b->spin ? "spin" : "block", b->pin ? "true" : "false", b->slow.delay_us, b->slow.mbit,
            b->repetitions);
    else {
        printf("Round trip in us, p50 / p99, both ends %s; medians of %u interleaved runs\n",
               b->spin ? "spin" : "block", b->repetitions);
        if (is_slow(b))
            printf("Through a proxy of %u us and %u Mbit/s (0: no limit) each way\n",
                   b->slow.delay_us, b->slow.mbit);
        printf("\n%s%10s  %21s %21s %6s   %s\n", is_slow(b) ? "    cable" : "", "size", "raw TCP",
               "gRPC stream", "ratio", "target");
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        double v[2][2][MAX_REPETITIONS]; /* [raw][p50, p99] */
        for (unsigned rep = 0; rep < b->repetitions; rep++)
            for (unsigned raw = 0; raw < 2; raw++) {
                struct quantiles q = {0};
                enum err_code rc = run(b, raw != 0, sizes[i].bytes, &q, why);
                if (rc != ERR_OK) return rc;
                v[raw][0][rep] = q.p50_us;
                v[raw][1][rep] = q.p99_us;
            }
        struct quantiles stream = {bench_median(v[0][0], b->repetitions),
                                   bench_median(v[0][1], b->repetitions)};
        struct quantiles tcp = {bench_median(v[1][0], b->repetitions),
                                bench_median(v[1][1], b->repetitions)};
        print_row(b, i, &tcp, &stream, stream.p50_us / tcp.p50_us);
        fflush(stdout);
    }
    if (b->json) printf("]}\n");
    double load;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (getloadavg(&load, 1) == 1 && load > (double)cores + 0.5)
        fprintf(
            stderr,
            "The machine is busy (load %.1f on %ld cores): take these figures again when it is idle.\n",
            load, cores);
    return ERR_OK;
}

enum {
    OPT_MODE = 'm',
    OPT_REPETITIONS = 'r',
    OPT_JSON = 0x100,
    OPT_NO_PIN,
    OPT_DELAY_US,
    OPT_MBIT
};

static const struct argp_option options[] = {
    {"mode", OPT_MODE, "spin|block", 0,
     "How both ends wait (default: spin with two cores or more and no proxy, else block)", 0},
    {"repetitions", OPT_REPETITIONS, "N", 0, "Runs per size and kind, 1 to 50 (default 5)", 0},
    {"delay-us", OPT_DELAY_US, "N", 0,
     "Through a proxy that holds every byte back so long, each way; 0 to 1000000 (default 0)", 0},
    {"mbit", OPT_MBIT, "N", 0,
     "Through a proxy that carries no more than 10^6 bits per second, each way; 0 to 100000 (default 0: no limit)",
     0},
    {"json", OPT_JSON, NULL, 0, "Print one JSON object", 0},
    {"no-pin", OPT_NO_PIN, NULL, 0, "Do not pin the two ends to a core each", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    char *end;
    switch (key) {
    case OPT_MODE:
        if (strcmp(arg, "spin") != 0 && strcmp(arg, "block") != 0)
            argp_error(state, "--mode is spin or block, not '%s'", arg);
        b->spin = arg[0] == 's';
        b->mode_said = true;
        break;
    case OPT_REPETITIONS: {
        unsigned long n = strtoul(arg, &end, 10);
        if (*arg == '\0' || *end != '\0' || n < 1 || n > MAX_REPETITIONS)
            argp_error(state, "--repetitions is 1 to %u, not '%s'", MAX_REPETITIONS, arg);
        b->repetitions = (unsigned)n;
        break;
    }
    case OPT_DELAY_US:
        b->slow.delay_us = (uint32_t)options_number(state, "delay-us", arg, 0, 1000000);
        break;
    case OPT_MBIT:
        b->slow.mbit = (uint32_t)options_number(state, "mbit", arg, 0, 100000);
        break;
    case OPT_JSON:
        b->json = true;
        break;
    case OPT_NO_PIN:
        b->pin = false;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is one word too many", arg);
        break;
    case ARGP_KEY_END:
        /* The proxy needs a core that a spinning end would keep from it. */
        if (is_slow(b) && !b->mode_said) b->spin = false;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int bench_wire(int argc, char **argv)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    struct bench b = {
        .spin = cores >= 2, .pin = cores >= 2, .repetitions = 5, .tcp = -1, .child_in = -1};
    static const struct argp argp = {
        options,
        parse,
        NULL,
        "Measure the gRPC stream that carries expert rows against raw TCP on this machine.\v"
        "The target is the ratio of the medians. With --delay-us or --mbit both kinds go through the same kind of proxy, "
        "`cable` is the time that it alone takes for a round trip, and the targets are those of loopback.",
        NULL,
        NULL,
        NULL};
    argp_parse(&argp, argc, argv, 0, NULL, &b);
    struct err why = {0};
    enum err_code rc = set_up(&b, &why);
    if (rc == ERR_OK) rc = measure(&b, &why);
    tear_down(&b);
    if (rc != ERR_OK) fprintf(stderr, "moesaic bench wire: %s\n", why.text);
    return rc == ERR_OK ? 0 : 1;
}
