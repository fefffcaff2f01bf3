#include "common/modelfile/gguf.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/modelfile/gguf_values.h"

#define LEAST_VALUE_BYTES  13u /* a key's length, its type, a value of one byte */
#define LEAST_TENSOR_BYTES 24u /* a name's length, dimensions, type, offset */
#define KEY_MAX            65535u
#define DEFAULT_ALIGNMENT  32u
#define MAX_ALIGNMENT      (1u << 30)
#define SHOWN              100 /* bytes of a key or name in a message */

/* By the file's number. A block of 0: removed from the format, or not yet in it. */
static const struct {
    const char *name;
    uint32_t block, bytes;
    enum dtype dtype;
} tensor_types[] = {
    [0] = {"F32", 1, 4, DTYPE_F32},
    [1] = {"F16", 1, 2, DTYPE_F16},
    [2] = {"Q4_0", 32, 18, DTYPE_Q4_0},
    [3] = {"Q4_1", 32, 20, DTYPE_Q4_1},
    [6] = {"Q5_0", 32, 22, DTYPE_Q5_0},
    [7] = {"Q5_1", 32, 24, DTYPE_Q5_1},
    [8] = {"Q8_0", 32, 34, DTYPE_Q8_0},
    [9] = {"Q8_1", 32, 36, DTYPE_N},
    [10] = {"Q2_K", 256, 84, DTYPE_Q2_K},
    [11] = {"Q3_K", 256, 110, DTYPE_Q3_K},
    [12] = {"Q4_K", 256, 144, DTYPE_Q4_K},
    [13] = {"Q5_K", 256, 176, DTYPE_Q5_K},
    [14] = {"Q6_K", 256, 210, DTYPE_Q6_K},
    [15] = {"Q8_K", 256, 292, DTYPE_N},
    [16] = {"IQ2_XXS", 256, 66, DTYPE_IQ2_XXS},
    [17] = {"IQ2_XS", 256, 74, DTYPE_IQ2_XS},
    [18] = {"IQ3_XXS", 256, 98, DTYPE_IQ3_XXS},
    [19] = {"IQ1_S", 256, 50, DTYPE_IQ1_S},
    [20] = {"IQ4_NL", 32, 18, DTYPE_IQ4_NL},
    [21] = {"IQ3_S", 256, 110, DTYPE_IQ3_S},
    [22] = {"IQ2_S", 256, 82, DTYPE_IQ2_S},
    [23] = {"IQ4_XS", 256, 136, DTYPE_IQ4_XS},
    [24] = {"I8", 1, 1, DTYPE_N},
    [25] = {"I16", 1, 2, DTYPE_N},
    [26] = {"I32", 1, 4, DTYPE_N},
    [27] = {"I64", 1, 8, DTYPE_N},
    [28] = {"F64", 1, 8, DTYPE_N},
    [29] = {"IQ1_M", 256, 56, DTYPE_IQ1_M},
    [30] = {"BF16", 1, 2, DTYPE_BF16},
    [34] = {"TQ1_0", 256, 54, DTYPE_TQ1_0},
    [35] = {"TQ2_0", 256, 66, DTYPE_TQ2_0},
    [39] = {"MXFP4", 32, 17, DTYPE_MXFP4},
    [40] = {"NVFP4", 64, 36, DTYPE_NVFP4},
    [41] = {"Q1_0", 128, 18, DTYPE_N},
    [42] = {"Q2_0", 64, 18, DTYPE_N},
};

/* ---- reading: the first fault sticks, and later reads answer 0 --------------------------------- */

struct reader {
    const uint8_t *bytes;
    size_t at, end, n; /* end: that of the file, or what a header may have */
    char where[SHOWN + 32];
    enum err_code rc;
    struct err *why;
};

static void fail(struct reader *r, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(struct reader *r, enum err_code code, const char *fmt, ...)
{
    if (r->rc != ERR_OK) return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->rc = err_set(r->why, code, "%s: %s", r->where, text);
}

static void no_memory(struct reader *r, const char *what)
{
    if (r->rc == ERR_OK) r->rc = err_nomem(r->why, what);
}

/* Whether `count` things of at least `each` bytes may still come. */
static bool has(struct reader *r, uint64_t count, uint64_t each, const char *what)
{
    if (r->rc != ERR_OK) return false;
    uint64_t left = r->end - r->at;
    if (count <= left / each) return true;
    if (r->end < r->n)
        fail(r, ERR_CORRUPT, "%" PRIu64 " %s from byte %zu on: a header has at most %u bytes",
             count, what, r->at, LIMIT_GGUF_HEADER_BYTES);
    else
        fail(r, ERR_CORRUPT, "%" PRIu64 " %s from byte %zu on, but only %" PRIu64 " bytes are left",
             count, what, r->at, left);
    return false;
}

static uint64_t take(struct reader *r, size_t width)
{
    if (!has(r, width, 1, "bytes")) return 0;
    uint64_t x = gguf_little_endian(r->bytes + r->at, width);
    r->at += width;
    return x;
}

static struct gguf_text take_text(struct reader *r)
{
    uint64_t n = take(r, 8);
    if (!has(r, n, 1, "bytes of a text")) return (struct gguf_text){"", 0};
    struct gguf_text t = {(const char *)r->bytes + r->at, (size_t)n};
    r->at += t.n;
    return t;
}

/* Keys and names are shown in messages and logs as they are. */
static bool is_printable(struct gguf_text t)
{
    for (size_t i = 0; i < t.n; i++)
        if (t.s[i] <= ' ' || t.s[i] > '~') return false;
    return true;
}

/* ---- values ------------------------------------------------------------------------------------- */

static void read_strings(struct reader *r, struct gguf_value *v)
{
    if (!has(r, v->n, 8, "strings")) return;
    if (v->n > LIMIT_GGUF_ARRAY) {
        fail(r, ERR_CORRUPT, "%" PRIu64 " strings, at most %u are allowed", v->n, LIMIT_GGUF_ARRAY);
        return;
    }
    v->index = mem_zalloc_array(v->n, sizeof *v->index);
    if (v->index == NULL) no_memory(r, "an array of strings");
    for (uint64_t i = 0; i < v->n && r->rc == ERR_OK; i++) {
        v->index[i] =
            (uint32_t)(r->bytes + r->at - v->data); /* a header has less than 2^32 bytes */
        take_text(r);
    }
}

/* What stands behind a value's type. */
static void read_elements(struct reader *r, struct gguf_value *v)
{
    v->data = r->bytes + r->at;
    if (v->type == GGUF_STRING) {
        if (v->is_array)
            read_strings(r, v);
        else
            take_text(r);
        return;
    }
    const uint32_t width = gguf_type_bytes(v->type);
    if (!has(r, v->n, width, "elements")) return;
    if (v->type == GGUF_BOOL)
        for (uint64_t i = 0; i < v->n; i++)
            if (v->data[i] > 1)
                fail(r, ERR_CORRUPT, "a bool is 0 or 1, not %u (element %" PRIu64 ")", v->data[i],
                     i);
    r->at += v->n * width;
}

static void read_value(struct reader *r, struct gguf_value *v)
{
    v->key = take_text(r);
    if (v->key.n == 0 || v->key.n > KEY_MAX || !is_printable(v->key)) {
        fail(r, ERR_CORRUPT, "no key of 1 to %u printable characters (%zu bytes)", KEY_MAX,
             v->key.n);
        return;
    }
    snprintf(r->where, sizeof r->where, "key '%.*s'", v->key.n < SHOWN ? (int)v->key.n : SHOWN,
             v->key.s);
    uint64_t type = take(r, 4);
    v->n = 1;
    if (type == GGUF_ARRAY) {
        v->is_array = true;
        type = take(r, 4);
        v->n = take(r, 8);
        if (type == GGUF_ARRAY) fail(r, ERR_UNSUPPORTED, "arrays of arrays are not supported");
    }
    if (type >= GGUF_N_TYPES)
        fail(r, ERR_CORRUPT, "type %" PRIu64 " is not known, they go up to %d", type,
             GGUF_N_TYPES - 1);
    if (r->rc != ERR_OK) return;
    v->type = (enum gguf_type)type;
    read_elements(r, v);
}

static int by_key(const void *a, const void *b)
{
    const struct gguf_value *const *x = a, *const *y = b;
    return gguf_compare_texts((*x)->key, (*y)->key);
}

static void read_values(struct reader *r, uint64_t n, struct gguf *g)
{
    if (!has(r, n, LEAST_VALUE_BYTES, "keys")) return;
    if (n > LIMIT_GGUF_KEYS) {
        fail(r, ERR_CORRUPT, "%" PRIu64 " keys, at most %u are allowed", n, LIMIT_GGUF_KEYS);
        return;
    }
    g->values = mem_zalloc_array(n, sizeof *g->values);
    g->by_key = mem_zalloc_array(n, sizeof *g->by_key);
    if (g->values == NULL || g->by_key == NULL) {
        no_memory(r, "the table of keys");
        return;
    }
    for (; g->n_values < n && r->rc == ERR_OK; g->n_values++) {
        snprintf(r->where, sizeof r->where, "key %" PRIu32 " of %" PRIu64, g->n_values + 1, n);
        read_value(r, &g->values[g->n_values]);
        g->by_key[g->n_values] = &g->values[g->n_values];
    }
    if (r->rc != ERR_OK) return;
    snprintf(r->where, sizeof r->where, "keys");
    qsort(g->by_key, g->n_values, sizeof *g->by_key, by_key);
    for (uint32_t i = 1; i < g->n_values; i++)
        if (by_key(&g->by_key[i - 1], &g->by_key[i]) == 0)
            fail(r, ERR_CORRUPT, "'%.*s' is there twice",
                 (int)(g->by_key[i]->key.n < SHOWN ? g->by_key[i]->key.n : SHOWN),
                 g->by_key[i]->key.s);
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static void read_name(struct reader *r, struct gguf_tensor *t)
{
    struct gguf_text name = take_text(r);
    if (name.n == 0 || name.n >= GGUF_NAME_MAX || !is_printable(name)) {
        fail(r, ERR_CORRUPT, "no name of 1 to %u printable characters (%zu bytes)",
             GGUF_NAME_MAX - 1, name.n);
        return;
    }
    memcpy(t->name, name.s, name.n);
    snprintf(r->where, sizeof r->where, "tensor '%s'", t->name);
}

/* dims and type are read: the bytes they ask for. */
static void size_tensor(struct reader *r, struct gguf_tensor *t)
{
    const uint64_t block = tensor_types[t->type].block;
    size_t elements = 1, bytes;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->dims[i] == 0) fail(r, ERR_CORRUPT, "dimension %" PRIu32 " is 0", i);
        if (!size_mul(elements, t->dims[i], &elements) || elements > INT64_MAX) {
            fail(r, ERR_CORRUPT, "the product of its dimensions overflows");
            return;
        }
    }
    if (t->dims[0] % block != 0)
        fail(r, ERR_CORRUPT,
             "its rows are %" PRIu64 " long, which is no multiple of the %" PRIu64 " of a %s block",
             t->dims[0], block, t->type_text);
    if (!size_mul(elements / block, tensor_types[t->type].bytes, &bytes))
        fail(r, ERR_CORRUPT, "its size in bytes overflows");
    else
        t->bytes = bytes;
}

static void read_tensor(struct reader *r, uint32_t alignment, struct gguf_tensor *t)
{
    read_name(r, t);
    uint64_t n_dims = take(r, 4);
    if (n_dims > TENSOR_MAX_DIMS)
        fail(r, ERR_CORRUPT, "%" PRIu64 " dimensions, at most %u are allowed", n_dims,
             TENSOR_MAX_DIMS);
    for (uint64_t i = 0; i < n_dims && r->rc == ERR_OK; i++)
        t->dims[i] = take(r, 8);
    uint64_t type = take(r, 4);
    t->off = take(r, 8);
    if (r->rc == ERR_OK && (type >= ARRAY_LEN(tensor_types) || tensor_types[type].block == 0))
        fail(r, ERR_UNSUPPORTED, "type %" PRIu64 " is not known", type);
    if (r->rc == ERR_OK && t->off % alignment != 0)
        fail(r, ERR_CORRUPT, "begins at byte %" PRIu64 " of the data, no multiple of %" PRIu32,
             t->off, alignment);
    if (r->rc != ERR_OK) return;
    t->n_dims = (uint32_t)n_dims;
    if (n_dims == 0) { /* a single number */
        t->n_dims = 1;
        t->dims[0] = 1;
    }
    t->type = (uint32_t)type;
    t->type_text = tensor_types[type].name;
    t->dtype = tensor_types[type].dtype;
    size_tensor(r, t);
}

static int by_name(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->off > (*y)->off) - ((*x)->off < (*y)->off);
}

static void read_tensors(struct reader *r, uint64_t n, struct gguf *g)
{
    if (!has(r, n, LEAST_TENSOR_BYTES, "tensors")) return;
    if (n > LIMIT_GGUF_TENSORS) {
        fail(r, ERR_CORRUPT, "%" PRIu64 " tensors, at most %u are allowed", n, LIMIT_GGUF_TENSORS);
        return;
    }
    g->tensors = mem_zalloc_array(n, sizeof *g->tensors);
    g->by_name = mem_zalloc_array(n, sizeof *g->by_name);
    if (g->tensors == NULL || g->by_name == NULL) {
        no_memory(r, "the table of tensors");
        return;
    }
    for (; g->n_tensors < n && r->rc == ERR_OK; g->n_tensors++) {
        snprintf(r->where, sizeof r->where, "tensor %" PRIu32 " of %" PRIu64, g->n_tensors + 1, n);
        read_tensor(r, g->alignment, &g->tensors[g->n_tensors]);
        g->by_name[g->n_tensors] = &g->tensors[g->n_tensors];
    }
}

/* Where the data are is known now: each tensor in the file, none over another, no name twice. */
static void check_tensors(struct reader *r, struct gguf *g)
{
    const uint64_t data_bytes = g->data_off < r->n ? r->n - g->data_off : 0;
    qsort(g->by_name, g->n_tensors, sizeof *g->by_name, by_place);
    for (uint32_t i = 0; i < g->n_tensors && r->rc == ERR_OK; i++) {
        const struct gguf_tensor *t = g->by_name[i], *before = i > 0 ? g->by_name[i - 1] : NULL;
        snprintf(r->where, sizeof r->where, "tensor '%s'", t->name);
        if (t->off > data_bytes || t->bytes > data_bytes - t->off)
            fail(r, ERR_CORRUPT,
                 "%" PRIu64 " bytes from byte %" PRIu64 " of the data on, the file has %" PRIu64,
                 t->bytes, t->off, data_bytes);
        else if (before != NULL && before->off + before->bytes > t->off)
            fail(r, ERR_CORRUPT,
                 "begins at byte %" PRIu64 " of the data, but '%s' ends at %" PRIu64, t->off,
                 before->name, before->off + before->bytes);
    }
    if (r->rc != ERR_OK) return;
    qsort(g->by_name, g->n_tensors, sizeof *g->by_name, by_name);
    for (uint32_t i = 1; i < g->n_tensors; i++)
        if (by_name(&g->by_name[i - 1], &g->by_name[i]) == 0) {
            snprintf(r->where, sizeof r->where, "tensor '%s'", g->by_name[i]->name);
            fail(r, ERR_CORRUPT, "is there twice");
        }
    for (uint32_t i = 0; i < g->n_tensors; i++)
        g->tensors[i].off += g->data_off;
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static void read_version(struct reader *r, struct gguf *g)
{
    static const char *const older[] = {"lmgg", "fmgg", "tjgg"}; /* GGML, GGMF, GGJT */
    snprintf(r->where, sizeof r->where, "header");
    if (!has(r, 4, 1, "bytes")) return;
    for (size_t i = 0; i < ARRAY_LEN(older); i++)
        if (memcmp(r->bytes, older[i], 4) == 0)
            fail(r, ERR_UNSUPPORTED, "a GGML file from before GGUF: convert it again");
    if (memcmp(r->bytes, "GGUF", 4) != 0)
        fail(r, ERR_CORRUPT, "not a GGUF file: it begins with bytes %02x %02x %02x %02x",
             r->bytes[0], r->bytes[1], r->bytes[2], r->bytes[3]);
    r->at += 4;
    g->version = (uint32_t)take(r, 4);
    if (r->rc != ERR_OK) return;
    if ((g->version & 0xffffu) == 0 && g->version != 0)
        fail(r, ERR_UNSUPPORTED, "a big-endian GGUF file: only little-endian ones are supported");
    if (g->version != 2 && g->version != 3)
        fail(r, ERR_UNSUPPORTED, "GGUF version %" PRIu32 ": 2 and 3 are supported", g->version);
}

static void read_alignment(struct reader *r, struct gguf *g)
{
    g->alignment = DEFAULT_ALIGNMENT;
    if (r->rc != ERR_OK) return;
    enum err_code rc = gguf_u32(g, "general.alignment", &g->alignment, r->why);
    if (rc != ERR_OK && rc != ERR_NOT_FOUND) {
        r->rc = rc;
        return;
    }
    snprintf(r->where, sizeof r->where, "key 'general.alignment'");
    if (g->alignment == 0 || g->alignment > MAX_ALIGNMENT ||
        (g->alignment & (g->alignment - 1)) != 0)
        fail(r, ERR_CORRUPT, "%" PRIu32 " is no power of two up to %u", g->alignment,
             MAX_ALIGNMENT);
}

enum err_code gguf_parse(const uint8_t *bytes, size_t n, struct gguf *out, struct err *why)
{
    struct reader r = {.bytes = bytes, .n = n, .why = why};
    struct gguf g = {0};
    r.end = n < LIMIT_GGUF_HEADER_BYTES ? n : LIMIT_GGUF_HEADER_BYTES;
    *out = g;
    read_version(&r, &g);
    uint64_t n_tensors = take(&r, 8), n_values = take(&r, 8);
    read_values(&r, n_values, &g);
    read_alignment(&r, &g);
    snprintf(r.where, sizeof r.where, "header");
    read_tensors(&r, n_tensors, &g);
    if (r.rc == ERR_OK) {
        g.data_off = (r.at + g.alignment - 1) / g.alignment * (uint64_t)g.alignment;
        check_tensors(&r, &g);
    }
    if (r.rc == ERR_OK)
        *out = g;
    else
        gguf_deinit(&g);
    return r.rc;
}

void gguf_deinit(struct gguf *g)
{
    for (uint32_t i = 0; i < g->n_values; i++)
        mem_free(g->values[i].index);
    mem_free(g->values);
    mem_free(g->tensors);
    mem_free(g->by_key);
    mem_free(g->by_name);
    *g = (struct gguf){0};
}
