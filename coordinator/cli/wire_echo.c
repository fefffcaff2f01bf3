#include "coordinator/cli/wire_echo.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/rpc/rpc.h"

#define IDLE_MS 200u /* how often the child looks whether its parent is still there */

/* ---- raw TCP ---------------------------------------------------------------------------------- */

/* Sleep until the socket is ready; `spin` asks the socket again and again. */
static bool wait_for(int fd, bool spin, uint32_t events)
{
    if (spin) return true;
    struct pollfd p = {.fd = fd, .events = (short)events};
    return poll(&p, 1, 10000) > 0;
}

static bool send_all(int fd, bool spin, const uint8_t *from, size_t n)
{
    while (n > 0) {
        ssize_t k = send(fd, from, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (k > 0) {
            from += k;
            n -= (size_t)k;
        } else if (k == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for(fd, spin, POLLOUT)) {
            return false;
        }
    }
    return true;
}

static bool receive_all(int fd, bool spin, uint8_t *to, size_t n)
{
    while (n > 0) {
        ssize_t k = recv(fd, to, n, MSG_DONTWAIT);
        if (k > 0) {
            to += k;
            n -= (size_t)k;
        } else if (k == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for(fd, spin, POLLIN)) {
            return false;
        }
    }
    return true;
}

bool wire_raw_round(int fd, bool spin, void *buffer, uint32_t bytes, bool last)
{
    *(uint8_t *)buffer = last;
    return send_all(fd, spin, buffer, bytes) && receive_all(fd, spin, buffer, bytes);
}

bool wire_raw_echo(int fd, bool spin, void *buffer, uint32_t bytes)
{
    do {
        if (!receive_all(fd, spin, buffer, bytes) || !send_all(fd, spin, buffer, bytes))
            return false;
    } while (*(uint8_t *)buffer == 0);
    return true;
}

bool wire_pin(unsigned nth_core)
{
    cpu_set_t may, one;
    if (sched_getaffinity(0, sizeof may, &may) != 0) return false;
    CPU_ZERO(&one);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &may) && nth_core-- == 0) {
            CPU_SET(cpu, &one);
            return sched_setaffinity(0, sizeof one, &one) == 0;
        }
    return false;
}

/* ---- the echo process ------------------------------------------------------------------------- */

struct echo {
    uint32_t raw_bytes; /* of the run that was asked for; 0: none */
    bool raw_due;       /* its answer is out: begin */
};

static enum err_code echo_begin(void *ctx, struct rpc_call *c, void **call_ctx, struct err *why)
{
    (void)c;
    (void)why;
    *call_ctx = ctx;
    return ERR_OK;
}

/* What a node does with rows: one gather copy into memory of its own; and an answer that is sent from there. */
static void echo_message(void *ctx, struct rpc_call *c, struct rpc_message *m)
{
    (void)ctx;
    size_t n_header, n = rpc_message_tensor_bytes(m);
    const uint8_t *header = rpc_message_header(m, &n_header);
    void *rows = mem_aligned(64, n);
    if (rows == NULL) {
        rpc_call_finish(c, err_grpc_status(ERR_EXHAUSTED), "no memory");
    } else {
        rpc_message_tensor_copy(m, 0, rows, n);
        struct rpc_part part = {rows, n};
        struct rpc_out out = {.header = header,
                              .header_bytes = n_header,
                              .tensor = &part,
                              .n_parts = 1,
                              .release = mem_free,
                              .release_ctx = rows};
        (void)rpc_call_send(c, &out); /* false: the parent is gone, stdin tells */
    }
    rpc_message_free(m);
}

static void raw_message(void *ctx, struct rpc_call *c, struct rpc_message *m)
{
    struct echo *e = ctx;
    size_t n;
    const uint8_t *body = rpc_message_header(m, &n);
    if (n == sizeof e->raw_bytes) {
        memcpy(&e->raw_bytes, body, n);
        (void)rpc_call_send(c, &(struct rpc_out){.header = body, .header_bytes = n});
        rpc_call_finish(c, 0, "");
    } else {
        rpc_call_finish(c, err_grpc_status(ERR_INVALID), "not a raw run");
    }
    rpc_message_free(m);
}

static void raw_done(void *ctx, bool cancelled)
{
    struct echo *e = ctx;
    e->raw_due = !cancelled && e->raw_bytes > 0;
}

static int listen_on_loopback(unsigned *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 && listen(fd, 1) == 0 &&
        getsockname(fd, (struct sockaddr *)&a, &n) == 0) {
        *port = ntohs(a.sin_port);
        return fd;
    }
    if (fd >= 0) close(fd);
    return -1;
}

static bool parent_is_there(void)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    return poll(&p, 1, 0) == 0;
}

static bool run_raw(struct echo *e, int fd, bool spin)
{
    void *buffer = mem_alloc(e->raw_bytes);
    bool ok = buffer != NULL && wire_raw_echo(fd, spin, buffer, e->raw_bytes);
    mem_free(buffer);
    e->raw_due = false;
    e->raw_bytes = 0;
    return ok;
}

int wire_echo_main(bool spin, bool pin)
{
    struct rpc *r;
    struct err why;
    struct echo e = {0};
    const struct rpc_method methods[] = {
        {WIRE_STREAM, echo_begin, {.on_message = echo_message}, &e},
        {WIRE_RAW, echo_begin, {.on_message = raw_message, .on_done = raw_done}, &e},
    };
    struct rpc_server *server = NULL;
    unsigned tcp_port = 0;
    if (rpc_open(&r, &why) != ERR_OK) return 1;
    int fd = -1, listener = listen_on_loopback(&tcp_port), exit_code = 1;
    if (listener < 0 || rpc_server_open(r, "127.0.0.1:0", methods, 2, &server, &why) != ERR_OK)
        goto out;
    printf("%u %u\n", rpc_server_port(server), tcp_port);
    fflush(stdout);
    fd = accept(listener, NULL, NULL);
    int one = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) goto out;
    if (pin) (void)wire_pin(1);
    if (spin) rpc_set_spin(r, WIRE_SPIN_US);
    while (parent_is_there()) {
        /* Many rounds per look at stdin: the look is a system call that the measured path should not have. */
        for (unsigned i = 0; i < 1000 && !e.raw_due; i++)
            if (rpc_poll(r, IDLE_MS * 1000) == 0) break;
        if (e.raw_due && !run_raw(&e, fd, spin)) break;
    }
    exit_code = 0;
out:
    rpc_server_close(server, 0);
    rpc_close(r);
    if (fd >= 0) close(fd);
    if (listener >= 0) close(listener);
    return exit_code;
}
