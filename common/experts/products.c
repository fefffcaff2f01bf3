#include "common/experts/products.h"

#include <assert.h>
#include <string.h>

/* Rates for cutting the work into items; only the grain depends on them, never a bit. */
#define READ_BYTES_PER_NS 12u
#define FLOAT_MACS_PER_NS 80u
#define INT8_MACS_PER_NS  250u
#define ITEM_NS           300000u /* the leader pumps between items */
#define ITEM_NS_LEAST     2000u   /* a join costs about 1 us */
#define ITEMS_PER_WORKER  4u
#define JOIN_VALUES       16384u /* fewer values than this: the leader alone is faster than a join */

static size_t round_up_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t product_scratch_bytes(const struct packed *w, uint32_t m)
{
    return round_up_64(matmul_scratch_bytes(w, m < PRODUCT_ROWS ? m : PRODUCT_ROWS));
}

static uint32_t row_chunks(const struct product *job)
{
    return (job->x.m + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
}

static uint64_t pair_ns(const struct product *job)
{
    const struct packed *w = job->w;
    uint64_t m = job->x.m < PRODUCT_ROWS ? job->x.m : PRODUCT_ROWS;
    uint64_t read = 2 * (uint64_t)w->panel_bytes / READ_BYTES_PER_NS;
    uint64_t compute =
        m * w->k * 2 * PANEL / (w->input == ROW_Q8 ? INT8_MACS_PER_NS : FLOAT_MACS_PER_NS);
    return (read > compute ? read : compute) + 1;
}

struct product_list {
    const struct kernels *k;
    const struct product *jobs;
    uint32_t n_jobs;
    const struct product_scratch *scratch;
};

/* The job an item belongs to: first_item ascends. Jobs without items share theirs with the next. */
static const struct product *find_job(const struct product_list *list, uint32_t item)
{
    uint32_t low = 0, high = list->n_jobs;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (list->jobs[middle].first_item <= item)
            low = middle;
        else
            high = middle;
    }
    return &list->jobs[low];
}

static void product_task(void *ctx, uint32_t task, unsigned worker)
{
    const struct product_list *list = ctx;
    const struct product *job = find_job(list, task);
    /* Panel pairs outermost, so that neighbouring items read the same weights. */
    uint32_t chunks = row_chunks(job), item = task - job->first_item;
    uint32_t pair = item / chunks * job->pairs_each;
    uint32_t row = item % chunks * PRODUCT_ROWS;
    uint32_t panel0 = 2 * pair, panel1 = 2 * (pair + job->pairs_each);
    if (panel1 > job->w->panels) panel1 = job->w->panels;

    const struct rows *x = &job->x;
    struct rows part = *x;
    part.m = x->m - row < PRODUCT_ROWS ? x->m - row : PRODUCT_ROWS;
    part.data = (uint8_t *)x->data + row * row_data_bytes(x->format, x->k);
    if (x->scales != NULL) part.scales = x->scales + (size_t)row * (x->k / 32);
    uint8_t *scratch =
        list->scratch->each == 0 ? NULL : list->scratch->data + worker * list->scratch->each;
    list->k->matmul(job->w, panel0, panel1, &part, job->y + row * job->ldy, job->ldy, scratch);
}

void products_run(const struct kernels *k, struct product *jobs, uint32_t n_jobs,
                  const struct product_scratch *scratch, struct workers *workers)
{
    assert(workers_count(workers) <= scratch->n_workers);
    uint64_t total_ns = 0;
    for (uint32_t j = 0; j < n_jobs; j++)
        total_ns += pair_ns(&jobs[j]) * (jobs[j].w->panels / 2) * row_chunks(&jobs[j]);
    unsigned threads = workers_count(workers);
    uint64_t item_ns = total_ns / (threads * ITEMS_PER_WORKER);
    if (item_ns > ITEM_NS || threads == 1) item_ns = ITEM_NS;
    if (item_ns < ITEM_NS_LEAST) item_ns = ITEM_NS_LEAST;

    uint32_t items = 0;
    for (uint32_t j = 0; j < n_jobs; j++) {
        struct product *job = &jobs[j];
        assert(job->x.k == job->w->k && job->x.format == job->w->input);
        assert(product_scratch_bytes(job->w, job->x.m) <= scratch->each);
        uint64_t pairs = job->w->panels / 2, each = item_ns / pair_ns(job);
        job->pairs_each = (uint32_t)(each < 1 ? 1 : each > pairs ? pairs : each);
        job->first_item = items;
        job->items = (uint32_t)((pairs + job->pairs_each - 1) / job->pairs_each) * row_chunks(job);
        items += job->items;
    }
    struct product_list list = {.k = k, .jobs = jobs, .n_jobs = n_jobs, .scratch = scratch};
    workers_run(workers, items, product_task, &list);
}

void rows_set(const struct kernels *k, const struct rows *x, uint32_t row, const float *src)
{
    switch (x->format) {
    case ROW_F32:
        memcpy((float *)x->data + (size_t)row * x->k, src, x->k * sizeof *src);
        break;
    case ROW_BF16:
        k->round_bf16(src, x->k, (uint16_t *)x->data + (size_t)row * x->k);
        break;
    case ROW_Q8:
        k->quantize_row(src, x->k, (int8_t *)x->data + (size_t)row * x->k,
                        x->scales + (size_t)row * (x->k / 32));
        break;
    }
}

void rows_copy(const struct rows *dst, uint32_t dst_row, const struct rows *src, uint32_t src_row)
{
    assert(dst->format == src->format && dst->k == src->k);
    size_t bytes = row_data_bytes(src->format, src->k);
    memcpy((uint8_t *)dst->data + dst_row * bytes, (const uint8_t *)src->data + src_row * bytes,
           bytes);
    if (src->format != ROW_Q8) return;
    size_t blocks = src->k / 32;
    memcpy(dst->scales + dst_row * blocks, src->scales + src_row * blocks,
           blocks * sizeof *src->scales);
}

size_t rows_bytes(enum row_format f, uint32_t m, uint32_t k)
{
    return round_up_64(m * row_data_bytes(f, k)) + round_up_64(m * row_scale_bytes(f, k));
}

struct rows rows_at(void *place, enum row_format f, uint32_t m, uint32_t k)
{
    struct rows x = {.format = f, .m = m, .k = k, .data = place};
    if (f == ROW_Q8 && place != NULL)
        x.scales = (float *)(void *)((uint8_t *)place + round_up_64(m * row_data_bytes(f, k)));
    return x;
}

void run_rows(struct workers *workers, uint32_t n, size_t work_each,
              void (*fn)(void *ctx, uint32_t task, unsigned worker), void *ctx)
{
    if (n * work_each >= JOIN_VALUES) {
        workers_run(workers, n, fn, ctx);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        fn(ctx, i, 0);
}

void ffn_activate(const struct kernels *k, const struct hparams *hp, float *gate, const float *up,
                  size_t n)
{
    static const enum activation kinds[] = {[FFN_SWIGLU] = ACTIVATION_SWIGLU,
                                            [FFN_RELU] = ACTIVATION_RELU,
                                            [FFN_GEGLU_TANH] = ACTIVATION_GEGLU_TANH,
                                            [FFN_SWIGLU_CLAMPED] = ACTIVATION_SWIGLU_CLAMPED};
    kernels_activate(k, kinds[hp->activation], hp->swiglu_limit, gate, up, n, gate);
}
