/* The JSON body of a chat or a completion, as either: what is accepted is within its limits, and no text of a user
 * becomes a control token. */
// links: api
// covers: coordinator/api/request.c coordinator/api/request_input.c coordinator/api/request_unbuilt.c
// covers: coordinator/api/request_bias.c coordinator/api/request_tools.c coordinator/api/prompt.c
// max_len: 2048
#include <string.h>

#include "coordinator/api/prompt.h"
#include "coordinator/api/request.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_format.h"
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static const char template_text[] =
    "{% for m in messages %}{% if m.role == 'tool' and loop.first %}{{ raise_exception('a tool first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}<|im_start|>";
#define CONTROL_PER_MESSAGE 2u
#define CONTROL_AT_END      1u

static struct generation_model model = {.id = "tiny",
                                        .ctx = 256,
                                        .n_layers = 1,
                                        .n_experts = 1,
                                        .top_k = 1,
                                        .default_temperature = 1,
                                        .default_top_p = 1};
static const int32_t eos[] = {309};

void fuzz_init(void)
{
    struct err why;
    struct tokenizer *t;
    struct chat_template *c;
    FUZZ_CHECK(tokenizer_open(PROJECT_ROOT "/tests/data/models/tiny-qwen3_moe", &t, &why) == ERR_OK,
               "%s", why.text);
    FUZZ_CHECK(chat_template_parse(template_text, sizeof template_text - 1, &c, &why) == ERR_OK,
               "%s", why.text);
    static struct reply_format format;
    FUZZ_CHECK(reply_format_detect("", 0, "hermes", "think", &format, &why) == ERR_OK, "%s",
               why.text);
    model.reply_format = &format;
    model.tokenizer = t;
    model.vocab = tokenizer_vocab_size(t);
    model.chat_template = c;
    model.eos = eos;
    model.n_eos = 1;
}

static void check_spec(const struct request *r, const struct ids *prompt)
{
    struct fault why;
    if (request_check_length(r, prompt->len, model.ctx, &why) != 0) return;
    struct generation_spec s = request_spec(r, &model, prompt, r->n - 1);
    FUZZ_CHECK(s.n_prompt >= 1 && s.n_prompt + s.max_tokens <= model.ctx, "%u + %u", s.n_prompt,
               s.max_tokens);
    FUZZ_CHECK(s.sampling.temperature >= 0 && s.sampling.temperature <= 2 && s.sampling.top_p > 0 &&
                   s.sampling.top_p <= 1 && s.sampling.min_p >= 0 && s.sampling.min_p <= 1 &&
                   s.top_logprobs <= LIMIT_TOP_LOGPROBS && s.sampling.top_k <= model.vocab,
               "temperature %g top_p %g min_p %g", s.sampling.temperature, s.sampling.top_p,
               s.sampling.min_p);
}

static int check_chat(const struct request *r)
{
    struct ids ids = {0};
    struct fault why;
    bool thinking = false;
    int status = prompt_from_messages(&model, r->messages, r->tools, r->template_kwargs, &ids,
                                      &thinking, &why);
    FUZZ_CHECK(!thinking, "the template opens no reasoning");
    if (status == 0) {
        size_t n_control = 0;
        for (size_t i = 0; i < ids.len; i++)
            n_control += tokenizer_is_special(model.tokenizer, ids.data[i]);
        size_t want = CONTROL_PER_MESSAGE * json_array_size(r->messages) + CONTROL_AT_END;
        FUZZ_CHECK(n_control == want, "%zu control tokens, the template has %zu", n_control, want);
        check_spec(r, &ids);
    }
    ids_free(&ids);
    /* A model that knows no tools: what was called before is refused, not left out. */
    struct generation_model plain = model;
    plain.reply_format = NULL;
    bool calls = false;
    for (size_t i = 0; i < json_array_size(r->messages); i++)
        calls |= json_object_get(json_array_get(r->messages, i), "tool_calls") != NULL;
    int without = prompt_from_messages(&plain, r->messages, NULL, NULL, &ids, NULL, &why);
    FUZZ_CHECK(!calls || without != 0, "calls were left out");
    ids_free(&ids);
    return status != 0 ? status : without;
}

static int check_completion(const struct request *r)
{
    int status = 0;
    for (uint32_t i = 0; i < r->n_prompts && status == 0; i++) {
        const struct request_prompt *p = &r->prompts[i];
        struct ids ids = {0};
        struct fault why;
        for (uint32_t k = 0; p->text == NULL && k < p->n_ids; k++)
            FUZZ_CHECK(p->ids[k] >= 0 && (uint32_t)p->ids[k] < model.vocab, "id %d", p->ids[k]);
        if (p->text != NULL)
            status = prompt_from_text(&model, p->text, p->n_text, true, &ids, &why);
        else
            ids = (struct ids){.data = p->ids, .len = p->n_ids};
        if (status == 0) check_spec(r, &ids);
        if (p->text != NULL) ids_free(&ids);
    }
    return status;
}

static int check_kind(enum request_kind kind, const uint8_t *data, size_t n)
{
    struct request r = {0};
    struct fault why;
    int status = request_parse(kind, (const char *)data, n, &model, &r, &why);
    FUZZ_CHECK(status == 0 || (status >= 400 && status < 600), "%d", status);
    if (status == 0) {
        FUZZ_CHECK(r.n >= 1 && r.n <= LIMIT_N && r.n_stop <= LIMIT_STOP_STRINGS &&
                       r.n_prompts <= LIMIT_PROMPTS && r.max_tokens <= model.ctx,
                   "n %u, %u stops, %u prompts", r.n, r.n_stop, r.n_prompts);
        request_settle_seed(&r);
        status = kind == REQUEST_CHAT ? check_chat(&r) : check_completion(&r);
    }
    request_deinit(&r);
    return status == 503 || status == 429 ? FUZZ_NO_MEMORY : status;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    int chat = check_kind(REQUEST_CHAT, data, n);
    int completion = check_kind(REQUEST_COMPLETION, data, n);
    return chat == FUZZ_NO_MEMORY || completion == FUZZ_NO_MEMORY ? FUZZ_NO_MEMORY
                                                                  : 1000 * chat + completion;
}
