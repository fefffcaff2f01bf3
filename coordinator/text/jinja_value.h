/* jinja_value.h - the values of a template: Python's, as far as templates see them. Immutable once made,
 * except namespaces; they live in the render's arena (or the template's) and are never freed one by one.
 * One thread per render.
 *
 * Every string knows which of its bytes came from the request ("tainted"), and every operation carries
 * that along, so the tokenizer can refuse special tokens in user text. */
#ifndef MOESAIC_TEXT_JINJA_VALUE_H
#define MOESAIC_TEXT_JINJA_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"

struct jinja_run;
struct jinja_stmt;
struct jinja_scope;

enum jinja_kind {
    JV_UNDEFINED,
    JV_NONE,
    JV_BOOL,
    JV_INT,
    JV_FLOAT,
    JV_STRING,
    JV_LIST,
    JV_TUPLE,
    JV_GENERATOR, /* what map, select and the like give: to be iterated, once */
    JV_VIEW,      /* keys(), values(), items(): iterated, has a length */
    JV_DICT,
    JV_RANGE,
    JV_NAMESPACE,
    JV_LOOP,
    JV_MACRO,
    JV_METHOD,
    JV_FUNCTION,
};

struct jinja_str {
    const char *bytes; /* UTF-8, not 0-terminated */
    size_t len;
    const uint8_t *taint; /* len bytes, 1 = from the request; NULL: all as `tainted` */
    bool tainted;
};

struct jinja_value {
    enum jinja_kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        const char *missing; /* UNDEFINED: what was looked for, for messages; may be NULL */
        const struct jinja_str *str;
        struct jinja_list *list; /* LIST, TUPLE, GENERATOR, VIEW */
        struct jinja_dict *dict; /* DICT, NAMESPACE */
        const struct jinja_range *range;
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        const struct jinja_method *method;
        int function; /* enum in jinja_call.c */
    };
};

struct jinja_list {
    struct jinja_value *items;
    size_t n, cap;
    bool consumed; /* a generator that was iterated */
};

struct jinja_entry {
    struct jinja_value key, value;
};

struct jinja_dict {
    struct jinja_entry *entries; /* in insertion order */
    size_t n, cap;
};

struct jinja_range {
    int64_t start, step;
    size_t n;
};

struct jinja_loop {
    size_t index0, length, depth0;
    struct jinja_value previous, next; /* UNDEFINED at the ends */
};

struct jinja_macro {
    const struct jinja_stmt *def;
    struct jinja_scope *scope; /* where it was defined */
};

struct jinja_method {
    struct jinja_value self;
    const char *name;
};

/* White space as Python's str.isspace: bytes at the start or end of s. */
size_t jinja_space_prefix(const char *s, size_t n);
size_t jinja_space_suffix(const char *s, size_t n);
bool jinja_is_space(uint32_t code_point);

/* Code points in n bytes of UTF-8, and the byte offset of code point `index` (n if past the end). */
size_t jinja_utf8_count(const char *s, size_t n);
size_t jinja_utf8_offset(const char *s, size_t n, size_t index);

static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.kind = JV_NONE};
}
static inline struct jinja_value jinja_bool(bool b)
{
    return (struct jinja_value){.kind = JV_BOOL, .truth = b};
}
static inline struct jinja_value jinja_int(int64_t i)
{
    return (struct jinja_value){.kind = JV_INT, .integer = i};
}
static inline struct jinja_value jinja_real(double f)
{
    return (struct jinja_value){.kind = JV_FLOAT, .real = f};
}
static inline struct jinja_value jinja_undefined(const char *name)
{
    return (struct jinja_value){.kind = JV_UNDEFINED, .missing = name};
}

/* All below: false = the render has failed and r holds why. */

bool jinja_new_str(struct jinja_run *r, const char *bytes, size_t n, bool tainted,
                   struct jinja_value *out); /* borrows the bytes */
bool jinja_substr(struct jinja_run *r, const struct jinja_str *s, size_t from, size_t n,
                  struct jinja_value *out);
bool jinja_concat(struct jinja_run *r, const struct jinja_str *a, const struct jinja_str *b,
                  struct jinja_value *out);
bool jinja_new_list(struct jinja_run *r, enum jinja_kind kind, size_t room,
                    struct jinja_value *out);
bool jinja_list_push(struct jinja_run *r, struct jinja_list *list, struct jinja_value item);
bool jinja_new_dict(struct jinja_run *r, enum jinja_kind kind, size_t room,
                    struct jinja_value *out);
/* Insert or replace; the key must be hashable (checked). */
bool jinja_dict_put(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value value);
/* *found = NULL when absent. */
bool jinja_dict_find(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key,
                     struct jinja_value **found);
struct jinja_value *jinja_dict_find_text(struct jinja_run *r, const struct jinja_dict *d,
                                         const char *key);
/* A JSON value with all its strings tainted; strings are borrowed from it. */
bool jinja_from_json(struct jinja_run *r, const json_t *json, unsigned depth,
                     struct jinja_value *out);

bool jinja_truth(const struct jinja_value *v);
bool jinja_equal(struct jinja_run *r, const struct jinja_value *a, const struct jinja_value *b,
                 bool *out);
/* *out = -1, 0, 1, or 2 when a NaN has no order; fails for kinds that have none. */
bool jinja_compare(struct jinja_run *r, const struct jinja_value *a, const struct jinja_value *b,
                   int *out);
bool jinja_contains(struct jinja_run *r, const struct jinja_value *in,
                    const struct jinja_value *what, bool *out);
bool jinja_length(struct jinja_run *r, const struct jinja_value *v, size_t *out);
const char *jinja_kind_name(const struct jinja_value *v); /* as Python calls the type */
bool jinja_is_str(const struct jinja_value *v, const char *text);

/* Walks what can be iterated: for (jinja_iter_open; jinja_iter_next(..., &item, &more) && more;) */
struct jinja_iter {
    struct jinja_value over;
    size_t i, n; /* items given, items in all */
    size_t byte; /* strings: offset of the next character */
};
bool jinja_iter_open(struct jinja_run *r, const struct jinja_value *over, struct jinja_iter *it);
bool jinja_iter_next(struct jinja_run *r, struct jinja_iter *it, struct jinja_value *item,
                     bool *more);

#endif
