#include "coordinator/text/unicode.h"

#include <string.h>
#include <utf8proc.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/grow.h"

enum { MAX_EXPANSION = 32 }; /* the longest decomposition of one character is 18 (U+FDFA) */

bool unicode_is_space(uint32_t cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool unicode_is_numeric(uint32_t cp)
{
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool unicode_is_word(uint32_t cp)
{
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

bool unicode_is_punctuation(uint32_t cp)
{
    if (cp < 0x80)
        return (cp >= '!' && cp <= '/') || (cp >= ':' && cp <= '@') || (cp >= '[' && cp <= '`') ||
               (cp >= '{' && cp <= '~');
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

static int combining_class(utf8proc_int32_t cp)
{
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* Sort a run of combining marks by class, keeping equals in order. Insertion sort while that is
 * cheap; a counting sort into `spare` (as long as the run) beyond. */
static void sort_marks(utf8proc_int32_t *run, size_t n, utf8proc_int32_t *spare)
{
    if (n < 32) {
        for (size_t i = 1; i < n; i++) {
            utf8proc_int32_t cp = run[i];
            int ccc = combining_class(cp);
            size_t j = i;
            for (; j > 0 && combining_class(run[j - 1]) > ccc; j--)
                run[j] = run[j - 1];
            run[j] = cp;
        }
        return;
    }
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(run[i]) + 1]++;
    for (size_t c = 1; c < 257; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        spare[start[combining_class(run[i])]++] = run[i];
    memcpy(run, spare, n * sizeof *run);
}

static bool reorder(utf8proc_int32_t *cps, size_t n)
{
    size_t longest = 0, run = 0;
    for (size_t i = 0; i < n; i++) {
        run = combining_class(cps[i]) != 0 ? run + 1 : 0;
        if (run > longest) longest = run;
    }
    if (longest < 2) return true;
    utf8proc_int32_t *spare = NULL;
    if (longest >= 32) {
        spare = mem_zalloc_array(longest, sizeof *spare);
        if (spare == NULL) return false;
    }
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(cps[end]) != 0)
            end++;
        sort_marks(cps + i, end - i, spare);
        i = end + 1;
    }
    mem_free(spare);
    return true;
}

/* Below U+0300 everything is in NFC already, ASCII in every form. */
static bool is_normal(enum unicode_form form, const char *text, size_t n)
{
    uint8_t below = form == UNICODE_NFC ? 0xCC : 0x80;
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)text[i] >= below) return false;
    return true;
}

void unicode_normalize(enum unicode_form form, const char *text, size_t n, struct buf *out)
{
    if (is_normal(form, text, n)) {
        buf_append(out, text, n);
        return;
    }
    bool compat = form == UNICODE_NFKC || form == UNICODE_NFKD;
    bool compose = form == UNICODE_NFC || form == UNICODE_NFKC;
    unsigned options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0u);
    utf8proc_int32_t *cps = NULL;
    size_t len = 0, cap = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode(text + i, n - i, &cp);
        if (!grow((void **)&cps, &cap, len + MAX_EXPANSION, sizeof *cps)) goto nomem;
        int boundary = 0;
        utf8proc_ssize_t k = utf8proc_decompose_char((utf8proc_int32_t)cp, cps + len, MAX_EXPANSION,
                                                     (utf8proc_option_t)options, &boundary);
        if (k < 0 || k > MAX_EXPANSION) { /* not a character utf8proc knows: keep it */
            cps[len] = (utf8proc_int32_t)cp;
            k = 1;
        }
        len += (size_t)k;
    }
    if (!reorder(cps, len)) goto nomem;
    if (compose) {
        utf8proc_ssize_t k = utf8proc_normalize_utf32(cps, (utf8proc_ssize_t)len,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (k >= 0) len = (size_t)k;
    }
    for (size_t i = 0; i < len; i++)
        buf_put_utf8(out, (uint32_t)cps[i]);
    mem_free(cps);
    return;
nomem:
    mem_free(cps);
    out->failed = true;
}
