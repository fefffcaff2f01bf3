#include "coordinator/model/router.h"

#include <math.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/kernels/kernels.h"

/* Does logit b rank before logit a, when b has the higher number? NaN ranks last. */
static bool better(float b, float a)
{
    return b > a || (isnan(a) && !isnan(b));
}

/* Insert `expert` into the n best so far, best first; room for K. */
static uint32_t insert(const float *logits, uint16_t *best, uint32_t n, uint32_t k, uint32_t expert)
{
    if (n == k && !better(logits[expert], logits[best[k - 1]])) return n;
    uint32_t at = n < k ? n : k - 1;
    while (at > 0 && better(logits[expert], logits[best[at - 1]])) {
        best[at] = best[at - 1];
        at--;
    }
    best[at] = (uint16_t)expert;
    return n < k ? n + 1 : k;
}

static void sort_ascending(uint16_t *ids, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint16_t id = ids[i];
        uint32_t at = i;
        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

void router_select(const struct router_cfg *cfg, const float *logits, uint16_t *ids, float *gates)
{
    assert(cfg->top_k >= 1 && cfg->top_k <= cfg->n_experts && cfg->top_k <= LIMIT_TOP_K);
    uint32_t n = 0;
    float max = -INFINITY;
    for (uint32_t e = 0; e < cfg->n_experts; e++) {
        n = insert(logits, ids, n, cfg->top_k, e);
        if (logits[e] > max) max = logits[e];
    }
    sort_ascending(ids, cfg->top_k);

    float sum = 0.0f, chosen = 0.0f;
    for (uint32_t e = 0; e < cfg->n_experts; e++)
        if (!isnan(logits[e])) sum += kernels_exp(logits[e] - max);
    for (uint32_t i = 0; i < cfg->top_k; i++) {
        float logit = logits[ids[i]];
        gates[i] = isnan(logit) ? 0.0f : kernels_exp(logit - max) / sum;
        chosen += gates[i];
    }
    for (uint32_t i = 0; cfg->renormalize && chosen > 0 && i < cfg->top_k; i++)
        gates[i] = gates[i] / chosen;
}
