#include "common/modelfile/rope_params.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"

static const struct {
    const char *name;
    enum rope_kind kind;
    const char *keys[9]; /* those it may have besides the common ones */
} kinds[] = {
    {"default", ROPE_PLAIN, {NULL}},
    {"linear", ROPE_LINEAR, {"factor"}},
    {"llama3",
     ROPE_LLAMA3,
     {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}},
    {"yarn",
     ROPE_YARN,
     {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
      "truncate", "mscale", "mscale_all_dim"}},
    {"longrope",
     ROPE_LONG,
     {"factor", "original_max_position_embeddings", "short_factor", "long_factor", "short_mscale",
      "long_mscale", "attention_factor"}},
    {"divisors", ROPE_DIVISORS, {"divisors"}}, /* of a GGUF file: what llama3 comes to, listed */
};

static const char *const common_keys[] = {"rope_type", "type", "rope_theta",
                                          "partial_rotary_factor"};

static bool key_belongs(size_t kind, const char *key)
{
    for (size_t i = 0; i < ARRAY_LEN(common_keys); i++)
        if (strcmp(key, common_keys[i]) == 0) return true;
    for (size_t i = 0; i < ARRAY_LEN(kinds[kind].keys) && kinds[kind].keys[i] != NULL; i++)
        if (strcmp(key, kinds[kind].keys[i]) == 0) return true;
    return false;
}

/* Index into kinds; a rope type that is not there is a fault. */
static size_t find_kind(struct json_fields *f)
{
    const char *name = json_fields_text(f, "rope_type");
    const char *old_name = json_fields_text(f, "type");
    if (name != NULL && old_name != NULL && strcmp(name, old_name) != 0)
        json_fields_fail(f, ERR_CORRUPT, "'rope_type' is '%.100s', but 'type' is '%.100s'", name,
                         old_name);
    if (name == NULL) name = old_name;
    if (name == NULL) return 0;
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(name, kinds[i].name) == 0) return i;
    json_fields_fail(
        f, ERR_UNSUPPORTED,
        "rope type '%.100s' is not supported (default, linear, llama3, yarn, longrope are)", name);
    return 0;
}

/* A list of positive factors, one per rotated pair. */
static uint32_t read_factors(struct json_fields *f, const char *key, float out[])
{
    const json_t *list = json_fields_list(f, key);
    size_t n = json_array_size(list);
    if (n == 0 || n > LIMIT_HEAD_DIM / 2) {
        json_fields_fail(f, ERR_CORRUPT, "'%s' has %zu factors, it must have from 1 to %u", key, n,
                         LIMIT_HEAD_DIM / 2);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        double x = json_number_value(json_array_get(list, i));
        if (!(x >= 1e-3 && x <= 1e6)) {
            json_fields_fail(f, ERR_CORRUPT, "'%s': entry %zu is not a number from 0.001 to 1e6",
                             key, i);
            return 0;
        }
        out[i] = (float)x;
    }
    return (uint32_t)n;
}

static void read_long(struct json_fields *f, struct json_fields *config, uint32_t ctx_max,
                      struct rope_params *out)
{
    uint32_t outside = (uint32_t)json_fields_int(config, "original_max_position_embeddings", 1,
                                                 LIMIT_CONTEXT, ctx_max);
    out->original_ctx =
        (uint32_t)json_fields_int(f, "original_max_position_embeddings", 1, LIMIT_CONTEXT, outside);
    if (json_fields_find(config, "original_max_position_embeddings") != NULL &&
        out->original_ctx != outside)
        json_fields_fail(f, ERR_CORRUPT,
                         "'original_max_position_embeddings' is %u, outside it is %u",
                         out->original_ctx, outside);
    out->factor = json_fields_real(f, "factor", 1, 65536, (double)ctx_max / out->original_ctx);
    out->n_factors = read_factors(f, "short_factor", out->short_factor);
    uint32_t n_long = read_factors(f, "long_factor", out->long_factor);
    if (out->n_factors != n_long)
        json_fields_fail(f, ERR_CORRUPT, "'short_factor' has %u entries, 'long_factor' %u",
                         out->n_factors, n_long);
    double both = json_fields_real(f, "attention_factor", 1e-3, 1e3, 0);
    out->short_mscale = json_fields_real(f, "short_mscale", 1e-3, 1e3, both);
    out->long_mscale = json_fields_real(f, "long_mscale", 1e-3, 1e3, both);
}

static void read_scaling(struct json_fields *f, struct json_fields *config, uint32_t ctx_max,
                         struct rope_params *out)
{
    size_t kind = find_kind(f);
    if (f->rc != ERR_OK) return;
    out->kind = kinds[kind].kind;
    for (void *it = json_object_iter(f->object); it != NULL;
         it = json_object_iter_next(f->object, it)) {
        const char *key = json_object_iter_key(it);
        if (!json_is_null(json_object_iter_value(it)) && !key_belongs(kind, key))
            json_fields_fail(f, ERR_UNSUPPORTED, "'%.100s' is not supported with rope type '%s'",
                             key, kinds[kind].name);
    }
    if (out->kind == ROPE_PLAIN) return;
    if (out->kind == ROPE_LONG) {
        read_long(f, config, ctx_max, out);
        return;
    }
    if (out->kind == ROPE_DIVISORS) {
        out->n_factors = read_factors(f, "divisors", out->short_factor);
        return;
    }

    out->factor = json_fields_real(f, "factor", 1, 65536, JSON_FIELDS_REQUIRED_REAL);
    if (out->kind == ROPE_LINEAR) return;

    int64_t fallback = out->kind == ROPE_YARN ? (int64_t)ctx_max : JSON_FIELDS_REQUIRED;
    out->original_ctx = (uint32_t)json_fields_int(f, "original_max_position_embeddings", 1,
                                                  LIMIT_CONTEXT, fallback);
    if (out->kind == ROPE_LLAMA3) {
        out->low_freq_factor =
            json_fields_real(f, "low_freq_factor", 1e-3, 65536, JSON_FIELDS_REQUIRED_REAL);
        out->high_freq_factor =
            json_fields_real(f, "high_freq_factor", 1e-3, 65536, JSON_FIELDS_REQUIRED_REAL);
        if (out->high_freq_factor < out->low_freq_factor)
            json_fields_fail(f, ERR_CORRUPT,
                             "'high_freq_factor' %g must not be below 'low_freq_factor' %g",
                             out->high_freq_factor, out->low_freq_factor);
        return;
    }
    out->beta_fast = json_fields_real(f, "beta_fast", 1e-3, 65536, 32);
    out->beta_slow = json_fields_real(f, "beta_slow", 1e-3, 65536, 1);
    if (out->beta_fast < out->beta_slow)
        json_fields_fail(f, ERR_CORRUPT, "'beta_fast' %g must not be below 'beta_slow' %g",
                         out->beta_fast, out->beta_slow);
    if (json_fields_find(f, "attention_factor") != NULL)
        out->attention_factor =
            json_fields_real(f, "attention_factor", 1e-3, 1e3, JSON_FIELDS_REQUIRED_REAL);
    out->truncate = json_fields_bool(f, "truncate", true);
    out->mscale = json_fields_real(f, "mscale", 0, 1e3, 0);
    out->mscale_all_dim = json_fields_real(f, "mscale_all_dim", 0, 1e3, 0);
}

double rope_params_read(struct json_fields *config, uint32_t ctx_max, double default_theta,
                        struct rope_params *out)
{
    *out = (struct rope_params){.kind = ROPE_PLAIN, .factor = 1};
    json_t *old_form = json_fields_find(config, "rope_scaling");
    json_t *new_form = json_fields_find(config, "rope_parameters");
    if (old_form != NULL && new_form != NULL && !json_equal(old_form, new_form))
        json_fields_fail(config, ERR_CORRUPT,
                         "'rope_scaling' and 'rope_parameters' are both given, and differ");
    const char *key = new_form != NULL ? "rope_parameters" : "rope_scaling";
    json_t *scaling = new_form != NULL ? new_form : old_form;
    if (scaling != NULL && !json_is_object(scaling)) {
        json_fields_fail(config, ERR_CORRUPT, "'%s' must be an object", key);
        scaling = NULL;
    }
    const double theta_min = 2, theta_max = 1e12; /* yarn divides by log(theta) */
    double theta = json_fields_real(config, "rope_theta", theta_min, theta_max, 0);
    double share = json_fields_real(config, "partial_rotary_factor", 1e-3, 1, 1);
    if (scaling != NULL && config->rc == ERR_OK) {
        char where[128];
        snprintf(where, sizeof where, "%.60s: %s", config->where, key);
        struct json_fields f = {.object = scaling, .where = where, .why = config->why};
        double inner = json_fields_real(&f, "rope_theta", theta_min, theta_max, 0);
        if (inner > 0 && theta > 0 && (inner < theta || inner > theta))
            json_fields_fail(&f, ERR_CORRUPT, "'rope_theta' is %g, outside it is %g", inner, theta);
        if (inner > 0) theta = inner;
        read_scaling(&f, config, ctx_max, out);
        share = json_fields_real(&f, "partial_rotary_factor", 1e-3, 1, share);
        if (config->rc == ERR_OK) config->rc = f.rc;
    }
    out->theta = theta > 0 ? theta : default_theta;
    return share;
}
