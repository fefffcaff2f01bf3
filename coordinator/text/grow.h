/* grow.h - room for one more element in a plain array that doubles. Any thread, no state. */
#ifndef MOESAIC_TEXT_GROW_H
#define MOESAIC_TEXT_GROW_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/mem.h"

/* Make `*array` (elements of `each` bytes, `*cap` of them allocated) hold at least `need` elements.
 * False when memory is short; the array stays as it was. */
static inline bool grow(void **array, size_t *cap, size_t need, size_t each)
{
    if (need <= *cap) return true;
    size_t n = *cap < 16 ? 16 : *cap, bytes;
    while (n < need)
        if (!size_mul(n, 2, &n)) return false;
    if (!size_mul(n, each, &bytes)) return false;
    void *p = mem_realloc(*array, bytes);
    if (p == NULL) return false;
    *array = p;
    *cap = n;
    return true;
}

#endif
