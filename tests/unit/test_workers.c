/* The parallel-for pool: each task once, whatever the number of threads, runs back to back. */
// links: sys
// threads: yes
#include <criterion/criterion.h>
#include <stdatomic.h>

#include "common/sys/mailbox.h"
#include "common/sys/workers.h"

struct tally {
    _Atomic unsigned hits[1000];
};

static void hit(void *ctx, uint32_t task, unsigned worker)
{
    struct tally *t = ctx;
    (void)worker;
    atomic_fetch_add(&t->hits[task], 1);
}

static void count(void *ctx)
{
    ++*(unsigned *)ctx;
}

static void run_many(unsigned threads, uint32_t spin_us)
{
    struct workers *w;
    struct err why;
    cr_assert_eq(workers_open(threads, spin_us, &w, &why), ERR_OK);
    cr_expect_eq(workers_count(w), threads);
    static struct tally t;
    t = (struct tally){0};
    for (unsigned round = 1; round <= 300; round++) {
        uint32_t n = 1 + round * 37 % 1000;
        unsigned before = atomic_load(&t.hits[n - 1]);
        workers_run(w, n, hit, &t);
        cr_assert_eq(atomic_load(&t.hits[n - 1]), before + 1);
    }
    unsigned total = 0, expected = 0;
    for (unsigned i = 0; i < 1000; i++)
        total += t.hits[i];
    for (unsigned round = 1; round <= 300; round++)
        expected += 1 + round * 37 % 1000;
    cr_expect_eq(total, expected);
    workers_close(w);
}

Test(workers, each_task_runs_once)
{
    run_many(1, 0);
    run_many(2, 0);
    run_many(4, 50);
}

static void slow(void *ctx, uint32_t task, unsigned worker)
{
    (void)ctx;
    (void)task;
    (void)worker;
    for (volatile int i = 0; i < 200000; i++) {
    }
}

Test(workers, the_leader_pumps_between_tasks)
{
    struct workers *w;
    struct err why;
    unsigned pumped = 0;
    cr_assert_eq(workers_open(1, 0, &w, &why), ERR_OK);
    workers_set_pump(w, count, &pumped);
    workers_run(w, 20, slow, NULL);
    cr_expect_gt(pumped, 0);
    workers_close(w);
}

Test(mailbox, keeps_the_order_and_says_when_to_wake)
{
    struct mailbox b;
    struct mail m[3];
    mailbox_init(&b);
    cr_expect(mailbox_post(&b, &m[0]));
    cr_expect_not(mailbox_post(&b, &m[1]));
    struct mail *first = mailbox_take_all(&b);
    cr_expect_eq(first, &m[0]);
    cr_expect_eq(first->next, &m[1]);
    cr_expect_null(first->next->next);
    cr_expect(mailbox_post(&b, &m[2]));
    mailbox_take_all(&b);
    mailbox_deinit(&b);
}
