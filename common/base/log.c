#include "common/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
static enum log_level limit = LOG_INFO; /* written once at start, before threads */
static const char *who_am_i;

void log_setup(enum log_level level, const char *who)
{
    limit = level;
    who_am_i = who;
}

int log_level_parse(const char *name)
{
    for (int i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

int log_enabled(enum log_level level)
{
    return level <= limit;
}

void log_line(enum log_level level, const char *mod, const char *fmt, ...)
{
    if (level > limit) return;
    char line[2048];
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    int n = (int)strftime(line, sizeof line, "time=%Y-%m-%dT%H:%M:%S", &tm);
    n += snprintf(line + n, sizeof line - (size_t)n, ".%03ldZ level=%s%s%s mod=%s ",
                  t.tv_nsec / 1000000, names[level], who_am_i ? " who=" : "",
                  who_am_i ? who_am_i : "", mod);
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - 1 - (size_t)n, fmt, ap);
    va_end(ap);
    size_t len = (size_t)n + (m > 0 ? (size_t)m : 0);
    if (len > sizeof line - 2) len = sizeof line - 2;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = ' '; /* no log injection */
    line[len++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, len); /* one write per line: lines never mix */
    (void)ignored;
}
