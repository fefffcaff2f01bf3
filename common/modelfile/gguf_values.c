/* Looking things up in a parsed GGUF header. */
#include "common/modelfile/gguf_values.h"

#include <inttypes.h>
#include <string.h>

#include "common/base/check.h"

#define SHOWN 100 /* bytes of a key in a message */

static const struct {
    const char *name;
    uint32_t bytes; /* 0: not of one size */
} value_types[GGUF_N_TYPES] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(enum gguf_type t)
{
    assert(t < GGUF_N_TYPES);
    return value_types[t].name;
}

uint32_t gguf_type_bytes(enum gguf_type t)
{
    assert(t < GGUF_N_TYPES);
    return value_types[t].bytes;
}

uint64_t gguf_little_endian(const uint8_t *p, size_t width)
{
    uint64_t x = 0;
    for (size_t i = width; i-- > 0;)
        x = x << 8 | p[i];
    return x;
}

int gguf_compare_texts(struct gguf_text a, struct gguf_text b)
{
    int order = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
    return order != 0 ? order : (a.n > b.n) - (a.n < b.n);
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
    uint32_t lo = 0, hi = g->n_tensors;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int order = strcmp(g->by_name[mid]->name, name);
        if (order == 0) return g->by_name[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

const struct gguf_value *gguf_find(const struct gguf *g, const char *key)
{
    const struct gguf_text wanted = {key, strlen(key)};
    uint32_t lo = 0, hi = g->n_values;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int order = gguf_compare_texts(g->by_key[mid]->key, wanted);
        if (order == 0) return g->by_key[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static bool is_integer(const struct gguf_value *v)
{
    return v->type != GGUF_F32 && v->type != GGUF_F64 && v->type != GGUF_BOOL &&
           v->type != GGUF_STRING;
}

static bool is_real(const struct gguf_value *v)
{
    return v->type == GGUF_F32 || v->type == GGUF_F64;
}

bool gguf_text_is(struct gguf_text t, const char *s)
{
    return t.n == strlen(s) && memcmp(t.s, s, t.n) == 0;
}

struct gguf_text gguf_text_at(const struct gguf_value *v, uint64_t i)
{
    assert(v->type == GGUF_STRING && i < v->n);
    const uint8_t *p = v->data + (v->is_array ? v->index[i] : 0);
    return (struct gguf_text){(const char *)p + 8, (size_t)gguf_little_endian(p, 8)};
}

bool gguf_i64_at(const struct gguf_value *v, uint64_t i, int64_t *out)
{
    assert((is_integer(v) || v->type == GGUF_BOOL) && i < v->n);
    const size_t width = gguf_type_bytes(v->type);
    const uint64_t x = gguf_little_endian(v->data + i * width, width);
    switch (v->type) {
    case GGUF_I8:
        *out = (int8_t)x;
        return true;
    case GGUF_I16:
        *out = (int16_t)x;
        return true;
    case GGUF_I32:
        *out = (int32_t)x;
        return true;
    default:
        *out = (int64_t)x;
        return v->type != GGUF_U64 || x <= INT64_MAX;
    }
}

double gguf_real_at(const struct gguf_value *v, uint64_t i)
{
    assert(v->type != GGUF_STRING && i < v->n);
    int64_t x;
    float f;
    double d;
    switch (v->type) {
    case GGUF_F32:
        memcpy(&f, v->data + i * sizeof f, sizeof f);
        return (double)f;
    case GGUF_F64:
        memcpy(&d, v->data + i * sizeof d, sizeof d);
        return d;
    default:
        return gguf_i64_at(v, i, &x) ? (double)x : (double)(uint64_t)x;
    }
}

/* A value of the key that is an array or not. */
static enum err_code find(const struct gguf *g, const char *key, bool is_array, const char *wanted,
                          bool (*is_kind)(const struct gguf_value *v),
                          const struct gguf_value **out, struct err *why)
{
    const struct gguf_value *v = gguf_find(g, key);
    if (v == NULL) return err_set(why, ERR_NOT_FOUND, "key '%.*s' is missing", SHOWN, key);
    if (v->is_array != is_array || !is_kind(v))
        return err_set(why, ERR_CORRUPT, "key '%.*s' must be %s, it is %s%s", SHOWN, key, wanted,
                       v->is_array ? "an array of " : "a ", gguf_type_name(v->type));
    *out = v;
    return ERR_OK;
}

static bool is_number(const struct gguf_value *v)
{
    return is_integer(v) || is_real(v);
}

static bool is_bool(const struct gguf_value *v)
{
    return v->type == GGUF_BOOL;
}

static bool is_string(const struct gguf_value *v)
{
    return v->type == GGUF_STRING;
}

static enum err_code integer(const struct gguf *g, const char *key, int64_t min, int64_t max,
                             int64_t *out, struct err *why)
{
    const struct gguf_value *v;
    int64_t x;
    enum err_code rc = find(g, key, false, "an integer", is_integer, &v, why);
    if (rc != ERR_OK) return rc;
    if (!gguf_i64_at(v, 0, &x))
        return err_set(why, ERR_CORRUPT, "key '%.*s' is %" PRIu64 ", it must be at most %" PRId64,
                       SHOWN, key, (uint64_t)x, max);
    if (x < min || x > max)
        return err_set(why, ERR_CORRUPT,
                       "key '%.*s' is %" PRId64 ", it must be from %" PRId64 " to %" PRId64, SHOWN,
                       key, x, min, max);
    *out = x;
    return ERR_OK;
}

enum err_code gguf_i64(const struct gguf *g, const char *key, int64_t *out, struct err *why)
{
    return integer(g, key, INT64_MIN, INT64_MAX, out, why);
}

enum err_code gguf_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *why)
{
    int64_t x;
    enum err_code rc = integer(g, key, 0, UINT32_MAX, &x, why);
    if (rc == ERR_OK) *out = (uint32_t)x;
    return rc;
}

enum err_code gguf_real(const struct gguf *g, const char *key, double *out, struct err *why)
{
    const struct gguf_value *v;
    enum err_code rc = find(g, key, false, "a number", is_number, &v, why);
    if (rc == ERR_OK) *out = gguf_real_at(v, 0);
    return rc;
}

enum err_code gguf_bool(const struct gguf *g, const char *key, bool *out, struct err *why)
{
    const struct gguf_value *v;
    enum err_code rc = find(g, key, false, "a bool", is_bool, &v, why);
    if (rc == ERR_OK) *out = v->data[0] != 0;
    return rc;
}

enum err_code gguf_string(const struct gguf *g, const char *key, struct gguf_text *out,
                          struct err *why)
{
    const struct gguf_value *v;
    enum err_code rc = find(g, key, false, "a string", is_string, &v, why);
    if (rc == ERR_OK) *out = gguf_text_at(v, 0);
    return rc;
}

enum err_code gguf_strings(const struct gguf *g, const char *key, const struct gguf_value **out,
                           struct err *why)
{
    return find(g, key, true, "an array of strings", is_string, out, why);
}

enum err_code gguf_integers(const struct gguf *g, const char *key, const struct gguf_value **out,
                            struct err *why)
{
    return find(g, key, true, "an array of integers", is_integer, out, why);
}

enum err_code gguf_reals(const struct gguf *g, const char *key, const struct gguf_value **out,
                         struct err *why)
{
    return find(g, key, true, "an array of reals", is_real, out, why);
}
