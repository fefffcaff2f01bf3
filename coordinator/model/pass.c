/* One pass over the layers: the buffers, and the stages between the products. */
#include <assert.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/model/model_internal.h"
#include "coordinator/model/rope.h"

/* ---- buffers ------------------------------------------------------------------------------------ */

static uint8_t *take(uint8_t *base, size_t *used, size_t n, size_t bytes_each)
{
    size_t at = *used;
    *used += (n * bytes_each + 63) / 64 * 64;
    return base == NULL ? NULL : base + at;
}

static float *take_f32(uint8_t *base, size_t *used, size_t n)
{
    return (float *)(void *)take(base, used, n, sizeof(float));
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t kernel_scratch_bytes(const struct model *m, uint32_t rows)
{
    size_t each = product_scratch_bytes(&m->head, rows);
    for (uint32_t l = 0; l < m->hp->n_layers; l++) {
        const struct layer *y = &m->layers[l];
        const struct packed *all[] = {&y->q,      &y->k,          &y->v,        &y->o,
                                      &y->router, &y->dense_gate, &y->dense_up, &y->dense_down};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            if (all[i]->n > 0) each = most(each, product_scratch_bytes(all[i], rows));
    }
    return each;
}

/* A buffer of rows for products that want them rounded or quantised; 32 does not divide every width. */
static uint8_t *take_rows(uint8_t *base, size_t *used, enum row_format f, uint32_t rows, uint32_t k)
{
    if (f == ROW_Q8 && k % 32 != 0) return NULL;
    return take(base, used, rows_bytes(f, rows, k), 1);
}

/* Lay out all buffers over base (NULL: only measure); returns the bytes. */
static size_t lay_out(const struct model *m, uint32_t rows, uint32_t logit_rows, uint8_t *base,
                      struct pass_buffers *b, struct product_scratch *scratch)
{
    const struct hparams *hp = m->hp;
    const size_t n = rows, d = hp->hidden, q = (size_t)hp->n_heads * hp->head_dim;
    const size_t kv = (size_t)hp->n_kv_heads * hp->head_dim;
    const uint32_t products_rows = rows > logit_rows ? rows : logit_rows;
    size_t used = 0;
    b->hidden = take_f32(base, &used, n * d);
    b->norm = take_f32(base, &used, most(n, logit_rows) * d);
    b->qkv = take_f32(base, &used, n * (q + 2 * kv));
    b->attended = take_f32(base, &used, n * q);
    b->projected = take_f32(base, &used, n * d);
    b->cos = take_f32(base, &used, n * (hp->head_dim / 2));
    b->sin = take_f32(base, &used, n * (hp->head_dim / 2));
    b->router = take_f32(base, &used, n * hp->n_experts);
    b->gates = take_f32(base, &used, n * hp->top_k);
    b->experts = (uint16_t *)(void *)take(base, &used, n * hp->top_k, sizeof(uint16_t));
    b->results = take(base, &used, n * hp->top_k * d, m->reply_bf16 ? 2 : 4);
    b->dense_gate = take_f32(base, &used, n * hp->dense_width);
    b->dense_up = take_f32(base, &used, n * hp->dense_width);
    b->logits = take_f32(base, &used, (size_t)logit_rows * hp->vocab);
    b->rows = (struct model_row *)(void *)take(base, &used, n, sizeof(struct model_row));
    b->bad_layer = (int *)(void *)take(base, &used, n, sizeof(int));
    b->logit_row = (uint32_t *)(void *)take(base, &used, logit_rows, sizeof(uint32_t));
    b->norm_bf16 = take_rows(base, &used, ROW_BF16, products_rows, hp->hidden);
    b->norm_q8 = take_rows(base, &used, ROW_Q8, products_rows, hp->hidden);
    b->attended_bf16 = take_rows(base, &used, ROW_BF16, rows, (uint32_t)q);
    b->attended_q8 = take_rows(base, &used, ROW_Q8, rows, (uint32_t)q);
    b->dense_bf16 = take_rows(base, &used, ROW_BF16, rows, hp->dense_width);
    b->dense_q8 = take_rows(base, &used, ROW_Q8, rows, hp->dense_width);
    b->block_out = take_f32(base, &used, (size_t)m->n_workers * (2 * hp->n_heads + hp->head_dim));
    scratch->each = kernel_scratch_bytes(m, products_rows);
    scratch->n_workers = m->n_workers;
    scratch->data = take(base, &used, m->n_workers, scratch->each);
    return used;
}

size_t model_pass_bytes(const struct model *m, uint32_t max_rows, uint32_t max_logit_rows)
{
    struct pass_buffers b;
    struct product_scratch scratch;
    return lay_out(m, max_rows, max_logit_rows, NULL, &b, &scratch);
}

enum err_code model_pass_open(const struct model *m, uint32_t max_rows, uint32_t max_logit_rows,
                              struct model_pass **out, struct err *why)
{
    assert(max_rows >= 1 && max_logit_rows >= 1);
    struct model_pass *p = mem_zalloc(sizeof *p);
    if (p == NULL) return err_nomem(why, "pass");
    p->m = m;
    p->max_rows = max_rows;
    p->max_logit_rows = max_logit_rows;
    size_t bytes = model_pass_bytes(m, max_rows, max_logit_rows);
    p->data = mem_aligned(64, bytes);
    if (p->data == NULL) {
        mem_free(p);
        return err_set(why, ERR_EXHAUSTED, "no memory for a pass of %u rows (%zu bytes)", max_rows,
                       bytes);
    }
    lay_out(m, max_rows, max_logit_rows, p->data, &p->b, &p->scratch);
    *out = p;
    return ERR_OK;
}

void model_pass_close(struct model_pass *p)
{
    if (p == NULL) return;
    mem_free(p->data);
    mem_free(p);
}

/* ---- inputs of products ------------------------------------------------------------------------- */

/* A bit per row format. */
static unsigned wants(const struct packed *w)
{
    return w->n > 0 ? 1u << w->input : 0;
}

/* Views of the same n rows in the three formats. */
struct row_views {
    struct rows of[3]; /* by enum row_format */
};

static struct row_views norm_views(const struct model_pass *p, uint32_t n)
{
    uint32_t k = p->m->hp->hidden;
    return (struct row_views){{[ROW_F32] = rows_at(p->b.norm, ROW_F32, n, k),
                               [ROW_BF16] = rows_at(p->b.norm_bf16, ROW_BF16, n, k),
                               [ROW_Q8] = rows_at(p->b.norm_q8, ROW_Q8, n, k)}};
}

static struct row_views attended_views(const struct model_pass *p)
{
    uint32_t k = p->m->hp->n_heads * p->m->hp->head_dim;
    return (struct row_views){{[ROW_F32] = rows_at(p->b.attended, ROW_F32, p->n, k),
                               [ROW_BF16] = rows_at(p->b.attended_bf16, ROW_BF16, p->n, k),
                               [ROW_Q8] = rows_at(p->b.attended_q8, ROW_Q8, p->n, k)}};
}

static struct row_views dense_views(const struct model_pass *p)
{
    uint32_t k = p->m->hp->dense_width;
    return (struct row_views){{[ROW_F32] = rows_at(p->b.dense_gate, ROW_F32, p->n, k),
                               [ROW_BF16] = rows_at(p->b.dense_bf16, ROW_BF16, p->n, k),
                               [ROW_Q8] = rows_at(p->b.dense_q8, ROW_Q8, p->n, k)}};
}

/* The f32 row is there; make the other formats that are wanted, once for all products that read it. */
static void fill_views(const struct kernels *k, const struct row_views *v, unsigned wanted,
                       uint32_t row)
{
    const float *src = (const float *)v->of[ROW_F32].data + (size_t)row * v->of[ROW_F32].k;
    for (unsigned f = ROW_BF16; f <= ROW_Q8; f++)
        if (wanted & 1u << f) rows_set(k, &v->of[f], row, src);
}

static struct product product(const struct packed *w, const struct row_views *v, float *y,
                              size_t ldy)
{
    return (struct product){.w = w, .x = &v->of[w->input], .y = y, .ldy = ldy};
}

/* ---- stages ------------------------------------------------------------------------------------- */

static bool all_finite(const float *x, size_t n)
{
    uint32_t top = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = f32_bits(x[i]) & 0x7fffffffu;
        top = magnitude > top ? magnitude : top;
    }
    return top < 0x7f800000u;
}

static void mark_bad(struct model_pass *p, uint32_t row, uint32_t layer, const float *x, size_t n)
{
    if (p->b.bad_layer[row] < 0 && !all_finite(x, n)) p->b.bad_layer[row] = (int)layer;
}

void model_begin(struct model_pass *p, const struct model_row *rows, uint32_t n)
{
    const struct model *m = p->m;
    const struct hparams *hp = m->hp;
    assert(n >= 1 && n <= p->max_rows);
    p->n = n;
    p->n_logits = 0;
    const uint32_t half = hp->head_dim / 2;
    const size_t row_bytes = dtype_bytes(m->embed->dtype, hp->hidden);
    for (uint32_t i = 0; i < n; i++) {
        assert(rows[i].token >= 0 && (uint32_t)rows[i].token < hp->vocab);
        p->b.rows[i] = rows[i];
        p->b.bad_layer[i] = -1;
        dtype_to_f32(m->embed->dtype, m->embed->data + (size_t)rows[i].token * row_bytes,
                     hp->hidden, p->b.hidden + (size_t)i * hp->hidden);
        rope_angles(m->inv_freq, half, m->rope_factor, rows[i].position,
                    p->b.cos + (size_t)i * half, p->b.sin + (size_t)i * half);
        if (!rows[i].wants_logits) continue;
        assert(p->n_logits < p->max_logit_rows);
        p->b.logit_row[p->n_logits++] = i;
    }
}

static void attn_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    size_t off = (size_t)row * hp->hidden;
    p->m->kernels->rmsnorm(p->b.hidden + off, st->layer->attn_norm, hp->hidden, hp->norm_eps,
                           p->b.norm + off);
    struct row_views v = norm_views(p, p->n);
    fill_views(p->m->kernels, &v,
               wants(&st->layer->q) | wants(&st->layer->k) | wants(&st->layer->v), row);
}

static void store_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    attention_store_row(ctx, row);
}

static void attended_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct row_views v = attended_views(st->p);
    fill_views(st->p->m->kernels, &v, wants(&st->layer->o), row);
}

/* After the output projection: bias, residual, the norm before the feed-forward part, its inputs. */
static void ffn_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    size_t off = (size_t)row * hp->hidden;
    float *projected = p->b.projected + off;
    for (uint32_t i = 0; st->layer->o_bias != NULL && i < hp->hidden; i++)
        projected[i] += st->layer->o_bias[i];
    p->m->kernels->add(projected, hp->hidden, p->b.hidden + off);
    mark_bad(p, row, st->layer_index, p->b.hidden + off, hp->hidden);
    p->m->kernels->rmsnorm(p->b.hidden + off, st->layer->ffn_norm, hp->hidden, hp->norm_eps,
                           p->b.norm + off);
    unsigned wanted = hp->is_moe[st->layer_index]
                          ? 1u << p->m->expert_rows
                          : wants(&st->layer->dense_gate) | wants(&st->layer->dense_up);
    struct row_views v = norm_views(p, p->n);
    fill_views(p->m->kernels, &v, wanted, row);
}

static void route_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    const float *logits = p->b.router + (size_t)row * hp->n_experts;
    mark_bad(p, row, st->layer_index, logits, hp->n_experts);
    struct router_cfg cfg = {
        .n_experts = hp->n_experts, .top_k = hp->top_k, .renormalize = hp->gates_renormalized};
    router_select(&cfg, logits, p->b.experts + (size_t)row * hp->top_k,
                  p->b.gates + (size_t)row * hp->top_k);
}

static void activate_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    size_t width = p->m->hp->dense_width, off = row * width;
    p->m->kernels->swiglu(p->b.dense_gate + off, p->b.dense_up + off, width, p->b.dense_gate + off);
    struct row_views v = dense_views(p);
    fill_views(p->m->kernels, &v, wants(&st->layer->dense_down), row);
}

static void dense_residual_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    size_t width = p->m->hp->hidden, off = row * width;
    p->m->kernels->add(p->b.projected + off, width, p->b.hidden + off);
    mark_bad(p, row, st->layer_index, p->b.hidden + off, width);
}

static void run_dense(struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    struct row_views in = norm_views(p, p->n), mid = dense_views(p);
    struct product first[] = {
        product(&st->layer->dense_gate, &in, p->b.dense_gate, hp->dense_width),
        product(&st->layer->dense_up, &in, p->b.dense_up, hp->dense_width)};
    products_run(p->m->kernels, first, 2, &p->scratch, w);
    run_rows(w, p->n, hp->dense_width, activate_row, st);
    struct product down = product(&st->layer->dense_down, &mid, p->b.projected, hp->hidden);
    products_run(p->m->kernels, &down, 1, &p->scratch, w);
    run_rows(w, p->n, hp->hidden / 2, dense_residual_row, st);
}

void model_attention(struct model_pass *p, struct kv_store *kv, uint32_t layer, struct workers *w)
{
    const struct model *m = p->m;
    const struct hparams *hp = m->hp;
    assert(layer < hp->n_layers && kv->m == m);
    p->layer = layer;
    struct stage st = {.p = p, .kv = kv, .layer = &m->layers[layer], .layer_index = layer};
    const size_t q = (size_t)hp->n_heads * hp->head_dim,
                 each = (size_t)hp->n_kv_heads * hp->head_dim, all = q + 2 * each;

    run_rows(w, p->n, 2 * (size_t)hp->hidden, attn_norm_row, &st);
    struct row_views in = norm_views(p, p->n);
    struct product qkv[] = {product(&st.layer->q, &in, p->b.qkv, all),
                            product(&st.layer->k, &in, p->b.qkv + q, all),
                            product(&st.layer->v, &in, p->b.qkv + q + each, all)};
    products_run(m->kernels, qkv, 3, &p->scratch, w);
    run_rows(w, p->n, 2 * all, store_row, &st);
    attention_run(&st, w);
    run_rows(w, p->n, q, attended_row, &st);
    struct row_views attended = attended_views(p);
    struct product o = product(&st.layer->o, &attended, p->b.projected, hp->hidden);
    products_run(m->kernels, &o, 1, &p->scratch, w);
    run_rows(w, p->n, 3 * (size_t)hp->hidden, ffn_norm_row, &st);

    if (!hp->is_moe[layer]) {
        run_dense(&st, w);
        return;
    }
    struct row_views norm = norm_views(p, p->n);
    struct product router = product(&st.layer->router, &norm, p->b.router, hp->n_experts);
    products_run(m->kernels, &router, 1, &p->scratch, w);
    run_rows(w, p->n, 8 * (size_t)hp->n_experts, route_row, &st);
    p->expert_rows = norm.of[m->expert_rows];
}

static void combine_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct kernels *k = p->m->kernels;
    const size_t d = p->m->hp->hidden, top_k = p->m->hp->top_k;
    float *acc = p->b.projected + row * d;
    memset(acc, 0, d * sizeof *acc);
    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {
        if (p->m->reply_bf16)
            k->axpy_bf16(p->b.gates[i], (const uint16_t *)(const void *)p->b.results + i * d, d,
                         acc);
        else
            k->axpy_f32(p->b.gates[i], (const float *)(const void *)p->b.results + i * d, d, acc);
    }
    k->add(acc, d, p->b.hidden + row * d);
    mark_bad(p, row, st->layer_index, p->b.hidden + row * d, d);
}

void model_combine(struct model_pass *p, uint32_t layer, struct workers *w)
{
    assert(layer == p->layer && p->m->hp->is_moe[layer]);
    struct stage st = {.p = p, .layer = &p->m->layers[layer], .layer_index = layer};
    run_rows(w, p->n, (size_t)(p->m->hp->top_k + 2) * p->m->hp->hidden / 2, combine_row, &st);
}

static void head_norm_row(void *ctx, uint32_t i, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    size_t from = (size_t)p->b.logit_row[i] * hp->hidden, to = (size_t)i * hp->hidden;
    p->m->kernels->rmsnorm(p->b.hidden + from, p->m->final_norm, hp->hidden, hp->norm_eps,
                           p->b.norm + to);
    struct row_views v = norm_views(p, p->n_logits);
    fill_views(p->m->kernels, &v, wants(&p->m->head), i);
}

void model_head(struct model_pass *p, struct workers *w)
{
    if (p->n_logits == 0) return;
    struct stage st = {.p = p};
    run_rows(w, p->n_logits, 2 * (size_t)p->m->hp->hidden, head_norm_row, &st);
    struct row_views v = norm_views(p, p->n_logits);
    struct product head = product(&p->m->head, &v, p->b.logits, p->m->hp->vocab);
    products_run(p->m->kernels, &head, 1, &p->scratch, w);
}

/* ---- what a pass shows -------------------------------------------------------------------------- */

const uint16_t *model_pass_experts(const struct model_pass *p)
{
    return p->b.experts;
}

const float *model_pass_gates(const struct model_pass *p)
{
    return p->b.gates;
}

const float *model_pass_router(const struct model_pass *p)
{
    return p->b.router;
}

const float *model_pass_hidden(const struct model_pass *p)
{
    return p->b.hidden;
}

const struct rows *model_pass_expert_rows(const struct model_pass *p)
{
    return &p->expert_rows;
}

int model_pass_bad_layer(const struct model_pass *p, uint32_t row)
{
    assert(row < p->n);
    return p->b.bad_layer[row];
}

void *model_pass_results(struct model_pass *p)
{
    return p->b.results;
}

const float *model_pass_logits(const struct model_pass *p, uint32_t i)
{
    assert(i < p->n_logits);
    return p->b.logits + (size_t)i * p->m->hp->vocab;
}
