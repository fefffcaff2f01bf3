#include "coordinator/cli/up_child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/mem.h"

#define STOP_MOST_US   60000000u /* `up` needs at most 48 s to drain and end; then it is killed */
#define LOG_MOST_BYTES (1u << 20)

enum err_code up_child_open(struct up_child *c, const char *noun, struct err *why)
{
    *c = (struct up_child){0};
    const char *tmp = getenv("TMPDIR");
    if (tmp == NULL || strlen(tmp) > 32) tmp = "/tmp";
    snprintf(c->folder, sizeof c->folder, "%s/moesaic-%.8s-XXXXXX", tmp, noun);
    if (mkdtemp(c->folder) == NULL)
        return err_set(why, ERR_IO, "temporary folder %s: %s", c->folder, strerror(errno));
    snprintf(c->ready_file, sizeof c->ready_file, "%s/ready.json", c->folder);
    snprintf(c->log_file, sizeof c->log_file, "%s/log", c->folder);
    return ERR_OK;
}

enum err_code up_child_start(struct up_child *c, const char *program, const char *const *argv,
                             bool outlives, struct err *why)
{
    unlink(c->ready_file);
    int log = open(c->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0) {
        enum err_code rc =
            err_set(why, ERR_IO, "%s: %s", log < 0 ? c->log_file : "/dev/null", strerror(errno));
        if (log >= 0) close(log);
        return rc;
    }
    /* Until it runs its own program the child has our handlers: they would swallow a SIGTERM that is meant to end it. */
    sigset_t ends, before;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, &before);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        sigprocmask(SIG_SETMASK, &before, NULL);
        if (!outlives) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            if (getppid() != parent) _exit(1);
        }
        setsid();
        dup2(null, STDIN_FILENO);
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        execv(program != NULL ? program : "/proc/self/exe", (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    int failed = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(log);
    close(null);
    if (pid < 0) return err_set(why, ERR_EXHAUSTED, "start the cluster: %s", strerror(failed));
    c->pid = pid;
    return ERR_OK;
}

bool up_child_is_ready(const struct up_child *c)
{
    return access(c->ready_file, F_OK) == 0;
}

bool up_child_ended(struct up_child *c, int *status)
{
    if (c->pid == 0) return true;
    if (waitpid(c->pid, status, WNOHANG) != c->pid) return false;
    c->pid = 0;
    return true;
}

static void pause_a_little(void)
{
    struct timespec t = {0, (long)UP_CHILD_POLL_US * 1000};
    nanosleep(&t, NULL);
}

bool up_child_wait_ready(struct up_child *c, const volatile int *stop)
{
    int status;
    while (!up_child_is_ready(c)) {
        if (*stop || up_child_ended(c, &status)) return false;
        pause_a_little();
    }
    return true;
}

void up_child_stop(struct up_child *c, volatile int *again)
{
    if (c->pid == 0) return;
    int status;
    uint64_t until = clock_now_us() + STOP_MOST_US;
    *again = 0;
    kill(c->pid, SIGTERM);
    while (!up_child_ended(c, &status)) {
        if (clock_now_us() > until) kill(c->pid, SIGKILL); /* its own children end with it */
        if (*again) kill(c->pid, SIGTERM);                 /* a second Ctrl-C: it ends at once */
        *again = 0;
        pause_a_little();
    }
}

void up_child_print_log(const struct up_child *c)
{
    char *text;
    size_t n;
    struct err ignored;
    if (file_read(c->log_file, LOG_MOST_BYTES, &text, &n, &ignored) != ERR_OK) return;
    fwrite(text, 1, n, stderr);
    mem_free(text);
}

void up_child_close(struct up_child *c)
{
    unlink(c->ready_file);
    unlink(c->log_file);
    rmdir(c->folder);
}
