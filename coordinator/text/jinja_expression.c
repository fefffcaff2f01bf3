/* Expressions: one function per level of binding, weakest first, as in Jinja2's grammar. */
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/text/jinja_parser_internal.h"
#include "coordinator/text/jinja_run.h"

static struct jinja_expr *parse_or(struct jinja_parser *p);
static struct jinja_expr *parse_unary(struct jinja_parser *p, bool with_filter);

struct jinja_expr *jinja_new_expr(struct jinja_parser *p, enum jinja_expr_kind kind)
{
    struct jinja_expr *e = arena_zalloc_array(p->arena, 1, sizeof *e);
    if (e == NULL) return jinja_parse_nomem(p);
    e->kind = kind;
    e->line = p->t->line;
    return e;
}

bool jinja_parts_push(struct jinja_parser *p, struct jinja_parts *parts, struct jinja_expr *e)
{
    if (p->rc != ERR_OK) return false;
    if (parts->n == parts->cap) {
        size_t cap = parts->cap ? parts->cap * 2 : 8, bytes;
        struct jinja_expr **items = size_mul(cap, sizeof(struct jinja_expr *), &bytes)
                                        ? arena_alloc(p->arena, bytes)
                                        : NULL;
        if (items == NULL) {
            jinja_parse_nomem(p);
            return false;
        }
        if (parts->n > 0) memcpy(items, parts->items, parts->n * sizeof(struct jinja_expr *));
        parts->items = items;
        parts->cap = cap;
    }
    parts->items[parts->n++] = e;
    return true;
}

bool jinja_parts_take(struct jinja_parser *p, struct jinja_parts *parts, struct jinja_expr ***items,
                      size_t *n)
{
    *items = parts->items;
    *n = parts->n;
    return p->rc == ERR_OK;
}

static struct jinja_expr *pair(struct jinja_parser *p, enum jinja_expr_kind kind, uint16_t op,
                               struct jinja_expr *a, struct jinja_expr *b)
{
    if (p->rc != ERR_OK) return NULL;
    struct jinja_expr *e = jinja_new_expr(p, kind);
    if (e == NULL) return NULL;
    e->op = op;
    e->a = a;
    e->b = b;
    if (a != NULL) e->line = a->line;
    return e;
}

static struct jinja_expr *constant(struct jinja_parser *p, struct jinja_value v)
{
    struct jinja_expr *e = jinja_new_expr(p, JE_CONST);
    if (e != NULL) e->value = v;
    return e;
}

/* Adjacent literals are one string. */
static struct jinja_expr *parse_string(struct jinja_parser *p)
{
    struct jinja_str *s = arena_zalloc_array(p->arena, 1, sizeof *s);
    if (s == NULL) return jinja_parse_nomem(p);
    const struct jinja_token *first = p->t;
    size_t len = 0;
    for (; p->t->kind == JT_STRING; p->t++)
        len += p->t->len;
    s->bytes = first->text;
    s->len = len;
    if (p->t - first > 1) {
        char *all = arena_alloc(p->arena, len), *to = all;
        if (all == NULL) return jinja_parse_nomem(p);
        for (const struct jinja_token *t = first; t < p->t; t++) {
            memcpy(to, t->text, t->len);
            to += t->len;
        }
        s->bytes = all;
    }
    return constant(p, (struct jinja_value){.kind = JV_STRING, .str = s});
}

static struct jinja_expr *parse_name(struct jinja_parser *p)
{
    const char *name = p->t->text;
    p->t++;
    if (strcmp(name, "true") == 0 || strcmp(name, "True") == 0)
        return constant(p, jinja_bool(true));
    if (strcmp(name, "false") == 0 || strcmp(name, "False") == 0)
        return constant(p, jinja_bool(false));
    if (strcmp(name, "none") == 0 || strcmp(name, "None") == 0) return constant(p, jinja_none());
    p->t--;
    struct jinja_expr *e = jinja_new_expr(p, JE_NAME);
    p->t++;
    if (e == NULL || !jinja_name_id(p, name, &e->name)) return NULL;
    e->text = name;
    return e;
}

static struct jinja_expr *parse_list(struct jinja_parser *p)
{
    struct jinja_expr *e = jinja_new_expr(p, JE_LIST);
    if (e == NULL) return NULL;
    p->t++;
    struct jinja_parts parts = {0};
    while (p->rc == ERR_OK && !jinja_at_op(p, ']')) {
        if (parts.n > 0 && !jinja_expect_op(p, ',', "a list wants ','")) break;
        if (jinja_at_op(p, ']')) break;
        jinja_parts_push(p, &parts, jinja_parse_expression(p));
    }
    if (!jinja_expect_op(p, ']', "a list wants ']'")) return NULL;
    return jinja_parts_take(p, &parts, &e->items, &e->n) ? e : NULL;
}

static struct jinja_expr *parse_dict(struct jinja_parser *p)
{
    struct jinja_expr *e = jinja_new_expr(p, JE_DICT);
    if (e == NULL) return NULL;
    p->t++;
    struct jinja_parts parts = {0};
    while (p->rc == ERR_OK && !jinja_at_op(p, '}')) {
        if (parts.n > 0 && !jinja_expect_op(p, ',', "a dict wants ','")) break;
        if (jinja_at_op(p, '}')) break;
        jinja_parts_push(p, &parts, jinja_parse_expression(p));
        if (!jinja_expect_op(p, ':', "a dict wants ':'")) break;
        jinja_parts_push(p, &parts, jinja_parse_expression(p));
    }
    if (!jinja_expect_op(p, '}', "a dict wants '}'")) return NULL;
    return jinja_parts_take(p, &parts, &e->items, &e->n) ? e : NULL;
}

static struct jinja_expr *parse_primary(struct jinja_parser *p)
{
    struct jinja_expr *e;
    switch (p->t->kind) {
    case JT_NAME:
        return parse_name(p);
    case JT_STRING:
        return parse_string(p);
    case JT_INT:
        e = constant(p, jinja_int(p->t->integer));
        p->t++;
        return e;
    case JT_FLOAT:
        e = constant(p, jinja_real(p->t->real));
        p->t++;
        return e;
    case JT_OP:
        if (p->t->op == '[') return parse_list(p);
        if (p->t->op == '{') return parse_dict(p);
        if (p->t->op == '(') {
            p->t++;
            if (jinja_skip_op(p, ')')) return jinja_new_expr(p, JE_TUPLE);
            e = jinja_parse_tuple(p, false);
            return jinja_expect_op(p, ')', "')' is missing") ? e : NULL;
        }
        break;
    default:
        break;
    }
    return jinja_parse_fail(p, "an expression is missing");
}

static bool parse_call_args(struct jinja_parser *p, struct jinja_expr *call)
{
    struct jinja_parts parts = {0}, named = {0};
    size_t n_names = 0;
    const char *names[16];
    p->t++; /* '(' */
    while (p->rc == ERR_OK && !jinja_at_op(p, ')')) {
        if (parts.n + n_names > 0 && !jinja_expect_op(p, ',', "arguments want ','")) return false;
        if (jinja_at_op(p, ')')) break;
        if (jinja_at_op(p, '*') || jinja_at_op(p, JINJA_OP2('*', '*')))
            return jinja_parse_fail(p, "'*' and '**' arguments are not supported") != NULL;
        if (p->t->kind == JT_NAME && p->t[1].kind == JT_OP && p->t[1].op == '=') {
            if (n_names == sizeof names / sizeof names[0])
                return jinja_parse_fail(p, "more than 16 named arguments") != NULL;
            names[n_names++] = p->t->text;
            p->t += 2;
            jinja_parts_push(p, &named, jinja_parse_expression(p));
        } else {
            if (n_names > 0)
                return jinja_parse_fail(p, "a positional argument after a named one") != NULL;
            jinja_parts_push(p, &parts, jinja_parse_expression(p));
        }
    }
    if (!jinja_expect_op(p, ')', "arguments want ')'")) return false;
    call->named = arena_zalloc_array(p->arena, n_names, sizeof *call->named);
    if (call->named == NULL) return jinja_parse_nomem(p) != NULL;
    for (size_t i = 0; i < n_names; i++) {
        call->named[i].name = names[i];
        call->named[i].value = named.items[i];
    }
    call->n_named = n_names;
    return jinja_parts_take(p, &parts, &call->items, &call->n);
}

static struct jinja_expr *parse_subscript(struct jinja_parser *p, struct jinja_expr *of)
{
    struct jinja_expr *e = pair(p, JE_ITEM, 0, of, NULL);
    struct jinja_expr **part = arena_zalloc_array(p->arena, 3, sizeof(struct jinja_expr *));
    if (e == NULL || part == NULL) return jinja_parse_nomem(p);
    p->t++; /* '[' */
    size_t colons = 0;
    while (p->rc == ERR_OK && !jinja_at_op(p, ']')) {
        if (jinja_skip_op(p, ':')) {
            if (++colons > 2) return jinja_parse_fail(p, "a slice has three parts at most");
        } else if (part[colons] != NULL) {
            return jinja_parse_fail(p, "']' is missing");
        } else {
            part[colons] = jinja_parse_expression(p);
        }
    }
    if (!jinja_expect_op(p, ']', "']' is missing")) return NULL;
    if (colons > 0) {
        e->kind = JE_SLICE;
        e->items = part;
        e->n = 3;
        return e;
    }
    if (part[0] == NULL) return jinja_parse_fail(p, "a subscript is missing");
    e->b = part[0];
    return e;
}

static struct jinja_expr *parse_call(struct jinja_parser *p, struct jinja_expr *of)
{
    struct jinja_expr *e = pair(p, JE_CALL, 0, of, NULL);
    return e != NULL && parse_call_args(p, e) ? e : NULL;
}

static struct jinja_expr *parse_postfix(struct jinja_parser *p, struct jinja_expr *e)
{
    while (e != NULL && p->t->kind == JT_OP) {
        if (p->t->op == '.') {
            p->t++;
            struct jinja_expr *of = e;
            if (p->t->kind == JT_NAME) {
                e = pair(p, JE_ATTR, 0, of, NULL);
                if (e != NULL) e->text = p->t->text;
            } else if (p->t->kind == JT_INT) {
                e = pair(p, JE_ITEM, 0, of, constant(p, jinja_int(p->t->integer)));
            } else {
                return jinja_parse_fail(p, "a name is missing after '.'");
            }
            p->t++;
        } else if (p->t->op == '[') {
            e = parse_subscript(p, e);
        } else if (p->t->op == '(') {
            e = parse_call(p, e);
        } else {
            break;
        }
    }
    return e;
}

struct jinja_expr *jinja_parse_filters(struct jinja_parser *p, struct jinja_expr *in,
                                       bool first_without_pipe)
{
    struct jinja_expr *e = in;
    while (p->rc == ERR_OK && (first_without_pipe || jinja_skip_op(p, '|'))) {
        first_without_pipe = false;
        if (p->t->kind != JT_NAME) return jinja_parse_fail(p, "a filter's name is missing");
        e = pair(p, JE_FILTER, 0, e, NULL);
        if (e == NULL) return NULL;
        e->filter = jinja_filter_find(p->t->text);
        if (e->filter == NULL) return jinja_parse_fail(p, "there is no such filter");
        p->t++;
        if (jinja_at_op(p, '(') && !parse_call_args(p, e)) return NULL;
    }
    return p->rc == ERR_OK ? e : NULL;
}

static struct jinja_expr *parse_test(struct jinja_parser *p, struct jinja_expr *in)
{
    bool negated = jinja_skip_name(p, "not");
    if (p->t->kind != JT_NAME) return jinja_parse_fail(p, "a test's name is missing after 'is'");
    struct jinja_expr *e = pair(p, JE_TEST, 0, in, NULL);
    if (e == NULL) return NULL;
    e->test = jinja_test_find(p->t->text);
    if (e->test == NULL) return jinja_parse_fail(p, "there is no such test");
    p->t++;
    bool opens = jinja_at_op(p, '[') || jinja_at_op(p, '{');
    bool word = p->t->kind == JT_NAME && !jinja_at_name(p, "else") && !jinja_at_name(p, "or") &&
                !jinja_at_name(p, "and");
    if (jinja_at_op(p, '(')) {
        if (!parse_call_args(p, e)) return NULL;
    } else if ((word || opens || p->t->kind == JT_STRING || p->t->kind == JT_INT ||
                p->t->kind == JT_FLOAT) &&
               !(jinja_at_name(p, "if") && e->test->n_args == 0)) {
        if (jinja_at_name(p, "is")) return jinja_parse_fail(p, "tests cannot be chained with 'is'");
        if (!jinja_parse_enter(p)) return NULL;
        struct jinja_parts parts = {0};
        jinja_parts_push(p, &parts, parse_postfix(p, parse_primary(p)));
        p->depth--;
        if (!jinja_parts_take(p, &parts, &e->items, &e->n)) return NULL;
    }
    return negated ? pair(p, JE_NOT, 0, e, NULL) : e;
}

static struct jinja_expr *parse_unary(struct jinja_parser *p, bool with_filter)
{
    if (!jinja_parse_enter(p)) return NULL;
    struct jinja_expr *e;
    if (jinja_skip_op(p, '-'))
        e = pair(p, JE_NEGATE, 0, parse_unary(p, false), NULL);
    else if (jinja_skip_op(p, '+'))
        e = pair(p, JE_PLUS, 0, parse_unary(p, false), NULL);
    else
        e = parse_primary(p);
    p->depth--;
    e = parse_postfix(p, e);
    while (with_filter && p->rc == ERR_OK) {
        if (jinja_at_op(p, '|'))
            e = jinja_parse_filters(p, e, false);
        else if (jinja_skip_name(p, "is"))
            e = parse_test(p, e);
        else if (jinja_at_op(p, '('))
            e = parse_call(p, e);
        else
            break;
    }
    return p->rc == ERR_OK ? e : NULL;
}

static struct jinja_expr *parse_power(struct jinja_parser *p)
{
    struct jinja_expr *e = parse_unary(p, true);
    while (e != NULL && jinja_skip_op(p, JINJA_OP2('*', '*')))
        e = pair(p, JE_BINARY, JINJA_OP2('*', '*'), e, parse_unary(p, true));
    return e;
}

static struct jinja_expr *parse_product(struct jinja_parser *p)
{
    struct jinja_expr *e = parse_power(p);
    while (e != NULL && p->t->kind == JT_OP &&
           (p->t->op == '*' || p->t->op == '/' || p->t->op == '%' ||
            p->t->op == JINJA_OP2('/', '/'))) {
        uint16_t op = p->t->op;
        p->t++;
        e = pair(p, JE_BINARY, op, e, parse_power(p));
    }
    return e;
}

static struct jinja_expr *parse_concat(struct jinja_parser *p)
{
    struct jinja_expr *first = parse_product(p);
    if (first == NULL || !jinja_at_op(p, '~')) return first;
    struct jinja_expr *e = jinja_new_expr(p, JE_CONCAT);
    struct jinja_parts parts = {0};
    jinja_parts_push(p, &parts, first);
    while (p->rc == ERR_OK && jinja_skip_op(p, '~'))
        jinja_parts_push(p, &parts, parse_product(p));
    return e != NULL && jinja_parts_take(p, &parts, &e->items, &e->n) ? e : NULL;
}

static struct jinja_expr *parse_sum(struct jinja_parser *p)
{
    struct jinja_expr *e = parse_concat(p);
    while (e != NULL && (jinja_at_op(p, '+') || jinja_at_op(p, '-'))) {
        uint16_t op = p->t->op;
        p->t++;
        e = pair(p, JE_BINARY, op, e, parse_concat(p));
    }
    return e;
}

static bool skip_comparison(struct jinja_parser *p, uint16_t *op)
{
    if (p->t->kind == JT_OP) {
        uint16_t o = p->t->op;
        if (o != '<' && o != '>' && o != JINJA_OP2('=', '=') && o != JINJA_OP2('!', '=') &&
            o != JINJA_OP2('<', '=') && o != JINJA_OP2('>', '='))
            return false;
        *op = o;
        p->t++;
        return true;
    }
    if (jinja_skip_name(p, "in")) {
        *op = JINJA_OP_IN;
        return true;
    }
    if (jinja_at_name(p, "not") && p->t[1].kind == JT_NAME && strcmp(p->t[1].text, "in") == 0) {
        *op = JINJA_OP_NOT_IN;
        p->t += 2;
        return true;
    }
    return false;
}

static struct jinja_expr *parse_comparison(struct jinja_parser *p)
{
    struct jinja_expr *first = parse_sum(p);
    uint16_t ops[16];
    if (first == NULL || !skip_comparison(p, &ops[0])) return first;
    struct jinja_expr *e = pair(p, JE_COMPARE, 0, first, NULL);
    struct jinja_parts parts = {0};
    size_t n = 1;
    for (;;) {
        jinja_parts_push(p, &parts, parse_sum(p));
        uint16_t op;
        if (p->rc != ERR_OK || !skip_comparison(p, &op)) break;
        if (n == sizeof ops / sizeof ops[0])
            return jinja_parse_fail(p, "more than 16 comparisons in a chain");
        ops[n++] = op;
    }
    if (e == NULL || !jinja_parts_take(p, &parts, &e->items, &e->n)) return NULL;
    e->ops = arena_zalloc_array(p->arena, n, sizeof *e->ops);
    if (e->ops == NULL) return jinja_parse_nomem(p);
    memcpy(e->ops, ops, n * sizeof *ops);
    return e;
}

static struct jinja_expr *parse_not(struct jinja_parser *p)
{
    if (!jinja_skip_name(p, "not")) return parse_comparison(p);
    if (!jinja_parse_enter(p)) return NULL;
    struct jinja_expr *e = pair(p, JE_NOT, 0, parse_not(p), NULL);
    p->depth--;
    return e;
}

static struct jinja_expr *parse_and(struct jinja_parser *p)
{
    struct jinja_expr *e = parse_not(p);
    while (e != NULL && jinja_skip_name(p, "and"))
        e = pair(p, JE_AND, 0, e, parse_not(p));
    return e;
}

static struct jinja_expr *parse_or(struct jinja_parser *p)
{
    struct jinja_expr *e = parse_and(p);
    while (e != NULL && jinja_skip_name(p, "or"))
        e = pair(p, JE_OR, 0, e, parse_and(p));
    return e;
}

struct jinja_expr *jinja_parse_expression(struct jinja_parser *p)
{
    if (!jinja_parse_enter(p)) return NULL;
    struct jinja_expr *e = parse_or(p);
    while (e != NULL && jinja_skip_name(p, "if")) {
        struct jinja_expr *condition = parse_or(p);
        struct jinja_expr *otherwise = NULL;
        if (p->rc == ERR_OK && jinja_skip_name(p, "else")) otherwise = jinja_parse_expression(p);
        e = pair(p, JE_IF, 0, e, condition);
        if (e != NULL) e->c = otherwise;
    }
    p->depth--;
    return e;
}

struct jinja_expr *jinja_parse_tuple(struct jinja_parser *p, bool without_if)
{
    struct jinja_parts parts = {0};
    struct jinja_expr *e = NULL;
    bool tuple = false;
    while (p->rc == ERR_OK) {
        if (p->t->kind == JT_VARIABLE_END || p->t->kind == JT_BLOCK_END || jinja_at_op(p, ')'))
            break;
        e = without_if ? parse_or(p) : jinja_parse_expression(p);
        jinja_parts_push(p, &parts, e);
        if (!jinja_skip_op(p, ',')) break;
        tuple = true;
    }
    if (p->rc != ERR_OK) return NULL;
    if (parts.n == 0) return jinja_parse_fail(p, "an expression is missing");
    if (!tuple) return e;
    e = jinja_new_expr(p, JE_TUPLE);
    return e != NULL && jinja_parts_take(p, &parts, &e->items, &e->n) ? e : NULL;
}

static struct jinja_expr *parse_target_part(struct jinja_parser *p, bool with_namespace)
{
    if (jinja_skip_op(p, '(')) {
        if (!jinja_parse_enter(p)) return NULL;
        struct jinja_expr *e = jinja_parse_target(p, false);
        p->depth--;
        return jinja_expect_op(p, ')', "')' is missing") ? e : NULL;
    }
    if (p->t->kind != JT_NAME) return jinja_parse_fail(p, "a name to assign to is missing");
    struct jinja_expr *e = parse_name(p);
    if (e != NULL && e->kind != JE_NAME)
        return jinja_parse_fail(p, "a constant cannot be assigned to");
    if (e == NULL || !with_namespace || !jinja_skip_op(p, '.')) return e;
    if (p->t->kind != JT_NAME) return jinja_parse_fail(p, "a name is missing after '.'");
    e->kind = JE_NS_TARGET;
    e->text = p->t->text;
    p->t++;
    return e;
}

struct jinja_expr *jinja_parse_target(struct jinja_parser *p, bool with_namespace)
{
    struct jinja_expr *e = parse_target_part(p, with_namespace);
    if (e == NULL || !jinja_at_op(p, ',')) return e;
    struct jinja_parts parts = {0};
    jinja_parts_push(p, &parts, e);
    while (p->rc == ERR_OK && jinja_skip_op(p, ','))
        if (p->t->kind == JT_NAME || jinja_at_op(p, '('))
            jinja_parts_push(p, &parts, parse_target_part(p, with_namespace));
    e = jinja_new_expr(p, JE_TUPLE);
    return e != NULL && jinja_parts_take(p, &parts, &e->items, &e->n) ? e : NULL;
}

struct jinja_expr *jinja_parse_expression_name(struct jinja_parser *p)
{
    return parse_target_part(p, false);
}
