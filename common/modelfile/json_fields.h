/* json_fields.h - typed reading of a configuration object. Caller's storage, one thread.
 *
 * The first fault sticks (its text names file and key) and later reads answer their fallback, so a long
 * list of reads needs one check at its end. `null` counts as absent everywhere, as in the libraries that
 * write these files. */
#ifndef MOESAIC_MODELFILE_JSON_FIELDS_H
#define MOESAIC_MODELFILE_JSON_FIELDS_H

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"

struct json_fields {
    json_t *object;    /* borrowed */
    const char *where; /* "config.json" or "config.json: rope_scaling" */
    enum err_code rc;  /* ERR_OK until the first fault */
    struct err *why;
};

/* Record a fault, unless there is one already. Texts begin with `where`. */
void json_fields_fail(struct json_fields *f, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The value, or NULL when absent or null. */
json_t *json_fields_find(const struct json_fields *f, const char *key);

#define JSON_FIELDS_REQUIRED (-1) /* as `fallback` of an integer: its absence is a fault */

/* An integer in [min, max]. 1.0 is not an integer. Answers `fallback` when absent, min after a fault. */
int64_t json_fields_int(struct json_fields *f, const char *key, int64_t min, int64_t max,
                        int64_t fallback);
#define JSON_FIELDS_REQUIRED_REAL ((double)NAN)

/* A number (integer or not) in [min, max]. */
double json_fields_real(struct json_fields *f, const char *key, double min, double max,
                        double fallback);
/* Borrowed; NULL when absent. */
json_t *json_fields_list(struct json_fields *f, const char *key);
bool json_fields_bool(struct json_fields *f, const char *key, bool fallback);
/* Borrowed; NULL when absent. A text with an embedded NUL is a fault. */
const char *json_fields_text(struct json_fields *f, const char *key);

#endif
