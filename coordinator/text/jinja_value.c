#include "coordinator/text/jinja_value.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/jinja_run.h"

bool jinja_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t jinja_space_prefix(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint32_t cp;
        size_t used = utf8_decode(s + i, n - i, &cp);
        if (!jinja_is_space(cp)) break;
        i += used;
    }
    return i;
}

size_t jinja_space_suffix(const char *s, size_t n)
{
    size_t end = n;
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && end - start < 4 && ((unsigned char)s[start] & 0xc0) == 0x80)
            start--;
        uint32_t cp;
        if (utf8_decode(s + start, end - start, &cp) != end - start || !jinja_is_space(cp)) break;
        end = start;
    }
    return n - end;
}

size_t jinja_utf8_count(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

size_t jinja_utf8_offset(const char *s, size_t n, size_t index)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80 && index-- == 0) return i;
    return n;
}

bool jinja_new_str(struct jinja_run *r, const char *bytes, size_t n, bool tainted,
                   struct jinja_value *out)
{
    struct jinja_str *s = jinja_alloc(r, 1, sizeof *s);
    if (s == NULL) return false;
    *s = (struct jinja_str){.bytes = bytes, .len = n, .tainted = tainted};
    *out = (struct jinja_value){.kind = JV_STRING, .str = s};
    return true;
}

bool jinja_substr(struct jinja_run *r, const struct jinja_str *s, size_t from, size_t n,
                  struct jinja_value *out)
{
    struct jinja_str *part = jinja_alloc(r, 1, sizeof *part);
    if (part == NULL) return false;
    *part = *s;
    part->bytes += from;
    part->len = n;
    if (part->taint != NULL) part->taint += from;
    *out = (struct jinja_value){.kind = JV_STRING, .str = part};
    return true;
}

bool jinja_concat(struct jinja_run *r, const struct jinja_str *a, const struct jinja_str *b,
                  struct jinja_value *out)
{
    size_t mark = jinja_mark(r);
    return jinja_emit_str(r, a) && jinja_emit_str(r, b) && jinja_take(r, mark, out);
}

bool jinja_new_list(struct jinja_run *r, enum jinja_kind kind, size_t room, struct jinja_value *out)
{
    struct jinja_list *list = jinja_alloc(r, 1, sizeof *list);
    if (list == NULL) return false;
    if (room > 0) {
        list->items = jinja_alloc(r, room, sizeof *list->items);
        if (list->items == NULL) return false;
        list->cap = room;
    }
    *out = (struct jinja_value){.kind = kind, .list = list};
    return true;
}

bool jinja_list_push(struct jinja_run *r, struct jinja_list *list, struct jinja_value item)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 8;
        struct jinja_value *items = jinja_alloc(r, cap, sizeof *items);
        if (items == NULL) return false;
        if (list->n > 0) memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = item;
    return jinja_steps(r, 1);
}

bool jinja_new_dict(struct jinja_run *r, enum jinja_kind kind, size_t room, struct jinja_value *out)
{
    struct jinja_dict *d = jinja_alloc(r, 1, sizeof *d);
    if (d == NULL) return false;
    if (room > 0) {
        d->entries = jinja_alloc(r, room, sizeof *d->entries);
        if (d->entries == NULL) return false;
        d->cap = room;
    }
    *out = (struct jinja_value){.kind = kind, .dict = d};
    return true;
}

static bool dict_push(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key,
                      struct jinja_value value)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 8;
        struct jinja_entry *entries = jinja_alloc(r, cap, sizeof *entries);
        if (entries == NULL) return false;
        if (d->n > 0) memcpy(entries, d->entries, d->n * sizeof *entries);
        d->entries = entries;
        d->cap = cap;
    }
    d->entries[d->n++] = (struct jinja_entry){key, value};
    return jinja_steps(r, 1);
}

bool jinja_dict_put(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value value)
{
    struct jinja_value *slot;
    if (!jinja_dict_find(r, d, key, &slot)) return false;
    if (slot == NULL) return dict_push(r, d, key, value);
    *slot = value;
    return true;
}

bool jinja_dict_find(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key,
                     struct jinja_value **found)
{
    *found = NULL;
    if (key.kind == JV_LIST || key.kind == JV_DICT)
        return jinja_fail(r, "unhashable type: '%s'", jinja_kind_name(&key));
    if (!jinja_steps(r, d->n / 8)) return false;
    for (size_t i = 0; i < d->n; i++) {
        const struct jinja_value *k = &d->entries[i].key;
        bool same;
        if (k->kind == JV_STRING && key.kind == JV_STRING) {
            same = k->str->len == key.str->len &&
                   memcmp(k->str->bytes, key.str->bytes, key.str->len) == 0;
        } else if (k->kind == JV_STRING || key.kind == JV_STRING) {
            same = false;
        } else if (!jinja_equal(r, k, &key, &same)) {
            return false;
        }
        if (same) {
            *found = &d->entries[i].value;
            return true;
        }
    }
    return true;
}

struct jinja_value *jinja_dict_find_text(struct jinja_run *r, const struct jinja_dict *d,
                                         const char *key)
{
    size_t n = strlen(key);
    (void)jinja_steps(r, d->n / 8); /* a failure sticks and is seen by the next step */
    for (size_t i = 0; i < d->n; i++) {
        const struct jinja_value *k = &d->entries[i].key;
        if (k->kind == JV_STRING && k->str->len == n && memcmp(k->str->bytes, key, n) == 0)
            return &d->entries[i].value;
    }
    return NULL;
}

bool jinja_from_json(struct jinja_run *r, const json_t *json, unsigned depth,
                     struct jinja_value *out)
{
    if (depth > LIMIT_TEMPLATE_DEPTH)
        return jinja_fail(r, "the input is nested deeper than %u levels", LIMIT_TEMPLATE_DEPTH);
    switch (json_typeof(json)) {
    case JSON_NULL:
        *out = jinja_none();
        return true;
    case JSON_TRUE:
        *out = jinja_bool(true);
        return true;
    case JSON_FALSE:
        *out = jinja_bool(false);
        return true;
    case JSON_INTEGER:
        *out = jinja_int(json_integer_value(json));
        return true;
    case JSON_REAL:
        *out = jinja_real(json_real_value(json));
        return true;
    case JSON_STRING:
        return jinja_new_str(r, json_string_value(json), json_string_length(json), true, out);
    case JSON_ARRAY: {
        size_t n = json_array_size(json);
        if (!jinja_new_list(r, JV_LIST, n, out)) return false;
        for (size_t i = 0; i < n; i++)
            if (!jinja_from_json(r, json_array_get(json, i), depth + 1, &out->list->items[i]))
                return false;
        out->list->n = n;
        return true;
    }
    case JSON_OBJECT: {
        if (!jinja_new_dict(r, JV_DICT, json_object_size(json), out)) return false;
        /* The iterator wants a mutable object but only reads it. */
        json_t *object = json_incref((json_t *)(uintptr_t)json);
        bool ok = true;
        for (void *it = json_object_iter(object); ok && it != NULL;
             it = json_object_iter_next(object, it)) {
            struct jinja_entry *e = &out->dict->entries[out->dict->n];
            ok = jinja_new_str(r, json_object_iter_key(it), json_object_iter_key_len(it), true,
                               &e->key) &&
                 jinja_from_json(r, json_object_iter_value(it), depth + 1, &e->value);
            out->dict->n++;
        }
        json_decref(object);
        return ok;
    }
    default:
        return jinja_fail(r, "an unknown kind of JSON value");
    }
}

const char *jinja_kind_name(const struct jinja_value *v)
{
    static const char *const names[] = {
        [JV_UNDEFINED] = "Undefined", [JV_NONE] = "NoneType",
        [JV_BOOL] = "bool",           [JV_INT] = "int",
        [JV_FLOAT] = "float",         [JV_STRING] = "str",
        [JV_LIST] = "list",           [JV_TUPLE] = "tuple",
        [JV_GENERATOR] = "generator", [JV_VIEW] = "dict view",
        [JV_DICT] = "dict",           [JV_RANGE] = "range",
        [JV_NAMESPACE] = "Namespace", [JV_LOOP] = "LoopContext",
        [JV_MACRO] = "Macro",         [JV_METHOD] = "method",
        [JV_FUNCTION] = "function",
    };
    return names[v->kind];
}

bool jinja_is_str(const struct jinja_value *v, const char *text)
{
    return v->kind == JV_STRING && v->str->len == strlen(text) &&
           memcmp(v->str->bytes, text, v->str->len) == 0;
}

bool jinja_truth(const struct jinja_value *v)
{
    switch (v->kind) {
    case JV_UNDEFINED:
    case JV_NONE:
        return false;
    case JV_BOOL:
        return v->truth;
    case JV_INT:
        return v->integer != 0;
    case JV_FLOAT:
        return v->real != 0.0;
    case JV_STRING:
        return v->str->len > 0;
    case JV_LIST:
    case JV_TUPLE:
    case JV_VIEW:
        return v->list->n > 0;
    case JV_DICT:
        return v->dict->n > 0;
    case JV_RANGE:
        return v->range->n > 0;
    default:
        return true;
    }
}

static bool is_number(const struct jinja_value *v)
{
    return v->kind == JV_BOOL || v->kind == JV_INT || v->kind == JV_FLOAT;
}

static int64_t as_int(const struct jinja_value *v)
{
    return v->kind == JV_BOOL ? v->truth : v->integer;
}

/* Order of two numbers without rounding an integer to a double; 2 if one is not a number. */
static int compare_numbers(const struct jinja_value *a, const struct jinja_value *b)
{
    if (a->kind != JV_FLOAT && b->kind != JV_FLOAT) {
        int64_t x = as_int(a), y = as_int(b);
        return (x > y) - (x < y);
    }
    if (a->kind == JV_FLOAT && b->kind == JV_FLOAT) {
        if (isnan(a->real) || isnan(b->real)) return 2;
        return (a->real > b->real) - (a->real < b->real);
    }
    if (a->kind != JV_FLOAT) {
        int c = compare_numbers(b, a);
        return c == 2 ? 2 : -c;
    }
    double f = a->real;
    int64_t i = as_int(b);
    if (isnan(f)) return 2;
    if (f >= 0x1p63) return 1;
    if (f < -0x1p63) return -1;
    int64_t whole = (int64_t)f;
    if (whole != i) return whole > i ? 1 : -1;
    double rest = f - (double)whole;
    return (rest > 0) - (rest < 0);
}

static bool equal_lists(struct jinja_run *r, const struct jinja_list *a, const struct jinja_list *b,
                        bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++)
        if (!jinja_equal(r, &a->items[i], &b->items[i], out)) return false;
    return true;
}

static bool equal_dicts(struct jinja_run *r, const struct jinja_dict *a, const struct jinja_dict *b,
                        bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++) {
        struct jinja_value *other;
        if (!jinja_dict_find(r, b, a->entries[i].key, &other)) return false;
        if (other == NULL)
            *out = false;
        else if (!jinja_equal(r, &a->entries[i].value, other, out))
            return false;
    }
    return true;
}

bool jinja_equal(struct jinja_run *r, const struct jinja_value *a, const struct jinja_value *b,
                 bool *out)
{
    if (is_number(a) && is_number(b)) {
        *out = compare_numbers(a, b) == 0;
        return jinja_steps(r, 1);
    }
    *out = false;
    if (a->kind != b->kind) return jinja_steps(r, 1);
    bool ok = jinja_enter(r);
    if (ok) {
        switch (a->kind) {
        case JV_UNDEFINED:
        case JV_NONE:
            *out = true;
            break;
        case JV_STRING:
            ok = a->str->len != b->str->len || jinja_touch(r, a->str->len);
            *out = a->str->len == b->str->len &&
                   memcmp(a->str->bytes, b->str->bytes, a->str->len) == 0;
            break;
        case JV_LIST:
        case JV_TUPLE:
            ok = a->list == b->list ? (*out = true) : equal_lists(r, a->list, b->list, out);
            break;
        case JV_DICT:
            ok = a->dict == b->dict ? (*out = true) : equal_dicts(r, a->dict, b->dict, out);
            break;
        case JV_RANGE:
            *out = a->range->n == b->range->n &&
                   (a->range->n == 0 || (a->range->start == b->range->start &&
                                         (a->range->n == 1 || a->range->step == b->range->step)));
            break;
        case JV_FUNCTION:
            *out = a->function == b->function;
            break;
        default:
            *out = a->dict == b->dict;
            break; /* the same object */
        }
    }
    jinja_leave(r);
    return ok;
}

bool jinja_compare(struct jinja_run *r, const struct jinja_value *a, const struct jinja_value *b,
                   int *out)
{
    if (is_number(a) && is_number(b)) {
        *out = compare_numbers(a, b);
        return jinja_steps(r, 1);
    }
    if (a->kind == JV_STRING && b->kind == JV_STRING) {
        /* Byte order of UTF-8 is code point order. */
        size_t n = a->str->len < b->str->len ? a->str->len : b->str->len;
        int c = n == 0 ? 0 : memcmp(a->str->bytes, b->str->bytes, n);
        *out =
            c != 0 ? (c > 0) - (c < 0) : (a->str->len > b->str->len) - (a->str->len < b->str->len);
        return jinja_touch(r, n);
    }
    if (a->kind == b->kind && (a->kind == JV_LIST || a->kind == JV_TUPLE)) {
        size_t n = a->list->n < b->list->n ? a->list->n : b->list->n;
        bool ok = jinja_enter(r);
        *out = (a->list->n > b->list->n) - (a->list->n < b->list->n);
        for (size_t i = 0; ok && i < n; i++) {
            bool same;
            ok = jinja_equal(r, &a->list->items[i], &b->list->items[i], &same);
            if (!ok || same) continue;
            ok = jinja_compare(r, &a->list->items[i], &b->list->items[i], out);
            break;
        }
        jinja_leave(r);
        return ok;
    }
    return jinja_fail(r, "'<' not supported between instances of '%s' and '%s'", jinja_kind_name(a),
                      jinja_kind_name(b));
}

bool jinja_contains(struct jinja_run *r, const struct jinja_value *in,
                    const struct jinja_value *what, bool *out)
{
    struct jinja_value *found;
    *out = false;
    switch (in->kind) {
    case JV_STRING:
        if (what->kind != JV_STRING)
            return jinja_fail(r, "'in <string>' requires string as left operand, not %s",
                              jinja_kind_name(what));
        *out = what->str->len == 0 ||
               (in->str->len >= what->str->len &&
                memmem(in->str->bytes, in->str->len, what->str->bytes, what->str->len) != NULL);
        return jinja_touch(r, in->str->len);
    case JV_DICT:
        if (!jinja_dict_find(r, in->dict, *what, &found)) return false;
        *out = found != NULL;
        return true;
    default:
        break;
    }
    struct jinja_iter it;
    struct jinja_value item;
    bool more;
    if (!jinja_iter_open(r, in, &it)) return false;
    while (!*out) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (!more) break;
        if (!jinja_equal(r, &item, what, out)) return false;
    }
    return true;
}

bool jinja_length(struct jinja_run *r, const struct jinja_value *v, size_t *out)
{
    switch (v->kind) {
    case JV_UNDEFINED:
        *out = 0;
        return true;
    case JV_STRING:
        *out = jinja_utf8_count(v->str->bytes, v->str->len);
        return jinja_touch(r, v->str->len);
    case JV_LIST:
    case JV_TUPLE:
    case JV_VIEW:
        *out = v->list->n;
        return true;
    case JV_DICT:
        *out = v->dict->n;
        return true;
    case JV_RANGE:
        *out = v->range->n;
        return true;
    case JV_LOOP:
        *out = v->loop->length;
        return true;
    default:
        return jinja_fail(r, "object of type '%s' has no len()", jinja_kind_name(v));
    }
}

bool jinja_iter_open(struct jinja_run *r, const struct jinja_value *over, struct jinja_iter *it)
{
    *it = (struct jinja_iter){.over = *over};
    switch (over->kind) {
    case JV_UNDEFINED:
        return true;
    case JV_GENERATOR:
        it->n = over->list->consumed ? 0 : over->list->n;
        over->list->consumed = true;
        return true;
    case JV_STRING:
    case JV_LIST:
    case JV_TUPLE:
    case JV_VIEW:
    case JV_DICT:
    case JV_RANGE:
        return jinja_length(r, over, &it->n);
    default:
        return jinja_fail(r, "'%s' object is not iterable", jinja_kind_name(over));
    }
}

bool jinja_iter_next(struct jinja_run *r, struct jinja_iter *it, struct jinja_value *item,
                     bool *more)
{
    *more = it->i < it->n;
    if (!*more) return true;
    size_t i = it->i++;
    switch (it->over.kind) {
    case JV_STRING: {
        const struct jinja_str *s = it->over.str;
        size_t from = it->byte++;
        while (it->byte < s->len && ((unsigned char)s->bytes[it->byte] & 0xc0) == 0x80)
            it->byte++;
        return jinja_substr(r, s, from, it->byte - from, item) && jinja_steps(r, 1);
    }
    case JV_DICT:
        *item = it->over.dict->entries[i].key;
        break;
    case JV_RANGE: /* unsigned: the product alone may pass the type, the sum does not */
        *item = jinja_int(
            (int64_t)((uint64_t)it->over.range->start + i * (uint64_t)it->over.range->step));
        break;
    default:
        *item = it->over.list->items[i];
        break;
    }
    return jinja_steps(r, 1);
}
