/* bad_values.h - the values that every field of every file is given, and which fields a reader asks for. Test code,
 * one thread.
 *
 * json_object_get is jansson's; the definition here comes before the library's in the search for symbols, so the keys
 * that the code under test asks for are known: a key that is new there and not in a test's table is a failure. */
#ifndef MOESAIC_TESTS_BAD_VALUES_H
#define MOESAIC_TESTS_BAD_VALUES_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char *const bad_values[] = {
    "0",
    "-1",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "1.5",
    "1e300",
    "1e999",
    "\"1\"",
    "\"\"",
    "true",
    "false",
    "null",
    "[]",
    "{}",
};
#define N_BAD_VALUES (sizeof bad_values / sizeof *bad_values)

/* ---- which keys were asked for ------------------------------------------------------------------ */

static struct {
    bool on;
    size_t n;
    char keys[512][64];
} asked;

json_t *json_object_get(const json_t *object, const char *key)
{
    size_t i = 0;
    while (asked.on && i < asked.n && strcmp(asked.keys[i], key) != 0)
        i++;
    if (asked.on && i == asked.n && asked.n < sizeof asked.keys / sizeof *asked.keys)
        snprintf(asked.keys[asked.n++], sizeof *asked.keys, "%s", key);
    return json_object_getn(object, key, strlen(key));
}

static inline void asked_begin(void)
{
    asked.n = 0;
    asked.on = true;
}

static inline void asked_end(void)
{
    asked.on = false;
}

/* ---- writing a value into a document ------------------------------------------------------------- */

#define BAD_VALUE_MARK "@@the value@@"

/* The document's text with the member or element `at` of `in` replaced by `value`, JSON or not; NULL takes a member
 * away. free(). */
static inline char *with_value(json_t *root, json_t *in, const char *key, size_t index,
                               const char *value)
{
    json_t *had = key != NULL ? json_object_getn(in, key, strlen(key)) : json_array_get(in, index);
    json_incref(had);
    if (key != NULL && value == NULL)
        json_object_del(in, key);
    else if (key != NULL)
        json_object_set_new(in, key, json_string(BAD_VALUE_MARK));
    else
        json_array_set_new(in, index, json_string(BAD_VALUE_MARK));
    char *text = json_dumps(root, JSON_COMPACT);
    if (key != NULL && had == NULL)
        json_object_del(in, key);
    else if (key != NULL)
        json_object_set(in, key, had);
    else
        json_array_set(in, index, had);
    json_decref(had);
    if (value == NULL) return text;
    char *mark = strstr(text, "\"" BAD_VALUE_MARK "\"");
    size_t head = (size_t)(mark - text), cap = strlen(text) + strlen(value) + 1;
    char *out = malloc(cap);
    snprintf(out, cap, "%.*s%s%s", (int)head, text, value,
             mark + sizeof "\"" BAD_VALUE_MARK "\"" - 1);
    free(text);
    return out;
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* From here on this process gets at most so many bytes of address space more: an allocation whose size came from a
 * file fails, and its error is not one of the expected. AddressSanitizer has its own view of address space. */
static inline void limit_memory(size_t more_bytes)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)more_bytes;
#else
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL || fscanf(f, "%ld", &pages) != 1) abort();
    fclose(f);
    rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + more_bytes;
    if (setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes}) != 0) abort();
#endif
}

#endif
