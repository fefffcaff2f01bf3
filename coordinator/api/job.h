/* job.h - one request for generation, from its body to the end of its reply. Loop thread, except job_prepare. */
#ifndef MOESAIC_API_JOB_H
#define MOESAIC_API_JOB_H

#include "coordinator/api/api_internal.h"
#include "coordinator/api/choice.h"

struct job_prompt {
    struct ids ids;
    struct buf echo; /* its text, when echoed */
};

struct job_choice {
    struct choice choice;
    struct job *job;
    struct job_prompt *prompt;
    uint32_t sample; /* which of n */
    uint64_t handle; /* in the engine, while live */
    bool live, paused, echoed;
    uint64_t first_ms, last_ms; /* of its tokens */
    uint32_t n_cached;
};

struct job {
    struct api *api;
    struct http_exchange *ex; /* NULL once the client left or was answered */
    struct job *prev, *next;
    uv_work_t work;
    bool working; /* job_prepare is on libuv's pool */
    enum request_kind kind;
    char *body; /* owned copy, the exchange may end first */
    size_t n_body;
    struct request request;
    struct fault fault; /* of job_prepare */
    int status;         /* 0: prepared */
    struct job_prompt *prompts;
    uint32_t n_prompts;
    struct job_choice *choices; /* prompt-major */
    uint32_t n_choices, n_started, n_done;
    char id[48];
    uint64_t serial; /* as in the id */
    bool thinking;   /* the prompt ends inside the model's reasoning */
    int64_t created;
    uint64_t begun_ms, written_ms;
    bool streaming; /* the head has left */
    bool counted;   /* its outcome is in the metrics */
};

/* Parse, render, tokenize: only the job's own memory, so any thread. Sets status and fault. */
void job_prepare(struct job *j);

/* ---- reply.c: JSON and events; each appends to *b ---- */
void reply_chunk_role(const struct job *j, uint32_t index, struct buf *b);       /* chat only */
void reply_chunk_text(const struct job *j, struct job_choice *c, struct buf *b); /* and drops it */
void reply_chunk_finish(const struct job *j, struct job_choice *c, struct buf *b);
void reply_chunk_usage(const struct job *j, struct buf *b);
void reply_whole(const struct job *j, struct buf *b);
/* Is there anything for reply_chunk_text? */
bool reply_has_text(const struct job_choice *c);

#endif
