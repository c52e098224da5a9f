/* actions - see actions.h. Stopping, reports and ends are in run.c; who starts is decided by planner.c.
 *
 * At a start the order is: placement → journal "starting" (token, attempt) → durable → run directory →
 * launcher → journal "started" (process). A coordinator that dies in between leaves a "starting" without a
 * process; the next one looks for processes that carry the token before it starts the same attempt again
 * (take_up_starting). Where the disk has no room for the run directory, the decision stands and the launch is
 * tried again every RETRY_MS.
 */
#include "daemon/actions.h"
#include "common/clock.h"
#include "common/fault.h"
#include "daemon/confine.h"
#include "daemon/conn.h"
#include "daemon/planner.h"
#include "daemon/run.h"
#include "daemon/run_dir.h"
#include "daemon/server.h"
#include "daemon/worker_link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 1000 };

/* --- starting --- */

static void fail_start(struct daemon *d, const struct job *job, const struct err *e)
{
    struct job_event ev;

    job_event_init(&ev, JOB_EV_FAILED, job->id, clock_wall_ms(), "could not be started: %s", e->msg);
    journal_append(d->journal, &ev, NULL, NULL);
}

static void tell_started(struct daemon *d, const struct job *job, const struct job_process *process)
{
    struct job_event ev;

    if (process->pid)
        job_event_init(&ev, JOB_EV_STARTED, job->id, clock_wall_ms(), "%s is running as process %lld",
                       d->launcher->ops->name, (long long)process->pid);
    else
        job_event_init(&ev, JOB_EV_STARTED, job->id, clock_wall_ms(), "%s has started it",
                       d->launcher->ops->name);
    ev.process = *process;
    journal_append(d->journal, &ev, NULL, NULL);
}

static int start_attempt(struct daemon *d, const struct job *job, const char *dir,
                         struct job_process *process, struct err *e)
{
    struct launch_request rq = {.job = job->id,
                                .attempt = job->attempt,
                                .n_ranks = job->held_ranks,
                                .place = &job->place,
                                .uid = job->uid,
                                .run_dir = dir,
                                .token = job->token};
    struct run_dir_attempt at = {job->id, job->attempt, job->held_ranks, job->uid};
    char *spec = store_spec(d->store, job->id, e);
    int rc = -1;

    if (fault_hit("actions.launch", &d->actions->launch_fault)) {
        err_set_kind(e, ERR_NO_SPACE, "%s: fault injected", dir);
    } else if (spec && confine_check(d->options, job->uid, spec, e) == 0 &&
               run_dir_prepare(dir, spec, &at, e) == 0) {
        (void)fault_hit("actions.prepared", &d->actions->prepared_fault);
        rq.resume = job->attempt > 1 || run_dir_has_run(dir);
        rc = d->launcher->ops->start(d->launcher, &rq, process, e);
    }
    free(spec);
    return rc;
}

static void on_retry(uv_timer_t *t);

static void wait_for_room(struct actions *a, struct run *r, const struct err *e)
{
    if (!r->waits)
        log_warn(&a->daemon->log, "job %lld: its start waits for room on the disk: %s", (long long)r->job,
                 e->msg);
    r->waits = true;
    snprintf(r->waits_for, sizeof r->waits_for, "%.255s", e->msg);
    uv_timer_start(&a->retry, on_retry, RETRY_MS, 0);
}

static void launch(struct actions *a, const struct job *job)
{
    struct daemon *d = a->daemon;
    struct run *r = run_find(a, job->id);
    struct job_process process = {0};
    struct err e = ERR_INIT;
    char *dir = run_dir_path(d->options->state_dir, job->id);

    if (!r)
        r = run_create(a, job);
    if (start_attempt(d, job, dir, &process, &e) == 0) {
        r->waits = false;
        (void)fault_hit("actions.launched", &a->launched_fault);
        tell_started(d, job, &process);
        run_watch_limit(r, job);
    } else if (e.kind == ERR_NO_SPACE) {
        wait_for_room(a, r, &e);
    } else {
        r->ended = true;
        fail_start(d, job, &e);
    }
    free(dir);
}

static void on_retry(uv_timer_t *t)
{
    struct actions *a = t->data;

    for (struct run *r = a->runs; r && !a->daemon->stopping; r = r->next)
        if (r->waits)
            launch(a, jobs_find(&a->daemon->jobs, r->job));
}

/* --- events --- */

/* What the attempt that is over left as its result must not be taken for the next one's. */
static void forget_result(struct daemon *d, const struct job *job)
{
    char *dir = run_dir_path(d->options->state_dir, job->id);
    struct err e = ERR_INIT;

    if (run_dir_forget_result(dir, &e) < 0)
        log_warn(&d->log, "job %lld: %s", (long long)job->id, e.msg);
    free(dir);
}

static bool is_asked_to_stop(const struct job *job)
{
    return job->cancelling || job->state == JOB_PREEMPTING;
}

/* Who yields goes on later, so its checkpoint is worth waiting for. */
static int64_t grace_ms(const struct daemon *d, const struct job *job)
{
    return job->cancelling ? d->options->stop_ms : d->options->yield_ms;
}

void actions_applied(struct actions *a, struct job *job, const struct job_event *ev)
{
    struct run *r = run_find(a, job->id);

    log_info(&a->daemon->log, "job %lld %s: %s", (long long)job->id, job_state_name(job->state), ev->reason);
    if (!job_state_holds_slots(job->state)) {
        if (r)
            run_release(a, r);
        if (job->attempt && !job_state_is_final(job->state))
            forget_result(a->daemon, job);
        planner_wake(a->planner);
    } else if (ev->type == JOB_EV_STARTING) {
        planner_wake(a->planner); /* what was placed together with it is in the inventory now */
        if (!a->daemon->stopping)
            launch(a, job); /* else the next coordinator starts it */
    } else if (r && is_asked_to_stop(job)) {
        run_stop(r, grace_ms(a->daemon, job));
    }
    daemon_check_stop(a->daemon);
}

/* --- taking up after a restart --- */

static void adopt(struct actions *a, const struct job *job, const struct job_process *process,
                  const char *how)
{
    struct daemon *d = a->daemon;
    char *dir = run_dir_path(d->options->state_dir, job->id);
    struct launch_request rq = {.job = job->id,
                                .attempt = job->attempt,
                                .n_ranks = job->held_ranks,
                                .place = &job->place,
                                .run_dir = dir,
                                .token = job->token};
    struct run *r = run_create(a, job);

    log_info(&d->log, "job %lld: %s", (long long)job->id, how);
    d->launcher->ops->adopt(d->launcher, &rq, process);
    run_watch_limit(r, job);
    if (is_asked_to_stop(job))
        run_stop(r, grace_ms(d, job));
    free(dir);
}

/* The start was decided; whether it happened is not known. */
static void take_up_starting(struct actions *a, const struct job *job)
{
    struct daemon *d = a->daemon;
    char *dir = run_dir_path(d->options->state_dir, job->id);
    struct launch_request rq = {.job = job->id, .attempt = job->attempt, .token = job->token, .run_dir = dir};
    struct job_process process = {0};
    struct run_result result;
    enum launch_found found = d->launcher->ops->find(d->launcher, &rq, &process);

    if (found == LAUNCH_FOUND) {
        adopt(a, job, &process, "found running after a restart of the coordinator");
        tell_started(d, job, &process);
    } else if (found == LAUNCH_ORPHANS || is_asked_to_stop(job) || run_dir_result(dir, &result) == 0) {
        adopt(a, job, &(struct job_process){0}, "ended while the coordinator was away");
    } else {
        log_info(&d->log, "job %lld: its start was decided and did not happen; starting it now",
                 (long long)job->id);
        launch(a, job);
    }
    free(dir);
}

void actions_take_up(struct actions *a)
{
    const struct jobs *js = &a->daemon->jobs;

    for (size_t i = 0; i < js->n_active; i++) {
        const struct job *job = js->active[i];
        if (!job_state_holds_slots(job->state))
            continue;
        if (job->process.pid)
            adopt(a, job, &job->process, "taken up after a restart of the coordinator");
        else
            take_up_starting(a, job);
    }
    planner_wake(a->planner);
    planner_run(a->planner);
}

/* --- the rest --- */

struct actions *actions_create(struct daemon *d)
{
    struct actions *a = xcalloc(1, sizeof *a);

    a->daemon = d;
    a->planner = planner_create(d);
    uv_timer_init(&d->loop, &a->retry);
    a->retry.data = a;
    return a;
}

static void on_closed(uv_handle_t *h)
{
    free(h->data);
}

void actions_destroy(struct actions *a)
{
    if (!a)
        return;
    while (a->runs)
        run_release(a, a->runs);
    planner_destroy(a->planner);
    uv_close((uv_handle_t *)&a->retry, on_closed);
}

void actions_round_done(struct actions *a)
{
    planner_run(a->planner);
}

struct planner *actions_planner(const struct actions *a)
{
    return a->planner;
}

int64_t actions_n_runs(const struct actions *a)
{
    return a->n_runs;
}

void actions_cancel_all(struct actions *a, const char *why)
{
    struct daemon *d = a->daemon;

    for (size_t i = 0; i < d->jobs.n_active; i++) {
        const struct job *job = d->jobs.active[i];
        struct job_event ev;
        if (!job_state_holds_slots(job->state) || job->cancelling)
            continue;
        job_event_init(&ev, JOB_EV_CANCEL_REQUESTED, job->id, clock_wall_ms(), "cancellation requested: %s",
                       why);
        snprintf(ev.user, sizeof ev.user, "the coordinator's shutdown");
        journal_append(d->journal, &ev, NULL, NULL);
    }
}

const struct progress *actions_latest(const struct actions *a, int64_t job)
{
    const struct run *r = run_find(a, job);

    return r && r->has_progress ? &r->progress : NULL;
}

const cJSON *actions_latest_metrics(const struct actions *a, int64_t job)
{
    const struct run *r = run_find(a, job);

    return r ? r->metrics : NULL;
}

const char *actions_waits_for(const struct actions *a, int64_t job)
{
    const struct run *r = run_find(a, job);

    return r && r->waits ? r->waits_for : NULL;
}

const struct beats *actions_beats(const struct actions *a, int64_t job)
{
    const struct run *r = run_find(a, job);

    return r ? r->beats : NULL;
}

bool actions_command(struct actions *a, int64_t job, const char *command)
{
    struct launcher *l = a->daemon->launcher;
    struct run *r = run_find(a, job);
    struct conn *c = r && r->link_id ? server_conn(a->daemon->server, r->link_id) : NULL;

    if (l->ops->command)
        return l->ops->command(l, job, command);
    if (!c)
        return false;
    worker_link_command(c, command);
    return true;
}
