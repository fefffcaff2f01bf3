/* One unary call that waits for its answer. */
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stddef.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

struct unary {
    struct rpc_tag tag;
    bool done;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *reply;
    grpc_status_code status;
    grpc_slice details;
    const char *error_string;
};

static void on_unary(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* the status tells */
    ((struct unary *)tag)->done = true;
}

/* err.def maps several codes to one status; the way back takes the most general of them. */
static enum err_code code_of_status(grpc_status_code status)
{
    switch (status) {
    case GRPC_STATUS_OK:
        return ERR_OK;
    case GRPC_STATUS_CANCELLED:
        return ERR_CANCELLED;
    case GRPC_STATUS_INVALID_ARGUMENT:
        return ERR_INVALID;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return ERR_TIMEOUT;
    case GRPC_STATUS_NOT_FOUND:
        return ERR_NOT_FOUND;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return ERR_EXHAUSTED;
    case GRPC_STATUS_FAILED_PRECONDITION:
        return ERR_MISMATCH;
    case GRPC_STATUS_UNIMPLEMENTED:
        return ERR_UNSUPPORTED;
    case GRPC_STATUS_UNAVAILABLE:
        return ERR_UNAVAILABLE;
    case GRPC_STATUS_DATA_LOSS:
        return ERR_CORRUPT;
    default:
        return ERR_INTERNAL;
    }
}

static enum err_code take_reply(grpc_byte_buffer *bb, uint8_t **reply, size_t *reply_bytes,
                                struct err *why)
{
    if (bb == NULL) return err_set(why, ERR_CORRUPT, "status OK without a reply");
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, bb))
        return err_set(why, ERR_CORRUPT, "reply cannot be read");
    size_t total = grpc_byte_buffer_length(bb), at = 0;
    uint8_t *bytes = mem_alloc(total);
    grpc_slice part;
    while (bytes != NULL && grpc_byte_buffer_reader_next(&reader, &part)) {
        memcpy(bytes + at, GRPC_SLICE_START_PTR(part), GRPC_SLICE_LENGTH(part));
        at += GRPC_SLICE_LENGTH(part);
        grpc_slice_unref(part);
    }
    grpc_byte_buffer_reader_destroy(&reader);
    if (bytes == NULL) return err_nomem(why, "reply");
    *reply = bytes;
    *reply_bytes = total;
    return ERR_OK;
}

enum err_code rpc_unary(struct rpc *r, const char *target, const char *method, const void *request,
                        size_t bytes, unsigned timeout_ms, uint8_t **reply, size_t *reply_bytes,
                        struct err *why)
{
    struct err inner;
    grpc_channel *ch = rpc_channel_open(target, RPC_LANE_DECODE, &inner);
    if (ch == NULL) return err_set(why, inner.code, "%s", inner.text);
    struct unary u = {.tag.done = on_unary, .details = grpc_empty_slice()};
    grpc_metadata_array_init(&u.initial);
    grpc_metadata_array_init(&u.trailing);
    grpc_slice path = grpc_slice_from_copied_string(method);
    gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    grpc_call *call = grpc_channel_create_call(ch, NULL, GRPC_PROPAGATE_DEFAULTS, r->cq, path, NULL,
                                               deadline, NULL);
    grpc_slice_unref(path);
    grpc_slice body = grpc_slice_from_copied_buffer(request, bytes);
    grpc_byte_buffer *out = grpc_raw_byte_buffer_create(&body, 1);
    grpc_slice_unref(body);

    grpc_op ops[6];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = out;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &u.initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &u.reply;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &u.trailing;
    ops[5].data.recv_status_on_client.status = &u.status;
    ops[5].data.recv_status_on_client.status_details = &u.details;
    ops[5].data.recv_status_on_client.error_string = &u.error_string;

    enum err_code rc = ERR_OK;
    grpc_call_error e = grpc_call_start_batch(call, ops, 6, &u.tag, NULL);
    grpc_byte_buffer_destroy(out);
    if (e != GRPC_CALL_OK)
        rc = err_set(why, ERR_INTERNAL, "%s%s: %s", target, method, grpc_call_error_to_string(e));
    while (rc == ERR_OK && !u.done)
        rpc_poll(r, (uint64_t)timeout_ms * 1000); /* the call's own deadline ends it */
    if (rc == ERR_OK && u.status != GRPC_STATUS_OK)
        rc = err_set(why, code_of_status(u.status), "%s%s: %.*s (status %d)", target, method,
                     (int)GRPC_SLICE_LENGTH(u.details),
                     (const char *)GRPC_SLICE_START_PTR(u.details), (int)u.status);
    if (rc == ERR_OK) {
        rc = take_reply(u.reply, reply, reply_bytes, why);
        if (rc != ERR_OK) err_wrap(why, rc, "%s%s", target, method);
    }
    if (u.reply != NULL) grpc_byte_buffer_destroy(u.reply);
    grpc_metadata_array_destroy(&u.initial);
    grpc_metadata_array_destroy(&u.trailing);
    grpc_slice_unref(u.details);
    gpr_free((void *)(uintptr_t)u.error_string);
    grpc_call_unref(call);
    grpc_channel_destroy(ch);
    return rc;
}
