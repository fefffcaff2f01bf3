/* The HTTP server over real loopback sockets, with a small application behind it. The server's loop runs in a
 * thread; the test is the client. Times are shortened. */
// links: api
// threads: yes
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/api/http.h"
#include "coordinator/api/http_conn.h"
#include "tests/support/http_client.h"

#define GET(path)       "GET " path " HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define GET_CLOSE(path) "GET " path " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

struct fixture {
    uv_loop_t loop;
    uv_async_t wake;
    pthread_t thread;
    struct http_server *server;
    int port;
    _Atomic int command; /* 1: drain, 2: close */
    _Atomic int gone, drained, requests, connections;
    _Atomic size_t most_unsent;
};

/* A stream of `left` pieces that rests while the client does not read. */
struct producer {
    struct fixture *f;
    struct http_exchange *ex;
    int left;
};

static void produce(void *ctx)
{
    struct producer *p = ctx;
    char piece[1024];
    memset(piece, 'x', sizeof piece);
    while (p->left > 0) {
        if (http_unsent(p->ex) > LIMIT_HTTP_UNSENT_MARK) return;
        http_stream_write(p->ex, piece, sizeof piece);
        p->left--;
        if (http_unsent(p->ex) > p->f->most_unsent) p->f->most_unsent = http_unsent(p->ex);
    }
    http_stream_end(p->ex);
    mem_free(p);
}

static void producer_gone(void *ctx)
{
    struct producer *p = ctx;
    p->f->gone++;
    mem_free(p);
}

static void waiter_gone(void *ctx)
{
    ((struct fixture *)ctx)->gone++;
}

static void on_request(void *ctx, struct http_exchange *ex)
{
    struct fixture *f = ctx;
    const char *path = http_path(ex);
    size_t n;
    const char *body = http_body(ex, &n);
    f->requests++;
    if (strcmp(path, "/hold") == 0) {
        http_watch(ex, f, waiter_gone, NULL);
    } else if (strcmp(path, "/silent") == 0) {
        http_watch(ex, f, waiter_gone, NULL);
        http_stream_begin(ex, 200, "text/plain", NULL);
    } else if (strcmp(path, "/stream") == 0) {
        struct producer *p = mem_zalloc(sizeof *p);
        *p = (struct producer){f, ex, atoi(http_query(ex))};
        http_watch(ex, p, producer_gone, produce);
        http_stream_begin(ex, 200, "text/plain", NULL);
        produce(p);
    } else {
        struct buf b = {0};
        buf_printf(&b, "%s %s ", http_method(ex), path);
        buf_append(&b, body, n);
        http_reply(ex, 200, "text/plain", "X-Extra: 1\r\n", b.data, b.len);
        buf_free(&b);
    }
}

static void on_drained(void *ctx)
{
    ((struct fixture *)ctx)->drained++;
}

static void on_wake(uv_async_t *h)
{
    struct fixture *f = h->data;
    f->connections = (int)http_connections(f->server);
    if (f->command == 1) {
        http_drain(f->server, on_drained, f);
    } else if (f->command == 2) {
        http_close(f->server, NULL, NULL);
        uv_close((uv_handle_t *)h, NULL);
    }
    f->command = 0;
}

static void *run(void *ctx)
{
    uv_run(&((struct fixture *)ctx)->loop, UV_RUN_DEFAULT);
    return NULL;
}

static void start(struct fixture *f, struct http_cfg cfg)
{
    struct err why;
    *f = (struct fixture){0};
    cfg.addresses = cfg.addresses == NULL ? "127.0.0.1:0" : cfg.addresses;
    cfg.on_request = on_request;
    cfg.ctx = f;
    if (cfg.tick_ms == 0) cfg.tick_ms = 20;
    if (cfg.linger_ms == 0) cfg.linger_ms = 100;
    uv_loop_init(&f->loop);
    uv_async_init(&f->loop, &f->wake, on_wake);
    f->wake.data = f;
    cr_assert_eq(http_open(&f->loop, &cfg, &f->server, &why), ERR_OK, "%s", why.text);
    f->port = http_port(f->server);
    pthread_create(&f->thread, NULL, run, f);
}

static void tell(struct fixture *f, int command)
{
    f->command = command;
    uv_async_send(&f->wake);
}

/* The loop must end by itself: nothing leaks. */
static void stop(struct fixture *f)
{
    tell(f, 2);
    pthread_join(f->thread, NULL);
    cr_expect_eq(uv_loop_close(&f->loop), 0);
}

static bool becomes(_Atomic int *value, int wanted)
{
    for (int i = 0; i < 300 && *value != wanted; i++)
        usleep(10000);
    return *value == wanted;
}

static void expect_reply(int port, const char *request, int status, const char *contains)
{
    char *reply = client_talk(port, request);
    cr_expect_eq(client_status(reply), status, "%.60s: %s", request, reply);
    if (contains != NULL) cr_expect(strstr(reply, contains) != NULL, "%.60s: %s", request, reply);
    mem_free(reply);
}

Test(http, answers_and_keeps_the_connection)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    int fd = client_connect(f.port);
    for (int i = 0; i < 3; i++) {
        buf_clear(&in);
        client_send(fd, "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello");
        cr_assert(client_read(fd, &in, "POST /echo hello"));
        cr_expect(strstr(in.data, "X-Extra: 1\r\n") && strstr(in.data, "X-Request-Id: req-") &&
                  strstr(in.data, "Date: "));
        cr_expect_null(strstr(in.data, "Connection:"));
    }
    client_send(
        fd,
        "GET /x HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: my-id\r\nConnection: close\r\n\r\n");
    buf_clear(&in);
    cr_expect(client_read(fd, &in, NULL), "closed when asked");
    cr_expect(strstr(in.data, "X-Request-Id: my-id") && strstr(in.data, "Connection: close"));
    close(fd);
    expect_reply(f.port, "HEAD /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200,
                 "Content-Length: 8\r\n\r\n");
    expect_reply(f.port, "GET /x HTTP/1.0\r\n\r\n", 200, "GET /x ");
    buf_free(&in);
    stop(&f);
}

Test(http, pipelined_requests_are_answered_in_order)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    int fd = client_connect(f.port);
    client_send(
        fd,
        GET("/a") "POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nxyz" GET(
            "/stream?2") "POST /c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" GET_CLOSE("/d"));
    cr_expect(client_read(fd, &in, NULL));
    char *a = strstr(in.data, "GET /a "), *b = strstr(in.data, "POST /b xyz"),
         *s = strstr(in.data, "400\r\nxxx"), *c = strstr(in.data, "POST /c hi"),
         *d = strstr(in.data, "GET /d ");
    cr_expect(a && b && s && c && d && a < b && b < s && s < c && c < d, "%s", in.data);
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, bodies_arrive_in_any_pieces)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    const char *request =
        "POST /p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    int fd = client_connect(f.port);
    for (const char *p = request; *p != '\0'; p++)
        client_send_bytes(fd, p, 1);
    cr_expect(client_read(fd, &in, NULL));
    cr_expect(strstr(in.data, "POST /p hello world"), "%s", in.data);
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, expectations)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    int fd = client_connect(f.port);
    client_send(
        fd,
        "POST /e HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    cr_expect(client_read(fd, &in, "HTTP/1.1 100 Continue\r\n\r\n"));
    client_send(fd, "ok");
    cr_expect(client_read(fd, &in, NULL));
    cr_expect(strstr(in.data, "POST /e ok"));
    close(fd);
    expect_reply(
        f.port,
        "POST /e HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",
        413, "\"type\":\"request_too_large\"");
    expect_reply(f.port,
                 "POST /e HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: tea\r\n\r\n",
                 417, NULL);
    buf_free(&in);
    stop(&f);
}

Test(http, refusals_are_json_and_arrive_although_more_was_sent)
{
    struct fixture f;
    struct buf request = {0};
    start(&f, (struct http_cfg){0});
    expect_reply(f.port, "GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400,
                 "\"param\":null,\"code\":null,\"status\":400");
    expect_reply(f.port, "GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, NULL);
    expect_reply(
        f.port,
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" GET(
            "/smuggled"),
        400, NULL);
    cr_expect_eq(f.requests, 0, "nothing after a refusal is run");
    /* 9 MiB follow the head: without a lingering close their arrival would reset the connection. */
    buf_puts(&request, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9437184\r\n\r\n");
    for (int i = 0; i < 9216; i++)
        buf_printf(&request, "%01024d", i);
    expect_reply(f.port, request.data, 413, "the limit is");
    buf_clear(&request);
    buf_puts(&request, "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 150; i++)
        buf_printf(&request, "10000\r\n%065536d\r\n", i);
    expect_reply(f.port, request.data, 413, NULL);
    buf_free(&request);
    stop(&f);
}

Test(http, host_must_be_local_when_bound_to_loopback)
{
    struct fixture f;
    start(&f, (struct http_cfg){0});
    expect_reply(f.port, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "permission_error");
    expect_reply(f.port, "GET / HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 403, NULL);
    stop(&f);
    static const char *const good[] = {"localhost",  "LOCALHOST:8080", "127.0.0.1:1", "127.8.8.8",
                                       "[::1]:8080", "[::1]",          "box"};
    static const char *const bad[] = {"",      "127.0.0.1.evil", "1127.0.0.1", "localhost:80x",
                                      "[::2]", "127.0.0.1@x",    "boxer",      "[::1"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        cr_expect(http_host_is_local(good[i], "box:80"), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_expect_not(http_host_is_local(bad[i], "box:80"), "%s", bad[i]);
    cr_expect(http_host_is_local("proxy.example:443", "127.0.0.1:80,proxy.example"));
    cr_expect(http_host_is_local("anything", "127.0.0.1:80,*"));
    cr_expect_not(http_host_is_local("prox", "127.0.0.1:80,proxy.example"));
    cr_expect_not(http_host_is_local("", "127.0.0.1:80,,"));
    start(&f, (struct http_cfg){.hosts = "proxy.example"});
    expect_reply(f.port, "GET /h HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n", 200,
                 NULL);
    stop(&f);
}

Test(http, slow_heads_and_bodies_time_out_however_they_drip)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){.head_ms = 200, .body_ms = 200, .idle_ms = 200});
    int fd = client_connect(f.port);
    client_send(fd, "GET / HTTP/1.1\r\n");
    cr_expect(client_read(fd, &in, NULL));
    cr_expect_eq(client_status(in.data), 408);
    close(fd);
    fd = client_connect(f.port);
    client_send(fd, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n");
    for (int i = 0; i < 12; i++) {
        client_send(fd, "x");
        usleep(30000);
    }
    buf_clear(&in);
    cr_expect(client_read(fd, &in, NULL));
    cr_expect_eq(client_status(in.data), 408);
    close(fd);
    fd = client_connect(f.port);
    buf_clear(&in);
    cr_expect(client_read(fd, &in, NULL) && in.len == 0,
              "an idle connection is closed without a word");
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, a_client_that_leaves_is_noticed)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    int fd = client_connect(f.port);
    client_send(fd, GET("/hold"));
    cr_assert(becomes(&f.requests, 1));
    close(fd);
    cr_expect(becomes(&f.gone, 1), "while queued");
    fd = client_connect(f.port);
    client_send(fd, GET("/silent"));
    cr_assert(client_read(fd, &in, "\r\n\r\n"));
    struct linger reset = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
    cr_expect(becomes(&f.gone, 2), "by a reset, in a silent stream");
    fd = client_connect(f.port);
    client_send(fd, GET("/hold"));
    for (int i = 0; i < 100; i++)
        client_send(
            fd,
            GET("/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"));
    cr_expect(becomes(&f.gone, 3), "one that pipelines without end is dropped");
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, a_slow_reader_pauses_the_producer_and_gets_all)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){0});
    int fd = client_connect_small(f.port, 4096);
    client_send(fd, "GET /stream?8000 HTTP/1.0\r\n\r\n");
    usleep(100000);
    cr_expect(client_read(fd, &in, NULL));
    cr_expect_eq(strlen(client_body(in.data)), 8000u * 1024u);
    cr_expect_lt(f.most_unsent, LIMIT_HTTP_UNSENT_MARK + 2048u);
    cr_expect_gt(f.most_unsent, LIMIT_HTTP_UNSENT_MARK, "the test did reach the mark");
    cr_expect_null(strstr(in.data, "chunked"), "HTTP/1.0 has no chunks");
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, a_reader_that_stalls_loses_its_place)
{
    struct fixture f;
    start(&f, (struct http_cfg){.stalled_ms = 200});
    int fd = client_connect_small(f.port, 4096);
    client_send(fd, GET("/stream?8000"));
    cr_expect(becomes(&f.gone, 1));
    close(fd);
    stop(&f);
}

Test(http, pipelining_without_reading_does_not_grow_us)
{
    struct fixture f;
    struct buf in = {0};
    start(&f, (struct http_cfg){.stalled_ms = 300});
    int fd = client_connect_small(f.port, 4096);
    for (int i = 0; i < 20; i++)
        client_send(fd, GET("/stream?512"));
    cr_expect(becomes(&f.gone, 1));
    cr_expect_lt(f.requests, 20);
    close(fd);
    buf_free(&in);
    stop(&f);
}

Test(http, too_many_connections_get_503_and_many_bodies_too)
{
    struct fixture f;
    start(&f, (struct http_cfg){.connections = 2, .bodies_bytes = 1000});
    int a = client_connect(f.port), b = client_connect(f.port);
    client_send(a, GET("/hold"));
    client_send(b, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n");
    char half[800];
    memset(half, 'x', sizeof half);
    client_send_bytes(b, half, sizeof half);
    cr_assert(becomes(&f.requests, 1));
    expect_reply(f.port, GET("/"), 503, "Retry-After");
    close(a);
    cr_assert(becomes(&f.gone, 1));
    struct buf request = {0};
    buf_printf(&request, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300\r\n\r\n%0300d",
               1);
    expect_reply(f.port, request.data, 503, "request bodies");
    buf_free(&request);
    close(b);
    stop(&f);
}

Test(http, drain_finishes_what_runs_and_closes_what_idles)
{
    struct fixture f;
    struct buf in = {0}, late = {0};
    start(&f, (struct http_cfg){0});
    int idle = client_connect(f.port), busy = client_connect(f.port);
    client_send(busy, "POST /p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n");
    usleep(50000);
    tell(&f, 1);
    cr_expect(client_read(idle, &in, NULL), "idle: closed");
    close(idle);
    client_send(busy, "abc");
    cr_expect(client_read(busy, &late, NULL));
    cr_expect(strstr(late.data, "POST /p abc") && strstr(late.data, "Connection: close"), "%s",
              late.data);
    cr_expect_eq(client_connect(f.port), -1);
    close(busy);
    cr_expect(becomes(&f.drained, 1));
    buf_free(&in);
    buf_free(&late);
    stop(&f);
}

Test(http, running_out_of_descriptors_is_survived)
{
    struct fixture f;
    start(&f, (struct http_cfg){0});
    struct rlimit limit, before;
    getrlimit(RLIMIT_NOFILE, &before);
    int probe = dup(0);
    int waiting = client_connect(f.port); /* has its descriptor already */
    usleep(50000);
    close(probe);
    limit = before;
    limit.rlim_cur = (rlim_t)probe + 3;
    setrlimit(RLIMIT_NOFILE, &limit);
    int clients[8], n = 0;
    for (int i = 0; i < 8; i++) {
        int fd = client_connect(f.port);
        if (fd >= 0) clients[n++] = fd;
    }
    usleep(100000);
    while (n > 0)
        close(clients[--n]);
    setrlimit(RLIMIT_NOFILE, &before);
    expect_reply(f.port, GET_CLOSE("/after"), 200, "GET /after");
    close(waiting);
    stop(&f);
}

Test(http, a_port_in_use_is_named)
{
    struct fixture f;
    start(&f, (struct http_cfg){0});
    struct err why;
    struct http_server *second = NULL;
    uv_loop_t loop;
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", f.port);
    struct http_cfg cfg = {.addresses = address, .on_request = on_request};
    uv_loop_init(&loop);
    cr_expect_eq(http_open(&loop, &cfg, &second, &why), ERR_UNAVAILABLE);
    cr_expect(strstr(why.text, address) && strstr(why.text, "address already in use"), "%s",
              why.text);
    static const char *const bad[] = {
        "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:-1", "::1:80", "[::1",
        "",          "127.0.0.1:8x",    ":80"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cfg.addresses = bad[i];
        cr_expect_eq(http_open(&loop, &cfg, &second, &why), ERR_INVALID, "%s: %s", bad[i],
                     why.text);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    cr_expect_eq(uv_loop_close(&loop), 0);
    stop(&f);
}

Test(http, failing_allocations_never_crash_it)
{
    struct fixture f;
    start(&f, (struct http_cfg){0});
    for (uint64_t n = 1; n < 20; n++) {
        int fd = client_connect(f.port);
        mem_fail_at(n);
        client_send(
            fd,
            "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
        usleep(5000);
        mem_fail_at(0);
        close(fd);
    }
    expect_reply(f.port, GET_CLOSE("/alive"), 200, "GET /alive");
    stop(&f);
}
