#include "coordinator/text/tok_json.h"

#include <string.h>

static const char *kind(const json_t *v)
{
    if (v == NULL) return "missing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "of an unknown kind";
}

static enum err_code wrong(const json_t *v, const char *where, const char *key, const char *want,
                           struct err *why)
{
    return err_set(why, ERR_CORRUPT, "%s: '%s' is %s, not %s", where, key, kind(v), want);
}

enum err_code tok_json_type(const json_t *component, const char *where, const char **type,
                            struct err *why)
{
    if (!json_is_object(component))
        return err_set(why, ERR_CORRUPT, "%s is %s, not an object", where, kind(component));
    const json_t *v = json_object_get(component, "type");
    if (!json_is_string(v)) return wrong(v, where, "type", "a string", why);
    *type = json_string_value(v);
    return ERR_OK;
}

enum err_code tok_json_string(const json_t *object, const char *where, const char *key,
                              const char **s, size_t *n, struct err *why)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_string(v)) return wrong(v, where, key, "a string", why);
    *s = json_string_value(v);
    *n = json_string_length(v);
    return ERR_OK;
}

enum err_code tok_json_bool(const json_t *object, const char *where, const char *key, bool fallback,
                            bool *out, struct err *why)
{
    const json_t *v = json_object_get(object, key);
    if (v != NULL && !json_is_null(v) && !json_is_boolean(v))
        return wrong(v, where, key, "a boolean", why);
    *out = json_is_boolean(v) ? json_is_true(v) : fallback;
    return ERR_OK;
}

enum err_code tok_json_array(const json_t *object, const char *where, const char *key, json_t **out,
                             struct err *why)
{
    json_t *v = json_object_get(object, key);
    if (!json_is_array(v)) return wrong(v, where, key, "an array", why);
    *out = v;
    return ERR_OK;
}

enum err_code tok_json_object(const json_t *object, const char *where, const char *key,
                              json_t **out, struct err *why)
{
    json_t *v = json_object_get(object, key);
    if (!json_is_object(v)) return wrong(v, where, key, "an object", why);
    *out = v;
    return ERR_OK;
}

enum err_code tok_json_id(const json_t *value, const char *what, long long max, int *out,
                          struct err *why)
{
    if (!json_is_integer(value))
        return err_set(why, ERR_CORRUPT, "%s is %s, not an integer", what, kind(value));
    long long id = json_integer_value(value);
    if (id < 0 || id > max)
        return err_set(why, ERR_CORRUPT, "%s is %lld, outside 0..%lld", what, id, max);
    *out = (int)id;
    return ERR_OK;
}

enum err_code tok_json_refuse(const char *where, const char *type, struct err *why)
{
    return err_set(why, ERR_UNSUPPORTED, "%s: type '%.64s' is not supported", where, type);
}
