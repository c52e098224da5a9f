/* test_sched_props - what must hold of every plan, on thousands of random instances. */
#include "tests/unit/daemon/test_sched_world.h"

/* --- random instances --- */

static struct sched_job random_job(uint64_t *seed, int64_t id, int64_t now)
{
    int32_t ranks = 1 + (int32_t)w_random(seed, w_random(seed, 3) ? 4 : 12);
    struct sched_job j = {.id = id,
                          .priority = w_random(seed, 3),
                          .user = (int32_t)w_random(seed, 3),
                          .ranks = ranks,
                          .min_ranks = ranks,
                          .max_ranks = ranks,
                          .gpus_per_rank = w_random(seed, 2) ? 0 : (int32_t)w_random(seed, 3),
                          .submitted_ms = now - 1000 * (int64_t)w_random(seed, 100000),
                          .run_ms = w_random(seed, 4) ? 1000 * (1 + (int64_t)w_random(seed, 5000)) : -1};

    j.queued_ms = j.submitted_ms + (now - j.submitted_ms) / (1 + (int64_t)w_random(seed, 4));
    if (!w_random(seed, 3)) {
        j.min_ranks = 1 + (int32_t)w_random(seed, (uint32_t)ranks);
        j.max_ranks = ranks + (int32_t)w_random(seed, 5);
    }
    if (!w_random(seed, 4) && ranks > 1)
        j.nodes = 1 + (int32_t)w_random(seed, ranks < 4 ? (uint32_t)ranks : 4);
    if (!w_random(seed, 6))
        j.not_before_ms = now - 100000 + (int64_t)w_random(seed, 200000);
    return j;
}

static void free_of(const struct world *w, size_t node, int32_t *slots, int32_t *gpus)
{
    *slots = w->nodes[node].slots;
    *gpus = w->nodes[node].gpus;
    for (size_t i = 0; i < w->n_jobs; i++)
        for (size_t k = 0; w->jobs[i].state == W_RUNS && k < w->jobs[i].n_pieces; k++)
            if (w->jobs[i].pieces[k].node == (int32_t)node) {
                *slots -= w->jobs[i].pieces[k].ranks;
                *gpus -= w->jobs[i].pieces[k].ranks * w->jobs[i].job.gpus_per_rank;
            }
}

/* Runs the job somewhere, with any number of ranks, when there is room. */
static void run_anywhere(struct world *w, struct w_job *j, uint64_t *seed)
{
    int32_t want =
        j->job.min_ranks + (int32_t)w_random(seed, (uint32_t)(j->job.max_ranks - j->job.min_ranks) + 1);
    struct sched_piece pieces[W_NODES];
    size_t n = 0;

    j->job.nodes = 0;
    for (size_t node = 0; node < w->n_nodes && want; node++) {
        int32_t slots, gpus, g = j->job.gpus_per_rank;
        free_of(w, node, &slots, &gpus);
        int32_t room = g && gpus / g < slots ? gpus / g : slots;
        room = room < want ? room : want;
        if (room <= 0)
            continue;
        pieces[n++] = (struct sched_piece){(int32_t)node, room};
        want -= room;
    }
    if (want) {
        w->n_jobs--;
        return;
    }
    w_run(w, j, w->now - (int64_t)w_random(seed, 2000000), pieces, n);
    j->can_yield = w_random(seed, 4) > 0;
    j->n_preempted = (int32_t)w_random(seed, 3);
    if (!w_random(seed, 8))
        j->yield_end_ms = w->now + w->set.restart_ms;
}

static void random_world(struct world *w, uint64_t *seed)
{
    w_init(w);
    w->set.max_yield_tries = W_JOBS;
    w_nodes(w, 1 + w_random(seed, 6), 0, 0);
    for (size_t i = 0; i < w->n_nodes; i++) {
        w->nodes[i].slots = 1 + (int32_t)w_random(seed, 8);
        w->nodes[i].gpus = w_random(seed, 3) ? (int32_t)w_random(seed, 5) : 0;
    }
    w->n_users = 3;
    for (size_t i = 0; i < w->n_users; i++)
        w->users[i] = (struct sched_user){w_random(seed, 4) * 100.0, 1 + w_random(seed, 2)};
    if (!w_random(seed, 4))
        w->set.max_reservations = (int32_t)w_random(seed, 4); /* most are deeper */
    size_t n_run = w_random(seed, 10), n_wait = w_random(seed, 12);
    for (size_t i = 0; i < n_run; i++)
        run_anywhere(w, w_add(w, random_job(seed, (int64_t)i + 1, w->now)), seed);
    for (size_t i = 0; i < n_wait; i++)
        w_add(w, random_job(seed, 100 + (int64_t)i, w->now));
    for (size_t i = 0; i < w->n_nodes; i++)
        w->nodes[i].usable = w_random(seed, 8) > 0;
}

/* --- what must hold --- */

static void check_start(const struct world *w, const struct sched_start *s, const struct sched_job *job)
{
    int32_t sum = 0, least = INT32_MAX, most = 0;

    for (int32_t k = 0; k < s->n_pieces; k++) {
        const struct sched_piece *p = &s->pieces[k];
        assert_true(p->ranks > 0 && w->nodes[p->node].usable);
        assert_true(k == 0 || s->pieces[k - 1].node < p->node);
        sum += p->ranks;
        least = p->ranks < least ? p->ranks : least;
        most = p->ranks > most ? p->ranks : most;
    }
    assert_int_equal(sum, s->ranks);
    assert_true(sum >= job->min_ranks && sum <= (job->resize_to ? job->resize_to : job->ranks));
    assert_true(job->not_before_ms <= w->now);
    if (job->nodes)
        assert_true(s->n_pieces == job->nodes && most - least <= 1);
}

static void check_starts(struct world *w, const struct sched_plan *p)
{
    static struct world after;

    for (size_t i = 0; i < p->n_starts; i++)
        check_start(w, &p->starts[i], &w_find(w, p->starts[i].job)->job);
    after = *w;
    w_apply(&after, p);
    for (size_t n = 0; n < w->n_nodes; n++) {
        int32_t slots, gpus;
        free_of(&after, n, &slots, &gpus);
        assert_true(slots >= 0 && gpus >= 0);
    }
}

static void check_yields(struct world *w, const struct sched_plan *p)
{
    for (size_t i = 0; i < p->n_yields; i++) {
        const struct sched_yield *y = &p->yields[i];
        const struct w_job *v = w_find(w, y->job), *j = y->for_job ? w_find(w, y->for_job) : NULL;
        assert_true(v->state == W_RUNS && v->can_yield && !v->yield_end_ms);
        if (!j) { /* grows */
            assert_true(y->resize_to > v->held && y->resize_to <= v->job.max_ranks);
            assert_true(w->now - v->started_ms >= w->set.grow_ms);
            continue;
        }
        assert_true(j->state == W_WAITS && w->now - v->started_ms >= w->set.grace_ms);
        if (y->resize_to) {
            assert_true(y->resize_to < v->held && y->resize_to >= v->job.min_ranks);
            assert_true(v->job.priority <= j->job.priority);
        } else {
            assert_true(v->job.priority < j->job.priority);
        }
    }
}

static void check_verdicts(const struct sched_input *in, const struct sched_plan *p)
{
    size_t before = 0, starts = 0;

    assert_int_equal(p->n_verdicts, in->n_waiting);
    for (size_t i = 0; i < p->n_verdicts; i++) {
        const struct sched_verdict *v = &p->verdicts[i];
        const struct sched_job *job = NULL, *prev = NULL;
        for (size_t k = 0; k < in->n_waiting; k++) {
            job = in->waiting[k].id == v->job ? &in->waiting[k] : job;
            prev = i && in->waiting[k].id == p->verdicts[i - 1].job ? &in->waiting[k] : prev;
        }
        assert_non_null(job);
        assert_true(!prev || sched_compare(in, prev, job) < 0);
        assert_int_equal(v->n_before, before);
        if (v->reason == SCHED_STARTS) {
            assert_int_equal(v->start_ms, in->now_ms);
            assert_true(p->starts[starts].job == v->job && p->starts[starts].ranks == v->ranks);
            starts++;
        } else {
            assert_true(v->start_ms == -1 || v->start_ms > in->now_ms);
            before += v->reason != SCHED_UNUSABLE && v->reason != SCHED_TOO_BIG;
        }
        char text[400];
        sched_explain_text(p, v, job, in->nodes, in->now_ms, text, sizeof text);
        assert_true(strlen(text) > 20 && strlen(text) < sizeof text - 1);
    }
    assert_int_equal(starts, p->n_starts);
}

static void assert_same(const struct sched_plan *a, const struct sched_plan *b)
{
    assert_int_equal(a->n_starts, b->n_starts);
    for (size_t i = 0; i < a->n_starts; i++) {
        assert_int_equal(a->starts[i].job, b->starts[i].job);
        assert_int_equal(a->starts[i].n_pieces, b->starts[i].n_pieces);
        assert_memory_equal(a->starts[i].pieces, b->starts[i].pieces,
                            (size_t)a->starts[i].n_pieces * sizeof *a->starts[i].pieces);
    }
    assert_int_equal(a->n_yields, b->n_yields);
    for (size_t i = 0; i < a->n_yields; i++) {
        assert_int_equal(a->yields[i].job, b->yields[i].job);
        assert_int_equal(a->yields[i].for_job, b->yields[i].for_job);
        assert_int_equal(a->yields[i].resize_to, b->yields[i].resize_to);
    }
    assert_int_equal(a->n_verdicts, b->n_verdicts);
    for (size_t i = 0; i < a->n_verdicts; i++) {
        const struct sched_verdict *x = &a->verdicts[i], *y = &b->verdicts[i];
        assert_true(x->job == y->job && x->reason == y->reason && x->start_ms == y->start_ms &&
                    x->other_job == y->other_job && x->other_runs == y->other_runs && x->ranks == y->ranks &&
                    x->node == y->node && x->n_before == y->n_before);
    }
}

static void shuffle(void *v, size_t n, size_t size, uint64_t *seed)
{
    char *a = v, swap[512];

    assert_true(size <= sizeof swap);
    for (size_t i = n; i > 1; i--) {
        size_t k = w_random(seed, (uint32_t)i);
        memcpy(swap, a + (i - 1) * size, size);
        memcpy(a + (i - 1) * size, a + k * size, size);
        memcpy(a + k * size, swap, size);
    }
}

static void check_order_is_no_matter(struct world *w, const struct sched_plan *p, uint64_t *seed)
{
    struct sched_input in = w_input(w);

    shuffle(w->waiting, in.n_waiting, sizeof *w->waiting, seed);
    shuffle(w->running, in.n_running, sizeof *w->running, seed);
    struct sched_plan *again = sched_plan(&in);
    assert_same(p, again);
    sched_plan_free(again);
}

/* What has been carried out leads to nothing else. */
static void check_settled(const struct world *w, const struct sched_plan *p)
{
    static struct world after;

    after = *w;
    w_apply(&after, p);
    struct sched_input in = w_input(&after);
    in.last = p;
    struct sched_plan *again = sched_plan(&in);
    assert_int_equal(again->n_starts, 0);
    assert_int_equal(again->n_yields, 0);
    sched_plan_free(again);
}

/* Once those who yield have yielded, the jobs that they do it for start, and the shrunk with their new size.
 */
static void check_yields_are_not_in_vain(const struct world *w, const struct sched_plan *p)
{
    static struct world after;

    if (!p->n_yields)
        return;
    after = *w;
    w_apply(&after, p);
    for (size_t i = 0; i < after.n_jobs; i++) {
        struct w_job *j = &after.jobs[i];
        if (j->state != W_RUNS || !j->yield_end_ms)
            continue;
        j->state = W_WAITS;
        j->yield_end_ms = 0;
        j->job.not_before_ms = 0;
        j->job.queued_ms = w->now;
    }
    struct sched_input in = w_input(&after);
    in.last = p;
    struct sched_plan *then = sched_plan(&in);
    for (size_t i = 0; i < p->n_yields; i++) {
        const struct sched_yield *y = &p->yields[i];
        if (y->for_job)
            assert_int_equal(sched_plan_verdict(then, y->for_job)->reason, SCHED_STARTS);
        if (y->resize_to) {
            assert_int_equal(sched_plan_verdict(then, y->job)->reason, SCHED_STARTS);
            assert_int_equal(sched_plan_verdict(then, y->job)->ranks, y->resize_to);
        }
    }
    sched_plan_free(then);
}

/* Without those that come after it, each job would have the same start: nobody is moved by a later one. */
static void check_conservative(struct world *w)
{
    static struct sched_job cut[W_JOBS];
    struct sched_input in = w_input(w);
    struct sched_settings set = w->set;

    set.preempt = set.resize = false;
    in.settings = &set;
    struct sched_plan *all = sched_plan(&in);
    for (size_t i = 0; i < all->n_verdicts; i++) {
        const struct sched_verdict *v = &all->verdicts[i];
        size_t n = 0;
        for (size_t k = 0; k < in.n_waiting; k++)
            for (size_t m = 0; m <= i; m++)
                if (in.waiting[k].id == all->verdicts[m].job)
                    cut[n++] = in.waiting[k];
        struct sched_input less = in;
        less.waiting = cut;
        less.n_waiting = n;
        struct sched_plan *p = sched_plan(&less);
        assert_int_equal(sched_plan_verdict(p, v->job)->start_ms, v->start_ms);
        sched_plan_free(p);
    }
    sched_plan_free(all);
}

/* Whether the node has room for so many ranks all through [now, now + run), beside what runs, what has just
 * been started, and all that is promised. */
static bool has_room(struct world *w, const struct sched_plan *p, size_t node, const struct sched_job *job,
                     int32_t ranks)
{
    for (size_t at = 0; at <= p->n_reservations; at++) { /* what is free falls where a promise begins */
        int64_t t = at ? p->reservations[at - 1].start_ms : w->now;
        int32_t slots, gpus;
        if (t >= w->now + job->run_ms)
            continue;
        free_of(w, node, &slots, &gpus);
        for (size_t i = 0; i < w->n_jobs; i++) { /* what has ended by then */
            const struct w_job *j = &w->jobs[i];
            int64_t end = j->work < 0
                              ? INT64_MAX
                              : w->now + (j->job.run_ms * j->job.ranks + j->held - 1) / (j->held + !j->held);
            end = j->yield_end_ms && j->yield_end_ms < end ? j->yield_end_ms : end;
            for (size_t k = 0; j->state == W_RUNS && end <= t && k < j->n_pieces; k++)
                if (j->pieces[k].node == (int32_t)node) {
                    slots += j->pieces[k].ranks;
                    gpus += j->pieces[k].ranks * j->job.gpus_per_rank;
                }
        }
        for (size_t i = 0; i < p->n_reservations; i++) {
            const struct sched_reservation *r = &p->reservations[i];
            const struct w_job *j = w_find(w, r->job);
            int64_t run = j->job.run_ms < 0 ? w->set.default_run_ms : sched_run_ms(&j->job, r->ranks);
            for (int32_t k = 0; r->start_ms <= t && t < r->start_ms + run && k < r->n_pieces; k++)
                if (r->pieces[k].node == (int32_t)node) {
                    slots -= r->pieces[k].ranks;
                    gpus -= r->pieces[k].ranks * j->job.gpus_per_rank;
                }
        }
        if (slots < ranks || gpus < ranks * job->gpus_per_rank)
            return false;
    }
    return w->nodes[node].usable;
}

/* Who has no reservation and does not start had no room: between what runs, what starts and all promises. */
static size_t check_nobody_is_overlooked(const struct world *w, const struct sched_plan *p)
{
    static struct world after;
    size_t n = 0;

    after = *w;
    w_apply(&after, p);
    w_input(&after); /* run_ms of what has started */
    for (size_t i = 0; i < p->n_verdicts; i++) {
        const struct w_job *j = w_find(&after, p->verdicts[i].job);
        int32_t room = 0;
        if (p->verdicts[i].reason != SCHED_TOO_DEEP || j->job.nodes || j->job.run_ms < 0 ||
            j->job.min_ranks < j->job.ranks)
            continue;
        for (size_t node = 0; node < w->n_nodes; node++)
            for (int32_t r = 1; r <= j->job.ranks && has_room(&after, p, node, &j->job, r); r++)
                room++;
        assert_true(room < j->job.ranks);
        n++;
    }
    return n;
}

static void test_plans(void **state)
{
    static struct world w;
    uint64_t seed = 1;
    size_t starts = 0, yields = 0, resized = 0, grown = 0, overlooked = 0, reasons[8] = {0};

    (void)state;
    for (int run = 0; run < 20000; run++) {
        random_world(&w, &seed);
        struct sched_input in = w_input(&w);
        struct sched_plan *p = sched_plan(&in);
        check_verdicts(&in, p);
        check_starts(&w, p);
        check_yields(&w, p);
        check_order_is_no_matter(&w, p, &seed);
        check_settled(&w, p);
        check_yields_are_not_in_vain(&w, p);
        overlooked += check_nobody_is_overlooked(&w, p);
        if (run % 4 == 0)
            check_conservative(&w);
        starts += p->n_starts;
        yields += p->n_yields;
        for (size_t i = 0; i < p->n_yields; i++) {
            resized += p->yields[i].resize_to > 0 && p->yields[i].for_job;
            grown += !p->yields[i].for_job;
        }
        for (size_t i = 0; i < p->n_verdicts; i++)
            reasons[p->verdicts[i].reason]++;
        sched_plan_free(p);
    }
    /* The instances are worth something: everything happens in them. */
    assert_true(starts > 20000 && yields - resized - grown > 500 && resized > 500 && grown > 100);
    assert_true(overlooked > 1000);
    for (int i = 0; i < 8; i++)
        assert_true(reasons[i] > 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
