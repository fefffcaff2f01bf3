/* What strings can do, for methods and filters alike. Taint follows every byte. */
#include <string.h>
#include <utf8proc.h>

#include "common/base/utf8.h"
#include "coordinator/text/jinja_run.h"

static bool in_chars(const struct jinja_str *chars, uint32_t cp)
{
    if (chars == NULL) return jinja_is_space(cp);
    for (size_t i = 0; i < chars->len;) {
        uint32_t c;
        i += utf8_decode(chars->bytes + i, chars->len - i, &c);
        if (c == cp) return true;
    }
    return false;
}

bool jinja_strip(struct jinja_run *r, const struct jinja_str *s, const struct jinja_value *chars,
                 int sides, struct jinja_value *out)
{
    if (chars != NULL && chars->kind != JV_STRING && chars->kind != JV_NONE)
        return jinja_fail(r, "strip arg must be None or str");
    const struct jinja_str *set = chars != NULL && chars->kind == JV_STRING ? chars->str : NULL;
    if (set != NULL && !jinja_steps(r, (set->len + 1) * (s->len / 1024 + 1) / 16)) return false;
    size_t from = 0, end = s->len;
    while ((sides & 1) != 0 && from < end) {
        uint32_t cp;
        size_t used = utf8_decode(s->bytes + from, end - from, &cp);
        if (!in_chars(set, cp)) break;
        from += used;
    }
    while ((sides & 2) != 0 && end > from) {
        size_t start = end - 1;
        while (start > from && ((unsigned char)s->bytes[start] & 0xc0) == 0x80)
            start--;
        uint32_t cp;
        utf8_decode(s->bytes + start, end - start, &cp);
        if (!in_chars(set, cp)) break;
        end = start;
    }
    return jinja_touch(r, s->len - (end - from)) && jinja_substr(r, s, from, end - from, out);
}

bool jinja_join(struct jinja_run *r, const struct jinja_str *separator,
                const struct jinja_value *over, bool strict, struct jinja_value *out)
{
    struct jinja_iter it;
    struct jinja_value item;
    bool more;
    size_t mark = jinja_mark(r);
    if (!jinja_iter_open(r, over, &it)) return false;
    for (size_t i = 0;; i++) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (!more) break;
        if (strict && item.kind != JV_STRING)
            return jinja_fail(r, "sequence item %zu: expected str instance, %s found", i,
                              jinja_kind_name(&item));
        if ((i > 0 && !jinja_emit_str(r, separator)) || !jinja_emit_value(r, &item)) return false;
    }
    return jinja_take(r, mark, out);
}

bool jinja_replace(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *old,
                   const struct jinja_str *fresh, int64_t count, struct jinja_value *out)
{
    size_t mark = jinja_mark(r), i = 0;
    if (!jinja_touch(r, s->len)) return false;
    for (; count != 0; count--) {
        if (old->len == 0) { /* before every character, and at the end */
            if (!jinja_emit_str(r, fresh)) return false;
            if (i >= s->len) break;
            size_t used = jinja_utf8_offset(s->bytes + i, s->len - i, 1);
            if (!jinja_emit_sub(r, s, i, used)) return false;
            i += used;
            continue;
        }
        const char *hit =
            i < s->len ? memmem(s->bytes + i, s->len - i, old->bytes, old->len) : NULL;
        if (hit == NULL) break;
        size_t at = (size_t)(hit - s->bytes);
        if (!jinja_emit_sub(r, s, i, at - i) || !jinja_emit_str(r, fresh)) return false;
        i = at + old->len;
    }
    return jinja_emit_sub(r, s, i, s->len - i) && jinja_take(r, mark, out);
}

/* Like Python except for the few characters whose case is several characters (the sharp s). */
bool jinja_recase(struct jinja_run *r, const struct jinja_str *s, enum jinja_case how, bool words,
                  struct jinja_value *out)
{
    size_t mark = jinja_mark(r);
    bool inside = false; /* a word has begun */
    for (size_t i = 0; i < s->len;) {
        uint32_t cp;
        size_t used = utf8_decode(s->bytes + i, s->len - i, &cp);
        bool tainted = s->taint != NULL ? s->taint[i] != 0 : s->tainted;
        utf8proc_int32_t c = (utf8proc_int32_t)cp;
        utf8proc_category_t category = utf8proc_category(c);
        bool letter = category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
                      category == UTF8PROC_CATEGORY_LT;
        /* str.title() begins a word after anything but a letter; Jinja's filter only after
         * white space and ( [ { < and -. */
        bool separates =
            words ? jinja_is_space(cp) || (cp < 0x80 && strchr("-({[<", (int)cp) != NULL && cp != 0)
                  : !letter;
        switch (how) {
        case JINJA_UPPER:
            c = utf8proc_toupper(c);
            break;
        case JINJA_LOWER:
            c = utf8proc_tolower(c);
            break;
        case JINJA_TITLE:
            c = inside ? utf8proc_tolower(c) : utf8proc_totitle(c);
            break;
        case JINJA_CAPITALIZE:
            c = i > 0 ? utf8proc_tolower(c) : utf8proc_totitle(c);
            break;
        }
        inside = !separates;
        char bytes[4];
        if (!jinja_emit(r, bytes, utf8_encode((uint32_t)c, bytes), tainted)) return false;
        i += used;
    }
    return jinja_touch(r, 64 * s->len) && jinja_take(r, mark, out);
}
