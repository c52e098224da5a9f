/* test_sched_yield - the scheduler's rules of who starts with fewer ranks, is shrunk, grown or preempted, on
 * worlds small enough to follow by hand. */
#include "tests/unit/daemon/test_sched_rules.h"

/* --- 4: elastic jobs --- */

static void test_elastic_start(void **state)
{
    (void)state;
    begin(1, 8, 0);
    struct w_job *holder = on(waits(4, HOUR), 0, 4), *j = elastic(2, 8, 8, HOUR);
    plan(); /* 4 ranks for 2 h end as early as 8 after 1 h: not earlier */
    assert_starts("");
    assert_waits(j, SCHED_BUSY, HOUR, 1);
    holder->work += 4 * SECOND;
    plan();
    assert_starts("2:0*4");
    j->job.min_ranks = 5; /* fewer than it must have */
    plan();
    assert_starts("");
    j->job.min_ranks = 1; /* no estimate: at once */
    j->job.run_ms = j->work = -1;
    holder->work = 4 * MINUTE;
    plan();
    assert_starts("2:0*4");
    /* Fewer ranks run longer; they must not run into a promise. */
    begin(1, 8, 0);
    on(waits(6, HOUR), 0, 6);
    struct w_job *first = waits(7, 10 * HOUR);
    j = elastic(1, 8, 8, 10 * MINUTE); /* 80 rank-minutes: 2 ranks for 40 min */
    plan();
    assert_starts("3:0*2");
    j->work = 8 * 20 * MINUTE; /* 2 ranks for 80 min, 1 for 160: the one that is left beside the promise */
    plan();
    assert_starts("3:0*1");
    assert_waits(first, SCHED_BUSY, HOUR, 1);
    begin(2, 4, 0); /* more than the machine has: what it has */
    j = elastic(3, 20, 20, HOUR);
    plan();
    assert_starts("1:0*4,1*4");
}

static void test_shrink(void **state)
{
    (void)state;
    begin(1, 8, 0);
    struct w_job *v = on(elastic(2, 8, 8, 10 * HOUR), 0, 8), *j = waits(3, HOUR);
    plan();
    assert_yields("1>5 for 2"); /* what is needed, no more */
    assert_waits(j, SCHED_YIELD, w.set.restart_ms, 1);
    assert_text(
        j, "job 2 needs 3 ranks and 0 of 8 slots are free; job 1 has been asked to stop at a step boundary; "
           "it starts in about 60 s");
    v->job.priority = 1; /* not for a job of lower priority */
    plan();
    assert_yields("");
    v->job.priority = 0;
    v->can_yield = false;
    plan();
    assert_yields("");
    v->can_yield = true;
    v->started_ms = w.now - w.set.grace_ms + 1;
    plan();
    assert_yields("");
    v->started_ms = w.now - w.set.grace_ms;
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 7; /* not enough even so */
    plan();
    assert_yields("");
    j->job.min_ranks = 1; /* elastic among equals: takes no more than it leaves */
    plan();
    assert_yields("1>4 for 2");
    v->work = 8 * 30 * SECOND; /* ends before a restart pays */
    plan();
    assert_yields("");
    w.set.resize = false;
    v->work = 8 * 10 * (int64_t)HOUR;
    plan();
    assert_yields("");
}

static void test_shrunk_and_started(void **state)
{
    (void)state;
    begin(1, 8, 0);
    struct w_job *v = on(elastic(2, 8, 8, 10 * HOUR), 0, 8), *j = waits(3, HOUR);
    w_step(&w);
    assert_true(v->yield_end_ms > 0 && v->job.resize_to == 5);
    w_step(&w);
    assert_int_equal(w.last->n_yields, 0);
    w_advance(&w, INT64_MAX / 8);
    assert_int_equal(v->state, W_WAITS);
    w_step(&w);
    assert_true(v->state == W_RUNS && v->held == 5 && j->state == W_RUNS && v->job.resize_to == 0);
    w_advance(&w, INT64_MAX / 8); /* j ends; v grows again, for 9 h of it are left */
    assert_int_equal(j->state, W_DONE);
    w_step(&w);
    assert_yields("1>8 for 0");
    w_advance(&w, INT64_MAX / 8);
    w_step(&w);
    assert_true(v->state == W_RUNS && v->held == 8);
}

static void test_grow(void **state)
{
    (void)state;
    begin(2, 8, 0);
    struct w_job *v = on(elastic(1, 4, 12, HOUR), 0, 4);
    plan();
    assert_yields("1>12 for 0");
    v->started_ms = w.now - w.set.grow_ms + 1; /* hysteresis */
    plan();
    assert_yields("");
    v->started_ms = w.now - w.set.grow_ms;
    v->work = 4 * 80 * SECOND; /* 80 s, or 27 s and a restart of 60 */
    plan();
    assert_yields("");
    v->work = 4 * 100 * SECOND;
    plan();
    assert_yields("1>12 for 0");
    struct w_job *j = waits(1, HOUR); /* what starts now leaves less */
    plan();
    assert_starts("2:0*1");
    assert_yields("1>12 for 0");
    j->job.not_before_ms = w.now + HOUR; /* somebody waits */
    plan();
    assert_yields("");
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 17; /* in vain */
    plan();
    assert_yields("1>12 for 0");
    /* Two grow, the first in order first. */
    begin(2, 8, 0);
    on(elastic(1, 4, 8, HOUR), 0, 4);
    on(elastic(1, 4, 16, HOUR), 1, 4)->job.priority = 1;
    plan();
    assert_yields("2>12 for 0");
    w.set.resize = false;
    plan();
    assert_yields("");
}

/* --- 5: preemption --- */

static void test_preempt(void **state)
{
    (void)state;
    begin(2, 8, 0);
    struct w_job *a = on(waits(4, 9 * HOUR), 0, 4), *b = on(waits(4, 9 * HOUR), 0, 4);
    struct w_job *c = on(waits(8, 9 * HOUR), 1, 8), *j = waits(4, HOUR);
    plan();
    assert_yields(""); /* equals */
    j->job.priority = 1;
    plan();
    assert_yields("2>0 for 4");       /* one of four slots is enough; the younger */
    b->started_ms = w.now - 2 * HOUR; /* the less progressed */
    plan();
    assert_yields("1>0 for 4");
    a->n_preempted = 1; /* the less often preempted */
    plan();
    assert_yields("3>0 for 4");
    c->job.priority = 1; /* the lower priority */
    plan();
    assert_yields("2>0 for 4");
    assert_waits(j, SCHED_YIELD, w.set.restart_ms, 2);
    a->can_yield = b->can_yield = false;
    plan();
    assert_yields("");
    a->can_yield = b->can_yield = true;
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 8;
    plan();
    assert_yields("1>0 for 4 2>0 for 4");
    c->job.priority = 0; /* one is fewer than two */
    plan();
    assert_yields("3>0 for 4");
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 16;
    b->can_yield = false; /* two of three would not start it: none */
    plan();
    assert_yields("");
    b->can_yield = true;
    w.set.preempt = false;
    plan();
    assert_yields("");
}

static void test_preempt_spares_who_is_of_no_use(void **state)
{
    (void)state;
    begin(2, 8, 0);
    on(waits(4, 9 * HOUR), 0, 4);
    on(waits(4, 9 * HOUR), 0, 4);
    on(waits(4, 9 * HOUR), 1, 4)->can_yield = false;
    struct w_job *v = on(waits(4, 9 * HOUR), 1, 4), *j = waits(8, HOUR);
    v->job.priority = -1; /* preferred, and of no use where one node is wanted */
    j->job.priority = 1;
    j->job.nodes = 1;
    plan();
    assert_yields("1>0 for 5 2>0 for 5");
    j->job.nodes = 0; /* else one with the other */
    plan();
    assert_yields("2>0 for 5 4>0 for 5");
}

static void test_preempt_only_when_it_pays(void **state)
{
    (void)state;
    begin(1, 8, 0);
    struct w_job *a = on(waits(4, 50 * SECOND), 0, 4), *b = on(waits(4, 9 * HOUR), 0, 4), *j = waits(4, HOUR);
    j->job.priority = 5;
    plan(); /* it starts in 50 s anyway */
    assert_yields("");
    assert_waits(j, SCHED_BUSY, 50 * SECOND, 1);
    a->work = 4 * 70 * SECOND;
    b->started_ms = w.now - w.set.grace_ms + 1;
    plan();
    assert_yields("1>0 for 3");
    /* The slots would go to another that comes before it. */
    begin(1, 8, 0);
    on(waits(4, 9 * HOUR), 0, 4);
    struct w_job *stays = on(waits(4, HOUR), 0, 4);
    stays->can_yield = false;
    struct w_job *first = waits(8, HOUR);
    first->job.priority = 6;
    j = waits(4, 3 * HOUR);
    j->job.priority = 5;
    plan();
    assert_yields("");
    j->work = 4 * (int64_t)HOUR; /* ends when the other starts */
    plan();
    assert_yields("1>0 for 4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elastic_start),
        cmocka_unit_test(test_shrink),
        cmocka_unit_test(test_shrunk_and_started),
        cmocka_unit_test(test_grow),
        cmocka_unit_test(test_preempt),
        cmocka_unit_test(test_preempt_spares_who_is_of_no_use),
        cmocka_unit_test(test_preempt_only_when_it_pays),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    w_free(&w);
    return rc;
}
