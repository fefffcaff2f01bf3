#include "common/base/arena.h"

#include <stdint.h>
#include <string.h>

#include "common/base/mem.h"

/* Under a fuzzer each piece is a block of its own: the sanitizer knows its end, and it may fail. */
#ifdef MOESAIC_FUZZ
#define BLOCK_BYTES ((size_t)0)
#else
#define BLOCK_BYTES ((size_t)16 << 10)
#endif
#define ALIGNMENT sizeof(max_align_t)

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(max_align_t) char bytes[];
};

void *arena_alloc(struct arena *a, size_t bytes)
{
    size_t rounded;
    if (!size_add(bytes, ALIGNMENT - 1, &rounded)) return NULL;
    rounded -= rounded % ALIGNMENT;
    if (rounded == 0) rounded = ALIGNMENT;
    if (a->max_bytes != 0 && (rounded > a->max_bytes || a->used_bytes > a->max_bytes - rounded))
        return NULL;
    struct arena_block *b = a->blocks;
    if (b == NULL || b->size - b->used < rounded) {
        size_t size = rounded > BLOCK_BYTES / 4 ? rounded : BLOCK_BYTES, total;
        if (!size_add(size, sizeof *b, &total)) return NULL;
        struct arena_block *fresh = mem_alloc(total);
        if (fresh == NULL) return NULL;
        *fresh = (struct arena_block){.size = size};
        if (size == BLOCK_BYTES || b == NULL) {
            fresh->next = b;
            a->blocks = fresh;
        } else { /* a large piece gets its own block behind the current one, which stays open */
            fresh->next = b->next;
            b->next = fresh;
        }
        b = fresh;
    }
    void *p = b->bytes + b->used;
    b->used += rounded;
    a->used_bytes += rounded;
    return p;
}

void *arena_zalloc_array(struct arena *a, size_t n, size_t bytes_each)
{
    size_t bytes;
    if (!size_mul(n, bytes_each, &bytes)) return NULL;
    void *p = arena_alloc(a, bytes);
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    size_t bytes;
    if (!size_add(n, 1, &bytes)) return NULL;
    char *p = arena_alloc(a, bytes);
    if (p == NULL) return NULL;
    if (n > 0) memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

void arena_free(struct arena *a)
{
    for (struct arena_block *b = a->blocks; b != NULL;) {
        struct arena_block *next = b->next;
        mem_free(b);
        b = next;
    }
    a->blocks = NULL;
    a->used_bytes = 0;
}
