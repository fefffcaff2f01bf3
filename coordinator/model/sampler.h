/* sampler.h - from logits to a token, the same on every machine (reference "numerics").
 * Pure functions over the caller's buffers, any thread. V = vocabulary. */
#ifndef MOESAIC_MODEL_SAMPLER_H
#define MOESAIC_MODEL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "coordinator/model/logit_adjust.h"

struct kernels;

struct sampler_params {
    double temperature; /* 0: the largest logit, ties to the lower id */
    double top_p;       /* 1: off */
    double min_p;       /* 0: off */
    uint32_t top_k;     /* 0: off */
    uint64_t seed;
    uint32_t choice; /* 0..n-1 */
    struct logit_adjust adjust;
};

struct sampler_pick {
    int32_t token;
    float logprob; /* of the raw logits */
};

/* Bytes of scratch (8-byte aligned) for a vocabulary. */
size_t sampler_scratch_bytes(uint32_t vocab);

/* logits -> bias, penalties -> temperature -> top_k -> top_p -> min_p over candidates ordered by (logit descending, id ascending);
 * probabilities and sums in double; the draw runs over the kept ids in ascending order with
 * rng_uniform(seed, output_index, choice).
 * top_k, top_p and min_p keep a prefix of that order; totals run over the kept ids in ascending order.
 * `history` is looked at for penalties only. A logit of -Inf is never drawn. Returns 0; -1 if a logit is NaN or +Inf, or all are -Inf (the row is not finite). */
int sampler_pick(const struct kernels *k, const float *logits, uint32_t vocab,
                 const struct sampler_params *p, const struct token_history *history,
                 uint64_t output_index, void *scratch, struct sampler_pick *out);

/* log softmax of the raw logits at `id`, and the n best (descending, ties to the lower id), n <= vocab. */
float sampler_logprob(const struct kernels *k, const float *logits, uint32_t vocab, int32_t id);
void sampler_top(const struct kernels *k, const float *logits, uint32_t vocab, uint32_t n,
                 int32_t *ids, float *logprobs);

#endif
