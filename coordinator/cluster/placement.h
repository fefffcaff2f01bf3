/* placement.h - which nodes hold which expert: (layer, expert) -> replicas. Pure, immutable once built and
 * reference counted, so that a pass keeps the one it began with. */
#ifndef MOESAIC_CLUSTER_PLACEMENT_H
#define MOESAIC_CLUSTER_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"

struct placement;

/* Start placement: expert e of layer l, replica r on node (l + perm_l(e) + r) mod N, where perm_l is the identity for
 * seed 0 and a permutation of the experts drawn from (seed, layer) otherwise. 1 <= replicas <= n_nodes
 * (INVALID names both). Epoch 1. */
enum err_code placement_spread(uint32_t n_layers, uint32_t n_experts, uint32_t n_nodes,
                               uint32_t replicas, uint64_t seed, struct placement **out,
                               struct err *why);
/* From what nodes say they hold: held[node] is a bitmap [n_layers][(n_experts + 7) / 8] or NULL. */
enum err_code placement_from_holdings(uint32_t n_layers, uint32_t n_experts, uint32_t n_nodes,
                                      const uint8_t *const *held, uint64_t epoch,
                                      struct placement **out, struct err *why);
struct placement *placement_acquire(struct placement *p);
void placement_release(struct placement *p); /* NULL is fine */

uint64_t placement_epoch(const struct placement *p);
uint32_t placement_n_nodes(const struct placement *p);
uint32_t placement_n_layers(const struct placement *p);
uint32_t placement_n_experts(const struct placement *p);
/* Replicas of one expert: count, and the nodes in order of preference. */
uint32_t placement_replicas(const struct placement *p, uint32_t layer, uint32_t expert,
                            const uint16_t **nodes);
bool placement_holds(const struct placement *p, uint32_t node, uint32_t layer, uint32_t expert);
/* The bitmap of one node for Assign: [n_layers][(n_experts + 7) / 8], mem_free'd. NULL: no memory. */
uint8_t *placement_node_bitmap(const struct placement *p, uint32_t node);
/* How many (layer, expert) pairs no node holds; *layer, *expert name the first. */
uint32_t placement_missing(const struct placement *p, const bool *is_moe, uint32_t *layer,
                           uint32_t *expert);

#endif
