/* test_sched_queue - properties that must hold for every queue, on random ones; and the rules one by one. */
#include "daemon/sched_queue.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_JOBS = 24 };

static unsigned next_random(unsigned *seed)
{
    *seed = *seed * 1103515245u + 12345u;
    return *seed >> 16;
}

static size_t random_queue(unsigned *seed, struct sched_job q[MAX_JOBS])
{
    size_t n = next_random(seed) % (MAX_JOBS + 1);

    for (size_t i = 0; i < n; i++) {
        int64_t ranks = 1 + next_random(seed) % 6;
        q[i] = (struct sched_job){
            .id = (int64_t)i + 1,
            .priority = (int64_t)(next_random(seed) % 3) - 1,
            .n_ranks = ranks,
            .min_ranks = 1 + next_random(seed) % ranks,
        };
    }
    for (size_t i = n; i > 1; i--) { /* the order in which the queue is handed over must not matter */
        size_t k = next_random(seed) % i;
        struct sched_job swap = q[i - 1];
        q[i - 1] = q[k];
        q[k] = swap;
    }
    return n;
}

static const struct sched_job *job_of(const struct sched_job *q, size_t n, int64_t id)
{
    for (size_t i = 0; i < n; i++)
        if (q[i].id == id)
            return &q[i];
    return NULL;
}

static void check_plan(const struct sched_job *q, size_t n, struct sched_inventory inv,
                       const struct sched_placement *out, size_t n_out)
{
    int64_t used = 0;
    size_t placed = 0;

    for (size_t i = 0; i < n_out; i++) {
        const struct sched_job *job = job_of(q, n, out[i].id);
        assert_non_null(job);
        assert_true(out[i].n_ranks >= job->min_ranks && out[i].n_ranks <= job->n_ranks);
        assert_true(out[i].n_ranks == (job->n_ranks < inv.slots ? job->n_ranks : inv.slots));
        used += out[i].n_ranks;
    }
    assert_true(used <= inv.free);
    /* q is in order now: whoever can run at all is placed, up to the first that does not fit, and nobody
     * after it. */
    for (size_t i = 0; i < n; i++) {
        int64_t ranks = sched_ranks(&q[i], inv.slots);
        if (i)
            assert_true(sched_compare(&q[i - 1], &q[i]) < 0);
        if (!ranks)
            continue;
        if (placed < n_out && out[placed].id == q[i].id) {
            placed++;
            continue;
        }
        assert_int_equal(placed, n_out);
        assert_true(ranks > inv.free - used);
        break;
    }
    assert_int_equal(placed, n_out);
}

static void test_properties(void **state)
{
    unsigned seed = 42;

    (void)state;
    for (int run = 0; run < 20000; run++) {
        struct sched_job q[MAX_JOBS], again[MAX_JOBS];
        struct sched_placement out[MAX_JOBS], out2[MAX_JOBS];
        size_t n = random_queue(&seed, q);
        struct sched_inventory inv = {.slots = 1 + next_random(&seed) % 8};
        inv.free = next_random(&seed) % (inv.slots + 1);
        for (size_t i = 0; i < n; i++)
            again[i] = q[n - 1 - i];
        size_t n_out = sched_plan(q, n, inv, out), n_out2 = sched_plan(again, n, inv, out2);
        check_plan(q, n, inv, out, n_out);
        assert_int_equal(n_out, n_out2);
        assert_memory_equal(out, out2, n_out * sizeof *out);
    }
}

/* Time passes: jobs end, slots come back; nobody who can run waits for ever, and slots are never exceeded. */
static void test_nobody_starves(void **state)
{
    unsigned seed = 9;

    (void)state;
    for (int run = 0; run < 500; run++) {
        struct sched_job q[MAX_JOBS];
        struct sched_placement out[MAX_JOBS];
        size_t n = random_queue(&seed, q);
        struct sched_inventory inv = {.slots = 4, .free = 4};
        int64_t ends[MAX_JOBS + 1] = {0}, held[MAX_JOBS + 1] = {0};
        for (int tick = 0; tick < 1000; tick++) {
            for (size_t id = 1; id <= MAX_JOBS; id++)
                if (held[id] && ends[id] <= tick) {
                    inv.free += held[id];
                    held[id] = 0;
                }
            size_t n_out = sched_plan(q, n, inv, out);
            for (size_t i = 0; i < n_out; i++) {
                held[out[i].id] = out[i].n_ranks;
                ends[out[i].id] = tick + 1 + next_random(&seed) % 5;
                inv.free -= out[i].n_ranks;
                assert_true(inv.free >= 0);
                size_t k = (size_t)(job_of(q, n, out[i].id) - q);
                memmove(q + k, q + k + 1, (--n - k) * sizeof *q);
            }
        }
        for (size_t i = 0; i < n; i++)
            assert_true(q[i].min_ranks > inv.slots);
    }
}

static void test_rules(void **state)
{
    struct sched_placement out[4];

    (void)state;
    struct sched_job order[] = {{1, 0, 1, 1}, {2, 5, 1, 1}, {3, 5, 1, 1}, {4, -1, 1, 1}};
    assert_int_equal(sched_plan(order, 4, (struct sched_inventory){4, 4}, out), 4);
    assert_true(out[0].id == 2 && out[1].id == 3 && out[2].id == 1 && out[3].id == 4);
    struct sched_job big_first[] = {{1, 0, 3, 3}, {2, 0, 1, 1}}; /* the big one is not overtaken */
    assert_int_equal(sched_plan(big_first, 2, (struct sched_inventory){4, 2}, out), 0);
    struct sched_job elastic[] = {{1, 0, 8, 2}}; /* what exists is enough; what is free is waited for */
    assert_int_equal(sched_plan(elastic, 1, (struct sched_inventory){4, 3}, out), 0);
    assert_int_equal(sched_plan(elastic, 1, (struct sched_inventory){4, 4}, out), 1);
    assert_true(out[0].n_ranks == 4);
    struct sched_job never[] = {{1, 0, 8, 5}, {2, 0, 1, 1}}; /* who can never run holds nobody back */
    assert_int_equal(sched_plan(never, 2, (struct sched_inventory){4, 4}, out), 1);
    assert_true(out[0].id == 2);
    assert_int_equal(sched_plan(NULL, 0, (struct sched_inventory){4, 4}, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
