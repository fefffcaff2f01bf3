#include "coordinator/cli/slow_link.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define PIECE_BYTES 4096u /* comes and leaves at one time: 33 us at 1 Gbit/s */
#define UNDER_WAY   512u  /* pieces, 2 MiB: then the sender has to wait */

struct piece {
    uint64_t due_ns;
    uint32_t bytes, sent;
    uint8_t data[PIECE_BYTES];
};

/* One direction. */
struct lane {
    int from, to;
    struct piece *pieces; /* [UNDER_WAY], a ring */
    unsigned first, n;
    uint64_t free_ns; /* when the cable has taken what came so far */
};

struct slow_link {
    struct slow_link_cfg cfg;
    int listener, stop[2]; /* closing stop[1] ends the thread */
    unsigned to_port;
    pthread_t thread;
    bool started;
    struct lane lanes[2];
};

static bool is_over(ssize_t k)
{
    return k == 0 || (k < 0 && errno != EAGAIN && errno != EINTR);
}

/* False: the connection is over. */
static bool take_in(const struct slow_link *l, struct lane *a)
{
    while (a->n < UNDER_WAY) {
        struct piece *p = &a->pieces[(a->first + a->n) % UNDER_WAY];
        ssize_t k = recv(a->from, p->data, PIECE_BYTES, MSG_DONTWAIT);
        if (k <= 0) return !is_over(k);
        uint64_t now = clock_now_ns(), begin = now > a->free_ns ? now : a->free_ns;
        a->free_ns = begin + (l->cfg.mbit > 0 ? (uint64_t)k * 8000 / l->cfg.mbit : 0);
        p->due_ns = a->free_ns + l->cfg.delay_us * 1000ull;
        p->bytes = (uint32_t)k;
        p->sent = 0;
        a->n++;
    }
    return true;
}

static bool let_out(struct lane *a)
{
    while (a->n > 0) {
        struct piece *p = &a->pieces[a->first];
        if (p->due_ns > clock_now_ns()) return true;
        ssize_t k = send(a->to, p->data + p->sent, p->bytes - p->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (k <= 0) return !is_over(k);
        p->sent += (uint32_t)k;
        if (p->sent < p->bytes) continue;
        a->first = (a->first + 1) % UNDER_WAY;
        a->n--;
    }
    return true;
}

/* Sleeps until a byte comes, a piece is due, a full socket has room, or the end. False: the end. */
static bool sleep_until_something(const struct slow_link *l)
{
    struct pollfd fds[3] = {{.fd = l->stop[0], .events = POLLIN}, {.fd = -1}, {.fd = -1}};
    uint64_t due = UINT64_MAX, now = clock_now_ns();
    for (unsigned i = 0; i < 2; i++) { /* fds[1 + i] is lane i's `from` and the other lane's `to` */
        const struct lane *in = &l->lanes[i], *out = &l->lanes[1 - i];
        fds[1 + i].fd = in->from;
        if (in->n < UNDER_WAY) fds[1 + i].events |= POLLIN;
        if (out->n == 0) continue;
        if (out->pieces[out->first].due_ns <= now)
            fds[1 + i].events |= POLLOUT;
        else if (out->pieces[out->first].due_ns < due)
            due = out->pieces[out->first].due_ns;
    }
    struct timespec wait = {0};
    if (due != UINT64_MAX)
        wait = (struct timespec){(time_t)((due - now) / 1000000000u),
                                 (long)((due - now) % 1000000000u)};
    (void)ppoll(fds, 3, due == UINT64_MAX ? NULL : &wait, NULL);
    return fds[0].revents == 0;
}

static int connect_to(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static void *carry(void *ctx)
{
    struct slow_link *l = ctx;
    (void)prctl(PR_SET_TIMERSLACK, 1ul); /* 50 us otherwise */
    struct pollfd first[2] = {{.fd = l->stop[0], .events = POLLIN},
                              {.fd = l->listener, .events = POLLIN}};
    while (poll(first, 2, -1) < 0 && errno == EINTR)
        ;
    if (first[0].revents != 0) return NULL;
    int one = 1, near = accept4(l->listener, NULL, NULL, SOCK_CLOEXEC);
    int far = near >= 0 ? connect_to(l->to_port) : -1;
    if (far >= 0 && setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0 &&
        setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0) {
        l->lanes[0].from = l->lanes[1].to = near;
        l->lanes[1].from = l->lanes[0].to = far;
        while (take_in(l, &l->lanes[0]) && take_in(l, &l->lanes[1]) && let_out(&l->lanes[0]) &&
               let_out(&l->lanes[1]) && sleep_until_something(l))
            ;
    }
    if (near >= 0) close(near);
    if (far >= 0) close(far);
    return NULL;
}

enum err_code slow_link_open(const struct slow_link_cfg *cfg, unsigned to_port,
                             struct slow_link **out, unsigned *port, struct err *why)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    struct slow_link *l = mem_zalloc(sizeof *l);
    if (l == NULL) return err_nomem(why, "a slow link");
    l->cfg = *cfg;
    l->to_port = to_port;
    l->stop[0] = l->stop[1] = -1;
    l->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    enum err_code rc = ERR_OK;
    for (unsigned i = 0; i < 2; i++) {
        l->lanes[i].pieces = mem_zalloc_array(UNDER_WAY, sizeof *l->lanes[i].pieces);
        if (l->lanes[i].pieces == NULL) rc = err_nomem(why, "a slow link");
    }
    if (rc == ERR_OK &&
        (l->listener < 0 || bind(l->listener, (struct sockaddr *)&a, n) != 0 ||
         listen(l->listener, 1) != 0 || getsockname(l->listener, (struct sockaddr *)&a, &n) != 0 ||
         pipe2(l->stop, O_CLOEXEC) != 0))
        rc = err_set(why, ERR_IO, "a slow link: %s", strerror(errno));
    if (rc == ERR_OK) {
        l->started = pthread_create(&l->thread, NULL, carry, l) == 0;
        if (!l->started) rc = err_set(why, ERR_EXHAUSTED, "a slow link's thread");
    }
    if (rc != ERR_OK) {
        slow_link_close(l);
        return rc;
    }
    *port = ntohs(a.sin_port);
    *out = l;
    return ERR_OK;
}

void slow_link_close(struct slow_link *l)
{
    if (l == NULL) return;
    if (l->stop[1] >= 0) close(l->stop[1]);
    if (l->started) pthread_join(l->thread, NULL);
    if (l->stop[0] >= 0) close(l->stop[0]);
    if (l->listener >= 0) close(l->listener);
    for (unsigned i = 0; i < 2; i++)
        mem_free(l->lanes[i].pieces);
    mem_free(l);
}
