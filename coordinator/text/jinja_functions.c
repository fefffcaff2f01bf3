/* The functions every template may call. */
#include <string.h>

#include "common/base/check.h"
#include "coordinator/text/jinja_run.h"

#define RANGE_MAX 100000u /* the sandbox's own bound */

typedef bool function_fn(struct jinja_run *r, const struct jinja_args *a, struct jinja_value *out);

static bool fn_range(struct jinja_run *r, const struct jinja_args *a, struct jinja_value *out)
{
    int64_t v[3] = {0, 0, 1};
    if (a->n < 1 || a->n > 3) return jinja_fail(r, "range() takes 1 to 3 arguments, not %zu", a->n);
    for (size_t i = 0; i < a->n; i++) {
        const struct jinja_value *x = &a->items[i];
        if (x->kind != JV_INT && x->kind != JV_BOOL)
            return jinja_fail(r, "'%s' object cannot be interpreted as an integer",
                              jinja_kind_name(x));
        v[a->n == 1 ? 1 : i] = x->kind == JV_BOOL ? x->truth : x->integer;
    }
    if (v[2] == 0) return jinja_fail(r, "range() arg 3 must not be zero");
    uint64_t span = 0, stride = v[2] > 0 ? (uint64_t)v[2] : 0 - (uint64_t)v[2];
    if (v[2] > 0 && v[1] > v[0]) span = (uint64_t)v[1] - (uint64_t)v[0];
    if (v[2] < 0 && v[1] < v[0]) span = (uint64_t)v[0] - (uint64_t)v[1];
    uint64_t n = span / stride + (span % stride != 0);
    if (n > RANGE_MAX)
        return jinja_fail(r, "Range too big. The sandbox blocks ranges larger than %u.", RANGE_MAX);
    struct jinja_range *g = jinja_alloc(r, 1, sizeof *g);
    if (g == NULL) return false;
    *g = (struct jinja_range){v[0], v[2], (size_t)n};
    *out = (struct jinja_value){.kind = JV_RANGE, .range = g};
    return true;
}

/* dict(other or pairs, a=1) and namespace(..) alike. */
static bool fill(struct jinja_run *r, const struct jinja_args *a, enum jinja_kind kind,
                 struct jinja_value *out)
{
    if (a->n > 1)
        return jinja_fail(r, "dict() and namespace() take one positional argument at most");
    if (!jinja_new_dict(r, kind, 0, out)) return false;
    if (a->n == 1 && a->items[0].kind == JV_DICT) {
        const struct jinja_dict *from = a->items[0].dict;
        for (size_t i = 0; i < from->n; i++)
            if (!jinja_dict_put(r, out->dict, from->entries[i].key, from->entries[i].value))
                return false;
    } else if (a->n == 1) {
        struct jinja_iter it;
        struct jinja_value pair;
        bool more = true;
        if (!jinja_iter_open(r, &a->items[0], &it)) return false;
        while (more) {
            if (!jinja_iter_next(r, &it, &pair, &more)) return false;
            if (!more) break;
            if ((pair.kind != JV_TUPLE && pair.kind != JV_LIST) || pair.list->n != 2)
                return jinja_fail(r, "dict() wants pairs");
            if (!jinja_dict_put(r, out->dict, pair.list->items[0], pair.list->items[1]))
                return false;
        }
    }
    for (size_t i = 0; i < a->n_named; i++) {
        struct jinja_value key;
        if (!jinja_new_str(r, a->named[i].name, strlen(a->named[i].name), false, &key) ||
            !jinja_dict_put(r, out->dict, key, a->named[i].value))
            return false;
    }
    return true;
}

static bool fn_dict(struct jinja_run *r, const struct jinja_args *a, struct jinja_value *out)
{
    return fill(r, a, JV_DICT, out);
}

static bool fn_namespace(struct jinja_run *r, const struct jinja_args *a, struct jinja_value *out)
{
    return fill(r, a, JV_NAMESPACE, out);
}

static bool fn_raise_exception(struct jinja_run *r, const struct jinja_args *a,
                               struct jinja_value *out)
{
    struct jinja_value text;
    (void)out;
    if (a->n != 1) return jinja_fail(r, "raise_exception() takes one argument, not %zu", a->n);
    if (!jinja_to_str(r, &a->items[0], &text)) return false;
    /* The template's own words are the contract: no line, no prefix. */
    int n = text.str->len < ERR_TEXT_MAX ? (int)text.str->len : ERR_TEXT_MAX;
    r->rc = err_set(r->why, ERR_INVALID, "%.*s", n, text.str->bytes);
    return false;
}

/* Not the C library's strftime: that one follows the process's locale. */
static bool fn_strftime_now(struct jinja_run *r, const struct jinja_args *a,
                            struct jinja_value *out)
{
    static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    if (a->n != 1 || a->items[0].kind != JV_STRING)
        return jinja_fail(r, "strftime_now() wants a format");
    const struct jinja_str *f = a->items[0].str;
    const struct tm *t = &r->now;
    struct buf b = {0};
    bool ok = true;
    size_t mark = jinja_mark(r);
    for (size_t i = 0; ok && i < f->len; i++) {
        if (f->bytes[i] != '%') {
            ok = jinja_emit_sub(r, f, i, 1);
            continue;
        }
        bool bare = i + 2 < f->len && f->bytes[i + 1] == '-'; /* %-d: without the zero in front */
        i += bare ? 2 : 1;
        char c = i < f->len ? f->bytes[i] : '\0';
        int hour12 = t->tm_hour % 12 == 0 ? 12 : t->tm_hour % 12, width = bare ? 1 : 2;
        buf_clear(&b);
        switch (c) {
        case 'Y':
            buf_printf(&b, "%04d", t->tm_year + 1900);
            break;
        case 'y':
            buf_printf(&b, "%0*d", width, t->tm_year % 100);
            break;
        case 'm':
            buf_printf(&b, "%0*d", width, t->tm_mon + 1);
            break;
        case 'd':
            buf_printf(&b, "%0*d", width, t->tm_mday);
            break;
        case 'e':
            buf_printf(&b, "%*d", width, t->tm_mday);
            break;
        case 'H':
            buf_printf(&b, "%0*d", width, t->tm_hour);
            break;
        case 'I':
            buf_printf(&b, "%0*d", width, hour12);
            break;
        case 'M':
            buf_printf(&b, "%0*d", width, t->tm_min);
            break;
        case 'S':
            buf_printf(&b, "%0*d", width, t->tm_sec);
            break;
        case 'f':
            buf_puts(&b, "000000");
            break;
        case 'j':
            buf_printf(&b, "%0*d", bare ? 1 : 3, t->tm_yday + 1);
            break;
        case 'u':
            buf_printf(&b, "%d", t->tm_wday == 0 ? 7 : t->tm_wday);
            break;
        case 'w':
            buf_printf(&b, "%d", t->tm_wday);
            break;
        case 'p':
            buf_puts(&b, t->tm_hour < 12 ? "AM" : "PM");
            break;
        case 'B':
            buf_puts(&b, months[t->tm_mon]);
            break;
        case 'b':
        case 'h':
            buf_append(&b, months[t->tm_mon], 3);
            break;
        case 'A':
            buf_puts(&b, days[t->tm_wday]);
            break;
        case 'a':
            buf_append(&b, days[t->tm_wday], 3);
            break;
        case 'F':
            buf_printf(&b, "%04d-%02d-%02d", t->tm_year + 1900, t->tm_mon + 1, t->tm_mday);
            break;
        case 'D':
        case 'x':
            buf_printf(&b, "%02d/%02d/%02d", t->tm_mon + 1, t->tm_mday, t->tm_year % 100);
            break;
        case 'T':
        case 'X':
            buf_printf(&b, "%02d:%02d:%02d", t->tm_hour, t->tm_min, t->tm_sec);
            break;
        case 'R':
            buf_printf(&b, "%02d:%02d", t->tm_hour, t->tm_min);
            break;
        case 'c':
            buf_printf(&b, "%.3s %.3s %2d %02d:%02d:%02d %d", days[t->tm_wday], months[t->tm_mon],
                       t->tm_mday, t->tm_hour, t->tm_min, t->tm_sec, t->tm_year + 1900);
            break;
        case 'Z':
        case 'z':
            break; /* a time without zone prints none */
        case '%':
            buf_puts(&b, "%");
            break;
        case 'n':
            buf_puts(&b, "\n");
            break;
        case 't':
            buf_puts(&b, "\t");
            break;
        default:
            ok = jinja_fail(r, "strftime_now does not know the format '%%%c'", c ? c : '?');
        }
        if (b.failed) ok = jinja_fail_nomem(r);
        ok = ok && jinja_emit(r, b.len > 0 ? b.data : "", b.len, false);
    }
    buf_free(&b);
    return ok && jinja_take(r, mark, out);
}

static const struct {
    const char *name;
    function_fn *fn;
} functions[] = {
    {"dict", fn_dict},   {"namespace", fn_namespace},       {"raise_exception", fn_raise_exception},
    {"range", fn_range}, {"strftime_now", fn_strftime_now},
};

int jinja_function_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(functions); i++)
        if (strcmp(functions[i].name, name) == 0) return (int)i;
    return -1;
}

bool jinja_function_call(struct jinja_run *r, int function, const struct jinja_args *args,
                         struct jinja_value *out)
{
    return functions[function].fn(r, args, out);
}
