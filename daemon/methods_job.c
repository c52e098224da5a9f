/* methods_job - job.submit, list, get, watch, explain. */
#include "common/clock.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/confine.h"
#include "daemon/conn.h"
#include "daemon/job_view.h"
#include "proto/jobspec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_KEY_BYTES = 200, DEFAULT_LIST = 100, MAX_LIST = 500 };

/* --- submit --- */

static void fail_resource(struct rpc_call *call, const char *pointer, const char *why)
{
    cJSON *errors = cJSON_CreateArray(), *v = cJSON_CreateObject();

    cJSON_AddItemToArray(errors, v);
    cJSON_AddStringToObject(v, "pointer", pointer);
    cJSON_AddStringToObject(v, "message", why);
    rpc_fail_spec(call, errors);
}

/* What the nodes rule out, whatever runs on them. */
static bool fits_here(struct rpc_call *call, const struct jobspec *spec)
{
    const struct inventory *inv = &call->daemon->inventory;
    int64_t ranks = inventory_capacity(inv, spec->resources.gpus_per_rank);
    char why[192];

    if (spec->resources.gpus_per_rank > 0 && ranks == 0) {
        snprintf(why, sizeof why,
                 "%d found, 0 is accepted: no node here has so many GPUs (the coordinator's --node says "
                 "which it has)",
                 spec->resources.gpus_per_rank);
        fail_resource(call, "/resources/gpus_per_rank", why);
    } else if (spec->resources.min_ranks > ranks) {
        snprintf(why, sizeof why, "%d found, at most %lld is accepted: so many %s exist here",
                 spec->resources.min_ranks, (long long)ranks,
                 spec->resources.gpus_per_rank > 0 ? "slots with GPUs" : "slots");
        fail_resource(call, "/resources/min_ranks", why);
    } else if (spec->resources.nodes > (int64_t)inv->n) {
        snprintf(why, sizeof why, "%d found, at most %zu is accepted: so many nodes exist here",
                 spec->resources.nodes, inv->n);
        fail_resource(call, "/resources/nodes", why);
    } else {
        return true;
    }
    return false;
}

/* What the job is to come after exists, and is the caller's to know of. */
static bool may_follow(struct rpc_call *call, const struct jobspec *spec)
{
    char pointer[64], why[128];

    for (int i = 0; i < spec->scheduling.n_after; i++) {
        long long id = spec->scheduling.after[i];
        const struct job *first = jobs_find(&call->daemon->jobs, id);
        if (first && rpc_may_touch(call, first))
            continue;
        snprintf(pointer, sizeof pointer, "/scheduling/after/%d", i);
        snprintf(why, sizeof why, "%lld found, the id of a job of yours is accepted", id);
        fail_resource(call, pointer, why);
        return false;
    }
    return true;
}

/* Are all paths where jobs of this user may read? Those of an array are most often the same ones. */
static bool may_read(struct rpc_call *call, const struct jobspec_job *jobs, int n)
{
    for (int i = 0; i < n; i++) {
        if (i && confine_same(jobs[i].resolved, jobs[i - 1].resolved))
            continue;
        cJSON *findings = confine_find(call->daemon->options, call->conn->uid, jobs[i].resolved);
        if (!findings)
            continue;
        rpc_fail_spec(call, findings);
        return false;
    }
    return true;
}

/* An array's ids follow each other; the answer to a key that was used before is made from the jobs of then.
 */
static void on_submitted(void *ctx, int code, int64_t id, const char *why)
{
    const struct jobs *js = &rpc_later_daemon(ctx)->jobs;
    const struct job *job;
    cJSON *result;

    if (code) {
        rpc_later_error(ctx, code, why);
        return;
    }
    result = cJSON_CreateObject();
    cJSON_AddNumberToObject(result, "id", (double)id);
    if ((job = jobs_find(js, id)) && job->array) {
        cJSON *ids = cJSON_AddArrayToObject(result, "ids");
        for (int64_t i = id; (job = jobs_find(js, i)) && job->array == id; i++)
            cJSON_AddItemToArray(ids, cJSON_CreateNumber((double)i));
    }
    rpc_later_result(ctx, result);
}

static void make_submitted(struct rpc_call *call, const struct jobspec *spec, struct job_event *ev)
{
    char user[JOB_MAX_USER];

    rpc_caller_name(call, user, sizeof user);
    job_event_init(ev, JOB_EV_SUBMITTED, 0, clock_wall_ms(), "submitted by %s", user);
    memcpy(ev->user, user, sizeof ev->user);
    snprintf(ev->name, sizeof ev->name, "%s", spec->name);
    ev->uid = call->conn->uid;
    ev->n_ranks = spec->resources.ranks;
    ev->min_ranks = spec->resources.min_ranks;
    ev->max_ranks = spec->resources.max_ranks;
    ev->gpus_per_rank = spec->resources.gpus_per_rank;
    ev->n_nodes = spec->resources.nodes;
    ev->max_restarts = spec->scheduling.max_restarts;
    ev->priority = spec->scheduling.priority;
    ev->time_limit_s = spec->scheduling.time_limit_s;
    ev->n_after = spec->scheduling.n_after;
    memcpy(ev->after, spec->scheduling.after, sizeof ev->after);
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

static void submit_jobs(struct rpc_call *call, const struct jobspec_job *jobs, int n, const char *key)
{
    struct journal_job *out;
    size_t n_bytes = 0;
    char **texts;

    for (int i = 0; i < n; i++)
        if (!fits_here(call, &jobs[i].spec) || !may_follow(call, &jobs[i].spec))
            return;
    if (!may_read(call, jobs, n))
        return;
    out = xcalloc((size_t)n, sizeof *out);
    texts = xcalloc((size_t)n, sizeof *texts);
    for (int i = 0; i < n; i++) {
        texts[i] = json_text(jobs[i].resolved);
        out[i].spec = texts[i];
        n_bytes = strlen(texts[i]) > n_bytes ? strlen(texts[i]) : n_bytes;
        make_submitted(call, &jobs[i].spec, &out[i].ev);
    }
    if (rpc_take_submission(call, n, (int64_t)n_bytes))
        journal_submit(call->daemon->journal, out, n, key, on_submitted, rpc_later(call));
    for (int i = 0; i < n; i++)
        free(texts[i]);
    free(texts);
    free(out);
}

static void submit(struct rpc_call *call)
{
    const cJSON *doc = json_find(call->params, "spec");
    struct jobspec_errors errors = {0};
    struct jobspec_job *jobs;
    const char *key = NULL;

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
    int n = jobspec_parse_jobs(doc, &jobs, &errors);
    if (n < 0) {
        rpc_fail_spec(call, jobspec_errors_to_json(&errors));
    } else {
        submit_jobs(call, jobs, n, key);
        jobspec_jobs_free(jobs, n);
    }
    jobspec_errors_free(&errors);
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

const struct rpc_method methods_job[] = {
    {"job.submit", ROLE_USER, submit, "spec idempotency_key"},
    {"job.list", ROLE_VIEWER, list, "state user limit cursor"},
    {"job.get", ROLE_VIEWER, get, "id"},
    {"job.watch", ROLE_VIEWER, watch, "id since"},
    {"job.explain", ROLE_VIEWER, explain, "id"},
    {0},
};
