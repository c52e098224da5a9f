/* methods_job - job.submit, list, get, watch, cancel, checkpoint, explain. */
#include "common/clock.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/confine.h"
#include "daemon/conn.h"
#include "daemon/job_view.h"
#include "proto/jobspec.h"

#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_KEY_BYTES = 200, DEFAULT_LIST = 100, MAX_LIST = 500 };

/* --- submit --- */

static void user_name(int64_t uid, char *out, size_t size)
{
    struct passwd pw, *found = NULL;
    char buf[4096];

    if (getpwuid_r((uid_t)uid, &pw, buf, sizeof buf, &found) == 0 && found)
        snprintf(out, size, "%s", found->pw_name);
    else
        snprintf(out, size, "%lld", (long long)uid);
}

static void fail_resource(struct rpc_call *call, const char *pointer, const char *why)
{
    cJSON *errors = cJSON_CreateArray(), *v = cJSON_CreateObject();

    cJSON_AddItemToArray(errors, v);
    cJSON_AddStringToObject(v, "pointer", pointer);
    cJSON_AddStringToObject(v, "message", why);
    rpc_fail_spec(call, errors);
}

/* What the coordinator's own machine rules out. */
static bool fits_here(struct rpc_call *call, const struct jobspec *spec)
{
    char why[192];

    if (spec->resources.gpus_per_rank > 0) {
        snprintf(why, sizeof why,
                 "%d found, 0 is accepted: this coordinator gives out CPU slots only; start GPU workers "
                 "with mpirun or Slurm",
                 spec->resources.gpus_per_rank);
        fail_resource(call, "/resources/gpus_per_rank", why);
        return false;
    }
    if (spec->resources.min_ranks <= call->daemon->options->slots)
        return true;
    snprintf(why, sizeof why, "%d found, at most %lld is accepted: so many slots exist here",
             spec->resources.min_ranks, (long long)call->daemon->options->slots);
    fail_resource(call, "/resources/min_ranks", why);
    return false;
}

/* What this user may ask for: paths where jobs may read, and no more than his share. */
static bool is_allowed(struct rpc_call *call, const cJSON *resolved)
{
    cJSON *findings = confine_find(call->daemon->options, call->conn->uid, resolved);

    if (findings)
        rpc_fail_spec(call, findings);
    return !findings && rpc_take_submission(call, resolved);
}

static void on_submitted(void *ctx, int code, int64_t id, const char *why)
{
    cJSON *result;

    if (code) {
        rpc_later_error(ctx, code, why);
        return;
    }
    result = cJSON_CreateObject();
    cJSON_AddNumberToObject(result, "id", (double)id);
    rpc_later_result(ctx, result);
}

static void make_submitted(struct rpc_call *call, const struct jobspec *spec, struct job_event *ev)
{
    char user[JOB_MAX_USER];

    user_name(call->conn->uid, user, sizeof user);
    job_event_init(ev, JOB_EV_SUBMITTED, 0, clock_wall_ms(), "submitted by %s", user);
    memcpy(ev->user, user, sizeof ev->user);
    snprintf(ev->name, sizeof ev->name, "%s", spec->name);
    ev->uid = call->conn->uid;
    ev->n_ranks = spec->resources.ranks;
    ev->min_ranks = spec->resources.min_ranks;
    ev->max_restarts = spec->scheduling.max_restarts;
    ev->priority = spec->scheduling.priority;
    ev->time_limit_s = spec->scheduling.time_limit_s;
}

static int read_key(struct rpc_call *call, const char **key)
{
    if (rpc_param_str(call, "idempotency_key", key) < 0)
        return -1;
    if (*key && (!**key || strlen(*key) > MAX_KEY_BYTES)) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/idempotency_key: %zu bytes found, 1 to %d are accepted",
                 strlen(*key), MAX_KEY_BYTES);
        return -1;
    }
    return 0;
}

static void submit(struct rpc_call *call)
{
    const cJSON *doc = json_find(call->params, "spec");
    struct jobspec_errors errors = {0};
    struct job_event ev;
    const char *key = NULL;
    cJSON *resolved = NULL;

    if (call->daemon->draining || call->daemon->stopping) {
        rpc_fail(call, RPC_OVERLOADED, "the coordinator is draining: it takes no new jobs");
        return;
    }
    if (!doc) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/spec: nothing found, a job spec is accepted");
        return;
    }
    if (read_key(call, &key) < 0)
        return;
    struct jobspec *spec = xcalloc(1, sizeof *spec);
    if (jobspec_parse(doc, spec, &resolved, &errors) < 0) {
        rpc_fail_spec(call, jobspec_errors_to_json(&errors));
    } else if (fits_here(call, spec) && is_allowed(call, resolved)) {
        char *text = json_text(resolved);
        make_submitted(call, spec, &ev);
        journal_submit(call->daemon->journal, &ev, text, key, on_submitted, rpc_later(call));
        free(text);
    }
    jobspec_errors_free(&errors);
    cJSON_Delete(resolved);
    free(spec);
}

/* --- list, get, explain --- */

struct filter {
    int64_t limit, below; /* newest first, ids below the cursor */
    enum job_state state; /* JOB_NEW = any */
    const char *user;
};

static int read_filter(struct rpc_call *call, struct filter *f)
{
    const char *state = NULL;
    struct err e = ERR_INIT;

    *f = (struct filter){.limit = DEFAULT_LIST, .below = INT64_MAX, .state = JOB_NEW};
    if (rpc_param_int(call, "limit", false, 1, (int64_t)1 << 53, &f->limit) < 0 ||
        rpc_param_int(call, "cursor", false, 1, (int64_t)1 << 53, &f->below) < 0 ||
        rpc_param_str(call, "user", &f->user) < 0 || rpc_param_str(call, "state", &state) < 0)
        return -1;
    if (f->limit > MAX_LIST)
        f->limit = MAX_LIST; /* the cursor leads on */
    if (state && job_state_parse(state, &f->state, &e) < 0) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/state: %s", e.msg);
        return -1;
    }
    return 0;
}

/* Newest first. The cursor is the id of the last job given: ids never change, so pages neither skip nor
 * repeat. */
static void list(struct rpc_call *call)
{
    const struct daemon *d = call->daemon;
    const struct jobs *js = &d->jobs;
    struct filter f;
    int64_t n = 0;

    if (read_filter(call, &f) < 0)
        return;
    call->result = cJSON_CreateObject();
    cJSON *out = cJSON_AddArrayToObject(call->result, "jobs");
    for (size_t i = jobs_lower_bound(js, f.below); i > 0; i--) {
        const struct job *job = js->v[i - 1];
        if ((f.state != JOB_NEW && job->state != f.state) || (f.user && strcmp(job->user, f.user) != 0) ||
            !rpc_may_see(call, job))
            continue;
        if (n == f.limit) {
            cJSON_AddNumberToObject(call->result, "cursor", (double)js->v[i]->id);
            break;
        }
        cJSON_AddItemToArray(out, job_view_summary(d, job));
        n++;
    }
}

static void get(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);
    struct err e = ERR_INIT;

    if (!job)
        return;
    call->result = job_view_record(call->daemon, job, &e);
    if (!call->result)
        rpc_fail_err(call, RPC_INTERNAL_ERROR, &e);
}

static void explain(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);
    char text[512];

    if (!job)
        return;
    job_view_explain(call->daemon, job, text, sizeof text);
    call->result = cJSON_CreateObject();
    cJSON_AddNumberToObject(call->result, "id", (double)job->id);
    cJSON_AddStringToObject(call->result, "state", job_state_name(job->state));
    cJSON_AddStringToObject(call->result, "text", text);
}

/* --- watch --- */

static void watch(struct rpc_call *call)
{
    struct conn *c = call->conn;
    int64_t last = journal_last_seq(call->daemon->journal), since = last;
    const struct job *job = NULL;

    if (rpc_param_int(call, "since", false, 0, last, &since) < 0)
        return;
    if (json_find(call->params, "id") && !cJSON_IsNull(json_find(call->params, "id")) &&
        !(job = rpc_param_job(call)))
        return;
    c->watch = (struct watch){
        .active = true, .all_users = rpc_sees_all(call), .job = job ? job->id : 0, .cursor = since};
    call->result = cJSON_CreateObject();
    cJSON_AddNumberToObject(call->result, "seq", (double)last);
}

/* --- cancel, checkpoint --- */

static cJSON *view_state(const struct job *job)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "id", (double)job->id);
    cJSON_AddStringToObject(v, "state", job_state_name(job->state));
    cJSON_AddBoolToObject(v, "cancelling", job->cancelling);
    return v;
}

static void on_cancelled(void *ctx, int code, int64_t id, const char *why)
{
    if (code)
        rpc_later_error(ctx, code, why);
    else
        rpc_later_result(ctx, view_state(jobs_find(&rpc_later_daemon(ctx)->jobs, id)));
}

static void cancel(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);
    char user[JOB_MAX_USER];
    struct job_event ev;

    if (!job)
        return;
    if (job_state_is_final(job->state)) {
        rpc_fail(call, RPC_WRONG_STATE, "job %lld has ended already: %s", (long long)job->id,
                 job_state_name(job->state));
        return;
    }
    if (job->cancelling) {
        call->result = view_state(job);
        return;
    }
    user_name(call->conn->uid, user, sizeof user);
    job_event_init(&ev, JOB_EV_CANCEL_REQUESTED, job->id, clock_wall_ms(),
                   job->state == JOB_QUEUED ? "cancelled by %s while it waited"
                                            : "cancellation requested by %s",
                   user);
    memcpy(ev.user, user, sizeof ev.user);
    journal_append(call->daemon->journal, &ev, on_cancelled, rpc_later(call));
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

const struct rpc_method methods_job[] = {
    {"job.submit", ROLE_USER, submit, "spec idempotency_key"},
    {"job.list", ROLE_VIEWER, list, "state user limit cursor"},
    {"job.get", ROLE_VIEWER, get, "id"},
    {"job.watch", ROLE_VIEWER, watch, "id since"},
    {"job.cancel", ROLE_USER, cancel, "id"},
    {"job.checkpoint", ROLE_USER, checkpoint, "id"},
    {"job.explain", ROLE_VIEWER, explain, "id"},
    {0},
};
