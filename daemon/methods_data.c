/* methods_data - job.logs and job.metrics: what a run has left in its directory. */
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/logs.h"
#include "daemon/metrics_file.h"
#include "daemon/run_dir.h"

#include <stdlib.h>
#include <string.h>

/* "rank" is a number, or "launcher" for what mpirun and the ranks printed themselves; absent: everything. */
static int read_rank(struct rpc_call *call, int64_t *rank)
{
    const cJSON *v = json_find(call->params, "rank");

    *rank = LOGS_ALL;
    if (cJSON_IsString(v) && strcmp(v->valuestring, "launcher") == 0) {
        *rank = LOGS_LAUNCHER;
        return 0;
    }
    return rpc_param_int(call, "rank", false, 0, 65535, rank);
}

static void logs(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);
    int64_t rank, tail = LOGS_DEFAULT_TAIL;
    bool follow = false;

    if (!job || read_rank(call, &rank) < 0 ||
        rpc_param_int(call, "tail", false, 0, (int64_t)1 << 53, &tail) < 0 ||
        rpc_param_bool(call, "follow", &follow) < 0)
        return;
    if (tail > LOGS_MAX_TAIL)
        tail = LOGS_MAX_TAIL;
    char *dir = run_dir_path(call->daemon->options->state_dir, job->id);
    if (follow)
        logs_follow(call->conn, job, dir, rank);
    call->result = cJSON_CreateObject();
    cJSON_AddItemToObject(call->result, "lines",
                          logs_tail(dir, rank, tail, follow ? call->conn->follow : NULL));
    free(dir);
}

static bool names_fit(struct rpc_call *call, const cJSON *names)
{
    if (!names)
        return true;
    bool fits = cJSON_IsArray(names);
    for (const cJSON *v = fits ? names->child : NULL; v && fits; v = v->next)
        fits = cJSON_IsString(v);
    if (!fits)
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/names: an array of strings is accepted");
    return fits;
}

static void metrics(struct rpc_call *call)
{
    const struct job *job = rpc_param_job(call);
    const cJSON *names = json_find(call->params, "names");
    struct err e = ERR_INIT;
    int64_t since = 0;

    if (cJSON_IsNull(names))
        names = NULL;
    if (!job || !names_fit(call, names) ||
        rpc_param_int(call, "since_step", false, 0, (int64_t)1 << 53, &since) < 0)
        return;
    char *dir = run_dir_path(call->daemon->options->state_dir, job->id),
         *path = xasprintf("%s/metrics.jsonl", dir);
    call->result = metrics_file_read(path, names, since, &e);
    if (!call->result)
        rpc_fail_err(call, RPC_INTERNAL_ERROR, &e);
    free(path);
    free(dir);
}

const struct rpc_method methods_data[] = {
    {"job.logs", ROLE_VIEWER, logs, "id rank tail follow"},
    {"job.metrics", ROLE_VIEWER, metrics, "id names since_step"},
    {0},
};
