/* planner - see planner.h. */
#include "daemon/planner.h"
#include "common/clock.h"
#include "proto/rpc_msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { RETRY_MS = 1000 };

struct planner {
    struct daemon *daemon;
    uv_timer_t again;
    bool dirty;
    int64_t n_pending; /* decisions that are with the journal */
};

static void on_again(uv_timer_t *t)
{
    struct planner *p = t->data;

    planner_wake(p);
    planner_run(p);
}

/* Plans again in so many milliseconds, or earlier if that was asked before. */
static void plan_in(struct planner *p, int64_t ms)
{
    uint64_t wait = ms > 0 ? (uint64_t)ms : 0;

    if (!uv_is_active((uv_handle_t *)&p->again) || uv_timer_get_due_in(&p->again) > wait)
        uv_timer_start(&p->again, on_again, wait, 0);
}

/* --- decisions become events --- */

static void on_decided(void *ctx, int code, int64_t id, const char *why)
{
    struct planner *p = ctx;

    p->n_pending--;
    if (!code || p->daemon->stopping)
        return;
    log_warn(&p->daemon->log, "job %lld is not started yet: %s", (long long)id, why);
    plan_in(p, code == RPC_OVERLOADED ? RETRY_MS : 0);
}

static void decide(struct planner *p, const struct job_event *ev)
{
    p->n_pending++;
    journal_append(p->daemon->journal, ev, on_decided, p);
}

static int make_token(char out[JOB_TOKEN_BYTES])
{
    unsigned char raw[32];

    if (getrandom(raw, sizeof raw, 0) != (ssize_t)sizeof raw)
        return -1;
    for (size_t i = 0; i < sizeof raw; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

static void place(struct planner *p, const struct sched_placement *at)
{
    struct daemon *d = p->daemon;
    const struct job *job = jobs_find(&d->jobs, at->id);
    long long attempt = job->n_restarts + 1, attempts = job->max_restarts + 1;
    struct job_event ev;

    job_event_init(&ev, JOB_EV_STARTING, job->id, clock_wall_ms(),
                   "starting with %lld rank%s on %s, attempt %lld of %lld", (long long)at->n_ranks,
                   at->n_ranks == 1 ? "" : "s", d->node, attempt, attempts);
    ev.attempt = job->attempt + 1;
    ev.n_ranks = at->n_ranks;
    memcpy(ev.node, d->node, sizeof ev.node);
    if (make_token(ev.token) < 0) {
        log_error(&d->log, "job %lld is not started: the system gives no random numbers", (long long)job->id);
        plan_in(p, RETRY_MS);
        return;
    }
    decide(p, &ev);
}

/* --- who waits for what --- */

/* Has everything succeeded that had to before? *never is set to a job that will not. */
static bool is_due(const struct jobs *js, const struct job *job, const struct job **never)
{
    bool due = true;

    for (int64_t i = 0; i < job->n_after; i++) {
        const struct job *first = jobs_find(js, job->after[i]);
        if (first && first->state == JOB_SUCCEEDED)
            continue;
        due = false;
        if (first && job_state_is_final(first->state))
            *never = first;
    }
    return due;
}

static void give_up(struct planner *p, const struct job *job, const struct job *first)
{
    struct job_event ev;

    job_event_init(&ev, JOB_EV_CANCEL_REQUESTED, job->id, clock_wall_ms(),
                   "cancelled: job %lld, which had to succeed first, %s", (long long)first->id,
                   first->state == JOB_FAILED ? "has failed" : "was cancelled");
    snprintf(ev.user, sizeof ev.user, "the coordinator");
    decide(p, &ev);
}

struct sched_job *planner_queue(const struct planner *p, size_t *n)
{
    const struct jobs *js = &p->daemon->jobs;
    struct sched_job *queue = xcalloc(js->n_active + 1, sizeof *queue);
    int64_t now_ms = clock_wall_ms();
    const struct job *never;

    *n = 0;
    for (size_t i = 0; i < js->n_active; i++) {
        const struct job *job = js->active[i];
        if (job->state == JOB_QUEUED && job->not_before_ms <= now_ms && is_due(js, job, &never))
            queue[(*n)++] = (struct sched_job){job->id, job->priority, job->n_ranks, job->min_ranks};
    }
    if (*n)
        qsort(queue, *n, sizeof *queue, sched_compare);
    return queue;
}

/* Jobs that wait for a moment or for others: notes when to look again, gives up those that wait in vain. */
static void look_at_waiting(struct planner *p)
{
    const struct jobs *js = &p->daemon->jobs;
    int64_t now_ms = clock_wall_ms();

    for (size_t i = 0; i < js->n_active; i++) {
        const struct job *job = js->active[i], *never = NULL;
        if (job->state != JOB_QUEUED)
            continue;
        if (job->not_before_ms > now_ms)
            plan_in(p, job->not_before_ms - now_ms);
        if (job->n_after && !is_due(js, job, &never) && never)
            give_up(p, job, never);
    }
}

static void schedule(struct planner *p)
{
    struct daemon *d = p->daemon;
    struct sched_inventory inv = {d->options->slots, d->options->slots - d->jobs.held_ranks};
    size_t n;

    if (!d->jobs.counts[JOB_QUEUED])
        return;
    look_at_waiting(p);
    if (inv.free <= 0)
        return;
    struct sched_job *queue = planner_queue(p, &n);
    struct sched_placement *out = xcalloc(n + 1, sizeof *out);
    size_t n_out = sched_plan(queue, n, inv, out);
    for (size_t i = 0; i < n_out; i++)
        place(p, &out[i]);
    free(out);
    free(queue);
}

void planner_wake(struct planner *p)
{
    p->dirty = true;
}

void planner_run(struct planner *p)
{
    const struct daemon *d = p->daemon;

    /* Decisions that are not durable yet are not in the inventory: look again when they are. */
    if (!p->dirty || p->n_pending || d->draining || d->stopping)
        return;
    p->dirty = false;
    schedule(p);
}

/* --- life --- */

struct planner *planner_create(struct daemon *d)
{
    struct planner *p = xcalloc(1, sizeof *p);

    p->daemon = d;
    uv_timer_init(&d->loop, &p->again);
    p->again.data = p;
    return p;
}

static void on_closed(uv_handle_t *h)
{
    free(h->data);
}

void planner_destroy(struct planner *p)
{
    uv_close((uv_handle_t *)&p->again, on_closed);
}
