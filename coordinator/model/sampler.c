/* From logits to a token. Which tokens are kept is decided in rank order (logit descending, id ascending), every
 * total and the draw itself run in ascending id order, all in double by our own exp and log: the same on every
 * machine. Ranks are found with a heap, since most often only a few are needed. */
#include "coordinator/model/sampler.h"

#include <assert.h>
#include <math.h>

#include "common/base/rng.h"
#include "common/kernels/kernels.h"
#include "coordinator/model/double_exp.h"

#define DROPPED (-1.0)

/* In the scratch: weights [V] double, then the heap [V] u32, adjusted logits [V] f32, counts [V] u32. */
struct sampler_heap {
    const float *logits;
    uint32_t *
        ids; /* [n] a heap with the best on top; popped ids stand behind it, the last popped first */
    uint32_t n;
};

size_t sampler_scratch_bytes(uint32_t vocab)
{
    return (size_t)vocab * (sizeof(double) + 2 * sizeof(uint32_t) + sizeof(float)) + 8;
}

static bool ranks_before(const float *logits, uint32_t a, uint32_t b)
{
    return logits[a] > logits[b] || (!(logits[a] < logits[b]) && a < b);
}

static void sift_down(struct sampler_heap *h, uint32_t at)
{
    uint32_t id = h->ids[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && ranks_before(h->logits, h->ids[child + 1], h->ids[child])) child++;
        if (ranks_before(h->logits, id, h->ids[child])) break;
        h->ids[at] = h->ids[child];
        at = child;
    }
    h->ids[at] = id;
}

/* All ids that are still kept. */
static void heap_fill(struct sampler_heap *h, const double *weights, uint32_t vocab)
{
    h->n = 0;
    for (uint32_t i = 0; i < vocab; i++)
        if (weights[i] >= 0) h->ids[h->n++] = i;
    for (uint32_t i = h->n / 2; i-- > 0;)
        sift_down(h, i);
}

static uint32_t heap_pop(struct sampler_heap *h)
{
    uint32_t best = h->ids[0];
    h->ids[0] = h->ids[--h->n];
    h->ids[h->n] = best;
    if (h->n > 0) sift_down(h, 0);
    return best;
}

static void drop_rest(const struct sampler_heap *h, double *weights)
{
    for (uint32_t i = 0; i < h->n; i++)
        weights[h->ids[i]] = DROPPED;
}

static double total(const double *weights, uint32_t vocab)
{
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        if (weights[i] > 0) sum += weights[i];
    return sum;
}

static void keep_top_k(struct sampler_heap *h, double *weights, uint32_t vocab, uint32_t top_k)
{
    heap_fill(h, weights, vocab);
    for (uint32_t i = 0; i < top_k && h->n > 0; i++)
        heap_pop(h);
    drop_rest(h, weights);
}

/* The fewest in rank order whose share reaches top_p; at least one. */
static void keep_top_p(struct sampler_heap *h, double *weights, uint32_t vocab, double top_p)
{
    double enough = top_p * total(weights, vocab), sum = 0;
    heap_fill(h, weights, vocab);
    do {
        sum += weights[heap_pop(h)];
    } while (sum < enough && h->n > 0);
    drop_rest(h, weights);
}

/* Ascending ids; the first whose running sum exceeds the share u of the total. */
static uint32_t draw(const double *weights, uint32_t vocab, double u)
{
    double target = u * total(weights, vocab), sum = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (!(weights[i] > 0)) continue;
        sum += weights[i];
        last = i;
        if (sum > target) break;
    }
    return last;
}

/* The largest logit, ties to the lower id; -1 if one is NaN or +Inf, or all are -Inf. */
static int64_t find_best(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (isnan(logits[i])) return -1;
        if (logits[i] > logits[best]) best = i;
    }
    return isinf(logits[best]) ? -1 : (int64_t)best;
}

int sampler_pick(const struct kernels *k, const float *logits, uint32_t vocab,
                 const struct sampler_params *p, const struct token_history *history,
                 uint64_t output_index, void *scratch, struct sampler_pick *out)
{
    assert(vocab > 0);
    double *weights = scratch;
    uint32_t *ids = (uint32_t *)(void *)(weights + vocab);
    const float *raw = logits;
    int64_t best = find_best(logits, vocab);
    if (best >= 0 && !logit_adjust_is_off(&p->adjust)) {
        float *adjusted = (float *)(void *)(ids + vocab);
        logit_adjust_apply(&p->adjust, history, raw, vocab, (uint32_t *)(void *)(adjusted + vocab),
                           adjusted);
        logits = adjusted;
        best = find_best(logits, vocab);
    }
    if (best < 0) return -1;
    uint32_t token = (uint32_t)best;
    if (p->temperature > 0) {
        struct sampler_heap heap = {.logits = logits, .ids = ids};
        /* Relative to the best, whose weight is 1; the difference is taken before the division, so that a tiny
         * temperature cannot overflow. */
        for (uint32_t i = 0; i < vocab; i++)
            weights[i] = double_exp(((double)logits[i] - (double)logits[best]) / p->temperature);
        if (p->top_k > 0 && p->top_k < vocab) keep_top_k(&heap, weights, vocab, p->top_k);
        if (p->top_p < 1) keep_top_p(&heap, weights, vocab, p->top_p);
        for (uint32_t i = 0; p->min_p > 0 && i < vocab; i++)
            if (weights[i] < p->min_p && i != token) weights[i] = DROPPED;
        token = draw(weights, vocab, rng_uniform(p->seed, output_index, p->choice));
    }
    *out = (struct sampler_pick){.token = (int32_t)token,
                                 .logprob = sampler_logprob(k, raw, vocab, (int32_t)token)};
    return 0;
}

static double log_sum_exp(const struct kernels *k, const float *logits, uint32_t vocab)
{
    float max, sum;
    k->softmax_parts(logits, vocab, &max, &sum);
    return (double)max + kernels_log((double)sum);
}

float sampler_logprob(const struct kernels *k, const float *logits, uint32_t vocab, int32_t id)
{
    assert(id >= 0 && (uint32_t)id < vocab);
    return (float)((double)logits[id] - log_sum_exp(k, logits, vocab));
}

void sampler_top(const struct kernels *k, const float *logits, uint32_t vocab, uint32_t n,
                 int32_t *ids, float *logprobs)
{
    assert(n <= vocab);
    if (n == 0) return;
    uint32_t found = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (found == n && !(logits[i] > logits[ids[n - 1]])) continue;
        uint32_t at = found < n ? found++ : n - 1;
        for (; at > 0 && logits[i] > logits[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
    double lse = log_sum_exp(k, logits, vocab);
    for (uint32_t i = 0; i < n; i++)
        logprobs[i] = (float)((double)logits[ids[i]] - lse);
}
