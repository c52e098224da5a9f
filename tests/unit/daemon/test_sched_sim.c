/* test_sched_sim - plans one after another over virtual time: promises are kept, nobody starves, preemption
 * comes to rest, everything ends. */
#include "tests/unit/daemon/test_sched_world.h"

#include <stdio.h>

static void check_room(const struct world *w)
{
    for (size_t n = 0; n < w->n_nodes; n++) {
        int32_t slots = w->nodes[n].slots, gpus = w->nodes[n].gpus;
        for (size_t i = 0; i < w->n_jobs; i++)
            for (size_t k = 0; w->jobs[i].state == W_RUNS && k < w->jobs[i].n_pieces; k++)
                if (w->jobs[i].pieces[k].node == (int32_t)n) {
                    slots -= w->jobs[i].pieces[k].ranks;
                    gpus -= w->jobs[i].pieces[k].ranks * w->jobs[i].job.gpus_per_rank;
                }
        assert_true(slots >= 0 && gpus >= 0);
    }
}

static size_t count(const struct world *w, enum w_state s)
{
    size_t n = 0;

    for (size_t i = 0; i < w->n_jobs; i++)
        n += w->jobs[i].state == s;
    return n;
}

/* --- promises --- */

static struct sched_job rigid_job(uint64_t *seed, int64_t id, int64_t now)
{
    struct sched_job j = {.id = id,
                          .ranks = 1 + (int32_t)w_random(seed, w_random(seed, 3) ? 4 : 14),
                          .gpus_per_rank = w_random(seed, 2) ? 0 : 1,
                          .submitted_ms = now,
                          .queued_ms = now,
                          .run_ms = 1000 * (1 + (int64_t)w_random(seed, 4000))};

    if (!w_random(seed, 4) && j.ranks > 1)
        j.nodes = 1 + (int32_t)w_random(seed, j.ranks < 3 ? (uint32_t)j.ranks : 3);
    return j;
}

/* With exact estimates and nobody who comes before those that are there, a promised start never moves back:
 * whatever starts later in the order has delayed nobody. */
static void promises(struct world *w, uint64_t *seed)
{
    static int64_t promised[W_JOBS];
    size_t n = 40;

    w_init(w);
    w->set.age_priority_ms = w->set.age_share_ms = 0;
    w_nodes(w, 2 + w_random(seed, 4), 0, 0);
    for (size_t i = 0; i < w->n_nodes; i++) {
        w->nodes[i].slots = 2 + (int32_t)w_random(seed, 7);
        w->nodes[i].gpus = (int32_t)w_random(seed, 5);
    }
    memset(promised, 0, sizeof promised);
    int64_t next = w->now;
    for (int step = 0;; step++) {
        assert_true(step < 2000);
        while (w->n_jobs < n && next <= w->now) {
            w_add(w, rigid_job(seed, (int64_t)w->n_jobs + 1, w->now));
            next = w->now + 1000 * (int64_t)w_random(seed, 1500);
        }
        const struct sched_plan *p = w_step(w);
        check_room(w);
        for (size_t i = 0; i < p->n_verdicts; i++) {
            const struct sched_verdict *v = &p->verdicts[i];
            if (v->reason == SCHED_TOO_BIG)
                continue;
            assert_true(v->start_ms >= w->now);
            if (promised[v->job])
                assert_true(v->start_ms <= promised[v->job]);
            promised[v->job] = v->start_ms;
        }
        if (w->n_jobs == n && !count(w, W_RUNS))
            break;
        w_advance(w, w->n_jobs < n ? next : INT64_MAX / 8);
    }
    for (size_t i = 0; i < n; i++)
        assert_true(w->jobs[i].state == W_DONE || !promised[w->jobs[i].job.id]);
    w_free(w);
}

static void test_promises_are_kept(void **state)
{
    static struct world w;
    uint64_t seed = 5;

    (void)state;
    for (int run = 0; run < 4000; run++)
        promises(&w, &seed);
}

/* --- nobody starves --- */

struct stream {
    int64_t priority, run_ms, bound_ms;
    double usage;
    bool unknown, half, no_aging;
};

/* Every slot is taken by a job that runs for a while yet. */
static void fill(struct world *w, struct stream s, int64_t *id, uint64_t *seed)
{
    for (size_t n = 0; n < w->n_nodes; n++)
        for (int32_t k = 0; k < w->nodes[n].slots; k++) {
            struct w_job *j =
                w_add(w, (struct sched_job){.id = (*id)++,
                                            .user = 1,
                                            .ranks = 1,
                                            .run_ms = 1 + (int64_t)w_random(seed, (uint32_t)s.run_ms)});
            w_run(w, j, w->now - 1, &(struct sched_piece){(int32_t)n, 1}, 1);
        }
}

/* One job that wants all or half of what there is, from a user or of a priority that comes last, and an
 * endless stream of small jobs that ask for twice the machine. */
static bool starts_in_time(struct world *w, struct stream s, uint64_t *seed)
{
    int32_t slots = 4 + (int32_t)w_random(seed, 5);
    int64_t id = 2, bound, next;

    w_init(w);
    w_nodes(w, 1 + w_random(seed, 2), slots, 0);
    slots *= (int32_t)w->n_nodes;
    w->n_users = 2;
    w->users[0] = (struct sched_user){s.usage, 1};
    w->users[1] = (struct sched_user){0, 1};
    w->set.preempt = false;
    if (s.no_aging)
        w->set.age_share_ms = w->set.age_priority_ms = 0;
    next = w->now;
    bound = w->now + s.bound_ms;
    w_add(w, (struct sched_job){.id = 1,
                                .user = 0,
                                .ranks = s.half ? slots / 2 : slots,
                                .submitted_ms = w->now - 1,
                                .queued_ms = w->now - 1,
                                .run_ms = 1000});
    fill(w, s, &id, seed);
    for (; w->now <= bound && w->jobs[0].state == W_WAITS;) {
        while (next <= w->now) {
            /* The last that ended makes room, else the newest is not handed in: a queue of bounded length. */
            size_t at = 1;
            while (at < w->n_jobs && w->jobs[at].state != W_DONE)
                at++;
            next += s.run_ms / slots / 2 + 1;
            if (at == w->n_jobs && w->n_jobs >= 60)
                continue;
            size_t n = w->n_jobs;
            w_add(w, (struct sched_job){.id = id++,
                                        .priority = s.priority,
                                        .user = 1,
                                        .ranks = 1,
                                        .submitted_ms = w->now,
                                        .queued_ms = w->now,
                                        .run_ms = 1 + s.run_ms / 2 +
                                                  (int64_t)w_random(seed, (uint32_t)(s.run_ms / 2))});
            if (at < n) {
                w->jobs[at] = w->jobs[n];
                w->n_jobs--;
            }
        }
        struct sched_input in = w_input(w);
        for (size_t i = 0; i < in.n_waiting && s.unknown; i++)
            w->waiting[i].run_ms = -1;
        for (size_t i = 0; i < in.n_running && s.unknown; i++)
            w->running[i].job.run_ms = -1;
        struct sched_plan *p = sched_plan(&in);
        w_apply(w, p);
        w_keep(w, p);
        check_room(w);
        w_advance(w, next);
    }
    w_free(w);
    return w->jobs[0].state != W_WAITS;
}

static void test_nobody_starves(void **state)
{
    static struct world w;
    static const int64_t min = 60000, h = 3600000;
    const struct stream streams[] = {
        {.run_ms = 20 * min, .bound_ms = 12 * h + 21 * min, .usage = 1e9}, /* past fair share after 12 h */
        {.run_ms = 2 * h,
         .priority = 1,
         .bound_ms = 48 * h + 3 * h}, /* past a point of priority after 24 h */
        {.run_ms = 2 * h, .priority = 2, .bound_ms = 96 * h + 3 * h},
        {.run_ms = 30 * min, .unknown = true, .bound_ms = 31 * min}, /* first in line, nothing is known */
        {.run_ms = 30 * min, .unknown = true, .half = true, .bound_ms = 31 * min},
        {.run_ms = 20 * min, .unknown = true, .bound_ms = 12 * h + 21 * min, .usage = 1e9},
    };
    uint64_t seed = 11;

    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
        for (int run = 0; run < 8; run++)
            assert_true(starts_in_time(&w, streams[i], &seed));
    for (size_t i = 0; i < 3; i++) { /* it is aging that helps */
        struct stream s = streams[i];
        s.no_aging = true;
        assert_false(starts_in_time(&w, s, &seed));
    }
}

/* --- preemption and resizing come to rest --- */

/* A fixed set of jobs that never end, of several priorities, many elastic: after finitely many decisions
 * there are no more, however long one waits. */
static void comes_to_rest(struct world *w, uint64_t *seed, size_t *n_yields)
{
    size_t n = 4 + w_random(seed, 20), quiet = 0, decisions = 0;

    w_init(w);
    w->set.age_share_ms = w_random(seed, 2) ? 0 : 3600000;
    w->set.age_priority_ms = w_random(seed, 2) ? 0 : 7200000;
    w->set.max_yield_tries = 1 + (int32_t)w_random(seed, 10);
    w_nodes(w, 1 + w_random(seed, 4), 0, 0);
    for (size_t i = 0; i < w->n_nodes; i++) {
        w->nodes[i].slots = 2 + (int32_t)w_random(seed, 7);
        w->nodes[i].gpus = (int32_t)w_random(seed, 5);
    }
    w->n_users = 3;
    for (size_t i = 0; i < w->n_users; i++)
        w->users[i] = (struct sched_user){w_random(seed, 4) * 100.0, 1};
    bool unknown = w_random(seed, 2);
    for (int step = 0; step < 600 && quiet < 200; step++) {
        if (w->n_jobs < n && !w_random(seed, 2)) {
            int32_t ranks = 1 + (int32_t)w_random(seed, 6);
            struct sched_job j = {.id = (int64_t)w->n_jobs + 1,
                                  .priority = w_random(seed, 4),
                                  .user = (int32_t)w_random(seed, 3),
                                  .ranks = ranks,
                                  .gpus_per_rank = !w_random(seed, 3),
                                  .submitted_ms = w->now,
                                  .queued_ms = w->now,
                                  .run_ms = unknown ? -1 : INT64_C(100000000000)};
            if (w_random(seed, 2)) {
                j.min_ranks = 1 + (int32_t)w_random(seed, (uint32_t)ranks);
                j.max_ranks = ranks + (int32_t)w_random(seed, 4);
            }
            w_add(w, j);
        }
        const struct sched_plan *p = w_step(w);
        check_room(w);
        decisions += p->n_starts + p->n_yields;
        *n_yields += p->n_yields;
        quiet = p->n_starts + p->n_yields || w->n_jobs < n ? 0 : quiet + 1;
        w_advance(w, w->now + 1000 * (1 + (int64_t)w_random(seed, 600)));
    }
    assert_true(quiet == 200);
    assert_true(decisions <= 10 * n);
    w_free(w);
}

static void test_preemption_comes_to_rest(void **state)
{
    static struct world w;
    uint64_t seed = 21;
    size_t n_yields = 0;

    (void)state;
    for (int run = 0; run < 500; run++)
        comes_to_rest(&w, &seed, &n_yields);
    assert_true(n_yields > 1000);
}

/* --- everything together --- */

/* Arrivals, ends, back-off, drained nodes, wrong estimates: nothing is ever overcommitted, and when no more
 * comes, all that can run ends. */
static void live(struct world *w, uint64_t *seed)
{
    size_t n = 60, steps = 0;

    w_init(w);
    w_nodes(w, 2 + w_random(seed, 5), 0, 0);
    for (size_t i = 0; i < w->n_nodes; i++) {
        w->nodes[i].slots = 2 + (int32_t)w_random(seed, 7);
        w->nodes[i].gpus = (int32_t)w_random(seed, 5);
    }
    w->n_users = 3;
    for (size_t i = 0; i < w->n_users; i++)
        w->users[i] = (struct sched_user){0, 1 + w_random(seed, 2)};
    w->set.max_reservations = w_random(seed, 2) ? 256 : 3;
    for (;; steps++) {
        assert_true(steps < 5000);
        if (w->n_jobs < n) {
            struct sched_job j = rigid_job(seed, (int64_t)w->n_jobs + 1, w->now);
            j.priority = w_random(seed, 3);
            j.user = (int32_t)w_random(seed, 3);
            j.not_before_ms = w_random(seed, 4) ? 0 : w->now + 30000;
            if (!w_random(seed, 2)) {
                j.min_ranks = 1 + (int32_t)w_random(seed, (uint32_t)j.ranks);
                j.max_ranks = j.ranks + (int32_t)w_random(seed, 4);
            }
            w_add(w, j);
        }
        for (size_t i = 0; i < w->n_nodes; i++)
            w->nodes[i].usable = w->n_jobs == n || w_random(seed, 10) > 0;
        struct sched_input in = w_input(w);
        for (size_t i = 0; i < in.n_running; i++)
            if (!w_random(seed, 3))
                w->running[i].job.run_ms = w_random(seed, 2) ? -1 : w->running[i].job.run_ms / 2;
        struct sched_plan *p = sched_plan(&in);
        w_apply(w, p);
        w_keep(w, p);
        check_room(w);
        if (w->n_jobs == n && !count(w, W_RUNS))
            break;
        for (size_t i = 0; i < w->n_users; i++)
            w->users[i].usage = sched_usage_at(w->users[i].usage, w_random(seed, 8), 600000, 3600000);
        w_advance(w, w->now + 1000 * (1 + (int64_t)w_random(seed, 900)));
    }
    for (size_t i = 0; i < w->last->n_verdicts; i++)
        assert_true(w->last->verdicts[i].reason == SCHED_TOO_BIG ||
                    w->last->verdicts[i].reason == SCHED_STARTS);
    w_free(w);
}

static void test_lives(void **state)
{
    static struct world w;
    uint64_t seed = 31;

    (void)state;
    for (int run = 0; run < 300; run++)
        live(&w, &seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_promises_are_kept),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_preemption_comes_to_rest),
        cmocka_unit_test(test_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
