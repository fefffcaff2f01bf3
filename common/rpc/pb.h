/* pb.h - protobuf-c behind bounds, for the files of common/rpc only. */
#ifndef MOESAIC_RPC_PB_H
#define MOESAIC_RPC_PB_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

/* Append the packed message. */
enum err_code pb_pack(const ProtobufCMessage *m, const char *name, struct buf *out,
                      struct err *why);

/* Gives *out; memory is bounded by the message's length. ERR_INVALID, ERR_TOO_LARGE or ERR_EXHAUSTED. */
enum err_code pb_unpack(const ProtobufCMessageDescriptor *type, const char *name, const void *bytes,
                        size_t n, ProtobufCMessage **out, struct err *why);
void pb_free(ProtobufCMessage *m); /* NULL is fine */

/* protobuf-c's fields are not const although packing only reads them. */
static inline void *pb_borrow(const void *p)
{
    return (void *)(uintptr_t)p;
}

static inline char *pb_text(const char *s)
{
    return pb_borrow(s != NULL ? s : protobuf_c_empty_string);
}

#endif
