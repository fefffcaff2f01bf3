/* Opening a model: every matrix but the routed experts is packed into one region, vectors become f32. */
#include "coordinator/model/model.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/experts/matrix.h"
#include "common/modelfile/weights.h"
#include "coordinator/model/model_internal.h"
#include "coordinator/model/rope.h"

/* The loader runs twice: first it only measures, then it places and packs. */
struct loader {
    struct model *m;
    struct workers *workers;
    bool placing;
    size_t used;
    struct err *why;
    enum err_code rc;
};

static uint8_t *take(struct loader *ld, uint64_t bytes)
{
    size_t at = ld->used;
    if (bytes > SIZE_MAX - 63 || !size_add(ld->used, (size_t)(bytes + 63) / 64 * 64, &ld->used)) {
        ld->rc = err_set(ld->why, ERR_EXHAUSTED, "the weights exceed the address space");
        return NULL;
    }
    return ld->placing ? ld->m->region + at : NULL;
}

static void pack(struct loader *ld, struct packed *w, const struct tensor *t, uint64_t first_row)
{
    if (ld->rc != ERR_OK) return;
    w->data = take(ld, packed_bytes(w));
    if (ld->placing && ld->rc == ERR_OK)
        ld->rc = matrix_pack(w, ld->m->file, t, first_row, ld->workers, ld->why);
}

static void load_matrix(struct loader *ld, struct packed *w, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(ld->m->file, role, layer, 0);
    if (ld->rc != ERR_OK || t == NULL) return;
    struct tensor one_row = *t; /* a vector that is used as a matrix */
    if (t->n_dims == 1) {
        one_row.n_dims = 2;
        one_row.dims[0] = 1;
        one_row.dims[1] = t->dims[0];
        one_row.row_stride = t->bytes;
    }
    ld->rc = matrix_shape(&one_row, role, ld->m->quantize, w, ld->why);
    pack(ld, w, &one_row, 0);
}

static void load_vector(struct loader *ld, const float **out, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(ld->m->file, role, layer, 0);
    if (ld->rc != ERR_OK || t == NULL) return;
    float *v = (float *)(void *)take(ld, tensor_n_elements(t) * sizeof(float));
    if (ld->placing && ld->rc == ERR_OK) tensor_vector_f32(t, v);
    *out = v;
}

/* Keys of one head from W_KV_B: its rows first_row.. are [nope, kv_rank], wanted is [kv_rank, nope]. `w` was shaped. */
static void pack_transposed(struct loader *ld, struct packed *w, const struct tensor *t,
                            uint64_t first_row)
{
    if (ld->rc != ERR_OK) return;
    w->data = take(ld, packed_bytes(w));
    if (!ld->placing || ld->rc != ERR_OK) return;
    const uint32_t rank = w->n, nope = w->k;
    const size_t row_bytes = dtype_bytes(t->dtype, rank);
    float *rows = mem_alloc(((size_t)rank * nope + rank) * sizeof *rows + row_bytes);
    if (rows == NULL) {
        ld->rc = err_nomem(ld->why, "keys of latent attention");
        return;
    }
    float *row = rows + (size_t)rank * nope;
    for (uint32_t k = 0; k < nope; k++) {
        dtype_to_f32(t->dtype, tensor_row(t, first_row + k, row + rank), rank, row);
        for (uint32_t n = 0; n < rank; n++)
            rows[(size_t)n * nope + k] = row[n];
    }
    matrix_pack_f32(w, rows);
    mem_free(rows);
}

/* W_KV_B has, for each head, nope rows for keys and then value_dim rows for values; W_K_B and W_V_B have them apart, the
 * former transposed already. */
static void load_latent(struct loader *ld, uint32_t l)
{
    const struct model *m = ld->m;
    const struct hparams *hp = m->hp;
    const struct mla_params *mla = &hp->mla;
    const struct tensor *both = model_file_find(m->file, W_KV_B, l, 0);
    const struct tensor *keys = both != NULL ? both : model_file_find(m->file, W_K_B, l, 0);
    const struct tensor *values = both != NULL ? both : model_file_find(m->file, W_V_B, l, 0);
    const enum dtype key_dtype = plan_latent_key_dtype(m->file, keys, m->quantize);
    const enum dtype value_dtype = plan_dtype(W_V_B, values, m->quantize);
    for (uint32_t h = 0; h < hp->n_heads && ld->rc == ERR_OK; h++) {
        struct packed *k = &ld->m->layers[l].latent_keys[h];
        struct packed *v = &ld->m->layers[l].latent_values[h];
        const uint64_t first = h * (uint64_t)(mla->nope + hp->value_dim);
        ld->rc = matrix_shape_as(keys, W_K_B, key_dtype, mla->kv_rank, mla->nope, k, ld->why);
        if (both != NULL)
            pack_transposed(ld, k, keys, first);
        else
            pack(ld, k, keys, (uint64_t)h * mla->kv_rank);
        if (ld->rc == ERR_OK)
            ld->rc = matrix_shape_as(values, W_V_B, value_dtype, hp->value_dim, mla->kv_rank, v,
                                     ld->why);
        pack(ld, v, values, both != NULL ? first + mla->nope : (uint64_t)h * hp->value_dim);
    }
}

static void load_roles(struct loader *ld, enum weight_scope scope, uint32_t l, struct layer *to)
{
    for (uint32_t r = 0; r < W_N_ROLES && ld->rc == ERR_OK; r++) {
        enum weight_role role = (enum weight_role)r;
        if (weight_scope(role) != scope || role == W_EMBED || role == W_KV_B || role == W_K_B ||
            role == W_V_B)
            continue;
        if (weight_class(role) == CLASS_VECTOR)
            load_vector(ld, &to->v[role], role, l);
        else
            load_matrix(ld, &to->w[role], role, l);
    }
}

static enum err_code load_all(struct model *m, bool placing, struct workers *workers, size_t *used,
                              struct err *why)
{
    struct loader ld = {.m = m, .workers = workers, .placing = placing, .why = why};
    for (uint32_t l = 0; l < m->hp->n_layers && ld.rc == ERR_OK; l++) {
        load_roles(&ld, SCOPE_LAYER, l, &m->layers[l]);
        if (m->latent != NULL) load_latent(&ld, l);
    }
    load_roles(&ld, SCOPE_MODEL, 0, &m->whole);
    *used = ld.used;
    return ld.rc;
}

/* What routed experts take, from a layer's first expert that is here; experts.h checks that all agree. */
static enum err_code find_expert_formats(struct model *m, struct err *why)
{
    for (uint32_t l = 0; l < m->hp->n_layers; l++) {
        const struct tensor *t = NULL;
        for (uint32_t e = 0; m->hp->is_moe[l] && t == NULL && e < m->hp->n_experts; e++)
            t = model_file_find(m->file, W_EXPERT_GATE, l, e);
        struct packed gate;
        if (t == NULL) continue;
        enum err_code rc = matrix_shape(t, W_EXPERT_GATE, m->quantize, &gate, why);
        if (rc != ERR_OK) return rc;
        m->expert_rows[l] = gate.input;
    }
    m->reply_bf16 = !plan_reply_f32(m->file, m->quantize);
    return ERR_OK;
}

static enum err_code make_tables(struct model *m, struct err *why)
{
    const struct hparams *hp = m->hp;
    m->layers = mem_zalloc_array(hp->n_layers, sizeof *m->layers);
    m->expert_rows = mem_zalloc_array(hp->n_layers, sizeof *m->expert_rows);
    m->ones = mem_zalloc_array(hp->head_dim, sizeof *m->ones);
    for (uint32_t i = 0; i < 2; i++)
        m->rope[i].inv_freq = mem_zalloc_array(hp->rope_dim / 2, sizeof(float));
    if (hp->relative_bias.buckets > 0)
        m->relative_bias = mem_zalloc_array(2 * (size_t)hp->n_heads *
                                                (2 * (size_t)hp->relative_bias.max_distance + 1),
                                            sizeof *m->relative_bias);
    if (hp->mla.kv_rank > 0)
        m->latent = mem_zalloc_array((size_t)hp->n_layers * 2 * hp->n_heads, sizeof *m->latent);
    if (m->layers == NULL || m->expert_rows == NULL || m->ones == NULL ||
        m->rope[0].inv_freq == NULL || m->rope[1].inv_freq == NULL ||
        (hp->mla.kv_rank > 0 && m->latent == NULL) ||
        (hp->relative_bias.buckets > 0 && m->relative_bias == NULL))
        return err_nomem(why, "layers");
    for (uint32_t l = 0; m->latent != NULL && l < hp->n_layers; l++) {
        m->layers[l].latent_keys = m->latent + (size_t)l * 2 * hp->n_heads;
        m->layers[l].latent_values = m->layers[l].latent_keys + hp->n_heads;
    }
    for (uint32_t i = 0; i < hp->head_dim; i++)
        m->ones[i] = 1.0f;
    for (uint32_t i = 0; i < 2; i++)
        rope_frequencies(&hp->rope, hp->rope_dim, i == 1, m->rope[i].inv_freq, &m->rope[i].factor);
    double scale = hp->score_scale > 0 ? hp->score_scale : 1.0 / sqrt((double)hp->head_dim);
    if (hp->mla.kv_rank > 0) scale *= rope_score_factor(&hp->rope);
    m->score_scale = (float)scale;
    return ERR_OK;
}

/* The bucket of a distance (key minus query): half of the buckets, or, with `both` ways, a quarter for each, are for
 * single distances, the others for ever wider ranges of them. In f32, as the official code has it. */
static uint32_t relative_bucket(const struct relative_bias *r, int64_t distance, bool both)
{
    uint32_t n = both ? r->buckets / 2 : r->buckets, base = both && distance > 0 ? n : 0;
    uint64_t far = distance < 0 ? (uint64_t)-distance : both ? (uint64_t)distance : 0;
    uint32_t exact = n / 2;
    if (far < exact) return base + (uint32_t)far;
    float steps = (float)kernels_log((double)((float)far / (float)exact)) /
                  (float)kernels_log((double)r->max_distance / exact) * (float)(n - exact);
    uint32_t more = exact + (uint32_t)steps;
    return base + (more < n ? more : n - 1);
}

/* What the first layer of each stack holds, by head and distance from -max_distance to max_distance. */
static void fill_relative_bias(struct model *m)
{
    const struct hparams *hp = m->hp;
    const int64_t most = hp->relative_bias.max_distance;
    for (uint32_t stack = 0; stack < 2 && m->relative_bias != NULL; stack++) {
        const bool encodes = stack == 0 && hp->n_encoder_layers > 0;
        const float *learned = m->layers[encodes ? 0 : hp->n_encoder_layers].v[W_RELATIVE_BIAS];
        for (int64_t d = -most; d <= most; d++)
            for (uint32_t h = 0; h < hp->n_heads; h++)
                m->relative_bias[((size_t)stack * hp->n_heads + h) * (size_t)(2 * most + 1) +
                                 (size_t)(d + most)] =
                    learned[(size_t)relative_bucket(&hp->relative_bias, d, encodes) * hp->n_heads +
                            h];
    }
}

enum err_code model_open(const struct model_file *file, const char *quantize,
                         const struct kernels *k, struct workers *w, struct model **out,
                         struct err *why)
{
    struct model *m = mem_zalloc(sizeof *m);
    if (m == NULL) return err_nomem(why, "model");
    m->file = file;
    m->kernels = k;
    m->hp = model_file_hparams(file);
    m->kv_shape = hparams_kv_shape(m->hp);
    m->n_workers = workers_count(w);
    m->embed = model_file_find(file, W_EMBED, 0, 0);
    enum err_code rc = matrix_quantize_parse(quantize, &m->quantize, why);
    if (rc != ERR_OK) goto fail;
    m->kv_bf16 = plan_kv_dtype(file, m->quantize) != DTYPE_F32;
    rc = make_tables(m, why);
    if (rc == ERR_OK) rc = find_expert_formats(m, why);
    if (rc != ERR_OK) goto fail;

    size_t bytes;
    rc = load_all(m, false, w, &bytes, why);
    if (rc != ERR_OK) goto fail;
    m->region = mem_map(bytes);
    if (m->region == NULL) {
        rc = err_set(why, ERR_EXHAUSTED, "no memory for the coordinator's weights (%zu bytes)",
                     bytes);
        goto fail;
    }
    m->region_bytes = bytes;
    rc = load_all(m, true, w, &bytes, why);
    if (rc != ERR_OK) goto fail;
    fill_relative_bias(m);
    *out = m;
    return ERR_OK;
fail:
    model_close(m);
    return err_wrap(why, rc, "open model %s", model_file_dir(file));
}

void model_close(struct model *m)
{
    if (m == NULL) return;
    mem_unmap(m->region, m->region_bytes);
    mem_free(m->latent);
    mem_free(m->relative_bias);
    mem_free(m->layers);
    mem_free(m->expert_rows);
    mem_free(m->ones);
    for (uint32_t i = 0; i < 2; i++)
        mem_free(m->rope[i].inv_freq);
    mem_free(m);
}

const struct hparams *model_hparams(const struct model *m)
{
    return m->hp;
}

enum row_format model_expert_rows(const struct model *m, uint32_t layer)
{
    assert(layer < m->hp->n_layers && m->hp->is_moe[layer]);
    return m->expert_rows[layer];
}

bool model_reply_bf16(const struct model *m)
{
    return m->reply_bf16;
}

size_t model_resident_bytes(const struct model *m)
{
    return m->region_bytes;
}
