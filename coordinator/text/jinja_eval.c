/* Runs the tree: expressions to values, statements to output. */
#include <string.h>

#include "coordinator/text/jinja_lexer.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/jinja_run.h"

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static bool eval(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                 struct jinja_value *out);
static bool exec(struct jinja_run *r, const struct jinja_stmt *body, struct jinja_scope *scope,
                 enum flow *flow);

static struct jinja_value look_up(const struct jinja_run *r, const struct jinja_scope *scope,
                                  uint32_t name)
{
    for (; scope != NULL; scope = scope->outer)
        for (const struct jinja_binding *b = scope->names; b != NULL; b = b->next)
            if (b->name == name) return b->value;
    return r->globals[name];
}

static bool bind(struct jinja_run *r, struct jinja_scope *scope, uint32_t name,
                 struct jinja_value value)
{
    for (struct jinja_binding *b = scope->names; b != NULL; b = b->next)
        if (b->name == name) {
            b->value = value;
            return true;
        }
    struct jinja_binding *b = jinja_alloc(r, 1, sizeof *b);
    if (b == NULL) return false;
    *b = (struct jinja_binding){name, value, scope->names};
    scope->names = b;
    return true;
}

static struct jinja_scope *inner_scope(struct jinja_run *r, struct jinja_scope *outer)
{
    struct jinja_scope *s = jinja_alloc(r, 1, sizeof *s);
    if (s != NULL) s->outer = outer;
    return s;
}

static bool assign(struct jinja_run *r, const struct jinja_expr *target, struct jinja_scope *scope,
                   struct jinja_value value)
{
    if (target->kind == JE_NAME) return bind(r, scope, target->name, value);
    if (target->kind == JE_NS_TARGET) {
        struct jinja_value ns = look_up(r, scope, target->name), key;
        if (ns.kind != JV_NAMESPACE)
            return jinja_fail(r, "cannot assign attribute on non-namespace object");
        return jinja_new_str(r, target->text, strlen(target->text), false, &key) &&
               jinja_dict_put(r, ns.dict, key, value);
    }
    struct jinja_iter it; /* a tuple; the parser bounds how deep */
    struct jinja_value item;
    bool more;
    if (!jinja_iter_open(r, &value, &it)) return false;
    if (it.n != target->n)
        return jinja_fail(r, "%zu values to unpack into %zu names", it.n, target->n);
    for (size_t i = 0; i < target->n; i++)
        if (!jinja_iter_next(r, &it, &item, &more) || !assign(r, target->items[i], scope, item))
            return false;
    return true;
}

static bool eval_args(struct jinja_run *r, const struct jinja_expr *call, struct jinja_scope *scope,
                      struct jinja_args *args)
{
    *args = (struct jinja_args){.n = call->n, .n_named = call->n_named};
    if (call->n > 0 && (args->items = jinja_alloc(r, call->n, sizeof *args->items)) == NULL)
        return false;
    if (call->n_named > 0 &&
        (args->named = jinja_alloc(r, call->n_named, sizeof *args->named)) == NULL)
        return false;
    for (size_t i = 0; i < call->n; i++)
        if (!eval(r, call->items[i], scope, &args->items[i])) return false;
    for (size_t i = 0; i < call->n_named; i++) {
        args->named[i].name = call->named[i].name;
        if (!eval(r, call->named[i].value, scope, &args->named[i].value)) return false;
    }
    return true;
}

/* Run a body and take its output as a string. */
static bool capture(struct jinja_run *r, const struct jinja_stmt *body, struct jinja_scope *scope,
                    struct jinja_value *out, enum flow *flow)
{
    size_t mark = jinja_mark(r);
    return exec(r, body, scope, flow) && jinja_take(r, mark, out);
}

static bool bind_parameters(struct jinja_run *r, const struct jinja_stmt *def,
                            const struct jinja_args *args, struct jinja_scope *scope)
{
    if (args->n > def->n)
        return jinja_fail(r, "macro '%s' takes not more than %zu argument(s)", r->names[def->name],
                          def->n);
    size_t used = args->n;
    for (size_t i = 0; i < def->n; i++) {
        const char *name = def->targets[i]->text;
        const struct jinja_value *given = jinja_arg(args, (int)i, name);
        struct jinja_value v = jinja_undefined(name);
        if (given != NULL) {
            v = *given;
            if (i >= args->n) used++;
        } else if (def->values[i] != NULL && !eval(r, def->values[i], scope, &v)) {
            return false;
        }
        if (!bind(r, scope, def->targets[i]->name, v)) return false;
    }
    if (used == args->n + args->n_named) return true;
    return jinja_fail(r, "macro '%s' got a named argument it does not take", r->names[def->name]);
}

static bool call_macro(struct jinja_run *r, const struct jinja_macro *m,
                       const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_scope *scope = inner_scope(r, m->scope);
    enum flow flow = FLOW_ON;
    if (scope == NULL) return false;
    if (++r->macro_depth > LIMIT_TEMPLATE_DEPTH)
        return jinja_fail(r, "macro calls are nested deeper than %u levels", LIMIT_TEMPLATE_DEPTH);
    bool ok =
        bind_parameters(r, m->def, args, scope) && capture(r, m->def->body, scope, out, &flow);
    r->macro_depth--;
    return ok;
}

static bool eval_call(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                      struct jinja_value *out)
{
    struct jinja_value callee;
    struct jinja_args args;
    if (!eval(r, e->a, scope, &callee) || !eval_args(r, e, scope, &args)) return false;
    r->line = e->line;
    switch (callee.kind) {
    case JV_MACRO:
        return call_macro(r, callee.macro, &args, out);
    case JV_METHOD:
        return jinja_method_call(r, callee.method, &args, out);
    case JV_FUNCTION:
        return jinja_function_call(r, callee.function, &args, out);
    case JV_UNDEFINED:
        return jinja_fail(r, "'%s' is not there to be called",
                          callee.missing ? callee.missing : "it");
    default:
        return jinja_fail(r, "'%s' object is not callable", jinja_kind_name(&callee));
    }
}

static bool eval_items(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                       enum jinja_kind kind, struct jinja_value *out)
{
    struct jinja_value list, item;
    if (!jinja_new_list(r, kind, e->n, &list)) return false;
    for (size_t i = 0; i < e->n; i++)
        if (!eval(r, e->items[i], scope, &item) || !jinja_list_push(r, list.list, item))
            return false;
    *out = list;
    return true;
}

static bool eval_dict(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                      struct jinja_value *out)
{
    struct jinja_value dict, key, value;
    if (!jinja_new_dict(r, JV_DICT, e->n / 2, &dict)) return false;
    for (size_t i = 0; i + 1 < e->n; i += 2)
        if (!eval(r, e->items[i], scope, &key) || !eval(r, e->items[i + 1], scope, &value) ||
            !jinja_dict_put(r, dict.dict, key, value))
            return false;
    *out = dict;
    return true;
}

static bool compare_one(struct jinja_run *r, uint16_t op, const struct jinja_value *a,
                        const struct jinja_value *b, bool *out)
{
    int c;
    switch (op) {
    case JINJA_OP_IN:
    case JINJA_OP_NOT_IN:
        if (!jinja_contains(r, b, a, out)) return false;
        *out ^= op == JINJA_OP_NOT_IN;
        return true;
    case JINJA_OP2('=', '='):
        return jinja_equal(r, a, b, out);
    case JINJA_OP2('!', '='):
        if (!jinja_equal(r, a, b, out)) return false;
        *out = !*out;
        return true;
    default:
        break;
    }
    if (!jinja_compare(r, a, b, &c)) return false;
    *out = op == '<'                   ? c == -1
           : op == '>'                 ? c == 1
           : op == JINJA_OP2('<', '=') ? c == -1 || c == 0
                                       : c == 0 || c == 1;
    return true;
}

static bool eval_compare(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                         struct jinja_value *out)
{
    struct jinja_value left, right;
    if (!eval(r, e->a, scope, &left)) return false;
    bool holds = true;
    for (size_t i = 0; holds && i < e->n; i++) {
        if (!eval(r, e->items[i], scope, &right) ||
            !compare_one(r, e->ops[i], &left, &right, &holds))
            return false;
        left = right;
    }
    *out = jinja_bool(holds);
    return true;
}

static bool eval_slice(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                       struct jinja_value *out)
{
    struct jinja_value of, part[3];
    if (!eval(r, e->a, scope, &of)) return false;
    for (int i = 0; i < 3; i++) {
        part[i] = jinja_none();
        if (e->items[i] != NULL && !eval(r, e->items[i], scope, &part[i])) return false;
    }
    return jinja_slice(r, &of, &part[0], &part[1], &part[2], out);
}

static bool eval_concat(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                        struct jinja_value *out)
{
    struct jinja_value part;
    size_t mark = jinja_mark(r);
    for (size_t i = 0; i < e->n; i++)
        if (!eval(r, e->items[i], scope, &part) || !jinja_emit_value(r, &part)) return false;
    return jinja_take(r, mark, out);
}

static bool eval_kind(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                      struct jinja_value *out)
{
    struct jinja_value a, b;
    struct jinja_args args;
    bool yes;
    switch (e->kind) {
    case JE_CONST:
        *out = e->value;
        return true;
    case JE_BLOCK_VALUE:
        *out = r->block_value;
        return true;
    case JE_NS_TARGET:
    case JE_NAME:
        *out = look_up(r, scope, e->name);
        if (out->kind == JV_UNDEFINED && out->missing == NULL) out->missing = e->text;
        return true;
    case JE_LIST:
        return eval_items(r, e, scope, JV_LIST, out);
    case JE_TUPLE:
        return eval_items(r, e, scope, JV_TUPLE, out);
    case JE_DICT:
        return eval_dict(r, e, scope, out);
    case JE_CONCAT:
        return eval_concat(r, e, scope, out);
    case JE_COMPARE:
        return eval_compare(r, e, scope, out);
    case JE_SLICE:
        return eval_slice(r, e, scope, out);
    case JE_CALL:
        return eval_call(r, e, scope, out);
    case JE_BINARY:
        if (!eval(r, e->a, scope, &a) || !eval(r, e->b, scope, &b)) return false;
        r->line = e->line;
        return jinja_binary(r, e->op, &a, &b, out);
    case JE_AND:
    case JE_OR:
        if (!eval(r, e->a, scope, out)) return false;
        return jinja_truth(out) == (e->kind == JE_OR) || eval(r, e->b, scope, out);
    case JE_NOT:
        if (!eval(r, e->a, scope, &a)) return false;
        *out = jinja_bool(!jinja_truth(&a));
        return true;
    case JE_NEGATE:
        return eval(r, e->a, scope, &a) && jinja_negate(r, &a, out);
    case JE_PLUS:
        return eval(r, e->a, scope, &a) && jinja_negate(r, &a, &b) && jinja_negate(r, &b, out);
    case JE_IF:
        if (!eval(r, e->b, scope, &a)) return false;
        if (jinja_truth(&a)) return eval(r, e->a, scope, out);
        *out = jinja_undefined("an inline if without else");
        return e->c == NULL || eval(r, e->c, scope, out);
    case JE_ATTR:
        return eval(r, e->a, scope, &a) && jinja_getattr(r, &a, e->text, out);
    case JE_ITEM:
        return eval(r, e->a, scope, &a) && eval(r, e->b, scope, &b) &&
               jinja_getitem(r, &a, &b, out);
    case JE_FILTER:
        if (!eval(r, e->a, scope, &a) || !eval_args(r, e, scope, &args)) return false;
        r->line = e->line;
        return jinja_filter_call(r, e->filter, &a, &args, out);
    case JE_TEST:
        if (!eval(r, e->a, scope, &a) || !eval_args(r, e, scope, &args)) return false;
        r->line = e->line;
        if (!jinja_test_call(r, e->test, &a, &args, &yes)) return false;
        *out = jinja_bool(yes);
        return true;
    }
    return jinja_fail(r, "an expression of unknown kind %d", (int)e->kind);
}

static bool eval(struct jinja_run *r, const struct jinja_expr *e, struct jinja_scope *scope,
                 struct jinja_value *out)
{
    r->line = e->line;
    bool ok = jinja_enter(r) && eval_kind(r, e, scope, out);
    jinja_leave(r);
    return ok;
}

/* The items of a loop that pass its filter. */
static bool passing(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                    const struct jinja_value *over, struct jinja_value *out)
{
    struct jinja_iter it;
    struct jinja_value item, yes;
    if (!jinja_iter_open(r, over, &it) || !jinja_new_list(r, JV_LIST, 0, out)) return false;
    for (bool more = true; more;) {
        if (!jinja_iter_next(r, &it, &item, &more)) return false;
        if (!more) break;
        struct jinja_scope *inside = inner_scope(r, scope);
        if (inside == NULL || !assign(r, s->target, inside, item) ||
            !eval(r, s->test, inside, &yes))
            return false;
        if (jinja_truth(&yes) && !jinja_list_push(r, out->list, item)) return false;
    }
    return true;
}

static bool exec_for(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                     enum flow *flow)
{
    struct jinja_value over, all, item, following = jinja_undefined("the next item");
    struct jinja_iter it;
    bool more;
    if (!eval(r, s->expr, scope, &all)) return false;
    if (s->test == NULL)
        over = all;
    else if (!passing(r, s, scope, &all, &over))
        return false;
    struct jinja_loop *loop = jinja_alloc(r, 1, sizeof *loop);
    if (loop == NULL || !jinja_iter_open(r, &over, &it) ||
        !jinja_iter_next(r, &it, &following, &more))
        return false;
    if (!more) {
        struct jinja_scope *inside = inner_scope(r, scope);
        return inside != NULL && exec(r, s->orelse, inside, flow);
    }
    loop->length = it.n;
    loop->depth0 = r->loop_depth++;
    loop->previous = jinja_undefined("there is no previous item");
    bool ok = true;
    for (size_t i = 0; ok && i < loop->length; i++) {
        item = following;
        following = jinja_undefined("there is no next item");
        struct jinja_scope *inside = inner_scope(r, scope);
        enum flow way = FLOW_ON;
        loop->index0 = i;
        ok = inside != NULL && jinja_iter_next(r, &it, &following, &more);
        loop->next = following;
        ok =
            ok &&
            bind(r, inside, JINJA_NAME_LOOP, (struct jinja_value){.kind = JV_LOOP, .loop = loop}) &&
            assign(r, s->target, inside, item) && exec(r, s->body, inside, &way);
        loop->previous = item;
        if (way == FLOW_BREAK) break;
    }
    r->loop_depth--;
    return ok;
}

static bool exec_if(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                    enum flow *flow)
{
    for (const struct jinja_stmt *branch = s; branch != NULL; branch = branch->branches) {
        struct jinja_value yes;
        if (!eval(r, branch->expr, scope, &yes)) return false;
        if (jinja_truth(&yes)) return exec(r, branch->body, scope, flow);
    }
    return exec(r, s->orelse, scope, flow);
}

/* Set and filter blocks: the body's text through the filters. */
static bool exec_block(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                       enum flow *flow)
{
    struct jinja_scope *inside = inner_scope(r, scope);
    struct jinja_value text, outer = r->block_value;
    if (inside == NULL || !capture(r, s->body, inside, &text, flow)) return false;
    r->block_value = text;
    bool ok = eval(r, s->expr, scope, &text);
    r->block_value = outer;
    if (!ok) return false;
    return s->kind == JS_SET_BLOCK ? assign(r, s->target, scope, text) : jinja_emit_value(r, &text);
}

static bool exec_scope(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                       enum flow *flow)
{
    struct jinja_scope *inside = inner_scope(r, scope);
    if (inside == NULL) return false;
    for (size_t i = 0; i < s->n; i++) {
        struct jinja_value v;
        if (!eval(r, s->values[i], scope, &v) || !assign(r, s->targets[i], inside, v)) return false;
    }
    return exec(r, s->body, inside, flow);
}

static bool exec_one(struct jinja_run *r, const struct jinja_stmt *s, struct jinja_scope *scope,
                     enum flow *flow)
{
    struct jinja_value v;
    switch (s->kind) {
    case JS_DATA:
        return jinja_emit_str(r, &s->data);
    case JS_PRINT:
        return eval(r, s->expr, scope, &v) && jinja_emit_value(r, &v);
    case JS_IF:
        return exec_if(r, s, scope, flow);
    case JS_FOR:
        return exec_for(r, s, scope, flow);
    case JS_SET:
        return eval(r, s->expr, scope, &v) && assign(r, s->target, scope, v);
    case JS_SET_BLOCK:
    case JS_FILTER_BLOCK:
        return exec_block(r, s, scope, flow);
    case JS_SCOPE:
        return exec_scope(r, s, scope, flow);
    case JS_BREAK:
        *flow = FLOW_BREAK;
        return true;
    case JS_CONTINUE:
        *flow = FLOW_CONTINUE;
        return true;
    case JS_MACRO: {
        struct jinja_macro *m = jinja_alloc(r, 1, sizeof *m);
        if (m == NULL) return false;
        *m = (struct jinja_macro){s, scope};
        return bind(r, scope, s->name, (struct jinja_value){.kind = JV_MACRO, .macro = m});
    }
    }
    return jinja_fail(r, "a statement of unknown kind %d", (int)s->kind);
}

static bool exec(struct jinja_run *r, const struct jinja_stmt *body, struct jinja_scope *scope,
                 enum flow *flow)
{
    bool ok = jinja_enter(r);
    for (const struct jinja_stmt *s = body; ok && s != NULL && *flow == FLOW_ON; s = s->next) {
        r->line = s->line;
        ok = jinja_steps(r, 1) && exec_one(r, s, scope, flow);
        if (ok && r->out->len > LIMIT_TEMPLATE_OUTPUT_BYTES)
            ok = jinja_fail(r, "the output is longer than %u bytes", LIMIT_TEMPLATE_OUTPUT_BYTES);
    }
    jinja_leave(r);
    return ok;
}

bool jinja_exec(struct jinja_run *r, const struct jinja_stmt *body, struct jinja_scope *scope)
{
    enum flow flow = FLOW_ON;
    return exec(r, body, scope, &flow);
}
