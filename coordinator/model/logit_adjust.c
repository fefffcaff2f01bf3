#include "coordinator/model/logit_adjust.h"

#include <assert.h>
#include <float.h>
#include <string.h>

#define SEEN 0x80000000u /* in the prompt or the output; the rest counts the output */

bool logit_adjust_is_off(const struct logit_adjust *a)
{
    return a->n_bias == 0 && (a->repetition == 0 || a->repetition == 1) && a->frequency == 0 &&
           a->presence == 0;
}

static float to_float(double x)
{
    if (x > (double)FLT_MAX) return FLT_MAX;
    if (x < -(double)FLT_MAX) return -FLT_MAX;
    return (float)x;
}

static double penalize(const struct logit_adjust *a, uint32_t count, double x)
{
    if (a->repetition > 0) x = x > 0 ? x / a->repetition : x * a->repetition;
    count &= ~SEEN;
    if (count > 0) x = x - (double)count * a->frequency - a->presence;
    return x;
}

void logit_adjust_apply(const struct logit_adjust *a, const struct token_history *h,
                        const float *logits, uint32_t vocab, uint32_t *counts, float *out)
{
    memcpy(out, logits, vocab * sizeof *out);
    memset(counts, 0, vocab * sizeof *counts);
    for (uint32_t i = 0; i < h->n; i++) {
        assert(h->tokens[i] >= 0 && (uint32_t)h->tokens[i] < vocab);
        uint32_t *count = &counts[h->tokens[i]];
        *count = (*count | SEEN) + (i >= h->n_prompt);
    }
    /* Each touched token once, from its own logit: those with a bias first, the other seen ones after. */
    for (uint32_t i = 0; i < a->n_bias; i++) {
        const uint32_t id = (uint32_t)a->bias[i].id;
        assert(id < vocab);
        double x = (double)logits[id] + a->bias[i].bias;
        if (counts[id] != 0) x = penalize(a, counts[id], x);
        counts[id] = 0;
        if (logits[id] >= -FLT_MAX) out[id] = to_float(x);
    }
    for (uint32_t i = 0; i < h->n; i++) {
        const int32_t id = h->tokens[i];
        if (counts[id] == 0) continue;
        if (logits[id] >= -FLT_MAX) out[id] = to_float(penalize(a, counts[id], (double)logits[id]));
        counts[id] = 0;
    }
}
