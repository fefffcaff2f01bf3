/* rope.h - the frequencies of rotary embedding, as the official code computes them in f32. Pure, any thread. */
#ifndef MOESAIC_MODEL_ROPE_H
#define MOESAIC_MODEL_ROPE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/modelfile/hparams.h"

/* inv_freq [dim / 2] of the `dim` numbers of a head that rotate; *factor multiplies cos and sin. `beyond`: the sequence is
 * longer than original_ctx, which only long rope asks.
 * Source: the rope utilities of Hugging Face transformers; reference "architectures" 1.2 and 1.3. */
void rope_frequencies(const struct rope_params *p, uint32_t dim, bool beyond, float *inv_freq,
                      float *factor);

/* What latent attention multiplies its scores with, besides 1 / sqrt(width); 1 but for yarn. */
double rope_score_factor(const struct rope_params *p);

/* cos and sin [half] of position * inv_freq, times factor. */
void rope_angles(const float *inv_freq, uint32_t half, float factor, uint32_t position, float *c,
                 float *s);

#endif
