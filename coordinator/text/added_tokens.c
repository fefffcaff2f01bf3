#include "coordinator/text/added_tokens.h"

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/grow.h"
#include "coordinator/text/unicode.h"

#define NO_TOKEN UINT32_MAX

struct added_node {
    uint32_t child, sibling; /* nodes; 0: none (the root is nobody's child) */
    uint32_t token;          /* NO_TOKEN: none ends here */
    uint8_t byte;
};

void added_tokens_deinit(struct added_tokens *a)
{
    mem_free(a->tokens);
    mem_free(a->nodes);
    *a = (struct added_tokens){0};
}

static uint32_t child_of(const struct added_tokens *a, uint32_t node, uint8_t byte)
{
    if (node == 0) return a->first[byte];
    uint32_t c = a->nodes[node].child;
    while (c != 0 && a->nodes[c].byte != byte)
        c = a->nodes[c].sibling;
    return c;
}

static uint32_t add_node(struct added_tokens *a, uint32_t parent, uint8_t byte)
{
    if (!grow((void **)&a->nodes, &a->nodes_cap, a->n_nodes + 2, sizeof *a->nodes)) return 0;
    if (a->n_nodes == 0) a->nodes[a->n_nodes++] = (struct added_node){.token = NO_TOKEN};
    uint32_t node = (uint32_t)a->n_nodes++;
    a->nodes[node] = (struct added_node){.token = NO_TOKEN, .byte = byte};
    if (parent == 0) {
        a->first[byte] = node;
    } else {
        a->nodes[node].sibling = a->nodes[parent].child;
        a->nodes[parent].child = node;
    }
    return node;
}

enum err_code added_tokens_add(struct added_tokens *a, const struct added_token *t,
                               const char *text, size_t n, struct err *why)
{
    if (n == 0) return ERR_OK;
    if (!grow((void **)&a->tokens, &a->tokens_cap, a->n_tokens + 1, sizeof *a->tokens))
        return err_nomem(why, "added tokens");
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = child_of(a, node, (uint8_t)text[i]);
        if (c == 0) c = add_node(a, node, (uint8_t)text[i]);
        if (c == 0) return err_nomem(why, "added tokens");
        node = c;
    }
    a->nodes[node].token = (uint32_t)a->n_tokens;
    a->tokens[a->n_tokens++] = *t;
    return ERR_OK;
}

/* The start of the character that ends before `i`. */
static size_t step_back(const char *text, size_t i)
{
    do
        i--;
    while (i > 0 && ((uint8_t)text[i] & 0xC0) == 0x80);
    return i;
}

static bool stands_alone(const char *text, size_t n, size_t start, size_t end)
{
    uint32_t cp;
    if (start > 0) {
        size_t i = step_back(text, start);
        utf8_decode(text + i, start - i, &cp);
        if (unicode_is_word(cp)) return false;
    }
    if (end == n) return true;
    utf8_decode(text + end, n - end, &cp);
    return !unicode_is_word(cp);
}

static void absorb_space(const char *text, size_t n, size_t done, struct added_match *m)
{
    uint32_t cp;
    while (m->token->lstrip && m->start > done) {
        size_t i = step_back(text, m->start);
        utf8_decode(text + i, m->start - i, &cp);
        if (!unicode_is_space(cp)) break;
        m->start = i;
    }
    while (m->token->rstrip && m->end < n) {
        size_t used = utf8_decode(text + m->end, n - m->end, &cp);
        if (!unicode_is_space(cp)) break;
        m->end += used;
    }
}

bool added_tokens_find(const struct added_tokens *a, const char *text, size_t n, size_t from,
                       size_t done, bool no_control, struct added_match *out)
{
    if (a->n_tokens == 0) return false;
    for (size_t start = from; start < n;) {
        const struct added_token *best = NULL;
        size_t end = start;
        uint32_t node = 0;
        for (size_t i = start; i < n && (node = child_of(a, node, (uint8_t)text[i])) != 0; i++) {
            uint32_t k = a->nodes[node].token;
            if (k == NO_TOKEN || (no_control && a->tokens[k].control)) continue;
            best = &a->tokens[k];
            end = i + 1;
        }
        if (best == NULL) {
            start++;
            continue;
        }
        if (best->single_word && !stands_alone(text, n, start, end)) {
            start =
                end; /* as the reference does: what looked like the token is passed over whole */
            continue;
        }
        *out = (struct added_match){best, start, end, end};
        absorb_space(text, n, done, out);
        return true;
    }
    return false;
}
