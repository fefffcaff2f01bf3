#include "common/sys/descriptors.h"

#include <sys/resource.h>

uint32_t descriptors_raise(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 1024; /* what POSIX systems have at least in practice */
    struct rlimit wanted = r;
    wanted.rlim_cur = r.rlim_max < DESCRIPTORS_ENOUGH ? r.rlim_max : DESCRIPTORS_ENOUGH;
    if (wanted.rlim_cur > r.rlim_cur && setrlimit(RLIMIT_NOFILE, &wanted) == 0) r = wanted;
    return r.rlim_cur < DESCRIPTORS_ENOUGH ? (uint32_t)r.rlim_cur : DESCRIPTORS_ENOUGH;
}
