/* The main function of the tests in builds with ThreadSanitizer: --tap=FILE, --timeout SECONDS, --filter 'suite/name'
 * as Criterion has them. */
#include <criterion/criterion.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77 /* exit code of a test that could not be made */

static struct plain_test *first;
static atomic_bool failed; /* in the process of one test */

void plain_register(struct plain_test *t)
{
    struct plain_test **at = &first;
    while (*at != NULL)
        at = &(*at)->next;
    *at = t;
}

void plain_fail(bool fatal, const char *file, int line, const char *what, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s:%d: failed: %s:", file, line, what);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    atomic_store(&failed, true);
    if (fatal) _exit(1);
}

void cr_skip_test(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    _exit(SKIPPED);
}

void cr_log_info(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

static const struct plain_test *suite_of(const struct plain_test *t)
{
    for (const struct plain_test *s = first; s != NULL; s = s->next)
        if (s->fn == NULL && strcmp(s->suite, t->suite) == 0) return s;
    return NULL;
}

/* The exit code; 1 also of one that did not come to an end. */
static int run(const struct plain_test *t, unsigned timeout)
{
    const struct plain_test *suite = suite_of(t);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(timeout);
        if (suite != NULL && suite->options.init != NULL) suite->options.init();
        if (t->options.init != NULL) t->options.init();
        t->fn();
        if (t->options.fini != NULL) t->options.fini();
        if (suite != NULL && suite->options.fini != NULL) suite->options.fini();
        exit(atomic_load(&failed) ? 1
                                  : 0); /* the sanitizer makes it 66 when it has found something */
    }
    int status = 0;
    bool ended = pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status);
    return ended ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv)
{
    const char *tap = NULL, *filter = "*";
    unsigned timeout = 120, n = 0, n_failed = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--tap=", 6) == 0) tap = argv[i] + 6;
        if (i + 1 < argc && strcmp(argv[i], "--timeout") == 0)
            timeout = (unsigned)atoi(argv[i + 1]);
        if (i + 1 < argc && strcmp(argv[i], "--filter") == 0) filter = argv[i + 1];
    }
    FILE *report = tap == NULL ? stdout : fopen(tap, "w");
    if (report == NULL) return 2;
    for (const struct plain_test *t = first; t != NULL; t = t->next) {
        char name[256];
        snprintf(name, sizeof name, "%s/%s", t->suite, t->name);
        if (t->fn == NULL || fnmatch(filter, name, 0) != 0) continue;
        int code = run(t, timeout);
        bool good = code == 0 || code == SKIPPED;
        n++;
        n_failed += !good;
        fprintf(report, "%s - %s::%s%s\n", good ? "ok" : "not ok", t->suite, t->name,
                code == SKIPPED ? " # SKIP" : "");
        if (!good) fprintf(stderr, "FAILED: %s\n", name);
    }
    if (report != stdout) fclose(report);
    printf("%u tests, %u failed\n", n, n_failed);
    return n_failed > 0;
}
