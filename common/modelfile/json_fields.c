#include "common/modelfile/json_fields.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void json_fields_fail(struct json_fields *f, enum err_code code, const char *fmt, ...)
{
    if (f->rc != ERR_OK) return;
    char text[ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    f->rc = err_set(f->why, code, "%s: %s", f->where, text);
}

json_t *json_fields_find(const struct json_fields *f, const char *key)
{
    json_t *v = json_object_get(f->object, key);
    return json_is_null(v) ? NULL : v;
}

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a text";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    case JSON_NULL:
        return "null";
    }
    return "?";
}

static void wrong_type(struct json_fields *f, const char *key, const char *wanted, const json_t *v)
{
    json_fields_fail(f, ERR_CORRUPT, "'%s' must be %s, it is %s", key, wanted, type_name(v));
}

static void missing(struct json_fields *f, const char *key)
{
    json_fields_fail(f, ERR_CORRUPT, "'%s' is missing", key);
}

int64_t json_fields_int(struct json_fields *f, const char *key, int64_t min, int64_t max,
                        int64_t fallback)
{
    const json_t *v = json_fields_find(f, key);
    if (v == NULL) {
        if (fallback != JSON_FIELDS_REQUIRED) return fallback;
        missing(f, key);
        return min;
    }
    if (!json_is_integer(v)) {
        wrong_type(f, key, "an integer", v);
        return min;
    }
    int64_t n = json_integer_value(v);
    if (n >= min && n <= max) return n;
    json_fields_fail(f, ERR_CORRUPT, "'%s' is %" PRId64 ", it must be from %" PRId64 " to %" PRId64,
                     key, n, min, max);
    return min;
}

double json_fields_real(struct json_fields *f, const char *key, double min, double max,
                        double fallback)
{
    const json_t *v = json_fields_find(f, key);
    if (v == NULL) {
        if (!isnan(fallback)) return fallback;
        missing(f, key);
        return min;
    }
    if (!json_is_number(v)) {
        wrong_type(f, key, "a number", v);
        return min;
    }
    double x = json_number_value(v);
    if (x >= min && x <= max) return x;
    json_fields_fail(f, ERR_CORRUPT, "'%s' is %.9g, it must be from %g to %g", key, x, min, max);
    return min;
}

json_t *json_fields_list(struct json_fields *f, const char *key)
{
    json_t *v = json_fields_find(f, key);
    if (v == NULL || json_is_array(v)) return v;
    wrong_type(f, key, "a list", v);
    return NULL;
}

bool json_fields_bool(struct json_fields *f, const char *key, bool fallback)
{
    const json_t *v = json_fields_find(f, key);
    if (v == NULL) return fallback;
    if (json_is_boolean(v)) return json_is_true(v);
    wrong_type(f, key, "true or false", v);
    return fallback;
}

const char *json_fields_text(struct json_fields *f, const char *key)
{
    const json_t *v = json_fields_find(f, key);
    if (v == NULL) return NULL;
    if (!json_is_string(v)) {
        wrong_type(f, key, "a text", v);
        return NULL;
    }
    if (strlen(json_string_value(v)) != json_string_length(v)) {
        json_fields_fail(f, ERR_CORRUPT, "'%s' contains a NUL character", key);
        return NULL;
    }
    return json_string_value(v);
}
