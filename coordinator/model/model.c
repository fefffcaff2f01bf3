/* Opening a model: every matrix but the routed experts is packed into one region, vectors become f32. */
#include "coordinator/model/model.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/experts/matrix.h"
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

static void load_matrix(struct loader *ld, struct packed *w, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(ld->m->file, role, layer, 0);
    if (ld->rc != ERR_OK || t == NULL) return;
    ld->rc = matrix_shape(t, role, ld->m->quantize, w, ld->why);
    if (ld->rc != ERR_OK) return;
    w->data = take(ld, packed_bytes(w));
    if (ld->placing && ld->rc == ERR_OK) matrix_pack(w, ld->m->file, t, ld->workers);
}

static void load_vector(struct loader *ld, const float **out, enum weight_role role, uint32_t layer)
{
    const struct tensor *t = model_file_find(ld->m->file, role, layer, 0);
    if (ld->rc != ERR_OK || t == NULL) return;
    float *v = (float *)(void *)take(ld, t->dims[0] * sizeof(float));
    if (ld->placing && ld->rc == ERR_OK) dtype_to_f32(t->dtype, t->data, (size_t)t->dims[0], v);
    *out = v;
}

static void load_layer(struct loader *ld, uint32_t l)
{
    struct layer *layer = &ld->m->layers[l];
    load_vector(ld, &layer->attn_norm, W_ATTN_NORM, l);
    load_matrix(ld, &layer->q, W_Q, l);
    load_matrix(ld, &layer->k, W_K, l);
    load_matrix(ld, &layer->v, W_V, l);
    load_vector(ld, &layer->q_bias, W_Q_BIAS, l);
    load_vector(ld, &layer->k_bias, W_K_BIAS, l);
    load_vector(ld, &layer->v_bias, W_V_BIAS, l);
    load_vector(ld, &layer->q_norm, W_Q_NORM, l);
    load_vector(ld, &layer->k_norm, W_K_NORM, l);
    load_matrix(ld, &layer->o, W_O, l);
    load_vector(ld, &layer->o_bias, W_O_BIAS, l);
    load_vector(ld, &layer->ffn_norm, W_FFN_NORM, l);
    if (ld->m->hp->is_moe[l]) {
        load_matrix(ld, &layer->router, W_ROUTER, l);
        return;
    }
    load_matrix(ld, &layer->dense_gate, W_DENSE_GATE, l);
    load_matrix(ld, &layer->dense_up, W_DENSE_UP, l);
    load_matrix(ld, &layer->dense_down, W_DENSE_DOWN, l);
}

static enum err_code load_all(struct model *m, bool placing, struct workers *workers, size_t *used,
                              struct err *why)
{
    struct loader ld = {.m = m, .workers = workers, .placing = placing, .why = why};
    for (uint32_t l = 0; l < m->hp->n_layers && ld.rc == ERR_OK; l++)
        load_layer(&ld, l);
    load_vector(&ld, &m->final_norm, W_FINAL_NORM, 0);
    load_matrix(&ld, &m->head, W_HEAD, 0);
    *used = ld.used;
    return ld.rc;
}

/* What routed experts take and give, from the first MoE layer's first expert; experts.h checks that all agree. */
static enum err_code find_expert_formats(struct model *m, struct err *why)
{
    for (uint32_t l = 0; l < m->hp->n_layers; l++) {
        if (!m->hp->is_moe[l]) continue;
        struct packed gate, down;
        enum err_code rc = matrix_shape(model_file_find(m->file, W_EXPERT_GATE, l, 0),
                                        W_EXPERT_GATE, m->quantize, &gate, why);
        if (rc == ERR_OK)
            rc = matrix_shape(model_file_find(m->file, W_EXPERT_DOWN, l, 0), W_EXPERT_DOWN,
                              m->quantize, &down, why);
        if (rc != ERR_OK) return rc;
        m->expert_rows = gate.input;
        m->reply_bf16 = down.input != ROW_F32;
        return ERR_OK;
    }
    return ERR_OK;
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
    m->n_workers = workers_count(w);
    m->embed = model_file_find(file, W_EMBED, 0, 0);
    enum err_code rc = matrix_quantize_parse(quantize, &m->quantize, why);
    if (rc != ERR_OK) goto fail;
    m->kv_bf16 = plan_kv_dtype(file, m->quantize) != DTYPE_F32;
    m->score_scale = (float)(1.0 / sqrt((double)m->hp->head_dim));
    m->layers = mem_zalloc_array(m->hp->n_layers, sizeof *m->layers);
    m->inv_freq = mem_zalloc_array(m->hp->head_dim / 2, sizeof *m->inv_freq);
    if (m->layers == NULL || m->inv_freq == NULL) {
        rc = err_nomem(why, "layers");
        goto fail;
    }
    rope_frequencies(&m->hp->rope, m->hp->head_dim, m->inv_freq, &m->rope_factor);
    rc = find_expert_formats(m, why);
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
    mem_free(m->layers);
    mem_free(m->inv_freq);
    mem_free(m);
}

const struct hparams *model_hparams(const struct model *m)
{
    return m->hp;
}

enum row_format model_expert_rows(const struct model *m)
{
    return m->expert_rows;
}

bool model_reply_bf16(const struct model *m)
{
    return m->reply_bf16;
}

size_t model_resident_bytes(const struct model *m)
{
    return m->region_bytes;
}
