#include "common/experts/matrix.h"

#include <assert.h>

/* Panels per packing task: enough work to be worth a task, few enough that the leader can pump between them. */
#define PACK_TASK_BYTES (256u << 10)

enum err_code matrix_quantize_parse(const char *quantize, enum quantize *out, struct err *why)
{
    if (quantize == NULL) quantize = quantize_name(QUANTIZE_NONE);
    if (quantize_find(quantize, out)) return ERR_OK;
    return err_set(why, ERR_INVALID, "quantize '%.32s' is unknown (%s, %s are known)", quantize,
                   quantize_name(QUANTIZE_NONE), quantize_name(QUANTIZE_Q8_0));
}

/* The rows that a matrix of native type t takes, whatever its panels are. */
static enum row_format input_of(enum dtype t)
{
    switch (t) {
    case DTYPE_F32:
        return ROW_F32;
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_F8_E4M3:
        return ROW_BF16;
    default:
        return ROW_Q8;
    }
}

enum err_code matrix_shape(const struct tensor *t, enum weight_role role, enum quantize quantize,
                           struct packed *out, struct err *why)
{
    assert(t->n_dims == 2 && t->dims[0] <= UINT32_MAX && t->dims[1] <= UINT32_MAX);
    uint32_t n = (uint32_t)t->dims[0], k = (uint32_t)t->dims[1];
    const enum dtype held = role == W_ROUTER ? DTYPE_F32 : plan_dtype(role, t, quantize);
    if (held >= DTYPE_N_NATIVE || !packed_shape(panel_dtype(held, k), input_of(held), n, k, out))
        return err_set(why, ERR_UNSUPPORTED, "tensor '%s': %s of shape [%u, %u] cannot be packed",
                       t->name, dtype_name(t->dtype), n, k);
    return ERR_OK;
}

struct pack_job {
    const struct packed *w;
    const struct tensor *t;
    size_t row_bytes;
    uint32_t features_each;
};

static void pack_task(void *ctx, uint32_t task, unsigned worker)
{
    (void)worker;
    const struct pack_job *job = ctx;
    uint32_t first = task * job->features_each;
    uint32_t left = job->w->n - first;
    uint32_t count = left < job->features_each ? left : job->features_each;
    pack_features(job->w, first, count, job->t->dtype,
                  job->t->data + (size_t)first * job->row_bytes);
}

void matrix_pack(const struct packed *w, const struct model_file *file, const struct tensor *t,
                 struct workers *workers)
{
    struct pack_job job = {.w = w, .t = t, .row_bytes = dtype_bytes(t->dtype, w->k)};
    size_t panel_source = job.row_bytes * PANEL;
    uint32_t panels_each = (uint32_t)(PACK_TASK_BYTES / (panel_source + 1)) + 1;
    job.features_each = panels_each * PANEL;
    packed_clear_padding(w);
    workers_run(workers, (w->n + job.features_each - 1) / job.features_each, pack_task, &job);
    model_file_drop(file, t);
}
