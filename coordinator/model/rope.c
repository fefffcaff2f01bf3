#include "coordinator/model/rope.h"

#include <math.h>

#include "common/kernels/kernels.h"
#include "coordinator/model/double_exp.h"

#define PI 3.141592653589793

/* theta ^ exponent in f32: by our own log and exp, since those of the C library differ by CPU. */
static float power(double theta, float exponent)
{
    return (float)double_exp((double)exponent * kernels_log(theta));
}

static float llama3_frequency(const struct rope_params *p, float inv)
{
    float wavelength = (float)(2 * PI) / inv;
    float original = (float)p->original_ctx;
    float low = (float)((double)p->original_ctx / p->low_freq_factor);
    float high = (float)((double)p->original_ctx / p->high_freq_factor);
    if (wavelength > low) return inv / (float)p->factor;
    if (wavelength < high) return inv;
    float smooth = (original / wavelength - (float)p->low_freq_factor) /
                   (float)(p->high_freq_factor - p->low_freq_factor);
    return (1.0f - smooth) * inv / (float)p->factor + smooth * inv;
}

/* The dimension that turns `rotations` times over the original context. */
static double yarn_dimension(const struct rope_params *p, uint32_t dim, double rotations)
{
    return (double)dim * kernels_log((double)p->original_ctx / (rotations * 2 * PI)) /
           (2 * kernels_log(p->theta));
}

static void yarn_range(const struct rope_params *p, uint32_t dim, float *low, float *span)
{
    double first = yarn_dimension(p, dim, p->beta_fast),
           last = yarn_dimension(p, dim, p->beta_slow);
    if (p->truncate) {
        first = floor(first);
        last = ceil(last);
    }
    if (first < 0) first = 0;
    if (last > dim - 1) last = dim - 1;
    if (!(last > first) && !(last < first)) last += 0.001;
    *low = (float)first;
    *span = (float)(last - first);
}

/* 0.1 m ln(s) + 1: what stretching by s asks for. */
static double yarn_magnitude(double factor, double mscale)
{
    return factor > 1 ? 0.1 * mscale * kernels_log(factor) + 1 : 1;
}

double rope_score_factor(const struct rope_params *p)
{
    if (p->kind != ROPE_YARN || !(p->mscale_all_dim > 0)) return 1;
    double m = yarn_magnitude(p->factor, p->mscale_all_dim);
    return m * m;
}

static double yarn_factor(const struct rope_params *p)
{
    if (p->attention_factor > 0) return p->attention_factor;
    if (p->mscale > 0 && p->mscale_all_dim > 0)
        return yarn_magnitude(p->factor, p->mscale) / yarn_magnitude(p->factor, p->mscale_all_dim);
    return yarn_magnitude(p->factor, 1);
}

static double long_factor(const struct rope_params *p, bool beyond)
{
    double given = beyond ? p->long_mscale : p->short_mscale;
    if (given > 0) return given;
    return p->factor > 1 ? sqrt(1 + kernels_log(p->factor) / kernels_log(p->original_ctx)) : 1;
}

void rope_frequencies(const struct rope_params *p, uint32_t dim, bool beyond, float *inv_freq,
                      float *factor)
{
    float low = 0, span = 1;
    *factor = 1.0f;
    if (p->kind == ROPE_YARN) {
        yarn_range(p, dim, &low, &span);
        *factor = (float)yarn_factor(p);
    }
    if (p->kind == ROPE_LONG) *factor = (float)long_factor(p, beyond);
    for (uint32_t i = 0; i < dim / 2; i++) {
        float base = power(p->theta, (float)(2 * i) / (float)dim);
        float inv = 1.0f / base;
        switch (p->kind) {
        case ROPE_PLAIN:
            break;
        case ROPE_LINEAR:
            inv = inv / (float)p->factor;
            break;
        case ROPE_LLAMA3:
            inv = llama3_frequency(p, inv);
            break;
        case ROPE_LONG:
            inv = 1.0f / ((beyond ? p->long_factor[i] : p->short_factor[i]) * base);
            break;
        case ROPE_DIVISORS:
            inv = inv / p->short_factor[i];
            break;
        case ROPE_YARN: {
            float ramp = ((float)i - low) / span;
            ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
            float keep = 1.0f - ramp;
            float slow = 1.0f / ((float)p->factor * base);
            inv = slow * (1.0f - keep) + inv * keep;
            break;
        }
        }
        inv_freq[i] = inv;
    }
}

void rope_angles(const float *inv_freq, uint32_t half, float factor, uint32_t position, float *c,
                 float *s)
{
    for (uint32_t i = 0; i < half; i++) {
        kernels_cos_sin((float)position * inv_freq[i], &c[i], &s[i]);
        c[i] *= factor;
        s[i] *= factor;
    }
}
