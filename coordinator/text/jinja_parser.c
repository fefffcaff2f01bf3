/* Statements, and the parser's small tools. */
#include "coordinator/text/jinja_parser.h"

#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/jinja_parser_internal.h"

static struct jinja_stmt *parse_body(struct jinja_parser *p, const char *const *ends);

void *jinja_parse_fail(struct jinja_parser *p, const char *what)
{
    if (p->rc != ERR_OK) return NULL;
    char at[64] = "the end of the template";
    const struct jinja_token *t = p->t;
    if (t->kind == JT_NAME || t->kind == JT_STRING || t->kind == JT_DATA) {
        size_t n = t->len < 40 ? t->len : 40;
        at[0] = '\'';
        memcpy(at + 1, t->text, n);
        memcpy(at + 1 + n, "'", 2);
    } else if (t->kind == JT_OP) {
        memcpy(at, (char[]){'\'', (char)(t->op & 0xff), '\'', '\0'}, 4);
        if (t->op > 0xff) memcpy(at + 2, (char[]){(char)(t->op >> 8), '\'', '\0'}, 3);
    } else if (t->kind != JT_END) {
        strcpy(at, t->kind == JT_INT || t->kind == JT_FLOAT ? "a number" : "a tag's edge");
    }
    p->rc = err_set(p->why, ERR_INVALID, "line %u: %s, at %s", t->line, what, at);
    return NULL;
}

void *jinja_parse_nomem(struct jinja_parser *p)
{
    if (p->rc == ERR_OK) p->rc = err_nomem(p->why, "template tree");
    return NULL;
}

bool jinja_parse_enter(struct jinja_parser *p)
{
    if (p->rc != ERR_OK) return false;
    if (p->depth >= LIMIT_TEMPLATE_DEPTH) {
        p->rc = err_set(p->why, ERR_INVALID, "line %u: nested deeper than %u levels", p->t->line,
                        LIMIT_TEMPLATE_DEPTH);
        return false;
    }
    p->depth++;
    return true;
}

bool jinja_name_id(struct jinja_parser *p, const char *text, uint32_t *id)
{
    uint32_t h = 2166136261u;
    for (const char *c = text; *c != '\0'; c++)
        h = (h ^ (unsigned char)*c) * 16777619u;
    struct jinja_name **bucket = &p->buckets[h % JINJA_NAME_BUCKETS];
    for (struct jinja_name *n = *bucket; n != NULL; n = n->same_bucket)
        if (strcmp(n->text, text) == 0) {
            *id = n->id;
            return true;
        }
    if (p->n_names == LIMIT_TEMPLATE_NAMES) {
        if (p->rc == ERR_OK)
            p->rc = err_set(p->why, ERR_INVALID, "line %u: more than %u different names",
                            p->t->line, LIMIT_TEMPLATE_NAMES);
        return false;
    }
    struct jinja_name *n = arena_zalloc_array(p->arena, 1, sizeof *n);
    if (n == NULL) return jinja_parse_nomem(p) != NULL;
    *n = (struct jinja_name){*bucket, (uint32_t)p->n_names, text};
    *bucket = n;
    p->names[p->n_names++] = text;
    *id = n->id;
    return true;
}

bool jinja_at_op(const struct jinja_parser *p, uint16_t op)
{
    return p->t->kind == JT_OP && p->t->op == op;
}

bool jinja_at_name(const struct jinja_parser *p, const char *name)
{
    return p->t->kind == JT_NAME && strcmp(p->t->text, name) == 0;
}

bool jinja_skip_op(struct jinja_parser *p, uint16_t op)
{
    if (p->rc != ERR_OK || !jinja_at_op(p, op)) return false;
    p->t++;
    return true;
}

bool jinja_skip_name(struct jinja_parser *p, const char *name)
{
    if (p->rc != ERR_OK || !jinja_at_name(p, name)) return false;
    p->t++;
    return true;
}

bool jinja_expect_op(struct jinja_parser *p, uint16_t op, const char *what)
{
    if (jinja_skip_op(p, op)) return true;
    jinja_parse_fail(p, what);
    return false;
}

static bool expect_block_end(struct jinja_parser *p)
{
    if (p->rc != ERR_OK) return false;
    if (p->t->kind != JT_BLOCK_END) return jinja_parse_fail(p, "'%}' is missing") != NULL;
    p->t++;
    return true;
}

static struct jinja_stmt *new_stmt(struct jinja_parser *p, enum jinja_stmt_kind kind)
{
    struct jinja_stmt *s = arena_zalloc_array(p->arena, 1, sizeof *s);
    if (s == NULL) return jinja_parse_nomem(p);
    s->kind = kind;
    s->line = p->t->line;
    return s;
}

/* A body and its closing tag, which is the only one that may end it. */
static struct jinja_stmt *parse_to(struct jinja_parser *p, const char *end)
{
    if (!expect_block_end(p)) return NULL;
    struct jinja_stmt *body = parse_body(p, (const char *const[]){end, NULL});
    if (p->rc == ERR_OK) p->t++;
    return body;
}

static void parse_if(struct jinja_parser *p, struct jinja_stmt *s)
{
    for (struct jinja_stmt *branch = s;;) {
        branch->expr = jinja_parse_tuple(p, false);
        if (!expect_block_end(p)) return;
        branch->body = parse_body(p, (const char *const[]){"elif", "else", "endif", NULL});
        if (p->rc != ERR_OK) return;
        if (jinja_skip_name(p, "elif")) {
            branch = branch->branches = new_stmt(p, JS_IF);
            if (branch == NULL) return;
            continue;
        }
        if (jinja_skip_name(p, "else"))
            s->orelse = parse_to(p, "endif");
        else
            p->t++;
        return;
    }
}

static void parse_for(struct jinja_parser *p, struct jinja_stmt *s)
{
    s->target = jinja_parse_target(p, false);
    if (p->rc == ERR_OK && !jinja_skip_name(p, "in")) jinja_parse_fail(p, "'for' wants 'in'");
    s->expr = jinja_parse_tuple(p, true);
    if (jinja_skip_name(p, "if")) s->test = jinja_parse_expression(p);
    if (jinja_at_name(p, "recursive")) jinja_parse_fail(p, "recursive loops are not supported");
    if (!expect_block_end(p)) return;
    p->loops++;
    s->body = parse_body(p, (const char *const[]){"else", "endfor", NULL});
    p->loops--;
    if (jinja_skip_name(p, "else"))
        s->orelse = parse_to(p, "endfor");
    else if (p->rc == ERR_OK)
        p->t++;
}

static struct jinja_expr *block_filters(struct jinja_parser *p, bool first_without_pipe)
{
    struct jinja_expr *in = jinja_new_expr(p, JE_BLOCK_VALUE);
    return in == NULL ? NULL : jinja_parse_filters(p, in, first_without_pipe);
}

static void parse_set(struct jinja_parser *p, struct jinja_stmt *s)
{
    s->target = jinja_parse_target(p, true);
    if (jinja_skip_op(p, '=')) {
        s->expr = jinja_parse_tuple(p, false);
        return;
    }
    s->kind = JS_SET_BLOCK;
    s->expr = block_filters(p, false);
    s->body = parse_to(p, "endset");
}

/* Names with optional values: a macro's parameters, `with`'s names. */
static void parse_assignments(struct jinja_parser *p, struct jinja_stmt *s, bool parameters)
{
    struct jinja_parts targets = {0}, values = {0};
    while (p->rc == ERR_OK && p->t->kind != JT_BLOCK_END && !jinja_at_op(p, ')')) {
        if (targets.n > 0 && !jinja_expect_op(p, ',', "',' is missing")) return;
        if (p->t->kind != JT_NAME) {
            jinja_parse_fail(p, "a name is missing");
            return;
        }
        struct jinja_expr *value = NULL;
        jinja_parts_push(p, &targets, jinja_parse_expression_name(p));
        if (jinja_skip_op(p, '='))
            value = jinja_parse_expression(p);
        else if (!parameters)
            jinja_parse_fail(p, "'=' is missing");
        else if (values.n > 0 && values.items[values.n - 1] != NULL)
            jinja_parse_fail(p, "a parameter without default after one with");
        jinja_parts_push(p, &values, value);
    }
    jinja_parts_take(p, &targets, &s->targets, &s->n);
    jinja_parts_take(p, &values, &s->values, &s->n);
}

static void parse_macro(struct jinja_parser *p, struct jinja_stmt *s)
{
    if (p->t->kind != JT_NAME) {
        jinja_parse_fail(p, "a macro wants a name");
        return;
    }
    if (!jinja_name_id(p, p->t->text, &s->name)) return;
    p->t++;
    if (!jinja_expect_op(p, '(', "a macro wants '('")) return;
    parse_assignments(p, s, true);
    if (!jinja_expect_op(p, ')', "a macro wants ')'")) return;
    unsigned loops = p->loops;
    p->loops = 0; /* break does not reach out of a macro */
    s->body = parse_to(p, "endmacro");
    p->loops = loops;
}

static struct jinja_stmt *parse_statement(struct jinja_parser *p)
{
    struct jinja_stmt *s = new_stmt(p, JS_IF);
    if (s == NULL) return NULL;
    if (jinja_skip_name(p, "if")) {
        parse_if(p, s);
    } else if (jinja_skip_name(p, "for")) {
        s->kind = JS_FOR;
        parse_for(p, s);
    } else if (jinja_skip_name(p, "set")) {
        s->kind = JS_SET;
        parse_set(p, s);
    } else if (jinja_skip_name(p, "macro")) {
        s->kind = JS_MACRO;
        parse_macro(p, s);
    } else if (jinja_skip_name(p, "generation")) {
        s->kind = JS_SCOPE;
        s->body = parse_to(p, "endgeneration");
    } else if (jinja_skip_name(p, "with")) {
        s->kind = JS_SCOPE;
        parse_assignments(p, s, false);
        s->body = parse_to(p, "endwith");
    } else if (jinja_skip_name(p, "filter")) {
        s->kind = JS_FILTER_BLOCK;
        s->expr = block_filters(p, true);
        s->body = parse_to(p, "endfilter");
    } else if (jinja_at_name(p, "break") || jinja_at_name(p, "continue")) {
        s->kind = jinja_at_name(p, "break") ? JS_BREAK : JS_CONTINUE;
        if (p->loops == 0) return jinja_parse_fail(p, "this stands in no loop");
        p->t++;
    } else {
        return jinja_parse_fail(p, "there is no such statement");
    }
    return expect_block_end(p) ? s : NULL;
}

/* Up to a block that begins with one of `ends` (NULL-terminated; that word is then the current token),
 * or to the end of the template if ends[0] is NULL. */
static struct jinja_stmt *parse_body(struct jinja_parser *p, const char *const *ends)
{
    struct jinja_stmt *first = NULL, **last = &first;
    if (!jinja_parse_enter(p)) return NULL;
    while (p->rc == ERR_OK) {
        struct jinja_stmt *s = NULL;
        if (p->t->kind == JT_END) {
            if (ends[0] != NULL) {
                jinja_parse_fail(p, "a block is not closed");
                if (p->rc != ERR_EXHAUSTED) err_wrap(p->why, p->rc, "looking for '%s'", ends[0]);
            }
            break;
        }
        if (p->t->kind == JT_DATA) {
            s = new_stmt(p, JS_DATA);
            if (s == NULL) break;
            s->data = (struct jinja_str){.bytes = p->t->text, .len = p->t->len};
            p->t++;
        } else if (p->t->kind == JT_VARIABLE_BEGIN) {
            p->t++;
            s = new_stmt(p, JS_PRINT);
            if (s == NULL) break;
            s->expr = jinja_parse_tuple(p, false);
            if (p->rc == ERR_OK && p->t->kind != JT_VARIABLE_END)
                jinja_parse_fail(p, "'}}' is missing");
            if (p->rc == ERR_OK) p->t++;
        } else { /* nothing else begins outside a tag */
            p->t++;
            bool end = false;
            for (size_t i = 0; ends[i] != NULL; i++)
                end |= jinja_at_name(p, ends[i]);
            if (end) break;
            s = parse_statement(p);
        }
        if (p->rc != ERR_OK) break;
        *last = s;
        last = &s->next;
    }
    p->depth--;
    return first;
}

enum err_code jinja_parse(const char *source, size_t n, struct arena *arena, struct jinja_tree *out,
                          struct err *why)
{
    struct jinja_token *tokens;
    size_t n_tokens;
    enum err_code rc = jinja_lex(source, n, arena, &tokens, &n_tokens, why);
    if (rc != ERR_OK) return rc;
    struct jinja_parser p = {.arena = arena, .t = tokens, .why = why};
    p.names = arena_zalloc_array(arena, LIMIT_TEMPLATE_NAMES, sizeof(char *));
    if (p.names == NULL) return err_nomem(why, "template names");
    uint32_t loop;
    if (!jinja_name_id(&p, "loop", &loop)) return p.rc; /* the first name: JINJA_NAME_LOOP */
    struct jinja_stmt *body = parse_body(&p, (const char *const[]){NULL});
    if (p.rc != ERR_OK) return p.rc;
    *out = (struct jinja_tree){body, p.names, p.n_names};
    return ERR_OK;
}
