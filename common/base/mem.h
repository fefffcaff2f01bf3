/* mem.h - every heap allocation of the project, so that tests can make the Nth one fail.
 * Any thread. All functions answer NULL when memory is short; sizes from outside are multiplied
 * with size_mul(), which reports overflow. */
#ifndef MOESAIC_BASE_MEM_H
#define MOESAIC_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t bytes);
void *mem_zalloc(size_t bytes);
void *mem_zalloc_array(size_t n, size_t bytes_each); /* NULL on overflow too */
void *mem_realloc(void *p, size_t bytes);            /* p stays valid on failure */
void *mem_aligned(size_t alignment,
                  size_t bytes); /* not zeroed; alignment a power of two; free with mem_free */
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n); /* 0-terminated copy of n bytes (embedded NUL kept) */
void mem_free(void *p);                     /* NULL is fine */

/* Zeroed anonymous pages, huge pages advised; for weights and caches. Free with mem_unmap. NULL on failure. */
void *mem_map(size_t bytes);
void mem_unmap(void *p, size_t bytes);

/* *out = a * b (or a + b); false on overflow, *out untouched. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Tests: allocation number `n` from now (1 = the next) fails, and so do all after it until
 * mem_fail_at(0). Returns how many allocations there were since the last call. */
uint64_t mem_fail_at(uint64_t n);

#endif
