#include "common/sys/memory.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The number behind "key:" in a /proc file, in kB; 0 if absent. */
static uint64_t proc_kb(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    char line[256];
    uint64_t kb = 0;
    size_t n = strlen(key);
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, key, n) == 0 && sscanf(line + n, " %" SCNu64, &kb) == 1) break;
    fclose(f);
    return kb;
}

static uint64_t file_number(const char *path, uint64_t otherwise)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return otherwise;
    uint64_t v;
    if (fscanf(f, "%" SCNu64, &v) != 1) v = otherwise; /* "max" */
    fclose(f);
    return v;
}

uint64_t memory_available(void)
{
    uint64_t free_bytes = proc_kb("/proc/meminfo", "MemAvailable:") * 1024;
    /* Inside a container the group's limit is what counts (cgroup v2, then v1). */
    uint64_t most = file_number("/sys/fs/cgroup/memory.max", UINT64_MAX);
    uint64_t used = file_number("/sys/fs/cgroup/memory.current", 0);
    if (most == UINT64_MAX) {
        most = file_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", UINT64_MAX);
        used = file_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", 0);
    }
    if (most < UINT64_MAX / 4) {
        uint64_t left = most > used ? most - used : 0;
        if (left < free_bytes) free_bytes = left;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        uint64_t taken = proc_kb("/proc/self/status", "VmSize:") * 1024;
        uint64_t left = limit.rlim_cur > taken ? limit.rlim_cur - taken : 0;
        if (left < free_bytes) free_bytes = left;
    }
    return free_bytes;
}

uint64_t memory_resident(void)
{
    return proc_kb("/proc/self/status", "VmRSS:") * 1024;
}

unsigned memory_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

const char *memory_text(uint64_t bytes, char out[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int u = 0;
    for (; v >= 1024 && u < 4; u++)
        v /= 1024;
    snprintf(out, 32, u == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, units[u]);
    return out;
}
