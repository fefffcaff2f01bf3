/* Rotary frequencies against published values; attention over cached blocks against plain double arithmetic. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "coordinator/model/model_internal.h"
#include "coordinator/model/rope.h"

static void expect_near(float got, double want)
{
    cr_expect_leq(fabs((double)got - want), 1e-6 * fabs(want), "%.9g is not %.9g", (double)got,
                  want);
}

Test(rope, plain_and_linear)
{
    float inv[32], factor;
    rope_frequencies(&(struct rope_params){.kind = ROPE_PLAIN, .theta = 10000, .factor = 1}, 64,
                     false, inv, &factor);
    for (int i = 0; i < 32; i++)
        expect_near(inv[i], pow(10000, -2.0 * i / 64));
    cr_expect_eq(factor, 1.0f);
    rope_frequencies(&(struct rope_params){.kind = ROPE_LINEAR, .theta = 10000, .factor = 4}, 64,
                     false, inv, &factor);
    for (int i = 0; i < 32; i++)
        expect_near(inv[i], pow(10000, -2.0 * i / 64) / 4);
}

Test(rope, llama3_has_the_published_values)
{
    float inv[64], factor;
    struct rope_params p = {.kind = ROPE_LLAMA3,
                            .theta = 500000,
                            .factor = 8,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4,
                            .original_ctx = 8192};
    rope_frequencies(&p, 128, false, inv, &factor);
    expect_near(inv[1], 0.814617234);
    expect_near(inv[16], 0.0376060309);
    expect_near(inv[28], 0.00321144599);
    expect_near(inv[29], 0.00216657076);
    expect_near(inv[30], 0.00137189357);
    expect_near(inv[32], 0.000524846161);
    expect_near(inv[34], 0.000178507813);
    expect_near(inv[35], 9.55621235e-05);
    expect_near(inv[63], 3.06892599e-07);
    cr_expect_eq(factor, 1.0f);
}

Test(rope, yarn_has_the_published_values)
{
    float inv[32], factor;
    struct rope_params p = {.kind = ROPE_YARN,
                            .theta = 150000,
                            .factor = 32,
                            .beta_fast = 32,
                            .beta_slow = 1,
                            .original_ctx = 4096,
                            .truncate = false};
    rope_frequencies(&p, 64, false, inv, &factor);
    expect_near(inv[0], 1);
    expect_near(inv[1], 0.689044306);
    expect_near(inv[8], 0.0508132748);
    expect_near(inv[10], 0.0193350011);
    expect_near(inv[12], 0.00679495949);
    expect_near(inv[16], 0.000456483919);
    expect_near(inv[20], 1.81883367e-05);
    expect_near(inv[31], 3.02351143e-07);
    expect_near(factor, 1.3465735902799727);
    p.truncate = true;
    rope_frequencies(&p, 64, false, inv, &factor);
    expect_near(inv[10], 0.0194509675);
    expect_near(inv[16], 0.000580947502);

    p = (struct rope_params){.kind = ROPE_YARN,
                             .theta = 10000,
                             .factor = 40,
                             .beta_fast = 32,
                             .beta_slow = 1,
                             .original_ctx = 4096,
                             .truncate = true,
                             .attention_factor = 1};
    rope_frequencies(&p, 64, false, inv, &factor);
    expect_near(inv[10], 0.0562341325);
    expect_near(inv[12], 0.0268793601);
    expect_near(inv[16], 0.0055);
    expect_near(inv[20], 0.000790569415);
    expect_near(inv[23], 3.33380358e-05);
    cr_expect_eq(factor, 1.0f);

    p = (struct rope_params){.kind = ROPE_YARN,
                             .theta = 50000,
                             .factor = 32,
                             .beta_fast = 1,
                             .beta_slow = 1,
                             .original_ctx = 4096,
                             .truncate = true};
    rope_frequencies(&p, 64, false, inv, &factor); /* both ends of the ramp fall together */
    expect_near(inv[16], 0.00447213595);
    expect_near(inv[20], 3.61404677e-05);
}

Test(rope, angles_carry_the_factor)
{
    float inv[] = {1, 0.01f}, c[2], s[2];
    rope_angles(inv, 2, 1.5f, 7, c, s);
    expect_near(c[0], 1.5 * cos(7));
    expect_near(s[0], 1.5 * sin(7));
    expect_near(c[1], 1.5 * cos((double)(7 * 0.01f)));
}

/* ---- attention ------------------------------------------------------------------------------------ */

enum { HEADS = 4, KV_HEADS = 2, WIDTH = 16, N = 150, ALL = (HEADS + 2 * KV_HEADS) * WIDTH };

/* A model that is nothing but one attention layer. */
struct fixture {
    struct hparams hp;
    struct model m;
    struct layer layer;
    struct kv_store kv;
    struct model_pass p;
    struct model_row rows[N];
    uint32_t blocks[3];
    struct row_tile tiles[N];
    float projected[N][ALL], qkv[N][ALL], attended[N][HEADS * WIDTH], cos[N][WIDTH / 2],
        sin[N][WIDTH / 2];
    float bias[ALL], q_norm[HEADS * WIDTH], k_norm[KV_HEADS * WIDTH];
    struct workers *workers;
};

static float uniform(uint64_t seed, uint64_t i)
{
    return (float)(rng_uniform(seed, i, 0) * 2 - 1);
}

static struct fixture *fixture_open(bool bf16, uint32_t window, enum qk_norm norm, float clip)
{
    struct fixture *f = mem_zalloc(sizeof *f);
    cr_assert(f);
    f->hp = (struct hparams){.n_layers = 1,
                             .n_heads = HEADS,
                             .n_kv_heads = KV_HEADS,
                             .head_dim = WIDTH,
                             .value_dim = WIDTH,
                             .rope_dim = WIDTH,
                             .norm_eps = 1e-6f,
                             .qk_norm = norm,
                             .sliding_window = {window},
                             .clip_qkv = clip};
    cr_assert_eq(kernels_pick(NULL, &f->m.kernels, NULL), ERR_OK);
    f->m.hp = &f->hp;
    f->m.kv_shape = hparams_kv_shape(&f->hp);
    f->m.kv_bf16 = bf16;
    f->m.score_scale = 0.25f;
    f->kv.m = &f->m;
    f->kv.n_blocks = 5;
    f->kv.block_bytes = model_kv_block_bytes(&f->m);
    f->kv.bytes = f->kv.block_bytes * f->kv.n_blocks;
    f->kv.data = mem_map(f->kv.bytes);
    memset(f->kv.data, 0xff, f->kv.bytes); /* NaN wherever nobody wrote */
    cr_assert_eq(workers_open(2, 0, &f->workers, NULL), ERR_OK);
    memcpy(f->blocks, (uint32_t[]){4, 0, 2}, sizeof f->blocks);
    for (uint32_t i = 0; i < N; i++) {
        f->rows[i] = (struct model_row){.position = i, .blocks = f->blocks};
        for (int j = 0; j < ALL; j++)
            f->projected[i][j] = 2 * uniform(i + 1, (uint64_t)j);
        for (int j = 0; j < WIDTH / 2; j++) {
            f->cos[i][j] = cosf((float)i * 0.3f / (float)(j + 1));
            f->sin[i][j] = sinf((float)i * 0.3f / (float)(j + 1));
        }
    }
    for (int j = 0; j < ALL; j++)
        f->bias[j] = uniform(1000, (uint64_t)j);
    for (int j = 0; j < HEADS * WIDTH; j++)
        f->q_norm[j] = 1 + 0.3f * uniform(1001, (uint64_t)j);
    for (int j = 0; j < KV_HEADS * WIDTH; j++)
        f->k_norm[j] = 1 + 0.3f * uniform(1002, (uint64_t)j);
    bool has_norm = norm != QK_NORM_NONE;
    f->layer = (struct layer){.v = {[W_Q_BIAS] = f->bias,
                                    [W_K_BIAS] = f->bias + HEADS * WIDTH,
                                    [W_V_BIAS] = f->bias + (HEADS + KV_HEADS) * WIDTH,
                                    [W_Q_NORM] = has_norm ? f->q_norm : NULL,
                                    [W_K_NORM] = has_norm ? f->k_norm : NULL}};
    memcpy(f->qkv, f->projected, sizeof f->qkv);
    return f;
}

static void fixture_close(struct fixture *f)
{
    workers_close(f->workers);
    mem_unmap(f->kv.data, f->kv.bytes);
    mem_free(f);
}

/* Rows [from, to) as one pass. */
static void run(struct fixture *f, uint32_t from, uint32_t to)
{
    f->p = (struct model_pass){.m = &f->m,
                               .n = to - from,
                               .b = {.rows = f->rows + from,
                                     .q = f->qkv[from],
                                     .attended = {.f32 = f->attended[from]},
                                     .tiles = f->tiles,
                                     .cos = f->cos[from],
                                     .sin = f->sin[from]}};
    pass_cut_tiles(&f->p);
    struct stage st = {.p = &f->p, .kv = &f->kv, .layer = &f->layer};
    for (uint32_t i = 0; i < to - from; i++)
        heads_finish(&st, i);
    attention_run(&st, f->workers);
}

static void plain_norm(double *x, const float *w, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < n; i++)
        x[i] = x[i] / sqrt(sum / n + 1e-6) * (double)w[i];
}

/* q, k, v of a row in double, as the definition says. */
static void plain_qkv(const struct fixture *f, uint32_t row, double *x)
{
    double *k = x + HEADS * WIDTH;
    for (int j = 0; j < ALL; j++)
        x[j] = (double)f->projected[row][j] + (double)f->bias[j];
    if (f->hp.qk_norm == QK_NORM_FULL) {
        plain_norm(x, f->q_norm, HEADS * WIDTH);
        plain_norm(k, f->k_norm, KV_HEADS * WIDTH);
    }
    for (int h = 0; f->hp.qk_norm == QK_NORM_HEAD && h < HEADS; h++)
        plain_norm(x + h * WIDTH, f->q_norm, WIDTH);
    for (int h = 0; f->hp.qk_norm == QK_NORM_HEAD && h < KV_HEADS; h++)
        plain_norm(k + h * WIDTH, f->k_norm, WIDTH);
    double limit = (double)f->hp.clip_qkv;
    for (int j = 0; limit > 0 && j < ALL; j++)
        x[j] = fmin(limit, fmax(-limit, x[j]));
    for (int h = 0; h < HEADS + KV_HEADS; h++)
        for (int i = 0; i < WIDTH / 2; i++) {
            double a = x[h * WIDTH + i], b = x[h * WIDTH + i + WIDTH / 2];
            double c = (double)f->cos[row][i], s = (double)f->sin[row][i];
            x[h * WIDTH + i] = a * c - b * s;
            x[h * WIDTH + i + WIDTH / 2] = b * c + a * s;
        }
}

static void plain_attention(const struct fixture *f, double out[N][HEADS * WIDTH])
{
    static double x[N][ALL];
    for (uint32_t i = 0; i < N; i++)
        plain_qkv(f, i, x[i]);
    for (int i = 0; i < N; i++)
        for (int h = 0; h < HEADS; h++) {
            int g = h / (HEADS / KV_HEADS), first = 0;
            if (f->hp.sliding_window[0] > 0 && i >= (int)f->hp.sliding_window[0])
                first = i - (int)f->hp.sliding_window[0] + 1;
            double p[N], sum = 0;
            for (int t = first; t <= i; t++) {
                double score = 0;
                for (int d = 0; d < WIDTH; d++)
                    score += x[i][h * WIDTH + d] * x[t][(HEADS + g) * WIDTH + d];
                sum += p[t] = exp(score * 0.25);
            }
            for (int d = 0; d < WIDTH; d++) {
                double o = 0;
                for (int t = first; t <= i; t++)
                    o += p[t] * x[t][(HEADS + KV_HEADS + g) * WIDTH + d];
                out[i][h * WIDTH + d] = o / sum;
            }
        }
}

static void check(bool bf16, uint32_t window, enum qk_norm norm, float clip)
{
    static double want[N][HEADS * WIDTH];
    struct fixture *whole = fixture_open(bf16, window, norm, clip),
                   *cut = fixture_open(bf16, window, norm, clip);
    run(whole, 0, N);
    plain_attention(whole, want);
    double worst = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < HEADS * WIDTH; j++)
            worst = fmax(worst, fabs((double)whole->attended[i][j] - want[i][j]));
    /* A cache in bf16 keeps 8 bits of keys and values of size up to 3. */
    cr_expect_leq(worst, bf16 ? 0.05 : 2e-5, "window %u, norm %d, clip %g: worst error %g", window,
                  (int)norm, (double)clip, worst);
    const uint32_t cuts[] = {0, 1, 8, 63, 64, 66, 130, N};
    for (int c = 0; c < 7; c++)
        run(cut, cuts[c], cuts[c + 1]);
    cr_expect_eq(memcmp(whole->attended, cut->attended, sizeof whole->attended), 0,
                 "cutting the rows changed bits");
    fixture_close(whole);
    fixture_close(cut);
}

Test(attention, equals_the_definition_in_f32_and_bf16)
{
    check(false, 0, QK_NORM_NONE, 0);
    check(true, 0, QK_NORM_NONE, 0);
}

Test(attention, sees_a_sliding_window)
{
    const uint32_t windows[] = {1, 16, 63, 64, 65, 100, 149, 150, 4096};
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++)
        check(i % 2 == 1, windows[i], QK_NORM_HEAD, 0);
}

Test(attention, norms_q_and_k_and_clips_after)
{
    check(false, 0, QK_NORM_HEAD, 0);
    check(false, 0, QK_NORM_FULL, 0);
    check(false, 0, QK_NORM_FULL, 0.7f);
    check(false, 0, QK_NORM_NONE, 1.1f);
}
