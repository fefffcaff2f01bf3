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

static size_t most_scratch(const struct layer *l, uint32_t n_heads, uint32_t rows, size_t each)
{
    for (uint32_t r = 0; r < W_N_ROLES; r++)
        if (l->w[r].n > 0) each = most(each, product_scratch_bytes(&l->w[r], rows));
    for (uint32_t h = 0; h < n_heads && l->latent_keys != NULL; h++) {
        each = most(each, product_scratch_bytes(&l->latent_keys[h], rows));
        each = most(each, product_scratch_bytes(&l->latent_values[h], rows));
    }
    return each;
}

static size_t kernel_scratch_bytes(const struct model *m, uint32_t rows)
{
    size_t each = most_scratch(&m->whole, 0, rows, 0);
    for (uint32_t l = 0; l < m->hp->n_layers; l++)
        each = most_scratch(&m->layers[l], m->hp->n_heads, rows, each);
    return each;
}

static struct views take_views(uint8_t *base, size_t *used, uint32_t rows, uint32_t k)
{
    struct views v = {.k = k};
    v.f32 = take_f32(base, used, (size_t)rows * k);
    v.bf16 = take(base, used, rows_bytes(ROW_BF16, rows, k), 1);
    if (k % 32 == 0) v.q8 = take(base, used, rows_bytes(ROW_Q8, rows, k), 1);
    return v;
}

/* Lay out all buffers over base (NULL: only measure); returns the bytes. */
static size_t lay_out(const struct model *m, uint32_t rows, uint32_t logit_rows, uint8_t *base,
                      struct pass_buffers *b, struct product_scratch *scratch)
{
    const struct hparams *hp = m->hp;
    const struct mla_params *mla = &hp->mla;
    const bool latent = mla->kv_rank > 0;
    const size_t n = rows, d = hp->hidden, heads = hp->n_heads;
    const size_t q = heads * hp->head_dim,
                 kv = latent ? 0 : (size_t)hp->n_kv_heads * (hp->head_dim + hp->value_dim);
    const uint32_t products_rows = rows > logit_rows ? rows : logit_rows;
    const uint32_t ffn = hp->dense_width > hp->shared_width ? hp->dense_width : hp->shared_width;
    size_t used = 0;
    b->hidden = take_f32(base, &used, n * d);
    b->norm = take_views(base, &used, products_rows, hp->hidden);
    if (hp->router.weights_input) b->expert = take_views(base, &used, rows, hp->hidden);
    b->q = take_f32(base, &used, n * (q + kv));
    if (latent) {
        const size_t key = m->kv_shape.key_dim;
        if (mla->q_rank > 0) b->q_low = take_views(base, &used, rows, mla->q_rank);
        b->kv_low = take_f32(base, &used, n * key);
        b->q_nope = take(base, &used, heads, latent_nope_bytes(m, rows));
        b->q_latent = take_f32(base, &used, n * heads * key);
        b->mixed = take(base, &used, heads, latent_mixed_bytes(m, rows));
    }
    b->attended = take_views(base, &used, rows, (uint32_t)heads * hp->value_dim);
    b->projected = take_f32(base, &used, n * d);
    b->cos = take_f32(base, &used, n * (hp->rope_dim / 2));
    b->sin = take_f32(base, &used, n * (hp->rope_dim / 2));
    b->router = take_f32(base, &used, n * hp->n_experts);
    b->gates = take_f32(base, &used, n * hp->top_k);
    b->experts = (uint16_t *)(void *)take(base, &used, n * hp->top_k, sizeof(uint16_t));
    b->results = take(base, &used, n * hp->top_k * d, m->reply_bf16 ? 2 : 4);
    b->ffn = take_views(base, &used, rows, ffn);
    b->ffn_up = take_f32(base, &used, n * ffn);
    if (hp->shared_width > 0) b->shared = take_f32(base, &used, n * d);
    if (hp->shared_gated) b->shared_gate = take_f32(base, &used, n);
    b->logits = take_f32(base, &used, (size_t)logit_rows * hp->vocab);
    b->rows = (struct model_row *)(void *)take(base, &used, n, sizeof(struct model_row));
    b->tiles = (struct row_tile *)(void *)take(base, &used, n, sizeof(struct row_tile));
    b->bad_layer = (int *)(void *)take(base, &used, n, sizeof(int));
    b->logit_row = (uint32_t *)(void *)take(base, &used, logit_rows, sizeof(uint32_t));
    scratch->each = kernel_scratch_bytes(m, products_rows);
    scratch->n_workers = m->n_workers;
    scratch->data = take(base, &used, m->n_workers, scratch->each);
    return used;
}

size_t model_pass_bytes(const struct model *m, uint32_t max_rows, uint32_t max_logit_rows)
{
    struct pass_buffers b = {0};
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
    if (m->latent != NULL) p->products = mem_zalloc_array(m->hp->n_heads, sizeof *p->products);
    if (p->data == NULL || (m->latent != NULL && p->products == NULL)) {
        model_pass_close(p);
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
    mem_free(p->products);
    mem_free(p->data);
    mem_free(p);
}

/* ---- inputs of products ------------------------------------------------------------------------- */

unsigned pass_wants(const struct packed *w)
{
    return w->n > 0 ? 1u << w->input : 0;
}

struct rows views_rows(const struct views *v, enum row_format f, uint32_t n)
{
    void *at = f == ROW_F32 ? (void *)v->f32 : f == ROW_BF16 ? v->bf16 : v->q8;
    return rows_at(at, f, n, v->k);
}

/* The f32 row is there; make the other formats that are wanted, once for all products that read it. */
void pass_fill(const struct kernels *k, const struct views *v, uint32_t n, unsigned wanted,
               uint32_t row)
{
    for (unsigned f = ROW_BF16; f <= ROW_Q8; f++) {
        if (!(wanted & 1u << f)) continue;
        struct rows rows = views_rows(v, (enum row_format)f, n);
        rows_set(k, &rows, row, v->f32 + (size_t)row * v->k);
    }
}

struct product pass_product(const struct packed *w, const struct views *v, uint32_t n, float *y,
                            size_t ldy)
{
    return (struct product){.w = w, .x = views_rows(v, w->input, n), .y = y, .ldy = ldy};
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

/* Rows of a sequence that follow each other, TILE_ROWS at a time. */
void pass_cut_tiles(struct model_pass *p)
{
    p->n_tiles = 0;
    p->tile_rows = 1;
    for (uint32_t i = 0; i < p->n; i++) {
        struct row_tile *t = p->n_tiles > 0 ? &p->b.tiles[p->n_tiles - 1] : NULL;
        const struct model_row *r = &p->b.rows[i];
        if (t != NULL && t->n < TILE_ROWS && r[-1].blocks == r->blocks &&
            r[-1].position + 1 == r->position)
            t->n++;
        else
            p->b.tiles[p->n_tiles++] = (struct row_tile){i, 1};
        uint32_t n = p->b.tiles[p->n_tiles - 1].n;
        if (n > p->tile_rows) p->tile_rows = n;
    }
}

void model_begin(struct model_pass *p, const struct model_row *rows, uint32_t n)
{
    const struct model *m = p->m;
    const struct hparams *hp = m->hp;
    assert(n >= 1 && n <= p->max_rows);
    p->n = n;
    p->n_logits = 0;
    const uint32_t half = hp->rope_dim / 2;
    const size_t row_bytes = dtype_bytes(m->embed->dtype, hp->hidden);
    for (uint32_t i = 0; i < n; i++) {
        assert(rows[i].token >= 0 && (uint32_t)rows[i].token < hp->vocab);
        p->b.rows[i] = rows[i];
        p->b.bad_layer[i] = -1;
        float *hidden = p->b.hidden + (size_t)i * hp->hidden;
        dtype_to_f32(m->embed->dtype, m->embed->data + (size_t)rows[i].token * row_bytes,
                     hp->hidden, hidden);
        if (hp->embed_scale != 1.0f) m->kernels->scale(hidden, hp->hidden, hp->embed_scale);
        rope_angles(m->rope[rows[i].beyond].inv_freq, half, m->rope[rows[i].beyond].factor,
                    rows[i].position, p->b.cos + (size_t)i * half, p->b.sin + (size_t)i * half);
        if (!rows[i].wants_logits) continue;
        assert(p->n_logits < p->max_logit_rows);
        p->b.logit_row[p->n_logits++] = i;
    }
    pass_cut_tiles(p);
}

static void norm(const struct model *m, const struct layer *l, enum weight_role weight,
                 enum weight_role bias, const float *x, float *out)
{
    if (m->hp->norm == NORM_LAYER)
        m->kernels->layernorm(x, l->v[weight], l->v[bias], m->hp->hidden, m->hp->norm_eps, out);
    else
        m->kernels->rmsnorm(x, l->v[weight], m->hp->hidden, m->hp->norm_eps, out);
}

static void attn_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct packed *w = st->layer->w;
    size_t off = (size_t)row * p->m->hp->hidden;
    norm(p->m, st->layer, W_ATTN_NORM, W_ATTN_NORM_BIAS, p->b.hidden + off, p->b.norm.f32 + off);
    unsigned wanted =
        pass_wants(&w[W_K]) | pass_wants(&w[W_V]) | pass_wants(&w[W_Q_A]) | pass_wants(&w[W_KV_A]);
    if (w[W_Q_A].n == 0) wanted |= pass_wants(&w[W_Q]);
    pass_fill(p->m->kernels, &p->b.norm, p->n, wanted, row);
}

static void attended_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    pass_fill(st->p->m->kernels, &st->p->b.attended, st->p->n, pass_wants(&st->layer->w[W_O]), row);
}

/* What attention or feed-forward made of a row joins the residual stream. */
static void add_residual(const struct stage *st, uint32_t row, enum weight_role post_norm)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    size_t off = (size_t)row * hp->hidden;
    float *x = p->b.projected + off;
    if (hp->post_norms)
        p->m->kernels->rmsnorm(x, st->layer->v[post_norm], hp->hidden, hp->norm_eps, x);
    if (hp->residual_scale != 1.0f) p->m->kernels->scale(x, hp->hidden, hp->residual_scale);
    p->m->kernels->add(x, hp->hidden, p->b.hidden + off);
    mark_bad(p, row, st->layer_index, p->b.hidden + off, hp->hidden);
}

/* After the output projection: bias, residual, the norm before the feed-forward part, its inputs. */
static void ffn_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct model *m = p->m;
    const struct packed *w = st->layer->w;
    size_t off = (size_t)row * m->hp->hidden;
    if (st->layer->v[W_O_BIAS] != NULL)
        m->kernels->add(st->layer->v[W_O_BIAS], m->hp->hidden, p->b.projected + off);
    add_residual(st, row, W_ATTN_POST_NORM);
    norm(m, st->layer, W_FFN_NORM, W_FFN_NORM_BIAS, p->b.hidden + off, p->b.norm.f32 + off);
    unsigned wanted = pass_wants(&w[W_DENSE_GATE]) | pass_wants(&w[W_DENSE_UP]) |
                      pass_wants(&w[W_SHARED_GATE]) | pass_wants(&w[W_SHARED_UP]);
    if (m->hp->is_moe[st->layer_index] && !m->hp->router.weights_input)
        wanted |= 1u << m->expert_rows[st->layer_index];
    pass_fill(m->kernels, &p->b.norm, p->n, wanted, row);
}

static void route_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct model *m = p->m;
    const struct hparams *hp = m->hp;
    float *logits = p->b.router + (size_t)row * hp->n_experts;
    float *gates = p->b.gates + (size_t)row * hp->top_k;
    if (st->layer->v[W_ROUTER_BIAS] != NULL)
        m->kernels->add(st->layer->v[W_ROUTER_BIAS], hp->n_experts, logits);
    mark_bad(p, row, st->layer_index, logits, hp->n_experts);
    router_select(&hp->router, hp->n_experts, hp->top_k, logits, st->layer->v[W_ROUTER_CORRECTION],
                  p->b.experts + (size_t)row * hp->top_k, gates);
    if (!hp->router.weights_input) return;
    size_t off = (size_t)row * hp->hidden;
    memcpy(p->b.expert.f32 + off, p->b.norm.f32 + off, hp->hidden * sizeof(float));
    m->kernels->scale(p->b.expert.f32 + off, hp->hidden, gates[0]);
    pass_fill(m->kernels, &p->b.expert, p->n, 1u << m->expert_rows[st->layer_index], row);
}

/* ---- dense layers and shared experts ------------------------------------------------------------- */

/* A feed-forward part that every row takes: its weights, and where its result goes. */
struct ffn_stage {
    const struct stage *st;
    const struct packed *gate, *up, *down;
    float *out; /* [n, D] */
};

static void activate_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct ffn_stage *f = ctx;
    struct model_pass *p = f->st->p;
    const size_t width = f->gate->n, off = row * width;
    ffn_activate(p->m->kernels, p->m->hp, p->b.ffn.f32 + off, p->b.ffn_up + off, width);
    struct views mid = p->b.ffn;
    mid.k = (uint32_t)width;
    pass_fill(p->m->kernels, &mid, p->n, pass_wants(f->down), row);
}

static void run_ffn(struct ffn_stage *f, struct workers *w)
{
    struct model_pass *p = f->st->p;
    const uint32_t width = f->gate->n, d = p->m->hp->hidden;
    struct product first[] = {pass_product(f->gate, &p->b.norm, p->n, p->b.ffn.f32, width),
                              pass_product(f->up, &p->b.norm, p->n, p->b.ffn_up, width)};
    products_run(p->m->kernels, first, f->up->n > 0 ? 2 : 1, &p->scratch, w);
    run_rows(w, p->n, width, activate_row, f);
    struct views mid = p->b.ffn;
    mid.k = width;
    struct product down = pass_product(f->down, &mid, p->n, f->out, d);
    products_run(p->m->kernels, &down, 1, &p->scratch, w);
}

static void dense_residual_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    add_residual(ctx, row, W_FFN_POST_NORM);
}

static void run_dense(struct stage *st, struct workers *w)
{
    const struct packed *all = st->layer->w;
    struct ffn_stage f = {st, &all[W_DENSE_GATE], &all[W_DENSE_UP], &all[W_DENSE_DOWN],
                          st->p->b.projected};
    run_ffn(&f, w);
    run_rows(w, st->p->n, st->p->m->hp->hidden / 2, dense_residual_row, st);
}

void model_shared(struct model_pass *p, uint32_t layer, struct workers *w)
{
    const struct model *m = p->m;
    assert(layer == p->layer && m->hp->is_moe[layer]);
    if (p->shared_done) return;
    p->shared_done = true;
    if (m->hp->shared_width == 0) return;
    struct stage st = {.p = p, .layer = &m->layers[layer], .layer_index = layer};
    const struct packed *all = st.layer->w;
    struct ffn_stage f = {&st, &all[W_SHARED_GATE], &all[W_SHARED_UP], &all[W_SHARED_DOWN],
                          p->b.shared};
    run_ffn(&f, w);
    if (!m->hp->shared_gated) return;
    struct product gate =
        pass_product(&all[W_SHARED_SWITCH], &p->b.norm, p->n, p->b.shared_gate, 1);
    products_run(m->kernels, &gate, 1, &p->scratch, w);
}

/* ---- a layer ------------------------------------------------------------------------------------ */

/* An encoder's expert takes the first expert_capacity tokens of a prompt that choose it; the others get nothing from it. The
 * prompt is a group of its own, whatever else is in the pass. */
static void drop_overflow(struct model_pass *p)
{
    const struct hparams *hp = p->m->hp;
    uint32_t taken[LIMIT_EXPERTS];
    for (uint32_t row = 0; row < p->n; row++) {
        if (row == 0 || p->b.rows[row].blocks != p->b.rows[row - 1].blocks)
            memset(taken, 0, hp->n_experts * sizeof *taken);
        if (++taken[p->b.experts[row]] > hp->expert_capacity) p->b.gates[row] = 0.0f;
    }
}

static void route(struct stage *st, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    struct product router =
        pass_product(&st->layer->w[W_ROUTER], &p->b.norm, p->n, p->b.router, hp->n_experts);
    products_run(p->m->kernels, &router, 1, &p->scratch, w);
    run_rows(w, p->n, 8 * (size_t)hp->n_experts, route_row, st);
    if (hp->expert_capacity > 0 && st->layer_index < hp->n_encoder_layers) drop_overflow(p);
    p->expert_rows = views_rows(hp->router.weights_input ? &p->b.expert : &p->b.norm,
                                p->m->expert_rows[st->layer_index], p->n);
}

/* From what was attended to `projected`. */
static void project_output(struct stage *st, enum weight_role role, struct workers *w)
{
    struct model_pass *p = st->p;
    const struct hparams *hp = p->m->hp;
    run_rows(w, p->n, (size_t)hp->n_heads * hp->value_dim, attended_row, st);
    struct product o =
        pass_product(&st->layer->w[role], &p->b.attended, p->n, p->b.projected, hp->hidden);
    products_run(p->m->kernels, &o, 1, &p->scratch, w);
}

static void cross_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    size_t off = (size_t)row * p->m->hp->hidden;
    add_residual(st, row, W_ATTN_POST_NORM);
    norm(p->m, st->layer, W_CROSS_NORM, W_N_ROLES, p->b.hidden + off, p->b.norm.f32 + off);
    pass_fill(p->m->kernels, &p->b.norm, p->n, pass_wants(&st->layer->w[W_CROSS_Q]), row);
}

/* A decoder's attention to the encoder's tokens, after that to its own. */
static void run_cross(struct stage *st, struct workers *w)
{
    run_rows(w, st->p->n, 3 * (size_t)st->p->m->hp->hidden, cross_norm_row, st);
    st->cross = true;
    heads_project_cross(st, w);
    attention_run(st, w);
    project_output(st, W_CROSS_O, w);
    st->cross = false;
}

void model_attention(struct model_pass *p, struct kv_store *kv, uint32_t layer, struct workers *w)
{
    const struct model *m = p->m;
    const struct hparams *hp = m->hp;
    assert(layer < hp->n_layers && kv->m == m);
    p->layer = layer;
    p->shared_done = false;
    struct stage st = {.p = p, .kv = kv, .layer = &m->layers[layer], .layer_index = layer};
    const bool latent = hp->mla.kv_rank > 0;

    run_rows(w, p->n, 2 * (size_t)hp->hidden, attn_norm_row, &st);
    if (latent)
        latent_project(&st, w);
    else
        heads_project(&st, w);
    attention_run(&st, w);
    if (latent) latent_expand(&st, w);
    project_output(&st, W_O, w);
    if (hp->n_encoder_layers > 0 && layer >= hp->n_encoder_layers) run_cross(&st, w);
    run_rows(w, p->n, 3 * (size_t)hp->hidden, ffn_norm_row, &st);
    if (hp->is_moe[layer])
        route(&st, w);
    else
        run_dense(&st, w);
}

static void encoder_norm_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    size_t off = (size_t)row * p->m->hp->hidden;
    norm(p->m, st->layer, W_ENCODER_NORM, W_N_ROLES, p->b.hidden + off, p->b.norm.f32 + off);
    unsigned wanted = 0;
    for (uint32_t l = p->m->hp->n_encoder_layers; l < p->m->hp->n_layers; l++)
        wanted |=
            pass_wants(&p->m->layers[l].w[W_CROSS_K]) | pass_wants(&p->m->layers[l].w[W_CROSS_V]);
    pass_fill(p->m->kernels, &p->b.norm, p->n, wanted, row);
}

void model_encoder_end(struct model_pass *p, struct kv_store *kv, struct workers *w)
{
    const struct model *m = p->m;
    struct stage st = {.p = p, .kv = kv, .layer = &m->whole};
    run_rows(w, p->n, 2 * (size_t)m->hp->hidden, encoder_norm_row, &st);
    for (uint32_t l = m->hp->n_encoder_layers; l < m->hp->n_layers; l++) {
        st.layer = &m->layers[l];
        st.layer_index = l;
        heads_store_cross(&st, w);
    }
}

static void combine_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    struct model_pass *p = st->p;
    const struct kernels *k = p->m->kernels;
    const struct hparams *hp = p->m->hp;
    const size_t d = hp->hidden, top_k = hp->top_k;
    float *acc = p->b.projected + row * d;
    memset(acc, 0, d * sizeof *acc);
    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {
        float gate = hp->router.weights_input ? 1.0f : p->b.gates[i];
        if (p->m->reply_bf16)
            k->axpy_bf16(gate, (const uint16_t *)(const void *)p->b.results + i * d, d, acc);
        else
            k->axpy_f32(gate, (const float *)(const void *)p->b.results + i * d, d, acc);
    }
    if (hp->shared_width > 0) {
        float *shared = p->b.shared + row * d;
        if (hp->shared_gated) k->scale(shared, d, kernels_sigmoid(p->b.shared_gate[row]));
        k->add(shared, d, acc);
    }
    add_residual(st, row, W_FFN_POST_NORM);
}

void model_combine(struct model_pass *p, uint32_t layer, struct workers *w)
{
    assert(layer == p->layer && p->m->hp->is_moe[layer]);
    model_shared(p, layer, w);
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
    norm(p->m, st->layer, W_FINAL_NORM, W_FINAL_NORM_BIAS, p->b.hidden + from, p->b.norm.f32 + to);
    pass_fill(p->m->kernels, &p->b.norm, p->n_logits, pass_wants(&st->layer->w[W_HEAD]), i);
}

static void logits_row(void *ctx, uint32_t i, unsigned worker)
{
    (void)worker;
    const struct stage *st = ctx;
    const struct kernels *k = st->p->m->kernels;
    const struct hparams *hp = st->p->m->hp;
    float *logits = st->p->b.logits + (size_t)i * hp->vocab;
    if (st->layer->v[W_HEAD_BIAS] != NULL) k->add(st->layer->v[W_HEAD_BIAS], hp->vocab, logits);
    if (hp->logit_scale != 1.0f) k->scale(logits, hp->vocab, hp->logit_scale);
    if (hp->logit_divisor != 1.0f) k->scale_div(logits, hp->vocab, hp->logit_divisor);
}

void model_head(struct model_pass *p, struct workers *w)
{
    if (p->n_logits == 0) return;
    const struct hparams *hp = p->m->hp;
    struct stage st = {.p = p, .layer = &p->m->whole};
    run_rows(w, p->n_logits, 2 * (size_t)hp->hidden, head_norm_row, &st);
    struct product head =
        pass_product(&st.layer->w[W_HEAD], &p->b.norm, p->n_logits, p->b.logits, hp->vocab);
    products_run(p->m->kernels, &head, 1, &p->scratch, w);
    if (hp->head_bias || hp->logit_scale != 1.0f || hp->logit_divisor != 1.0f)
        run_rows(w, p->n_logits, hp->vocab, logits_row, &st);
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
