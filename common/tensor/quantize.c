#include "common/tensor/quantize.h"

#include "common/base/check.h"

#define BLOCK      32u
#define F16_NAN    0x7e00u
#define E8M0_BIAS  127
#define E8M0_LARGE 255u

bool dtype_can_encode(enum dtype t)
{
    switch (t) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_Q8_0:
    case DTYPE_Q4_0:
    case DTYPE_MXFP4:
        return true;
    default:
        return false;
    }
}

/* The number of largest magnitude, the first of equals; false if one is not finite. */
static bool largest(const float x[BLOCK], float *out)
{
    float top = 0.0f, amax = 0.0f;
    for (uint32_t i = 0; i < BLOCK; i++) {
        float a = f32_from_bits(f32_bits(x[i]) & 0x7fffffffu);
        if (f32_bits(a) >= 0x7f800000u) return false;
        if (a > amax) {
            amax = a;
            top = x[i];
        }
    }
    *out = top;
    return true;
}

static float magnitude(float v)
{
    return f32_from_bits(f32_bits(v) & 0x7fffffffu);
}

static float clamp(float v, float low, float high) /* NaN gives low */
{
    return v >= low ? (v <= high ? v : high) : low;
}

/* Halves go away from zero, unlike in the quantizer of input rows, and the factor is the inverse of the f32 scale, not of the
 * stored f16 one. An inverse that overflows makes the ends of the range, under a scale that is 0. */
static void q8_0_from_f32(const float x[BLOCK], uint8_t out[34])
{
    float top = 0.0f;
    const bool finite = largest(x, &top);
    const float d = magnitude(top) / 127.0f, id = d > 0.0f ? 1.0f / d : 0.0f;
    const uint16_t scale = finite ? f16_from_f32(d) : F16_NAN;
    memcpy(out, &scale, sizeof scale);
    for (uint32_t i = 0; i < BLOCK; i++) {
        float v = finite && x[i] != 0.0f ? clamp(x[i] * id, -127.0f, 127.0f) : 0.0f;
        int32_t whole = (int32_t)v;
        float rest = v - (float)whole; /* exact */
        if (rest >= 0.5f) whole++;
        if (rest <= -0.5f) whole--;
        out[2 + i] = (uint8_t)whole;
    }
}

/* The largest number becomes -8, whatever its sign. */
static void q4_0_from_f32(const float x[BLOCK], uint8_t out[18])
{
    float top = 0.0f;
    const bool finite = largest(x, &top);
    const float d = top / -8.0f, id = d != 0.0f ? 1.0f / d : 0.0f;
    const uint16_t scale = finite ? f16_from_f32(d) : F16_NAN;
    memcpy(out, &scale, sizeof scale);
    uint8_t q[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++) {
        float v = finite && x[i] != 0.0f ? x[i] * id : 0.0f;
        q[i] = (uint8_t)clamp(v + 8.5f, 0.0f, 15.0f);
    }
    for (uint32_t i = 0; i < BLOCK / 2; i++)
        out[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}

/* floor(log2f(x)) for x > 0, where log2f is rounded to nearest: so close below a power of two that the logarithm rounds to its
 * exponent, that exponent is the answer. */
static int32_t floor_log2f(float x)
{
    int32_t e = (int32_t)(f32_bits(x) >> 23) - 127;
    if (e == -127) { /* subnormal: scaled by 2^24 */
        x *= 0x1p24f;
        e = (int32_t)(f32_bits(x) >> 23) - 127 - 24;
    }
    const uint32_t below = 0x800000u - (f32_bits(x) & 0x7fffffu); /* steps up to 2^(e + 1) */
    if (below > 1u << 10) return e;
    /* log2 is e + 1 - gap. Half a step of f32 beside e + 1, on the side of the gap: */
    const int32_t above = e + 1;
    const double gap = (double)below * 0x1p-24 * 1.4426950408889634;
    double step = 0x1p-24;
    for (int32_t n = above < 0 ? -above : above - 1; n > 1; n /= 2)
        step *= 2.0;
    if (above == 0 || above == 1) step = above == 0 ? 0.0 : 0x1p-25;
    return gap <= step ? above : e;
}

static void mxfp4_from_f32(const float x[BLOCK], uint8_t out[17])
{
    static const float twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    float top = 0.0f;
    const bool finite = largest(x, &top);
    int32_t e = top != 0.0f ? floor_log2f(magnitude(top)) - 2 + E8M0_BIAS : 0;
    if (e < 0) e = 0;
    if (!finite) e = E8M0_LARGE;
    out[0] = (uint8_t)e;
    const float unit = f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
    uint8_t q[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++) {
        q[i] = 0;
        if (!finite) { /* NaN and infinity become 6, the rest as near as this scale comes: 0 */
            if (f32_bits(magnitude(x[i])) >= 0x7f800000u) q[i] = f32_bits(x[i]) >> 31 ? 15 : 7;
            continue;
        }
        float least = magnitude(x[i]);
        for (uint8_t c = 1; c < 16; c++) {
            float off = magnitude(twice[c] * unit - x[i]);
            if (!(off < least)) continue;
            least = off;
            q[i] = c;
        }
    }
    for (uint32_t i = 0; i < BLOCK / 2; i++)
        out[1 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}

void dtype_from_f32(enum dtype t, const float *x, size_t n, void *out)
{
    assert(dtype_can_encode(t) && n % dtype_block(t) == 0);
    if (t == DTYPE_F32) {
        if (n > 0) memcpy(out, x, n * sizeof *x);
        return;
    }
    uint8_t *to = out;
    for (size_t i = 0; i < n; i += dtype_block(t), to += dtype_block_bytes(t)) {
        if (t == DTYPE_Q8_0) q8_0_from_f32(x + i, to);
        if (t == DTYPE_Q4_0) q4_0_from_f32(x + i, to);
        if (t == DTYPE_MXFP4) mxfp4_from_f32(x + i, to);
        if (t != DTYPE_F16 && t != DTYPE_BF16) continue;
        uint16_t half = t == DTYPE_F16 ? f16_from_f32(x[i]) : bf16_from_f32(x[i]);
        memcpy(to, &half, sizeof half);
    }
}
