/* The reader of JSON: what it takes, what it refuses and why, and memory that runs out anywhere. */
// links: base
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"

static enum err_code parse(const char *text, json_t **out, struct err *why)
{
    /* An exact copy, so that the sanitizer sees a byte read behind it. */
    size_t n = strlen(text);
    char *exact = mem_alloc(n);
    cr_assert_not_null(exact);
    memcpy(exact, text, n);
    enum err_code rc = json_parse(exact, n, 4, out, why);
    mem_free(exact);
    return rc;
}

Test(json, values_are_read_as_they_were_written)
{
    static const struct {
        const char *text, *compact;
    } good[] = {
        {" null ", "null"},
        {"[true,false]", "[true,false]"},
        {"{\"b\" : 1 , \"a\" : [ ] , \"\":{}}", "{\"b\":1,\"a\":[],\"\":{}}"},
        {"\t[-0,7,-12]\r\n", "[0,7,-12]"},
        {"[9223372036854775807,-9223372036854775808]",
         "[9223372036854775807,-9223372036854775808]"},
        {"9223372036854775808", "9.2233720368547758e18"},
        {"[1.5,1e2,-2E-1,0.0]", "[1.5,100.0,-0.20000000000000001,0.0]"},
        {"\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\ud83d\\ude00\"",
         "\"a\\\"\\\\/\\b\\f\\n\\r\\tA\xC3\xA9\xF0\x9F\x98\x80\""},
        {"{\"k\\u0065y\":\"\\u0000x\"}", "{\"key\":\"\\u0000x\"}"},
        {"[[[[]]]]", "[[[[]]]]"},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        json_t *v = NULL;
        struct err why;
        cr_assert_eq(parse(good[i].text, &v, &why), ERR_OK, "%s: %s", good[i].text, why.text);
        char *text = json_to_text(v);
        cr_expect_str_eq(text, good[i].compact);
        mem_free(text);
        json_decref(v);
    }
}

Test(json, a_fault_is_named_with_its_place)
{
    static const struct {
        const char *text, *why;
    } faults[] = {
        {"", "line 1 column 1: a value is missing"},
        {"[1,\n 2,,3]", "line 2 column 4: a value is missing"},
        {"[1 2]", "',' or the end"},
        {"[1,]", "a value is missing"},
        {"[1", "',' or the end"},
        {"{\"a\" 1}", "':' is missing"},
        {"{a:1}", "a key must be a string"},
        {"{\"a\":1,}", "a key must be a string"},
        {"{\"a\":1,\"\\u0061\":2}", "a duplicate key"},
        {"{\"a\\u0000\":1}", "a NUL character in a key"},
        {"1 1", "more text behind the value"},
        {"nul", "a value is missing"},
        {"-", "a value is missing"},
        {"01", "a number begins with 0"},
        {"1.", "without digits after its point"},
        {"1e+", "without digits in its exponent"},
        {"1e999", "a number is too large"},
        {"NaN", "a value is missing"},
        {"\"a", "the text ends inside a string"},
        {"\"a\\", "an unknown escape"},
        {"\"\\x\"", "an unknown escape"},
        {"\"\\u12g4\"", "without four hexadecimal digits"},
        {"\"\\u12\"", "without four hexadecimal digits"},
        {"\"\\udc00\"", "half of a surrogate pair"},
        {"\"\\ud800x\"", "half of a surrogate pair"},
        {"\"\\ud800\\u0041\"", "half of a surrogate pair"},
        {"\"\n\"", "a control character"},
        {"\"\xC3\"", "invalid UTF-8"},
        {"\"\xED\xA0\x80\"", "invalid UTF-8"},
        {"[[[[[]]]]]", "nested deeper than 4 levels"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        json_t *v = NULL;
        struct err why;
        cr_expect_eq(parse(faults[i].text, &v, &why), ERR_INVALID, "%s", faults[i].text);
        cr_expect_null(v);
        cr_expect_not_null(strstr(why.text, faults[i].why), "%s: %s", faults[i].text, why.text);
    }
}

/* A number and a string that outgrow every small buffer, an escaped key, a table that grows. */
Test(json, memory_that_runs_out_is_said_wherever_it_does)
{
    static const char text[] =
        "{\"k\\u0065y\":[12345678901234567890123,\"a long string, longer than sixteen bytes\\n\",-1.25],"
        "\"a\":{},\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":[0,1,2,3,4,5,6,7,8,9]}";
    json_t *v = NULL;
    struct err why;
    cr_assert_eq(json_parse(text, sizeof text - 1, 8, &v, &why), ERR_OK, "%s", why.text);
    json_decref(v);
    mem_fail_at(UINT64_MAX);
    cr_assert_eq(json_parse(text, sizeof text - 1, 8, &v, &why), ERR_OK, "%s", why.text);
    uint64_t had = mem_fail_at(0);
    json_decref(v);
    cr_expect_gt(had, 30, "%llu", (unsigned long long)had);
    for (uint64_t n = 1; n <= had; n++) {
        mem_fail_at(n);
        enum err_code rc = json_parse(text, sizeof text - 1, 8, &v, &why);
        mem_fail_at(0);
        cr_expect_eq(rc, ERR_EXHAUSTED, "allocation %llu: %s", (unsigned long long)n, why.text);
    }
}
