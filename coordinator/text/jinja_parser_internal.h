/* jinja_parser_internal.h - what the two halves of the parser (statements, expressions) share. */
#ifndef MOESAIC_TEXT_JINJA_PARSER_INTERNAL_H
#define MOESAIC_TEXT_JINJA_PARSER_INTERNAL_H

#include "coordinator/text/jinja_lexer.h"
#include "coordinator/text/jinja_parser.h"

#define JINJA_NAME_BUCKETS 256u

struct jinja_name {
    struct jinja_name *same_bucket;
    uint32_t id;
    const char *text;
};

struct jinja_parser {
    struct arena *arena;
    const struct jinja_token *t; /* the current token; never moves past JT_END */
    struct jinja_name *buckets[JINJA_NAME_BUCKETS];
    const char **names;
    size_t n_names;
    unsigned depth, loops;
    enum err_code rc; /* sticky */
    struct err *why;
};

/* All pointers answered: NULL = failed, p->rc and p->why say why. */
void *jinja_parse_fail(struct jinja_parser *p, const char *what); /* "line N: what, at 'token'" */
void *jinja_parse_nomem(struct jinja_parser *p);
bool jinja_parse_enter(struct jinja_parser *p); /* undone by p->depth-- */
bool jinja_name_id(struct jinja_parser *p, const char *text, uint32_t *id);
bool jinja_at_op(const struct jinja_parser *p, uint16_t op);
bool jinja_at_name(const struct jinja_parser *p, const char *name);
bool jinja_skip_op(struct jinja_parser *p, uint16_t op);
bool jinja_skip_name(struct jinja_parser *p, const char *name);
bool jinja_expect_op(struct jinja_parser *p, uint16_t op, const char *what);
struct jinja_expr *jinja_new_expr(struct jinja_parser *p, enum jinja_expr_kind kind);

struct jinja_expr *jinja_parse_expression(struct jinja_parser *p);
/* Also "a, b" without brackets; without_if leaves "if" to the caller (a for loop's). */
struct jinja_expr *jinja_parse_tuple(struct jinja_parser *p, bool without_if);
/* What `set` and `for` assign to: a name, names, or (with_namespace) name.attribute. */
struct jinja_expr *jinja_parse_target(struct jinja_parser *p, bool with_namespace);
struct jinja_expr *jinja_parse_expression_name(struct jinja_parser *p); /* one name */
/* `|f|g(..)` on `in`; first_without_pipe for {% filter f %}. */
struct jinja_expr *jinja_parse_filters(struct jinja_parser *p, struct jinja_expr *in,
                                       bool first_without_pipe);

/* A growing array of pointers, moved to the arena by jinja_parts_take (and freed either way). */
struct jinja_parts {
    struct jinja_expr **items;
    size_t n, cap;
};
bool jinja_parts_push(struct jinja_parser *p, struct jinja_parts *parts, struct jinja_expr *e);
bool jinja_parts_take(struct jinja_parser *p, struct jinja_parts *parts, struct jinja_expr ***items,
                      size_t *n);

#endif
