#include "coordinator/cluster/placement.h"

#include <stdatomic.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

/* Replicas of (layer, expert) stand at nodes[first[i]] .. nodes[first[i + 1]), i = layer * n_experts + expert. */
struct placement {
    atomic_uint refs; /* the status page holds one on another thread */
    uint32_t n_layers, n_experts, n_nodes;
    uint64_t epoch;
    uint32_t *first;
    uint16_t *nodes;
};

static enum err_code placement_make(uint32_t n_layers, uint32_t n_experts, uint32_t n_nodes,
                                    uint64_t epoch, struct placement **out, struct err *why)
{
    if (n_layers > LIMIT_LAYERS || n_experts > LIMIT_EXPERTS || n_nodes > LIMIT_NODES)
        return err_set(
            why, ERR_INVALID,
            "placement: %u layers, %u experts, %u nodes; at most %u, %u and %u are supported",
            n_layers, n_experts, n_nodes, LIMIT_LAYERS, LIMIT_EXPERTS, LIMIT_NODES);
    struct placement *p = mem_zalloc(sizeof *p);
    if (p == NULL) return err_nomem(why, "a placement");
    atomic_init(&p->refs, 1);
    p->n_layers = n_layers;
    p->n_experts = n_experts;
    p->n_nodes = n_nodes;
    p->epoch = epoch;
    p->first = mem_zalloc_array((size_t)n_layers * n_experts + 1, sizeof *p->first);
    if (p->first == NULL) {
        placement_release(p);
        return err_nomem(why, "a placement");
    }
    *out = p;
    return ERR_OK;
}

/* Fisher-Yates with draws that depend on (seed, layer, step) alone. */
static void draw_permutation(uint64_t seed, uint32_t layer, uint32_t n, uint16_t *perm)
{
    for (uint32_t i = 0; i < n; i++)
        perm[i] = (uint16_t)i;
    if (seed == 0) return;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t draw[4];
        rng_philox(seed, (const uint32_t[4]){i, layer, 0, 0}, draw);
        uint32_t j = (uint32_t)((((uint64_t)draw[1] << 32) | draw[0]) % i);
        uint16_t t = perm[i - 1];
        perm[i - 1] = perm[j];
        perm[j] = t;
    }
}

enum err_code placement_spread(uint32_t n_layers, uint32_t n_experts, uint32_t n_nodes,
                               uint32_t replicas, uint64_t seed, struct placement **out,
                               struct err *why)
{
    if (replicas < 1 || replicas > n_nodes)
        return err_set(why, ERR_INVALID,
                       "placement: %u replicas of each expert need as many nodes; there are %u",
                       replicas, n_nodes);
    struct placement *p;
    enum err_code rc = placement_make(n_layers, n_experts, n_nodes, 1, &p, why);
    if (rc != ERR_OK) return rc;
    size_t n_pairs = (size_t)n_layers * n_experts;
    p->nodes = mem_zalloc_array(n_pairs * replicas + 1, sizeof *p->nodes);
    uint16_t *perm = mem_zalloc_array((size_t)n_experts + 1, sizeof *perm);
    if (p->nodes == NULL || perm == NULL) {
        mem_free(perm);
        placement_release(p);
        return err_nomem(why, "a placement");
    }
    uint32_t n = 0;
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        draw_permutation(seed, layer, n_experts, perm);
        for (uint32_t expert = 0; expert < n_experts; expert++) {
            p->first[(size_t)layer * n_experts + expert] = n;
            for (uint32_t r = 0; r < replicas; r++)
                p->nodes[n++] = (uint16_t)((layer + perm[expert] + r) % n_nodes);
        }
    }
    p->first[n_pairs] = n;
    mem_free(perm);
    *out = p;
    return ERR_OK;
}

static bool bit(const uint8_t *map, uint32_t n_experts, uint32_t layer, uint32_t expert)
{
    return map[(size_t)layer * ((n_experts + 7) / 8) + expert / 8] >> (expert % 8) & 1;
}

enum err_code placement_from_holdings(uint32_t n_layers, uint32_t n_experts, uint32_t n_nodes,
                                      const uint8_t *const *held, uint64_t epoch,
                                      struct placement **out, struct err *why)
{
    struct placement *p;
    enum err_code rc = placement_make(n_layers, n_experts, n_nodes, epoch, &p, why);
    if (rc != ERR_OK) return rc;
    uint32_t n = 0;
    for (uint32_t layer = 0; layer < n_layers; layer++)
        for (uint32_t expert = 0; expert < n_experts; expert++) {
            p->first[(size_t)layer * n_experts + expert] = n;
            for (uint32_t node = 0; node < n_nodes; node++)
                if (held[node] != NULL && bit(held[node], n_experts, layer, expert)) n++;
        }
    p->first[(size_t)n_layers * n_experts] = n;
    p->nodes = mem_zalloc_array((size_t)n + 1, sizeof *p->nodes);
    if (p->nodes == NULL) {
        placement_release(p);
        return err_nomem(why, "a placement");
    }
    for (uint32_t layer = 0; layer < n_layers; layer++)
        for (uint32_t expert = 0; expert < n_experts; expert++) {
            size_t i = (size_t)layer * n_experts + expert;
            uint32_t count = p->first[i + 1] - p->first[i];
            /* Turned by (layer + expert), so that where everybody holds everything the first choices still spread. */
            uint32_t at = count == 0 ? 0 : (count - (layer + expert) % count) % count;
            for (uint32_t node = 0; node < n_nodes; node++)
                if (held[node] != NULL && bit(held[node], n_experts, layer, expert)) {
                    p->nodes[p->first[i] + at] = (uint16_t)node;
                    at = (at + 1) % count;
                }
        }
    *out = p;
    return ERR_OK;
}

struct placement *placement_acquire(struct placement *p)
{
    atomic_fetch_add(&p->refs, 1);
    return p;
}

void placement_release(struct placement *p)
{
    if (p == NULL || atomic_fetch_sub(&p->refs, 1) != 1) return;
    mem_free(p->first);
    mem_free(p->nodes);
    mem_free(p);
}

uint64_t placement_epoch(const struct placement *p)
{
    return p->epoch;
}

uint32_t placement_n_nodes(const struct placement *p)
{
    return p->n_nodes;
}

uint32_t placement_n_layers(const struct placement *p)
{
    return p->n_layers;
}

uint32_t placement_n_experts(const struct placement *p)
{
    return p->n_experts;
}

uint32_t placement_replicas(const struct placement *p, uint32_t layer, uint32_t expert,
                            const uint16_t **nodes)
{
    assert(layer < p->n_layers && expert < p->n_experts);
    size_t i = (size_t)layer * p->n_experts + expert;
    *nodes = p->nodes + p->first[i];
    return p->first[i + 1] - p->first[i];
}

bool placement_holds(const struct placement *p, uint32_t node, uint32_t layer, uint32_t expert)
{
    const uint16_t *nodes;
    uint32_t n = placement_replicas(p, layer, expert, &nodes);
    for (uint32_t i = 0; i < n; i++)
        if (nodes[i] == node) return true;
    return false;
}

uint8_t *placement_node_bitmap(const struct placement *p, uint32_t node)
{
    size_t row_bytes = (p->n_experts + 7) / 8;
    uint8_t *map = mem_zalloc_array((size_t)p->n_layers * row_bytes + 1, 1);
    if (map == NULL) return NULL;
    for (uint32_t layer = 0; layer < p->n_layers; layer++)
        for (uint32_t expert = 0; expert < p->n_experts; expert++)
            if (placement_holds(p, node, layer, expert))
                map[layer * row_bytes + expert / 8] |= (uint8_t)(1u << (expert % 8));
    return map;
}

uint32_t placement_missing(const struct placement *p, const bool *is_moe, uint32_t *layer,
                           uint32_t *expert)
{
    uint32_t missing = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        if (!is_moe[l]) continue;
        for (uint32_t e = 0; e < p->n_experts; e++) {
            const uint16_t *nodes;
            if (placement_replicas(p, l, e, &nodes) != 0) continue;
            if (missing++ == 0) {
                *layer = l;
                *expert = e;
            }
        }
    }
    return missing;
}
