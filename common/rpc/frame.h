/* frame.h - the messages between coordinator and expert node as plain structs (proto/moesaic/v1/expert.proto).
 * Pure functions, any thread. Decoding trusts nothing: every count, order and sum that can be checked without knowing the
 * model is checked here; what needs the model (layer, width, who holds what) is the caller's.
 *
 * Decoded structs own their arrays and strings through `owner`; free them with frame_*_free. For encoding the
 * caller's arrays are borrowed and `owner` is ignored. The tensor is never in these structs: it stays in the
 * rpc_message (rpc_message_tensor_copy) or in the parts of an rpc_out. */
#ifndef MOESAIC_RPC_FRAME_H
#define MOESAIC_RPC_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/rpc/rpc.h"

#define FRAME_PROTOCOL 1u /* raised when old and new cannot talk to each other */

/* Values are those of the .proto files, and of `enum row_format` in common/kernels. */
enum frame_format { FRAME_F32 = 0, FRAME_BF16 = 1, FRAME_Q8 = 2 };

/* One layer's held experts: bit e % 8 of byte e / 8. */
struct frame_bitmap {
    const uint8_t *bits;
    size_t bytes;
};

static inline bool frame_bitmap_has(struct frame_bitmap m, uint32_t expert)
{
    return expert / 8 < m.bytes && (m.bits[expert / 8] >> (expert % 8) & 1);
}

struct expert_hello {
    uint32_t protocol;
    const char *model_digest; /* strings are never NULL after decoding; NULL encodes as "" */
    uint32_t numerics, wire_profile;
    const char *quantize, *id;
    uint64_t incarnation, epoch;
    enum rpc_lane lane; /* 0: not said */
    const char *kernels;
    const struct frame_bitmap *held; /* [n_layers]; node to coordinator */
    uint32_t n_layers;
    uint64_t expert_bytes;
    uint32_t threads;
    bool pinned; /* node: started with a fixed set of experts, takes no assignment */
};

enum expert_request_kind {
    EXPERT_REQUEST_HELLO = 1,
    EXPERT_REQUEST_STEP = 2,
    EXPERT_REQUEST_ASSIGN = 3,
    EXPERT_REQUEST_PING = 4
};

struct expert_request {
    enum expert_request_kind kind;
    uint64_t step, epoch;
    uint32_t layer;
    enum frame_format format;
    uint32_t rows; /* in the tensor */

    /* STEP: n_experts > 0, strictly ascending and < LIMIT_EXPERTS; expert_rows > 0 with the sum n_index; row_index < rows. */
    const uint32_t *experts, *expert_rows; /* [n_experts] */
    uint32_t n_experts;
    const uint32_t *row_index; /* [n_index] */
    uint32_t n_index;

    const struct expert_hello *hello;  /* HELLO: not NULL */
    const struct frame_bitmap *assign; /* ASSIGN: [n_layers] */
    uint32_t n_layers;
    void *owner;
};

enum expert_reply_kind {
    EXPERT_REPLY_HELLO = 1,
    EXPERT_REPLY_RESULT = 2,
    EXPERT_REPLY_ERROR = 3,
    EXPERT_REPLY_HOLDINGS = 4,
    EXPERT_REPLY_DRAINING = 5,
    EXPERT_REPLY_PONG = 6
};

struct expert_reply {
    enum expert_reply_kind kind;
    uint64_t step;
    uint32_t rows;
    enum frame_format format; /* F32 or BF16 */
    uint32_t queue_us, compute_us;
    enum err_code
        error; /* ERROR: never ERR_OK; HOLDINGS: why loading failed, or ERR_OK; a name this build does not know becomes ERR_INTERNAL */
    const char *error_text;
    const struct expert_hello *hello; /* HELLO and HOLDINGS: not NULL */
    void *owner;
};

struct expert_describe {
    const struct expert_hello *hello; /* not NULL after decoding */
    uint64_t steps, rows, multiplications, resident_bytes;
    void *owner;
};

/* Append the packed small fields to `out` (an rpc_out header). ERR_EXHAUSTED: no memory; `out` is then of no use. */
enum err_code frame_encode_request(const struct expert_request *q, struct buf *out,
                                   struct err *why);
enum err_code frame_encode_reply(const struct expert_reply *p, struct buf *out, struct err *why);
enum err_code frame_encode_describe(const struct expert_describe *d, struct buf *out,
                                    struct err *why);

/* Gives *out. ERR_INVALID (malformed, with what and where), ERR_TOO_LARGE (over a limit), ERR_EXHAUSTED (no memory). */
enum err_code frame_decode_request(const struct rpc_message *m, struct expert_request **out,
                                   struct err *why);
enum err_code frame_decode_reply(const struct rpc_message *m, struct expert_reply **out,
                                 struct err *why);
enum err_code frame_decode_describe(const void *bytes, size_t n, struct expert_describe **out,
                                    struct err *why);
void frame_request_free(struct expert_request *q); /* NULL is fine, here and below */
void frame_reply_free(struct expert_reply *p);
void frame_describe_free(struct expert_describe *d);

/* ERR_MISMATCH names the first field that differs and both values; ours first. Compared, in this order: protocol, numerics,
 * wire profile, quantize, model digest. */
enum err_code frame_hello_check(const struct expert_hello *ours, const struct expert_hello *theirs,
                                struct err *why);

#endif
