#include "common/rpc/pb.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

/* What a message of n bytes may become in memory. Packed numbers grow 4 times, an empty `bytes` element 8 times;
 * everything that grows more (unknown fields, the scanner's own notes) is rare in honest messages and has to fit in
 * the fixed part. */
#define BUDGET_FIXED  ((size_t)1 << 20)
#define BUDGET_FACTOR 8u

struct budget {
    size_t left;
    bool spent, out_of_memory;
};

static void *budget_alloc(void *data, size_t n)
{
    struct budget *b = data;
    if (n > b->left) {
        b->spent = true;
        return NULL;
    }
    void *p = mem_alloc(n);
    if (p == NULL)
        b->out_of_memory = true;
    else
        b->left -= n;
    return p;
}

static void budget_free(void *data, void *p)
{
    (void)data;
    mem_free(p);
}

enum err_code pb_unpack(const ProtobufCMessageDescriptor *type, const char *name, const void *bytes,
                        size_t n, ProtobufCMessage **out, struct err *why)
{
    if (n > LIMIT_HEADER_BYTES)
        return err_set(why, ERR_TOO_LARGE, "%s: %zu bytes, the limit is %u", name, n,
                       LIMIT_HEADER_BYTES);
    struct budget b = {.left = BUDGET_FIXED + BUDGET_FACTOR * n};
    ProtobufCAllocator a = {.alloc = budget_alloc, .free = budget_free, .allocator_data = &b};
    ProtobufCMessage *m = protobuf_c_message_unpack(type, &a, n, bytes);
    if (m == NULL) {
        if (b.out_of_memory) return err_nomem(why, name);
        if (b.spent)
            return err_set(why, ERR_TOO_LARGE, "%s: %zu bytes unpack to over %zu", name, n,
                           BUDGET_FIXED + BUDGET_FACTOR * n);
        return err_set(why, ERR_INVALID, "%s: malformed protobuf message of %zu bytes", name, n);
    }
    *out = m;
    return ERR_OK;
}

void pb_free(ProtobufCMessage *m)
{
    ProtobufCAllocator a = {.alloc = budget_alloc, .free = budget_free};
    if (m != NULL) protobuf_c_message_free_unpacked(m, &a);
}

struct to_buf {
    ProtobufCBuffer base;
    struct buf *out;
};

static void append(ProtobufCBuffer *base, size_t n, const uint8_t *bytes)
{
    buf_append(((struct to_buf *)base)->out, bytes, n);
}

enum err_code pb_pack(const ProtobufCMessage *m, const char *name, struct buf *out, struct err *why)
{
    struct to_buf to = {.base.append = append, .out = out};
    protobuf_c_message_pack_to_buffer(m, &to.base);
    return out->failed ? err_nomem(why, name) : ERR_OK;
}
