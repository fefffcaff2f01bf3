/* The transport over real loopback sockets: client and server on one queue unless the test says otherwise. */
// links: rpc base
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/rpc/rpc.h"

extern char **environ;

#define ECHO "/moesaic.v1.ExpertService/Stream"

/* ---- an echo server ---------------------------------------------------------------------------- */

struct echo {
    unsigned begun, done, cancelled;
};

static enum err_code echo_call(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    (void)c;
    (void)why;
    ((struct echo *)ctx)->begun++;
    *call_ctx = ctx;
    return ERR_OK;
}

/* The header "bye" makes the server finish with a status of its own. */
static void echo_message(void *ctx, struct rpc_call *c, struct rpc_message *m)
{
    (void)ctx;
    size_t nh, nt = rpc_message_tensor_bytes(m);
    const uint8_t *h = rpc_message_header(m, &nh);
    if (nh == 3 && memcmp(h, "bye", 3) == 0) {
        rpc_message_free(m);
        rpc_call_send(c, &(struct rpc_out){.header = "ok", .header_bytes = 2});
        rpc_call_finish(c, 9, "as you wish");
        cr_expect_not(rpc_call_send(c, &(struct rpc_out){.header = "x", .header_bytes = 1}));
        return;
    }
    uint8_t *copy = malloc(nt + 1);
    rpc_message_tensor_copy(m, 0, copy, nt);
    struct rpc_part part = {copy, nt};
    cr_expect(rpc_call_send(c, &(struct rpc_out){.header = h,
                                                 .header_bytes = nh,
                                                 .tensor = &part,
                                                 .n_parts = 1,
                                                 .release = free,
                                                 .release_ctx = copy}));
    rpc_message_free(m);
}

static void echo_half_close(void *ctx, struct rpc_call *c)
{
    (void)ctx;
    rpc_call_finish(c, 0, "");
}

static void echo_done(void *ctx, bool cancelled)
{
    ((struct echo *)ctx)->done++;
    ((struct echo *)ctx)->cancelled += cancelled;
}

static struct rpc_method echo_method(struct echo *e)
{
    return (struct rpc_method){ECHO, echo_call, {echo_message, echo_half_close, echo_done}, e};
}

/* ---- a client that notes what happens ----------------------------------------------------------- */

struct client {
    unsigned opens, downs, messages;
    int status;
    char text[256];
    uint8_t header[256];
    size_t header_bytes;
    uint8_t *tensor;
    size_t tensor_bytes;
    bool close_on_message, close_on_down;
    _Atomic unsigned released;
};

static void client_open(void *ctx, struct rpc_link *l)
{
    (void)l;
    ((struct client *)ctx)->opens++;
}

static void client_message(void *ctx, struct rpc_link *l, struct rpc_message *m)
{
    struct client *c = ctx;
    c->messages++;
    const uint8_t *h = rpc_message_header(m, &c->header_bytes);
    memcpy(c->header, h, c->header_bytes < sizeof c->header ? c->header_bytes : sizeof c->header);
    c->tensor_bytes = rpc_message_tensor_bytes(m);
    c->tensor = realloc(c->tensor, c->tensor_bytes + 1);
    rpc_message_tensor_copy(m, 0, c->tensor, c->tensor_bytes);
    rpc_message_free(m);
    if (c->close_on_message) rpc_link_close(l);
}

static void client_down(void *ctx, struct rpc_link *l, int status, const char *text)
{
    struct client *c = ctx;
    c->downs++;
    c->status = status;
    snprintf(c->text, sizeof c->text, "%s", text);
    if (c->close_on_down) rpc_link_close(l);
}

static const struct rpc_link_handlers handlers = {client_open, client_message, client_down};

static void released(void *ctx)
{
    atomic_fetch_add(&((struct client *)ctx)->released, 1);
}

/* Poll until *what reaches n, at most ms. */
static bool reach(struct rpc *r, const unsigned *what, unsigned n, unsigned ms)
{
    uint64_t end = clock_now_us() + ms * 1000ull;
    while (*what < n && clock_now_us() < end)
        rpc_poll(r, 10000);
    return *what >= n;
}

static char *address(unsigned port)
{
    static char text[64];
    snprintf(text, sizeof text, "127.0.0.1:%u", port);
    return text;
}

struct pair {
    struct rpc *r;
    struct echo echo;
    struct rpc_server *server;
    struct client client;
    struct rpc_link *link;
};

static void pair_open(struct pair *p)
{
    struct err why = {0};
    cr_assert_eq(rpc_open(&p->r, &why), ERR_OK, "%s", why.text);
    struct rpc_method m = echo_method(&p->echo);
    cr_assert_eq(rpc_server_open(p->r, "127.0.0.1:0", &m, 1, &p->server, &why), ERR_OK, "%s",
                 why.text);
    cr_assert_eq(rpc_link_open(p->r, address(rpc_server_port(p->server)), RPC_LANE_DECODE, ECHO,
                               &handlers, &p->client, &p->link, &why),
                 ERR_OK, "%s", why.text);
    cr_assert(reach(p->r, &p->client.opens, 1, 3000));
}

static void pair_close(struct pair *p)
{
    rpc_link_close(p->link);
    rpc_server_close(p->server, 1000);
    rpc_close(p->r);
    cr_expect_eq(p->echo.begun, p->echo.done);
    free(p->client.tensor);
}

/* ---- tests -------------------------------------------------------------------------------------- */

Test(rpc, messages_of_every_size_come_back_unchanged)
{
    struct pair p = {0};
    pair_open(&p);
    static const size_t sizes[] = {0, 1, 22, 23, 24, 16 << 10, (64 << 10) + 1, 1 << 20, 8 << 20};
    unsigned sent = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        uint8_t *data = malloc(n + 1);
        for (size_t k = 0; k < n; k++)
            data[k] = (uint8_t)(k * 31 + (k >> 8) + i);
        /* A valid header: field 1, varint; then a packed field 7 whose bytes look like field 15. */
        uint8_t header[] = {0x08, (uint8_t)i, 0x3a, 3, 0x7a, 0x7a, 0x01};
        size_t third = n / 3;
        struct rpc_part parts[3] = {
            {data, third}, {data + third, third}, {data + 2 * third, n - 2 * third}};
        struct rpc_out out = {.header = header,
                              .header_bytes = sizeof header,
                              .tensor = parts,
                              .n_parts = 3,
                              .release = i % 2 ? released : NULL,
                              .release_ctx = &p.client};
        cr_expect(rpc_link_send(p.link, &out));
        cr_assert(reach(p.r, &p.client.messages, ++sent, 3000), "size %zu", n);
        cr_expect_eq(p.client.header_bytes, sizeof header);
        cr_expect_arr_eq(p.client.header, header, sizeof header);
        cr_assert_eq(p.client.tensor_bytes, n);
        cr_expect(memcmp(p.client.tensor, data, n) == 0, "size %zu", n);
        /* The reply may be seen before the end of the sending is. */
        for (int k = 0; k < 3000 && (rpc_link_unsent(p.link) > 0 ||
                                     atomic_load(&p.client.released) < (i + 1) / 2);
             k++)
            rpc_poll(p.r, 1000);
        cr_expect_eq(rpc_link_unsent(p.link), 0u);
        cr_expect_eq(atomic_load(&p.client.released), (i + 1) / 2);
        free(data);
    }
    pair_close(&p);
}

Test(rpc, many_queued_messages_keep_their_order)
{
    struct pair p = {0};
    pair_open(&p);
    uint32_t body[4096];
    for (uint32_t i = 0; i < 300; i++) {
        for (uint32_t k = 0; k < 4096; k++)
            body[k] = i;
        struct rpc_part part = {body, sizeof body};
        cr_assert(rpc_link_send(
            p.link, &(struct rpc_out){.tensor = &part, .n_parts = 1})); /* copied: body changes */
    }
    cr_expect_gt(rpc_link_unsent(p.link), 0u);
    for (uint32_t i = 0; i < 300; i++) {
        /* Each arrival is looked at; several may come in one poll, so compare with the count. */
        cr_assert(reach(p.r, &p.client.messages, i + 1, 3000));
        uint32_t got[4096];
        cr_assert_eq(p.client.tensor_bytes, sizeof got);
        memcpy(got, p.client.tensor, sizeof got);
        cr_expect_eq(got[0], p.client.messages - 1);
        cr_expect_eq(got[4095], p.client.messages - 1);
    }
    pair_close(&p);
}

Test(rpc, releases_once_when_nothing_can_be_sent)
{
    struct pair p = {0};
    pair_open(&p);
    uint8_t byte = 7;
    struct rpc_part huge = {&byte, (size_t)LIMIT_FRAME_BYTES};
    struct rpc_part one = {&byte, 1}, none = {NULL, 0};
    struct rpc_out out = {
        .tensor = &huge, .n_parts = 1, .release = released, .release_ctx = &p.client};
    cr_expect_not(rpc_link_send(p.link, &out)); /* over the limit */
    cr_expect_eq(p.client.released, 1u);
    out.tensor = &none;
    cr_expect(rpc_link_send(p.link, &out)); /* empty: nothing borrowed */
    cr_expect_eq(p.client.released, 2u);
    cr_assert(reach(p.r, &p.client.messages, 1, 3000));
    out.tensor = &one;
    mem_fail_at(1);
    cr_expect_not(rpc_link_send(p.link, &out));
    mem_fail_at(2);
    cr_expect_not(rpc_link_send(p.link, &out));
    mem_fail_at(0);
    cr_expect_eq(p.client.released, 4u);

    /* Many in the queue when the link closes. */
    static uint8_t block[1 << 20];
    struct rpc_part big = {block, sizeof block};
    out.tensor = &big;
    for (unsigned i = 0; i < 50; i++)
        cr_expect(rpc_link_send(p.link, &out));
    pair_close(&p);
    cr_expect_eq(p.client.released, 54u);
}

Test(rpc, a_server_status_reaches_the_client_after_what_was_sent)
{
    struct pair p = {0};
    pair_open(&p);
    cr_expect(rpc_link_send(p.link, &(struct rpc_out){.header = "bye", .header_bytes = 3}));
    cr_assert(reach(p.r, &p.client.downs, 1, 3000));
    cr_expect_eq(p.client.messages, 1u);
    cr_expect_arr_eq(p.client.header, "ok", 2);
    cr_expect_eq(p.client.status, 9);
    cr_expect_str_eq(p.client.text, "as you wish");
    cr_expect_not(rpc_link_is_open(p.link));
    cr_assert(reach(p.r, &p.client.opens, 2, 3000), "reconnects");
    cr_expect(rpc_link_send(p.link, &(struct rpc_out){.header = "\x08\x01", .header_bytes = 2}));
    cr_assert(reach(p.r, &p.client.messages, 2, 3000));
    cr_expect_eq(p.echo.begun, 2u);
    pair_close(&p);
}

Test(rpc, reset_drops_the_stream_and_opens_a_new_one)
{
    struct pair p = {0};
    pair_open(&p);
    /* The server must know of the stream: one that is reset before its head left is never seen there. */
    cr_expect(rpc_link_send(p.link, &(struct rpc_out){.header = "\x08\x01", .header_bytes = 2}));
    cr_assert(reach(p.r, &p.client.messages, 1, 3000));
    rpc_link_reset(p.link, "reply for a step never sent");
    cr_assert(reach(p.r, &p.client.downs, 1, 3000));
    cr_expect_str_eq(p.client.text, "reply for a step never sent");
    cr_assert(reach(p.r, &p.client.opens, 2, 3000));
    cr_assert(reach(p.r, &p.echo.cancelled, 1, 3000));
    pair_close(&p);
}

Test(rpc, closing_inside_a_callback_is_safe)
{
    struct pair p = {0};
    pair_open(&p);
    p.client.close_on_message = true;
    for (unsigned i = 0; i < 3; i++)
        cr_expect(
            rpc_link_send(p.link, &(struct rpc_out){.header = "\x08\x01", .header_bytes = 2}));
    cr_assert(reach(p.r, &p.client.messages, 1, 3000));
    cr_assert(reach(p.r, &p.echo.cancelled, 1, 3000));
    cr_expect_eq(p.client.messages, 1u);
    cr_expect_eq(p.client.downs, 0u);
    p.link = NULL; /* closed */

    struct client second = {.close_on_down = true};
    struct rpc_link *l;
    struct err why;
    char *to = address(rpc_server_port(p.server));
    cr_assert_eq(
        rpc_link_open(p.r, to, RPC_LANE_DECODE, "/no/Method", &handlers, &second, &l, &why),
        ERR_OK);
    cr_assert(reach(p.r, &second.downs, 1, 3000));
    cr_expect_eq(second.status, 12);
    cr_expect(strstr(second.text, "/no/Method"), "%s", second.text);
    pair_close(&p);
}

Test(rpc, a_link_to_nobody_says_so_once_and_closes)
{
    struct rpc *r;
    struct err why;
    cr_assert_eq(rpc_open(&r, &why), ERR_OK);
    struct client c = {0};
    struct rpc_link *l;
    cr_assert_eq(rpc_link_open(r, "127.0.0.1:1", RPC_LANE_BULK, ECHO, &handlers, &c, &l, &why),
                 ERR_OK);
    cr_assert(reach(r, &c.downs, 1, 3000));
    cr_expect_eq(c.status, 14);
    cr_expect(strstr(c.text, "127.0.0.1:1"));
    for (unsigned i = 0; i < 60; i++)
        rpc_poll(r, 10000);
    cr_expect_eq(c.downs, 1u);
    struct rpc_part part = {&c, 1};
    cr_expect_not(rpc_link_send(
        l,
        &(struct rpc_out){.tensor = &part, .n_parts = 1, .release = released, .release_ctx = &c}));
    cr_expect_eq(c.released, 1u);
    rpc_link_close(l);
    rpc_close(r);
}

Test(rpc, a_port_in_use_is_an_error_that_names_it)
{
    struct pair p = {0};
    pair_open(&p);
    struct rpc_method m = echo_method(&p.echo);
    struct rpc_server *s;
    struct err why = {0};
    char *taken = address(rpc_server_port(p.server));
    log_setup(LOG_ERROR, NULL);
    cr_expect_eq(rpc_server_open(p.r, taken, &m, 1, &s, &why), ERR_UNAVAILABLE);
    cr_expect(strstr(why.text, taken) && strstr(why.text, "address in use"), "%s", why.text);
    cr_expect_eq(rpc_server_open(p.r, "192.0.2.1:5", &m, 1, &s, &why), ERR_UNAVAILABLE);
    cr_expect(strstr(why.text, "192.0.2.1:5"), "%s", why.text);
    pair_close(&p);
}

Test(rpc, two_lanes_are_two_connections)
{
    struct pair p = {0};
    pair_open(&p);
    struct client c = {0};
    struct rpc_link *l;
    struct err why;
    cr_assert_eq(rpc_link_open(p.r, address(rpc_server_port(p.server)), RPC_LANE_BULK, ECHO,
                               &handlers, &c, &l, &why),
                 ERR_OK);
    cr_assert(reach(p.r, &c.opens, 1, 3000));
    char line[512];
    char want[32];
    snprintf(want, sizeof want, ":%04X ", rpc_server_port(p.server));
    unsigned established = 0;
    static const char *const tables[] = {"/proc/net/tcp",
                                         "/proc/net/tcp6"}; /* gRPC binds mapped addresses */
    for (unsigned i = 0; i < 2; i++) {
        FILE *f = fopen(tables[i], "r");
        while (f != NULL && fgets(line, sizeof line, f)) {
            unsigned state;
            char local[64], remote[64];
            if (sscanf(line, " %*[^:]: %60s %60s %x", local, remote, &state) == 3 && state == 1) {
                strcat(local, " ");
                established += strstr(local, want) != NULL;
            }
        }
        if (f != NULL) fclose(f);
    }
    cr_expect_eq(established, 2u);
    rpc_link_close(l);
    pair_close(&p);
}

/* ---- unary and health ---------------------------------------------------------------------------- */

static void *serve_health(void *arg)
{
    /* Its own queue and thread, as a node has. */
    unsigned *port = arg;
    struct rpc *r;
    struct err why;
    struct rpc_health *h = rpc_health_open();
    struct rpc_method m[2];
    struct rpc_server *s;
    cr_assert_eq(rpc_open(&r, &why), ERR_OK);
    rpc_health_methods(h, m);
    cr_assert_eq(rpc_server_open(r, "127.0.0.1:0", m, 2, &s, &why), ERR_OK);
    __atomic_store_n(&port[0], rpc_server_port(s), __ATOMIC_RELEASE);
    while (__atomic_load_n(&port[1], __ATOMIC_ACQUIRE) < 2) {
        rpc_poll(r, 5000);
        rpc_health_set(h, __atomic_load_n(&port[1], __ATOMIC_ACQUIRE) == 1);
    }
    rpc_health_finish(h);
    rpc_server_close(s, 3000);
    rpc_health_close(h);
    rpc_close(r);
    return NULL;
}

static void note_down_and_stop(void *ctx, struct rpc_link *l, int status, const char *text)
{
    client_down(ctx, l, status, text);
    rpc_link_close(l);
}

Test(rpc, health_is_checked_and_watched)
{
    struct rpc *r;
    struct err why = {0};
    cr_assert_eq(rpc_open(&r, &why), ERR_OK);
    unsigned shared[2] = {0, 0};
    pthread_t thread;
    pthread_create(&thread, NULL, serve_health, shared);
    while (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) == 0)
        usleep(1000);
    char *to = address(shared[0]);
    uint8_t *reply;
    size_t n;
    cr_assert_eq(rpc_unary(r, to, "/grpc.health.v1.Health/Check", NULL, 0, 3000, &reply, &n, &why),
                 ERR_OK, "%s", why.text);
    cr_expect(n == 2 && reply[0] == 8 && reply[1] == 2);
    mem_free(reply);
    cr_expect_eq(
        rpc_unary(r, to, "/grpc.health.v1.Health/Check", "\x0a\x01x", 3, 3000, &reply, &n, &why),
        ERR_NOT_FOUND);
    cr_expect_eq(
        rpc_unary(r, to, "/grpc.health.v1.Health/Check", "\xff\xff\xff", 3, 3000, &reply, &n, &why),
        ERR_INVALID);
    cr_expect_eq(
        rpc_unary(r, to, "/grpc.health.v1.Health/Nothing", NULL, 0, 3000, &reply, &n, &why),
        ERR_UNSUPPORTED);
    cr_expect_eq(rpc_unary(r, "127.0.0.1:1", "/a/B", NULL, 0, 3000, &reply, &n, &why),
                 ERR_UNAVAILABLE);

    struct client c = {0};
    struct rpc_link *l;
    struct rpc_link_handlers h = {client_open, client_message, note_down_and_stop};
    cr_assert_eq(
        rpc_link_open(r, to, RPC_LANE_DECODE, "/grpc.health.v1.Health/Watch", &h, &c, &l, &why),
        ERR_OK);
    cr_assert(reach(r, &c.opens, 1, 3000));
    cr_expect(rpc_link_send(l, &(struct rpc_out){0}));
    cr_assert(reach(r, &c.messages, 1, 3000));
    cr_expect(c.header_bytes == 2 && c.header[1] == 2);
    __atomic_store_n(&shared[1], 1, __ATOMIC_RELEASE);
    cr_assert(reach(r, &c.messages, 2, 3000));
    cr_expect_eq(c.header[1], 1);
    __atomic_store_n(&shared[1], 2, __ATOMIC_RELEASE);
    cr_assert(reach(r, &c.downs, 1, 3000));
    cr_expect_eq(c.messages, 3u);
    cr_expect_eq(c.header[1], 2);
    cr_expect_eq(c.status, 0);
    pthread_join(thread, NULL);
    free(c.tensor);
    rpc_close(r);
}

/* ---- wake-ups ------------------------------------------------------------------------------------ */

struct waker {
    struct rpc *r;
    _Atomic unsigned asked, seen;
};

static void *keep_waking(void *arg)
{
    struct waker *w = arg;
    for (unsigned i = 1; i <= 1000; i++) {
        atomic_store(&w->asked, i);
        rpc_wake(w->r);
        while (atomic_load(&w->seen) < i)
            sched_yield();
    }
    return NULL;
}

static void *wake_wildly(void *arg)
{
    struct waker *w = arg;
    for (unsigned i = 0; i < 5000; i++)
        rpc_wake(w->r);
    return NULL;
}

Test(rpc, a_wake_up_from_another_thread_ends_the_wait)
{
    struct waker w = {0};
    struct err why;
    cr_assert_eq(rpc_open(&w.r, &why), ERR_OK);
    pthread_t t[2];
    pthread_create(&t[0], NULL, keep_waking, &w);
    uint64_t begin = clock_now_us();
    while (atomic_load(&w.seen) < 1000) {
        rpc_poll(w.r, 5000000); /* a lost wake-up would take the 5 s */
        atomic_store(&w.seen, atomic_load(&w.asked));
    }
    pthread_join(t[0], NULL);
    cr_expect_lt(clock_now_us() - begin, 4000000u);

    pthread_create(&t[0], NULL, wake_wildly, &w);
    pthread_create(&t[1], NULL, wake_wildly, &w);
    unsigned n = 0;
    for (unsigned i = 0; i < 200; i++)
        n += rpc_poll(w.r, 1000);
    pthread_join(t[0], NULL);
    pthread_join(t[1], NULL);
    cr_expect_geq(n, 1u);
    rpc_poll(w.r, 0);
    begin = clock_now_us();
    cr_expect_eq(rpc_poll(w.r, 20000), 0u); /* at most one was pending */
    cr_expect_geq(clock_now_us() - begin, 19000u);
    rpc_set_spin(w.r, 3000);
    begin = clock_now_us();
    cr_expect_eq(rpc_poll(w.r, 10000), 0u);
    cr_expect_geq(clock_now_us() - begin, 9000u);
    rpc_close(w.r);
}

/* ---- a peer that dies: this program again, as a server ------------------------------------------- */

static pid_t start_server(unsigned *port)
{
    int out[2];
    cr_assert_eq(pipe(out), 0);
    char env[64], name[] = "/proc/self/exe";
    snprintf(env, sizeof env, "RPC_TEST_SERVER=%u", *port);
    char *argv[] = {name, NULL}, *envp[] = {env, NULL};
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, out[1], 1);
    posix_spawn_file_actions_addclose(&fa, out[0]);
    pid_t pid;
    cr_assert_eq(posix_spawn(&pid, name, &fa, NULL, argv, envp), 0);
    posix_spawn_file_actions_destroy(&fa);
    close(out[1]);
    char text[16] = "";
    cr_assert_gt(read(out[0], text, sizeof text - 1), 0);
    close(out[0]);
    *port = (unsigned)atoi(text);
    cr_assert_gt(*port, 0u);
    return pid;
}

__attribute__((constructor)) static void be_the_server(void)
{
    const char *port = getenv("RPC_TEST_SERVER");
    if (port == NULL) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(20);
    struct rpc *r;
    struct err why;
    struct echo e = {0};
    struct rpc_method m = echo_method(&e);
    struct rpc_server *s;
    if (rpc_open(&r, &why) != ERR_OK ||
        rpc_server_open(r, address((unsigned)atoi(port)), &m, 1, &s, &why) != ERR_OK)
        _exit(1);
    char text[16];
    int n = snprintf(text, sizeof text, "%u\n", rpc_server_port(s));
    if (write(1, text, (size_t)n) != n) _exit(1);
    for (;;)
        rpc_poll(r, UINT64_MAX);
}

Test(rpc, a_killed_peer_is_noticed_and_found_again)
{
    unsigned port = 0;
    pid_t pid = start_server(&port);
    struct rpc *r;
    struct err why;
    struct client c = {0};
    struct rpc_link *l;
    cr_assert_eq(rpc_open(&r, &why), ERR_OK);
    cr_assert_eq(rpc_link_open(r, address(port), RPC_LANE_DECODE, ECHO, &handlers, &c, &l, &why),
                 ERR_OK);
    cr_assert(reach(r, &c.opens, 1, 5000));
    static uint8_t block[1 << 20];
    struct rpc_part part = {block, sizeof block};
    struct rpc_out out = {.tensor = &part, .n_parts = 1, .release = released, .release_ctx = &c};
    cr_expect(rpc_link_send(l, &out));
    cr_assert(reach(r, &c.messages, 1, 3000));
    for (unsigned i = 0; i < 20; i++)
        cr_expect(rpc_link_send(l, &out)); /* under way when it dies */

    uint64_t begin = clock_now_us();
    kill(pid, SIGKILL);
    cr_assert(reach(r, &c.downs, 1, 1000));
    cr_log_info("death noticed after %lu us", (unsigned long)(clock_now_us() - begin));
    cr_expect_eq(c.status, 14);
    waitpid(pid, NULL, 0);
    for (unsigned i = 0; i < 50; i++)
        rpc_poll(r, 10000); /* half a second of refused connections */
    cr_expect_eq(c.downs, 1u, "told once");
    cr_expect_eq(c.released, 21u);

    pid = start_server(&port);
    begin = clock_now_us();
    cr_assert(reach(r, &c.opens, 2, 3000));
    cr_log_info("reconnected after %lu us", (unsigned long)(clock_now_us() - begin));
    unsigned before = c.messages;
    cr_expect(rpc_link_send(l, &out));
    cr_assert(reach(r, &c.messages, before + 1, 3000));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    rpc_link_close(l);
    rpc_close(r);
    free(c.tensor);
}

Test(rpc, a_closing_server_cancels_what_does_not_end)
{
    struct pair p = {0};
    pair_open(&p);
    cr_expect(rpc_link_send(p.link, &(struct rpc_out){.header = "\x08\x01", .header_bytes = 2}));
    cr_assert(reach(p.r, &p.client.messages, 1, 3000));
    uint64_t begin = clock_now_us();
    rpc_server_close(p.server, 50);
    cr_expect_lt(clock_now_us() - begin, 2000000u);
    cr_expect_eq(p.echo.done, 1u);
    cr_assert(reach(p.r, &p.client.downs, 1, 3000));
    p.server = NULL;
    pair_close(&p);
}
