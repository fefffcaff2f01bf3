#include "common/modelfile/gguf_mapping.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"

/* ---- reading and writing ------------------------------------------------------------------------ */

void mapping_fail(struct gguf_mapping *m, enum err_code code, const char *fmt, ...)
{
    if (m->rc != ERR_OK) return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    m->rc = err_set(m->why, code, "%s", text);
}

/* Names of architectures are ours and short. */
const char *mapping_full_key(const struct gguf_mapping *m, const char *key, char out[GGUF_KEY_MAX])
{
    snprintf(out, GGUF_KEY_MAX, "%s.%s", m->arch->name, key);
    return out;
}

bool mapping_get_real(struct gguf_mapping *m, const char *key, double *out)
{
    char full[GGUF_KEY_MAX];
    struct err own;
    if (m->rc != ERR_OK) return false;
    double x;
    enum err_code rc = gguf_real(m->g, mapping_full_key(m, key, full), &x, &own);
    if (rc == ERR_CORRUPT) mapping_fail(m, rc, "%s", own.text);
    if (rc != ERR_OK) return false;
    if (!isfinite(x)) {
        mapping_fail(m, ERR_CORRUPT, "key '%s' is not a finite number", full);
        return false;
    }
    *out = x;
    return true;
}

/* So that sums and differences of a few do not overflow; what fits where is hparams' business. */
static bool in_range(struct gguf_mapping *m, const char *full, int64_t x)
{
    if (x >= -((int64_t)1 << 40) && x <= (int64_t)1 << 40) return true;
    mapping_fail(m, ERR_CORRUPT, "key '%s' is %" PRId64 ", which no model has", full, x);
    return false;
}

bool mapping_get_int(struct gguf_mapping *m, const char *key, int64_t *out)
{
    char full[GGUF_KEY_MAX];
    struct err own;
    const struct gguf_value *v = gguf_find(m->g, mapping_full_key(m, key, full));
    if (m->rc != ERR_OK || v == NULL) return false;
    int64_t first = 0, x;
    enum err_code rc =
        v->is_array ? gguf_integers(m->g, full, &v, &own) : gguf_i64(m->g, full, &first, &own);
    if (rc != ERR_OK || v->n == 0) {
        mapping_fail(m, ERR_CORRUPT, "%s%s", rc != ERR_OK ? own.text : full,
                     rc != ERR_OK ? "" : ": an empty list of numbers by layer");
        return false;
    }
    for (uint64_t i = 0; i < v->n && v->is_array; i++) {
        bool fits = gguf_i64_at(v, i, &x);
        if (i == 0) first = x;
        if (fits && x == first) continue;
        mapping_fail(m, ERR_UNSUPPORTED,
                     "key '%s' is %" PRId64 " in layer 0 and %" PRId64 " in layer %" PRIu64
                     ": layers of different widths are not supported",
                     full, first, x, i);
        return false;
    }
    if (!in_range(m, full, first)) return false;
    *out = first;
    return true;
}

int64_t mapping_int_or(struct gguf_mapping *m, const char *key, int64_t fallback)
{
    mapping_get_int(m, key, &fallback);
    return fallback;
}

bool mapping_bool_or(struct gguf_mapping *m, const char *key, bool fallback)
{
    char full[GGUF_KEY_MAX];
    struct err own;
    enum err_code rc = gguf_bool(m->g, mapping_full_key(m, key, full), &fallback, &own);
    if (rc == ERR_CORRUPT) mapping_fail(m, rc, "%s", own.text);
    return fallback;
}

void mapping_set(struct gguf_mapping *m, const char *key, json_t *v)
{
    if (v == NULL || json_object_set_new(m->config, key, v) != 0)
        if (m->rc == ERR_OK) m->rc = err_nomem(m->why, "the configuration");
}

void mapping_set_int(struct gguf_mapping *m, const char *key, int64_t x)
{
    mapping_set(m, key, json_integer(x));
}

void mapping_set_bool(struct gguf_mapping *m, const char *key, bool x)
{
    mapping_set(m, key, json_boolean(x));
}

void mapping_set_text(struct gguf_mapping *m, const char *key, const char *s)
{
    mapping_set(m, key, json_string(s));
}

double mapping_shortest(double x)
{
    char text[32];
    const double narrow = (double)(float)x;
    if (narrow < x || narrow > x) return x; /* it had more bits */
    for (int digits = 1; digits < 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        double y = strtod(text, NULL);
        if (!((float)y < (float)x) && !((float)y > (float)x)) return y;
    }
    return x;
}

void mapping_set_real(struct gguf_mapping *m, const char *key, double x)
{
    mapping_set(m, key, json_real(mapping_shortest(x)));
}

void mapping_copy_int(struct gguf_mapping *m, const char *from, const char *to)
{
    int64_t x;
    if (mapping_get_int(m, from, &x)) mapping_set_int(m, to, x);
}

void mapping_require_int(struct gguf_mapping *m, const char *from, const char *to)
{
    int64_t x;
    if (mapping_get_int(m, from, &x))
        mapping_set_int(m, to, x);
    else
        mapping_fail(m, ERR_CORRUPT, "key '%s.%s' is missing", m->arch->name, from);
}

void mapping_copy_real(struct gguf_mapping *m, const char *from, const char *to, double fallback)
{
    double x = fallback;
    if (mapping_get_real(m, from, &x))
        mapping_set_real(m, to, x);
    else if (fallback > 0)
        mapping_set(m, to, json_real(fallback));
}

/* ---- tensors ------------------------------------------------------------------------------------ */

const struct gguf_tensor *mapping_find_tensor(const struct gguf_mapping *m, const char *name)
{
    const struct gguf_entry *e = gguf_set_find(m->set, name);
    return e != NULL ? e->tensor : NULL;
}

const struct gguf_tensor *mapping_find_in_layer(const struct gguf_mapping *m, uint32_t layer,
                                                const char *suffix)
{
    char name[GGUF_NAME_MAX];
    snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, suffix);
    return mapping_find_tensor(m, name);
}

const struct gguf_tensor *mapping_find_in_any(const struct gguf_mapping *m, const char *suffix)
{
    const struct gguf_tensor *t = NULL;
    for (uint32_t l = 0; l < m->n_layers && t == NULL; l++)
        t = mapping_find_in_layer(m, l, suffix);
    return t;
}

bool mapping_has(const struct gguf_mapping *m, const char *suffix)
{
    return mapping_find_in_any(m, suffix) != NULL;
}

json_t *mapping_read_factors(struct gguf_mapping *m, const char *name)
{
    const struct gguf_entry *e = gguf_set_find(m->set, name);
    assert(e != NULL);
    const uint64_t n = e->tensor->dims[0];
    if (e->tensor->dtype != DTYPE_F32 || e->tensor->n_dims != 1 || n > LIMIT_HEAD_DIM / 2) {
        mapping_fail(m, ERR_CORRUPT,
                     "tensor '%s': %s with %" PRIu32 " dimensions and rows of %" PRIu64
                     ", it must be a list of at most %u F32",
                     name, e->tensor->type_text, e->tensor->n_dims, n, LIMIT_HEAD_DIM / 2);
        return NULL;
    }
    float factors[LIMIT_HEAD_DIM / 2];
    memcpy(factors, gguf_set_data(m->set, e), n * sizeof *factors);
    json_t *list = json_array();
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(factors[i])) {
            mapping_fail(m, ERR_CORRUPT, "tensor '%s': element %" PRIu64 " is not finite", name, i);
            break;
        }
        if (list == NULL || json_array_append_new(list, json_real((double)factors[i])) != 0) {
            if (m->rc == ERR_OK) m->rc = err_nomem(m->why, "rope factors");
            break;
        }
    }
    if (list == NULL && m->rc == ERR_OK) m->rc = err_nomem(m->why, "rope factors");
    if (m->rc == ERR_OK) return list;
    json_decref(list);
    return NULL;
}
