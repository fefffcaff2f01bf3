/* Replies to content, reasoning and tool calls: what each family's own template makes of a message is read back to the
 * same message, however it is cut; what is no call after all is given back to the byte. */
// links: text
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_grammar.h"
#include "coordinator/text/reply_parser.h"

#define CALLS_MAX 200

/* ---- what the events say together ---- */

struct heard {
    struct buf content, reasoning;
    struct {
        struct buf name, arguments, id;
        bool ended, broken;
    } calls[CALLS_MAX];
    uint32_t n_calls;
    unsigned n_events;
};

static void hear(void *ctx, const struct reply_event *ev)
{
    struct heard *h = ctx;
    h->n_events++;
    switch (ev->kind) {
    case REPLY_CONTENT:
        cr_assert_gt(ev->n, 0, "an empty piece");
        buf_append(&h->content, ev->text, ev->n);
        return;
    case REPLY_REASONING:
        buf_append(&h->reasoning, ev->text, ev->n);
        return;
    case REPLY_CALL_BEGIN:
        cr_assert_eq(ev->call, h->n_calls, "calls are numbered from 0");
        cr_assert_lt(h->n_calls, CALLS_MAX);
        h->n_calls++;
        buf_append(&h->calls[ev->call].name, ev->text, ev->n);
        buf_append(&h->calls[ev->call].id, ev->id, ev->n_id);
        return;
    case REPLY_CALL_ARGUMENTS:
        cr_assert_eq(ev->call + 1, h->n_calls);
        cr_assert(!h->calls[ev->call].ended && !h->calls[ev->call].broken);
        buf_append(&h->calls[ev->call].arguments, ev->text, ev->n);
        return;
    case REPLY_CALL_END:
        cr_assert_eq(ev->call + 1, h->n_calls);
        h->calls[ev->call].ended = true;
        return;
    case REPLY_CALL_BROKEN:
        cr_assert(!h->calls[ev->call].ended, "a whole call does not break");
        h->calls[ev->call].broken = true;
        return;
    }
}

static void forget(struct heard *h)
{
    buf_free(&h->content);
    buf_free(&h->reasoning);
    for (uint32_t i = 0; i < h->n_calls; i++) {
        buf_free(&h->calls[i].name);
        buf_free(&h->calls[i].arguments);
        buf_free(&h->calls[i].id);
    }
    memset(h, 0, sizeof *h);
}

static const char *text_of(const struct buf *b)
{
    return b->len == 0 ? "" : b->data;
}

/* "[R]reasoning[C]content name{..} id=.. broken{" as one line to compare. mem_free. */
static char *summary(const struct heard *h)
{
    struct buf b = {0};
    if (h->reasoning.len > 0) buf_printf(&b, "[R]%s", text_of(&h->reasoning));
    if (h->content.len > 0) buf_printf(&b, "[C]%s", text_of(&h->content));
    for (uint32_t i = 0; i < h->n_calls; i++) {
        cr_assert(h->calls[i].ended != h->calls[i].broken, "each call ends once");
        buf_printf(&b, "[%s]%s%s%s%s", h->calls[i].broken ? "broken" : "call",
                   text_of(&h->calls[i].name), text_of(&h->calls[i].arguments),
                   h->calls[i].id.len > 0 ? " id=" : "", text_of(&h->calls[i].id));
    }
    return buf_take(&b, NULL);
}

/* The length of the special token that begins here, or 0. */
static size_t token_at(const struct reply_parser *p, const char *text, size_t n)
{
    for (uint32_t m = 0; m < MARKERS_MAX; m++) {
        size_t len = p->scanner.lens[m];
        if (len > 0 && len <= n && memcmp(text, p->scanner.texts[m], len) == 0 &&
            reply_parser_is_marker(p, text, len))
            return len;
    }
    return 0;
}

/* Give n bytes of a reply; special tokens in it go as tokens. */
static void give(struct reply_parser *p, const char *text, size_t n)
{
    size_t from = 0;
    for (size_t at = 0; at < n;) {
        size_t token = token_at(p, text + at, n - at);
        at += token > 0 ? 0 : 1;
        if (token == 0 && at < n) continue;
        reply_parser_text(p, text + from, at - from);
        if (token > 0) reply_parser_token(p, text + at, token);
        from = at += token;
    }
}

static bool cuts_token(const struct reply_parser *p, const char *text, size_t n, size_t cut)
{
    for (size_t at = 0; at < cut; at++)
        if (at + token_at(p, text + at, n - at) > cut) return true;
    return false;
}

static char *read_cut(const struct reply_format *f, const json_t *tools, bool thinking,
                      const char *reply, size_t cut, size_t step)
{
    struct heard h = {0};
    struct reply_parser p;
    size_t n = strlen(reply);
    reply_parser_init(&p, f, tools, thinking, hear, &h);
    give(&p, reply, cut);
    for (size_t at = cut; at < n; at += step)
        give(&p, reply + at, n - at < step ? n - at : step);
    reply_parser_finish(&p);
    cr_assert(!p.failed);
    reply_parser_deinit(&p);
    char *s = summary(&h);
    forget(&h);
    return s;
}

/* In one piece; and then in two, cut at every byte, and byte by byte: the same. mem_free. */
static char *read_reply(const struct reply_format *f, const json_t *tools, bool thinking,
                        const char *reply)
{
    size_t n = strlen(reply);
    char *whole = read_cut(f, tools, thinking, reply, n, 1);
    for (size_t cut = 0; cut < n; cut++) {
        char *other = read_cut(f, tools, thinking, reply, cut, n);
        cr_assert_str_eq(other, whole, "%s cut at %zu", reply, cut);
        mem_free(other);
    }
    char *other = read_cut(f, tools, thinking, reply, 0, 1);
    cr_assert_str_eq(other, whole, "%s byte by byte", reply);
    mem_free(other);
    return whole;
}

static struct reply_format format_named(const char *tools, const char *reasoning)
{
    struct reply_format f;
    struct err why;
    cr_assert_eq(reply_format_detect("", 0, tools, reasoning, &f, &why), ERR_OK, "%s", why.text);
    return f;
}

static json_t *json(const char *text)
{
    json_t *v = NULL;
    struct err why;
    cr_assert_eq(json_parse(text, strlen(text), LIMIT_JSON_DEPTH, &v, &why), ERR_OK, "%s: %s", text,
                 why.text);
    return v;
}

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"s\":{\"type\":\"string\"},\"i\":{\"type\":\"integer\"},\"o\":{\"type\":"
    "\"object\"},\"b\":{\"type\":\"boolean\"},\"n\":{\"type\":\"string\"},\"t\":{\"type\":"
    "\"string\"}}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]";

/* ---- replies written by hand ---- */

struct row {
    const char *tools, *reasoning, *reply, *want;
    bool thinking;
};
#define BAR      "\xef\xbd\x9c"
#define LOW      "\xe2\x96\x81"
#define DS(name) "<" BAR "tool" LOW name BAR ">"
#define DS_CALLS DS("calls" LOW "begin")
#define DS_CALL  DS("call" LOW "begin")
#define DS_SEP   DS("sep")
#define DS_END   DS("call" LOW "end")
#define DS_ENDS  DS("calls" LOW "end")

static const struct row rows[] = {
    /* nothing but text */
    {"hermes", "think", "Hello <b>there\n\n", "[C]Hello <b>there\n\n", false},
    {"none", "none", "<think>x</think><tool_call>", "[C]<think>x</think><tool_call>", false},
    {"hermes", "think", "", "", false},
    {"hermes", "think", " \n", "[C] \n", false},
    {"hermes", "think", "a <tool", "[C]a <tool", false},
    {"hermes", "think", "  a\n \n", "[C]  a\n \n", false},
    /* reasoning */
    {"hermes", "think", "<think>\nadd\n\nup\n</think>\n\n2\n", "[R]add\n\nup[C]2\n", false},
    {"none", "think", "\n<think>a</think>b", "[R]a[C]b", false},
    {"none", "think", "a\n</think>\n\n b", "[R]a[C] b", true},
    {"none", "think", "<think>\na</think>b", "[R]a[C]b", true},
    {"none", "think", "<think></think>\n\nb", "[C]b", false},
    {"none", "think", "a <think>b</think>", "[C]a <think>b</think>", false},
    {"none", "think", "<think>a <think>b</think>c</think>", "[R]a <think>b[C]c</think>", false},
    {"none", "think", "never ends\n", "[R]never ends\n", true},
    {"none", "think", "</think>", "", true},
    {"none", "mistral", "[THINK]a[/THINK]b", "[R]a[C]b", false},
    {"granite", "granite", "<think>a</think>\n<response>\nb\n</response>", "[R]a[C]b", false},
    {"hermes", "think", "<think>\n<tool_call>{\"name\":\"f\"}</tool_call></think>x",
     "[R]<tool_call>{\"name\":\"f\"}</tool_call>[C]x", false},
    /* Hermes */
    {"hermes", "none",
     "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a\"}}\n</tool_call>",
     "[call]f{\"s\": \"a\"}", false},
    {"hermes", "think",
     "<think>t</think>\n\nSo:\n<tool_call>{\"arguments\":{\"a\":[1,{}]},\"name\":\"f\"}</tool_call>\n"
     "<tool_call>\n{\"name\":\"g\"}\n</tool_call>\n",
     "[R]t[C]So:[call]f{\"a\":[1,{}]}[call]g{}", false},
    {"hermes", "none",
     "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": \\\"\\\\n\\u00e9\\\"}\"}</tool_call>",
     "[call]f{\"a\": \"\\n\xc3\xa9\"}", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":\"\"}</tool_call>", "[call]f{}",
     false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":null,\"id\":-1.5e3}</tool_call>x",
     "[C]x[call]f{}", false},
    {"hermes", "none",
     "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"</tool_call>\"}}</tool_call>",
     "[call]f{\"s\":\"</tool_call>\"}", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{}}", "[call]f{}", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{}}}</tool_call>", "[call]f{}",
     false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{}} bye", "[C] bye[call]f{}",
     false},
    {"hermes", "none", "<tool_call>[{\"name\":\"f\"}, {\"name\":\"g\"}]</tool_call>",
     "[call]f{}[call]g{}", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\"}<tool_call>{\"name\":\"g\"}</tool_call>",
     "[call]f{}[call]g{}", false},
    /* broken before anything left: content, to the byte */
    {"hermes", "none", "a\n\n<tool_call>\n{\"name\": f}\n</tool_call>",
     "[C]a\n\n<tool_call>\n{\"name\": f}\n</tool_call>", false},
    {"hermes", "none", "<tool_call></tool_call>", "[C]<tool_call></tool_call>", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\"", "[C]<tool_call>{\"name\":\"f\"", false},
    {"hermes", "none", "<tool_call>{}</tool_call>", "[C]<tool_call>{}</tool_call>", false},
    {"hermes", "none", "<tool_call>{\"name\":\"a b\"}</tool_call>",
     "[C]<tool_call>{\"name\":\"a b\"}</tool_call>", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"name\":\"g\"}</tool_call>",
     "[C]<tool_call>{\"name\":\"f\",\"name\":\"g\"}</tool_call>", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>",
     "[C]<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>[broken]f", false},
    {"hermes", "none", "<tool_call>{\"arguments\":{}}</tool_call>",
     "[C]<tool_call>{\"arguments\":{}}</tool_call>", false},
    {"hermes", "none", "<tool_call>hm <tool_call>{\"name\":\"f\"}</tool_call>",
     "[C]<tool_call>hm [call]f{}", false},
    /* broken afterwards: its text is content all the same */
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": }}</tool_call>",
     "[C]<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": }}</tool_call>[broken]f{\"a\": ", false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": \"cut off",
     "[C]<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": \"cut off[broken]f{\"a\": \"cut off",
     false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":{},\"arguments\":{}}</tool_call>",
     "[C]<tool_call>{\"name\":\"f\",\"arguments\":{},\"arguments\":{}}</tool_call>[broken]f{}",
     false},
    {"hermes", "none", "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1\"}</tool_call>",
     "[C]<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1\"}</tool_call>[broken]f{\"a\":1",
     false},
    /* Granite */
    {"granite", "none",
     "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"s\": \"x\"}}, {\"name\": \"now\", \"arguments\": {}}]",
     "[call]f{\"s\": \"x\"}[call]now{}", false},
    {"granite", "none", "<|tool_call|>{\"name\": \"f\", \"arguments\": {}}", "[call]f{}", false},
    {"granite", "none", "<|tool_call|>[{\"name\": \"f\"}] more", "[C] more[call]f{}", false},
    {"granite", "none", "<|tool_call|>[{\"name\": \"f\"}, {\"nam", "[C], {\"nam[call]f{}", false},
    {"granite", "none", "<|tool_call|>[{\"name\": \"f\"},", "[call]f{}", false},
    {"granite", "none", "<|tool_call|>[{\"name\": \"f\"};", "[C];[call]f{}", false},
    {"granite", "none", "<|tool_call|>[[", "[C]<|tool_call|>[[", false},
    /* Mistral */
    {"mistral", "none",
     "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"s\": \"x\"}, \"id\": \"call00001\"}]",
     "[call]f{\"s\": \"x\"}", false},
    {"mistral", "none",
     "Hm.[TOOL_CALLS]f[ARGS]{\"s\": \"[TOOL_CALLS]\"}[TOOL_CALLS]now[CALL_ID]abc123XYZ[ARGS]{}",
     "[C]Hm.[call]f{\"s\": \"[TOOL_CALLS]\"}[call]now{} id=abc123XYZ", false},
    {"mistral", "none", "[TOOL_CALLS][{\"name\":\"f\"}][TOOL_CALLS]now[ARGS]{}",
     "[call]f{}[call]now{}", false},
    {"mistral", "none", "[TOOL_CALLS]f{\"s\": 1}", "[C][TOOL_CALLS]f{\"s\": 1}", false},
    {"mistral", "none", "[TOOL_CALLS]f[ARGS]{\"s\": x",
     "[C][TOOL_CALLS]f[ARGS]{\"s\": x[broken]f{\"s\": ", false},
    {"mistral", "none", "[TOOL_CALLS]f[ARGS]{} so", "[C] so[call]f{}", false},
    {"mistral", "none", "[TOOL_CALLS]", "[C][TOOL_CALLS]", false},
    {"mistral", "none", "[TOOL_CALLS]f[CALL_ID]1[CALL_ID]2", "[C][TOOL_CALLS]f[CALL_ID]1[CALL_ID]2",
     false},
    /* Llama 3 */
    {"llama3_json", "none", "\n{\"name\": \"f\", \"parameters\": {\"s\": \"x\"}}",
     "[call]f{\"s\": \"x\"}", false},
    {"llama3_json", "none",
     "{\"type\":\"function\",\"name\": \"f\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}",
     "[call]f{}[call]now{}", false},
    {"llama3_json", "none", "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "[call]f{}",
     false},
    {"llama3_json", "none", "<|python_tag|>print(1)", "[C]<|python_tag|>print(1)", false},
    {"llama3_json", "none", "<|python_tag|>f.call(s=\"a \"b\" c\\\", t=\"\") ",
     "[call]f{\"s\": \"a \\\"b\\\" c\\\\\", \"t\": \"\"}", false},
    {"llama3_json", "none", "<|python_tag|>now.call()", "[call]now{}", false},
    {"llama3_json", "none", "<|python_tag|>g.call(s=\"a\")", "[C]<|python_tag|>g.call(s=\"a\")",
     false},
    {"llama3_json", "none", "<|python_tag|>f.call(s=1)", "[C]<|python_tag|>f.call(s=1)", false},
    {"llama3_json", "none", "<|python_tag|>f.call(s=\"1", "[C]<|python_tag|>f.call(s=\"1", false},
    {"llama3_json", "none", "{\"answer\": 42}", "[C]{\"answer\": 42}", false},
    {"llama3_json", "none", "{\"name\": \"Ann\", \"parameters\": {}}",
     "[C]{\"name\": \"Ann\", \"parameters\": {}}", false},
    {"llama3_json", "none", "{\"name\": \"f\"}", "[C]{\"name\": \"f\"}", false},
    {"llama3_json", "none", "So {\"name\": \"f\", \"parameters\": {}}",
     "[C]So {\"name\": \"f\", \"parameters\": {}}", false},
    {"llama3_json", "none", "{\"name\": \"f\", \"parameters\": {}} as asked",
     "[C] as asked[call]f{}", false},
    /* DeepSeek V3 and V3.1 */
    {"deepseek_v3", "think",
     "why\n</think>\n\n" DS_CALLS DS_CALL "function" DS_SEP "f\n```json\n{\"s\": \"x\"}\n```" DS_END
     "\n" DS_CALL "function" DS_SEP "now\n```json\n{}\n```" DS_END DS_ENDS,
     "[R]why[call]f{\"s\": \"x\"}[call]now{}", true},
    {"deepseek_v3", "think",
     "Ok." DS_CALLS DS_CALL "f" DS_SEP "{\"s\": \"" DS_END "\"}" DS_END DS_CALL "now" DS_SEP
     "\"{}\"" DS_END DS_ENDS "Done",
     "[C]Ok.Done[call]f{\"s\": \"" DS_END "\"}[call]now{}", false},
    {"deepseek_v3", "none", DS_CALLS DS_CALL "f" DS_SEP "{}", "[call]f{}", false},
    {"deepseek_v3", "none", DS_CALLS DS_CALL "f" DS_SEP "{} and", "[C] and[call]f{}", false},
    {"deepseek_v3", "none", DS_CALLS DS_CALL "f" DS_END, "[C]" DS_CALLS DS_CALL "f" DS_END, false},
    {"deepseek_v3", "none", DS_CALLS "x", "[C]" DS_CALLS "x", false},
    {"deepseek_v3", "none", DS_CALLS DS_CALL "function" DS_SEP "f\n```python\n",
     "[C]" DS_CALLS DS_CALL "function" DS_SEP "f\n```python\n", false},
    {"deepseek_v3", "none", DS_CALLS DS_CALL "f" DS_SEP "{\"a\": nil}" DS_END,
     "[C]" DS_CALLS DS_CALL "f" DS_SEP "{\"a\": nil}" DS_END "[broken]f{\"a\": n", false},
    {"deepseek_v3", "none", DS_CALLS DS_ENDS, "", false},
    /* Kimi K2 */
    {"kimi_k2", "none",
     "Look.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"s\": \"x\"}<|tool_call_end|><|tool_call_begin|>functions.now:12<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
     "[C]Look.[call]f{\"s\": \"x\"} id=functions.f:0[call]now{} id=functions.now:12", false},
    {"kimi_k2", "none", "<|tool_call_begin|>f<|tool_call_argument_begin|>{}<|tool_call_end|>",
     "[call]f{}", false},
    /* Qwen3-Coder */
    {"qwen3_coder", "none",
     "<tool_call>\n<function=f>\n<parameter=s>\n12\n</parameter>\n<parameter=i>\n12\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n<parameter=o>\n{\"a\": [1]}\n</parameter>\n<parameter=x>\na\nb\"\n</parameter>\n</function>\n</tool_call>",
     "[call]f{\"s\": \"12\", \"i\": 12, \"b\": true, \"o\": {\"a\": [1]}, \"x\": \"a\\nb\\\"\"}",
     false},
    {"qwen3_coder", "none", "Go.\n\n<function=now>\n</function>\n", "[C]Go.[call]now{}", false},
    {"qwen3_coder", "none",
     "<tool_call><function=now></function></tool_call><tool_call><function=f></function></tool_call>x",
     "[C]x[call]now{}[call]f{}", false},
    {"qwen3_coder", "none", "<tool_call>\n<function=f>\n<parameter=s>\nx",
     "[C]<tool_call>\n<function=f>\n<parameter=s>\nx[broken]f{\"s\": \"x", false},
    {"qwen3_coder", "none", "<tool_call>\nf(1)\n</tool_call>", "[C]<tool_call>\nf(1)\n</tool_call>",
     false},
    {"qwen3_coder", "none", "<tool_call>\n</tool_call>", "[C]<tool_call>\n</tool_call>", false},
    {"qwen3_coder", "none", "<function=f><parameter=></parameter>",
     "[C]<function=f><parameter=></parameter>[broken]f", false},
    {"qwen3_coder", "none", "<function=f>x", "[C]<function=f>x[broken]f", false},
    /* GLM 4.5 */
    {"glm45", "think",
     "\n<think>so</think>\nHm\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>2\n</arg_value>\n<arg_key>i</arg_key>\n<arg_value>-2</arg_value>\n<arg_key>q</arg_key>\n<arg_value>01</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
     "[R]so[C]Hm[call]f{\"s\": \"2\\n\", \"i\": -2, \"q\": \"01\"}[call]now{}", false},
    {"glm45", "none", "<tool_call>f<arg_key>q</arg_key><arg_value>null</arg_value></tool_call>",
     "[call]f{\"q\": null}", false},
    {"glm45", "none", "<tool_call>f<arg_key>q</arg_key>x",
     "[C]<tool_call>f<arg_key>q</arg_key>x[broken]f", false},
    {"glm45", "none", "<tool_call></tool_call>", "[C]<tool_call></tool_call>", false},
    {"glm45", "none", "<tool_call>f<arg_key></arg_key>",
     "[C]<tool_call>f<arg_key></arg_key>[broken]f", false},
    /* harmony */
    {"harmony", "harmony",
     "<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>2\n<|return|>",
     "[R]Two.[C]2\n", false},
    {"harmony", "harmony",
     "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"s\": \"<|call|>\"}<|call|>",
     "[R]a\nb[C]c[call]f{\"s\": \"<|call|>\"}", false},
    {"harmony", "harmony", " to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
     "[call]now{}", false},
    {"harmony", "harmony", " to=now<|channel|>commentary<|message|><|call|>", "[call]now{}", false},
    {"harmony", "harmony", " to=python<|channel|>analysis<|message|>1+1<|call|>", "[R]1+1", false},
    {"harmony", "harmony", "<|channel|>commentary to=functions.f<|message|>{\"a\": oops} x<|call|>",
     "[C]{\"a\": oops} x[broken]f{\"a\": ", false},
    {"harmony", "harmony", "<|channel|>commentary to=functions.f<|message|>{\"a\": 1",
     "[C]{\"a\": 1[broken]f{\"a\": 1", false},
    {"harmony", "harmony", "<|channel|>commentary to=functions.f<|message|>hm", "[C]hm", false},
    {"harmony", "harmony", "<|channel|>final<|message|>a<|channel|>final<|message|>b", "[C]a\nb",
     false},
    {"harmony", "harmony", "no channels at all", "[C]no channels at all", false},
    {"harmony", "harmony", "<|channel|>final", "", false},
    {"harmony", "none", "<|channel|>analysis<|message|>a<|end|>", "[C]a", false},
    {"none", "harmony", " to=functions.f<|channel|>commentary<|message|>{}<|call|>", "[C]{}",
     false},
    {"harmony", "harmony", "<|channel|>commentary to=functions.f<|message|>{} then",
     "[C]then[call]f{}", false},
};

Test(reply_parser, replies_of_every_family_are_read_however_they_are_cut)
{
    json_t *tools = json(tools_text);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct reply_format f = format_named(rows[i].tools, rows[i].reasoning);
        char *got = read_reply(&f, tools, rows[i].thinking, rows[i].reply);
        cr_expect_str_eq(got, rows[i].want, "%s: %s\n  gives %s\n  wants %s", rows[i].tools,
                         rows[i].reply, got, rows[i].want);
        mem_free(got);
    }
    json_decref(tools);
}

/* Every cut of every row once more with the markers as special tokens, for those whose strings spell no marker. */
Test(reply_parser, special_tokens_mark_and_their_text_alone_does_not)
{
    json_t *tools = json(tools_text);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct reply_format f = format_named(rows[i].tools, rows[i].reasoning);
        f.special_tools = 0xff;
        f.special_reasoning = f.reasoning != &reply_harmony ? 0xff : 0;
        if (strstr(rows[i].want, "\"<|call|>\"") != NULL ||
            strstr(rows[i].want, "[TOOL_CALLS]\"") != NULL ||
            strstr(rows[i].want, DS_END "\"}") != NULL ||
            strstr(rows[i].want, "\"</tool_call>\"") != NULL ||
            strstr(rows[i].want, "[R]<tool_call>") != NULL ||
            strstr(rows[i].reply, "a <think>b") != NULL ||
            strstr(rows[i].want, "</tool_call>") != NULL)
            continue; /* as tokens these are something else */
        size_t n = strlen(rows[i].reply);
        char *got = read_cut(&f, tools, rows[i].thinking, rows[i].reply, n, 1);
        if (strstr(rows[i].want, "[broken]") == NULL)
            cr_expect_str_eq(got, rows[i].want, "%s: %s", rows[i].tools, rows[i].reply);
        mem_free(got);
    }
    struct reply_format f = format_named("harmony", "harmony");
    f.special_tools = 0xff;
    char *got = read_cut(&f, tools, false, "<|channel|>analysis<|message|>x", 0, 1);
    cr_expect_str_eq(got, "[C]<|channel|>analysis<|message|>x", "spelled out it is text: %s", got);
    mem_free(got);
    f = format_named("mistral", "none");
    f.special_tools = 0xff;
    got = read_cut(&f, tools, false, "[TOOL_CALLS]f[ARGS]{}", 0, 1);
    cr_expect_str_eq(got, "[C][TOOL_CALLS]f[ARGS]{}");
    mem_free(got);
    json_decref(tools);
}

Test(reply_parser, without_tools_a_call_is_text)
{
    struct reply_format f = format_named("hermes", "think");
    char *got = read_reply(&f, NULL, false, "<tool_call>{\"name\":\"f\"}</tool_call>");
    cr_expect_str_eq(got, "[C]<tool_call>{\"name\":\"f\"}</tool_call>");
    mem_free(got);
}

Test(reply_parser, arguments_leave_as_they_come)
{
    json_t *tools = json(tools_text);
    struct reply_format f = format_named("hermes", "think");
    struct heard h = {0};
    struct reply_parser p;
    const char *reply =
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"a long one\"}}</tool_call>";
    reply_parser_init(&p, &f, tools, false, hear, &h);
    size_t upto = (size_t)(strstr(reply, " long") - reply);
    give(&p, reply, upto);
    cr_expect_eq(h.n_calls, 1);
    cr_expect_str_eq(text_of(&h.calls[0].arguments), "{\"s\":\"a");
    give(&p, reply + upto, strlen(reply) - upto);
    cr_expect(h.calls[0].ended, "before the end of the text");
    reply_parser_finish(&p);
    reply_parser_deinit(&p);
    forget(&h);
    json_decref(tools);
}

Test(reply_parser, a_string_between_tags_leaves_as_it_comes)
{
    json_t *tools = json(tools_text);
    struct reply_format f = format_named("qwen3_coder", "none");
    struct heard h = {0};
    struct reply_parser p;
    const char *reply =
        "<tool_call>\n<function=f>\n<parameter=s>\n\n\"a\"\t\\\n\nb\n\n</parameter>\n</function>\n</tool_call>";
    reply_parser_init(&p, &f, tools, false, hear, &h);
    size_t upto = (size_t)(strstr(reply, "b\n\n") - reply) + 3;
    give(&p, reply, upto);
    cr_expect_str_eq(text_of(&h.calls[0].arguments), "{\"s\": \"\\n\\\"a\\\"\\u0009\\\\\\n\\nb\\n",
                     "%s", text_of(&h.calls[0].arguments));
    give(&p, reply + upto, strlen(reply) - upto);
    reply_parser_finish(&p);
    cr_expect(h.calls[0].ended);
    cr_expect_str_eq(text_of(&h.calls[0].arguments),
                     "{\"s\": \"\\n\\\"a\\\"\\u0009\\\\\\n\\nb\\n\"}", "%s",
                     text_of(&h.calls[0].arguments));
    reply_parser_deinit(&p);
    forget(&h);
    json_decref(tools);
}

Test(reply_parser, bounds_hold)
{
    json_t *tools = json(tools_text);
    struct reply_format f = format_named("hermes", "think");
    struct buf reply = {0};
    for (unsigned i = 0; i < LIMIT_TOOL_CALLS + 2; i++)
        buf_puts(&reply, "<tool_call>{\"name\":\"f\"}</tool_call>");
    struct heard h = {0};
    struct reply_parser p;
    reply_parser_init(&p, &f, tools, false, hear, &h);
    give(&p, reply.data, reply.len);
    reply_parser_finish(&p);
    cr_expect_eq(h.n_calls, LIMIT_TOOL_CALLS);
    cr_expect_eq(h.content.len, 2 * strlen("<tool_call>{\"name\":\"f\"}</tool_call>"), "%zu",
                 h.content.len);
    reply_parser_deinit(&p);
    forget(&h);
    /* A call that never ends is given back, all of it, and not kept beyond its bound. */
    buf_clear(&reply);
    buf_puts(&reply, "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"");
    for (unsigned i = 0; i < LIMIT_TOOL_CALL_BYTES + 1000; i++)
        buf_putc(&reply, 'x');
    reply_parser_init(&p, &f, tools, false, hear, &h);
    give(&p, reply.data, reply.len);
    cr_expect(h.calls[0].broken);
    reply_parser_finish(&p);
    cr_expect(h.content.len == reply.len && memcmp(h.content.data, reply.data, reply.len) == 0);
    reply_parser_deinit(&p);
    forget(&h);
    /* max_calls */
    reply_parser_init(&p, &f, tools, false, hear, &h);
    p.max_calls = 1;
    const char *two =
        "<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call>{\"name\":\"f\"}</tool_call> x";
    give(&p, two, strlen(two));
    reply_parser_finish(&p);
    cr_expect_eq(h.n_calls, 1);
    cr_expect_eq(h.content.len, 0);
    reply_parser_deinit(&p);
    forget(&h);
    buf_free(&reply);
    json_decref(tools);
}

/* ---- JSON ---- */

Test(json_scanner, agrees_with_a_parser)
{
    static const char *const texts[] = {"{}",
                                        "[]",
                                        "{\"a\":1}",
                                        "[1,2]",
                                        "[1,]",
                                        "{\"a\":}",
                                        "{,}",
                                        "{\"a\" 1}",
                                        "\"x\"",
                                        "\"\\u12g4\"",
                                        "\"\\ud83e\\udd8a\\n\"",
                                        "\"\\x\"",
                                        "true",
                                        "nul",
                                        "nulL",
                                        "0",
                                        "01",
                                        "-",
                                        "-0",
                                        "1.",
                                        "1.5",
                                        "1e",
                                        "1e+",
                                        "1e+5",
                                        "-1.5E-3",
                                        "[[[]]]",
                                        "[[]",
                                        "{\"a\":{\"b\":[true,false,null]}}",
                                        " { \"a\" : [ 1 , 2 ] } ",
                                        "\"a\nb\"",
                                        "{\"a\":1 \"b\":2}",
                                        "[1 2]",
                                        "]",
                                        "{\"a\":1]",
                                        "[\"a\",-1e3]",
                                        "{\"a\":0.1,\"b\":[-2]}",
                                        "[-]",
                                        "[1.e2]",
                                        "[1e5,0]",
                                        ".5",
                                        "+1"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct json_scanner s = {0};
        const char *t = texts[i];
        size_t n = strlen(t), at = 0;
        enum json_scan r = JSON_SCAN_MORE;
        for (; at < n && r == JSON_SCAN_MORE; at++)
            r = json_scanner_byte(&s, t[at]);
        bool whole = r == JSON_SCAN_DONE || (r == JSON_SCAN_MORE && json_scanner_may_end(&s));
        while (r == JSON_SCAN_DONE && at < n)
            whole &= t[at++] == ' ';
        json_error_t e;
        json_t *v = json_loads(t, JSON_DECODE_ANY, &e);
        cr_expect_eq(whole, v != NULL, "%s: scanner %d, parser %d", t, whole, v != NULL);
        json_decref(v);
    }
    char deep[LIMIT_JSON_DEPTH + 2];
    memset(deep, '[', sizeof deep);
    struct json_scanner s = {0};
    for (unsigned i = 0; i < LIMIT_JSON_DEPTH; i++)
        cr_expect_eq(json_scanner_byte(&s, deep[i]), JSON_SCAN_MORE);
    cr_expect_eq(json_scanner_byte(&s, '['), JSON_SCAN_BROKEN);
}

Test(json_scanner, a_strings_text_is_decoded)
{
    static const char *const texts[][2] = {
        {"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "a\"\\/\b\f\n\r\t"},
        {"\\u00e9\\ud83e\\udd8a\"", "\xc3\xa9\xf0\x9f\xa6\x8a"},
        {"\\ud83ex\\udd8a\"", "\xef\xbf\xbdx\xef\xbf\xbd"},
        {"\\ud83e\"", "\xef\xbf\xbd"},
        {"\\ud83e\\ud83e\\udd8a\"", "\xef\xbf\xbd\xf0\x9f\xa6\x8a"},
        {"\\ud83e\\n\"", "\xef\xbf\xbd\n"}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct json_text t = {0};
        struct buf out = {0};
        enum json_scan r = JSON_SCAN_MORE;
        for (const char *c = texts[i][0]; *c != '\0'; c++)
            r = json_text_byte(&t, *c, &out);
        cr_expect_eq(r, JSON_SCAN_DONE);
        cr_expect_str_eq(text_of(&out), texts[i][1]);
        buf_free(&out);
    }
}

/* ---- the families' own templates ---- */

static json_t *shared(const char *name)
{
    const char *root = getenv("MOESAIC_SHARED"), *require = getenv("MOESAIC_REQUIRE_SHARED");
    char path[4096];
    json_t *v = NULL;
    struct err why;
    snprintf(path, sizeof path, "%s/tokenizers/%s", root != NULL ? root : PROJECT_ROOT "/../shared",
             name);
    if (json_parse_file(path, 64u << 20, 64, &v, &why) != ERR_OK) {
        cr_assert(require == NULL || strcmp(require, "1") != 0, "%s", why.text);
        cr_skip_test("%s", why.text);
    }
    return v;
}

static const char *string_at(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s == NULL ? "" : s;
}

static const struct {
    const char *name, *tools, *reasoning;
    bool null_content, string_arguments, renders;
    int n_calls,
        n_reasoning; /* of messages(): so many with calls, so many with reasoning come back */
} families[] = {
    {"mixtral-8x7b-instruct-v0.1", "none", "none", false, false, false, 0, 0},
    {"mistral-large-v3-tools", "mistral", "none", false, false, true, 6, 0},
    {"mistral-nemo", "mistral", "none", false, false, true, 6, 0},
    {"llama-3", "none", "none", false, false, false, 0, 0},
    {"llama-3.1", "llama3_json", "none", false, false, true, 4, 0},
    {"deepseek-v3", "deepseek_v3", "none", true, true, true, 4, 0},
    {"deepseek-r1", "deepseek_v3", "think", true, true, true, 4, 0},
    {"deepseek-v3.1", "deepseek_v3", "think", false, false, true, 6, 0},
    {"qwen3", "hermes", "think", false, false, true, 6, 3},
    {"qwen2.5", "hermes", "none", false, false, true, 6, 0},
    {"qwen3-coder", "qwen3_coder", "none", false, false, true, 6, 0},
    {"gpt-oss", "harmony", "harmony", false, false, true, 3, 3},
    {"granite-3.0", "granite", "none", false, false, false, 0, 0},
    {"granite-3.3", "granite", "granite", false, false, false, 0, 0},
    {"granite-4.0", "hermes", "none", false, false, true, 6, 0},
    {"phi-3.5", "none", "none", false, false, false, 0, 0},
    {"olmoe-instruct", "none", "none", false, false, false, 0, 0},
    {"glm-4.5", "glm45", "think", false, false, true, 6, 3},
    {"glm-4.6", "glm45", "think", false, false, true, 6, 3},
    {"kimi-k2", "kimi_k2", "none", false, false, true, 6, 0},
    {"kimi-k2-instruct", "kimi_k2", "none", false, false, false, 0, 0},
    {"chatml", "none", "none", false, false, false, 0, 0},
};

/* Assistants' messages as OpenAI's clients send them. */
static const char *const messages_text[] = {
    "{\"role\":\"assistant\",\"content\":\"Just \\\"text\\\",\\n\\n in two parts <b>.\"}",
    "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"s\\\": \\\"Zu\\u0308rich \\\\\\\"x\\\\\\\" \\\\\\\\ \xf0\x9f\xa6\x8a\\\", \\\"i\\\": -2, \\\"o\\\": {\\\"a\\\": [1, 2.5, true, null, \\\"z\\\"]}, \\\"t\\\": \\\"two\\\\nlines\\\"}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"{}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"Let me look.\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"s\\\": \\\"x\\\", \\\"n\\\": \\\"12\\\"}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"s\\\": \\\"a\\\"}\"}},{\"id\":\"call00002\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"{}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"So many words.\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"b\\\": true, \\\"i\\\": 7}\"}},{\"id\":\"call00002\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"b\\\": false}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"2\",\"reasoning_content\":\"one and\\n\\none <is> two\"}",
    "{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"It needs the time.\",\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"{}\"}}]}",
    "{\"role\":\"assistant\",\"content\":\"Wait.\",\"reasoning_content\":\"Both.\"}",
};

static bool render(const struct chat_template *t, const struct reply_format *f,
                   const json_t *messages, const json_t *tools, bool prompt, struct buf *out)
{
    json_t *history = NULL, *offered = NULL;
    struct err why;
    cr_assert_eq(reply_format_history(f, messages, &history, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(reply_format_offered(f, tools, &offered, &why), ERR_OK, "%s", why.text);
    struct chat_template_input in = {.messages = history,
                                     .tools = offered,
                                     .add_generation_prompt = prompt,
                                     .now = {.tm_mday = 14, .tm_mon = 2, .tm_year = 126}};
    enum err_code rc = chat_template_render(t, &in, out, NULL, &why);
    json_decref(history);
    json_decref(offered);
    return rc == ERR_OK;
}

/* The text up to what ends a turn. */
static void cut_end(struct buf *reply)
{
    static const char *const ends[] = {
        "<|im_end|>",      "</s>",
        "<|eot_id|>",      "<" BAR "end" LOW "of" LOW "sentence" BAR ">",
        "<|end_of_text|>", "<|call|>",
        "<|return|>",      "<|endoftext|>",
        "<|end|>",         "|||IP_ADDRESS|||"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        while (reply->len > 0 && reply->data[reply->len - 1] == '\n')
            reply->data[--reply->len] = '\0';
        size_t n = strlen(ends[i]);
        if (reply->len >= n && memcmp(reply->data + reply->len - n, ends[i], n) == 0)
            reply->data[reply->len -= n] = '\0';
    }
}

static void expect_message(const char *family, const json_t *message, const struct heard *h,
                           bool with_content, bool with_reasoning)
{
    cr_expect_str_eq(text_of(&h->content), with_content ? string_at(message, "content") : "",
                     "%s: '%s'", family, text_of(&h->content));
    cr_expect_str_eq(text_of(&h->reasoning),
                     with_reasoning ? string_at(message, "reasoning_content") : "", "%s: '%s'",
                     family, text_of(&h->reasoning));
    const json_t *calls = json_object_get(message, "tool_calls");
    cr_assert_eq(h->n_calls, json_array_size(calls), "%s: %u calls", family, h->n_calls);
    for (uint32_t i = 0; i < h->n_calls; i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        cr_expect(h->calls[i].ended);
        cr_expect_str_eq(text_of(&h->calls[i].name), string_at(function, "name"), "%s", family);
        json_t *want = json(string_at(function, "arguments")),
               *got = json(text_of(&h->calls[i].arguments));
        cr_expect(json_equal(want, got), "%s: %s is not %s", family,
                  text_of(&h->calls[i].arguments), string_at(function, "arguments"));
        json_decref(want);
        json_decref(got);
    }
}

/* One message through a family's template and back. Answers 0: the template cannot show it; else bit 1: calls, 2: reasoning. */
static int there_and_back(const char *family, const struct chat_template *t,
                          const struct reply_format *f, const json_t *tools,
                          const char *message_text)
{
    json_t *message = json(message_text),
           *messages = json("[{\"role\":\"user\",\"content\":\"Go\"}]");
    struct buf prompt = {0}, all = {0}, reply = {0};
    int shown = 0;
    const json_t *offered = f->tools != NULL ? tools : NULL;
    cr_assert(render(t, f, messages, offered, true, &prompt), "%s refuses a prompt", family);
    json_array_append(messages, message);
    bool calls = json_array_size(json_object_get(message, "tool_calls")) > 0;
    if (calls && (f->tools == NULL || !f->renders_calls)) goto done;
    if (!render(t, f, messages, offered, false, &all)) goto done;
    bool thinking = reply_format_opens_reasoning(f, prompt.data, prompt.len);
    size_t n = prompt.len;
    if (all.len < n || memcmp(all.data, prompt.data, n) != 0) {
        /* R1's prompt opens the reasoning, which its history does not have. */
        cr_assert(thinking, "%s: the history does not go on as the prompt does: %s", family,
                  all.data);
        n -= strlen("<think>\n");
        cr_assert_eq(memcmp(all.data, prompt.data, n), 0);
        buf_puts(&reply, "</think>\n\n");
    }
    buf_append(&reply, all.data + n, all.len - n);
    cut_end(&reply);
    /* Mixtral's kind of decoder drops the first space of a text. */
    if (strncmp(family, "mi", 2) == 0 && reply.data[0] == ' ') buf_consume(&reply, 1);
    const char *content = string_at(message, "content"),
               *reasoning = string_at(message, "reasoning_content");
    bool with_content = strstr(reply.data, content) != NULL,
         with_reasoning = reasoning[0] != '\0' && strstr(reply.data, reasoning) != NULL;
    /* gpt-oss's shows only the first call, and content beside one as reasoning. */
    bool other = content[0] != '\0' || json_array_size(json_object_get(message, "tool_calls")) > 1;
    if (f->tools == &reply_harmony && calls && other) goto done;
    if (calls && strstr(reply.data, "now") == NULL && strstr(reply.data, "f") == NULL) goto done;
    if (calls && f->null_content && content[0] != '\0')
        goto done; /* V3 and R1 leave the calls out */
    for (int tokens = 0; tokens < 2; tokens++) {
        struct reply_format as = *f;
        if (tokens != 0) as.special_tools = 0xff;
        for (size_t cut = 0; cut <= reply.len; cut++) {
            struct heard h = {0};
            struct reply_parser p;
            reply_parser_init(&p, &as, offered, thinking, hear, &h);
            if (!cuts_token(&p, reply.data, reply.len, cut)) {
                give(&p, reply.data, cut);
                give(&p, reply.data + cut, reply.len - cut);
                reply_parser_finish(&p);
                cr_assert(!p.failed);
                expect_message(family, message, &h, with_content, with_reasoning);
            }
            reply_parser_deinit(&p);
            forget(&h);
        }
    }
    shown = (calls ? 1 : 0) | (with_reasoning ? 2 : 0) | 4;
done:
    json_decref(message);
    json_decref(messages);
    buf_free(&prompt);
    buf_free(&all);
    buf_free(&reply);
    return shown;
}

Test(reply_parser, what_a_familys_template_writes_is_read_back, .timeout = 120)
{
    json_t *templates = shared("templates.json"), *tools = json(tools_text);
    size_t n_found = 0;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        for (size_t k = 0; k < json_array_size(templates); k++) {
            const json_t *row = json_array_get(templates, k),
                         *source = json_object_get(row, "template");
            if (strcmp(string_at(row, "name"), families[i].name) != 0) continue;
            n_found++;
            const struct chat_template_token tokens[] = {
                {"bos_token", string_at(row, "bos_token")},
                {"eos_token", string_at(row, "eos_token")}};
            struct chat_template *t = NULL;
            struct reply_format f;
            struct err why;
            cr_assert_eq(chat_template_parse_with_tokens(json_string_value(source),
                                                         json_string_length(source), tokens, 2, &t,
                                                         &why),
                         ERR_OK, "%s", why.text);
            cr_assert_eq(reply_format_find(t, NULL, NULL, NULL, &f, &why), ERR_OK, "%s", why.text);
            cr_expect_str_eq(reply_format_tools_name(&f), families[i].tools, "%s",
                             families[i].name);
            cr_expect_str_eq(reply_format_reasoning_name(&f), families[i].reasoning, "%s",
                             families[i].name);
            cr_expect(f.null_content == families[i].null_content &&
                          f.string_arguments == families[i].string_arguments &&
                          f.renders_calls == families[i].renders,
                      "%s: null %d, string %d, renders %d", families[i].name, f.null_content,
                      f.string_arguments, f.renders_calls);
            int n_calls = 0, n_reasoning = 0, n_any = 0;
            for (size_t m = 0; m < sizeof messages_text / sizeof messages_text[0]; m++) {
                int shown = there_and_back(families[i].name, t, &f, tools, messages_text[m]);
                n_calls += shown & 1;
                n_reasoning += shown >> 1 & 1;
                n_any += shown >> 2 & 1;
            }
            cr_expect_eq(n_calls, families[i].n_calls, "%s: %d messages with calls",
                         families[i].name, n_calls);
            cr_expect_eq(n_reasoning, families[i].n_reasoning, "%s: %d messages with reasoning",
                         families[i].name, n_reasoning);
            cr_expect_geq(n_any, 1);
            chat_template_close(t);
        }
    cr_expect_eq(n_found, sizeof families / sizeof families[0]);
    json_decref(templates);
    json_decref(tools);
}

Test(reply_parser, llamas_built_in_tools_are_read_back)
{
    json_t *
        templates = shared("templates.json"),
       *tools = json(tools_text), *variables = json("{\"builtin_tools\": [\"f\"]}"),
       *messages = json(
           "[{\"role\":\"user\",\"content\":\"Go\"},{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"function\":"
           "{\"name\":\"f\",\"arguments\":{\"s\":\"Z\u00fcrich 'now'\",\"t\":\"12\"}}}]}]");
    for (size_t k = 0; k < json_array_size(templates); k++) {
        const json_t *row = json_array_get(templates, k),
                     *source = json_object_get(row, "template");
        if (strcmp(string_at(row, "name"), "llama-3.1") != 0) continue;
        struct chat_template *t = NULL;
        struct reply_format f;
        struct err why;
        struct buf all = {0};
        cr_assert_eq(
            chat_template_parse(json_string_value(source), json_string_length(source), &t, &why),
            ERR_OK);
        cr_assert_eq(reply_format_find(t, NULL, NULL, NULL, &f, &why), ERR_OK);
        struct chat_template_input in = {
            .messages = messages, .tools = tools, .variables = variables};
        in.now = (struct tm){.tm_mday = 1, .tm_year = 126};
        cr_assert_eq(chat_template_render(t, &in, &all, NULL, &why), ERR_OK, "%s", why.text);
        char *reply = strstr(all.data, "<|python_tag|>"), *end = strstr(all.data, "<|eom_id|>");
        cr_assert(reply != NULL && end != NULL, "%s", all.data);
        *end = '\0';
        char *got = read_reply(&f, tools, false, reply);
        cr_expect_str_eq(got, "[call]f{\"s\": \"Z\xc3\xbcrich 'now'\", \"t\": \"12\"}");
        mem_free(got);
        buf_free(&all);
        chat_template_close(t);
    }
    json_decref(templates);
    json_decref(tools);
    json_decref(variables);
    json_decref(messages);
}

Test(reply_format, parsers_are_chosen_by_name_or_refused)
{
    struct reply_format f;
    struct err why;
    cr_expect_eq(reply_format_detect("<|channel|>", 11, "auto", NULL, &f, &why), ERR_OK);
    cr_expect_str_eq(reply_format_tools_name(&f), "harmony");
    cr_expect_eq(reply_format_detect("<tool_call>", 11, "none", "think", &f, &why), ERR_OK);
    cr_expect_str_eq(reply_format_tools_name(&f), "none");
    cr_expect_str_eq(reply_format_reasoning_name(&f), "think");
    cr_expect_eq(reply_format_detect("", 0, "pythonic", NULL, &f, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "'pythonic'") != NULL && strstr(why.text, "hermes") != NULL, "%s",
              why.text);
    cr_expect_eq(reply_format_detect("", 0, NULL, "x", &f, &why), ERR_INVALID);
    cr_expect_eq(reply_format_detect("", 0, "hermes", "harmony", &f, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "go together") != NULL, "%s", why.text);
}

Test(reply_format, history_takes_the_templates_shape)
{
    struct reply_format f = format_named("hermes", "think");
    json_t *
        messages = json(
           "[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"r\","
           "\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}},"
           "{\"id\":\"2\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}]"),
       *out = NULL;
    struct err why;
    cr_assert_eq(reply_format_history(&f, messages, &out, &why), ERR_OK);
    char *text = json_to_text(out);
    cr_expect_str_eq(
        text,
        "[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"r\","
        "\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}},"
        "{\"id\":\"2\",\"function\":{\"name\":\"f\",\"arguments\":{}}}]}]");
    mem_free(text);
    json_decref(out);
    json_decref(messages);
    /* DeepSeek V3's and harmony's */
    f.null_content = f.string_arguments = true;
    f.reasoning_key = "thinking";
    messages = json(
        "[{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"r\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}]},"
        "{\"role\":\"assistant\",\"content\":\"c\",\"reasoning_content\":\"r\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"x\"}}]}]");
    cr_assert_eq(reply_format_history(&f, messages, &out, &why), ERR_OK);
    text = json_to_text(out);
    cr_expect_str_eq(
        text,
        "[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}}],\"thinking\":\"r\"},"
        "{\"role\":\"assistant\",\"content\":\"c\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"x\"}}]}]",
        "%s", text);
    mem_free(text);
    json_decref(out);
    f.string_arguments = false;
    cr_expect_eq(reply_format_history(&f, messages, &out, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "messages[1].tool_calls[0]") != NULL, "%s", why.text);
    json_decref(messages);
}

Test(reply_format, a_prompt_may_end_inside_the_reasoning)
{
    struct reply_format f = format_named("none", "think");
    cr_expect(reply_format_opens_reasoning(&f, "<a><think>\n", 11));
    cr_expect(!reply_format_opens_reasoning(&f, "<think>\n\n</think>\n\n", 19));
    cr_expect(!reply_format_opens_reasoning(&f, "think>", 6));
    f = format_named("harmony", "harmony");
    cr_expect(!reply_format_opens_reasoning(&f, "<think>", 7));
}
