/* jinja_parser.h - tokens to a tree. The tree lives in the caller's arena and never changes after, so
 * any number of renders may share it. */
#ifndef MOESAIC_TEXT_JINJA_PARSER_H
#define MOESAIC_TEXT_JINJA_PARSER_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "coordinator/text/jinja_value.h"

struct jinja_filter;
struct jinja_test;

enum jinja_expr_kind {
    JE_CONST,
    JE_NAME,
    JE_LIST,
    JE_TUPLE,
    JE_DICT,    /* items: key, value, key, value.. */
    JE_CONCAT,  /* items */
    JE_BINARY,  /* a op b */
    JE_COMPARE, /* a, then items with ops: all must hold */
    JE_AND,
    JE_OR,
    JE_NOT,
    JE_NEGATE,
    JE_PLUS,
    JE_IF,    /* a if b else c; c may be NULL */
    JE_ATTR,  /* a.text */
    JE_ITEM,  /* a[b] */
    JE_SLICE, /* a[items[0]:items[1]:items[2]], each may be NULL */
    JE_CALL,  /* a(items, named) */
    JE_FILTER,
    JE_TEST,
    JE_NS_TARGET,   /* name.text, only to assign to */
    JE_BLOCK_VALUE, /* the text of the block the filters stand on */
};

/* Comparison operators that are words; the others are the lexer's. */
#define JINJA_OP_IN     1u
#define JINJA_OP_NOT_IN 2u

struct jinja_named {
    const char *name;
    struct jinja_expr *value;
};

struct jinja_expr {
    enum jinja_expr_kind kind;
    uint16_t op;
    uint32_t line, name;
    struct jinja_expr *a, *b, *c;
    struct jinja_expr **items;
    size_t n;
    uint16_t *ops; /* COMPARE */
    struct jinja_named *named;
    size_t n_named;
    const char *text;
    const struct jinja_filter *filter;
    const struct jinja_test *test;
    struct jinja_value value; /* CONST */
};

enum jinja_stmt_kind {
    JS_DATA,
    JS_PRINT,
    JS_IF, /* expr and body; each elif is another IF in branches; orelse belongs to the first */
    JS_FOR,
    JS_SET,
    JS_SET_BLOCK,
    JS_FILTER_BLOCK,
    JS_MACRO,
    JS_SCOPE, /* generation, with */
    JS_BREAK,
    JS_CONTINUE,
};

struct jinja_stmt {
    enum jinja_stmt_kind kind;
    uint32_t line, name;
    struct jinja_stmt *next;
    struct jinja_str data;
    struct jinja_expr *target, *expr, *test; /* FOR: target, what to walk, the filter or NULL */
    struct jinja_stmt *body, *orelse;
    struct jinja_stmt *branches; /* IF: the next elif */
    struct jinja_expr **targets,
        **values; /* MACRO: parameters, defaults (NULL: none); SCOPE: with */
    size_t n;
};

#define JINJA_NAME_LOOP 0u /* the id of "loop" in every template */

struct jinja_tree {
    struct jinja_stmt *body;
    const char **names; /* id -> text, for globals */
    size_t n_names;
};

/* INVALID with line and what (an unknown statement, filter or test by its name); EXHAUSTED. */
enum err_code jinja_parse(const char *source, size_t n, struct arena *arena, struct jinja_tree *out,
                          struct err *why);

#endif
