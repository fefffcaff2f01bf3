#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define SEPARATOR "----\n"
/* Allocations of one input that are tried with MOESAIC_FUZZ_ALLOCATIONS; few of an input that takes long by itself. */
#define TRIES        100u
#define TRIES_SLOW   2u
#define SLOW_NS      20000000u
#define NAMES_IN_DIR 8u

static bool many_allocations, calm_run;

bool fuzz_calm(void)
{
    return calm_run;
}

_Noreturn void fuzz_fail(const char *file, int line, const char *what, const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "%s:%d: broken promise: %s: ", file, line, what);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}

/* ---- inputs ----------------------------------------------------------------------------------- */

const uint8_t *fuzz_part(const uint8_t **rest, size_t *n_rest, size_t *n)
{
    const size_t len = sizeof SEPARATOR - 1;
    const uint8_t *part = *rest, *end = part + *n_rest;
    for (const uint8_t *line = part; line < end;) {
        if ((size_t)(end - line) >= len && memcmp(line, SEPARATOR, len) == 0) {
            *n = (size_t)(line - part);
            *rest = line + len;
            *n_rest = (size_t)(end - *rest);
            return part;
        }
        const uint8_t *feed = memchr(line, '\n', (size_t)(end - line));
        line = feed == NULL ? end : feed + 1;
    }
    *n = *n_rest;
    *rest = end;
    *n_rest = 0;
    return part;
}

struct fuzz_dice fuzz_dice(const uint8_t *data, size_t n)
{
    struct fuzz_dice d = {0xcbf29ce484222325u}; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        d.state = (d.state ^ data[i]) * 0x100000001b3u;
    return d;
}

uint32_t fuzz_below(struct fuzz_dice *d, uint32_t n)
{
    uint64_t x = d->state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ x >> 31) >> 32) % n;
}

/* ---- files ------------------------------------------------------------------------------------ */

static char dir[512];
static char names[NAMES_IN_DIR][64]; /* what was ever put there */
static pid_t dir_owner;

static void remove_dir(void)
{
    if (getpid() != dir_owner) return;
    for (size_t i = 0; i < NAMES_IN_DIR && names[i][0] != '\0'; i++)
        fuzz_put_file(names[i], NULL, 0);
    rmdir(dir);
}

const char *fuzz_dir(void)
{
    if (dir[0] != '\0') return dir;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/moesaic-fuzz-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(dir) == NULL) fuzz_fail(__FILE__, __LINE__, "a folder", "cannot make %s", dir);
    dir_owner = getpid();
    atexit(remove_dir);
    return dir;
}

void fuzz_put_file(const char *name, const void *data, size_t n)
{
    char path[sizeof dir + sizeof names[0] + 1];
    size_t i = 0;
    while (i < NAMES_IN_DIR - 1 && names[i][0] != '\0' && strcmp(names[i], name) != 0)
        i++;
    snprintf(names[i], sizeof names[i], "%s", name);
    snprintf(path, sizeof path, "%s/%s", fuzz_dir(), name);
    if (data == NULL) {
        unlink(path);
        return;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write(fd, data, n) == (ssize_t)n;
    if (fd >= 0) close(fd);
    if (!written) fuzz_fail(__FILE__, __LINE__, "a file", "cannot write %s", path);
}

/* ---- libFuzzer's two entries ------------------------------------------------------------------ */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    many_allocations = getenv("MOESAIC_FUZZ_ALLOCATIONS") != NULL;
    json_set_alloc_funcs(mem_alloc, mem_free);
    fuzz_init();
    return 0;
}

static void run_out_at(uint64_t at, const uint8_t *data, size_t n, int calm)
{
    mem_fail_at(at);
    int rc = fuzz_one(data, n);
    mem_fail_at(0);
    FUZZ_CHECK(rc == calm || rc == FUZZ_NO_MEMORY, "%d, but %d without allocation %llu", calm, rc,
               (unsigned long long)at);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mem_fail_at(UINT64_MAX); /* counts */
    uint64_t began_ns = clock_now_ns();
    calm_run = true;
    int calm = fuzz_one(data, n);
    calm_run = false;
    bool slow = clock_now_ns() - began_ns > SLOW_NS;
    uint64_t had = mem_fail_at(0);
    FUZZ_CHECK(calm != FUZZ_NO_MEMORY, "memory was short of itself");
    struct fuzz_dice d = fuzz_dice(data, n);
    uint64_t tries = !many_allocations ? 1 : slow ? TRIES_SLOW : TRIES;
    if (had <= tries) /* each of them */
        for (uint64_t at = 1; at <= had; at++)
            run_out_at(at, data, n, calm);
    else
        for (uint64_t i = 0; i < tries; i++)
            run_out_at(1 + fuzz_below(&d, had > UINT32_MAX ? UINT32_MAX : (uint32_t)had), data, n,
                       calm);
    return 0;
}
