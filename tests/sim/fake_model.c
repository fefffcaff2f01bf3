#include "tests/sim/fake_model.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b;
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void fake_model_open(struct fake_model *m)
{
    m->kv = calloc((size_t)m->n_kv_blocks * m->n_layers * 64, sizeof *m->kv);
    if (m->kv == NULL) abort();
}

void fake_model_close(struct fake_model *m)
{
    free(m->kv);
}

void fake_pass_open(struct fake_pass *p, const struct fake_model *m, uint32_t cap)
{
    size_t entries = (size_t)cap * (m->top_k + 1);
    *p = (struct fake_pass){.cap = cap};
    p->rows = calloc(cap, sizeof *p->rows);
    p->hidden = calloc(cap, sizeof *p->hidden);
    p->experts = calloc(entries, sizeof *p->experts);
    p->results = calloc(entries, sizeof *p->results);
    p->written = calloc(entries, sizeof *p->written);
    p->bad_layer = calloc(cap, sizeof *p->bad_layer);
    p->tokens = calloc(cap, sizeof *p->tokens);
    p->logit_rows = calloc(cap, sizeof *p->logit_rows);
}

void fake_pass_close(struct fake_pass *p)
{
    free(p->rows);
    free(p->hidden);
    free(p->experts);
    free(p->results);
    free(p->written);
    free(p->bad_layer);
    free(p->tokens);
    free(p->logit_rows);
}

/* ---- the arithmetic, shared by passes and truth ------------------------------------------------ */

static uint64_t embed(const struct fake_model *m, int32_t token, uint32_t position, bool beyond)
{
    return mix(mix(m->seed + beyond, (uint64_t)token), position);
}

static uint64_t key(uint64_t hidden, uint32_t layer, uint32_t position)
{
    return mix(mix(hidden, layer), position);
}

static void route(const struct fake_model *m, uint32_t layer, uint64_t hidden, uint16_t *experts)
{
    for (uint32_t k = 0; k < m->top_k; k++) {
        uint16_t e = (uint16_t)(mix(mix(hidden, layer), 1000 + k) % m->n_experts);
        for (uint32_t j = 0; j < k; j++)
            if (experts[j] == e) {
                e = (uint16_t)((e + 1) % m->n_experts);
                j = UINT32_MAX; /* look at all of them again */
            }
        uint32_t at = k;
        experts[k] = e;
        for (; at > 0 && experts[at - 1] > e; at--)
            experts[at] = experts[at - 1];
        experts[at] = e;
    }
}

uint64_t fake_expert(const struct fake_model *m, uint32_t layer, uint32_t expert, uint64_t hidden)
{
    return mix(mix(m->seed ^ hidden, layer), expert);
}

static int32_t sample(uint64_t hidden)
{
    return (int32_t)(mix(hidden, 7) % FAKE_VOCAB);
}

/* What a layer makes of a hidden state, given the sum of the keys that it looks at. */
static uint64_t through_layer(const struct fake_model *m, uint32_t layer, uint64_t h, uint64_t keys)
{
    h = mix(h, keys);
    if (!m->is_moe[layer]) return mix(h, 1);
    uint16_t experts[FAKE_MAX_TOP_K];
    uint64_t sum = 0;
    route(m, layer, h, experts);
    for (uint32_t k = 0; k < m->top_k; k++)
        sum += fake_expert(m, layer, experts[k], h) * (k + 1);
    return mix(h, sum);
}

/* The encoder over n tokens, all at once; what the decoder's layers see of them is added to their sums. */
static void encode_truth(const struct fake_model *m, const int32_t *prompt, uint32_t n,
                         uint64_t *sums)
{
    uint64_t *h = calloc(n, sizeof *h);
    for (uint32_t i = 0; i < n; i++)
        h[i] = embed(m, prompt[i], i, false);
    for (uint32_t layer = 0; layer < m->n_encoder_layers; layer++) {
        uint64_t all = 0;
        for (uint32_t i = 0; i < n; i++)
            all += key(h[i], layer, i);
        for (uint32_t i = 0; i < n; i++)
            h[i] = through_layer(m, layer, h[i], all);
    }
    for (uint32_t layer = m->n_encoder_layers; layer < m->n_layers; layer++)
        for (uint32_t i = 0; i < n; i++)
            sums[layer] += key(h[i], layer, i);
    free(h);
}

void fake_model_truth(const struct fake_model *m, const int32_t *prompt, uint32_t n_prompt,
                      int32_t *out, uint32_t n)
{
    uint32_t total = n_prompt + n;
    uint64_t *sums = calloc(m->n_layers, sizeof *sums); /* of the keys so far */
    const uint32_t most = m->rope_length > 0 ? m->rope_length : UINT32_MAX;
    const uint32_t n_encoder = m->n_encoder_layers > 0 ? n_prompt - 1 : 0;
    bool beyond = n_prompt > most;
    if (n_encoder > 0) encode_truth(m, prompt, n_encoder, sums);
    for (uint32_t i = n_encoder, known = 0; i + 1 < total; i++) {
        if (!beyond && i + 1 > most) { /* all over again */
            beyond = true;
            known = i + 1 - n_prompt;
            memset(sums, 0, m->n_layers * sizeof *sums);
            i = 0;
        }
        int32_t token = i < n_prompt ? prompt[i] : out[i - n_prompt];
        uint64_t h = embed(m, token, i, beyond);
        for (uint32_t layer = m->n_encoder_layers; layer < m->n_layers; layer++) {
            sums[layer] += key(h, layer, i);
            h = through_layer(m, layer, h, sums[layer]);
        }
        if (i + 1 >= n_prompt + known) out[i + 1 - n_prompt] = sample(h);
    }
    free(sums);
}

/* ---- a pass ------------------------------------------------------------------------------------ */

static const char *combine(const struct fake_model *m, struct fake_pass *p, uint32_t layer,
                           const struct engine_row *rows)
{
    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint64_t sum = 0;
        bool complete = true;
        for (uint32_t k = 0; k < m->top_k; k++) {
            complete &= p->written[r * m->top_k + k] == 1;
            sum += p->results[r * m->top_k + k] * (k + 1);
        }
        bool needed = !rows[r].dead;
        if (needed && !complete)
            return "a live row was combined without exactly one result per expert";
        if (!complete)
            p->bad_layer[r] = (int)layer; /* rubbish may well be infinite: nobody may care */
        p->hidden[r] = mix(p->hidden[r], sum);
    }
    return NULL;
}

static uint64_t *place(const struct fake_model *m, const struct engine_row *row, uint32_t layer,
                       uint32_t i)
{
    return &m->kv[((size_t)row->blocks[i / 64] * m->n_layers + layer) * 64 + i % 64];
}

static void attend(struct fake_model *m, struct fake_pass *p, uint32_t layer)
{
    for (uint32_t r = 0; r < p->n_rows; r++)
        *place(m, &p->rows[r], layer, p->rows[r].position) =
            key(p->hidden[r], layer, p->rows[r].position);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        const struct engine_row *row = &p->rows[r];
        uint64_t sum = 0;
        uint32_t end = row->position < row->n_encoder ? row->n_encoder : row->position + 1;
        for (uint32_t i = 0; i < end; i++)
            sum += *place(m, row, layer, i);
        p->hidden[r] = mix(p->hidden[r], sum);
        if (!m->is_moe[layer]) {
            p->hidden[r] = mix(p->hidden[r], 1);
            continue;
        }
        route(m, layer, p->hidden[r], &p->experts[r * m->top_k]);
        for (uint32_t k = 0; k < m->top_k; k++) {
            p->results[r * m->top_k + k] = 0xbad;
            p->written[r * m->top_k + k] = 0;
        }
    }
}

const char *fake_model_run(struct fake_model *m, struct fake_pass *p, const struct engine_job *job,
                           const struct engine_row *rows, uint32_t n_rows)
{
    if (job->begin) {
        if (n_rows > p->cap) return "a pass has more rows than its slot";
        p->n_rows = n_rows;
        memcpy(p->rows, rows, n_rows * sizeof *rows);
        for (uint32_t r = 0; r < n_rows; r++) {
            p->hidden[r] = embed(m, rows[r].token, rows[r].position, rows[r].beyond);
            p->bad_layer[r] = -1;
        }
    }
    if (n_rows != p->n_rows) return "a pass changed its number of rows";
    if (job->combine_layer >= 0) {
        const char *wrong = combine(m, p, (uint32_t)job->combine_layer, rows);
        if (wrong != NULL) return wrong;
    }
    for (int layer = job->first_layer; layer <= job->last_layer; layer++) {
        for (uint32_t r = 0; r < n_rows; r++)
            if ((rows[r].position < rows[r].n_encoder) != ((uint32_t)layer < m->n_encoder_layers))
                return "a row in a layer of the other stack";
        if (m->is_moe[layer] && layer != job->last_layer)
            return "a MoE layer in the middle of a job";
        attend(m, p, (uint32_t)layer);
    }
    p->n_logit_rows = 0;
    for (uint32_t r = 0; job->head && r < n_rows; r++) {
        if (rows[r].position >= rows[r].n_encoder) continue;
        if (rows[r].wants_logits) return "an encoder's row wants logits";
        for (uint32_t layer = m->n_encoder_layers; layer < m->n_layers; layer++)
            *place(m, &p->rows[r], layer, rows[r].position) =
                key(p->hidden[r], layer, rows[r].position);
    }
    for (uint32_t r = 0; job->head && r < n_rows; r++) {
        if (!rows[r].wants_logits) continue;
        p->logit_rows[p->n_logit_rows] = r;
        p->tokens[p->n_logit_rows++] = (struct engine_token){.token = sample(p->hidden[r])};
    }
    return NULL;
}
