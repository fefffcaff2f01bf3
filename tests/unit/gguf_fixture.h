/* gguf_fixture.h - GGUF files made up byte by byte. Test code: aborts on any trouble. */
#ifndef MOESAIC_TESTS_GGUF_FIXTURE_H
#define MOESAIC_TESTS_GGUF_FIXTURE_H

#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/modelfile/gguf.h"

struct gguf_maker {
    struct buf keys, infos, data;
    uint64_t n_keys, n_tensors;
    uint32_t version, alignment; /* 0: 3, 32 */
};

static inline void put_le(struct buf *b, uint64_t x, int width)
{
    for (int i = 0; i < width; i++)
        buf_putc(b, (char)(x >> 8 * i));
}

static inline void put_string(struct buf *b, const char *s)
{
    put_le(b, strlen(s), 8);
    buf_puts(b, s);
}

static inline void make_key(struct gguf_maker *m, const char *key, enum gguf_type t)
{
    put_string(&m->keys, key);
    put_le(&m->keys, t, 4);
    m->n_keys++;
}

static inline void make_int(struct gguf_maker *m, const char *key, enum gguf_type t, int64_t x)
{
    static const int widths[GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    make_key(m, key, t);
    put_le(&m->keys, (uint64_t)x, widths[t]);
}

static inline void make_u32(struct gguf_maker *m, const char *key, uint32_t x)
{
    make_int(m, key, GGUF_U32, x);
}

static inline void make_f32(struct gguf_maker *m, const char *key, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    make_key(m, key, GGUF_F32);
    put_le(&m->keys, bits, 4);
}

static inline void make_string(struct gguf_maker *m, const char *key, const char *s)
{
    make_key(m, key, GGUF_STRING);
    put_string(&m->keys, s);
}

static inline void make_array(struct gguf_maker *m, const char *key, enum gguf_type t, uint64_t n)
{
    make_key(m, key, GGUF_ARRAY); /* the caller puts the elements */
    put_le(&m->keys, t, 4);
    put_le(&m->keys, n, 8);
}

/* At the next aligned place of the data; its bytes are those given, or zeros. */
static inline void make_tensor(struct gguf_maker *m, const char *name, uint32_t type,
                               uint32_t n_dims, const uint64_t *dims, const void *data,
                               size_t bytes)
{
    while (m->data.len % (m->alignment ? m->alignment : 32) != 0)
        buf_putc(&m->data, 0);
    put_string(&m->infos, name);
    put_le(&m->infos, n_dims, 4);
    for (uint32_t i = 0; i < n_dims; i++)
        put_le(&m->infos, dims[i], 8);
    put_le(&m->infos, type, 4);
    put_le(&m->infos, m->data.len, 8);
    m->n_tensors++;
    for (size_t i = 0; i < bytes; i++)
        buf_putc(&m->data, data != NULL ? ((const char *)data)[i] : 0);
}

/* The file in a block of exactly its size, so that a sanitizer sees a read past its end; free(). Empties m. */
static inline uint8_t *make_file(struct gguf_maker *m, size_t *n)
{
    struct buf b = {0};
    buf_puts(&b, "GGUF");
    put_le(&b, m->version ? m->version : 3, 4);
    put_le(&b, m->n_tensors, 8);
    put_le(&b, m->n_keys, 8);
    buf_append(&b, m->keys.data, m->keys.len);
    buf_append(&b, m->infos.data, m->infos.len);
    while (m->data.len > 0 && b.len % (m->alignment ? m->alignment : 32) != 0)
        buf_putc(&b, 0);
    buf_append(&b, m->data.data, m->data.len);
    *n = b.len;
    uint8_t *p = malloc(b.len);
    if (p == NULL || b.failed) abort();
    memcpy(p, b.data, b.len);
    buf_free(&b);
    buf_free(&m->keys);
    buf_free(&m->infos);
    buf_free(&m->data);
    *m = (struct gguf_maker){0};
    return p;
}

#endif
