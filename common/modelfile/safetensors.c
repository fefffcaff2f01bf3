#include "common/modelfile/safetensors.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

/* {"name": {"shape": [..]}} */
#define HEADER_DEPTH 3u

static const struct {
    char name[12];
    uint32_t bits;
    enum dtype dtype;
} formats[] = {
    {"F32", 32, DTYPE_F32},        {"F16", 16, DTYPE_F16},      {"BF16", 16, DTYPE_BF16},
    {"BOOL", 8, DTYPE_N},          {"U8", 8, DTYPE_N},          {"I8", 8, DTYPE_N},
    {"F8_E4M3", 8, DTYPE_F8_E4M3}, {"F8_E5M2", 8, DTYPE_N},     {"F8_E8M0", 8, DTYPE_N},
    {"F8_E4M3FNUZ", 8, DTYPE_N},   {"F8_E5M2FNUZ", 8, DTYPE_N}, {"I16", 16, DTYPE_N},
    {"U16", 16, DTYPE_N},          {"I32", 32, DTYPE_N},        {"U32", 32, DTYPE_N},
    {"I64", 64, DTYPE_N},          {"U64", 64, DTYPE_N},        {"F64", 64, DTYPE_N},
    {"C64", 64, DTYPE_N},          {"F4", 4, DTYPE_N},          {"F6_E2M3", 6, DTYPE_N},
    {"F6_E3M2", 6, DTYPE_N},
};

/* Names come from outside: long ones are cut in messages. */
#define NAME_FMT "'%.200s'"

static enum err_code get_u64(const json_t *v, const char *name, const char *what, uint64_t *out,
                             struct err *why)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_set(why, ERR_CORRUPT, "tensor " NAME_FMT ": %s is not a whole number from 0 up",
                       name, what);
    *out = (uint64_t)json_integer_value(v);
    return ERR_OK;
}

static enum err_code read_shape(const json_t *shape, struct safetensors_tensor *t, struct err *why)
{
    if (!json_is_array(shape))
        return err_set(why, ERR_CORRUPT, "tensor " NAME_FMT ": 'shape' is not a list", t->name);
    if (json_array_size(shape) > TENSOR_MAX_DIMS)
        return err_set(why, ERR_UNSUPPORTED,
                       "tensor " NAME_FMT ": %zu dimensions, at most %u are supported", t->name,
                       json_array_size(shape), TENSOR_MAX_DIMS);
    t->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->n_dims; i++) {
        enum err_code rc =
            get_u64(json_array_get(shape, i), t->name, "a dimension", &t->dims[i], why);
        if (rc != ERR_OK) return rc;
    }
    return ERR_OK;
}

/* The bytes that dtype and shape ask for. A format too new to be known has no size to compare: *known = false. */
static enum err_code shape_bytes(const struct safetensors_tensor *t, uint64_t *out, bool *known,
                                 struct err *why)
{
    *known = false;
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(t->dtype_text, formats[i].name) != 0) continue;
        size_t bits = formats[i].bits;
        bool fits = true;
        for (uint32_t d = 0; d < t->n_dims; d++)
            fits = fits && size_mul(bits, t->dims[d], &bits);
        /* A zero behind two huge dimensions would hide the overflow of their product; refuse it all the same. */
        if (!fits)
            return err_set(why, ERR_CORRUPT,
                           "tensor " NAME_FMT ": the product of its dimensions overflows", t->name);
        if (bits % 8 != 0)
            return err_set(why, ERR_CORRUPT,
                           "tensor " NAME_FMT ": %zu bits are no whole number of bytes", t->name,
                           bits);
        *out = bits / 8;
        *known = true;
    }
    return ERR_OK;
}

static enum dtype dtype_of(const char *text)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (strcmp(text, formats[i].name) == 0) return formats[i].dtype;
    return DTYPE_N;
}

/* `off` is relative to the data here; the caller adds the data's place in the file. */
static enum err_code read_tensor(const char *name, const json_t *v, uint64_t data_bytes,
                                 struct safetensors_tensor *t, struct err *why)
{
    t->name = mem_strdup(name);
    if (t->name == NULL) return err_nomem(why, "tensor names");
    if (!json_is_object(v))
        return err_set(why, ERR_CORRUPT, "tensor " NAME_FMT ": is not an object", name);
    const json_t *dtype = json_object_get(v, "dtype");
    if (!json_is_string(dtype))
        return err_set(why, ERR_CORRUPT, "tensor " NAME_FMT ": 'dtype' is not a text", name);
    size_t len = json_string_length(dtype);
    if (len == 0 || len >= SAFETENSORS_DTYPE_TEXT || strlen(json_string_value(dtype)) != len)
        return err_set(why, ERR_CORRUPT,
                       "tensor " NAME_FMT ": 'dtype' is no name of 1 to %u characters", name,
                       SAFETENSORS_DTYPE_TEXT - 1);
    memcpy(t->dtype_text, json_string_value(dtype), len + 1);
    t->dtype = dtype_of(t->dtype_text);
    enum err_code rc = read_shape(json_object_get(v, "shape"), t, why);
    if (rc != ERR_OK) return rc;

    const json_t *offsets = json_object_get(v, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return err_set(why, ERR_CORRUPT,
                       "tensor " NAME_FMT ": 'data_offsets' is not a list of two numbers", name);
    uint64_t begin = 0, end = 0, need = 0;
    rc = get_u64(json_array_get(offsets, 0), name, "data_offsets[0]", &begin, why);
    if (rc == ERR_OK) rc = get_u64(json_array_get(offsets, 1), name, "data_offsets[1]", &end, why);
    if (rc != ERR_OK) return rc;
    if (begin > end)
        return err_set(why, ERR_CORRUPT,
                       "tensor " NAME_FMT ": begins at %" PRIu64 ", after its end at %" PRIu64,
                       name, begin, end);
    if (end > data_bytes)
        return err_set(why, ERR_CORRUPT,
                       "tensor " NAME_FMT ": ends at byte %" PRIu64
                       " of the data, the file has %" PRIu64,
                       name, end, data_bytes);
    bool known;
    rc = shape_bytes(t, &need, &known, why);
    if (rc != ERR_OK) return rc;
    if (known && need != end - begin)
        return err_set(why, ERR_CORRUPT,
                       "tensor " NAME_FMT ": its shape and %s need %" PRIu64
                       " bytes, its offsets span %" PRIu64,
                       name, t->dtype_text, need, end - begin);
    t->off = begin;
    t->bytes = end - begin;
    return ERR_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->off != y->off) return x->off < y->off ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

/* Each tensor begins where the one before ended, from 0 to the end of the file. */
static enum err_code check_cover(const struct safetensors *s, uint64_t data_bytes, struct err *why)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        const struct safetensors_tensor *t = &s->tensors[i];
        if (t->off != at)
            return err_set(why, ERR_CORRUPT,
                           "tensor " NAME_FMT ": begins at byte %" PRIu64
                           " of the data, %s " NAME_FMT " ended at %" PRIu64,
                           t->name, t->off, t->off < at ? "but it overlaps:" : "there is a hole:",
                           i > 0 ? s->tensors[i - 1].name : "(start)", at);
        at += t->bytes;
    }
    if (at != data_bytes)
        return err_set(why, ERR_CORRUPT,
                       "the last tensor ends at byte %" PRIu64
                       " of the data, the file has %" PRIu64,
                       at, data_bytes);
    return ERR_OK;
}

static enum err_code check_metadata(json_t *meta, struct err *why)
{
    if (!json_is_object(meta)) return err_set(why, ERR_CORRUPT, "'__metadata__' is not an object");
    for (void *it = json_object_iter(meta); it != NULL; it = json_object_iter_next(meta, it))
        if (!json_is_string(json_object_iter_value(it)))
            return err_set(why, ERR_CORRUPT,
                           "'__metadata__': the value of " NAME_FMT " is not a text",
                           json_object_iter_key(it));
    return ERR_OK;
}

static enum err_code read_header(json_t *header, uint64_t data_bytes, struct safetensors *s,
                                 struct err *why)
{
    s->tensors = mem_zalloc_array(json_object_size(header), sizeof *s->tensors);
    if (s->tensors == NULL) return err_nomem(why, "the tensor table");
    for (void *it = json_object_iter(header); it != NULL; it = json_object_iter_next(header, it)) {
        const char *name = json_object_iter_key(it);
        json_t *v = json_object_iter_value(it);
        enum err_code rc = strcmp(name, "__metadata__") == 0
                               ? check_metadata(v, why)
                               : read_tensor(name, v, data_bytes, &s->tensors[s->n++], why);
        if (rc != ERR_OK) return rc;
    }
    qsort(s->tensors, s->n, sizeof *s->tensors, by_place);
    return check_cover(s, data_bytes, why);
}

enum err_code safetensors_parse(const uint8_t *bytes, size_t n, struct safetensors *out,
                                struct err *why)
{
    if (n < 8) return err_set(why, ERR_CORRUPT, "%zu bytes are too few for a safetensors file", n);
    uint64_t len = 0;
    for (int i = 7; i >= 0; i--)
        len = len << 8 | bytes[i];
    if (len > LIMIT_SAFETENSORS_HEADER_BYTES)
        return err_set(why, ERR_CORRUPT,
                       "the header claims %" PRIu64 " bytes, at most %u are allowed", len,
                       LIMIT_SAFETENSORS_HEADER_BYTES);
    if (len > n - 8)
        return err_set(why, ERR_CORRUPT,
                       "the header claims %" PRIu64 " bytes, the file has %zu after its length",
                       len, n - 8);
    const char *text = (const char *)bytes + 8;
    if (len == 0 || text[0] != '{')
        return err_set(why, ERR_CORRUPT, "the header does not begin with '{'");

    json_t *header;
    enum err_code rc = json_parse(text, (size_t)len, HEADER_DEPTH, &header, why);
    if (rc != ERR_OK) return err_wrap(why, rc == ERR_INVALID ? ERR_CORRUPT : rc, "header");
    struct safetensors s = {0};
    rc = read_header(header, n - 8 - len, &s, why);
    json_decref(header);
    if (rc != ERR_OK) {
        safetensors_deinit(&s);
        return rc;
    }
    for (uint32_t i = 0; i < s.n; i++)
        s.tensors[i].off += 8 + len;
    *out = s;
    return ERR_OK;
}

void safetensors_deinit(struct safetensors *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        mem_free(s->tensors[i].name);
    mem_free(s->tensors);
    *s = (struct safetensors){0};
}
