/* router.h - choose which experts see each row. Pure functions over the caller's buffers, any thread. */
#ifndef MOESAIC_MODEL_ROUTER_H
#define MOESAIC_MODEL_ROUTER_H

#include <stdint.h>

#include "common/modelfile/hparams.h"

/* Pick the K best experts for one row.
 *
 *   logits     in   [E] f32   router output with its bias, before softmax or sigmoid
 *   correction in   [E] f32   added to the scores for the choice only, never to the gates; NULL: none
 *   ids        out  [K] u16   ascending expert number; equal scores go to the lower number
 *   gates      out  [K] f32   in the same order; every sum runs over ascending expert numbers
 *
 * The choice is made on the logits where the score keeps their order (softmax, sigmoid without a correction), else on
 * score + correction. With groups, the top_groups best by their largest choice value (GROUP_MAX) or by the sum of their two
 * largest stay; equal ones go to the lower group. Gates: softmax over all or over the chosen, or sigmoid; divided by their
 * sum (+ renormalize_eps) where the model does that; scaled last. Sparsemixer (top 2): each pick's share of those within
 * 2 jitter_eps of it, not renormalised.
 * Cannot fail: a NaN logit ranks last and gets gate 0.
 * Source: reference "architectures" 1.6 and 1.7. */
void router_select(const struct router_params *cfg, uint32_t n_experts, uint32_t top_k,
                   const float *logits, const float *correction, uint16_t *ids, float *gates);

#endif
