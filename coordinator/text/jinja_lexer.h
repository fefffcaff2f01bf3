/* jinja_lexer.h - template text to tokens, as Jinja2 with trim_blocks and lstrip_blocks on and
 * keep_trailing_newline off. Pure: works on the caller's arena, any thread. */
#ifndef MOESAIC_TEXT_JINJA_LEXER_H
#define MOESAIC_TEXT_JINJA_LEXER_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/arena.h"
#include "common/base/err.h"

enum jinja_token_kind {
    JT_END,
    JT_DATA,           /* text between tags, white space control applied */
    JT_BLOCK_BEGIN,    /* {% */
    JT_BLOCK_END,      /* %} */
    JT_VARIABLE_BEGIN, /* {{ */
    JT_VARIABLE_END,   /* }} */
    JT_NAME,
    JT_STRING, /* unescaped */
    JT_INT,
    JT_FLOAT,
    JT_OP, /* op holds its one or two characters, second << 8 */
};

#define JINJA_OP2(a, b) ((uint16_t)((unsigned char)(a) | ((unsigned)(unsigned char)(b) << 8)))

struct jinja_token {
    enum jinja_token_kind kind;
    uint16_t op;
    uint32_t line;    /* from 1 */
    const char *text; /* DATA, NAME, STRING: in the arena, 0-terminated */
    size_t len;
    int64_t integer;
    double real;
};

/* The whole template. The array (in the arena) ends with JT_END. INVALID with line and what;
 * EXHAUSTED. */
enum err_code jinja_lex(const char *source, size_t n, struct arena *arena, struct jinja_token **out,
                        size_t *n_out, struct err *why);

#endif
