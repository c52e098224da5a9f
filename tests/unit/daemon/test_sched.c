/* test_sched - the scheduler's rules one by one, on worlds small enough to follow by hand: order, gangs,
 * backfill, nodes, sentences. */
#include "tests/unit/daemon/test_sched_rules.h"

#include <math.h>

/* --- 1: the order --- */

static void test_order(void **state)
{
    (void)state;
    begin(1, 1, 0);
    w.n_users = 2;
    w.users[0] = (struct sched_user){100, 1};
    w.users[1] = (struct sched_user){150, 2}; /* 75 a share: less */
    struct w_job *a = waits(1, MINUTE), *b = waits(1, MINUTE), *c = waits(1, MINUTE), *d = waits(1, MINUTE);
    struct w_job *e = waits(1, MINUTE);
    b->job.priority = 1;
    c->job.user = d->job.user = 1;
    d->job.submitted_ms = w.now - 1;
    e->job.submitted_ms = w.now - 2;
    plan();
    const int64_t by_share[] = {b->job.id, d->job.id, c->job.id, e->job.id, a->job.id};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(w.last->verdicts[i].job, by_share[i]);
    assert_starts("2:0*1");
    e->job.queued_ms = w.now - w.set.age_share_ms; /* past fair share */
    plan();
    assert_int_equal(w.last->verdicts[1].job, e->job.id);
    e->job.queued_ms = w.now - 2 * w.set.age_priority_ms; /* a point: as b, and b has not waited */
    plan();
    assert_int_equal(w.last->verdicts[0].job, e->job.id);
    e->job.queued_ms = w.now - w.now % w.set.age_priority_ms; /* a period that is not full counts nothing */
    plan();
    assert_int_equal(w.last->verdicts[0].job, b->job.id);
}

static void test_order_of_two_does_not_swing(void **state)
{
    (void)state;
    begin(1, 1, 0);
    w.set.age_share_ms = HOUR;
    w.set.age_priority_ms = 2 * HOUR;
    for (int64_t lag = 1; lag < 6 * HOUR; lag += 7 * MINUTE) {
        struct sched_job a = {.id = 1, .priority = 1, .queued_ms = w.now + lag},
                         b = {.id = 2, .queued_ms = w.now};
        int changes = 0, before = 0;
        for (int64_t t = lag; t < 40 * HOUR; t += MINUTE) {
            struct sched_input in = {.now_ms = w.now + t, .settings = &w.set};
            int c = sched_compare(&in, &a, &b) < 0 ? 1 : -1;
            assert_int_equal(sched_compare(&in, &b, &a) < 0, c < 0);
            changes += before && c != before;
            before = c;
        }
        assert_true(changes <= 4);
    }
}

static void test_usage(void **state)
{
    (void)state;
    assert_true(fabs(sched_usage_at(80, 0, HOUR, HOUR) - 40) < 1e-9);
    assert_true(fabs(sched_usage_at(80, 3, 10 * SECOND, 0) - 110) < 1e-9);
    assert_true(sched_usage_at(80, 3, -5, HOUR) == 80);
    /* held for ever it tends to held h / ln 2 */
    assert_true(fabs(sched_usage_at(0, 2, 100 * (int64_t)HOUR, HOUR) - 2 * 3600 / log(2)) < 1e-6);
    double u = 7; /* many steps are one step */
    for (int i = 0; i < 1000; i++)
        u = sched_usage_at(u, 5, 7 * SECOND, HOUR);
    assert_true(fabs(u - sched_usage_at(7, 5, 7000 * SECOND, HOUR)) < 1e-6);
}

/* --- 2: gangs --- */

static void test_gangs(void **state)
{
    (void)state;
    begin(4, 8, 0);
    on(waits(5, HOUR), 0, 5); /* 3, 6, 8, 8 are free */
    on(waits(2, HOUR), 1, 2);
    struct w_job *j = waits(3, HOUR);
    plan();
    assert_starts("3:0*3"); /* tightest */
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 7;
    plan();
    assert_starts("3:2*7"); /* one node where one will do; the first of equals */
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 19;
    plan();
    assert_starts("3:0*3,2*8,3*8"); /* three nodes are the fewest; the rest goes where it fits best */
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 25;
    plan();
    assert_starts("3:0*3,1*6,2*8,3*8");
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 26; /* all or none */
    plan();
    assert_starts("");
    assert_waits(j, SCHED_BUSY, HOUR, 1);
}

static void test_number_of_nodes(void **state)
{
    (void)state;
    begin(4, 8, 0);
    on(waits(5, HOUR), 0, 5);
    on(waits(2, HOUR), 1, 2);
    struct w_job *j = waits(7, HOUR);
    j->job.nodes = 2;
    plan();
    assert_starts("3:0*3,1*4"); /* spread evenly over the tightest */
    j->job.nodes = 4;
    plan();
    assert_starts("3:0*2,1*2,2*2,3*1");
    j->job.nodes = 1;
    plan();
    assert_starts("3:2*7");
    j->job.ranks = j->job.min_ranks = j->job.max_ranks = 14;
    j->job.nodes = 2;
    plan();
    assert_starts("3:2*7,3*7");
    j->job.nodes = 4; /* 4, 4, 3, 3: node 0 has room for 3 */
    plan();
    assert_starts("3:0*3,1*4,2*4,3*3");
    j->job.nodes = 5;
    plan();
    assert_int_equal(verdict(j)->reason, SCHED_TOO_BIG);
    j->job.nodes = 15; /* more nodes than ranks */
    plan();
    assert_int_equal(verdict(j)->reason, SCHED_TOO_BIG);
}

static void test_gpus(void **state)
{
    (void)state;
    begin(3, 8, 4);
    w.nodes[2].gpus = 0;
    struct w_job *j = waits(3, HOUR);
    plan();
    assert_starts("1:2*3"); /* no GPUs wanted: where there are none */
    j->job.gpus_per_rank = 1;
    plan();
    assert_starts("1:0*3");
    j->job.gpus_per_rank = 2;
    plan();
    assert_starts("1:0*2,1*1");
    j->job.gpus_per_rank = 4;
    plan();
    assert_int_equal(verdict(j)->reason, SCHED_TOO_BIG);
    assert_text(
        j, "job 1 needs 3 ranks with 4 GPUs each, and all nodes together have room for 2: it can never start "
           "here");
    j->job.gpus_per_rank = 1;
    on(waits(2, HOUR), 0, 2)->job.gpus_per_rank = 2;
    plan();
    assert_starts("1:1*3");
}

/* --- 3: backfill --- */

static void test_backfill(void **state)
{
    (void)state;
    begin(1, 8, 0);
    on(waits(6, HOUR), 0, 6);
    struct w_job *big = waits(8, HOUR), *shorter = waits(1, HOUR), *longer = waits(1, HOUR + 1);
    plan();
    assert_starts("3:0*1"); /* ends when the big one starts */
    assert_waits(big, SCHED_BUSY, HOUR, 1);
    assert_waits(longer, SCHED_HELD, 2 * HOUR, 2);
    assert_int_equal(verdict(longer)->n_before, 1);
    assert_int_equal(w.last->slots_free, 1);
    assert_int_equal(verdict(shorter)->ranks, 1);
    /* Conservative: the second reservation holds, too. 7 of the big one's 8 slots would do for EASY. */
    begin(1, 8, 0);
    on(waits(6, HOUR), 0, 6);
    struct w_job *first = waits(7, HOUR), *second = waits(8, HOUR), *third = waits(1, 3 * HOUR);
    plan();
    assert_starts("");
    assert_waits(first, SCHED_BUSY, HOUR, 1);
    assert_waits(second, SCHED_BUSY, 2 * HOUR, 2);
    assert_waits(third, SCHED_HELD, 3 * HOUR, 3);
    /* Behind the depth nobody is promised anything, but still moves nobody who is. */
    w.set.max_reservations = 1;
    plan();
    assert_starts("4:0*1");
    assert_waits(second, SCHED_TOO_DEEP, -1, 0);
    third->work = third->job.ranks * 4 * (int64_t)HOUR;
    w.set.max_reservations = 2;
    plan();
    assert_starts("");
    assert_int_equal(w.last->n_reservations, 2);
}

static void test_unknown_run_times(void **state)
{
    (void)state;
    begin(1, 8, 0);
    on(waits(6, -1), 0, 6);
    struct w_job *big = waits(8, HOUR), *unknown = waits(1, -1), *known = waits(1, 100 * (int64_t)HOUR);
    plan();
    assert_starts(
        "4:0*1"); /* what is known ends before what is not; what is not may stand in the way for ever */
    assert_waits(big, SCHED_BUSY, -1, 1);
    assert_waits(unknown, SCHED_HELD, -1, 2);
    assert_true(known->state == W_WAITS);
    begin(1, 8, 0); /* nor where it would leave room once all have ended: nobody knows who ends first */
    for (int i = 0; i < 5; i++)
        on(waits(1, -1), 0, 1);
    waits(4, HOUR);
    waits(1, -1);
    waits(1, HOUR);
    plan();
    assert_starts("8:0*1");
    begin(2, 8, 0); /* where the one in front could not run, others may go for ever */
    w.nodes[0].gpus = 8;
    on(waits(6, -1), 0, 6)->job.gpus_per_rank = 1;
    big = waits(8, HOUR);
    big->job.gpus_per_rank = 1;
    unknown = waits(8, -1);
    plan();
    assert_starts("3:1*8");
    /* A reservation without an estimate lasts default_run_ms. */
    begin(1, 8, 0);
    on(waits(6, MINUTE), 0, 6);
    big = waits(8, -1);
    known = waits(8, HOUR);
    w.set.default_run_ms = 2 * HOUR;
    plan();
    assert_waits(big, SCHED_BUSY, MINUTE, 1);
    assert_waits(known, SCHED_BUSY, MINUTE + 2 * HOUR, 2);
}

static void test_back_off(void **state)
{
    (void)state;
    begin(1, 8, 0);
    struct w_job *j = waits(8, HOUR), *k = waits(2, MINUTE), *l = waits(2, 2 * MINUTE);
    j->job.not_before_ms = w.now + 90 * SECOND;
    plan();
    assert_starts("2:0*2"); /* it keeps its place: what is longer than its back-off does not start */
    assert_waits(j, SCHED_BACK_OFF, 90 * SECOND, 0);
    assert_waits(l, SCHED_HELD, 90 * SECOND + HOUR, 1);
    assert_text(
        j,
        "job 1 needs 8 ranks and is held back for a while after its last attempt; it starts in about 90 s");
    w.now += 90 * SECOND;
    k->state = W_DONE;
    plan();
    assert_starts("1:0*8");
}

/* --- 6: nodes that are not usable --- */

static void test_unusable_nodes(void **state)
{
    (void)state;
    begin(2, 8, 0);
    w.nodes[1].usable = false;
    struct w_job *left_alone = on(waits(4, HOUR), 1, 4), *j = waits(8, HOUR), *big = waits(9, HOUR);
    plan();
    assert_starts("2:0*8");
    assert_yields("");
    assert_int_equal(w.last->slots, 8);
    assert_int_equal(w.last->slots_free, 0);
    assert_waits(big, SCHED_UNUSABLE, -1, 0);
    assert_text(big, "job 3 needs 9 ranks, and the nodes in use have room for 8: node n1 is drained");
    j->state = W_DONE;
    big->job.priority = 9; /* to take what runs there away would start nobody */
    plan();
    assert_yields("");
    w.nodes[1].usable = true;
    w.set.preempt = false;
    plan();
    assert_starts("3:0*8,1*1");
    assert_int_equal(left_alone->state, W_RUNS);
    begin(1, 8, 0); /* more runs than the node has now */
    on(waits(4, HOUR), 0, 4);
    w.nodes[0].slots = 2;
    j = waits(2, HOUR);
    plan();
    assert_starts("");
    assert_waits(j, SCHED_BUSY, HOUR, 1);
    begin(0, 0, 0);
    waits(1, HOUR);
    assert_int_equal(plan()->verdicts[0].reason, SCHED_TOO_BIG);
}

/* --- sentences --- */

static void test_sentences(void **state)
{
    (void)state;
    begin(2, 8, 0);
    struct w_job *a = on(waits(8, 12 * MINUTE), 0, 8), *b = on(waits(6, 3 * HOUR), 1, 6);
    a->job.run_measured = true;
    struct w_job *j = waits(8, HOUR), *k = waits(3, 5 * HOUR), *l = waits(9, HOUR), *m = waits(1, MINUTE);
    plan();
    assert_text(j,
                "job 3 needs 8 ranks and 1 of 16 slots is free; it starts in about 12 min, when job 1 ends "
                "(estimate from its own step time)");
    assert_text(
        k, "job 4 needs 3 ranks and 1 of 16 slots is free; 1 job comes before it; it starts in about 72 min, "
           "when job 3 ends, which also waits");
    assert_text(
        l, "job 5 needs 9 ranks and 1 of 16 slots is free; 2 jobs come before it; it starts in about 3 h, "
           "when job 2 ends (estimate from its time limit)");
    assert_text(m, "job 6 starts now with 1 rank");
    b->job.run_ms = b->work = -1;
    j->state = W_DONE;
    k->job.ranks = k->job.min_ranks = k->job.max_ranks = 16;
    plan();
    assert_text(
        k,
        "job 4 needs 16 ranks and 1 of 16 slots is free; nobody knows when it starts: job 2 runs and has no "
        "estimate");
    w.set.max_reservations = 1;
    plan();
    assert_text(
        l,
        "job 5 needs 9 ranks and 1 of 16 slots is free; 1 job comes before it; there are estimates for those "
        "in front only");
    char small[16];
    sched_explain_text(w.last, verdict(l), &l->job, w.nodes, w.now, small, sizeof small);
    assert_string_equal(small, "job 5 needs 9 r");
    begin(1, 8, 4);
    a = on(waits(2, HOUR), 0, 2);
    a->job.gpus_per_rank = 1;
    j = waits(4, HOUR);
    j->job.gpus_per_rank = 1;
    k = waits(2, 2 * HOUR);
    k->job.gpus_per_rank = 1;
    plan();
    assert_text(k, "job 3 needs 2 ranks with 1 GPU each and 2 of 4 GPUs are free, but kept for job 2, which "
                   "comes before "
                   "it; it starts in about 2 h");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),           cmocka_unit_test(test_order_of_two_does_not_swing),
        cmocka_unit_test(test_usage),           cmocka_unit_test(test_gangs),
        cmocka_unit_test(test_number_of_nodes), cmocka_unit_test(test_gpus),
        cmocka_unit_test(test_backfill),        cmocka_unit_test(test_unknown_run_times),
        cmocka_unit_test(test_back_off),        cmocka_unit_test(test_unusable_nodes),
        cmocka_unit_test(test_sentences),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    w_free(&w);
    return rc;
}
