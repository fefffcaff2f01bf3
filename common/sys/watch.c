#include "common/sys/watch.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/mem.h"

struct watch {
    pthread_t thread;
    bool started;
    int signals, parent, stop;
    void (*fn)(void *, enum watch_event);
    void *ctx;
};

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    bool asked = false;
    for (;;) {
        struct pollfd fds[3] = {
            {w->stop, POLLIN, 0}, {w->signals, POLLIN, 0}, {w->parent, POLLIN, 0}};
        if (poll(fds, w->parent >= 0 ? 3 : 2, -1) < 0) {
            if (errno == EINTR) continue;
            return NULL;
        }
        if (fds[0].revents) return NULL;
        if (fds[1].revents) {
            struct signalfd_siginfo info;
            if (read(w->signals, &info, sizeof info) == sizeof info)
                w->fn(w->ctx, asked ? WATCH_AGAIN : WATCH_STOP);
            asked = true;
        }
        if (w->parent >= 0 && fds[2].revents) {
            char c[64];
            ssize_t n = read(w->parent, c, sizeof c);
            if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
                w->fn(w->ctx, WATCH_ORPHAN);
                w->parent = -1;
            }
        }
    }
}

enum err_code watch_open(int parent_fd, void (*fn)(void *ctx, enum watch_event ev), void *ctx,
                         struct watch **out, struct err *why)
{
    struct watch *w = mem_zalloc(sizeof *w);
    if (w == NULL) return err_nomem(why, "watch");
    *w = (struct watch){.parent = parent_fd, .fn = fn, .ctx = ctx, .signals = -1, .stop = -1};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP); /* the terminal was closed; stays ignored under nohup */
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    w->signals = signalfd(-1, &set, SFD_CLOEXEC);
    w->stop = eventfd(0, EFD_CLOEXEC);
    int e = w->signals < 0 || w->stop < 0 ? errno : pthread_create(&w->thread, NULL, watch_main, w);
    if (e != 0) {
        watch_close(w);
        return err_set(why, ERR_IO, "signal watch: %s", strerror(e));
    }
    w->started = true;
    *out = w;
    return ERR_OK;
}

void watch_close(struct watch *w)
{
    if (w == NULL) return;
    if (w->started) {
        uint64_t one = 1;
        ssize_t ignored = write(w->stop, &one, sizeof one);
        (void)ignored;
        pthread_join(w->thread, NULL);
    }
    if (w->signals >= 0) close(w->signals);
    if (w->stop >= 0) close(w->stop);
    mem_free(w);
}

void watch_tell_parent(int parent_fd, const char *line)
{
    if (parent_fd < 0) return;
    /* As one piece, and without memory of its own: a supervisor that misses "ready" waits for ever. */
    struct iovec parts[] = {{(void *)(uintptr_t)line, strlen(line)}, {&(char){'\n'}, 1}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    /* Never wait for a parent that does not read (stopped, say): the engine thread speaks here too. */
    ssize_t ignored = sendmsg(parent_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)ignored;
}
