/* The small things everything stands on. */
// links: base
#include <criterion/criterion.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"

Test(base, err_wrap_puts_the_outer_story_first)
{
    struct err why;
    cr_assert_eq(err_set(&why, ERR_CORRUPT, "ends %d bytes past the file", 7), ERR_CORRUPT);
    err_wrap(&why, ERR_CORRUPT, "open %s", "x");
    cr_expect_str_eq(why.text, "open x: ends 7 bytes past the file");
    cr_expect_eq(err_http_status(ERR_EXHAUSTED), 503);
    cr_expect(err_retriable(ERR_UNAVAILABLE));
}

Test(base, philox_equals_the_published_vectors)
{
    /* Known-answer tests of the Random123 distribution. */
    uint32_t out[4];
    rng_philox(0, (uint32_t[4]){0, 0, 0, 0}, out);
    cr_expect_arr_eq(out, ((uint32_t[4]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}), 16);
    rng_philox(UINT64_MAX, (uint32_t[4]){~0u, ~0u, ~0u, ~0u}, out);
    cr_expect_arr_eq(out, ((uint32_t[4]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}), 16);
}

Test(base, json_is_bounded_and_says_where)
{
    json_t *v;
    struct err why;
    char deep[200];
    memset(deep, '[', sizeof deep);
    cr_expect_eq(json_parse(deep, sizeof deep, 64, &v, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "64"));
    cr_expect_eq(json_parse("{\"a\":1,\"a\":2}", 13, 64, &v, &why), ERR_INVALID);
    cr_assert_eq(json_parse("\"]]]\\\"[\"", 8, 1, &v, &why), ERR_OK);
    json_decref(v);
}

Test(base, utf8_replaces_each_maximal_subpart)
{
    const char bad[] = "\xE2\x28\xF0\x9F\x98z\xED\xA0\x80";
    struct buf b = {0};
    for (size_t i = 0; i < sizeof bad - 1;) {
        uint32_t cp;
        i += utf8_decode(bad + i, sizeof bad - 1 - i, &cp);
        buf_put_utf8(&b, cp);
    }
    cr_expect_str_eq(b.data, "\uFFFD(\uFFFDz\uFFFD\uFFFD\uFFFD");
    cr_expect_not(utf8_valid(bad, sizeof bad - 1));
    cr_expect(utf8_valid("a\uFFFD\U0001F600", 8));
    buf_free(&b);
}

Test(base, a_failed_allocation_sticks_in_the_buffer)
{
    struct buf b = {0};
    mem_fail_at(1);
    buf_puts(&b, "abc");
    mem_fail_at(0);
    buf_puts(&b, "def");
    cr_expect(b.failed);
    cr_expect_null(buf_take(&b, NULL));
}
