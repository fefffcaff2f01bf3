#include "common/experts/matrix.h"

#include <assert.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/modelfile/weights.h"
#include "common/tensor/panel.h"

/* Panels per packing task: enough work to be worth a task, few enough that the leader can pump between them. */
#define PACK_TASK_BYTES (256u << 10)

enum err_code matrix_quantize_parse(const char *quantize, enum quantize *out, struct err *why)
{
    if (quantize == NULL) quantize = quantize_name(QUANTIZE_NONE);
    if (quantize_find(quantize, out)) return ERR_OK;
    return err_set(why, ERR_INVALID, "quantize '%.32s' is unknown (%s are known)", quantize,
                   quantize_names());
}

/* The rows that a matrix held as `dtype` takes. Of floats only those that travel are rounded to bf16: what experts take, here
 * or on a node. All others stay f32: the kernels compute in f32 anyway, and the router, which decides, sees less noise. */
static enum row_format input_of(enum weight_role role, const struct tensor *t, enum dtype dtype)
{
    if (dtype_block(dtype) != 1) return ROW_Q8;
    const bool travels = role == W_EXPERT_GATE || role == W_EXPERT_UP;
    return travels && t->dtype != DTYPE_F32 ? ROW_BF16 : ROW_F32;
}

enum err_code matrix_shape_as(const struct tensor *t, enum weight_role role, enum dtype dtype,
                              uint32_t n, uint32_t k, struct packed *out, struct err *why)
{
    if (dtype >= DTYPE_N_NATIVE ||
        !packed_shape(panel_dtype(dtype, k), input_of(role, t, dtype), n, k, out))
        return err_set(why, ERR_UNSUPPORTED, "tensor '%s': %s of shape [%u, %u] cannot be packed",
                       t->name, dtype_name(t->dtype), n, k);
    return ERR_OK;
}

enum err_code matrix_shape(const struct tensor *t, enum weight_role role, enum quantize quantize,
                           struct packed *out, struct err *why)
{
    assert(t->n_dims == 2 && t->dims[0] <= UINT32_MAX && t->dims[1] <= UINT32_MAX);
    const bool router = weight_class(role) == CLASS_ROUTER;
    return matrix_shape_as(t, role, router ? DTYPE_F32 : plan_dtype(role, t, quantize),
                           (uint32_t)t->dims[0], (uint32_t)t->dims[1], out, why);
}

struct pack_job {
    const struct packed *w;
    const struct tensor *t;
    uint64_t first_row;
    enum dtype
        dtype; /* of the rows as they are packed: the tensor's, or what that is repacked as */
    size_t row_bytes, source; /* of one; of one in the file */
    uint32_t features_each;
    uint8_t *
        tmp; /* for each worker a panel's rows and one of the file; NULL: they stand there as they are packed */
};

/* Row `row` of the tensor at `place`, ready to be packed; `source` is room for one of the file. */
static void fetch_row(const struct pack_job *job, uint64_t row, uint8_t *place, uint8_t *source)
{
    const void *from = tensor_row(job->t, row, source);
    if (job->dtype != job->t->dtype)
        dtype_repack_row(job->t->dtype, from, job->w->k, place);
    else
        memcpy(place, from, job->row_bytes);
}

static void pack_task(void *ctx, uint32_t task, unsigned worker)
{
    const struct pack_job *job = ctx;
    const uint32_t first = task * job->features_each, left = job->w->n - first;
    const uint32_t count = left < job->features_each ? left : job->features_each;
    if (job->tmp == NULL) {
        pack_features(job->w, first, count, job->dtype,
                      job->t->data + (job->first_row + first) * job->row_bytes);
        return;
    }
    uint8_t *tmp = job->tmp + worker * (PANEL * job->row_bytes + job->source);
    for (uint32_t i = 0; i < count;) {
        uint32_t here = count - i < PANEL ? count - i : PANEL;
        for (uint32_t j = 0; j < here; j++)
            fetch_row(job, job->first_row + first + i + j, tmp + j * job->row_bytes,
                      tmp + PANEL * job->row_bytes);
        pack_features(job->w, first + i, here, job->dtype, tmp);
        i += here;
    }
}

enum err_code matrix_pack(const struct packed *w, const struct model_file *file,
                          const struct tensor *t, uint64_t first_row, struct workers *workers,
                          struct err *why)
{
    const enum dtype dtype = dtype_repacked(t->dtype);
    struct pack_job job = {.w = w,
                           .t = t,
                           .first_row = first_row,
                           .dtype = dtype,
                           .row_bytes = dtype_bytes(dtype, w->k),
                           .source = dtype_bytes(t->dtype, w->k)};
    const bool as_they_are = t->scales == NULL && t->col_stride == 0 && dtype == t->dtype &&
                             t->row_stride == job.row_bytes;
    if (!as_they_are) {
        job.tmp = mem_alloc(workers_count(workers) * (PANEL * job.row_bytes + job.source));
        if (job.tmp == NULL)
            return err_set(why, ERR_EXHAUSTED, "no memory to pack tensor '%s'", t->name);
    }
    size_t panel_source = job.row_bytes * PANEL;
    uint32_t panels_each = (uint32_t)(PACK_TASK_BYTES / (panel_source + 1)) + 1;
    job.features_each = panels_each * PANEL;
    packed_clear_padding(w);
    workers_run(workers, (w->n + job.features_each - 1) / job.features_each, pack_task, &job);
    mem_free(job.tmp);
    model_file_drop(file, t);
    return ERR_OK;
}

void matrix_pack_f32(const struct packed *w, const float *rows)
{
    assert(w->k <= LIMIT_HEAD_DIM);
    packed_clear_padding(w);
    for (uint32_t n = 0; n < w->n; n++) {
        const float *row = rows + (size_t)n * w->k;
        if (w->format != DTYPE_BF16 && w->format != DTYPE_F16) {
            pack_features(w, n, 1, DTYPE_F32, row);
            continue;
        }
        uint16_t half[LIMIT_HEAD_DIM];
        for (uint32_t k = 0; k < w->k; k++)
            half[k] = w->format == DTYPE_BF16 ? bf16_from_f32(row[k]) : f16_from_f32(row[k]);
        pack_features(w, n, 1, w->format, half);
    }
}
