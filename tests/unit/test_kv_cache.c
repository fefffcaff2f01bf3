/* Which KV blocks are whose. */
// links: engine
#include <criterion/criterion.h>

#include "common/base/mem.h"
#include "coordinator/engine/kv_cache.h"

Test(kv_cache, a_table_grows_as_far_as_blocks_go)
{
    struct kv_cache c;
    uint32_t a[4], b[4], n_a = 0, n_b = 0;
    cr_assert_eq(kv_cache_init(&c, 3, NULL), ERR_OK);
    cr_expect_eq(kv_cache_grow(&c, a, &n_a, 1), 1);
    cr_expect_eq(n_a, 1);
    cr_expect_eq(kv_cache_grow(&c, a, &n_a, 64), 64);
    cr_expect_eq(n_a, 1, "64 tokens need one block");
    cr_expect_eq(kv_cache_grow(&c, a, &n_a, 65), 65);
    cr_expect_eq(n_a, 2);
    cr_expect_eq(kv_cache_grow(&c, b, &n_b, 200), 64,
                 "one block is left, so 64 of the 200 tokens fit");
    cr_expect_eq(c.n_free, 0);
    uint32_t none;
    cr_expect_not(kv_cache_acquire(&c, &none));
    cr_expect(a[0] != a[1] && a[0] != b[0] && a[1] != b[0]);
    kv_cache_clear(&c, a, &n_a);
    cr_expect_eq(c.n_free, 2);
    cr_expect_eq(kv_cache_grow(&c, b, &n_b, 192), 192);
    kv_cache_clear(&c, b, &n_b);
    cr_expect_eq(c.n_free, 3);
    kv_cache_deinit(&c);
}

Test(kv_cache, a_shared_block_is_free_when_its_last_holder_lets_go)
{
    struct kv_cache c;
    uint32_t block;
    cr_assert_eq(kv_cache_init(&c, 1, NULL), ERR_OK);
    cr_assert(kv_cache_acquire(&c, &block));
    kv_cache_share(&c, block);
    kv_cache_release(&c, block);
    cr_expect_eq(c.n_free, 0);
    kv_cache_release(&c, block);
    cr_expect_eq(c.n_free, 1);
    kv_cache_deinit(&c);
}

Test(kv_cache, no_memory_is_an_error)
{
    for (uint64_t n = 1; n <= 2; n++) {
        struct kv_cache c;
        mem_fail_at(n);
        cr_expect_eq(kv_cache_init(&c, 3, NULL), ERR_EXHAUSTED);
        mem_fail_at(0);
    }
}
