#include "coordinator/engine/pass.h"

#include "common/base/check.h"
#include "common/base/mem.h"

enum err_code pass_init(struct pass *p, uint32_t slot, uint32_t cap, bool is_prefill,
                        struct err *why)
{
    *p = (struct pass){.slot = slot, .cap = cap, .is_prefill = is_prefill};
    p->rows = mem_zalloc_array((size_t)cap + 1, sizeof *p->rows);
    p->parts = mem_zalloc_array((size_t)cap + 1, sizeof *p->parts);
    p->skip = mem_zalloc_array((size_t)cap + 1, sizeof *p->skip);
    if (p->rows == NULL || p->parts == NULL || p->skip == NULL)
        return err_nomem(why, "the rows of a pass");
    return ERR_OK;
}

void pass_deinit(struct pass *p)
{
    mem_free(p->rows);
    mem_free(p->parts);
    mem_free(p->skip);
    *p = (struct pass){0};
}

void pass_clear(struct pass *p)
{
    p->state = PASS_FREE;
    p->n_rows = p->n_parts = p->n_live_parts = p->n_logit_rows = 0;
    p->encodes = false;
}

static uint32_t first_layer(const struct pass *p)
{
    return p->encodes ? 0 : p->n_encoder_layers;
}

static uint32_t end_layer(const struct pass *p)
{
    return p->encodes ? p->n_encoder_layers : p->n_layers;
}

static bool samples(const struct sequence *s, uint32_t i)
{
    return i == s->n_tokens - 1 && s->max_tokens > 0;
}

static bool is_prompt_logit(const struct sequence *s, uint32_t i)
{
    return s->prompt_logits && i < s->n_prompt && i >= s->n_prompt_emitted;
}

bool pass_wants_logits(const struct sequence *s, uint32_t i)
{
    return samples(s, i) || is_prompt_logit(s, i);
}

void pass_add(struct pass *p, struct sequence *s, uint32_t n)
{
    assert(n > 0 && n <= p->cap - p->n_rows && s->n_kv + n <= s->n_tokens);
    if (p->n_rows == 0) {
        p->encodes = s->n_kv < s->n_encoder;
        p->next_layer = first_layer(p);
    }
    p->parts[p->n_parts] = (struct pass_part){.sequence = s, .first = p->n_rows, .n = n};
    s->state = SEQUENCE_IN_PASS;
    s->slot = p->slot;
    s->part = p->n_parts;
    p->n_parts++;
    p->n_live_parts++;
    for (uint32_t i = s->n_kv; i < s->n_kv + n; i++) {
        struct engine_row *row = &p->rows[p->n_rows++];
        *row = (struct engine_row){
            .sequence = s->id,
            .token = s->tokens[i],
            .position = i,
            .blocks = s->blocks,
            .wants_logits = pass_wants_logits(s, i),
            .beyond = p->rope_length > 0 && s->n_tokens > p->rope_length,
            .samples = samples(s, i),
            .output_index = sequence_n_output(s),
            .tokens = s->tokens,
            .n_prompt = s->n_prompt,
            .n_encoder = s->n_encoder,
        };
        p->n_logit_rows += row->wants_logits;
    }
}

bool pass_next_job(struct pass *p, const bool *is_moe, int combine_layer, struct engine_job *job)
{
    const uint32_t end = end_layer(p);
    const bool has_head = p->n_logit_rows > 0 || p->encodes;
    uint32_t first = p->next_layer, last = first;
    bool to_end = true;
    if (first < end) {
        while (last + 1 < end && !is_moe[last])
            last++;
        to_end = !is_moe[last];
    }
    if (first == end && !has_head) return false;
    p->job = (struct engine_job){
        .slot = p->slot,
        .begin = first == first_layer(p),
        .combine_layer = combine_layer,
        .first_layer = (int)first,
        .last_layer = first < end ? (int)last : (int)first - 1,
        .head = to_end && has_head,
    };
    p->next_layer = (uint32_t)(p->job.last_layer + 1);
    *job = p->job;
    return true;
}

void pass_find_skips(struct pass *p)
{
    /* The experts of a last layer's rows without logits could be left out too; they are not, so that rows served add up to
     * tokens x layers x top_k and an operator can check that. */
    for (uint32_t i = 0; i < p->n_rows; i++)
        p->skip[i] = p->rows[i].dead;
}
