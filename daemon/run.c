/* run - see run.h and actions.h. */
#include "daemon/run.h"
#include "common/clock.h"
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/exit_reason.h"
#include "daemon/proc.h"
#include "daemon/run_dir.h"
#include "daemon/server.h"
#include "daemon/worker_link.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KILL_AGAIN_MS = 1000, LOST_KILL_MS = 2000 };

struct run *run_find(const struct actions *a, int64_t job)
{
    struct run *r = a->runs;

    while (r && r->job != job)
        r = r->next;
    return r;
}

static void on_tick(uv_timer_t *t);

struct run *run_create(struct actions *a, const struct job *job)
{
    struct run *r = xcalloc(1, sizeof *r);

    r->daemon = a->daemon;
    r->job = job->id;
    r->attempt = job->attempt;
    r->told_attached = job->state == JOB_RUNNING;
    r->told_checkpoint = job->checkpoint_step;
    uv_timer_init(&a->daemon->loop, &r->escalate);
    uv_timer_init(&a->daemon->loop, &r->limit);
    uv_timer_init(&a->daemon->loop, &r->tick);
    r->escalate.data = r->limit.data = r->tick.data = r;
    r->n_handles = 3;
    r->beats = beats_create(job->held_ranks, clock_mono_ns() / 1000000);
    uv_timer_start(&r->tick, on_tick, BEATS_TICK_MS, BEATS_TICK_MS);
    r->next = a->runs;
    a->runs = r;
    a->n_runs++;
    return r;
}

static void on_closed(uv_handle_t *h)
{
    struct run *r = h->data;

    if (--r->n_handles > 0)
        return;
    cJSON_Delete(r->metrics);
    beats_destroy(r->beats);
    free(r);
}

void run_release(struct actions *a, struct run *r)
{
    struct run **p = &a->runs;

    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    a->n_runs--;
    uv_close((uv_handle_t *)&r->escalate, on_closed);
    uv_close((uv_handle_t *)&r->limit, on_closed);
    uv_close((uv_handle_t *)&r->tick, on_closed);
}

/* --- stopping --- */

static void on_escalate(uv_timer_t *t);

static void send_signal(struct run *r, int signo)
{
    struct launcher *l = r->daemon->launcher;

    log_info(&r->daemon->log, "job %lld: %s to attempt %lld", (long long)r->job,
             signo == SIGTERM ? "SIGTERM" : "SIGKILL", (long long)r->attempt);
    l->ops->signal(l, r->job, signo);
}

static void on_escalate(uv_timer_t *t)
{
    struct run *r = t->data;
    const struct options *o = r->daemon->options;

    if (r->stop == STOP_ASKED) {
        r->stop = STOP_TERM;
        send_signal(r, SIGTERM);
        uv_timer_start(&r->escalate, on_escalate, (uint64_t)o->kill_ms, KILL_AGAIN_MS);
    } else {
        r->stop = STOP_KILL;
        send_signal(r, SIGKILL);
    }
}

void run_stop(struct run *r, int64_t grace_ms)
{
    const struct options *o = r->daemon->options;

    if (r->ended || r->stop > STOP_ASKED)
        return;
    if (r->waits) { /* there is nothing yet that could be stopped */
        r->waits = false;
        run_ended(r->daemon, r->job, r->attempt, &(struct launch_exit){.known = false});
        return;
    }
    if (r->stop == STOP_ASKED) {
        if (uv_timer_get_due_in(&r->escalate) > (uint64_t)grace_ms)
            uv_timer_start(&r->escalate, on_escalate, (uint64_t)grace_ms, 0);
        return;
    }
    r->stop = STOP_ASKED;
    bool asked = actions_command(r->daemon->actions, r->job, "stop");
    if (asked)
        log_info(&r->daemon->log, "job %lld: asked to stop; SIGTERM in %lld ms, SIGKILL %lld ms after that",
                 (long long)r->job, (long long)grace_ms, (long long)o->kill_ms);
    uv_timer_start(&r->escalate, on_escalate, asked ? (uint64_t)grace_ms : 0, 0);
}

/* A rank that is stopped or loops cannot answer, and the others wait for it: nobody is asked. */
static void end_lost(struct run *r)
{
    int64_t kill_ms = r->daemon->options->kill_ms;

    log_warn(&r->daemon->log, "job %lld: %s", (long long)r->job, r->lost_for);
    r->stop = STOP_TERM;
    send_signal(r, SIGTERM);
    uv_timer_start(&r->escalate, on_escalate, (uint64_t)(kill_ms < LOST_KILL_MS ? kill_ms : LOST_KILL_MS),
                   KILL_AGAIN_MS);
}

static void tell_slow(struct run *r)
{
    char text[200];

    for (int64_t rank; (rank = beats_next_slow(r->beats)) >= 0;) {
        beats_say_slow(r->beats, rank, text, sizeof text);
        log_warn(&r->daemon->log, "job %lld: %s", (long long)r->job, text);
    }
}

static void on_tick(uv_timer_t *t)
{
    struct run *r = t->data;
    const struct options *o = r->daemon->options;
    const struct beat_limits limits = {o->lost_ms, o->stall_s * 1000};
    struct beat_verdict v;

    beats_tick(r->beats, clock_mono_ns() / 1000000, &limits, &v);
    tell_slow(r);
    if (v.end == BEAT_GO_ON || r->ended || r->stop != STOP_NONE)
        return;
    beats_say(r->beats, &v, r->lost_for, sizeof r->lost_for);
    end_lost(r);
}

static void on_limit(uv_timer_t *t)
{
    struct run *r = t->data;
    const struct job *job = jobs_find(&r->daemon->jobs, r->job);

    if (r->ended)
        return;
    snprintf(r->stopped_for, sizeof r->stopped_for, "the time limit of %.15g s was reached",
             job->time_limit_s);
    log_info(&r->daemon->log, "job %lld: %s", (long long)r->job, r->stopped_for);
    run_stop(r, r->daemon->options->stop_ms);
}

void run_watch_limit(struct run *r, const struct job *job)
{
    if (!(job->time_limit_s > 0))
        return;
    /* Wall time of all attempts; what a job spends waiting is not its own doing. */
    int64_t used_ms = job->used_ms + clock_wall_ms() - job->attempt_ms;
    double left_ms = job->time_limit_s * 1000 - (double)used_ms;
    uv_timer_start(&r->limit, on_limit, left_ms > 0 ? (uint64_t)left_ms : 0, 0);
}

/* --- the end of an attempt --- */

static void gather(const struct run *r, const struct job *job, const char *run_dir,
                   const struct launch_exit *how, const struct run_result *result, struct exit_facts *f)
{
    *f = (struct exit_facts){
        .job = job,
        .done_status = r->is_done ? r->done_status : NULL,
        .done_reason = r->done_reason,
        .result_status = result->status[0] ? result->status : NULL,
        .result_reason = result->reason,
        .result_peer_lost = result->peer_lost,
        .status_known = how->known,
        .status = how->status,
        .signal = how->signal,
        .hung = how->hung,
        .checkpoint_step = run_dir_checkpoint_step(run_dir),
        .step = r->has_progress ? r->progress.step : -1,
        .stopped_for = r->stopped_for[0] ? r->stopped_for : NULL,
        .lost_for = r->lost_for[0] ? r->lost_for : NULL,
    };
}

/* Twice as long after each fault in a row: what is broken is not hammered at. */
static int64_t back_off_ms(const struct daemon *d, const struct job *job)
{
    int64_t ms = d->options->retry_ms;

    for (int64_t i = 0; i < job->n_restarts && ms < d->options->retry_max_ms; i++)
        ms *= 2;
    return ms < d->options->retry_max_ms ? ms : d->options->retry_max_ms;
}

/* A node that could not be reached takes no part for a while. With a single node there is no choice. */
static void set_aside(struct daemon *d, const char *name)
{
    struct node *n = name ? inventory_find(&d->inventory, name) : NULL;

    if (!n || d->inventory.n < 2)
        return;
    inventory_fault(n, "it could not be reached", clock_wall_ms());
    log_warn(&d->log, "node %s could not be reached: nothing starts there for %lld s", name,
             (long long)(n->aside_until_ms - clock_wall_ms() + 999) / 1000);
}

void run_ended(void *ctx, int64_t id, int64_t attempt, const struct launch_exit *how)
{
    struct daemon *d = ctx;
    struct run *r = run_find(d->actions, id);
    const struct job *job = jobs_find(&d->jobs, id);
    struct run_result result = {0};
    struct exit_verdict verdict;
    struct exit_facts facts;
    struct job_event ev;

    if (!r || r->attempt != attempt || r->ended)
        return;
    r->ended = true;
    uv_timer_stop(&r->escalate);
    uv_timer_stop(&r->limit);
    uv_timer_stop(&r->tick);
    char *dir = run_dir_path(d->options->state_dir, id);
    char *log_text = run_dir_launcher_tail(dir);
    run_dir_result(dir, &result);
    gather(r, job, dir, how, &result, &facts);
    facts.launcher_log = log_text;
    facts.lost_node = exit_find_lost_node(log_text, &job->place, d->host);
    set_aside(d, facts.lost_node);
    exit_decide(&facts, &verdict);
    job_event_init(&ev, verdict.type, id, clock_wall_ms(), "%s", verdict.reason);
    ev.attempt = attempt + 1;
    ev.step = facts.checkpoint_step;
    ev.not_before_ms = verdict.type == JOB_EV_RESTARTING ? ev.time_ms + back_off_ms(d, job) : 0;
    ev.has_progress = r->has_progress;
    ev.progress = r->progress;
    journal_append(d->journal, &ev, NULL, NULL);
    free(log_text);
    free(dir);
}

/* --- what rank 0 says --- */

static struct run *reporter(struct actions *a, int64_t job, int64_t attempt)
{
    struct run *r = run_find(a, job);

    return r && r->attempt == attempt && !r->ended ? r : NULL;
}

static void tell_attached(struct run *r, const char *host)
{
    struct job_event ev;

    if (r->told_attached)
        return;
    r->told_attached = true;
    const struct job *job = jobs_find(&r->daemon->jobs, r->job);
    for (int64_t i = 0; i < job->place.n; i++) {
        struct node *n = inventory_find(&r->daemon->inventory, job->place.v[i].node);
        if (n && n->n_faults)
            inventory_good(n);
    }
    job_event_init(&ev, JOB_EV_ATTACHED, r->job, clock_wall_ms(), "running on %s", host);
    journal_append(r->daemon->journal, &ev, NULL, NULL);
}

static void launcher_attached(void *ctx, int64_t job, int64_t attempt, const char *host)
{
    struct daemon *d = ctx;
    struct run *r = reporter(d->actions, job, attempt);

    if (r)
        tell_attached(r, host);
}

/* Does who says that he is of this job prove it? On the socket that everybody can reach the kernel says,
 * besides, whose process it is. */
static bool is_of(const struct conn *c, const struct job *job, const char *token)
{
    return job && worker_token_equal(job->token, token) && (c->kind != CONN_GUEST || c->peer_uid == job->uid);
}

int actions_attach(struct actions *a, struct conn *c, const struct progress_attach *at, struct err *e)
{
    struct run *r = reporter(a, at->job, at->attempt);
    const struct job *job = jobs_find(&a->daemon->jobs, at->job);

    /* One message for every way of being wrong: a guesser learns nothing. */
    if (!r || !is_of(c, job, at->token))
        return err_set(e, "job %lld attempt %lld is not running here with this token", (long long)at->job,
                       (long long)at->attempt);
    struct conn *old = r->link_id && r->link_id != c->id ? server_conn(a->daemon->server, r->link_id) : NULL;
    c->worker_job = at->job;
    c->worker_attempt = at->attempt;
    r->link_id = c->id;
    if (old)
        conn_close(old, NULL);
    log_info(&a->daemon->log, "job %lld: rank 0 of %lld on %s (pid %lld) attached", (long long)at->job,
             (long long)at->ranks, at->host, (long long)at->pid);
    tell_attached(r, at->host);
    return 0;
}

void actions_link_lost(struct actions *a, struct conn *c)
{
    struct run *r = a ? run_find(a, c->worker_job) : NULL;

    if (!r || r->link_id != c->id)
        return;
    r->link_id = 0;
    if (!r->is_done && !r->ended)
        log_warn(&a->daemon->log, "job %lld: rank 0 hung up; it may come back", (long long)r->job);
}

/* Its process, where that is sure: the peer's pid as the kernel has it is the one that it says. */
static bool identify(const struct daemon *d, const struct conn *c, const struct progress_hello *h,
                     struct job_process *out)
{
    return c->pid == h->pid && strcmp(h->host, d->host) == 0 && proc_identify(h->pid, out) == 0;
}

int actions_hello(struct actions *a, struct conn *c, const struct progress_hello *h, struct err *e)
{
    struct run *r = reporter(a, h->job, h->attempt);
    const struct job *job = jobs_find(&a->daemon->jobs, h->job);
    struct job_process process;
    int64_t old = -1;

    if (r && is_of(c, job, h->token))
        old = beats_hello(r->beats, h, c->id, identify(a->daemon, c, h, &process) ? &process : NULL);
    if (old < 0)
        return err_set(e, "job %lld attempt %lld has no rank %lld here with this token", (long long)h->job,
                       (long long)h->attempt, (long long)h->rank);
    c->worker_job = h->job;
    c->worker_attempt = h->attempt;
    c->worker_rank = h->rank;
    if (!c->beats)
        server_counts(a->daemon->server)->n_clients--;
    c->beats = true;
    struct conn *before = old > 0 ? server_conn(a->daemon->server, (uint64_t)old) : NULL;
    if (before)
        conn_close(before, NULL);
    return 0;
}

void actions_beat(struct actions *a, const struct conn *c, const struct progress_beat *beat)
{
    struct run *r = reporter(a, c->worker_job, c->worker_attempt);

    if (r)
        beats_beat(r->beats, c->worker_rank, c->id, beat);
}

static void tell_checkpoint(struct run *r, int64_t step)
{
    struct job_event ev;

    if (step <= r->told_checkpoint)
        return;
    r->told_checkpoint = step;
    job_event_init(&ev, JOB_EV_CHECKPOINTED, r->job, clock_wall_ms(), "checkpoint at step %lld",
                   (long long)step);
    ev.step = step;
    journal_append(r->daemon->journal, &ev, NULL, NULL);
}

void actions_progress(struct actions *a, int64_t job, int64_t attempt, const struct progress *p)
{
    struct run *r = reporter(a, job, attempt);

    if (!r)
        return;
    r->progress = *p;
    r->has_progress = true;
    tell_checkpoint(r, p->checkpoint_step);
    watch_progress(a->daemon, jobs_find(&a->daemon->jobs, job), p);
}

void actions_metrics(struct actions *a, int64_t job, int64_t attempt, const cJSON *metrics)
{
    struct run *r = reporter(a, job, attempt);
    const cJSON *kind = json_find(metrics, "kind");

    if (!r || !cJSON_IsString(kind))
        return;
    if (!r->metrics)
        r->metrics = cJSON_CreateObject();
    cJSON_DeleteItemFromObjectCaseSensitive(r->metrics, kind->valuestring);
    /* Kinds are few; a worker that invents ever new ones gets no more room. */
    if (cJSON_GetArraySize(r->metrics) < 32)
        cJSON_AddItemToObject(r->metrics, kind->valuestring, cJSON_Duplicate(metrics, true));
}

void actions_done(struct actions *a, int64_t job, int64_t attempt, const char *status, const char *reason)
{
    struct run *r = reporter(a, job, attempt);

    if (!r)
        return;
    r->is_done = true;
    snprintf(r->done_status, sizeof r->done_status, "%s", status);
    snprintf(r->done_reason, sizeof r->done_reason, "%s", reason);
}

static void launcher_progress(void *ctx, int64_t job, int64_t attempt, const struct progress *p)
{
    actions_progress(((struct daemon *)ctx)->actions, job, attempt, p);
}

static void launcher_done(void *ctx, int64_t job, int64_t attempt, const char *status, const char *reason)
{
    actions_done(((struct daemon *)ctx)->actions, job, attempt, status, reason);
}

struct launch_listener actions_launch_listener(struct daemon *d)
{
    return (struct launch_listener){
        .ctx = d,
        .on_exit = run_ended,
        .on_attached = launcher_attached,
        .on_progress = launcher_progress,
        .on_done = launcher_done,
    };
}
