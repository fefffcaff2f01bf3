/* message.h - what of a chat's reply has been understood and not yet been sent: parts of content, reasoning and tool
 * calls, in order. A stream sends and drops them as they come; a whole answer gathers them to its end. One owner. */
#ifndef MOESAIC_API_MESSAGE_H
#define MOESAIC_API_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "coordinator/text/reply_parser.h"

#define MESSAGE_ID_BYTES                                                                           \
    10u /* "a1B2c3D4e": nine letters and digits, which is all that Mistral's templates take */

struct message_part {
    enum reply_event_kind kind;
    uint32_t call;
    struct buf text; /* content, reasoning, arguments, or a call's name */
    struct buf id;   /* of a call */
};

struct message {
    struct message_part *parts;
    size_t n_parts, cap_parts;
    uint64_t id_seed; /* ids of calls come from it, so they differ between replies */
    uint32_t n_ended; /* calls that are complete */
    bool failed;      /* memory ran out */
};

void message_init(struct message *m, uint64_t id_seed);
void message_deinit(struct message *m);
void message_event(void *message, const struct reply_event *ev); /* a reply_sink */
void message_drop(struct message *m);                            /* all parts: they were sent */

/* Is there a part that a stream would send? */
bool message_has_delta(const struct message *m);
/* Each part as the "delta" of a chunk, from *at on; false when there are no more. */
bool message_put_delta(const struct message *m, size_t *at, struct buf *b);
/* The whole: {"role":"assistant","content":..,"reasoning_content":..,"tool_calls":[..],..}. */
void message_put(const struct message *m, struct buf *b);

#endif
