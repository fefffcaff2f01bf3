/* Values as text: Python's str() and repr(), and json.dumps. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/jinja_run.h"

static bool emit_repr(struct jinja_run *r, const struct jinja_value *v);

size_t jinja_format_real(double f, char out[32])
{
    if (isnan(f)) return (size_t)snprintf(out, 32, "nan");
    if (isinf(f)) return (size_t)snprintf(out, 32, f < 0 ? "-inf" : "inf");
    char e[32];
    int precision = 0; /* the fewest digits that read back as f */
    for (; precision < 17; precision++) {
        snprintf(e, sizeof e, "%.*e", precision, f);
        if (strtod(e, NULL) == f) break;
    }
    char *mark = strchr(e, 'e');
    int exponent = atoi(mark + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        int n = snprintf(out, 32, "%.*f", decimals > 1 ? decimals : 1, f);
        return (size_t)n;
    }
    *mark = '\0';
    return (size_t)snprintf(out, 32, "%se%c%02d", e, exponent < 0 ? '-' : '+', abs(exponent));
}

static bool emit_real(struct jinja_run *r, double f)
{
    char text[32];
    return jinja_emit(r, text, jinja_format_real(f, text), false);
}

static bool emit_int(struct jinja_run *r, int64_t i)
{
    char text[24];
    return jinja_emit(r, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)i), false);
}

static bool emit_str_repr(struct jinja_run *r, const struct jinja_str *s)
{
    bool single = s->len > 0 && memchr(s->bytes, '\'', s->len) != NULL;
    char quote = single && memchr(s->bytes, '"', s->len) == NULL ? '"' : '\'';
    bool ok = jinja_emit(r, &quote, 1, false);
    for (size_t i = 0; ok && i < s->len;) {
        uint32_t cp;
        size_t used = utf8_decode(s->bytes + i, s->len - i, &cp);
        bool tainted = s->taint != NULL ? s->taint[i] != 0 : s->tainted;
        char esc[16];
        int n = 0;
        if (cp == '\n')
            n = snprintf(esc, sizeof esc, "\\n");
        else if (cp == '\r')
            n = snprintf(esc, sizeof esc, "\\r");
        else if (cp == '\t')
            n = snprintf(esc, sizeof esc, "\\t");
        else if (cp == '\\' || cp == (uint32_t)(unsigned char)quote)
            n = snprintf(esc, sizeof esc, "\\%c", (int)cp);
        else if (cp < 0x20 || (cp >= 0x7f && cp <= 0xa0) || cp == 0xad)
            n = snprintf(esc, sizeof esc, "\\x%02x", (unsigned)cp);
        else if (jinja_is_space(cp) && cp != ' ')
            n = snprintf(esc, sizeof esc, "\\u%04x", (unsigned)cp);
        ok = n > 0 ? jinja_emit(r, esc, (size_t)n, tainted) : jinja_emit_sub(r, s, i, used);
        i += used;
    }
    return ok && jinja_emit(r, &quote, 1, false);
}

static bool emit_items(struct jinja_run *r, const struct jinja_list *list, const char *open,
                       const char *close)
{
    bool ok = jinja_emit_text(r, open);
    for (size_t i = 0; ok && i < list->n; i++)
        ok = (i == 0 || jinja_emit_text(r, ", ")) && emit_repr(r, &list->items[i]);
    return ok && jinja_emit_text(r, close);
}

static bool emit_dict(struct jinja_run *r, const struct jinja_dict *d)
{
    bool ok = jinja_emit_text(r, "{");
    for (size_t i = 0; ok && i < d->n; i++)
        ok = (i == 0 || jinja_emit_text(r, ", ")) && emit_repr(r, &d->entries[i].key) &&
             jinja_emit_text(r, ": ") && emit_repr(r, &d->entries[i].value);
    return ok && jinja_emit_text(r, "}");
}

static bool emit_range(struct jinja_run *r, const struct jinja_range *g)
{
    int64_t stop = (int64_t)((uint64_t)g->start + g->n * (uint64_t)g->step);
    return jinja_emit_text(r, "range(") && emit_int(r, g->start) && jinja_emit_text(r, ", ") &&
           emit_int(r, stop) &&
           (g->step == 1 || (jinja_emit_text(r, ", ") && emit_int(r, g->step))) &&
           jinja_emit_text(r, ")");
}

static bool emit_repr(struct jinja_run *r, const struct jinja_value *v)
{
    bool ok = jinja_enter(r);
    if (ok) {
        switch (v->kind) {
        case JV_UNDEFINED:
            ok = jinja_emit_text(r, "Undefined");
            break;
        case JV_NONE:
            ok = jinja_emit_text(r, "None");
            break;
        case JV_BOOL:
            ok = jinja_emit_text(r, v->truth ? "True" : "False");
            break;
        case JV_INT:
            ok = emit_int(r, v->integer);
            break;
        case JV_FLOAT:
            ok = emit_real(r, v->real);
            break;
        case JV_STRING:
            ok = emit_str_repr(r, v->str);
            break;
        case JV_LIST:
            ok = emit_items(r, v->list, "[", "]");
            break;
        case JV_TUPLE:
            ok = emit_items(r, v->list, "(", v->list->n == 1 ? ",)" : ")");
            break;
        case JV_VIEW:
            ok = emit_items(r, v->list, "dict_view([", "])");
            break;
        case JV_DICT:
            ok = emit_dict(r, v->dict);
            break;
        case JV_RANGE:
            ok = emit_range(r, v->range);
            break;
        case JV_NAMESPACE:
            ok = jinja_emit_text(r, "<Namespace ") && emit_dict(r, v->dict) &&
                 jinja_emit_text(r, ">");
            break;
        case JV_GENERATOR:
        case JV_LOOP:
        case JV_MACRO:
        case JV_METHOD:
        case JV_FUNCTION: /* Python prints an address here, which no template can mean */
            ok = jinja_fail(r, "a %s has no text", jinja_kind_name(v));
            break;
        }
    }
    jinja_leave(r);
    return ok;
}

bool jinja_emit_value(struct jinja_run *r, const struct jinja_value *v)
{
    if (v->kind == JV_STRING) return jinja_emit_str(r, v->str);
    if (v->kind == JV_UNDEFINED) return true;
    size_t mark = jinja_mark(r);
    bool ok = emit_repr(r, v);
    jinja_spread_taint(r, mark);
    return ok;
}

bool jinja_to_str(struct jinja_run *r, const struct jinja_value *v, struct jinja_value *out)
{
    if (v->kind == JV_STRING) {
        *out = *v;
        return true;
    }
    size_t mark = jinja_mark(r);
    return jinja_emit_value(r, v) && jinja_take(r, mark, out);
}

static bool emit_json_string(struct jinja_run *r, const struct jinja_str *s, bool ascii)
{
    bool ok = jinja_emit_text(r, "\"");
    for (size_t i = 0; ok && i < s->len;) {
        size_t run = i; /* most text needs no escapes: emit it in runs */
        while (run < s->len && s->bytes[run] != '"' && s->bytes[run] != '\\' &&
               (unsigned char)s->bytes[run] >= 0x20 &&
               (!ascii || (unsigned char)s->bytes[run] < 0x7f))
            run++;
        if (run > i) ok = jinja_emit_sub(r, s, i, run - i);
        i = run;
        if (!ok || i == s->len) break;
        bool tainted = s->taint != NULL ? s->taint[i] != 0 : s->tainted;
        uint32_t cp;
        i += utf8_decode(s->bytes + i, s->len - i, &cp);
        static const char letters[] = "\"\"\\\\\nn\rr\tt\bb\ff";
        const char *short_form = NULL;
        for (const char *p = letters; *p != '\0'; p += 2)
            if ((uint32_t)*p == cp) short_form = p + 1;
        char esc[16];
        int n;
        if (short_form != NULL)
            n = snprintf(esc, sizeof esc, "\\%c", *short_form);
        else if (cp == 0x7f)
            n = snprintf(esc, sizeof esc, "\x7f");
        else if (cp < 0x10000)
            n = snprintf(esc, sizeof esc, "\\u%04x", (unsigned)cp);
        else
            n = snprintf(esc, sizeof esc, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10),
                         0xdc00 + ((cp - 0x10000) & 0x3ff));
        ok = jinja_emit(r, esc, (size_t)n, tainted);
    }
    return ok && jinja_emit_text(r, "\"");
}

static bool json_break(struct jinja_run *r, const struct jinja_json_style *style, int level)
{
    if (style->indent < 0) return true;
    bool ok = jinja_emit_text(r, "\n");
    for (int64_t left = (int64_t)style->indent * level; ok && left > 0; left -= 16)
        ok = jinja_emit(r, "                ", left < 16 ? (size_t)left : 16, false);
    return ok;
}

static bool json_comma(struct jinja_run *r, const struct jinja_json_style *style, int level)
{
    bool ok = style->item_separator != NULL ? jinja_emit_str(r, style->item_separator)
                                            : jinja_emit_text(r, style->indent < 0 ? ", " : ",");
    return ok && json_break(r, style, level);
}

static bool json_value(struct jinja_run *r, const struct jinja_value *v,
                       const struct jinja_json_style *style, int level);

static bool json_key(struct jinja_run *r, const struct jinja_value *key,
                     const struct jinja_json_style *style)
{
    if (key->kind == JV_STRING) return emit_json_string(r, key->str, style->ensure_ascii);
    if (key->kind > JV_FLOAT || key->kind == JV_UNDEFINED)
        return jinja_fail(r, "keys must be str, int, float, bool or None, not %s",
                          jinja_kind_name(key));
    return jinja_emit_text(r, "\"") && json_value(r, key, style, 0) && jinja_emit_text(r, "\"");
}

static int by_key(const void *a, const void *b)
{
    const struct jinja_str *x = ((const struct jinja_entry *)a)->key.str;
    const struct jinja_str *y = ((const struct jinja_entry *)b)->key.str;
    size_t n = x->len < y->len ? x->len : y->len;
    int c = n == 0 ? 0 : memcmp(x->bytes, y->bytes, n);
    return c != 0 ? c : (x->len > y->len) - (x->len < y->len);
}

static bool json_dict(struct jinja_run *r, const struct jinja_dict *d,
                      const struct jinja_json_style *style, int level)
{
    const struct jinja_entry *entries = d->entries;
    if (style->sort_keys && d->n > 1) {
        struct jinja_entry *sorted = jinja_alloc(r, d->n, sizeof *sorted);
        if (sorted == NULL) return false;
        memcpy(sorted, d->entries, d->n * sizeof *sorted);
        for (size_t i = 0; i < d->n; i++)
            if (sorted[i].key.kind != JV_STRING)
                return jinja_fail(r, "sort_keys wants keys that are strings");
        qsort(sorted, d->n, sizeof *sorted, by_key);
        entries = sorted;
    }
    bool ok = jinja_emit_text(r, "{") && (d->n == 0 || json_break(r, style, level + 1));
    for (size_t i = 0; ok && i < d->n; i++)
        ok = (i == 0 || json_comma(r, style, level + 1)) && json_key(r, &entries[i].key, style) &&
             (style->key_separator != NULL ? jinja_emit_str(r, style->key_separator)
                                           : jinja_emit_text(r, ": ")) &&
             json_value(r, &entries[i].value, style, level + 1);
    return ok && (d->n == 0 || json_break(r, style, level)) && jinja_emit_text(r, "}");
}

static bool json_list(struct jinja_run *r, const struct jinja_list *list,
                      const struct jinja_json_style *style, int level)
{
    bool ok = jinja_emit_text(r, "[") && (list->n == 0 || json_break(r, style, level + 1));
    for (size_t i = 0; ok && i < list->n; i++)
        ok = (i == 0 || json_comma(r, style, level + 1)) &&
             json_value(r, &list->items[i], style, level + 1);
    return ok && (list->n == 0 || json_break(r, style, level)) && jinja_emit_text(r, "]");
}

static bool json_value(struct jinja_run *r, const struct jinja_value *v,
                       const struct jinja_json_style *style, int level)
{
    bool ok = jinja_enter(r);
    if (ok) {
        switch (v->kind) {
        case JV_NONE:
            ok = jinja_emit_text(r, "null");
            break;
        case JV_BOOL:
            ok = jinja_emit_text(r, v->truth ? "true" : "false");
            break;
        case JV_INT:
            ok = emit_int(r, v->integer);
            break;
        case JV_FLOAT:
            ok = isnan(v->real)   ? jinja_emit_text(r, "NaN")
                 : isinf(v->real) ? jinja_emit_text(r, v->real < 0 ? "-Infinity" : "Infinity")
                                  : emit_real(r, v->real);
            break;
        case JV_STRING:
            ok = emit_json_string(r, v->str, style->ensure_ascii);
            break;
        case JV_LIST:
        case JV_TUPLE:
            ok = json_list(r, v->list, style, level);
            break;
        case JV_DICT:
            ok = json_dict(r, v->dict, style, level);
            break;
        default:
            ok = jinja_fail(r, "Object of type %s is not JSON serializable", jinja_kind_name(v));
        }
    }
    jinja_leave(r);
    return ok;
}

bool jinja_emit_json(struct jinja_run *r, const struct jinja_value *v,
                     const struct jinja_json_style *style)
{
    size_t mark = jinja_mark(r);
    bool ok = json_value(r, v, style, 0);
    jinja_spread_taint(r, mark);
    return ok;
}
