/* reply_grammar.h - what the files of the reply parser share: a grammar's table row, the parser's state, and what
 * grammars may do. Not for others. */
#ifndef MOESAIC_TEXT_REPLY_GRAMMAR_H
#define MOESAIC_TEXT_REPLY_GRAMMAR_H

#include <jansson.h>

#include "common/base/buf.h"
#include "coordinator/text/json_scanner.h"
#include "coordinator/text/marker_scanner.h"
#include "coordinator/text/reply_parser.h"

#define GRAMMAR_MARKERS                                                                            \
    8u /* of the tools' grammar: markers 0..7 of the scanner; of the reasoning's: 8..15 */

struct reply_grammar {
    const char *name;
    const char *sign;                     /* a template that holds this text writes such replies */
    const char *markers[GRAMMAR_MARKERS]; /* NULL: no more */
    uint32_t begins;                      /* bits of the markers that begin a call within content */
    bool closed;                          /* marker 1 ends what marker 0 began */
    bool bare;                            /* a reply that begins with '{' may be a call */
    bool whole;                           /* every byte of the reply is the grammar's (harmony) */
    bool python;                          /* values in plain text are Python's: True, None */
    /* A marker that begins a call, or with `bare` the byte '{' as marker -1. */
    void (*begin)(struct reply_parser *p, int marker);
    void (*byte)(struct reply_parser *p, char c);
    void (*marker)(struct reply_parser *p, uint32_t marker);
    void (*end)(struct reply_parser *p); /* the reply ends within a call */
};

/* Of the reasoning's grammar. */
enum { THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE };

extern const struct reply_grammar reply_harmony;

/* grammar files */
void reply_json_begin(struct reply_parser *p, int marker);
void reply_json_byte(struct reply_parser *p, char c);
void reply_json_marker(struct reply_parser *p, uint32_t marker);
void reply_json_end(struct reply_parser *p);
void reply_section_begin(struct reply_parser *p, int marker);
void reply_section_byte(struct reply_parser *p, char c);
void reply_section_marker(struct reply_parser *p, uint32_t marker);
void reply_section_end(struct reply_parser *p);
void reply_mistral_begin(struct reply_parser *p, int marker);
void reply_mistral_byte(struct reply_parser *p, char c);
void reply_mistral_marker(struct reply_parser *p, uint32_t marker);
void reply_mistral_end(struct reply_parser *p);
void reply_tags_begin(struct reply_parser *p, int marker);
void reply_tags_byte(struct reply_parser *p, char c);
void reply_tags_marker(struct reply_parser *p, uint32_t marker);
void reply_tags_end(struct reply_parser *p);
void reply_harmony_byte(struct reply_parser *p, char c);
void reply_harmony_marker(struct reply_parser *p, uint32_t marker);
void reply_harmony_end(struct reply_parser *p);

/* ---- what a grammar may do ---- */

/* Which of the tools' markers count from here on. Content has its own, set by going back to it. */
void reply_enable(struct reply_parser *p, uint32_t markers);
void reply_put(struct reply_parser *p, enum reply_event_kind kind, const char *bytes, size_t n);
/* p->name is complete: the call begins to leave. False: it may not (no or too long a name, too many calls), and was
 * given back as content. */
bool reply_call_begin(struct reply_parser *p);
/* Bytes of its arguments; before reply_call_begin they wait for it. */
void reply_call_arguments(struct reply_parser *p, const char *bytes, size_t n);
void reply_call_end(struct reply_parser *p); /* it is complete; begins it if need be */
/* What is written is no call after all: the text of it so far is content, and content goes on. */
void reply_call_break(struct reply_parser *p);
void reply_back_to_content(struct reply_parser *p); /* after the last call */

/* The value of a call's arguments: an object, or an object in a JSON string. Bytes that belong to it go to
 * reply_call_arguments. {0} state: reply_arguments_reset. */
void reply_arguments_reset(struct reply_parser *p);
enum json_scan reply_arguments_byte(struct reply_parser *p, char c);
/* A call as an object {"name": .., "arguments": ..}; from its '{' on. */
void reply_object_reset(struct reply_parser *p);
enum json_scan reply_object_byte(struct reply_parser *p, char c);

bool reply_is_space(char c);
/* The tool of this name among those offered, or NULL. */
const json_t *reply_tool(const struct reply_parser *p, const char *name, size_t n);

#endif
