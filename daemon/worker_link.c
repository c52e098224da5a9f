/* worker_link - see worker_link.h and proto/progress.h. What is said here is about the connection's own job
 * only: after worker.attach the connection speaks for that attempt, and no message names another. */
#include "daemon/worker_link.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/conn.h"

#include <string.h>

bool worker_token_equal(const char *ours, const char *theirs)
{
    size_t n = strlen(ours);
    unsigned diff = 0;

    if (!n || strlen(theirs) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        diff |= (unsigned)((unsigned char)ours[i] ^ (unsigned char)theirs[i]);
    return diff == 0;
}

void worker_link_command(struct conn *c, const char *command)
{
    cJSON *params = cJSON_CreateObject();

    cJSON_AddStringToObject(params, "command", command);
    conn_send(c, rpc_notification("worker.command", params));
}

static void attach(struct rpc_call *call)
{
    struct progress_attach at;
    struct err e = ERR_INIT;

    if (progress_attach_from_json(call->params, &at, &e) < 0) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params%s", e.msg);
        return;
    }
    if (call->conn->worker_job &&
        (call->conn->beats || call->conn->worker_job != at.job || call->conn->worker_attempt != at.attempt)) {
        rpc_fail(call, RPC_WRONG_STATE, "this connection speaks for job %lld already",
                 (long long)call->conn->worker_job);
        return;
    }
    if (actions_attach(call->daemon->actions, call->conn, &at, &e) < 0) {
        rpc_fail_err(call, RPC_FORBIDDEN, &e);
        return;
    }
    conn_attached(call->conn);
    call->result = cJSON_CreateObject();
    cJSON_AddTrueToObject(call->result, "accepted");
    /* What was asked before it came (back) has not reached it. */
    const struct job *job = jobs_find(&call->daemon->jobs, at.job);
    if (job->cancelling || job->state == JOB_PREEMPTING)
        worker_link_command(call->conn, "stop");
}

static void progress(struct rpc_call *call)
{
    struct progress p;
    struct err e = ERR_INIT;

    if (progress_from_json(call->params, &p, &e) < 0)
        rpc_fail(call, RPC_INVALID_PARAMS, "/params%s", e.msg);
    else
        actions_progress(call->daemon->actions, call->conn->worker_job, call->conn->worker_attempt, &p);
}

static void metrics(struct rpc_call *call)
{
    actions_metrics(call->daemon->actions, call->conn->worker_job, call->conn->worker_attempt, call->params);
}

static void done(struct rpc_call *call)
{
    const char *status = "", *reason = "";

    if (rpc_param_str(call, "status", &status) < 0 || rpc_param_str(call, "reason", &reason) < 0)
        return;
    if (strcmp(status, "succeeded") != 0 && strcmp(status, "failed") != 0 && strcmp(status, "stopped") != 0) {
        rpc_fail(call, RPC_INVALID_PARAMS,
                 "/params/status: \"%.32s\" found, succeeded, failed or stopped is accepted", status);
        return;
    }
    actions_done(call->daemon->actions, call->conn->worker_job, call->conn->worker_attempt, status, reason);
}

static void hello(struct rpc_call *call)
{
    struct progress_hello h;
    struct conn *c = call->conn;
    struct err e = ERR_INIT;

    if (progress_hello_from_json(call->params, &h, &e) < 0) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params%s", e.msg);
        return;
    }
    if (c->worker_job &&
        (!c->beats || c->worker_job != h.job || c->worker_attempt != h.attempt || c->worker_rank != h.rank)) {
        rpc_fail(call, RPC_WRONG_STATE, "this connection speaks for job %lld already",
                 (long long)c->worker_job);
        return;
    }
    if (actions_hello(call->daemon->actions, c, &h, &e) < 0) {
        rpc_fail_err(call, RPC_FORBIDDEN, &e);
        return;
    }
    conn_attached(c);
    call->result = cJSON_CreateObject();
    cJSON_AddTrueToObject(call->result, "accepted");
}

static void beat(struct rpc_call *call)
{
    struct progress_beat b;
    struct err e = ERR_INIT;

    if (!call->conn->beats)
        rpc_fail(call, RPC_WRONG_STATE, "worker.beat comes after worker.hello, on the same connection");
    else if (progress_beat_from_json(call->params, &b, &e) < 0)
        rpc_fail(call, RPC_INVALID_PARAMS, "/params%s", e.msg);
    else
        actions_beat(call->daemon->actions, call->conn, &b);
}

const struct rpc_method methods_worker[] = {
    {"worker.attach", ROLE_ANY, attach, "job attempt token pid host ranks"},
    {"worker.progress", ROLE_WORKER, progress,
     "phase step n_steps epoch n_epochs loss images_per_s eta_s checkpoint_step"},
    {"worker.metrics", ROLE_WORKER, metrics, "step epoch kind values"},
    {"worker.done", ROLE_WORKER, done, "status reason result"},
    {"worker.hello", ROLE_ANY, hello, "job attempt token rank pid host"},
    {"worker.beat", ROLE_WORKER, beat, "step phase waits_in in_ms collectives n_steps step_ms work_ms"},
    {0},
};
