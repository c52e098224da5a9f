/* test_sched_world - a small world for tests of the scheduler: nodes, users, jobs that wait, run and end, and
 * what carries out a plan. Durations are exact unless a test says otherwise: a job is `work`
 * rank-milliseconds, and takes work / ranks with any number of ranks.
 */
#ifndef TESTS_UNIT_DAEMON_TEST_SCHED_WORLD_H
#define TESTS_UNIT_DAEMON_TEST_SCHED_WORLD_H

#include "daemon/sched.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

enum { W_NODES = 8, W_JOBS = 400, W_USERS = 4 };

enum w_state { W_NEW, W_WAITS, W_RUNS, W_DONE };

struct w_job {
    struct sched_job job; /* run_ms is written from work before each plan, unless it is below 0 */
    enum w_state state;
    int64_t work; /* rank-ms that remain, as of since_ms */
    int64_t since_ms;
    struct sched_piece pieces[W_NODES];
    size_t n_pieces;
    int32_t held;
    int64_t started_ms, yield_end_ms; /* 0: does not yield */
    bool can_yield;
    int32_t n_preempted, n_yields;
};

struct world {
    int64_t now;
    struct sched_node nodes[W_NODES];
    size_t n_nodes;
    struct sched_user users[W_USERS];
    size_t n_users;
    struct sched_settings set;
    struct w_job jobs[W_JOBS];
    size_t n_jobs;
    /* the input as of the last w_input() */
    struct sched_job waiting[W_JOBS];
    struct sched_running running[W_JOBS];
    struct sched_plan *last;
};

static inline uint32_t w_random(uint64_t *seed, uint32_t below)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % below;
}

static inline struct w_job *w_find(struct world *w, int64_t id)
{
    for (size_t i = 0; i < w->n_jobs; i++)
        if (w->jobs[i].job.id == id)
            return &w->jobs[i];
    return NULL;
}

static inline struct w_job *w_add(struct world *w, struct sched_job job)
{
    struct w_job *j = &w->jobs[w->n_jobs++];

    assert_true(w->n_jobs <= W_JOBS);
    memset(j, 0, sizeof *j);
    j->job = job;
    j->job.min_ranks = job.min_ranks ? job.min_ranks : job.ranks;
    j->job.max_ranks = job.max_ranks ? job.max_ranks : job.ranks;
    j->work = job.run_ms < 0 ? -1 : job.run_ms * job.ranks;
    j->state = W_WAITS;
    j->can_yield = true;
    return j;
}

/* Makes the last added job run on these pieces, since started_ms. */
static inline void w_run(struct world *w, struct w_job *j, int64_t started_ms,
                         const struct sched_piece *pieces, size_t n)
{
    j->state = W_RUNS;
    j->started_ms = started_ms;
    j->since_ms = w->now;
    j->n_pieces = n;
    j->held = 0;
    for (size_t i = 0; i < n; i++) {
        j->pieces[i] = pieces[i];
        j->held += pieces[i].ranks;
    }
}

static inline void w_progress(struct world *w, struct w_job *j)
{
    if (j->state != W_RUNS)
        return;
    if (j->work >= 0) {
        j->work -= (w->now - j->since_ms) * j->held;
        j->work = j->work < 0 ? 0 : j->work;
    }
    j->since_ms = w->now;
}

static inline struct sched_input w_input(struct world *w)
{
    struct sched_input in = {.now_ms = w->now,
                             .nodes = w->nodes,
                             .n_nodes = w->n_nodes,
                             .users = w->users,
                             .n_users = w->n_users,
                             .waiting = w->waiting,
                             .running = w->running,
                             .settings = &w->set,
                             .last = w->last};

    for (size_t i = 0; i < w->n_jobs; i++) {
        struct w_job *j = &w->jobs[i];
        w_progress(w, j);
        if (j->job.run_ms >= 0)
            j->job.run_ms = (j->work + j->job.ranks - 1) / j->job.ranks;
        if (j->state == W_WAITS)
            w->waiting[in.n_waiting++] = j->job;
        else if (j->state == W_RUNS)
            w->running[in.n_running++] = (struct sched_running){.job = j->job,
                                                                .pieces = j->pieces,
                                                                .n_pieces = j->n_pieces,
                                                                .started_ms = j->started_ms,
                                                                .can_yield = j->can_yield,
                                                                .yielding = j->yield_end_ms > 0,
                                                                .n_preempted = j->n_preempted};
    }
    return in;
}

/* Carries the plan out; yields take restart_ms. */
static inline void w_apply(struct world *w, const struct sched_plan *p)
{
    for (size_t i = 0; i < p->n_starts; i++) {
        struct w_job *j = w_find(w, p->starts[i].job);
        assert_true(j->state == W_WAITS);
        w_run(w, j, w->now, p->starts[i].pieces, (size_t)p->starts[i].n_pieces);
        assert_int_equal(j->held, p->starts[i].ranks);
        j->job.resize_to = 0;
    }
    for (size_t i = 0; i < p->n_yields; i++) {
        struct w_job *j = w_find(w, p->yields[i].job);
        assert_true(j->state == W_RUNS && !j->yield_end_ms);
        j->yield_end_ms = w->now + w->set.restart_ms;
        j->job.resize_to = p->yields[i].resize_to;
        j->n_preempted += !p->yields[i].resize_to;
        j->n_yields++;
    }
}

/* When the job is out of its nodes; INT64_MAX: no end in sight. */
static inline int64_t w_end(const struct w_job *j)
{
    int64_t end = j->work < 0 ? INT64_MAX : j->since_ms + (j->work + j->held - 1) / j->held;

    return j->yield_end_ms && j->yield_end_ms < end ? j->yield_end_ms : end;
}

/* Moves the time on to the next end of a job or of a yield, at most to `until`. */
static inline void w_advance(struct world *w, int64_t until)
{
    for (size_t i = 0; i < w->n_jobs; i++)
        if (w->jobs[i].state == W_RUNS && w_end(&w->jobs[i]) < until)
            until = w_end(&w->jobs[i]);
    w->now = until > w->now ? until : w->now;
    for (size_t i = 0; i < w->n_jobs; i++) {
        struct w_job *j = &w->jobs[i];
        if (j->state != W_RUNS || w_end(j) > w->now)
            continue;
        bool done = j->work >= 0 && j->since_ms + (j->work + j->held - 1) / j->held <= w->now;
        w_progress(w, j);
        j->state = done ? W_DONE : W_WAITS;
        j->yield_end_ms = 0;
        j->held = 0;
        j->job.queued_ms = w->now;
    }
}

static inline void w_keep(struct world *w, struct sched_plan *p)
{
    sched_plan_free(w->last);
    w->last = p;
}

/* Plans, carries out, keeps the plan for the next. */
static inline const struct sched_plan *w_step(struct world *w)
{
    struct sched_input in = w_input(w);
    struct sched_plan *p = sched_plan(&in);

    w_apply(w, p);
    w_keep(w, p);
    return p;
}

static inline void w_init(struct world *w)
{
    memset(w, 0, sizeof *w);
    w->now = 1000000000;
    sched_settings_init(&w->set);
}

static inline void w_free(struct world *w)
{
    sched_plan_free(w->last);
    w->last = NULL;
}

static inline void w_nodes(struct world *w, size_t n, int32_t slots, int32_t gpus)
{
    static const char *const names[W_NODES] = {"n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"};

    w->n_nodes = n;
    for (size_t i = 0; i < n; i++)
        w->nodes[i] = (struct sched_node){names[i], "drained", slots, gpus, true};
}

#endif
