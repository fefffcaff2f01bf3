/* The part of a job that needs no loop: parse, render, tokenize. */
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/api/job.h"
#include "coordinator/api/prompt.h"
#include "coordinator/text/tokenizer.h"

static int no_memory(struct fault *why)
{
    return fault_set(why, 503, "overloaded", NULL, "no memory for the request");
}

static int check_length(struct job *j, size_t n_prompt)
{
    return request_check_length(&j->request, n_prompt, j->api->cfg.model.ctx, &j->fault);
}

static int one_prompt(struct job *j, const struct request_prompt *given, struct job_prompt *out)
{
    const struct generation_model *model = &j->api->cfg.model;
    if (given->text != NULL) {
        int status =
            prompt_from_text(model, given->text, given->n_text, true, &out->ids, &j->fault);
        if (status != 0) return status;
        if (j->request.echo) buf_append(&out->echo, given->text, given->n_text);
    } else {
        struct err e;
        if (!ids_append(&out->ids, given->ids, given->n_ids)) return no_memory(&j->fault);
        if (j->request.echo && tokenizer_decode(model->tokenizer, given->ids, given->n_ids, false,
                                                &out->echo, &e) != ERR_OK)
            return fault_from_err(&j->fault, &e);
    }
    if (out->echo.failed) return no_memory(&j->fault);
    return check_length(j, out->ids.len);
}

static int make_prompts(struct job *j)
{
    bool chat = j->kind == REQUEST_CHAT;
    j->n_prompts = chat ? 1 : j->request.n_prompts;
    j->prompts = mem_zalloc_array(j->n_prompts, sizeof *j->prompts);
    if (j->prompts == NULL) return no_memory(&j->fault);
    if (chat) {
        int status = prompt_from_messages(&j->api->cfg.model, j->request.messages, j->request.tools,
                                          j->request.template_kwargs, &j->prompts[0].ids,
                                          &j->thinking, &j->fault);
        return status != 0 ? status : check_length(j, j->prompts[0].ids.len);
    }
    for (uint32_t i = 0; i < j->n_prompts; i++) {
        int status = one_prompt(j, &j->request.prompts[i], &j->prompts[i]);
        if (status != 0) return status;
    }
    return 0;
}

static int make_choices(struct job *j)
{
    struct err e;
    uint32_t n = j->request.n;
    j->choices = mem_zalloc_array((size_t)j->n_prompts * n, sizeof *j->choices);
    if (j->choices == NULL) return no_memory(&j->fault);
    j->n_choices = j->n_prompts * n;
    for (uint32_t i = 0; i < j->n_choices; i++) {
        struct job_choice *c = &j->choices[i];
        c->job = j;
        c->prompt = &j->prompts[i / n];
        c->sample = i % n;
        if (choice_init(&c->choice, i, &j->request, j->api->cfg.model.tokenizer, &e) != ERR_OK)
            return fault_from_err(&j->fault, &e);
        const struct reply_format *format = j->api->cfg.model.reply_format;
        if (j->kind == REQUEST_CHAT && format != NULL)
            choice_read(&c->choice, format, &j->request, j->thinking, j->serial);
    }
    return 0;
}

static int prepare(struct job *j)
{
    int status =
        request_parse(j->kind, j->body, j->n_body, &j->api->cfg.model, &j->request, &j->fault);
    if (status == 0) status = make_prompts(j);
    if (status == 0) status = make_choices(j);
    if (status == 0) request_settle_seed(&j->request);
    return status;
}

void job_prepare(struct job *j)
{
    j->status = prepare(j);
}
