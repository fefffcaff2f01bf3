#include "coordinator/cli/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/mem.h"

#define LINES_MOST (64u << 10)

enum err_code child_program(const char *name, char *out, size_t cap, struct err *why)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return err_set(why, ERR_IO, "/proc/self/exe: %s", strerror(errno));
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    *slash = '\0';
    int len = snprintf(out, cap, "%s/%s", self, name);
    if (len < 0 || (size_t)len >= cap)
        return err_set(why, ERR_INVALID, "%s/%s: path too long", self, name);
    if (access(out, X_OK) != 0)
        return err_set(why, ERR_NOT_FOUND, "%s: %s; it is built and installed beside moesaic", out,
                       strerror(errno));
    return ERR_OK;
}

enum err_code child_start(struct child *c, char **argv, int argc, struct err *why)
{
    char path[4096 + 64], option[32];
    enum err_code rc = child_program(argv[0], path, sizeof path, why);
    if (rc != ERR_OK) return rc;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set(why, ERR_IO, "start %s: %s", c->name, strerror(errno));
    snprintf(option, sizeof option, "--parent-fd=%d", pair[1]);
    argv[argc] = option;
    argv[argc + 1] = NULL;
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) {
        rc = err_set(why, ERR_EXHAUSTED, "start %s: %s", c->name, strerror(errno));
        close(pair[0]);
        close(pair[1]);
        argv[argc] = NULL;
        return rc;
    }
    if (pid == 0) {
        /* Also when the child is stopped and cannot see the pair close. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        /* Ctrl-C in the terminal goes to the foreground group: children must get it from us alone, to drain in order. */
        setpgid(0, 0);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        fcntl(pair[1], F_SETFD, 0);
        execv(path, argv);
        _exit(127);
    }
    close(pair[1]);
    argv[argc] = NULL;
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    c->pid = pid;
    c->fd = pair[0];
    buf_clear(&c->lines);
    return ERR_OK;
}

bool child_read(struct child *c)
{
    char chunk[4096];
    for (;;) {
        ssize_t n = read(c->fd, chunk, sizeof chunk);
        if (n > 0) {
            if (c->lines.len > LINES_MOST) buf_clear(&c->lines); /* no line of ours is that long */
            buf_append(&c->lines, chunk, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        return n < 0 && errno == EAGAIN;
    }
}

char *child_next_line(struct child *c)
{
    char *end = c->lines.len > 0 ? memchr(c->lines.data, '\n', c->lines.len) : NULL;
    if (end == NULL) return NULL;
    size_t n = (size_t)(end - c->lines.data);
    char *line = mem_strndup(c->lines.data, n);
    if (line != NULL) buf_consume(&c->lines, n + 1);
    return line;
}

void child_signal(struct child *c, int signal)
{
    if (c->pid > 0) kill(c->pid, signal);
}

void child_gone(struct child *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->pid = 0;
    buf_free(&c->lines);
}
