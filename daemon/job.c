/* job - see job.h. */
#include "daemon/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const state_names[JOB_N_STATES] = {
    [JOB_NEW] = "new",
    [JOB_QUEUED] = "queued",
    [JOB_STARTING] = "starting",
    [JOB_RUNNING] = "running",
    [JOB_SUCCEEDED] = "succeeded",
    [JOB_FAILED] = "failed",
    [JOB_CANCELLED] = "cancelled",
    [JOB_PAUSED] = "paused",
    [JOB_PREEMPTING] = "preempting",
};

static const char *const event_names[JOB_N_EVENTS] = {
    [JOB_EV_SUBMITTED] = "submitted",
    [JOB_EV_STARTING] = "starting",
    [JOB_EV_STARTED] = "started",
    [JOB_EV_ATTACHED] = "attached",
    [JOB_EV_CHECKPOINTED] = "checkpointed",
    [JOB_EV_CANCEL_REQUESTED] = "cancel_requested",
    [JOB_EV_RESTARTING] = "restarting",
    [JOB_EV_SUCCEEDED] = "succeeded",
    [JOB_EV_FAILED] = "failed",
    [JOB_EV_CANCELLED] = "cancelled",
    [JOB_EV_YIELD_REQUESTED] = "yield_requested",
    [JOB_EV_YIELDED] = "yielded",
    [JOB_EV_PAUSED] = "paused",
    [JOB_EV_RESUMED] = "resumed",
    [JOB_EV_REQUEUED] = "requeued",
};

/* JOB_NEW (0) in a cell means "not possible": nothing leads back to new. */
static const unsigned char next[JOB_N_STATES][JOB_N_EVENTS] = {
    [JOB_NEW] =
        {
            [JOB_EV_SUBMITTED] = JOB_QUEUED,
        },
    [JOB_QUEUED] =
        {
            [JOB_EV_STARTING] = JOB_STARTING,
            [JOB_EV_CANCEL_REQUESTED] = JOB_CANCELLED,
            [JOB_EV_FAILED] = JOB_FAILED,
            [JOB_EV_PAUSED] = JOB_PAUSED,
        },
    [JOB_STARTING] =
        {
            [JOB_EV_STARTED] = JOB_STARTING,
            [JOB_EV_ATTACHED] = JOB_RUNNING,
            [JOB_EV_CHECKPOINTED] = JOB_STARTING,
            [JOB_EV_CANCEL_REQUESTED] = JOB_STARTING,
            [JOB_EV_YIELD_REQUESTED] = JOB_PREEMPTING,
            [JOB_EV_RESTARTING] = JOB_QUEUED,
            [JOB_EV_SUCCEEDED] = JOB_SUCCEEDED,
            [JOB_EV_FAILED] = JOB_FAILED,
            [JOB_EV_CANCELLED] = JOB_CANCELLED,
        },
    [JOB_RUNNING] =
        {
            [JOB_EV_STARTED] = JOB_RUNNING, /* rank 0 may speak before the launcher's pid is on disk */
            [JOB_EV_ATTACHED] = JOB_RUNNING,
            [JOB_EV_CHECKPOINTED] = JOB_RUNNING,
            [JOB_EV_CANCEL_REQUESTED] = JOB_RUNNING,
            [JOB_EV_YIELD_REQUESTED] = JOB_PREEMPTING,
            [JOB_EV_RESTARTING] = JOB_QUEUED,
            [JOB_EV_SUCCEEDED] = JOB_SUCCEEDED,
            [JOB_EV_FAILED] = JOB_FAILED,
            [JOB_EV_CANCELLED] = JOB_CANCELLED,
        },
    [JOB_PREEMPTING] =
        {
            [JOB_EV_STARTED] = JOB_PREEMPTING,
            [JOB_EV_ATTACHED] = JOB_PREEMPTING,
            [JOB_EV_CHECKPOINTED] = JOB_PREEMPTING,
            [JOB_EV_CANCEL_REQUESTED] = JOB_PREEMPTING,
            [JOB_EV_YIELD_REQUESTED] = JOB_PREEMPTING, /* to another place */
            [JOB_EV_YIELDED] = JOB_QUEUED,
            [JOB_EV_PAUSED] = JOB_PAUSED,
            [JOB_EV_RESTARTING] = JOB_QUEUED,
            [JOB_EV_SUCCEEDED] = JOB_SUCCEEDED,
            [JOB_EV_FAILED] = JOB_FAILED,
            [JOB_EV_CANCELLED] = JOB_CANCELLED,
        },
    [JOB_PAUSED] =
        {
            [JOB_EV_RESUMED] = JOB_QUEUED,
            [JOB_EV_CANCEL_REQUESTED] = JOB_CANCELLED,
        },
    [JOB_FAILED] =
        {
            [JOB_EV_REQUEUED] = JOB_QUEUED,
        },
    [JOB_CANCELLED] =
        {
            [JOB_EV_REQUEUED] = JOB_QUEUED,
        },
};

enum job_state job_next(enum job_state state, enum job_event_type event)
{
    enum job_state to = (enum job_state)next[state][event];

    return to == JOB_NEW ? JOB_N_STATES : to;
}

bool job_state_is_final(enum job_state s)
{
    return s == JOB_SUCCEEDED || s == JOB_FAILED || s == JOB_CANCELLED;
}

bool job_state_holds_slots(enum job_state s)
{
    return s == JOB_STARTING || s == JOB_RUNNING || s == JOB_PREEMPTING;
}

const char *job_state_name(enum job_state s)
{
    return s < JOB_N_STATES ? state_names[s] : "?";
}

const char *job_event_name(enum job_event_type t)
{
    return t < JOB_N_EVENTS ? event_names[t] : "?";
}

int job_state_parse(const char *name, enum job_state *out, struct err *e)
{
    for (int s = JOB_QUEUED; s < JOB_N_STATES; s++)
        if (strcmp(name, state_names[s]) == 0) {
            *out = (enum job_state)s;
            return 0;
        }
    return err_set(
        e,
        "\"%s\" found, accepted are queued, starting, running, succeeded, failed, cancelled, paused, "
        "preempting",
        name);
}

/* What a text is that nobody has set; never freed. */
static const char none[] = "";

static void set_text(const char **field, const char *text)
{
    const char *old = *field;

    *field = *text ? xstrdup(text) : none;
    if (old != none)
        free((char *)old);
}

static void set_progress(struct job *job, const struct progress *p)
{
    if (!job->progress)
        job->progress = xmalloc(sizeof *job->progress);
    *job->progress = *p;
}

static void apply_submitted(struct job *job, const struct job_event *ev)
{
    *job = (struct job){
        .id = ev->job,
        .uid = ev->uid,
        .n_ranks = ev->n_ranks,
        .min_ranks = ev->min_ranks,
        .max_ranks = ev->max_ranks ? ev->max_ranks : ev->n_ranks,
        .gpus_per_rank = ev->gpus_per_rank,
        .n_nodes = ev->n_nodes,
        .max_restarts = ev->max_restarts,
        .priority = ev->priority,
        .time_limit_s = ev->time_limit_s,
        .array = ev->array,
        .array_index = ev->array_index,
        .n_after = ev->n_after,
        .submitted_ms = ev->time_ms,
        .checkpoint_step = -1,
        .reason = none,
        .cancel_user = none,
        .name = none,
        .user = none,
        .node = none,
        .token = none,
    };
    if (ev->n_after) {
        job->after = xmalloc((size_t)ev->n_after * sizeof *job->after);
        memcpy(job->after, ev->after, (size_t)ev->n_after * sizeof *job->after);
    }
    set_text(&job->name, ev->name);
    set_text(&job->user, ev->user);
}

static int apply_starting(struct job *job, const struct job_event *ev, struct err *e)
{
    struct place place = {0};

    if (!ev->place)
        place_add(&place, ev->node, ev->n_ranks, 0);
    else if (place_parse(&place, ev->place, e) < 0)
        return -1;
    place_free(&job->place);
    job->place = place;
    job->attempt = ev->attempt;
    job->attempt_ms = ev->time_ms;
    job->not_before_ms = 0;
    job->held_ranks = job->last_ranks = ev->n_ranks;
    set_text(&job->node, ev->node);
    set_text(&job->token, ev->token);
    job->resize_to = 0;
    if (!job->started_ms)
        job->started_ms = ev->time_ms;
    return 0;
}

/* The attempt is over: it holds nothing any more. The node stays as the place where it last was. */
static void clear_attempt(struct job *job, int64_t now_ms)
{
    if (job->attempt_ms && now_ms > job->attempt_ms)
        job->used_ms += now_ms - job->attempt_ms;
    job->held_ranks = 0;
    job->attempt_ms = 0;
    job->yield_to = JOB_YIELD_QUEUE;
    place_free(&job->place);
    set_text(&job->token, "");
    job->process = (struct job_process){0};
}

static void apply_requeued(struct job *job)
{
    job->ended_ms = 0;
    job->n_restarts = 0;
    job->not_before_ms = 0;
}

static int apply_fields(struct job *job, const struct job_event *ev, struct err *e)
{
    switch (ev->type) {
    case JOB_EV_SUBMITTED:
        apply_submitted(job, ev);
        break;
    case JOB_EV_STARTING:
        return apply_starting(job, ev, e);
    case JOB_EV_STARTED:
        job->process = ev->process;
        break;
    case JOB_EV_CHECKPOINTED:
        job->checkpoint_step = ev->step;
        break;
    case JOB_EV_CANCEL_REQUESTED:
        job->cancelling = true;
        set_text(&job->cancel_user, ev->user);
        break;
    case JOB_EV_RESTARTING:
        job->n_restarts++;
        job->not_before_ms = ev->not_before_ms;
        break;
    case JOB_EV_YIELD_REQUESTED:
        job->yield_to = ev->yield_to == JOB_YIELD_PAUSE ? JOB_YIELD_PAUSE : JOB_YIELD_QUEUE;
        job->resize_to = ev->resize_to;
        break;
    case JOB_EV_YIELDED:
        job->n_yields++;
        break;
    case JOB_EV_REQUEUED:
        apply_requeued(job);
        break;
    default:
        break;
    }
    return 0;
}

void job_free(struct job *job)
{
    const char *const texts[] = {job->reason, job->cancel_user, job->name, job->user, job->node, job->token};

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i] != none)
            free((char *)texts[i]);
    free(job->after);
    free(job->progress);
    place_free(&job->place);
}

int job_apply(struct job *job, const struct job_event *ev, struct err *e)
{
    enum job_state to = job_next(job->state, ev->type);

    if (to == JOB_N_STATES)
        return err_set(e, "job %lld is %s: \"%s\" is not possible there", (long long)ev->job,
                       job_state_name(job->state), job_event_name(ev->type));
    if (apply_fields(job, ev, e) < 0)
        return -1;
    if (ev->has_progress)
        set_progress(job, &ev->progress);
    if (!job_state_holds_slots(to))
        clear_attempt(job, ev->time_ms);
    if (job_state_is_final(to)) {
        job->ended_ms = ev->time_ms;
        job->cancelling = false;
    }
    if (to == JOB_QUEUED && job->state != JOB_QUEUED)
        job->queued_ms = ev->time_ms;
    if (to == JOB_PAUSED)
        job->resize_to = 0;
    job->state = to;
    set_text(&job->reason, ev->reason);
    return 0;
}
