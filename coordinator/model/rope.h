/* rope.h - the frequencies of rotary embedding, as the official code computes them in f32. Pure, any thread. */
#ifndef MOESAIC_MODEL_ROPE_H
#define MOESAIC_MODEL_ROPE_H

#include <stdint.h>

#include "common/modelfile/hparams.h"

/* inv_freq [head_dim / 2]; *factor multiplies cos and sin (1 but for yarn).
 * Source: the rope utilities of Hugging Face transformers; reference "architectures" 1.2 and 1.3. */
void rope_frequencies(const struct rope_params *p, uint32_t head_dim, float *inv_freq,
                      float *factor);

/* cos and sin [half] of position * inv_freq, times factor. */
void rope_angles(const float *inv_freq, uint32_t half, float factor, uint32_t position, float *c,
                 float *s);

#endif
