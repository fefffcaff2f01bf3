#include "coordinator/model/router.h"

#include <math.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/kernels/kernels.h"

/* Does score b rank before score a, when b has the higher number? NaN ranks last. */
static bool better(float b, float a)
{
    return b > a || (isnan(a) && !isnan(b));
}

/* Insert number `i` into the n best so far, best first; room for k. */
static uint32_t insert(const float *scores, uint16_t *best, uint32_t n, uint32_t k, uint32_t i)
{
    if (n == k && !better(scores[i], scores[best[k - 1]])) return n;
    uint32_t at = n < k ? n : k - 1;
    while (at > 0 && better(scores[i], scores[best[at - 1]])) {
        best[at] = best[at - 1];
        at--;
    }
    best[at] = (uint16_t)i;
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

/* A group's score from those of its n experts. */
static float group_score(enum group_score rule, const float *scores, uint32_t n)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (scores[i] > first) {
            second = first;
            first = scores[i];
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    return rule == GROUP_MAX ? first : first + second;
}

/* Experts of groups that are not among the best are out of the choice. */
static void mask_groups(const struct router_params *cfg, float *scores, uint32_t n_experts)
{
    const uint32_t each = n_experts / cfg->n_groups;
    float groups[LIMIT_EXPERTS];
    uint16_t best[LIMIT_EXPERTS];
    uint32_t n = 0;
    for (uint32_t g = 0; g < cfg->n_groups; g++) {
        groups[g] = group_score(cfg->group_score, scores + (size_t)g * each, each);
        n = insert(groups, best, n, cfg->top_groups, g);
    }
    sort_ascending(best, n);
    for (uint32_t g = 0, i = 0; g < cfg->n_groups; g++) {
        if (i < n && best[i] == g) {
            i++;
            continue;
        }
        for (uint32_t e = 0; e < each; e++)
            scores[(size_t)g * each + e] = -INFINITY;
    }
}

static float largest(const float *x, uint32_t n)
{
    float max = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > max) max = x[i];
    return max;
}

/* The share of the largest score among those that are near it; `scores` without those picked before, `all` with them. */
static float near_share(const float *scores, const float *all, uint32_t n, float eps)
{
    const float max = largest(scores, n);
    float sum = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        float magnitude = fabsf(all[i]);
        float scale = magnitude > max ? magnitude : max;
        if ((max - all[i]) / scale > 2.0f * eps || isnan(scores[i])) continue;
        sum += kernels_exp(scores[i] - max);
    }
    return 1.0f / sum;
}

static void sparsemixer(const struct router_params *cfg, uint32_t n_experts, const float *logits,
                        uint16_t *ids, float *gates)
{
    float left[LIMIT_EXPERTS];
    for (uint32_t e = 0; e < n_experts; e++)
        left[e] = logits[e];
    for (uint32_t round = 0; round < 2; round++) {
        uint16_t best[1] = {0};
        for (uint32_t e = 0, n = 0; e < n_experts; e++)
            n = insert(left, best, n, 1, e);
        ids[round] = best[0];
        gates[round] =
            isnan(left[best[0]]) ? 0.0f : near_share(left, logits, n_experts, cfg->jitter_eps);
        left[best[0]] = -INFINITY;
    }
    if (ids[0] < ids[1]) return;
    uint16_t id = ids[0];
    ids[0] = ids[1];
    ids[1] = id;
    float gate = gates[0];
    gates[0] = gates[1];
    gates[1] = gate;
}

static void softmax_gates(const float *logits, const uint16_t *ids, uint32_t top_k, float max,
                          float sum, float *gates)
{
    for (uint32_t i = 0; i < top_k; i++) {
        float logit = logits[ids[i]];
        gates[i] = isnan(logit) ? 0.0f : kernels_exp(logit - max) / sum;
    }
}

static void make_gates(const struct router_params *cfg, uint32_t n_experts, uint32_t top_k,
                       const float *logits, const uint16_t *ids, float *gates)
{
    float sum = 0.0f, max = -INFINITY;
    switch (cfg->score) {
    case SCORE_SOFTMAX:
        max = largest(logits, n_experts);
        for (uint32_t e = 0; e < n_experts; e++)
            if (!isnan(logits[e])) sum += kernels_exp(logits[e] - max);
        softmax_gates(logits, ids, top_k, max, sum, gates);
        break;
    case SCORE_SOFTMAX_CHOSEN:
        for (uint32_t i = 0; i < top_k; i++)
            if (logits[ids[i]] > max) max = logits[ids[i]];
        for (uint32_t i = 0; i < top_k; i++)
            if (!isnan(logits[ids[i]])) sum += kernels_exp(logits[ids[i]] - max);
        softmax_gates(logits, ids, top_k, max, sum, gates);
        break;
    default:
        for (uint32_t i = 0; i < top_k; i++)
            gates[i] = isnan(logits[ids[i]]) ? 0.0f : kernels_sigmoid(logits[ids[i]]);
        break;
    }
}

void router_select(const struct router_params *cfg, uint32_t n_experts, uint32_t top_k,
                   const float *logits, const float *correction, uint16_t *ids, float *gates)
{
    assert(top_k >= 1 && top_k <= n_experts && top_k <= LIMIT_TOP_K && n_experts <= LIMIT_EXPERTS);
    if (cfg->score == SCORE_SPARSEMIXER) {
        assert(top_k == 2);
        sparsemixer(cfg, n_experts, logits, ids, gates);
        return;
    }
    float scores[LIMIT_EXPERTS];
    for (uint32_t e = 0; e < n_experts; e++)
        scores[e] = correction != NULL ? kernels_sigmoid(logits[e]) + correction[e] : logits[e];
    if (cfg->n_groups > 1) mask_groups(cfg, scores, n_experts);
    for (uint32_t e = 0, n = 0; e < n_experts; e++)
        n = insert(scores, ids, n, top_k, e);
    sort_ascending(ids, top_k);
    make_gates(cfg, n_experts, top_k, logits, ids, gates);

    float chosen = 0.0f;
    for (uint32_t i = 0; i < top_k; i++)
        chosen += gates[i];
    chosen += (float)cfg->renormalize_eps;
    for (uint32_t i = 0; cfg->renormalized && chosen > 0 && i < top_k; i++)
        gates[i] = gates[i] / chosen;
    for (uint32_t i = 0; cfg->scale != 1.0f && i < top_k; i++)
        gates[i] = gates[i] * cfg->scale;
}
