/* check.h - DCHECK: an assert for inner loops, on in debug builds only. Ordinary `assert` stays on in release. */
#ifndef MOESAIC_BASE_CHECK_H
#define MOESAIC_BASE_CHECK_H

#include <assert.h>

#ifdef MOESAIC_DEBUG
#define DCHECK(x) assert(x)
#else
#define DCHECK(x) ((void)0)
#endif

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
