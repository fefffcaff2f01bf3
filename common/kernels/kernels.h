/* kernels.h - the arithmetic, one table of functions per instruction set, all with equal bits.
 *
 * The expressions are those of docs "numerics": every output is one sequential chain over K, so its
 * bits do not depend on the rows beside it, the threads, the tile or the instruction set.
 * All functions are pure over the caller's buffers, any thread, no allocation, cannot fail.
 * Shapes: N outputs, K inputs, M rows, D row width; row-major, last index fastest. */
#ifndef MOESAIC_KERNELS_H
#define MOESAIC_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/tensor/dtype.h"

#define PANEL 16u /* output features per panel */

/* ---- rows: the input of a product ------------------------------------------------------------- */

enum row_format {
    ROW_F32,  /* f32 [M, K] */
    ROW_BF16, /* u16 [M, K], rounded to nearest even */
    ROW_Q8,   /* int8 [M, K], then f32 scales [M, K/32]; K a multiple of 32 */
};

/* A view of M rows of width K in one format. For ROW_Q8 `scales` is apart so that a subset can be gathered. */
struct rows {
    enum row_format format;
    uint32_t m, k;
    void *data;    /* f32, u16 or int8 [m, k]; 64-byte aligned start */
    float *scales; /* ROW_Q8: [m, k/32]; else NULL */
};

size_t row_data_bytes(enum row_format f, uint32_t k);  /* of one row, without scales */
size_t row_scale_bytes(enum row_format f, uint32_t k); /* of one row: K/32*4 for ROW_Q8, else 0 */

/* ---- packed weights --------------------------------------------------------------------------- */

enum pack_format { PACK_F32, PACK_BF16, PACK_Q8_0, PACK_N };

/* W [N, K] in panels of 16 output features (kernels.md section 2). `input` says what rows it takes:
 * F32 files: PACK_F32 + ROW_F32; F16 files: PACK_F32 + ROW_BF16; BF16: PACK_BF16 + ROW_BF16;
 * Q8_0: PACK_Q8_0 + ROW_Q8. */
struct packed {
    enum pack_format format;
    enum row_format input;
    uint32_t n, k;
    uint32_t panels;    /* rounded up to even; padding features weigh 0 */
    size_t panel_bytes; /* a multiple of 64 */
    uint8_t *data;      /* 64-byte aligned; borrowed */
};

/* Size and geometry for a matrix; sets all but data. K must be even (BF16) or a multiple of 32 (Q8_0): false if not. */
bool packed_shape(enum pack_format f, enum row_format input, uint32_t n, uint32_t k,
                  struct packed *out);
size_t packed_bytes(const struct packed *w);

/* Pack features [first, first + count) of `w` from src [count, K] of type `t`. Features may be packed in
 * any order and by several threads when their panels differ. t must suit the format:
 * PACK_F32 from F32, F16 or BF16 (exact upcast); PACK_BF16 from BF16; PACK_Q8_0 from Q8_0 blocks (as they
 * are) or from F32, F16, BF16 (quantised as ggml's reference does, bit for bit).
 * Padding features of the last panels are zeroed by packed_clear_padding(), called once. */
void pack_features(const struct packed *w, uint32_t first, uint32_t count, enum dtype t,
                   const void *src);
void packed_clear_padding(const struct packed *w);

/* One Q8_0 block of a file (34 bytes: f16 scale, 32 int8) from 32 values, as ggml's reference does. */
void q8_0_quantize_block(const float *x, uint8_t *out);

/* ---- the table -------------------------------------------------------------------------------- */

/* All pointers are set. Wide panel ranges are best: rows of bf16 are upcast once per matmul call. */
struct kernels {
    const char *name; /* "ref", "avx2", "avx512" (kernels.def) */

    /* Y[m, feature] = chain over K, for the panels [panel0, panel1) of w and all rows of x.
     * y is f32 [M, ldy], feature index absolute; features >= w->n are not written. x->k == w->k,
     * x->format == w->input. ROW_Q8 values must be in -127..127: -128 would give other bits in other
     * variants (no crash), so who takes rows from a peer checks them. scratch: matmul_scratch_bytes(w, x->m), 64-byte aligned, may be NULL if that is 0. */
    void (*matmul)(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                   float *y, size_t ldy, void *scratch);

    /* One row. q [k] int8 in -127..127, d [k/32] f32 out. A block of 32 with NaN or Inf gets d = NaN, q = 0. */
    void (*quantize_row)(const float *x, uint32_t k, int8_t *q, float *d);
    void (*round_bf16)(const float *x, size_t n, uint16_t *out);

    /* r = 1 / sqrt(Reduce16(x*x) / n + eps); out = (x * r) * w. In place allowed. */
    void (*rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *out); /* n >= 1 */
    /* out[i] = (g[i] / (1 + exp(-g[i]))) * u[i] */
    void (*swiglu)(const float *g, const float *u, size_t n, float *out);
    /* acc[i] = fma(gate, y[i], acc[i]), y f32 or bf16 */
    void (*axpy_f32)(float gate, const float *y, size_t n, float *acc);
    void (*axpy_bf16)(float gate, const uint16_t *y, size_t n, float *acc);
    void (*add)(const float *x, size_t n, float *acc); /* acc += x */

    /* Rotate the first 2*half values of x: pairs (i, i + half); c, s [half] f32.
     * x0' = fma(x0, c, -(x1 * s)); x1' = fma(x1, c, x0 * s) */
    void (*rope_half)(float *x, uint32_t half, const float *c, const float *s);

    /* One key block of 64 tokens, `visible` >= 1 of them from `first` on are seen (others masked).
     * keys: panels of 16 tokens, [4][key_dim][16]; values [64][value_dim]; elements f32 or bf16 (kv_bf16).
     * q [key_dim] f32. Computes s_t = scale * chain fma over key_dim; m = max over visible;
     * p_t = exp(s_t - m); l = sum ascending t; o[value_dim] = chain fma(p_t, v_t) ascending t from +0.
     * Maximum, l and o go over visible tokens only: what memory holds for the masked ones, even NaN, is not
     * looked at. A NaN score is no maximum, and its p is infinite, so that l and o are not finite. */
    void (*attention_block)(const float *q, const void *keys, const void *values, bool kv_bf16,
                            uint32_t key_dim, uint32_t value_dim, uint32_t first, uint32_t visible,
                            float scale, float *m, float *l, float *o);
    /* Merge block (m_b, l_b, o_b) into the running (m, l, o):
     * m' = max(m, m_b); a = exp(m - m'); b = exp(m_b - m'); l = fma(l, a, l_b*b); o = fma(o, a, o_b*b). */
    void (*attention_merge)(float *m, float *l, float *o, float m_b, float l_b, const float *o_b,
                            uint32_t value_dim);
    void (*scale_div)(float *o, uint32_t n, float l); /* o[i] = o[i] / l */

    /* max over n (order-free, NaN is none), then Reduce16 of exp(x - max): logsumexp parts for logprobs. */
    void (*softmax_parts)(const float *x, uint32_t n, float *max, float *sum);

    /* For benchmarks: what this set gives at most. Multiply-adds over registers alone, of int8 into int32 and of f32:
     * the operations done (two per product), for the caller to time. Reading and adding up `bytes` from a 64-byte
     * aligned start (less than the last 256 may be left out): the sum, to be kept so that the loop is. */
    uint64_t (*peak_int8)(uint64_t rounds);
    uint64_t (*peak_f32)(uint64_t rounds);
    uint64_t (*peak_read)(const void *data, size_t bytes);
};

size_t matmul_scratch_bytes(const struct packed *w, uint32_t m);

/* The best table this CPU can run, or the one named by `wanted` ("ref", "avx2", "avx512"; NULL or "" = best).
 * INVALID for an unknown name, UNSUPPORTED when the CPU lacks it (names the missing feature). */
enum err_code kernels_pick(const char *wanted, const struct kernels **out, struct err *why);

/* Every table of this build, the slowest first, whether or not this CPU can run it; NULL past the last. */
const struct kernels *kernels_variant(uint32_t i);

/* One exp for all (kernels.md section 3), the same bits as in the vector kernels. */
float kernels_exp(float x);

/* cos and sin of the f32 angle, computed in double by our own polynomial, rounded to f32; any finite angle. */
void kernels_cos_sin(float angle, float *c, float *s);

/* log for logprobs, in double by our own polynomial (x > 0, normal), within 1 ulp of double. */
double kernels_log(double x);

#endif
