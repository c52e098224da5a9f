/* methods_steer - job.cancel, pause, resume, requeue, checkpoint: what people ask of a job that is there.
 *
 * Each is a table's row: what the request means in the state that the job is in. A request that changes
 * nothing any more is answered with the state as it is, so that it can be repeated.
 */
#include "common/clock.h"
#include "daemon/actions.h"
#include "daemon/conn.h"

#include <string.h>

static cJSON *view_state(const struct job *job)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "id", (double)job->id);
    cJSON_AddStringToObject(v, "state", job_state_name(job->state));
    cJSON_AddBoolToObject(v, "cancelling", job->cancelling);
    return v;
}

static void on_changed(void *ctx, int code, int64_t id, const char *why)
{
    if (code)
        rpc_later_error(ctx, code, why);
    else
        rpc_later_result(ctx, view_state(jobs_find(&rpc_later_daemon(ctx)->jobs, id)));
}

/* What a request leads to in one state. */
enum steer { STEER_REFUSED, STEER_NOTHING, STEER_EVENT };

struct steer_case {
    enum steer what;
    enum job_event_type event;
    enum job_yield_to yield_to;
    const char *before, *after; /* what stands around who asked; before: why it is refused */
};

#define REFUSED(why)                                                                                         \
    {                                                                                                        \
        STEER_REFUSED, 0, 0, why, NULL                                                                       \
    }
#define NOTHING                                                                                              \
    {                                                                                                        \
        STEER_NOTHING, 0, 0, NULL, NULL                                                                      \
    }
#define EVENT(type, before, after)                                                                           \
    {                                                                                                        \
        STEER_EVENT, type, JOB_YIELD_QUEUE, before, after                                                    \
    }
#define YIELD(to, before, after)                                                                             \
    {                                                                                                        \
        STEER_EVENT, JOB_EV_YIELD_REQUESTED, to, before, after                                               \
    }

static const struct steer_case cancels[JOB_N_STATES] = {
    [JOB_QUEUED] = EVENT(JOB_EV_CANCEL_REQUESTED, "cancelled by ", " while it waited"),
    [JOB_STARTING] = EVENT(JOB_EV_CANCEL_REQUESTED, "cancellation requested by ", ""),
    [JOB_RUNNING] = EVENT(JOB_EV_CANCEL_REQUESTED, "cancellation requested by ", ""),
    [JOB_PREEMPTING] = EVENT(JOB_EV_CANCEL_REQUESTED, "cancellation requested by ", ""),
    [JOB_PAUSED] = EVENT(JOB_EV_CANCEL_REQUESTED, "cancelled by ", " while it was paused"),
    [JOB_SUCCEEDED] = REFUSED("has ended already: succeeded"),
    [JOB_FAILED] = REFUSED("has ended already: failed"),
    [JOB_CANCELLED] = REFUSED("has ended already: cancelled"),
};

static const struct steer_case pauses[JOB_N_STATES] = {
    [JOB_QUEUED] = EVENT(JOB_EV_PAUSED, "paused by ", " while it waited"),
    [JOB_STARTING] = YIELD(JOB_YIELD_PAUSE, "", " asked it to pause"),
    [JOB_RUNNING] = YIELD(JOB_YIELD_PAUSE, "", " asked it to pause"),
    [JOB_PREEMPTING] = YIELD(JOB_YIELD_PAUSE, "", " asked it to pause"),
    [JOB_PAUSED] = NOTHING,
    [JOB_SUCCEEDED] = REFUSED("has ended already: succeeded"),
    [JOB_FAILED] = REFUSED("has ended already: failed"),
    [JOB_CANCELLED] = REFUSED("has ended already: cancelled"),
};

static const struct steer_case resumes[JOB_N_STATES] = {
    [JOB_QUEUED] = REFUSED("is not paused: it waits in the queue"),
    [JOB_STARTING] = REFUSED("is not paused: it is starting"),
    [JOB_RUNNING] = REFUSED("is not paused: it is running"),
    [JOB_PREEMPTING] = YIELD(JOB_YIELD_QUEUE, "resumed by ", " before it was paused"),
    [JOB_PAUSED] = EVENT(JOB_EV_RESUMED, "resumed by ", ""),
    [JOB_SUCCEEDED] = REFUSED("has succeeded: nothing is left to do"),
    [JOB_FAILED] = REFUSED("has failed: requeue it to have it go on from its newest checkpoint"),
    [JOB_CANCELLED] = REFUSED("was cancelled: requeue it to have it go on from its newest checkpoint"),
};

static const struct steer_case requeues[JOB_N_STATES] = {
    [JOB_QUEUED] = NOTHING,
    [JOB_STARTING] = YIELD(JOB_YIELD_QUEUE, "", " asked it to give its ranks back and queue again"),
    [JOB_RUNNING] = YIELD(JOB_YIELD_QUEUE, "", " asked it to give its ranks back and queue again"),
    [JOB_PREEMPTING] = YIELD(JOB_YIELD_QUEUE, "", " asked it to give its ranks back and queue again"),
    [JOB_PAUSED] = EVENT(JOB_EV_RESUMED, "resumed by ", ""),
    [JOB_SUCCEEDED] = REFUSED("has succeeded: nothing is left to do"),
    [JOB_FAILED] = EVENT(JOB_EV_REQUEUED, "queued again by ", ""),
    [JOB_CANCELLED] = EVENT(JOB_EV_REQUEUED, "queued again by ", ""),
};

static void steer(struct rpc_call *call, const struct steer_case *cases)
{
    const struct job *job = rpc_param_job(call);
    struct job_event ev;

    if (!job)
        return;
    const struct steer_case *c = &cases[job->state];
    if (c->what == STEER_REFUSED) {
        rpc_fail(call, RPC_WRONG_STATE, "job %lld %s", (long long)job->id, c->before);
    } else if (job->cancelling && c->event != JOB_EV_CANCEL_REQUESTED) {
        rpc_fail(call, RPC_WRONG_STATE, "job %lld is being cancelled", (long long)job->id);
    } else if (c->what == STEER_NOTHING || job->cancelling) {
        call->result = view_state(job);
    } else {
        char user[JOB_MAX_USER];
        rpc_caller_name(call, user, sizeof user);
        job_event_init(&ev, c->event, job->id, clock_wall_ms(), "%s%s%s", c->before, user, c->after);
        memcpy(ev.user, user, sizeof ev.user);
        ev.yield_to = c->yield_to;
        ev.step = job->checkpoint_step;
        journal_append(call->daemon->journal, &ev, on_changed, rpc_later(call));
    }
}

static void cancel(struct rpc_call *call)
{
    steer(call, cancels);
}

static void pause_job(struct rpc_call *call)
{
    steer(call, pauses);
}

static void resume(struct rpc_call *call)
{
    steer(call, resumes);
}

static void requeue(struct rpc_call *call)
{
    steer(call, requeues);
}

static void checkpoint(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);

    if (!job)
        return;
    if (job->state != JOB_RUNNING)
        rpc_fail(call, RPC_WRONG_STATE, "job %lld is %s: only a running job can write a checkpoint",
                 (long long)job->id, job_state_name(job->state));
    else if (!actions_command(call->daemon->actions, job->id, "checkpoint"))
        rpc_fail(call, RPC_WRONG_STATE, "job %lld: rank 0 is not connected at the moment; try again",
                 (long long)job->id);
    else
        call->result = view_state(job);
}

const struct rpc_method methods_steer[] = {
    {"job.cancel", ROLE_USER, cancel, "id"},         {"job.pause", ROLE_USER, pause_job, "id"},
    {"job.resume", ROLE_USER, resume, "id"},         {"job.requeue", ROLE_USER, requeue, "id"},
    {"job.checkpoint", ROLE_USER, checkpoint, "id"}, {0},
};
