/* arena.h - memory that is dropped whole: one per request or per parsed object, so most code frees
 * nothing. Caller's storage, zero-initialised (plus max_bytes) is empty. One owner at a time. */
#ifndef MOESAIC_BASE_ARENA_H
#define MOESAIC_BASE_ARENA_H

#include <stddef.h>

struct arena_block;

struct arena {
    struct arena_block *blocks; /* newest first */
    size_t used_bytes;          /* what was handed out, with rounding */
    size_t max_bytes;           /* 0 = no bound */
};

/* Aligned for any type, not zeroed. NULL when memory is short or the bound would be passed. */
void *arena_alloc(struct arena *a, size_t bytes);
/* Zeroed; NULL on overflow too. */
void *arena_zalloc_array(struct arena *a, size_t n, size_t bytes_each);
/* A 0-terminated copy of n bytes. */
char *arena_strndup(struct arena *a, const char *s, size_t n);
void arena_free(struct arena *a); /* all of it; the arena is empty again */

#endif
