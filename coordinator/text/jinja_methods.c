/* Attributes, items, slices and methods, as Jinja2's immutable sandbox gives them. */
#include <string.h>

#include "common/base/check.h"
#include "coordinator/text/jinja_run.h"

typedef bool method_fn(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out);

struct method {
    const char *name;
    method_fn *fn; /* NULL: exists in Python, but changes the object: the sandbox hides it */
    int max_args;
};

static bool text_arg(struct jinja_run *r, const struct jinja_args *a, int pos, const char *method,
                     const struct jinja_str **out)
{
    const struct jinja_value *v = jinja_arg(a, pos, NULL);
    if (v == NULL || v->kind != JV_STRING) return jinja_fail(r, "%s() wants a str", method);
    *out = v->str;
    return true;
}

static bool str_split(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_value *sep = jinja_arg(a, 0, "sep"), *max = jinja_arg(a, 1, "maxsplit");
    const struct jinja_str *s = self->str;
    int64_t left = max != NULL && max->kind == JV_INT ? max->integer : -1;
    struct jinja_value part;
    if (!jinja_touch(r, s->len) || !jinja_new_list(r, JV_LIST, 0, out)) return false;
    if (sep != NULL && sep->kind == JV_STRING) {
        if (sep->str->len == 0) return jinja_fail(r, "empty separator");
        size_t i = 0;
        for (; left != 0; left--) {
            const char *hit = i < s->len
                                  ? memmem(s->bytes + i, s->len - i, sep->str->bytes, sep->str->len)
                                  : NULL;
            if (hit == NULL) break;
            size_t at = (size_t)(hit - s->bytes);
            if (!jinja_substr(r, s, i, at - i, &part) || !jinja_list_push(r, out->list, part))
                return false;
            i = at + sep->str->len;
        }
        return jinja_substr(r, s, i, s->len - i, &part) && jinja_list_push(r, out->list, part);
    }
    if (sep != NULL && sep->kind != JV_NONE) return jinja_fail(r, "split() wants a str");
    for (size_t i = 0;; left--) {
        i += jinja_space_prefix(s->bytes + i, s->len - i);
        if (i == s->len) return true;
        size_t end = i;
        if (left == 0) end = s->len; /* the rest keeps its white space at the end */
        while (left != 0 && end < s->len && jinja_space_prefix(s->bytes + end, s->len - end) == 0)
            end++;
        if (!jinja_substr(r, s, i, end - i, &part) || !jinja_list_push(r, out->list, part))
            return false;
        if (left == 0) return true;
        i = end;
    }
}

static bool str_splitlines(struct jinja_run *r, const struct jinja_value *self,
                           const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    const struct jinja_str *s = self->str;
    struct jinja_value part;
    if (!jinja_touch(r, s->len) || !jinja_new_list(r, JV_LIST, 0, out)) return false;
    for (size_t i = 0; i < s->len;) {
        size_t end = i;
        while (end < s->len && s->bytes[end] != '\n' && s->bytes[end] != '\r')
            end++;
        if (!jinja_substr(r, s, i, end - i, &part) || !jinja_list_push(r, out->list, part))
            return false;
        if (end < s->len && s->bytes[end] == '\r' && end + 1 < s->len && s->bytes[end + 1] == '\n')
            end++;
        i = end + 1;
    }
    return true;
}

static bool str_strip(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    return jinja_strip(r, self->str, jinja_arg(a, 0, NULL), 3, out);
}

static bool str_lstrip(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    return jinja_strip(r, self->str, jinja_arg(a, 0, NULL), 1, out);
}

static bool str_rstrip(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    return jinja_strip(r, self->str, jinja_arg(a, 0, NULL), 2, out);
}

/* startswith and endswith take a string or a tuple of them. */
static bool str_edge(struct jinja_run *r, const struct jinja_str *s, const struct jinja_args *a,
                     bool start, struct jinja_value *out)
{
    const struct jinja_value *v = jinja_arg(a, 0, NULL);
    bool tuple = v != NULL && v->kind == JV_TUPLE;
    *out = jinja_bool(false);
    for (size_t i = 0; i < (tuple ? v->list->n : 1); i++) {
        const struct jinja_value *one = tuple ? &v->list->items[i] : v;
        if (one == NULL || one->kind != JV_STRING)
            return jinja_fail(r, "startswith and endswith want a str or a tuple of str");
        size_t n = one->str->len;
        if (n <= s->len && memcmp(s->bytes + (start ? 0 : s->len - n), one->str->bytes, n) == 0)
            out->truth = true;
        if (!jinja_touch(r, n)) return false;
    }
    return true;
}

static bool str_startswith(struct jinja_run *r, const struct jinja_value *self,
                           const struct jinja_args *a, struct jinja_value *out)
{
    return str_edge(r, self->str, a, true, out);
}

static bool str_endswith(struct jinja_run *r, const struct jinja_value *self,
                         const struct jinja_args *a, struct jinja_value *out)
{
    return str_edge(r, self->str, a, false, out);
}

static bool str_upper(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return jinja_recase(r, self->str, JINJA_UPPER, false, out);
}

static bool str_lower(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return jinja_recase(r, self->str, JINJA_LOWER, false, out);
}

static bool str_title(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return jinja_recase(r, self->str, JINJA_TITLE, false, out);
}

static bool str_capitalize(struct jinja_run *r, const struct jinja_value *self,
                           const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return jinja_recase(r, self->str, JINJA_CAPITALIZE, false, out);
}

static bool str_replace(struct jinja_run *r, const struct jinja_value *self,
                        const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_str *old = NULL, *fresh = NULL;
    const struct jinja_value *count = jinja_arg(a, 2, NULL);
    return text_arg(r, a, 0, "replace", &old) && text_arg(r, a, 1, "replace", &fresh) &&
           jinja_replace(r, self->str, old, fresh,
                         count != NULL && count->kind == JV_INT ? count->integer : -1, out);
}

static bool str_find(struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_str *what = NULL, *s = self->str;
    if (!text_arg(r, a, 0, "find", &what) || !jinja_touch(r, s->len)) return false;
    const char *hit = what->len == 0 ? s->bytes : memmem(s->bytes, s->len, what->bytes, what->len);
    *out =
        jinja_int(hit == NULL ? -1 : (int64_t)jinja_utf8_count(s->bytes, (size_t)(hit - s->bytes)));
    return true;
}

static bool str_count(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_str *what = NULL, *s = self->str;
    if (!text_arg(r, a, 0, "count", &what) || !jinja_touch(r, s->len)) return false;
    int64_t n = 0;
    if (what->len == 0) {
        n = (int64_t)jinja_utf8_count(s->bytes, s->len) + 1;
    } else {
        for (size_t i = 0; i < s->len; n++) {
            const char *hit = memmem(s->bytes + i, s->len - i, what->bytes, what->len);
            if (hit == NULL) break;
            i = (size_t)(hit - s->bytes) + what->len;
        }
    }
    *out = jinja_int(n);
    return true;
}

static bool str_join(struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_value *over = jinja_arg(a, 0, NULL);
    if (over == NULL) return jinja_fail(r, "join() wants what to join");
    return jinja_join(r, self->str, over, true, out);
}

static bool every_char(struct jinja_run *r, const struct jinja_str *s, const char *low,
                       const char *high, struct jinja_value *out)
{
    *out = jinja_bool(s->len > 0);
    for (size_t i = 0; out->truth && i < s->len; i++) {
        bool in = false;
        for (size_t k = 0; low[k] != '\0'; k++)
            in |= s->bytes[i] >= low[k] && s->bytes[i] <= high[k];
        out->truth = in;
    }
    return jinja_touch(r, s->len);
}

static bool str_isdigit(struct jinja_run *r, const struct jinja_value *self,
                        const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return every_char(r, self->str, "0", "9", out);
}

static bool dict_get(struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_args *a, struct jinja_value *out)
{
    const struct jinja_value *key = jinja_arg(a, 0, NULL), *otherwise = jinja_arg(a, 1, NULL);
    struct jinja_value *found;
    if (key == NULL) return jinja_fail(r, "get() wants a key");
    if (!jinja_dict_find(r, self->dict, *key, &found)) return false;
    *out = found != NULL ? *found : otherwise != NULL ? *otherwise : jinja_none();
    return true;
}

static bool dict_view(struct jinja_run *r, const struct jinja_dict *d, bool keys, bool values,
                      struct jinja_value *out)
{
    if (!jinja_new_list(r, JV_VIEW, d->n, out)) return false;
    for (size_t i = 0; i < d->n; i++) {
        struct jinja_value item = keys ? d->entries[i].key : d->entries[i].value;
        if (keys && values) {
            if (!jinja_new_list(r, JV_TUPLE, 2, &item)) return false;
            item.list->items[0] = d->entries[i].key;
            item.list->items[1] = d->entries[i].value;
            item.list->n = 2;
        }
        if (!jinja_list_push(r, out->list, item)) return false;
    }
    return true;
}

static bool dict_items(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return dict_view(r, self->dict, true, true, out);
}

static bool dict_keys(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return dict_view(r, self->dict, true, false, out);
}

static bool dict_values(struct jinja_run *r, const struct jinja_value *self,
                        const struct jinja_args *a, struct jinja_value *out)
{
    (void)a;
    return dict_view(r, self->dict, false, true, out);
}

static bool same_object(struct jinja_run *r, const struct jinja_value *self,
                        const struct jinja_args *a, struct jinja_value *out)
{
    (void)r;
    (void)a;
    *out = *self; /* a copy of what never changes */
    return true;
}

static bool list_find(struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_args *a, bool count, struct jinja_value *out)
{
    const struct jinja_value *what = jinja_arg(a, 0, NULL);
    if (what == NULL) return jinja_fail(r, "count() and index() want a value");
    int64_t n = 0;
    for (size_t i = 0; i < self->list->n; i++) {
        bool same;
        if (!jinja_equal(r, &self->list->items[i], what, &same)) return false;
        n += same;
        if (!same || count) continue;
        *out = jinja_int((int64_t)i);
        return true;
    }
    if (!count) return jinja_fail(r, "the value is not in the list");
    *out = jinja_int(n);
    return true;
}

static bool list_count(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    return list_find(r, self, a, true, out);
}

static bool list_index(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    return list_find(r, self, a, false, out);
}

static bool loop_cycle(struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_args *a, struct jinja_value *out)
{
    if (a->n == 0) return jinja_fail(r, "no items for cycling given");
    *out = a->items[self->loop->index0 % a->n];
    return true;
}

static const struct method str_methods[] = {
    {"split", str_split, 2},
    {"strip", str_strip, 1},
    {"lstrip", str_lstrip, 1},
    {"rstrip", str_rstrip, 1},
    {"startswith", str_startswith, 1},
    {"endswith", str_endswith, 1},
    {"upper", str_upper, 0},
    {"lower", str_lower, 0},
    {"title", str_title, 0},
    {"capitalize", str_capitalize, 0},
    {"replace", str_replace, 3},
    {"find", str_find, 1},
    {"count", str_count, 1},
    {"join", str_join, 1},
    {"splitlines", str_splitlines, 0},
    {"isdigit", str_isdigit, 0},
    {NULL, NULL, 0},
};
static const struct method dict_methods[] = {
    {"get", dict_get, 2},       {"items", dict_items, 0}, {"keys", dict_keys, 0},
    {"values", dict_values, 0}, {"copy", same_object, 0}, {"clear", NULL, 0},
    {"pop", NULL, 0},           {"popitem", NULL, 0},     {"setdefault", NULL, 0},
    {"update", NULL, 0},        {NULL, NULL, 0},
};
static const struct method list_methods[] = {
    {"count", list_count, 1}, {"index", list_index, 1}, {"copy", same_object, 0},
    {"append", NULL, 0},      {"clear", NULL, 0},       {"extend", NULL, 0},
    {"insert", NULL, 0},      {"pop", NULL, 0},         {"remove", NULL, 0},
    {"reverse", NULL, 0},     {"sort", NULL, 0},        {NULL, NULL, 0},
};
static const struct method loop_methods[] = {{"cycle", loop_cycle, 1 << 16}, {NULL, NULL, 0}};

static const struct method *find_method(const struct jinja_value *v, const char *name)
{
    const struct method *m = v->kind == JV_STRING                        ? str_methods
                             : v->kind == JV_DICT                        ? dict_methods
                             : v->kind == JV_LIST || v->kind == JV_TUPLE ? list_methods
                             : v->kind == JV_LOOP                        ? loop_methods
                                                                         : NULL;
    for (; m != NULL && m->name != NULL; m++)
        if (strcmp(m->name, name) == 0) return m;
    return NULL;
}

bool jinja_method_call(struct jinja_run *r, const struct jinja_method *call,
                       const struct jinja_args *args, struct jinja_value *out)
{
    const struct method *m = find_method(&call->self, call->name);
    if (args->n > (size_t)m->max_args) return jinja_fail(r, "too many arguments for %s()", m->name);
    return m->fn(r, &call->self, args, out);
}

static bool loop_attr(const struct jinja_loop *l, const char *name, struct jinja_value *out)
{
    const struct {
        const char *name;
        struct jinja_value value;
    } fields[] = {
        {"index", jinja_int((int64_t)l->index0 + 1)},
        {"index0", jinja_int((int64_t)l->index0)},
        {"revindex", jinja_int((int64_t)(l->length - l->index0))},
        {"revindex0", jinja_int((int64_t)(l->length - l->index0) - 1)},
        {"first", jinja_bool(l->index0 == 0)},
        {"last", jinja_bool(l->index0 + 1 == l->length)},
        {"length", jinja_int((int64_t)l->length)},
        {"depth", jinja_int((int64_t)l->depth0 + 1)},
        {"depth0", jinja_int((int64_t)l->depth0)},
        {"previtem", l->previous},
        {"nextitem", l->next},
    };
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        if (strcmp(fields[i].name, name) == 0) {
            *out = fields[i].value;
            return true;
        }
    return false;
}

static bool undefined_has_none(struct jinja_run *r, const struct jinja_value *v)
{
    return jinja_fail(r, "'%s' is undefined", v->missing != NULL ? v->missing : "it");
}

bool jinja_getattr(struct jinja_run *r, const struct jinja_value *v, const char *name,
                   struct jinja_value *out)
{
    if (v->kind == JV_UNDEFINED) return undefined_has_none(r, v);
    *out = jinja_undefined(name);
    const struct method *m = find_method(v, name);
    if (m != NULL) {
        if (m->fn == NULL) return true; /* unsafe in the sandbox: undefined, so calling it fails */
        struct jinja_method *bound = jinja_alloc(r, 1, sizeof *bound);
        if (bound == NULL) return false;
        *bound = (struct jinja_method){*v, m->name};
        *out = (struct jinja_value){.kind = JV_METHOD, .method = bound};
        return true;
    }
    if (v->kind == JV_LOOP) loop_attr(v->loop, name, out);
    if (v->kind == JV_DICT || v->kind == JV_NAMESPACE) {
        const struct jinja_value *found = jinja_dict_find_text(r, v->dict, name);
        if (found != NULL) *out = *found;
    }
    return jinja_steps(r, 1);
}

bool jinja_getitem(struct jinja_run *r, const struct jinja_value *v, const struct jinja_value *key,
                   struct jinja_value *out)
{
    if (v->kind == JV_UNDEFINED) return undefined_has_none(r, v);
    *out = jinja_undefined("the item");
    if (v->kind == JV_DICT) {
        struct jinja_value *found = NULL;
        if (key->kind != JV_LIST && key->kind != JV_DICT &&
            !jinja_dict_find(r, v->dict, *key, &found))
            return false;
        if (found != NULL) {
            *out = *found;
            return true;
        }
    }
    if (key->kind == JV_STRING) { /* a['b'] falls back to a.b */
        char name[64];
        if (key->str->len >= sizeof name || memchr(key->str->bytes, '\0', key->str->len) != NULL)
            return true;
        memcpy(name, key->str->bytes, key->str->len);
        name[key->str->len] = '\0';
        if (v->kind == JV_DICT && find_method(v, name) == NULL) return true;
        bool ok = jinja_getattr(r, v, name, out);
        if (out->kind == JV_UNDEFINED)
            out->missing = "the item"; /* name does not outlive this call */
        return ok;
    }
    size_t n;
    bool sequence =
        v->kind == JV_STRING || v->kind == JV_LIST || v->kind == JV_TUPLE || v->kind == JV_RANGE;
    if (!sequence || (key->kind != JV_INT && key->kind != JV_BOOL)) return true;
    if (!jinja_length(r, v, &n)) return false;
    int64_t i = key->kind == JV_BOOL ? key->truth : key->integer;
    if (i < 0) i += (int64_t)n;
    if (i < 0 || (size_t)i >= n) return true;
    if (v->kind == JV_STRING) {
        size_t from = jinja_utf8_offset(v->str->bytes, v->str->len, (size_t)i);
        size_t used = jinja_utf8_offset(v->str->bytes + from, v->str->len - from, 1);
        return jinja_substr(r, v->str, from, used, out);
    }
    struct jinja_iter it = {.over = *v, .i = (size_t)i, .n = n};
    bool more;
    return jinja_iter_next(r, &it, out, &more);
}

/* One bound of a slice, made a position in 0..n (or -1..n-1 walking down). */
static bool slice_bound(struct jinja_run *r, const struct jinja_value *v, int64_t n, bool down,
                        int64_t otherwise, int64_t *out)
{
    if (v == NULL || v->kind == JV_NONE) {
        *out = otherwise;
        return true;
    }
    if (v->kind != JV_INT && v->kind != JV_BOOL)
        return jinja_fail(r, "slice indices must be integers or None, not %s", jinja_kind_name(v));
    int64_t i = v->kind == JV_BOOL ? v->truth : v->integer;
    int64_t low = down ? -1 : 0, high = down ? n - 1 : n;
    if (i < 0) i = i < -n ? low : i + n;
    *out = i < low ? low : i > high ? high : i;
    return true;
}

bool jinja_slice(struct jinja_run *r, const struct jinja_value *v, const struct jinja_value *start,
                 const struct jinja_value *stop, const struct jinja_value *step,
                 struct jinja_value *out)
{
    size_t n;
    if (v->kind == JV_UNDEFINED) return undefined_has_none(r, v);
    if (v->kind != JV_STRING && v->kind != JV_LIST && v->kind != JV_TUPLE && v->kind != JV_RANGE)
        return jinja_fail(r, "'%s' cannot be sliced", jinja_kind_name(v));
    if (!jinja_length(r, v, &n)) return false;
    int64_t by = 1, from, to, len = (int64_t)n;
    if (step != NULL && step->kind == JV_INT)
        by = step->integer;
    else if (step != NULL && step->kind != JV_NONE)
        return jinja_fail(r, "slice indices must be integers or None");
    if (by == 0) return jinja_fail(r, "slice step cannot be zero");
    if (by > len + 1) by = len + 1; /* as far as any step reaches; keeps the sums below in range */
    if (by < -len - 1) by = -len - 1;
    if (!slice_bound(r, start, len, by < 0, by < 0 ? len - 1 : 0, &from) ||
        !slice_bound(r, stop, len, by < 0, by < 0 ? -1 : len, &to))
        return false;
    if (v->kind == JV_STRING && by == 1) {
        size_t a = jinja_utf8_offset(v->str->bytes, v->str->len, (size_t)from);
        size_t b = from < to ? a + jinja_utf8_offset(v->str->bytes + a, v->str->len - a,
                                                     (size_t)(to - from))
                             : a;
        return jinja_substr(r, v->str, a, b - a, out);
    }
    struct jinja_value all;
    if (!jinja_new_list(r, v->kind == JV_TUPLE ? JV_TUPLE : JV_LIST, 0, &all)) return false;
    const struct jinja_list *items = v->list;
    if (v->kind == JV_STRING ||
        v->kind == JV_RANGE) { /* made a list of characters or numbers first */
        struct jinja_iter it = {.over = *v, .n = n};
        struct jinja_value chars, item;
        if (!jinja_new_list(r, JV_LIST, n, &chars)) return false;
        for (bool more = true; more;) {
            if (!jinja_iter_next(r, &it, &item, &more)) return false;
            if (more && !jinja_list_push(r, chars.list, item)) return false;
        }
        items = chars.list;
    }
    for (int64_t i = from; by > 0 ? i < to : i > to; i += by)
        if (!jinja_list_push(r, all.list, items->items[i])) return false;
    *out = all;
    if (v->kind != JV_STRING) return true;
    const struct jinja_str nothing = {.bytes = ""};
    return jinja_join(r, &nothing, &all, true, out);
}
