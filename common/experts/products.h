/* products.h - several matrix products as one flat list of work items with one join.
 * An item is (product, some rows, some panel pairs): outputs are independent chains over K, so no cut changes a bit.
 * Led by one thread. */
#ifndef MOESAIC_EXPERTS_PRODUCTS_H
#define MOESAIC_EXPERTS_PRODUCTS_H

#include <stddef.h>
#include <stdint.h>

#include "common/kernels/kernels.h"
#include "common/modelfile/hparams.h"
#include "common/sys/workers.h"

/* Rows per work item: bounds the kernels' scratch, and how long the leader computes without pumping. */
#define PRODUCT_ROWS 64u

struct product {
    const struct packed *w;
    struct rows x; /* x.format == w->input, x.m may be 0 */
    float *y;      /* [x.m, ldy]; w->n columns are written */
    size_t ldy;

    uint32_t first_item, items, pairs_each; /* set by products_run */
};

/* Scratch of the kernels, one piece per worker. */
struct product_scratch {
    uint8_t *data; /* 64-byte aligned; borrowed */
    size_t each;   /* bytes per worker, a multiple of 64 */
    unsigned n_workers;
};

/* Bytes one worker needs for w with up to m rows, a multiple of 64. */
size_t product_scratch_bytes(const struct packed *w, uint32_t m);

/* y = x w^T for every job. */
void products_run(const struct kernels *k, struct product *jobs, uint32_t n_jobs,
                  const struct product_scratch *scratch, struct workers *workers);

/* Row `row` of x, in its format, from f32 values. */
void rows_set(const struct kernels *k, const struct rows *x, uint32_t row, const float *src);

/* dst row = src row; same format and width. */
void rows_copy(const struct rows *dst, uint32_t dst_row, const struct rows *src, uint32_t src_row);

/* Bytes of m rows: data rounded up to 64, then scales. */
size_t rows_bytes(enum row_format f, uint32_t m, uint32_t k);

/* A view of m rows over rows_bytes() bytes at a 64-byte aligned place. NULL: a view of nothing. */
struct rows rows_at(void *place, enum row_format f, uint32_t m, uint32_t k);

/* What the model makes of a row of gates and ups, over the gates. */
void ffn_activate(const struct kernels *k, const struct hparams *hp, float *gate, const float *up,
                  size_t n);

/* fn for tasks 0..n-1: on the workers if the whole (work_each: values touched per task) is worth a join. */
void run_rows(struct workers *workers, uint32_t n, size_t work_each,
              void (*fn)(void *ctx, uint32_t task, unsigned worker), void *ctx);

#endif
