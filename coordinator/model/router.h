/* router.h - choose which experts see each row. Pure functions over the caller's buffers, any thread. */
#ifndef MOESAIC_MODEL_ROUTER_H
#define MOESAIC_MODEL_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

struct router_cfg {
    uint32_t n_experts, top_k;
    bool renormalize; /* gates of the chosen sum to 1 */
};

/* Pick the K best experts for one row.
 *
 *   logits  in   [E] f32   router output, before softmax. The choice is made on them: softmax keeps their order
 *   ids     out  [K] u16   ascending expert number; equal logits go to the lower number
 *   gates   out  [K] f32   in the same order: softmax over all E, renormalised over the chosen if cfg says so;
 *                          every sum runs over ascending expert numbers
 *
 * Cannot fail: a NaN logit ranks last and gets gate 0. */
void router_select(const struct router_cfg *cfg, const float *logits, uint16_t *ids, float *gates);

#endif
