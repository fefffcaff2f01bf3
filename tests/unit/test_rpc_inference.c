/* The messages of the coordinator's gRPC API. */
// links: rpc base
#include <criterion/criterion.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/rpc/inference_frame.h"

static enum err_code through(const struct generate_request *q, struct generate_request **out,
                             struct err *why)
{
    struct buf b = {0};
    cr_assert_eq(frame_encode_generate_request(q, &b, why), ERR_OK);
    enum err_code rc = frame_decode_generate_request(b.data, b.len, out, why);
    buf_free(&b);
    return rc;
}

Test(inference_frame, requests_survive_the_wire_and_absent_is_not_zero)
{
    const char *stop[] = {"\n\n", "END"};
    struct generate_message messages[] = {{"system", ""}, {"user", "Ol\xc3\xa1"}};
    struct generate_request q = {.messages = messages,
                                 .n_messages = 2,
                                 .has_temperature = true,
                                 .temperature = 0.0,
                                 .has_seed = true,
                                 .seed = -5,
                                 .has_top_k = true,
                                 .top_k = 0,
                                 .has_top_logprobs = true,
                                 .stop = stop,
                                 .n_stop = 2,
                                 .has_frequency_penalty = true,
                                 .frequency_penalty = -1.5,
                                 .logit_bias = (struct generate_bias[]){{3, -100}, {0, 0.5}},
                                 .n_logit_bias = 2,
                                 .model = "m"},
                            *got;
    struct err why;
    cr_assert_eq(through(&q, &got, &why), ERR_OK, "%s", why.text);
    cr_expect(got->prompt == NULL && got->n_prompt_ids == 0 && got->n_messages == 2);
    cr_expect_str_eq(got->messages[0].content, "");
    cr_expect_str_eq(got->messages[1].role, "user");
    cr_expect_str_eq(got->messages[1].content, "Ol\xc3\xa1");
    cr_expect(got->has_temperature && got->temperature == 0.0 && got->has_seed && got->seed == -5);
    cr_expect(got->has_top_k && got->top_k == 0 && got->has_top_logprobs && !got->has_max_tokens &&
              !got->has_top_p && !got->has_min_p);
    cr_expect(got->n_stop == 2 && strcmp(got->stop[1], "END") == 0 && !got->ignore_eos);
    cr_expect(got->has_frequency_penalty && got->frequency_penalty == -1.5);
    cr_expect(!got->has_presence_penalty && !got->has_repetition_penalty);
    cr_assert_eq(got->n_logit_bias, 2);
    cr_expect(got->logit_bias[0].id == 3 && got->logit_bias[0].bias == -100);
    cr_expect(got->logit_bias[1].id == 0 && got->logit_bias[1].bias == 0.5);
    cr_expect_str_eq(got->model, "m");
    frame_generate_request_free(got);

    q = (struct generate_request){
        .prompt = "", .has_max_tokens = true, .max_tokens = 7, .ignore_eos = true};
    cr_assert_eq(through(&q, &got, &why), ERR_OK, "%s", why.text);
    cr_expect(got->prompt != NULL && got->prompt[0] == '\0' && got->max_tokens == 7 &&
              got->ignore_eos);
    cr_expect_str_eq(got->model, "");
    frame_generate_request_free(got);

    int32_t ids[] = {0, 128000, -1};
    q = (struct generate_request){.prompt_ids = ids, .n_prompt_ids = 3};
    cr_assert_eq(through(&q, &got, &why), ERR_OK);
    cr_expect_arr_eq(got->prompt_ids, ids, sizeof ids);
    frame_generate_request_free(got);
}

static void expect_refused(const struct generate_request *q, const char *part)
{
    struct generate_request *got;
    struct err why;
    cr_expect_eq(through(q, &got, &why), ERR_INVALID, "%s", part);
    cr_expect(strstr(why.text, part), "'%s' lacks '%s'", why.text, part);
}

Test(inference_frame, bad_requests_are_refused_with_a_reason)
{
    int32_t id = 1;
    expect_refused(&(struct generate_request){0}, "there are 0");
    expect_refused(&(struct generate_request){.prompt = "a", .prompt_ids = &id, .n_prompt_ids = 1},
                   "there are 2");
    expect_refused(&(struct generate_request){.prompt = "\xff"}, "prompt[0] is not valid UTF-8");
    expect_refused(
        &(struct generate_request){.prompt = "a", .has_top_logprobs = true, .top_logprobs = 21},
        "21");
    const char *stops[17] = {"a", "b", "c", "d", "e", "f", "g", "h", "i",
                             "j", "k", "l", "m", "n", "o", "p", "q"};
    expect_refused(&(struct generate_request){.prompt = "a", .stop = stops, .n_stop = 17},
                   "17 stop strings");
    stops[1] = "";
    expect_refused(&(struct generate_request){.prompt = "a", .stop = stops, .n_stop = 2},
                   "stop[1] has 0 bytes");
    struct generate_request *got;
    struct err why;
    cr_expect_eq(frame_decode_generate_request("\x0a\x03"
                                               "a\0b",
                                               5, &got, &why),
                 ERR_INVALID);
    cr_expect(strstr(why.text, "NUL"), "%s", why.text);
    cr_expect_eq(frame_decode_generate_request("\x1a\x06\x12\x04"
                                               "x\0yz",
                                               8, &got, &why),
                 ERR_INVALID);
    cr_expect(strstr(why.text, "NUL"), "%s", why.text);
    cr_expect_eq(frame_decode_generate_request("\x0a\x09"
                                               "a",
                                               3, &got, &why),
                 ERR_INVALID);
    static char big[LIMIT_HTTP_BODY_BYTES + 1];
    cr_expect_eq(frame_decode_generate_request(big, sizeof big, &got, &why), ERR_TOO_LARGE);
}

Test(inference_frame, replies_survive_the_wire)
{
    struct generate_logprob lp[] = {{5, -0.25f}, {6, -3.5f}, {7, -9.0f}};
    int32_t ids[] = {5, 6};
    struct generate_reply r = {.text = "hi",
                               .token_ids = ids,
                               .n_token_ids = 2,
                               .logprobs = lp,
                               .n_logprobs = 2,
                               .top_logprobs = lp,
                               .n_top_logprobs = 3,
                               .finish_reason = "length",
                               .has_usage = true,
                               .prompt_tokens = 0,
                               .completion_tokens = 2,
                               .prompt_token_ids = ids,
                               .n_prompt_token_ids = 1},
                          *got;
    struct buf b = {0};
    struct err why;
    cr_assert_eq(frame_encode_generate_reply(&r, &b, &why), ERR_OK);
    cr_assert_eq(frame_decode_generate_reply(b.data, b.len, &got, &why), ERR_OK);
    cr_expect_str_eq(got->text, "hi");
    cr_expect_str_eq(got->finish_reason, "length");
    cr_expect(got->n_token_ids == 2 && got->token_ids[1] == 6 && got->n_prompt_token_ids == 1);
    cr_expect(got->n_logprobs == 2 && got->logprobs[1].id == 6 &&
              got->logprobs[1].logprob == -3.5f);
    cr_expect(got->n_top_logprobs == 3 && got->top_logprobs[2].logprob == -9.0f);
    cr_expect(got->has_usage && got->prompt_tokens == 0 && got->completion_tokens == 2);
    frame_generate_reply_free(got);
    buf_clear(&b);
    cr_assert_eq(frame_encode_generate_reply(&(struct generate_reply){.text = "x"}, &b, &why),
                 ERR_OK);
    cr_expect_eq(b.len, 3u);
    buf_free(&b);
}
