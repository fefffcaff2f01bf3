/* Operators with Python's rules: floor division and its remainder, true division, repetition. */
#include <math.h>

#include "coordinator/text/jinja_lexer.h"
#include "coordinator/text/jinja_run.h"

#define OP_POWER JINJA_OP2('*', '*')
#define OP_FLOOR JINJA_OP2('/', '/')

static bool whole(const struct jinja_value *v)
{
    return v->kind == JV_INT || v->kind == JV_BOOL;
}

static int64_t as_int(const struct jinja_value *v)
{
    return v->kind == JV_BOOL ? v->truth : v->integer;
}

static double as_real(const struct jinja_value *v)
{
    return v->kind == JV_FLOAT ? v->real : (double)as_int(v);
}

static bool overflow(struct jinja_run *r)
{
    return jinja_fail(r, "an integer does not fit 64 bits");
}

static bool power(struct jinja_run *r, int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result))
            return overflow(r);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return overflow(r);
    }
    *out = result;
    return true;
}

static bool integers(struct jinja_run *r, uint16_t op, int64_t a, int64_t b,
                     struct jinja_value *out)
{
    int64_t n = 0;
    switch (op) {
    case '+':
        if (__builtin_add_overflow(a, b, &n)) return overflow(r);
        break;
    case '-':
        if (__builtin_sub_overflow(a, b, &n)) return overflow(r);
        break;
    case '*':
        if (__builtin_mul_overflow(a, b, &n)) return overflow(r);
        break;
    case '/':
        if (b == 0) return jinja_fail(r, "division by zero");
        *out = jinja_real((double)a / (double)b);
        return true;
    case OP_FLOOR:
    case '%':
        if (b == 0) return jinja_fail(r, "integer division or modulo by zero");
        if (b == -1) { /* INT64_MIN / -1 traps */
            if (op == '%')
                n = 0;
            else if (__builtin_sub_overflow(0, a, &n))
                return overflow(r);
            break;
        }
        n = op == '%' ? a % b : a / b;
        if (a % b != 0 && (a < 0) != (b < 0)) n += op == '%' ? b : -1;
        break;
    default: /* power */
        if (b < 0) {
            if (a == 0) return jinja_fail(r, "0 cannot be raised to a negative power");
            *out = jinja_real(pow((double)a, (double)b));
            return true;
        }
        if (!power(r, a, b, &n)) return false;
        break;
    }
    *out = jinja_int(n);
    return true;
}

static bool reals(struct jinja_run *r, uint16_t op, double a, double b, struct jinja_value *out)
{
    double f;
    switch (op) {
    case '+':
        f = a + b;
        break;
    case '-':
        f = a - b;
        break;
    case '*':
        f = a * b;
        break;
    case OP_POWER:
        f = pow(a, b);
        if (a < 0 && b != floor(b)) return jinja_fail(r, "a complex number");
        break;
    default:
        if (b == 0) return jinja_fail(r, "float division by zero");
        if (op == '/') {
            f = a / b;
            break;
        }
        f = fmod(a, b);
        if (f != 0 && (f < 0) != (b < 0)) f += b;
        if (op == OP_FLOOR) f = floor((a - f) / b + 0.5);
        break;
    }
    *out = jinja_real(f);
    return true;
}

static bool repeat(struct jinja_run *r, const struct jinja_value *v, int64_t times,
                   struct jinja_value *out)
{
    if (v->kind == JV_STRING) {
        size_t mark = jinja_mark(r);
        for (int64_t i = 0; i < times && v->str->len > 0; i++)
            if (!jinja_emit_str(r, v->str) || !jinja_steps(r, i % 16 == 0)) return false;
        return jinja_take(r, mark, out);
    }
    if (!jinja_new_list(r, v->kind, 0, out)) return false;
    for (int64_t i = 0; i < times && v->list->n > 0; i++)
        for (size_t k = 0; k < v->list->n; k++)
            if (!jinja_list_push(r, out->list, v->list->items[k])) return false;
    return true;
}

static bool sequence(const struct jinja_value *v)
{
    return v->kind == JV_STRING || v->kind == JV_LIST || v->kind == JV_TUPLE;
}

bool jinja_binary(struct jinja_run *r, uint16_t op, const struct jinja_value *a,
                  const struct jinja_value *b, struct jinja_value *out)
{
    bool numbers = (whole(a) || a->kind == JV_FLOAT) && (whole(b) || b->kind == JV_FLOAT);
    if (whole(a) && whole(b)) return integers(r, op, as_int(a), as_int(b), out);
    if (numbers) return reals(r, op, as_real(a), as_real(b), out);
    if (op == '+' && a->kind == b->kind) {
        if (a->kind == JV_STRING) return jinja_concat(r, a->str, b->str, out);
        if (sequence(a)) {
            if (!jinja_new_list(r, a->kind, a->list->n + b->list->n, out)) return false;
            for (size_t i = 0; i < a->list->n; i++)
                if (!jinja_list_push(r, out->list, a->list->items[i])) return false;
            for (size_t i = 0; i < b->list->n; i++)
                if (!jinja_list_push(r, out->list, b->list->items[i])) return false;
            return true;
        }
    }
    if (op == '*' && sequence(a) && whole(b)) return repeat(r, a, as_int(b), out);
    if (op == '*' && sequence(b) && whole(a)) return repeat(r, b, as_int(a), out);
    if (op == '%' && a->kind == JV_STRING)
        return jinja_fail(r, "formatting with '%%' is not supported");
    const struct jinja_value *missing = a->kind == JV_UNDEFINED ? a : b;
    if (missing->kind == JV_UNDEFINED)
        return jinja_fail(r, "'%s' is undefined", missing->missing ? missing->missing : "it");
    char text[3] = {(char)(op & 0xff), (char)(op >> 8), '\0'};
    if (op == '+' && a->kind == JV_STRING)
        return jinja_fail(r, "can only concatenate str (not \"%s\") to str", jinja_kind_name(b));
    return jinja_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", text,
                      jinja_kind_name(a), jinja_kind_name(b));
}

bool jinja_negate(struct jinja_run *r, const struct jinja_value *v, struct jinja_value *out)
{
    if (v->kind == JV_FLOAT) {
        *out = jinja_real(-v->real);
        return true;
    }
    if (!whole(v)) return jinja_fail(r, "bad operand type for unary -: '%s'", jinja_kind_name(v));
    return integers(r, '-', 0, as_int(v), out);
}
