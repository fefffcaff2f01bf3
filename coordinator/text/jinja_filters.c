/* Filters. An unknown one is refused when the template is parsed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "coordinator/text/jinja_run.h"

typedef const struct jinja_value *in_t;
typedef const struct jinja_args *args_t;

const struct jinja_value *jinja_arg(const struct jinja_args *a, int pos, const char *name)
{
    if (pos >= 0 && (size_t)pos < a->n) return &a->items[pos];
    for (size_t i = 0; name != NULL && i < a->n_named; i++)
        if (strcmp(a->named[i].name, name) == 0) return &a->named[i].value;
    return NULL;
}

static bool flag(args_t a, int pos, const char *name)
{
    const struct jinja_value *v = jinja_arg(a, pos, name);
    return v != NULL && jinja_truth(v);
}

static bool to_list(struct jinja_run *r, in_t in, struct jinja_value *out)
{
    struct jinja_iter it;
    struct jinja_value item;
    if (!jinja_iter_open(r, in, &it) || !jinja_new_list(r, JV_LIST, 0, out)) return false;
    for (bool more = true; more;) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (more && !jinja_list_push(r, out->list, item)) return false;
    }
    return true;
}

static bool f_list(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return to_list(r, in, out);
}

static bool f_string(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return jinja_to_str(r, in, out);
}

static bool f_safe(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)r;
    (void)a;
    *out = *in;
    return true;
}

static bool f_length(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    size_t n;
    if (!jinja_length(r, in, &n)) return false;
    *out = jinja_int((int64_t)n);
    return true;
}

static bool f_trim(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    struct jinja_value s;
    return jinja_to_str(r, in, &s) && jinja_strip(r, s.str, jinja_arg(a, 0, "chars"), 3, out);
}

static bool recase(struct jinja_run *r, in_t in, enum jinja_case how, struct jinja_value *out)
{
    struct jinja_value s;
    return jinja_to_str(r, in, &s) && jinja_recase(r, s.str, how, true, out);
}

static bool f_upper(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return recase(r, in, JINJA_UPPER, out);
}

static bool f_lower(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return recase(r, in, JINJA_LOWER, out);
}

static bool f_title(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return recase(r, in, JINJA_TITLE, out);
}

static bool f_capitalize(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    return recase(r, in, JINJA_CAPITALIZE, out);
}

static bool f_replace(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *old = jinja_arg(a, 0, "old"), *fresh = jinja_arg(a, 1, "new");
    const struct jinja_value *count = jinja_arg(a, 2, "count");
    struct jinja_value s, x, y;
    if (old == NULL || fresh == NULL) return jinja_fail(r, "replace wants two strings");
    return jinja_to_str(r, in, &s) && jinja_to_str(r, old, &x) && jinja_to_str(r, fresh, &y) &&
           jinja_replace(r, s.str, x.str, y.str,
                         count != NULL && count->kind == JV_INT ? count->integer : -1, out);
}

static bool f_default(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *v = jinja_arg(a, 0, "default_value");
    bool use = in->kind == JV_UNDEFINED || (flag(a, 1, "boolean") && !jinja_truth(in));
    *out = *in;
    if (!use) return true;
    if (v != NULL)
        *out = *v;
    else
        return jinja_new_str(r, "", 0, false, out);
    return true;
}

/* A number out of text as Python's int() and float() read it; false if it is none. */
static bool read_number(const struct jinja_str *s, int base, int64_t *i, double *f)
{
    size_t from = jinja_space_prefix(s->bytes, s->len);
    size_t end = s->len - (from == s->len ? 0 : jinja_space_suffix(s->bytes, s->len));
    char text[128];
    size_t n = 0;
    for (size_t k = from; k < end; k++) {
        if (n + 1 >= sizeof text || s->bytes[k] == '\0') return false;
        if (s->bytes[k] == '_' && k > from && k + 1 < end) continue;
        if (f != NULL && (s->bytes[k] == 'x' || s->bytes[k] == 'X' || s->bytes[k] == 'p'))
            return false;
        text[n++] = s->bytes[k];
    }
    text[n] = '\0';
    char *rest;
    if (n == 0 || strchr(" \t\n\v\f\r", text[0]) != NULL) return false;
    if (f != NULL)
        *f = strtod(text, &rest);
    else
        *i = strtoll(text, &rest, base);
    if (*rest != '\0' || rest == text) return false;
    return f != NULL || (*i != INT64_MAX && *i != INT64_MIN);
}

static bool f_int(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *otherwise = jinja_arg(a, 0, "default"),
                             *base = jinja_arg(a, 1, "base");
    int radix = base != NULL && base->kind == JV_INT && base->integer >= 2 && base->integer <= 36
                    ? (int)base->integer
                    : 10;
    double f = (double)NAN;
    int64_t i;
    if (in->kind == JV_UNDEFINED) return jinja_fail(r, "an undefined value is no integer");
    *out = otherwise != NULL ? *otherwise : jinja_int(0);
    if (in->kind == JV_INT)
        *out = *in;
    else if (in->kind == JV_BOOL)
        *out = jinja_int(in->truth);
    else if (in->kind == JV_STRING && read_number(in->str, radix, &i, NULL))
        *out = jinja_int(i);
    else if (in->kind == JV_FLOAT)
        f = in->real;
    else if (in->kind == JV_STRING && !read_number(in->str, 10, NULL, &f))
        f = (double)NAN;
    if (f >= -0x1p63 && f < 0x1p63) *out = jinja_int((int64_t)f);
    return true;
}

static bool f_float(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *otherwise = jinja_arg(a, 0, "default");
    double f;
    if (in->kind == JV_UNDEFINED) return jinja_fail(r, "an undefined value is no number");
    *out = otherwise != NULL ? *otherwise : jinja_real(0.0);
    if (in->kind == JV_FLOAT)
        *out = *in;
    else if (in->kind == JV_INT)
        *out = jinja_real((double)in->integer);
    else if (in->kind == JV_BOOL)
        *out = jinja_real(in->truth);
    else if (in->kind == JV_STRING && read_number(in->str, 10, NULL, &f))
        *out = jinja_real(f);
    return true;
}

static bool f_abs(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    *out = *in;
    if (in->kind == JV_BOOL) *out = jinja_int(in->truth);
    if ((in->kind == JV_INT && in->integer < 0) || (in->kind == JV_FLOAT && in->real < 0) ||
        (in->kind != JV_INT && in->kind != JV_FLOAT && in->kind != JV_BOOL))
        return jinja_negate(r, in, out);
    return true;
}

static bool f_round(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *precision = jinja_arg(a, 0, "precision"),
                             *method = jinja_arg(a, 1, "method");
    int64_t digits = precision != NULL && precision->kind == JV_INT ? precision->integer : 0;
    struct jinja_value v;
    if (in->kind != JV_INT && in->kind != JV_FLOAT && in->kind != JV_BOOL)
        return jinja_fail(r, "'%s' cannot be rounded", jinja_kind_name(in));
    if (digits < -300 || digits > 300)
        return jinja_fail(r, "round to %lld digits", (long long)digits);
    if (!f_float(r, in, &(struct jinja_args){0}, &v)) return false;
    if (method != NULL && (jinja_is_str(method, "ceil") || jinja_is_str(method, "floor"))) {
        double scale = pow(10, (double)digits), f = v.real * scale;
        *out = jinja_real((jinja_is_str(method, "ceil") ? ceil(f) : floor(f)) / scale);
        return true;
    }
    if (method != NULL && !jinja_is_str(method, "common"))
        return jinja_fail(r, "method must be common, ceil or floor");
    char text[700];
    *out = v;
    if (digits >= 0 &&
        isfinite(v.real)) { /* printf rounds the exact value, ties to even, as Python */
        snprintf(text, sizeof text, "%.*f", (int)(digits < 300 ? digits : 300), v.real);
        *out = jinja_real(strtod(text, NULL));
    } else if (isfinite(v.real)) {
        double scale = pow(10, (double)-digits);
        *out = jinja_real(nearbyint(v.real / scale) * scale);
    }
    if (in->kind == JV_INT) *out = jinja_int((int64_t)out->real);
    return true;
}

static bool f_tojson(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    /* transformers: tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) */
    const struct jinja_value *indent = jinja_arg(a, 1, "indent"),
                             *separators = jinja_arg(a, 2, "separators");
    struct jinja_json_style style = {.indent = -1,
                                     .ensure_ascii = flag(a, 0, "ensure_ascii"),
                                     .sort_keys = flag(a, 3, "sort_keys")};
    if (indent != NULL && indent->kind == JV_INT) {
        if (indent->integer > 1024) return jinja_fail(r, "an indent of more than 1024");
        style.indent = indent->integer < 0 ? 0 : (int)indent->integer;
    } else if (indent != NULL && indent->kind != JV_NONE) {
        return jinja_fail(r, "indent must be an integer");
    }
    if (separators != NULL && separators->kind != JV_NONE) {
        const struct jinja_list *l = separators->list;
        if ((separators->kind != JV_TUPLE && separators->kind != JV_LIST) || l->n != 2 ||
            l->items[0].kind != JV_STRING || l->items[1].kind != JV_STRING)
            return jinja_fail(r, "separators must be two strings");
        style.item_separator = l->items[0].str;
        style.key_separator = l->items[1].str;
    }
    size_t mark = jinja_mark(r);
    return jinja_emit_json(r, in, &style) && jinja_take(r, mark, out);
}

/* Attribute "a.b.0" of v, as the filters' attribute= means it. */
static bool get_path(struct jinja_run *r, in_t v, const struct jinja_value *path,
                     struct jinja_value *out)
{
    *out = *v;
    if (path->kind != JV_STRING) return jinja_getitem(r, v, path, out);
    for (size_t i = 0; i <= path->str->len;) {
        const char *s = path->str->bytes + i;
        const char *dot = i < path->str->len ? memchr(s, '.', path->str->len - i) : NULL;
        size_t n = dot != NULL ? (size_t)(dot - s) : path->str->len - i;
        struct jinja_value key, from = *out;
        bool digits = n > 0 && n < 10;
        int64_t number = 0;
        for (size_t k = 0; k < n && digits; k++) {
            digits = s[k] >= '0' && s[k] <= '9';
            number = number * 10 + (s[k] - '0');
        }
        if (digits)
            key = jinja_int(number);
        else if (!jinja_substr(r, path->str, i, n, &key))
            return false;
        if (!jinja_getitem(r, &from, &key, out)) return false;
        i += n + 1;
    }
    return true;
}

static bool maybe_path(struct jinja_run *r, in_t v, const struct jinja_value *path,
                       struct jinja_value *out)
{
    *out = *v;
    return path == NULL || path->kind == JV_NONE || get_path(r, v, path, out);
}

static bool f_map(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *path = jinja_arg(a, -1, "attribute"),
                             *otherwise = jinja_arg(a, -1, "default");
    const struct jinja_filter *f = NULL;
    struct jinja_iter it;
    struct jinja_value item, mapped;
    if (a->n > 0 && a->items[0].kind == JV_STRING) {
        char name[32] = "";
        if (a->items[0].str->len < sizeof name)
            memcpy(name, a->items[0].str->bytes, a->items[0].str->len);
        f = jinja_filter_find(name);
    }
    if (f == NULL && path == NULL) return jinja_fail(r, "map wants a filter's name or attribute=");
    struct jinja_args rest = *a;
    if (rest.n > 0) {
        rest.items++;
        rest.n--;
    }
    if (!jinja_iter_open(r, in, &it) || !jinja_new_list(r, JV_GENERATOR, 0, out)) return false;
    for (bool more = true; more;) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (!more) break;
        if (f != NULL ? !jinja_filter_call(r, f, &item, &rest, &mapped)
                      : !get_path(r, &item, path, &mapped))
            return false;
        if (f == NULL && mapped.kind == JV_UNDEFINED && otherwise != NULL) mapped = *otherwise;
        if (!jinja_list_push(r, out->list, mapped)) return false;
    }
    return true;
}

static bool pick(struct jinja_run *r, in_t in, args_t a, bool by_attribute, bool wanted,
                 struct jinja_value *out)
{
    struct jinja_args rest = *a;
    struct jinja_value item, tested;
    const struct jinja_value *path = NULL;
    const struct jinja_test *test = NULL;
    if (by_attribute) {
        if (rest.n == 0) return jinja_fail(r, "an attribute's name is missing");
        path = rest.items++;
        rest.n--;
    }
    if (rest.n > 0) {
        char name[32] = "";
        if (rest.items[0].kind == JV_STRING && rest.items[0].str->len < sizeof name)
            memcpy(name, rest.items[0].str->bytes, rest.items[0].str->len);
        test = jinja_test_find(name);
        if (test == NULL) return jinja_fail(r, "there is no test '%s'", name);
        rest.items++;
        rest.n--;
    }
    struct jinja_iter it;
    if (!jinja_iter_open(r, in, &it) || !jinja_new_list(r, JV_GENERATOR, 0, out)) return false;
    for (bool more = true; more;) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (!more) break;
        if (!maybe_path(r, &item, path, &tested)) return false;
        bool yes = test == NULL && jinja_truth(&tested);
        if (test != NULL && !jinja_test_call(r, test, &tested, &rest, &yes)) return false;
        if (yes == wanted && !jinja_list_push(r, out->list, item)) return false;
    }
    return true;
}

static bool f_select(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return pick(r, in, a, false, true, out);
}

static bool f_reject(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return pick(r, in, a, false, false, out);
}

static bool f_selectattr(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return pick(r, in, a, true, true, out);
}

static bool f_rejectattr(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return pick(r, in, a, true, false, out);
}

static bool f_join(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *d = jinja_arg(a, 0, "d"), *path = jinja_arg(a, 1, "attribute");
    struct jinja_value separator, over = *in;
    if (d == NULL ? !jinja_new_str(r, "", 0, false, &separator) : !jinja_to_str(r, d, &separator))
        return false;
    if (path != NULL) {
        if (!to_list(r, in, &over)) return false;
        for (size_t i = 0; i < over.list->n; i++) {
            struct jinja_value v;
            if (!get_path(r, &over.list->items[i], path, &v)) return false;
            over.list->items[i] = v;
        }
    }
    return jinja_join(r, separator.str, &over, false, out);
}

static bool f_first(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    struct jinja_iter it;
    bool more;
    *out = jinja_undefined("the first item");
    return jinja_iter_open(r, in, &it) && jinja_iter_next(r, &it, out, &more);
}

static bool f_last(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    struct jinja_value all;
    if (in->kind == JV_GENERATOR) return jinja_fail(r, "'generator' object is not reversible");
    if (!to_list(r, in, &all)) return false;
    *out = all.list->n > 0 ? all.list->items[all.list->n - 1] : jinja_undefined("the last item");
    return true;
}

static bool f_reverse(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    struct jinja_value minus = jinja_int(-1), all;
    if (in->kind == JV_STRING) return jinja_slice(r, in, NULL, NULL, &minus, out);
    if (!to_list(r, in, &all) || !jinja_slice(r, &all, NULL, NULL, &minus, out)) return false;
    out->kind = JV_GENERATOR;
    return true;
}

static bool f_items(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)a;
    if (in->kind == JV_UNDEFINED) return jinja_new_list(r, JV_GENERATOR, 0, out);
    if (in->kind != JV_DICT) return jinja_fail(r, "Can only get item pairs from a mapping.");
    struct jinja_method items = {*in, "items"};
    if (!jinja_method_call(r, &items, &(struct jinja_args){0}, out)) return false;
    out->kind = JV_GENERATOR;
    return true;
}

/* Strings compare without case unless asked. */
static bool sort_key(struct jinja_run *r, in_t v, const struct jinja_value *path,
                     bool case_sensitive, struct jinja_value *out)
{
    struct jinja_value key;
    if (!maybe_path(r, v, path, &key)) return false;
    *out = key;
    return case_sensitive || key.kind != JV_STRING ||
           jinja_recase(r, key.str, JINJA_LOWER, false, out);
}

/* Stable merge sort of items by keys, both moved. */
static bool merge_sort(struct jinja_run *r, struct jinja_entry *e, struct jinja_entry *spare,
                       size_t n, bool down)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t at = 0; at < n; at += 2 * width) {
            size_t i = at, mid = at + width < n ? at + width : n,
                   end = mid + width < n ? mid + width : n;
            size_t j = mid;
            for (size_t k = at; k < end; k++) {
                int c = 0;
                if (i < mid && j < end && !jinja_compare(r, &e[j].key, &e[i].key, &c)) return false;
                bool right = j < end && (i >= mid || (c != 2 && (down ? c > 0 : c < 0)));
                spare[k] = right ? e[j++] : e[i++];
            }
        }
        memcpy(e, spare, n * sizeof *e);
    }
    return true;
}

static bool sort_items(struct jinja_run *r, const struct jinja_list *items,
                       const struct jinja_value *path, bool case_sensitive, bool down,
                       struct jinja_value *out)
{
    struct jinja_entry *e = jinja_alloc(r, items->n, sizeof *e);
    struct jinja_entry *spare = jinja_alloc(r, items->n, sizeof *spare);
    if (e == NULL || spare == NULL || !jinja_new_list(r, JV_LIST, items->n, out)) return false;
    for (size_t i = 0; i < items->n; i++) {
        e[i].value = items->items[i];
        if (!sort_key(r, &items->items[i], path, case_sensitive, &e[i].key)) return false;
    }
    if (!merge_sort(r, e, spare, items->n, down)) return false;
    for (size_t i = 0; i < items->n; i++)
        out->list->items[i] = e[i].value;
    out->list->n = items->n;
    return true;
}

static bool f_sort(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    struct jinja_value all; /* sort(reverse, case_sensitive, attribute) */
    return to_list(r, in, &all) &&
           sort_items(r, all.list, jinja_arg(a, 2, "attribute"), flag(a, 1, "case_sensitive"),
                      flag(a, 0, "reverse"), out);
}

static bool f_dictsort(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *by = jinja_arg(a, 1, "by");
    struct jinja_value all, pos = jinja_int(by != NULL && jinja_is_str(by, "value"));
    if (in->kind != JV_DICT) return jinja_fail(r, "dictsort wants a dict");
    return f_items(r, in, a, &all) &&
           sort_items(r, all.list, &pos, flag(a, 0, "case_sensitive"), flag(a, 2, "reverse"), out);
}

static bool f_unique(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *path = jinja_arg(a, 1, "attribute");
    struct jinja_value all, keys;
    if (!to_list(r, in, &all) || !jinja_new_list(r, JV_GENERATOR, 0, out) ||
        !jinja_new_list(r, JV_LIST, 0, &keys))
        return false;
    for (size_t i = 0; i < all.list->n; i++) {
        struct jinja_value key;
        bool known;
        if (!sort_key(r, &all.list->items[i], path, flag(a, 0, "case_sensitive"), &key) ||
            !jinja_contains(r, &keys, &key, &known))
            return false;
        if (!known && (!jinja_list_push(r, keys.list, key) ||
                       !jinja_list_push(r, out->list, all.list->items[i])))
            return false;
    }
    return true;
}

static bool extreme(struct jinja_run *r, in_t in, args_t a, int sign, struct jinja_value *out)
{
    const struct jinja_value *path = jinja_arg(a, 1, "attribute");
    struct jinja_value all, key, best = jinja_none();
    *out = jinja_undefined("the smallest or largest item");
    if (!to_list(r, in, &all)) return false;
    for (size_t i = 0; i < all.list->n; i++) {
        int c = sign;
        if (!sort_key(r, &all.list->items[i], path, flag(a, 0, "case_sensitive"), &key) ||
            (i > 0 && !jinja_compare(r, &key, &best, &c)))
            return false;
        if (c == 2 || c * sign <= 0) continue;
        best = key;
        *out = all.list->items[i];
    }
    return true;
}

static bool f_min(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return extreme(r, in, a, -1, out);
}

static bool f_max(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    return extreme(r, in, a, 1, out);
}

static bool f_sum(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *path = jinja_arg(a, 0, "attribute"),
                             *start = jinja_arg(a, 1, "start");
    struct jinja_value all, v, total = start != NULL ? *start : jinja_int(0);
    if (!to_list(r, in, &all)) return false;
    for (size_t i = 0; i < all.list->n; i++) {
        struct jinja_value before = total;
        if (!maybe_path(r, &all.list->items[i], path, &v) ||
            !jinja_binary(r, '+', &before, &v, &total))
            return false;
    }
    *out = total;
    return true;
}

static bool f_indent(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    const struct jinja_value *width = jinja_arg(a, 0, "width");
    bool first = flag(a, 1, "first"), blank = flag(a, 2, "blank");
    struct jinja_value s, pad, lines, by = jinja_int(4);
    if (width != NULL) by = *width;
    if (!jinja_to_str(r, in, &s)) return false;
    if (by.kind == JV_STRING)
        pad = by;
    else if (!jinja_new_str(r, " ", 1, false, &pad) || !jinja_binary(r, '*', &pad, &by, &pad))
        return false;
    struct jinja_method split = {s, "splitlines"};
    if (!jinja_method_call(r, &split, &(struct jinja_args){0}, &lines)) return false;
    size_t mark = jinja_mark(r);
    const struct jinja_list *l = lines.list;
    bool ok = !first || jinja_emit_str(r, pad.str);
    for (size_t i = 0; ok && i < l->n; i++)
        ok = (i == 0 || jinja_emit_text(r, "\n")) &&
             (i == 0 || (!blank && l->items[i].str->len == 0) || jinja_emit_str(r, pad.str)) &&
             jinja_emit_str(r, l->items[i].str);
    /* Python adds a newline before splitting, so a last one survives as an empty line. */
    if (ok && s.str->len > 0 && s.str->bytes[s.str->len - 1] == '\n')
        ok = jinja_emit_text(r, "\n") && (!blank || jinja_emit_str(r, pad.str));
    return ok && jinja_take(r, mark, out);
}

static bool f_escape(struct jinja_run *r, in_t in, args_t a, struct jinja_value *out)
{
    (void)in;
    (void)a;
    (void)out;
    return jinja_fail(r, "the filter 'escape' makes HTML, which no prompt is");
}

static const struct jinja_filter filters[] = {
    {"abs", f_abs, 0},
    {"capitalize", f_capitalize, 0},
    {"count", f_length, 0},
    {"d", f_default, 2},
    {"default", f_default, 2},
    {"dictsort", f_dictsort, 3},
    {"e", f_escape, 0},
    {"escape", f_escape, 0},
    {"first", f_first, 0},
    {"float", f_float, 1},
    {"indent", f_indent, 3},
    {"int", f_int, 2},
    {"items", f_items, 0},
    {"join", f_join, 2},
    {"last", f_last, 0},
    {"length", f_length, 0},
    {"list", f_list, 0},
    {"lower", f_lower, 0},
    {"map", f_map, 16},
    {"max", f_max, 2},
    {"min", f_min, 2},
    {"reject", f_reject, 16},
    {"rejectattr", f_rejectattr, 16},
    {"replace", f_replace, 3},
    {"reverse", f_reverse, 0},
    {"round", f_round, 2},
    {"safe", f_safe, 0},
    {"select", f_select, 16},
    {"selectattr", f_selectattr, 16},
    {"sort", f_sort, 3},
    {"string", f_string, 0},
    {"sum", f_sum, 2},
    {"title", f_title, 0},
    {"tojson", f_tojson, 4},
    {"trim", f_trim, 1},
    {"unique", f_unique, 2},
    {"upper", f_upper, 0},
};

const struct jinja_filter *jinja_filter_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(filters); i++)
        if (strcmp(filters[i].name, name) == 0) return &filters[i];
    return NULL;
}

bool jinja_filter_call(struct jinja_run *r, const struct jinja_filter *f,
                       const struct jinja_value *in, const struct jinja_args *args,
                       struct jinja_value *out)
{
    if (args->n > (size_t)f->max_args)
        return jinja_fail(r, "too many arguments for the filter '%s'", f->name);
    struct jinja_value v = *in; /* in and out may be the same */
    bool ok = jinja_enter(r) && f->fn(r, &v, args, out);
    jinja_leave(r);
    return ok;
}
