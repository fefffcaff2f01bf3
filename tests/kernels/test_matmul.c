/* Products: every variant gives the reference's bits, whatever the shape, the split and the company. */
// links: kernels
// extra: openblas
#include "common/tensor/blocks.h"
#include "common/tensor/quantize.h"
#include "kernel_test.h"

#include <cblas.h>
#include <pthread.h>

struct format {
    enum dtype pack;
    enum row_format input;
    enum dtype file;
};

static const struct format formats[] = {
    {DTYPE_F32, ROW_F32, DTYPE_F32},          {DTYPE_F32, ROW_BF16, DTYPE_F16},
    {DTYPE_F16, ROW_BF16, DTYPE_F16},         {DTYPE_BF16, ROW_BF16, DTYPE_BF16},
    {DTYPE_F8_E4M3, ROW_BF16, DTYPE_F8_E4M3}, {DTYPE_F16, ROW_F32, DTYPE_F16},
    {DTYPE_BF16, ROW_F32, DTYPE_BF16},        {DTYPE_F8_E4M3, ROW_F32, DTYPE_F8_E4M3},
    {DTYPE_Q8_0, ROW_Q8, DTYPE_Q8_0},         {DTYPE_Q8_0, ROW_Q8, DTYPE_BF16},
    {DTYPE_Q4_0, ROW_Q8, DTYPE_Q4_0},         {DTYPE_Q4_0, ROW_Q8, DTYPE_F8_E4M3},
    {DTYPE_Q4_1, ROW_Q8, DTYPE_Q4_1},         {DTYPE_Q5_0, ROW_Q8, DTYPE_Q5_0},
    {DTYPE_Q5_1, ROW_Q8, DTYPE_Q5_1},         {DTYPE_Q4_K, ROW_Q8, DTYPE_Q4_K},
    {DTYPE_Q5_K, ROW_Q8, DTYPE_Q5_K},         {DTYPE_Q6_K, ROW_Q8, DTYPE_Q6_K},
    {DTYPE_MXFP4, ROW_Q8, DTYPE_MXFP4},       {DTYPE_MXFP4, ROW_Q8, DTYPE_F16},
};
#define N_FORMATS (sizeof formats / sizeof formats[0])

/* Where the f16 scales of a block stand. */
static void scale_places(enum dtype t, int place[2])
{
    place[0] = t == DTYPE_Q6_K ? 208 : 0;
    place[1] = codes_have_min(t) ? 2 : -1;
}

/* SANE: no number far from the others. AWKWARD: among them blocks full of the least and the largest code, scales of zero, subnormal
 * and huge ones. BAD: infinite scales and NaN too. */
enum weights { SANE, AWKWARD, BAD };

static void make_block(enum dtype t, enum weights kind, uint8_t *at, uint64_t *state)
{
    static const uint16_t halves[] = {0, 0x0001, 0x83ff, 0x7bff, 0x8000, 0x7c00, 0xfe00};
    static const uint8_t fills[] = {0x00, 0xff, 0x80, 0x7f};
    const size_t bytes = dtype_block_bytes(t);
    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)next_u32(state);
    const uint32_t pick = kind == SANE ? 99 : next_u32(state) % 16;
    if (pick < 8) memset(at, fills[pick % 4], bytes);
    if (t == DTYPE_MXFP4) {
        static const uint8_t extremes[] = {0, 1, 2, 252, 127, 253, 254, 255};
        at[0] = (uint8_t)(120 + next_u32(state) % 8);
        uint32_t which = next_u32(state) % 16;
        if (kind != SANE && which < (kind == BAD ? 8 : 5)) at[0] = extremes[which];
        return;
    }
    int place[2];
    scale_places(t, place);
    for (int i = 0; i < 2 && place[i] >= 0; i++) {
        uint16_t h = f16_from_f32(next_unit(state) * 0.25f);
        uint32_t which = next_u32(state) % 24;
        if (kind != SANE && which < (kind == BAD ? 7 : 5)) h = halves[which];
        memcpy(at + place[i], &h, 2);
    }
}

static void make_numbers(enum dtype t, size_t k, enum weights kind, uint8_t *at, uint64_t *state)
{
    for (size_t i = 0; i < k; i++) {
        float x;
        fill(&x, 1,
             kind == BAD                            ? NUM_BAD
             : kind == SANE || next_u32(state) % 16 ? NUM_PLAIN
                                                    : NUM_TINY,
             state);
        uint16_t h = t == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);
        if (t == DTYPE_F32) memcpy(at + 4 * i, &x, 4);
        if (t == DTYPE_BF16 || t == DTYPE_F16) memcpy(at + 2 * i, &h, 2);
        if (t == DTYPE_F8_E4M3) { /* all codes; NaN only if bad */
            at[i] = (uint8_t)next_u32(state);
            if ((at[i] & 0x7f) == 0x7f && (kind != BAD || next_u32(state) % 8)) at[i] ^= 1;
        }
    }
    for (size_t b = 0; t == DTYPE_F8_E4M3 && b < (k + 127) / 128; b++) {
        static const float extremes[] = {0.0f, 0x1p-149f, -0x1.8p-130f, 0x1p125f, INFINITY, NAN};
        float scale = next_unit(state) * 0x1p-8f;
        uint32_t which = next_u32(state) % 16;
        if (kind != SANE && which < (kind == BAD ? 6 : 4)) scale = extremes[which];
        memcpy(at + k + 4 * b, &scale, 4);
    }
}

/* A matrix in a file's format. */
static uint8_t *make_file(enum dtype t, uint32_t n, uint32_t k, enum weights kind, uint64_t *state)
{
    const size_t row = dtype_bytes(t, k);
    uint8_t *file = mem_alloc(n * row);
    cr_assert_not_null(file);
    for (uint32_t j = 0; j < n; j++) {
        if (dtype_block(t) == 1) make_numbers(t, k, kind, file + j * row, state);
        for (uint32_t b = 0; dtype_block(t) > 1 && b < k / dtype_block(t); b++)
            make_block(t, kind, file + j * row + b * dtype_block_bytes(t), state);
    }
    return file;
}

static struct packed make_packed(const struct format *f, uint32_t n, uint32_t k,
                                 const uint8_t *file)
{
    struct packed w;
    cr_assert(packed_shape(f->pack, f->input, n, k, &w));
    w.data = mem_aligned(64, packed_bytes(&w));
    cr_assert_not_null(w.data);
    memset(w.data, 0xEE, packed_bytes(&w));
    packed_clear_padding(&w);
    /* in two pieces that split a panel, the later one first */
    uint32_t cut = n * 2 / 3;
    pack_features(&w, cut, n - cut, f->file, file + cut * dtype_bytes(f->file, k));
    pack_features(&w, 0, cut, f->file, file);
    return w;
}

static struct rows make_rows(enum row_format f, uint32_t m, uint32_t k, bool bad, uint64_t *state)
{
    struct rows x = {.format = f, .m = m, .k = k};
    x.data = mem_aligned(64, (m * row_data_bytes(f, k) + 64) / 64 * 64);
    float *row = mem_alloc(k * sizeof *row);
    cr_assert(x.data && row);
    if (f == ROW_Q8) x.scales = mem_alloc(m * row_scale_bytes(f, k));
    for (uint32_t i = 0; i < m; i++) {
        fill(row, k,
             bad          ? NUM_BAD
             : i % 5 == 3 ? NUM_TINY
             : i % 5 == 4 ? NUM_ZEROS
                          : NUM_PLAIN,
             state);
        if (i % 7 == 1) row[k / 2] = 100.0f; /* the others become small quants */
        uint8_t *data = (uint8_t *)x.data + i * row_data_bytes(f, k);
        if (f == ROW_F32) memcpy(data, row, k * sizeof *row);
        if (f == ROW_BF16) reference()->round_bf16(row, k, (uint16_t *)(void *)data);
        if (f == ROW_Q8) reference()->quantize_row(row, k, (int8_t *)data, x.scales + i * (k / 32));
        if (f == ROW_Q8 && i % 7 == 2) memset(data, i % 2 ? 127 : -127, k);
    }
    mem_free(row);
    return x;
}

static struct rows view(const struct rows *x, uint32_t first, uint32_t m)
{
    struct rows v = *x;
    v.m = m;
    v.data = (uint8_t *)x->data + first * row_data_bytes(x->format, x->k);
    if (x->scales) v.scales = x->scales + first * (x->k / 32);
    return v;
}

static void run(const struct kernels *v, const struct packed *w, uint32_t p0, uint32_t p1,
                const struct rows *x, float *y, size_t ldy)
{
    size_t n = matmul_scratch_bytes(w, x->m);
    void *scratch = n > 0 ? mem_aligned(64, n) : NULL;
    v->matmul(w, p0, p1, x, y, ldy, scratch);
    mem_free(scratch);
}

static void close_all(struct packed *w, struct rows *x, uint8_t *file)
{
    mem_free(w->data);
    mem_free(x->data);
    mem_free(x->scales);
    mem_free(file);
}

/* Every variant on one shape, beside the reference; ldy is wider than N, and what lies between stays. */
static void compare(const struct format *f, uint32_t n, uint32_t k, uint32_t m, bool bad,
                    uint64_t *state)
{
    uint8_t *file = make_file(f->file, n, k, bad ? BAD : AWKWARD, state);
    struct packed w = make_packed(f, n, k, file);
    struct rows x = make_rows(f->input, m, k, bad, state);
    const size_t ldy = n + 3;
    struct guarded want = guarded_open((m - 1) * ldy * 4 + n * 4, 4);
    run(reference(), &w, 0, w.panels, &x, (float *)(void *)want.data, ldy);
    EACH_VARIANT(v)
    {
        struct guarded got = guarded_open(want.n, 4);
        run(v, &w, 0, w.panels, &x, (float *)(void *)got.data, ldy);
        for (uint32_t i = 0; i < m; i++) {
            const float *a = (float *)(void *)got.data + i * ldy,
                        *b = (float *)(void *)want.data + i * ldy;
            for (uint32_t j = 0; j < n; j++)
                cr_assert(same_f32(a[j], b[j]),
                          "%s %s in %s panels, N %u K %u M %u: [%u, %u] %a, reference %a", v->name,
                          dtype_name(f->file), dtype_name(f->pack), n, k, m, i, j, (double)a[j],
                          (double)b[j]);
            if (i + 1 < m) cr_assert_arr_eq(a + n, b + n, 12, "written between rows");
        }
        guarded_close(&got);
    }
    guarded_close(&want);
    close_all(&w, &x, file);
}

static bool takes_k(const struct format *f, uint32_t k)
{
    return panel_bytes(f->pack, k) > 0 && k % dtype_block(f->file) == 0;
}

Test(matmul, every_variant_gives_the_bits_of_the_reference)
{
    static const uint32_t ns[] = {1, 15, 16, 17, 31, 33, 48, 144},
                          ks[] = {32, 64, 96, 256, 768, 2304, 2336};
    static const uint32_t ms[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 20, 65};
    uint64_t state = 1;
    for (uint32_t f = 0; f < N_FORMATS; f++)
        for (uint32_t n = 0; n < 8; n++)
            for (uint32_t k = 0; k < 7; k++)
                for (uint32_t m = 0; m < 14; m++) {
                    if (!takes_k(&formats[f], ks[k])) continue;
                    if ((uint64_t)ns[n] * ks[k] * ms[m] > 300000 && (n + m + k + f) % 9 != 0)
                        continue;
                    compare(&formats[f], ns[n], ks[k], ms[m], (n + m) % 5 == 0, &state);
                }
}

/* Where a product of many rows is cut along K: sums go on from what was stored. */
Test(matmul, long_rows_too)
{
    uint64_t state = 5;
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        compare(&formats[f], 33, 4352, 33, false, &state);
        compare(&formats[f], 17, 4096, 3, false, &state);
    }
}

Test(matmul, float_panels_take_any_k)
{
    uint64_t state = 2;
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        if (formats[f].input == ROW_Q8) continue;
        for (uint32_t k = 1; k < 70; k++)
            if (takes_k(&formats[f], k))
                compare(&formats[f], 21, k, 1 + k % 9 + k % 5 / 4 * 30, k % 7 == 0, &state);
        for (uint32_t k = 120; k < 136; k++)
            if (takes_k(&formats[f], k)) compare(&formats[f], 33, k, 2 + k % 9, false, &state);
    }
}

/* F8's weights are rounded once, to what dtype_to_f32 gives: the same bits as from F32 panels of these. */
Test(matmul, f8_is_the_product_with_the_decoded_weights)
{
    const uint32_t n = 40, k = 300, m = 3;
    const struct format f8 = {DTYPE_F8_E4M3, ROW_BF16, DTYPE_F8_E4M3},
                        f32 = {DTYPE_F32, ROW_BF16, DTYPE_F8_E4M3};
    uint64_t state = 6;
    for (int kind = SANE; kind <= BAD; kind++) {
        uint8_t *file = make_file(DTYPE_F8_E4M3, n, k, (enum weights)kind, &state);
        struct packed a = make_packed(&f8, n, k, file), b = make_packed(&f32, n, k, file);
        struct rows x = make_rows(ROW_BF16, m, k, false, &state);
        float *got = mem_alloc(m * n * 4), *want = mem_alloc(m * n * 4);
        run(reference(), &a, 0, a.panels, &x, got, n);
        run(reference(), &b, 0, b.panels, &x, want, n);
        expect_same(got, want, m * n, "f8");
        mem_free(got);
        mem_free(want);
        mem_free(b.data);
        close_all(&a, &x, file);
    }
}

struct pack_range {
    const struct packed *w;
    const struct format *f;
    const uint8_t *file;
    uint32_t first, count;
};

static void *pack_in_thread(void *arg)
{
    const struct pack_range *r = arg;
    pack_features(r->w, r->first, r->count, r->f->file,
                  r->file + r->first * dtype_bytes(r->f->file, r->w->k));
    return NULL;
}

/* Four threads with panels of their own, between guard bytes: the bytes of one call for all. */
Test(matmul, panels_packed_by_threads_are_the_same)
{
    const uint32_t n = 4 * 32 + 5, k = 512;
    uint64_t state = 7;
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        uint8_t *file = make_file(formats[f].file, n, k, AWKWARD, &state);
        struct packed w = make_packed(&formats[f], n, k, file), by_threads = w;
        struct guarded data = guarded_open(packed_bytes(&w), 0);
        by_threads.data = data.data;
        packed_clear_padding(&by_threads);
        pthread_t threads[5];
        struct pack_range ranges[5];
        for (uint32_t i = 0; i < 5; i++) {
            ranges[i] = (struct pack_range){&by_threads, &formats[f], file, 32 * i, i < 4 ? 32 : 5};
            cr_assert_eq(pthread_create(&threads[i], NULL, pack_in_thread, &ranges[i]), 0);
        }
        for (uint32_t i = 0; i < 5; i++)
            pthread_join(threads[i], NULL);
        cr_expect(memcmp(data.data, w.data, packed_bytes(&w)) == 0, "%s in %s panels",
                  dtype_name(formats[f].file), dtype_name(formats[f].pack));
        guarded_close(&data);
        mem_free(w.data);
        mem_free(file);
    }
}

/* Every weight of every panel, read off by rows with a single 1 (block formats: 127, over 1/127): what the file decodes to. */
Test(matmul, panels_lose_nothing)
{
    const uint32_t n = 17, k = 256;
    uint64_t state = 8;
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        if (formats[f].pack != formats[f].file) continue;
        uint8_t *file = make_file(formats[f].file, n, k, SANE, &state);
        struct packed w = make_packed(&formats[f], n, k, file);
        struct rows x = make_rows(formats[f].input, 1, k, false, &state);
        float *decoded = mem_alloc(k * 4), y[17];
        for (uint32_t i = 0; i < k; i++) {
            memset(x.data, 0, row_data_bytes(x.format, k));
            if (x.format == ROW_Q8) {
                ((int8_t *)x.data)[i] = 1;
                for (uint32_t b = 0; b < k / 32; b++)
                    x.scales[b] = 1.0f;
            }
            if (x.format == ROW_BF16) ((uint16_t *)x.data)[i] = 0x3f80;
            if (x.format == ROW_F32) ((float *)x.data)[i] = 1.0f;
            run(reference(), &w, 0, w.panels, &x, y, n);
            for (uint32_t j = 0; j < n; j++) {
                dtype_to_f32(formats[f].file, file + j * dtype_bytes(formats[f].file, k), k,
                             decoded);
                cr_assert_eq(y[j], decoded[i], "%s [%u, %u]: %a, decoded %a",
                             dtype_name(formats[f].file), j, i, (double)y[j], (double)decoded[i]);
            }
        }
        mem_free(decoded);
        close_all(&w, &x, file);
    }
}

Test(matmul, a_row_does_not_know_its_company_and_an_output_not_its_split)
{
    const uint32_t n = 100, k = 512, m = 23;
    uint64_t state = 3;
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        uint8_t *file = make_file(formats[f].file, n, k, AWKWARD, &state);
        struct packed w = make_packed(&formats[f], n, k, file);
        struct rows x = make_rows(formats[f].input, m, k, false, &state);
        for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
            const struct kernels *v = runnable(kernels_variant(i));
            if (v == NULL) continue;
            float *whole = mem_zalloc(m * n * 4), *part = mem_zalloc(m * n * 4);
            run(v, &w, 0, w.panels, &x, whole, n);
            for (uint32_t row = 0; row < m; row++) {
                struct rows one = view(&x, row, 1);
                run(v, &w, 0, w.panels, &one, part + row * n, n);
            }
            expect_same(part, whole, m * n, "rows alone");
            for (uint32_t step = 1; step <= 5; step += 2) {
                memset(part, 0, m * n * 4);
                for (uint32_t p = 0; p < w.panels; p += step) {
                    uint32_t end = p + step < w.panels ? p + step : w.panels;
                    struct rows head = view(&x, 0, 2 * step),
                                tail = view(&x, 2 * step, m - 2 * step);
                    run(v, &w, p, end, &tail, part + 2 * step * n, n);
                    run(v, &w, p, end, &head, part, n);
                }
                expect_same(part, whole, m * n, "split panels and rows");
            }
            mem_free(whole);
            mem_free(part);
        }
        close_all(&w, &x, file);
    }
}

Test(matmul, float_chains_are_fused_and_ascend)
{
    /* (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 if fused, 0 if the square is rounded first; in the other order of K
     * the small term is lost in the sum. */
    float weight[2] = {-1.0f, 1.0f + 0x1p-12f}, row[2] = {1.0f + 0x1p-11f, 1.0f + 0x1p-12f};
    struct packed w;
    cr_assert(packed_shape(DTYPE_F32, ROW_F32, 1, 2, &w));
    w.data = mem_aligned(64, packed_bytes(&w));
    packed_clear_padding(&w);
    pack_features(&w, 0, 1, DTYPE_F32, weight);
    struct rows x = {.format = ROW_F32, .m = 1, .k = 2, .data = row};
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        float y = 7;
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        v->matmul(&w, 0, 2, &x, &y, 1, NULL);
        cr_expect_eq(y, 0x1p-24f, "%s: %a", v->name, (double)y);
    }
    mem_free(w.data);
}

Test(matmul, q8_block_scales_are_rounded_once_and_fused)
{
    /* Two blocks; expected values spelled out from the definition. */
    uint8_t file[68];
    int8_t q[64];
    float d[2] = {0x1.234566p-5f, 0x1.fedcbap-6f};
    int32_t dot[2] = {0, 0};
    uint16_t scale[2] = {0x2e66, 0xad55};
    for (int b = 0; b < 2; b++) {
        memcpy(file + 34 * b, &scale[b], 2);
        for (int i = 0; i < 32; i++) {
            int8_t weight = (int8_t)(i % 3 == 0 ? -128 : 5 * i - 70);
            file[34 * b + 2 + i] = (uint8_t)weight;
            q[32 * b + i] = (int8_t)(b ? 127 - 9 * i / 2 : -127 + 3 * i);
            dot[b] += weight * q[32 * b + i];
        }
    }
    float want = 0.0f;
    for (int b = 0; b < 2; b++) {
        volatile float product = f16_to_f32(scale[b]) * d[b];
        want = fmaf((float)dot[b], product, want);
    }
    struct packed w;
    cr_assert(packed_shape(DTYPE_Q8_0, ROW_Q8, 1, 64, &w));
    w.data = mem_aligned(64, packed_bytes(&w));
    packed_clear_padding(&w);
    pack_features(&w, 0, 1, DTYPE_Q8_0, file);
    struct rows x = {.format = ROW_Q8, .m = 1, .k = 64, .data = q, .scales = d};
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        float y = 7;
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        run(v, &w, 0, 2, &x, &y, 1);
        cr_expect(same_f32(y, want), "%s: %a, by hand %a", v->name, (double)y, (double)want);
    }
    mem_free(w.data);
}

/* Against what the files and rows decode to, by another library: relative to the sum of |products|. */
Test(matmul, agrees_with_openblas_on_decoded_values)
{
    const uint32_t n = 70, k = 1024, m = 9;
    uint64_t state = 4;
    openblas_set_num_threads(1);
    for (uint32_t f = 0; f < N_FORMATS; f++) {
        uint8_t *file = make_file(formats[f].file, n, k, SANE, &state);
        struct packed w = make_packed(&formats[f], n, k, file);
        struct rows x = make_rows(formats[f].input, m, k, false, &state);
        float *a = mem_alloc(m * k * 4), *b = mem_alloc(n * k * 4), *y = mem_alloc(m * n * 4),
              *want = mem_alloc(m * n * 4);
        float *mass = mem_alloc(m * n * 4);
        uint8_t *made = mem_alloc(dtype_bytes(formats[f].pack, k));
        for (uint32_t j = 0; j < n; j++) {
            dtype_to_f32(formats[f].file, file + j * dtype_bytes(formats[f].file, k), k, b + j * k);
            if (formats[f].pack == formats[f].file) continue;
            dtype_from_f32(formats[f].pack, b + j * k, k, made);
            dtype_to_f32(formats[f].pack, made, k, b + j * k);
        }
        mem_free(made);
        for (uint32_t i = 0; i < m * k; i++)
            a[i] = x.format == ROW_F32    ? ((float *)x.data)[i]
                   : x.format == ROW_BF16 ? bf16_to_f32(((uint16_t *)x.data)[i])
                                          : (float)((int8_t *)x.data)[i] * x.scales[i / 32];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, k, b, k, 0, want, n);
        for (uint32_t i = 0; i < m * k; i++)
            a[i] = fabsf(a[i]);
        for (uint32_t i = 0; i < n * k; i++)
            b[i] = fabsf(b[i]);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, k, b, k, 0, mass, n);
        /* Weights with a minimum are the difference of two products that may be much larger. */
        const float tolerance = codes_have_min(formats[f].pack) ? 2e-5f : 2e-6f;
        const struct kernels *best;
        cr_assert_eq(kernels_pick(NULL, &best, NULL), ERR_OK);
        run(best, &w, 0, w.panels, &x, y, n);
        for (uint32_t i = 0; i < m * n; i++)
            cr_assert(fabsf(y[i] - want[i]) <= tolerance * mass[i] + 1e-37f,
                      "%s [%u] %g, OpenBLAS %g", dtype_name(formats[f].pack), i, (double)y[i],
                      (double)want[i]);
        mem_free(a);
        mem_free(b);
        mem_free(y);
        mem_free(want);
        mem_free(mass);
        close_all(&w, &x, file);
    }
}

Test(matmul, shapes_that_do_not_fit_are_refused)
{
    struct packed w;
    cr_expect_not(packed_shape(DTYPE_Q8_0, ROW_Q8, 4, 48, &w));
    cr_expect_not(packed_shape(DTYPE_BF16, ROW_BF16, 4, 33, &w));
    cr_expect_not(packed_shape(DTYPE_F16, ROW_BF16, 4, 33, &w));
    cr_expect_not(packed_shape(DTYPE_Q4_K, ROW_Q8, 4, 96, &w));
    cr_expect_not(packed_shape(DTYPE_Q2_K, ROW_Q8, 4, 256, &w));
    cr_expect_not(packed_shape(DTYPE_Q8_0, ROW_F32, 4, 64, &w));
    cr_expect_not(packed_shape(DTYPE_F32, ROW_F32, 0, 64, &w));
    cr_expect_not(packed_shape(DTYPE_F32, ROW_F32, UINT32_MAX - 64, UINT32_MAX, &w));
    cr_expect(packed_shape(DTYPE_Q8_0, ROW_Q8, 17, 64, &w));
    cr_expect_eq(w.panels, 2);
    cr_expect_eq(w.panel_bytes, 2 * 512 + 64);
    cr_expect(packed_shape(DTYPE_Q8_0, ROW_Q8, 33, 96, &w));
    cr_expect_eq(w.panels, 4);
    cr_expect_eq(w.panel_bytes, 3 * 512 + 128);
}

Test(matmul, an_unknown_variant_is_refused_by_name)
{
    const struct kernels *k;
    struct err why;
    cr_expect_eq(kernels_pick("sse9", &k, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "sse9") && strstr(why.text, "ref"));
    cr_expect_eq(kernels_pick("ref", &k, &why), ERR_OK);
    cr_expect_str_eq(k->name, "ref");
}
