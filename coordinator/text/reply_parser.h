/* reply_parser.h - a model's reply, as it comes, to content, reasoning and tool calls. A pure state machine over bytes:
 * however the reply is cut into pieces, what the events say together is the same. One owner; no threads.
 *
 * What begins like a call and turns out to be none is given back as content, to the byte. Once a call's arguments have
 * begun to leave they cannot be taken back: REPLY_CALL_BROKEN says so, and all of its text is content. */
#ifndef MOESAIC_TEXT_REPLY_PARSER_H
#define MOESAIC_TEXT_REPLY_PARSER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "coordinator/text/json_scanner.h"
#include "coordinator/text/marker_scanner.h"
#include "coordinator/text/reply_format.h"

enum reply_event_kind {
    REPLY_CONTENT,        /* text: more of it */
    REPLY_REASONING,      /* text: more of it */
    REPLY_CALL_BEGIN,     /* call, text: its name, id (may be empty) */
    REPLY_CALL_ARGUMENTS, /* call, text: more of a JSON object */
    REPLY_CALL_END,       /* call: its arguments are a whole JSON object */
    REPLY_CALL_BROKEN     /* call: never was one; its text follows as content */
};

struct reply_event {
    enum reply_event_kind kind;
    uint32_t call;
    const char *text; /* not 0-terminated; valid during the call */
    size_t n;
    const char *id; /* that the model itself gave the call */
    size_t n_id;
};
typedef void (*reply_sink)(void *ctx, const struct reply_event *ev);

struct reply_parser {
    const struct reply_format *format;
    const struct reply_grammar *tools, *reasoning; /* those in use, or NULL */
    const struct reply_grammar *whole;             /* one that reads every byte itself, or NULL */
    const json_t *offered;                         /* the request's tools */
    reply_sink sink;
    void *ctx;
    struct marker_scanner scanner;
    uint32_t expected; /* the tools' markers that mean something here, as text or token */
    enum { REPLY_START, REPLY_THINKING, REPLY_TEXT, REPLY_IN_CALL } phase;
    bool drop_newlines; /* those that follow a tag are its own */
    bool thought;       /* its reasoning is over, or was not begun in time */
    bool fresh;         /* no content since the start, the reasoning or the last call */
    struct buf space;   /* white space that is dropped if a call or a tag follows */
    struct buf out;     /* of kind out_kind, until the end of a push */
    enum reply_event_kind out_kind;
    /* the call under way */
    struct buf raw; /* its text since the last complete one */
    struct buf name, id, pending;
    bool begun;
    uint32_t n_calls, n_ended;
    uint32_t max_calls;    /* after so many nothing more is read; 0: no bound of the caller's */
    uint8_t state, wanted; /* the grammar's */
    struct buf key, value;
    bool list, any_value;
    struct {
        uint8_t state;
        bool has_name, has_arguments;
        struct json_scanner scanner;
        struct json_text text;
    } object;
    struct {
        uint8_t state;
        struct json_scanner scanner;
        struct json_text text;
        struct buf decoded;
    } arguments;
    struct {
        bool text;    /* the value is a string: it leaves as it comes */
        bool begun;   /* it has a first byte */
        bool newline; /* one waits: the last belongs to the tag behind it */
    } tag;
    struct {
        uint8_t channel;                 /* where the message under way goes */
        bool in_channel;                 /* its head is behind <|channel|> */
        bool unsaid;                     /* nothing of it has left */
        bool any_content, any_reasoning; /* of the reply */
    } harmony;
    bool failed; /* memory ran out */
};

/* `offered`: the tools that may be called, as in the request; NULL: none, and calls are content. `thinking`: the prompt
 * left the model inside its reasoning. All borrowed. */
void reply_parser_init(struct reply_parser *p, const struct reply_format *format,
                       const json_t *offered, bool thinking, reply_sink sink, void *ctx);
void reply_parser_deinit(struct reply_parser *p);

void reply_parser_text(struct reply_parser *p, const char *bytes, size_t n);
/* Is this text of a special token a marker here? Others of them are no part of a reply. */
bool reply_parser_is_marker(const struct reply_parser *p, const char *text, size_t n);
void reply_parser_token(struct reply_parser *p, const char *text, size_t n); /* such a one */
/* The reply ended. Nothing is held back after it. */
void reply_parser_finish(struct reply_parser *p);

#endif
