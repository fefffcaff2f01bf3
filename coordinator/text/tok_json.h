/* tok_json.h - reading fields of tokenizer.json: every fault is ERR_CORRUPT and names the component
 * ("pre_tokenizer Split") and the key. `where` is that name. Pure, any thread. Results are borrowed
 * from the document. */
#ifndef MOESAIC_TEXT_TOK_JSON_H
#define MOESAIC_TEXT_TOK_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/err.h"
#include "common/base/json.h"

/* The "type" of a component object. */
enum err_code tok_json_type(const json_t *component, const char *where, const char **type,
                            struct err *why);

/* A required string of any length (it may hold NUL). */
enum err_code tok_json_string(const json_t *object, const char *where, const char *key,
                              const char **s, size_t *n, struct err *why);

/* A boolean; absent or null gives `fallback`. */
enum err_code tok_json_bool(const json_t *object, const char *where, const char *key, bool fallback,
                            bool *out, struct err *why);

/* A required array or object. */
enum err_code tok_json_array(const json_t *object, const char *where, const char *key, json_t **out,
                             struct err *why);
enum err_code tok_json_object(const json_t *object, const char *where, const char *key,
                              json_t **out, struct err *why);

/* An integer in 0..max; `what` names it in the error. */
enum err_code tok_json_id(const json_t *value, const char *what, long long max, int *out,
                          struct err *why);

/* ERR_UNSUPPORTED: "<where>: type '<type>' is not supported". */
enum err_code tok_json_refuse(const char *where, const char *type, struct err *why);

#endif
