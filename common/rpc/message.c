/* Messages: [small fields][0x7A][varint length][tensor] on the wire, see transport.
 *
 * Receiving keeps gRPC's slices (8 or 64 KiB, any alignment, an element may straddle two) and finds where the
 * tensor begins by walking the tags; only the bytes before it are made contiguous. Protobuf lets other writers put
 * field 15 anywhere, and more than once (the last one counts): such a message is gathered whole and field 15 cut out. */
#include <assert.h>
#include <grpc/slice_buffer.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

#define TENSOR_FIELD  15u
#define TENSOR_TAG    ((TENSOR_FIELD << 3) | 2u) /* 0x7A: one byte */
#define INLINE_HEADER 512u /* a decode step's header with straddling fits: no second allocation */

struct rpc_message {
    grpc_byte_buffer *bb;
    const uint8_t *header; /* into the first slice, small, or own */
    size_t header_bytes;
    size_t tensor_bytes;
    const uint8_t *flat; /* tensor inside own, when the message had to be gathered */
    size_t tensor_off;   /* else: where it begins in bb */
    uint8_t *own;
    uint8_t small[INLINE_HEADER];
};

/* ---- walking ---------------------------------------------------------------------------------- */

/* A position in the slices. Bytes are counted so that limits are checked before anything is touched. */
struct cursor {
    const grpc_slice *slice;
    size_t at;   /* in *slice */
    size_t left; /* in the message */
};

static void skip(struct cursor *c, size_t n)
{
    assert(n <= c->left);
    c->left -= n;
    while (n > 0) {
        size_t here = GRPC_SLICE_LENGTH(*c->slice) - c->at;
        size_t take = n < here ? n : here;
        c->at += take;
        n -= take;
        if (n > 0) {
            c->slice++;
            c->at = 0;
        }
    }
}

static bool next_byte(struct cursor *c, uint8_t *out)
{
    if (c->left == 0) return false;
    while (c->at == GRPC_SLICE_LENGTH(*c->slice)) {
        c->slice++;
        c->at = 0;
    }
    *out = GRPC_SLICE_START_PTR(*c->slice)[c->at++];
    c->left--;
    return true;
}

static bool next_varint(struct cursor *c, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t b;
        if (!next_byte(c, &b)) return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if ((b & 0x80) == 0) {
            *out = v;
            return true;
        }
    }
    return false;
}

struct field {
    bool tensor;
    size_t start;       /* of its tag */
    size_t value_bytes; /* length-delimited: of the value */
    size_t end;
};

/* The field at the cursor, and past it. False: malformed (truncated, a group, a bad length). */
static bool next_field(struct cursor *c, size_t total, struct field *f)
{
    f->start = total - c->left;
    f->tensor = false;
    f->value_bytes = 0;
    uint64_t tag, n;
    if (!next_varint(c, &tag)) return false;
    switch (tag & 7u) {
    case 0:
        if (!next_varint(c, &n)) return false;
        break;
    case 1:
        if (c->left < 8) return false;
        skip(c, 8);
        break;
    case 2:
        if (!next_varint(c, &n) || n > c->left) return false;
        f->tensor = tag == TENSOR_TAG;
        f->value_bytes = (size_t)n;
        skip(c, (size_t)n);
        break;
    case 5:
        if (c->left < 4) return false;
        skip(c, 4);
        break;
    default:
        return false;
    }
    f->end = total - c->left;
    return true;
}

/* ---- receiving -------------------------------------------------------------------------------- */

static const grpc_slice_buffer *slices_of(const struct rpc_message *m)
{
    return &m->bb->data.raw.slice_buffer;
}

static void copy_out(const grpc_slice_buffer *sb, size_t off, void *dst, size_t n)
{
    uint8_t *to = dst;
    for (const grpc_slice *s = sb->slices; n > 0; s++) {
        size_t len = GRPC_SLICE_LENGTH(*s);
        if (off >= len) {
            off -= len;
            continue;
        }
        size_t take = len - off < n ? len - off : n;
        memcpy(to, GRPC_SLICE_START_PTR(*s) + off, take);
        to += take;
        n -= take;
        off = 0;
    }
}

/* header = the first n bytes of the message, contiguous. */
static bool set_header(struct rpc_message *m, size_t n)
{
    const grpc_slice_buffer *sb = slices_of(m);
    m->header_bytes = n;
    if (n == 0) {
        m->header = m->small;
    } else if (n <= GRPC_SLICE_LENGTH(sb->slices[0])) {
        m->header = GRPC_SLICE_START_PTR(sb->slices[0]);
    } else {
        uint8_t *to = m->small;
        if (n > sizeof m->small) {
            to = m->own = mem_alloc(n);
            if (to == NULL) return false;
        }
        copy_out(sb, 0, to, n);
        m->header = to;
    }
    return true;
}

/* Field 15 is not last or there are several: the message as one block, other fields moved to the front. */
static bool split_gathered(struct rpc_message *m, size_t total)
{
    /* [other fields][the last field 15's value], which never overlap: both fit in `total`. */
    m->own = mem_alloc(total);
    if (m->own == NULL) return false;
    const grpc_slice_buffer *sb = slices_of(m);
    struct cursor c = {.slice = sb->slices, .left = total};
    struct field f, last = {0};
    size_t header = 0;
    while (c.left > 0 && next_field(&c, total, &f)) {
        if (f.tensor) {
            last = f;
        } else {
            copy_out(sb, f.start, m->own + header, f.end - f.start);
            header += f.end - f.start;
        }
    }
    m->header = m->own;
    m->header_bytes = header;
    m->flat = m->own + header;
    m->tensor_bytes = last.value_bytes;
    copy_out(sb, last.end - last.value_bytes, m->own + header, last.value_bytes);
    return true;
}

static bool split(struct rpc_message *m)
{
    const grpc_slice_buffer *sb = slices_of(m);
    size_t total = sb->length;
    struct cursor c = {.slice = sb->slices, .left = total};
    struct field f, first = {0};
    bool found = false, gather = false;
    while (c.left > 0) {
        if (!next_field(&c, total, &f))
            return set_header(m, total); /* malformed: the decoder will say so */
        if (found) gather = true;
        if (f.tensor && !found) {
            found = true;
            first = f;
        }
    }
    if (!found) return set_header(m, total);
    if (gather) return split_gathered(m, total);
    m->tensor_bytes = first.value_bytes;
    m->tensor_off = first.end - first.value_bytes;
    return set_header(m, first.start);
}

struct rpc_message *rpc_message_take(grpc_byte_buffer *bb)
{
    struct rpc_message *m = NULL;
    if (bb->data.raw.compression == GRPC_COMPRESS_NONE) m = mem_alloc(sizeof *m);
    if (m == NULL) {
        grpc_byte_buffer_destroy(bb);
        return NULL;
    }
    memset(m, 0, offsetof(struct rpc_message, small));
    m->bb = bb;
    if (!split(m)) {
        rpc_message_free(m);
        return NULL;
    }
    return m;
}

struct rpc_message *rpc_message_from_parts(const struct rpc_part *parts, unsigned n)
{
    grpc_byte_buffer *bb = grpc_raw_byte_buffer_create(NULL, 0);
    for (unsigned i = 0; i < n; i++)
        grpc_slice_buffer_add_indexed(&bb->data.raw.slice_buffer,
                                      grpc_slice_from_copied_buffer(parts[i].data, parts[i].bytes));
    return rpc_message_take(bb);
}

const uint8_t *rpc_message_header(const struct rpc_message *m, size_t *len)
{
    *len = m->header_bytes;
    return m->header;
}

size_t rpc_message_tensor_bytes(const struct rpc_message *m)
{
    return m->tensor_bytes;
}

void rpc_message_tensor_copy(const struct rpc_message *m, size_t off, void *dst, size_t n)
{
    assert(off <= m->tensor_bytes && n <= m->tensor_bytes - off);
    if (n == 0) return;
    if (m->flat != NULL)
        memcpy(dst, m->flat + off, n);
    else
        copy_out(slices_of(m), m->tensor_off + off, dst, n);
}

void rpc_message_free(struct rpc_message *m)
{
    if (m == NULL) return;
    grpc_byte_buffer_destroy(m->bb);
    mem_free(m->own);
    mem_free(m);
}

/* ---- sending ---------------------------------------------------------------------------------- */

/* Shared by the slices of one message: the last one to go, on whatever thread, releases the caller's memory. */
struct borrowed {
    _Atomic unsigned refs;
    void (*release)(void *ctx);
    void *ctx;
};

static void slice_gone(void *p)
{
    struct borrowed *b = p;
    if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1) return;
    b->release(b->ctx);
    mem_free(b);
}

void rpc_out_release(const struct rpc_out *out)
{
    if (out->release != NULL) out->release(out->release_ctx);
}

static size_t put_varint(uint8_t *to, uint64_t v)
{
    size_t n = 0;
    while (v >= 0x80) {
        to[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    to[n++] = (uint8_t)v;
    return n;
}

/* Header, then tag and length of the tensor; and the tensor too when it is to be copied. */
static grpc_slice head_slice(const struct rpc_out *out, size_t tensor_bytes, bool with_tensor)
{
    uint8_t tail[11];
    size_t n_tail = 0;
    if (tensor_bytes > 0) {
        tail[0] = TENSOR_TAG;
        n_tail = 1 + put_varint(tail + 1, tensor_bytes);
    }
    grpc_slice s = grpc_slice_malloc(out->header_bytes + n_tail + (with_tensor ? tensor_bytes : 0));
    uint8_t *to = GRPC_SLICE_START_PTR(s);
    if (out->header_bytes > 0) memcpy(to, out->header, out->header_bytes);
    memcpy(to + out->header_bytes, tail, n_tail);
    to += out->header_bytes + n_tail;
    for (unsigned i = 0; with_tensor && i < out->n_parts; i++) {
        if (out->tensor[i].bytes == 0) continue;
        memcpy(to, out->tensor[i].data, out->tensor[i].bytes);
        to += out->tensor[i].bytes;
    }
    return s;
}

grpc_byte_buffer *rpc_message_build(const struct rpc_out *out)
{
    assert(out->n_parts <= RPC_MAX_PARTS);
    size_t tensor_bytes = 0, total = out->header_bytes;
    unsigned n_full = 0;
    bool fits = true;
    for (unsigned i = 0; i < out->n_parts && fits; i++) {
        fits = size_add(tensor_bytes, out->tensor[i].bytes, &tensor_bytes);
        n_full += out->tensor[i].bytes > 0;
    }
    fits = fits && size_add(total, tensor_bytes, &total) && total <= LIMIT_FRAME_BYTES - 16;
    struct borrowed *b = NULL;
    if (fits && out->release != NULL && n_full > 0) {
        b = mem_alloc(sizeof *b);
        fits = b != NULL;
    }
    if (!fits) {
        rpc_out_release(out);
        return NULL;
    }

    grpc_slice slices[1 + RPC_MAX_PARTS];
    size_t n = 0;
    if (b == NULL) {
        slices[n++] = head_slice(out, tensor_bytes, true);
        rpc_out_release(out); /* nothing was borrowed */
    } else {
        atomic_init(&b->refs, n_full);
        b->release = out->release;
        b->ctx = out->release_ctx;
        slices[n++] = head_slice(out, tensor_bytes, false);
        for (unsigned i = 0; i < out->n_parts; i++) {
            const struct rpc_part *p = &out->tensor[i];
            if (p->bytes >
                0) /* gRPC only reads: the cast away from const goes through an integer */
                slices[n++] = grpc_slice_new_with_user_data((void *)(uintptr_t)p->data, p->bytes,
                                                            slice_gone, b);
        }
    }
    grpc_byte_buffer *bb = grpc_raw_byte_buffer_create(slices, n);
    for (size_t i = 0; i < n; i++)
        grpc_slice_unref(slices[i]);
    return bb;
}
