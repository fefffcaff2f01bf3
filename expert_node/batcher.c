#include "expert_node/batcher.h"

#include "common/base/mem.h"

struct batcher {
    struct expert_store *store;
    uint32_t hidden;

    /* Scratch that grows and is kept. */
    uint8_t *in;
    void **out;
    struct expert_task *tasks; /* [n_experts] */
    size_t cap_in, cap_out;
};

enum err_code batcher_open(struct expert_store *store, uint32_t hidden, uint32_t n_experts,
                           struct batcher **out, struct err *why)
{
    struct batcher *b = mem_zalloc(sizeof *b);
    if (b == NULL) return err_nomem(why, "batcher");
    b->store = store;
    b->hidden = hidden;
    b->tasks = mem_zalloc_array((size_t)n_experts + 1, sizeof *b->tasks);
    if (b->tasks == NULL) {
        batcher_close(b);
        return err_nomem(why, "batcher");
    }
    *out = b;
    return ERR_OK;
}

void batcher_close(struct batcher *b)
{
    if (b == NULL) return;
    mem_free(b->in);
    mem_free(b->out);
    mem_free(b->tasks);
    mem_free(b);
}

size_t batcher_result_bytes(const struct batcher *b)
{
    return (size_t)b->hidden * (expert_store_reply_bf16(b->store) ? 2 : 4);
}

static bool grow(void **p, size_t *cap, size_t need)
{
    if (need <= *cap) return true;
    void *q = mem_aligned(64, need);
    if (q == NULL) return false;
    mem_free(*p);
    *p = q;
    *cap = need;
    return true;
}

/* All rows of the batch one behind the other: data of all, then scales of all. */
static enum err_code gather(struct batcher *b, const struct node_batch *batch, struct rows *in,
                            struct err *why)
{
    enum row_format f = expert_store_rows(b->store, batch->layer);
    size_t data = row_data_bytes(f, b->hidden), scales = row_scale_bytes(f, b->hidden);
    size_t data_all = (data * batch->n_rows + 63) / 64 * 64;
    if (!grow((void **)&b->in, &b->cap_in, data_all + scales * batch->n_rows + 64))
        return err_nomem(why, "a batch");
    for (uint32_t i = 0; i < batch->n_requests; i++) {
        const struct item *it = (const struct item *)batch->requests[i];
        size_t n = it->request.n_rows, base = batch->row_base[i];
        rpc_message_tensor_copy(it->message, 0, b->in + base * data, n * data);
        if (scales > 0)
            rpc_message_tensor_copy(it->message, n * data, b->in + data_all + base * scales,
                                    n * scales);
    }
    *in = (struct rows){f, batch->n_rows, b->hidden, b->in,
                        scales > 0 ? (float *)(void *)(b->in + data_all) : NULL};
    return ERR_OK;
}

/* Room for every request's results, and the list of where each result row goes. */
static enum err_code make_results(struct batcher *b, const struct node_batch *batch,
                                  struct err *why)
{
    size_t entries = 0;
    for (uint32_t i = 0; i < batch->n_requests; i++) {
        struct item *it = (struct item *)batch->requests[i];
        entries += it->request.n_results;
        it->results = mem_aligned(64, it->request.n_results * batcher_result_bytes(b));
        if (it->results == NULL) return err_nomem(why, "results");
    }
    if (!grow((void **)&b->out, &b->cap_out, entries * sizeof *b->out))
        return err_nomem(why, "a batch");
    return ERR_OK;
}

enum err_code batcher_run(struct batcher *b, const struct node_batch *batch, struct workers *w,
                          struct err *why)
{
    struct rows in;
    enum err_code rc = gather(b, batch, &in, why);
    if (rc == ERR_OK) rc = make_results(b, batch, why);
    if (rc != ERR_OK) return rc;
    size_t at = 0;
    for (uint32_t t = 0; t < batch->n_tasks; t++) {
        const struct node_task *task = &batch->tasks[t];
        b->tasks[t] = (struct expert_task){task->expert, task->m, &in, task->row, b->out + at};
        for (uint32_t i = 0; i < task->m; i++) {
            const struct item *it = (const struct item *)batch->requests[task->request[i]];
            b->out[at++] = it->results + task->result[i] * batcher_result_bytes(b);
        }
    }
    return expert_store_run(b->store, batch->layer, b->tasks, batch->n_tasks, w, why);
}
