/* test_sched_rules - one small world, and words to set it up and to say what should come of it. For the tests
 * of single rules. */
#ifndef TESTS_UNIT_DAEMON_TEST_SCHED_RULES_H
#define TESTS_UNIT_DAEMON_TEST_SCHED_RULES_H

#include "tests/unit/daemon/test_sched_world.h"

#include <stdio.h>

enum { SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE };

static struct world w;
static int64_t next_id;

static inline void begin(size_t n_nodes, int32_t slots, int32_t gpus)
{
    w_free(&w);
    w_init(&w);
    w_nodes(&w, n_nodes, slots, gpus);
    next_id = 1;
}

/* A job that waits since now. Times and priority may be changed after. */
static inline struct w_job *waits(int32_t ranks, int64_t run_ms)
{
    int64_t id = next_id++;

    return w_add(&w,
                 (struct sched_job){
                     .id = id, .ranks = ranks, .submitted_ms = w.now, .queued_ms = w.now, .run_ms = run_ms});
}

static inline struct w_job *elastic(int32_t least, int32_t ranks, int32_t most, int64_t run_ms)
{
    struct w_job *j = waits(ranks, run_ms);

    j->job.min_ranks = least;
    j->job.max_ranks = most;
    return j;
}

/* Makes it run on one node for an hour already. run_ms is what remains with `ranks`. */
static inline struct w_job *on(struct w_job *j, int32_t node, int32_t ranks)
{
    w_run(&w, j, w.now - HOUR, &(struct sched_piece){node, ranks}, 1);
    return j;
}

static inline const struct sched_plan *plan(void)
{
    struct sched_input in = w_input(&w);

    w_keep(&w, NULL);
    in.last = NULL;
    w.last = sched_plan(&in);
    return w.last;
}

static inline const struct sched_verdict *verdict(const struct w_job *j)
{
    return sched_plan_verdict(w.last, j->job.id);
}

/* "id:node*ranks,node*ranks id:…" of all starts. */
static inline void assert_starts(const char *want)
{
    char text[400] = "";
    size_t n = 0;

    for (size_t i = 0; i < w.last->n_starts; i++) {
        const struct sched_start *s = &w.last->starts[i];
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%lld:", i ? " " : "", (long long)s->job);
        for (int32_t k = 0; k < s->n_pieces; k++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%d*%d", k ? "," : "", s->pieces[k].node,
                                  s->pieces[k].ranks);
    }
    assert_string_equal(text, want);
}

/* "victim>size for job …" of all yields; size 0: preempted. */
static inline void assert_yields(const char *want)
{
    char text[400] = "";
    size_t n = 0;

    for (size_t i = 0; i < w.last->n_yields; i++) {
        const struct sched_yield *y = &w.last->yields[i];
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%lld>%d for %lld", i ? " " : "",
                              (long long)y->job, y->resize_to, (long long)y->for_job);
    }
    assert_string_equal(text, want);
}

static inline void assert_waits(const struct w_job *j, enum sched_reason reason, int64_t start_in_ms,
                                int64_t other)
{
    const struct sched_verdict *v = verdict(j);

    assert_int_equal(v->reason, reason);
    assert_int_equal(v->start_ms, start_in_ms < 0 ? -1 : w.now + start_in_ms);
    assert_int_equal(v->other_job, other);
}

static inline void assert_text(const struct w_job *j, const char *want)
{
    char text[400];

    sched_explain_text(w.last, verdict(j), &j->job, w.nodes, w.now, text, sizeof text);
    assert_string_equal(text, want);
}

#endif
