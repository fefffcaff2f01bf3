/* Chat templates: the reference's own results, Python's rules, taint, bounds, and damage of every kind. */
// links: text
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/chat_template.h"

static struct tm clock_of(const char *iso)
{
    struct tm t = {0};
    cr_assert_not_null(strptime(iso, "%Y-%m-%dT%H:%M:%S", &t));
    return t;
}

/* Render `source` over {"messages": .., variables..}; gives the text or "error: ..". */
static char *render(const char *source, const char *variables, struct buf *taint)
{
    struct chat_template *t = NULL;
    struct err why;
    struct buf out = {0};
    char *answer = NULL;
    json_t *v = NULL, *messages = json_array();
    cr_assert_eq(json_parse(variables, strlen(variables), 64, &v, &why), ERR_OK);
    struct chat_template_input in = {
        .messages = messages, .variables = v, .now = clock_of("2026-03-04T05:06:07")};
    enum err_code rc = chat_template_parse(source, strlen(source), &t, &why);
    if (rc == ERR_OK) rc = chat_template_render(t, &in, &out, taint, &why);
    if (rc != ERR_OK) {
        buf_clear(&out);
        buf_printf(&out, "error: %s", why.text);
    }
    answer = buf_take(&out, NULL);
    chat_template_close(t);
    json_decref(v);
    json_decref(messages);
    return answer;
}

static void expect(const char *source, const char *variables, const char *want)
{
    char *got = render(source, variables, NULL);
    cr_expect_str_eq(got, want, "%s\n  gave %s\n  want %s", source, got, want);
    mem_free(got);
}

/* want is a part of the failure's text. */
static void expect_error(const char *source, const char *variables, const char *want)
{
    char *got = render(source, variables, NULL);
    cr_expect(strncmp(got, "error: ", 7) == 0 && strstr(got, want) != NULL,
              "%s\n  gave %.200s\n  want %s", source, got, want);
    mem_free(got);
}

static json_t *shared(const char *name)
{
    char path[1024];
    const char *root = getenv("MOESAIC_SHARED");
    snprintf(path, sizeof path, "%s/tokenizers/%s", root != NULL ? root : PROJECT_ROOT "/../shared",
             name);
    json_t *v = NULL;
    struct err why;
    enum err_code rc = json_parse_file(path, 16u << 20, 64, &v, &why);
    if (rc == ERR_OK) return v;
    const char *must = getenv("MOESAIC_REQUIRE_SHARED");
    cr_assert_not(must != NULL && strcmp(must, "1") == 0, "%s", why.text);
    cr_skip_test("no shared fixtures: %s", why.text);
    return NULL;
}

static struct chat_template *parse_one(const json_t *file, size_t n)
{
    struct chat_template *t;
    struct err why;
    struct chat_template_token tokens[] = {
        {"bos_token", json_string_value(json_object_get(file, "bos_token"))},
        {"eos_token", json_string_value(json_object_get(file, "eos_token"))},
    };
    const char *source = json_string_value(json_object_get(file, "template"));
    if (n > strlen(source)) n = strlen(source);
    enum err_code rc = chat_template_parse_with_tokens(source, n, tokens, 2, &t, &why);
    return rc == ERR_OK ? t : NULL;
}

static struct chat_template_input input_of(const json_t *one, const json_t *test)
{
    const json_t *tools = json_object_get(test, "tools");
    return (struct chat_template_input){
        .messages = json_object_get(test, "messages"),
        .tools = json_is_null(tools) ? NULL : tools,
        .variables = json_object_get(test, "variables"),
        .add_generation_prompt = json_is_true(json_object_get(test, "add_generation_prompt")),
        .now = clock_of(json_string_value(json_object_get(one, "strftime_now"))),
    };
}

Test(chat_template, real_templates_render_as_the_reference)
{
    json_t *all = shared("chat_templates.json");
    size_t i, k, cases = 0, equal = 0;
    json_t *one, *test;
    json_array_foreach(all, i, one)
    {
        struct chat_template *t = parse_one(one, SIZE_MAX);
        cr_assert_not_null(t);
        json_array_foreach(json_object_get(one, "cases"), k, test)
        {
            struct chat_template_input in = input_of(one, test);
            struct buf out = {0}, taint = {0};
            struct err why = {0};
            const char *want = json_string_value(json_object_get(test, "rendered"));
            const char *error = json_string_value(json_object_get(test, "error"));
            const char *kind = json_string_value(json_object_get(test, "error_kind"));
            enum err_code rc = chat_template_render(t, &in, &out, &taint, &why);
            bool same = want != NULL ? rc == ERR_OK && strcmp(out.data, want) == 0
                        : strcmp(kind, "raise_exception") == 0
                            ? rc == ERR_INVALID && strcmp(why.text, error) == 0
                            : rc == ERR_INVALID;
            cr_expect(same, "%s: %s: %s", json_string_value(json_object_get(one, "name")),
                      json_string_value(json_object_get(test, "name")),
                      rc == ERR_OK ? out.data : why.text);
            cr_expect_eq(out.len, taint.len);
            cases++;
            equal += same;
            buf_free(&out);
            buf_free(&taint);
        }
        chat_template_close(t);
    }
    printf("%zu of %zu cases\n", equal, cases);
    cr_expect_eq(equal, cases);
    cr_expect_geq(cases, 500);
    json_decref(all);
}

Test(chat_template, expressions_follow_python)
{
    expect("{{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 7 / 2 }}", "{}",
           "-4 2 -2 1024 3.5");
    expect("{{ 1.0 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 123456.75 }}", "{}",
           "1.0 1e+16 0.30000000000000004 1e-05 123456.75");
    expect("{{ [1, 'a', none, true, 2.5, (1,), {'k': \"it's\"}] }}", "{}",
           "[1, 'a', None, True, 2.5, (1,), {'k': \"it's\"}]");
    expect("{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'b' in 'abc' }} {{ 4 not in [1] }}", "{}",
           "True False True True");
    expect("{{ 0 or 'x' }} {{ 1 and '' }}|{{ not x in y }}", "{\"x\": 1, \"y\": [2]}", "x |True");
    expect("{{ 'abcde'[1:] }} {{ 'abcde'[::-1] }} {{ [1,2,3][-2:] }} {{ 'h\u00e9llo'[1] }}", "{}",
           "bcde edcba [2, 3] \u00e9");
    expect("{{ 'ab' * 2 + 'c' }} {{ [1] * 3 }} {{ 1 ~ 'a' ~ none }}", "{}",
           "ababc [1, 1, 1] 1aNone");
    expect("{{ 'a' if 0 }}|{{ 'a' if 0 else 'b' }}|{{ a.b }}|{{ a == none }}",
           "{\"c\": 1, \"a\": {}}", "|b||False");
    expect_error("{{ a.b.c }}", "{\"a\": {}}", "undefined");
    expect_error("{{ 'a' + none }}", "{}", "can only concatenate");
    expect_error("{{ 9223372036854775807 + 1 }}", "{}", "64 bits");
    expect_error("{{ 1 // 0 }}", "{}", "zero");
    expect_error("{{ [1].append(2) }}", "{}", "append");
}

Test(chat_template, statements_scope_as_jinja)
{
    expect("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "{}", "1");
    expect(
        "{% set n = namespace(a=1) %}{% for i in [1, 2] %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}",
        "{}", "4");
    expect(
        "{% for i in range(9) if i % 2 %}{{ loop.index }}{{ i }}{% if loop.last %}!{% endif %}{% endfor %}",
        "{}", "11233547!");
    expect(
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "{}", "013");
    expect("{% for k, v in d.items() %}{{ k }}={{ v }};{% else %}none{% endfor %}",
           "{\"d\": {\"z\": 1, \"a\": 2}}", "z=1;a=2;");
    expect(
        "{% macro f(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{{ f(b=3, a=4) }}",
        "{}", "1x1243");
    expect("{% set x | upper %}a{{ 1 }}b{% endset %}{{ x }}{% generation %}g{% endgeneration %}",
           "{}", "A1Bg");
    expect("a\n  {% if true %}\nb\n  {%- endif %}\n  {{ 1 -}}\n c{# x #}\nd\n", "{}", "a\nb  1cd");
    expect("{% raw %}{{ x }}{% endraw %}{{ {'a': {}} }}", "{}", "{{ x }}{'a': {}}");
    expect("{{ strftime_now('%d %b %Y %H:%M %A %-d') }}", "{}", "04 Mar 2026 05:06 Wednesday 4");
    expect_error("{{ raise_exception('No ' ~ 'system') }}", "{}", "error: No system");
}

Test(chat_template, filters_and_tests_give_what_jinja_gives)
{
    expect(
        "{{ x|tojson }} {{ x|tojson(indent=2) }}",
        "{\"x\": {\"b\": [1, \"\u00e9<\\n\"], \"a\": {}}}",
        "{\"b\": [1, \"\u00e9<\\n\"], \"a\": {}} {\n  \"b\": [\n    1,\n    \"\u00e9<\\n\"\n  ],\n  \"a\": {}\n}");
    expect("{{ x|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
           "{\"x\": {\"b\": 1, \"a\": \"\U0001F600\"}}", "{\"a\":\"\\ud83d\\ude00\",\"b\":1}");
    expect(
        "{{ [3, 1, 2]|sort|join(',') }} {{ ['b', 'A']|sort|first }} {{ [1, 2]|sum }} {{ [1, 5]|max }}",
        "{}", "1,2,3 A 3 5");
    expect(
        "{{ l|map(attribute='r')|join }} {{ l|selectattr('r', 'equalto', 'u')|list|length }} {{ l|map('length')|list }}",
        "{\"l\": [{\"r\": \"u\"}, {\"r\": \"a\"}]}", "ua 1 [1, 1]");
    expect(
        "{{ '42.7'|int }} {{ 'x'|int(5) }} {{ 2.5|round }} {{ nix|default('d') }} {{ ''|d('e', true) }}",
        "{}", "42 5 2.0 d e");
    expect(
        "{{ ' a '|trim }}|{{ 'a-b c'|title }}|{{ 'ab'|replace('b', 'c') }}|{{ 'x\ny'|indent(2) }}",
        "{}", "a|A-B C|ac|x\n  y");
    expect(
        "{{ 'a b  c'.split() }} {{ ' a b '.split(none, 1) }} {{ 'a,b'.split(',', 1) }} {{ 'xxax'.strip('x') }} {{ {'a': 1}.get('b', 2) }}",
        "{}", "['a', 'b', 'c'] ['a', 'b '] ['a', 'b'] a 2");
    expect("{{ {'b': 1, 'a': 2}|dictsort }} {{ [1, 1, 2]|unique|list }} {{ [1, 2]|reverse|list }}",
           "{}", "[('a', 2), ('b', 1)] [1, 2] [2, 1]");
    expect(
        "{{ 3 is odd }} {{ 6 is divisibleby 3 }} {{ u is iterable }} {{ {} is sequence }} {{ 1 is not string }}",
        "{}", "True True True True True");
    expect_error("{{ x|nosuch }}", "{}", "'nosuch'");
    expect_error("{{ x is nosuch }}", "{}", "'nosuch'");
    expect_error("a\n{% include 'x' %}", "{}", "line 2");
    expect_error("{{ nosuch(1) }}", "{}", "'nosuch'");
}

/* Rendered with each byte of the request shown as '^' and each of the template as '.'. */
static void expect_taint(const char *source, const char *variables, const char *want_text,
                         const char *want)
{
    struct buf taint = {0};
    char *got = render(source, variables, &taint);
    for (size_t i = 0; i < taint.len; i++)
        taint.data[i] = taint.data[i] ? '^' : '.';
    cr_expect_str_eq(got, want_text);
    cr_expect_str_eq(taint.data, want, "%s -> %s %s", source, got, taint.data);
    mem_free(got);
    buf_free(&taint);
}

Test(chat_template, request_text_stays_marked_through_every_operation)
{
    const char *v = "{\"u\": \" <s>b \", \"d\": {\"k\": \"v\"}}";
    expect_taint("<s>{{ u }}</s>", v, "<s> <s>b </s>", "...^^^^^^....");
    expect_taint("{{ ('<s>' + u|trim + '!')[1:-1] }}", v, "s><s>b", "..^^^^");
    expect_taint("{{ u.replace('b', 'XY')|trim }}", v, "<s>XY", "^^^..");
    expect_taint("{{ ('a' ~ u.strip()).split('<')|join('-') }}", v, "a-s>b", "..^^^");
    expect_taint("{{ ('a' ~ u.strip())|upper }}{{ d }}", v, "A<S>B{'k': 'v'}", ".^^^^^^^^^^^^^^");
    expect_taint("{{ d|tojson }}{{ 'x'|tojson }}{{ d|length }}", v, "{\"k\": \"v\"}\"x\"1",
                 "^^^^^^^^^^....");
    expect_taint("{% macro m(x) %}[{{ x }}]{% endmacro %}{% set y = m(u|trim) %}{{ y[::-1] }}", v,
                 "]b>s<[", ".^^^^.");
    expect_taint("{% for k in d %}{{ k * 2 }}.{% endfor %}", v, "kk.", "^^.");
}

Test(chat_template, work_output_depth_and_memory_are_bounded)
{
    expect_error("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 "{}", "steps");
    expect_error("{{ range(10**9)|list }}", "{}", "Range too big");
    expect_error(
        "{% set n = namespace(s='xxxxxxxx') %}{% for a in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{}", "longer than");
    expect_error("{{ 'x' * 9223372036854775807 }}", "{}", "chat template");
    expect_error("{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "{}", "1048576");
    expect_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{}", "deeper");
    expect_error(
        "{% set n = namespace(l=[]) %}{% for a in range(3000) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
        "{}", "deeper");
    expect_error(
        "{% set n = namespace(l=[1]) %}{% for a in range(70) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l|tojson }}",
        "{}", "chat template");
    expect_error("{% set n = namespace() %}{% set n.a = n %}{{ n }}", "{}", "deeper");
    char deep[4000];
    for (size_t k = 0; k < 4; k++) {
        memset(deep, "([-{"[k], sizeof deep - 1);
        memcpy(deep, "{{", 2);
        deep[sizeof deep - 1] = '\0';
        expect_error(deep, "{}", "chat template");
    }
}

Test(chat_template, a_damaged_template_is_refused_or_rendered_but_never_harms)
{
    json_t *all = shared("chat_templates.json");
    const char *names[] = {"qwen3", "gpt-oss", "mistral-nemo", "kimi-k2-instruct"};
    uint32_t seed = 7;
    size_t i, renders = 0;
    json_t *one;
    json_array_foreach(all, i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        bool chosen = false;
        for (size_t k = 0; k < 4; k++)
            chosen |= strcmp(names[k], name) == 0;
        if (!chosen) continue;
        const char *source = json_string_value(json_object_get(one, "template"));
        size_t n = strlen(source);
        struct chat_template_input in =
            input_of(one, json_array_get(json_object_get(one, "cases"), 3));
        for (size_t cut = 0; cut<n; cut += n> 8000 ? 7 : 3) {
            struct chat_template *t = parse_one(one, cut);
            chat_template_close(t);
        }
        char *copy = mem_strdup(source);
        for (size_t round = 0; round < 300; round++) {
            size_t at[3];
            struct chat_template *t;
            struct err why;
            for (size_t k = 0; k < 3; k++) {
                seed = seed * 1664525u + 1013904223u;
                at[k] = (seed >> 8) % n;
                copy[at[k]] = k == 0 ? (char)(seed >> 24) : "{}%|()[]'\"-.:,\n"[(seed >> 24) % 15];
            }
            if (chat_template_parse(copy, n, &t, &why) == ERR_OK) {
                struct buf out = {0};
                (void)chat_template_render(t, &in, &out, NULL, &why);
                buf_free(&out);
                chat_template_close(t);
                renders++;
            }
            for (size_t k = 0; k < 3; k++)
                copy[at[k]] = source[at[k]];
        }
        mem_free(copy);
    }
    cr_expect_gt(renders, 50);
    json_decref(all);
}

Test(chat_template, every_failed_allocation_is_an_answer)
{
    static const char source[] =
        "{% macro m(a, b=[1]) %}{{ a|tojson(indent=1) }}{{ b }}{% endmacro %}"
        "{% set n = namespace(x='') %}{% for k, v in u.items() if k != 'q' %}{{ m(v) }}{% set n.x = n.x ~ k.upper() %}"
        "{% endfor %}{{ n.x.split('B')|join('-') }}{{ strftime_now('%Y') }}{% set z %}{{ n.x[::-1] }}{% endset %}{{ z }}"
        "{{ [2, 1]|sort }}{{ bos }}";
    struct err why;
    json_t *v = NULL, *messages = json_array();
    const char *text = "{\"u\": {\"ab\": [1, {\"c\": \"d\"}], \"bc\": \"x\"}}";
    cr_assert_eq(json_parse(text, strlen(text), 64, &v, &why), ERR_OK, "%s", why.text);
    struct chat_template_input in = {
        .messages = messages, .variables = v, .now = clock_of("2026-03-04T05:06:07")};
    bool done = false;
    for (uint64_t n = 1; !done && n < 1000; n++) {
        struct chat_template *t = NULL;
        struct buf out = {0}, taint = {0};
        mem_fail_at(n);
        enum err_code rc = chat_template_parse(source, sizeof source - 1, &t, &why);
        if (rc == ERR_OK) rc = chat_template_render(t, &in, &out, &taint, &why);
        mem_fail_at(0);
        cr_assert(rc == ERR_OK || rc == ERR_EXHAUSTED, "allocation %llu: %s", (unsigned long long)n,
                  why.text);
        if (rc != ERR_OK) cr_expect_eq(out.len, 0);
        done = rc == ERR_OK && n > 5;
        chat_template_close(t);
        buf_free(&out);
        buf_free(&taint);
    }
    cr_expect(done);
    json_decref(v);
    json_decref(messages);
}

static void put_file(const char *dir, const char *name, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fputs(text, f);
    fclose(f);
}

Test(chat_template, a_model_folder_gives_template_and_trusted_tokens)
{
    char dir[] = "/tmp/chat_template_XXXXXX", path[1024];
    cr_assert_not_null(mkdtemp(dir));
    struct chat_template *t;
    struct err why;
    cr_expect_eq(chat_template_open(dir, &t, &why), ERR_NOT_FOUND);
    put_file(
        dir, "tokenizer_config.json",
        "{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"</s>\", \"chat_template\": "
        "[{\"name\": \"tool_use\", \"template\": \"no\"}, {\"name\": \"default\", \"template\": "
        "\"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}\"}]}");
    json_t *messages = json_pack("[{s:s}]", "content", "hi");
    struct chat_template_input in = {.messages = messages, .now = {.tm_mday = 1}};
    const char *want[] = {"<s>hi</s>", "J</s>"}, *flags[] = {"\0\0\0\1\1\0\0\0\0", "\0\0\0\0\0"};
    for (int i = 0; i < 2; i++) {
        struct buf out = {0}, taint = {0};
        cr_assert_eq(chat_template_open(dir, &t, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(chat_template_render(t, &in, &out, &taint, &why), ERR_OK, "%s", why.text);
        cr_expect_str_eq(out.data, want[i]);
        cr_expect_eq(memcmp(taint.data, flags[i], taint.len), 0);
        chat_template_close(t);
        buf_free(&out);
        buf_free(&taint);
        put_file(dir, "chat_template.jinja", "J{{ eos_token }}\n");
    }
    /* With tools: the config's "tool_use", then the one of a file of its own. */
    snprintf(path, sizeof path, "%s/additional_chat_templates", dir);
    cr_assert_eq(mkdir(path, 0700), 0);
    json_t *tools = json_pack("[s]", "t");
    in.tools = tools;
    const char *with_tools[] = {"no", "own t"};
    for (int i = 0; i < 2; i++) {
        struct buf out = {0};
        cr_assert_eq(chat_template_open(dir, &t, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(chat_template_render(t, &in, &out, NULL, &why), ERR_OK, "%s", why.text);
        cr_expect_str_eq(out.data, with_tools[i]);
        chat_template_close(t);
        buf_free(&out);
        put_file(dir, "additional_chat_templates/tool_use.jinja", "own {{ tools[0] }}");
    }
    json_decref(tools);
    json_decref(messages);
    const char *files[] = {"additional_chat_templates/tool_use.jinja", "tokenizer_config.json",
                           "chat_template.jinja"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/additional_chat_templates", dir);
    rmdir(path);
    rmdir(dir);
}
