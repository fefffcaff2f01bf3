/* batcher.h - one batch of the core computed: rows gathered from the messages they came in, products run, results laid
 * where each answer wants them. Owner: the service thread. */
#ifndef MOESAIC_NODE_BATCHER_H
#define MOESAIC_NODE_BATCHER_H

#include "common/base/err.h"
#include "common/experts/experts.h"
#include "common/rpc/frame.h"
#include "common/rpc/rpc.h"
#include "common/sys/workers.h"
#include "expert_node/node.h"

/* One step under way: the core's view, and what it was decoded from. */
struct item {
    struct node_request request; /* first: the core gives it back */
    struct expert_request *frame;
    struct rpc_message *message; /* rows: data of all, then scales of all */
    uint8_t *results;            /* mem_free; [n_results] rows once its batch was computed */
    size_t bytes;                /* of rows, in the service's count of what is queued */
};

struct batcher;

/* Rows of `hidden` values for and from the experts of `store`, which outlives the batcher. */
enum err_code batcher_open(struct expert_store *store, uint32_t hidden, uint32_t n_experts,
                           struct batcher **out, struct err *why);
void batcher_close(struct batcher *b);

/* Compute a batch whose requests are items; fills their results. EXHAUSTED: some items may have results. */
enum err_code batcher_run(struct batcher *b, const struct node_batch *batch, struct workers *w,
                          struct err *why);

size_t batcher_result_bytes(const struct batcher *b); /* of one result row */

#endif
