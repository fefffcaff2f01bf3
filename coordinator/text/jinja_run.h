/* jinja_run.h - one render under way: its memory, its output, its bounds and its failure. One thread. */
#ifndef MOESAIC_TEXT_JINJA_RUN_H
#define MOESAIC_TEXT_JINJA_RUN_H

#include <time.h>

#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/base/err.h"
#include "coordinator/text/jinja_value.h"

struct jinja_binding {
    uint32_t name;
    struct jinja_value value;
    struct jinja_binding *next;
};

struct jinja_scope {
    struct jinja_binding *names;
    struct jinja_scope *outer;
};

struct jinja_run {
    struct arena arena;
    struct buf *out, *taint;  /* same length always; also the place where strings are built */
    const char *const *names; /* id -> text */
    const struct jinja_value *globals; /* id -> value; UNDEFINED if not given */
    size_t n_names;
    struct tm now;
    uint64_t steps;
    unsigned depth, macro_depth, loop_depth;
    uint32_t line;                  /* of what is being evaluated, for messages */
    struct jinja_value block_value; /* the text of the set or filter block whose filters run */
    enum err_code rc;               /* sticky */
    struct err *why;
};

/* Fail with INVALID and "line N: text" (the first failure wins). Always false. */
bool jinja_fail(struct jinja_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool jinja_fail_nomem(struct jinja_run *r);
/* Account for n units of work. */
bool jinja_steps(struct jinja_run *r, size_t n);
/* Account for touching n bytes. */
bool jinja_touch(struct jinja_run *r, size_t n_bytes);
/* Recursion: enter before, leave after (also after a failed enter). */
bool jinja_enter(struct jinja_run *r);
void jinja_leave(struct jinja_run *r);
void *jinja_alloc(struct jinja_run *r, size_t n, size_t bytes_each); /* zeroed; NULL = failed */

/* Strings are built at the end of the output and taken off it again: mark, emit.., take. */
size_t jinja_mark(const struct jinja_run *r);
bool jinja_emit(struct jinja_run *r, const char *bytes, size_t n, bool tainted);
bool jinja_emit_text(struct jinja_run *r, const char *text); /* trusted */
bool jinja_emit_str(struct jinja_run *r, const struct jinja_str *s);
bool jinja_emit_sub(struct jinja_run *r, const struct jinja_str *s, size_t from, size_t n);
/* The whole since `mark` becomes tainted if any of it is. */
void jinja_spread_taint(struct jinja_run *r, size_t mark);
bool jinja_take(struct jinja_run *r, size_t mark, struct jinja_value *out);

/* jinja_format.c */
/* Python's str(v): what {{ v }} prints. */
bool jinja_emit_value(struct jinja_run *r, const struct jinja_value *v);
/* The same as a string value (v itself when it is one). */
bool jinja_to_str(struct jinja_run *r, const struct jinja_value *v, struct jinja_value *out);
struct jinja_json_style {
    int indent; /* -1: one line */
    bool ensure_ascii, sort_keys;
    const struct jinja_str *item_separator, *key_separator; /* NULL: json.dumps's own */
};
bool jinja_emit_json(struct jinja_run *r, const struct jinja_value *v,
                     const struct jinja_json_style *style);
/* repr() of a float; at most 32 bytes. */
size_t jinja_format_real(double f, char out[32]);

/* Calls: positional and named arguments. */
struct jinja_args {
    struct jinja_value *items;
    size_t n;
    struct {
        const char *name;
        struct jinja_value value;
    } * named;
    size_t n_named;
};
/* Positional `pos` (-1: by name only) or the one called `name`; NULL if not given. */
const struct jinja_value *jinja_arg(const struct jinja_args *a, int pos, const char *name);

typedef bool jinja_filter_fn(struct jinja_run *r, const struct jinja_value *in,
                             const struct jinja_args *args, struct jinja_value *out);
typedef bool jinja_test_fn(struct jinja_run *r, const struct jinja_value *in,
                           const struct jinja_args *args, bool *out);
struct jinja_filter {
    const char *name;
    jinja_filter_fn *fn;
    int max_args;
};
struct jinja_test {
    const char *name;
    jinja_test_fn *fn;
    int n_args;
};
const struct jinja_filter *jinja_filter_find(const char *name); /* NULL if unknown */
const struct jinja_test *jinja_test_find(const char *name);
bool jinja_filter_call(struct jinja_run *r, const struct jinja_filter *f,
                       const struct jinja_value *in, const struct jinja_args *args,
                       struct jinja_value *out);
bool jinja_test_call(struct jinja_run *r, const struct jinja_test *t, const struct jinja_value *in,
                     const struct jinja_args *args, bool *out);

/* jinja_methods.c: a.name and a[key] as the sandbox reads them; methods. */
bool jinja_getattr(struct jinja_run *r, const struct jinja_value *v, const char *name,
                   struct jinja_value *out);
bool jinja_getitem(struct jinja_run *r, const struct jinja_value *v, const struct jinja_value *key,
                   struct jinja_value *out);
bool jinja_slice(struct jinja_run *r, const struct jinja_value *v, const struct jinja_value *start,
                 const struct jinja_value *stop, const struct jinja_value *step,
                 struct jinja_value *out);
bool jinja_method_call(struct jinja_run *r, const struct jinja_method *m,
                       const struct jinja_args *args, struct jinja_value *out);
bool jinja_strip(struct jinja_run *r, const struct jinja_str *s, const struct jinja_value *chars,
                 int sides, struct jinja_value *out); /* sides: 1 left, 2 right, 3 both */
bool jinja_join(struct jinja_run *r, const struct jinja_str *separator,
                const struct jinja_value *over, bool strict,
                struct jinja_value *out); /* strict: only strings, as str.join */
bool jinja_replace(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *old,
                   const struct jinja_str *fresh, int64_t count, struct jinja_value *out);
enum jinja_case { JINJA_UPPER, JINJA_LOWER, JINJA_TITLE, JINJA_CAPITALIZE };
bool jinja_recase(struct jinja_run *r, const struct jinja_str *s, enum jinja_case how, bool words,
                  struct jinja_value *out);

/* jinja_functions.c */
int jinja_function_find(const char *name); /* -1 if unknown */
bool jinja_function_call(struct jinja_run *r, int function, const struct jinja_args *args,
                         struct jinja_value *out);

/* jinja_arithmetic.c: op is the operator's characters as in the lexer. */
bool jinja_binary(struct jinja_run *r, uint16_t op, const struct jinja_value *a,
                  const struct jinja_value *b, struct jinja_value *out);
bool jinja_negate(struct jinja_run *r, const struct jinja_value *v, struct jinja_value *out);

/* jinja_eval.c */
struct jinja_template;
bool jinja_exec(struct jinja_run *r, const struct jinja_stmt *body, struct jinja_scope *scope);

#endif
