#include "coordinator/engine/kv_cache.h"

#include "common/base/check.h"
#include "common/base/mem.h"

enum err_code kv_cache_init(struct kv_cache *c, uint32_t n_blocks, struct err *why)
{
    *c = (struct kv_cache){.n_blocks = n_blocks};
    c->free = mem_zalloc_array((size_t)n_blocks + 1, sizeof *c->free);
    c->refs = mem_zalloc_array((size_t)n_blocks + 1, sizeof *c->refs);
    if (c->free == NULL || c->refs == NULL) {
        kv_cache_deinit(c);
        return err_nomem(why, "the KV block table");
    }
    for (uint32_t i = 0; i < n_blocks; i++)
        c->free[i] = n_blocks - 1 - i; /* block 0 goes first */
    c->n_free = n_blocks;
    return ERR_OK;
}

void kv_cache_deinit(struct kv_cache *c)
{
    mem_free(c->free);
    mem_free(c->refs);
    *c = (struct kv_cache){0};
}

bool kv_cache_acquire(struct kv_cache *c, uint32_t *block)
{
    if (c->n_free == 0) return false;
    *block = c->free[--c->n_free];
    assert(c->refs[*block] == 0);
    c->refs[*block] = 1;
    return true;
}

void kv_cache_share(struct kv_cache *c, uint32_t block)
{
    assert(block < c->n_blocks && c->refs[block] > 0);
    c->refs[block]++;
}

void kv_cache_release(struct kv_cache *c, uint32_t block)
{
    assert(block < c->n_blocks && c->refs[block] > 0);
    if (--c->refs[block] == 0) c->free[c->n_free++] = block;
}

uint32_t kv_cache_grow(struct kv_cache *c, uint32_t *table, uint32_t *n_blocks, uint32_t n_tokens)
{
    uint32_t need = kv_cache_blocks(n_tokens);
    while (*n_blocks < need && kv_cache_acquire(c, &table[*n_blocks]))
        (*n_blocks)++;
    return *n_blocks >= need ? n_tokens : *n_blocks * KV_CACHE_BLOCK_TOKENS;
}

void kv_cache_clear(struct kv_cache *c, const uint32_t *table, uint32_t *n_blocks)
{
    for (uint32_t i = *n_blocks; i > 0; i--)
        kv_cache_release(c, table[i - 1]);
    *n_blocks = 0;
}
