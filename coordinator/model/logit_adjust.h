/* logit_adjust.h - bias and penalties on logits, before anything is sampled. Pure, any thread.
 *
 *   x = logit + bias                                        OpenAI's logit_bias
 *   x = x > 0 ? x / repetition : x * repetition             once for each token of prompt or output (Keskar et al. 2019)
 *   x = x - count * frequency - presence                    for a token that is in the output `count` > 0 times (OpenAI)
 *
 * in double, in this order, each operation rounded; the result is rounded to float once. */
#ifndef MOESAIC_MODEL_LOGIT_ADJUST_H
#define MOESAIC_MODEL_LOGIT_ADJUST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct logit_bias {
    int32_t id; /* in the vocabulary */
    double bias;
};

/* All zero: nothing is changed. */
struct logit_adjust {
    double repetition; /* 0 or 1: off; else above 0 */
    double frequency, presence;
    const struct logit_bias *bias; /* [n_bias], each id once; borrowed */
    uint32_t n_bias;
};

/* A sequence so far: what the penalties look at. */
struct token_history {
    const int32_t *tokens; /* [n] the prompt, then the output */
    uint32_t n_prompt, n;
};

bool logit_adjust_is_off(const struct logit_adjust *a);

/* V = vocabulary. logits [V] finite or -Inf (which stays); out [V]; counts [V] scratch. An overflow ends at the
 * largest float. */
void logit_adjust_apply(const struct logit_adjust *a, const struct token_history *h,
                        const float *logits, uint32_t vocab, uint32_t *counts, float *out);

#endif
