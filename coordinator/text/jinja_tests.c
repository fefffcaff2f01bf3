/* Tests (`is ...`). An unknown one is refused when the template is parsed. */
#include <string.h>

#include "common/base/check.h"
#include "coordinator/text/jinja_run.h"

typedef const struct jinja_value *in_t;
typedef const struct jinja_args *args_t;

#define KIND_TEST(name, expression)                                                                \
    static bool name(struct jinja_run *r, in_t v, args_t a, bool *out)                             \
    {                                                                                              \
        (void)r;                                                                                   \
        (void)a;                                                                                   \
        *out = (expression);                                                                       \
        return true;                                                                               \
    }
KIND_TEST(t_defined, v->kind != JV_UNDEFINED)
KIND_TEST(t_undefined, v->kind == JV_UNDEFINED)
KIND_TEST(t_none, v->kind == JV_NONE)
KIND_TEST(t_string, v->kind == JV_STRING)
KIND_TEST(t_number, v->kind == JV_INT || v->kind == JV_FLOAT || v->kind == JV_BOOL)
KIND_TEST(t_integer, v->kind == JV_INT)
KIND_TEST(t_float, v->kind == JV_FLOAT)
KIND_TEST(t_boolean, v->kind == JV_BOOL)
KIND_TEST(t_true, v->kind == JV_BOOL && v->truth)
KIND_TEST(t_false, v->kind == JV_BOOL && !v->truth)
KIND_TEST(t_mapping, v->kind == JV_DICT)
KIND_TEST(t_callable, v->kind == JV_MACRO || v->kind == JV_METHOD || v->kind == JV_FUNCTION ||
                          v->kind == JV_UNDEFINED)
KIND_TEST(t_iterable, v->kind == JV_UNDEFINED || v->kind == JV_STRING || v->kind == JV_LIST ||
                          v->kind == JV_TUPLE || v->kind == JV_GENERATOR || v->kind == JV_VIEW ||
                          v->kind == JV_DICT || v->kind == JV_RANGE || v->kind == JV_LOOP)
KIND_TEST(t_sequence, v->kind == JV_UNDEFINED || v->kind == JV_STRING || v->kind == JV_LIST ||
                          v->kind == JV_TUPLE || v->kind == JV_DICT || v->kind == JV_RANGE)

static bool t_equal(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    return jinja_equal(r, v, &a->items[0], out);
}

static bool t_not_equal(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    if (!jinja_equal(r, v, &a->items[0], out)) return false;
    *out = !*out;
    return true;
}

static bool order(struct jinja_run *r, in_t v, args_t a, int *c)
{
    return jinja_compare(r, v, &a->items[0], c);
}

static bool t_less(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    int c;
    if (!order(r, v, a, &c)) return false;
    *out = c < 0;
    return true;
}

static bool t_less_equal(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    int c;
    if (!order(r, v, a, &c)) return false;
    *out = c <= 0;
    return true;
}

static bool t_greater(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    int c;
    if (!order(r, v, a, &c)) return false;
    *out = c == 1;
    return true;
}

static bool t_greater_equal(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    int c;
    if (!order(r, v, a, &c)) return false;
    *out = c == 0 || c == 1;
    return true;
}

static bool t_in(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    return jinja_contains(r, &a->items[0], v, out);
}

static bool divisible(struct jinja_run *r, in_t v, const struct jinja_value *by, int64_t rest,
                      bool *out)
{
    struct jinja_value m, want = jinja_int(rest);
    return jinja_binary(r, '%', v, by, &m) && jinja_equal(r, &m, &want, out);
}

static bool t_odd(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    (void)a;
    return divisible(r, v, &(struct jinja_value){.kind = JV_INT, .integer = 2}, 1, out);
}

static bool t_even(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    (void)a;
    return divisible(r, v, &(struct jinja_value){.kind = JV_INT, .integer = 2}, 0, out);
}

static bool t_divisibleby(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    return divisible(r, v, &a->items[0], 0, out);
}

static bool same_case(struct jinja_run *r, in_t v, enum jinja_case how, bool *out)
{
    struct jinja_value s, changed, other;
    enum jinja_case opposite = how == JINJA_UPPER ? JINJA_LOWER : JINJA_UPPER;
    bool cased = false;
    if (!jinja_to_str(r, v, &s) || !jinja_recase(r, s.str, how, false, &changed) ||
        !jinja_recase(r, s.str, opposite, false, &other) || !jinja_equal(r, &s, &changed, out) ||
        !jinja_equal(r, &s, &other, &cased))
        return false;
    *out = *out && !cased;
    return true;
}

static bool t_lower(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    (void)a;
    return same_case(r, v, JINJA_LOWER, out);
}

static bool t_upper(struct jinja_run *r, in_t v, args_t a, bool *out)
{
    (void)a;
    return same_case(r, v, JINJA_UPPER, out);
}

static const struct jinja_test tests[] = {
    {"boolean", t_boolean, 0},
    {"callable", t_callable, 0},
    {"defined", t_defined, 0},
    {"divisibleby", t_divisibleby, 1},
    {"eq", t_equal, 1},
    {"equalto", t_equal, 1},
    {"even", t_even, 0},
    {"false", t_false, 0},
    {"float", t_float, 0},
    {"ge", t_greater_equal, 1},
    {"greaterthan", t_greater, 1},
    {"gt", t_greater, 1},
    {"in", t_in, 1},
    {"integer", t_integer, 0},
    {"iterable", t_iterable, 0},
    {"le", t_less_equal, 1},
    {"lessthan", t_less, 1},
    {"lower", t_lower, 0},
    {"lt", t_less, 1},
    {"mapping", t_mapping, 0},
    {"ne", t_not_equal, 1},
    {"none", t_none, 0},
    {"number", t_number, 0},
    {"odd", t_odd, 0},
    {"sequence", t_sequence, 0},
    {"string", t_string, 0},
    {"true", t_true, 0},
    {"undefined", t_undefined, 0},
    {"upper", t_upper, 0},
};

const struct jinja_test *jinja_test_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(tests); i++)
        if (strcmp(tests[i].name, name) == 0) return &tests[i];
    return NULL;
}

bool jinja_test_call(struct jinja_run *r, const struct jinja_test *t, const struct jinja_value *in,
                     const struct jinja_args *args, bool *out)
{
    if (args->n != (size_t)t->n_args)
        return jinja_fail(r, "the test '%s' takes %d arguments, not %zu", t->name, t->n_args,
                          args->n);
    bool ok = jinja_enter(r) && t->fn(r, in, args, out);
    jinja_leave(r);
    return ok;
}
