/* kv_cache.h - which KV blocks are in use: block numbers and reference counts, never the keys and values themselves.
 * A block holds ENGINE_KV_BLOCK_TOKENS positions of one sequence, all layers. A count above one is a block shared by
 * sequences with a common prefix. Caller's storage; one thread; nothing allocates after init. */
#ifndef MOESAIC_ENGINE_KV_CACHE_H
#define MOESAIC_ENGINE_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"

#define KV_CACHE_BLOCK_TOKENS 64u

struct kv_cache {
    uint32_t n_blocks, n_free;
    uint32_t *
        free; /* [n_free] a stack: the block freed last is the one most likely in the caches of the machine */
    uint32_t *refs; /* [n_blocks] 0: free */
};

enum err_code kv_cache_init(struct kv_cache *c, uint32_t n_blocks, struct err *why);
void kv_cache_deinit(struct kv_cache *c);

/* A free block with one reference; false: there is none. */
bool kv_cache_acquire(struct kv_cache *c, uint32_t *block);
/* One more holder of a block that is in use. */
void kv_cache_share(struct kv_cache *c, uint32_t block);
/* One holder less; the last one frees it. */
void kv_cache_release(struct kv_cache *c, uint32_t block);

/* Blocks for that many tokens. */
static inline uint32_t kv_cache_blocks(uint32_t n_tokens)
{
    return n_tokens / KV_CACHE_BLOCK_TOKENS + (n_tokens % KV_CACHE_BLOCK_TOKENS != 0);
}

/* Let a table of *n_blocks blocks grow to cover n_tokens, as far as free blocks go. Answers how many tokens it
 * covers now, at most n_tokens. `table` has room. */
uint32_t kv_cache_grow(struct kv_cache *c, uint32_t *table, uint32_t *n_blocks, uint32_t n_tokens);
/* Give all blocks of a table back. */
void kv_cache_clear(struct kv_cache *c, const uint32_t *table, uint32_t *n_blocks);

#endif
