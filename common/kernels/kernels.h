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
#include "common/tensor/panel.h"

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

/* W [N, K] in panels of 16 output features (pack.c). `format` is a native type, `input` the rows it takes:
 * F32, F16, BF16 and F8_E4M3 take ROW_F32 or ROW_BF16, block formats ROW_Q8. */
struct packed {
    enum dtype format;
    enum row_format input;
    uint32_t n, k;
    uint32_t panels;    /* an even number; padding features weigh 0 */
    size_t panel_bytes; /* a multiple of 64 */
    uint8_t *data;      /* 64-byte aligned; borrowed */
};

/* Size and geometry for a matrix; sets all but data. false: such panels do not take such rows, or K is not a multiple of what
 * they need (panel.h), or the size overflows. */
bool packed_shape(enum dtype format, enum row_format input, uint32_t n, uint32_t k,
                  struct packed *out);
size_t packed_bytes(const struct packed *w);

/* Pack features [first, first + count) of `w` from src, `count` rows of type t as files have them (dtype_bytes(t, K) each; no
 * alignment). Features may be packed in any order and by several threads when their panels differ. Rows of the
 * panels' own type are packed without loss; others go through f32 into the types that can be made of it (quantize.h), each
 * by its one rule: F32 from any type is exact, Q8_0, Q4_0 and MXFP4 get the bytes of ggml's quantizers.
 * Padding features of the last panels are zeroed by packed_clear_padding(), called once. */
void pack_features(const struct packed *w, uint32_t first, uint32_t count, enum dtype t,
                   const void *src);
void packed_clear_padding(const struct packed *w);

/* ---- attention -------------------------------------------------------------------------------- */

#define ATTENTION_TOKENS 64u /* of a block of the cache */

/* What all rows of a call share. */
struct attention_shape {
    bool kv_bf16; /* elements of keys and values: bf16 or f32 */
    uint32_t key_dim, value_dim;
    float scale;    /* a score is scale * (q . key) */
    float soft_cap; /* then soft_cap * tanh(score / soft_cap); 0: no cap */
};

/* One query: the softmax over the blocks that it has met so far, and what it sees of the next one. */
struct attention_row {
    const float *q; /* [key_dim] */
    float *
        o; /* [value_dim] sums so far, not divided; neither read nor written before its first block */
    const float
        *bias;  /* [64] added to the scores of the block's tokens, after the cap; NULL: none */
    float m, l; /* maximum and sum so far; l = 0: no block yet */
    uint32_t first,
        visible; /* tokens [first, first + visible) of the block; visible 0: the row is left alone */
};

/* Before a row's first block. */
static inline void attention_row_start(struct attention_row *r, const float *q, float *o)
{
    *r = (struct attention_row){.q = q, .o = o};
}

/* The same with a sink, a logit that counts in the softmax and has no value: a block of its own, ahead of all. It is
 * neither scaled nor capped. */
static inline void attention_row_start_sink(struct attention_row *r, const float *q, float *o,
                                            uint32_t value_dim, float sink)
{
    *r = (struct attention_row){.q = q, .o = o, .m = sink, .l = 1.0f};
    for (uint32_t i = 0; i < value_dim; i++)
        o[i] = 0.0f;
}

/* The row sees positions [from, to) of its sequence: its part of the block whose first token has position `base`. */
static inline void attention_row_see(struct attention_row *r, uint32_t base, uint32_t from,
                                     uint32_t to)
{
    const uint32_t first = from > base ? from - base : 0;
    uint32_t end = to > base ? to - base : 0;
    if (end > ATTENTION_TOKENS) end = ATTENTION_TOKENS;
    r->first = first;
    r->visible = end > first ? end - first : 0;
}

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
    /* mean = Reduce16(x) / n (plain additions); d = x - mean; r = 1 / sqrt(Reduce16(d*d) / n + eps);
     * out = ((d * r) * w) + b, each step rounded, nothing fused but d*d into its sum. b may be NULL: no addition.
     * In place allowed. n >= 1. */
    void (*layernorm)(const float *x, const float *w, const float *b, uint32_t n, float eps,
                      float *out);

    /* Activations (kernels_activate picks one). In place allowed, over g or u. NaN in gives NaN out.
     *   swiglu          out = (g / (1 + exp(-g))) * u
     *   swiglu_clamped  g = min(g, limit); u = clamp(u, -limit, limit); out = (g / (1 + exp(-(1.702 * g)))) * (u + 1)
     *   geglu_tanh      out = (g / (1 + exp(-(g * fma(g*g, 0x1.2444f2p-4, 0x1.988454p+0))))) * u
     *                   which is gelu_tanh(g) * u, as (1 + tanh z) / 2 = 1 / (1 + exp(-2z)); the constants are
     *                   2 sqrt(2/pi) * 0.044715 and 2 sqrt(2/pi). So small results keep their digits.
     *   relu            out = max(g, 0), +0 for -0 */
    void (*swiglu)(const float *g, const float *u, size_t n, float *out);
    void (*swiglu_clamped)(const float *g, const float *u, size_t n, float limit, float *out);
    void (*geglu_tanh)(const float *g, const float *u, size_t n, float *out);
    void (*relu)(const float *g, size_t n, float *out);

    /* acc[i] = fma(gate, y[i], acc[i]), y f32 or bf16 */
    void (*axpy_f32)(float gate, const float *y, size_t n, float *acc);
    void (*axpy_bf16)(float gate, const uint16_t *y, size_t n, float *acc);
    void (*add)(const float *x, size_t n, float *acc); /* acc += x; biases too */
    void (*scale)(float *x, size_t n, float factor);   /* x *= factor */
    void (*soft_cap)(float *x, size_t n, float cap);   /* x = cap * tanh(x / cap), true division */

    /* Rotate the first 2*half values of x: pairs (i, i + half); c, s [half] f32.
     * x0' = fma(x0, c, -(x1 * s)); x1' = fma(x1, c, x0 * s) */
    void (*rope_half)(float *x, uint32_t half, const float *c, const float *s);

    /* The same for pairs (2i, 2i + 1). */
    void (*rope_pairs)(float *x, uint32_t half, const float *c, const float *s);

    /* One block of the cache met by n rows: query heads that share a kv head, and rows of a prompt one position after the
     * other, the heads of a position side by side. From 8 rows on keys and values are read once for all of them; 16 to 32
     * are best. Each row's bits are those of the row alone, whatever the others are or see. So, for a tile of rows:
     *   attention_row_start for each; then for each block, from the first that any of them sees to the last:
     *   attention_row_see for each, attention_block; at last scale_div(o, value_dim, l) for each.
     * keys: panels of 16 tokens, [4][key_dim][16]; values [64][value_dim], or NULL: a token's value is the first
     * value_dim (<= key_dim) numbers of its key (MLA), the bits are those of the same numbers stored apart.
     * For each row, over the tokens t that it sees:
     *   s_t = scale * chain fma over key_dim ascending from +0; soft cap; + bias
     *   m_b = max s_t; p_t = exp(s_t - m_b); l_b = sum ascending t; o_b = chain fma(p_t, v_t) ascending t from +0
     * A row without a block yet (l = 0) takes (m_b, l_b, o_b) as they are; else
     *   m' = max(m, m_b); a = exp(m - m'); b = exp(m_b - m'); l = fma(l, a, l_b*b); o = fma(o, a, o_b*b).
     * What memory holds for tokens a row does not see, even NaN, does not matter. A NaN score is no maximum, and its p is
     * infinite, so that l and o are not finite. Rows' o must not overlap. */
    void (*attention_block)(const struct attention_shape *shape, struct attention_row *rows,
                            uint32_t n, const void *keys, const void *values);
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

/* What an expert or a dense layer does between its products. */
enum activation {
    ACTIVATION_SWIGLU,
    ACTIVATION_SWIGLU_CLAMPED, /* limit */
    ACTIVATION_GEGLU_TANH,
    ACTIVATION_RELU, /* of g; there is no u, it may be NULL */
};

static inline void kernels_activate(const struct kernels *k, enum activation a, float limit,
                                    const float *g, const float *u, size_t n, float *out)
{
    switch (a) {
    case ACTIVATION_SWIGLU:
        k->swiglu(g, u, n, out);
        break;
    case ACTIVATION_SWIGLU_CLAMPED:
        k->swiglu_clamped(g, u, n, limit, out);
        break;
    case ACTIVATION_GEGLU_TANH:
        k->geglu_tanh(g, u, n, out);
        break;
    case ACTIVATION_RELU:
        k->relu(g, n, out);
        break;
    }
}

/* One exp for all (kernels.md section 3), the same bits as in the vector kernels. */
float kernels_exp(float x);

/* tanh by that exp (README), the same bits as in the vector kernels; NaN stays NaN. */
float kernels_tanh(float x);

/* 1 / (1 + exp(-x)); NaN stays NaN. */
float kernels_sigmoid(float x);

/* cos and sin of the f32 angle, computed in double by our own polynomial, rounded to f32; any finite angle. */
void kernels_cos_sin(float angle, float *c, float *s);

/* log for logprobs, in double by our own polynomial (x > 0, normal), within 1 ulp of double. */
double kernels_log(double x);

#endif
