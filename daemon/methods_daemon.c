/* methods_daemon - the daemon.* and spec.* methods. */
#include "common/clock.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/conn.h"
#include "daemon/server.h"
#include "proto/estimate.h"
#include "proto/jobspec.h"

#include <stdlib.h>
#include <unistd.h>

static cJSON *view_counts(const struct daemon *d)
{
    cJSON *v = cJSON_CreateObject();

    for (int s = JOB_QUEUED; s < JOB_N_STATES; s++)
        cJSON_AddNumberToObject(v, job_state_name((enum job_state)s), (double)d->jobs.counts[s]);
    return v;
}

static cJSON *view_stats(const struct daemon *d)
{
    const struct server_counts *n = server_counts(d->server);
    int64_t committed, failed;
    cJSON *v = cJSON_CreateObject();

    journal_counts(d->journal, &committed, &failed);
    cJSON_AddNumberToObject(v, "clients", (double)n->n_clients);
    cJSON_AddNumberToObject(v, "clients_accepted", (double)n->n_accepted);
    cJSON_AddNumberToObject(v, "clients_refused", (double)n->n_refused);
    cJSON_AddNumberToObject(v, "clients_dropped", (double)n->n_dropped);
    cJSON_AddNumberToObject(v, "requests", (double)n->n_requests);
    cJSON_AddNumberToObject(v, "events", (double)journal_last_seq(d->journal));
    cJSON_AddNumberToObject(v, "commits", (double)committed);
    cJSON_AddNumberToObject(v, "commits_failed", (double)failed);
    return v;
}

static void add_capability(void *list, const char *name)
{
    cJSON_AddItemToArray(list, cJSON_CreateString(name));
}

/* Optional: who does not care about versions need not call it. A client that needs a newer protocol learns so
 * here rather than from the first answer that it does not understand. */
static void hello(struct rpc_call *call)
{
    const char *client = NULL;
    int64_t wanted = RPC_PROTOCOL;

    if (rpc_param_str(call, "client", &client) < 0 ||
        rpc_param_int(call, "protocol", false, 1, (int64_t)1 << 53, &wanted) < 0)
        return;
    if (wanted > RPC_PROTOCOL) {
        rpc_fail(call, RPC_INVALID_PARAMS,
                 "/params/protocol: %lld found, at most %d is accepted: the client wants protocol %lld, this "
                 "coordinator "
                 "(batchformerd %s) speaks protocol %d",
                 (long long)wanted, RPC_PROTOCOL, (long long)wanted, BF_VERSION, RPC_PROTOCOL);
        call->data = cJSON_CreateObject();
        cJSON_AddNumberToObject(call->data, "wanted", (double)wanted);
        cJSON_AddNumberToObject(call->data, "protocol", RPC_PROTOCOL);
        return;
    }
    if (client)
        log_debug(&call->daemon->log, "client %llu is %.64s", (unsigned long long)call->conn->id, client);
    call->result = cJSON_CreateObject();
    cJSON_AddStringToObject(call->result, "server", "batchformerd");
    cJSON_AddStringToObject(call->result, "version", BF_VERSION);
    cJSON_AddNumberToObject(call->result, "protocol", RPC_PROTOCOL);
    rpc_each_method(add_capability, cJSON_AddArrayToObject(call->result, "capabilities"));
}

static void info(struct rpc_call *call)
{
    const struct daemon *d = call->daemon;
    cJSON *v = cJSON_CreateObject(), *slots;

    cJSON_AddStringToObject(v, "version", BF_VERSION);
    cJSON_AddStringToObject(v, "protocol", "2.0");
    cJSON_AddNumberToObject(v, "pid", (double)getpid());
    cJSON_AddNumberToObject(v, "uptime_s", (double)(clock_mono_ns() - d->started_ns) / 1e9);
    cJSON_AddStringToObject(v, "state_dir", d->options->state_dir);
    cJSON_AddStringToObject(v, "launcher", d->launcher->ops->name);
    cJSON_AddBoolToObject(v, "draining", d->draining);
    cJSON_AddItemToObject(v, "jobs", view_counts(d));
    cJSON_AddNumberToObject(v, "nodes", (double)d->inventory.n);
    slots = cJSON_AddObjectToObject(v, "slots");
    cJSON_AddNumberToObject(slots, "total", (double)inventory_slots(&d->inventory));
    cJSON_AddNumberToObject(slots, "used", (double)d->jobs.held_ranks);
    cJSON_AddItemToObject(v, "stats", view_stats(d));
    if (journal_trouble(d->journal))
        cJSON_AddStringToObject(v, "trouble", journal_trouble(d->journal));
    else
        cJSON_AddNullToObject(v, "trouble");
    call->result = v;
}

static void drain(struct rpc_call *call)
{
    struct daemon *d = call->daemon;

    if (!d->draining)
        log_info(&d->log, "draining: no new starts, no submissions (asked by uid %lld)",
                 (long long)call->conn->uid);
    d->draining = true;
    call->result = cJSON_CreateObject();
    cJSON_AddTrueToObject(call->result, "draining");
    cJSON_AddNumberToObject(call->result, "running", (double)actions_n_runs(d->actions));
}

static void shut_down(struct rpc_call *call)
{
    bool cancel = false;

    if (rpc_param_bool(call, "cancel", &cancel) < 0)
        return;
    call->result = cJSON_CreateObject();
    cJSON_AddTrueToObject(call->result, "stopping");
    cJSON_AddBoolToObject(call->result, "cancel", cancel);
    daemon_stop(call->daemon, cancel, "asked by a client");
}

static void spec_validate(struct rpc_call *call)
{
    const cJSON *doc = json_find(call->params, "spec");
    struct jobspec_errors errors = {0};
    struct jobspec_job *jobs;

    if (!doc) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/spec: nothing found, a job spec is accepted");
        return;
    }
    int n = jobspec_parse_jobs(doc, &jobs, &errors);
    call->result = cJSON_CreateObject();
    cJSON_AddItemToObject(call->result, "errors", jobspec_errors_to_json(&errors));
    if (n == 1)
        cJSON_AddItemToObject(call->result, "resolved", cJSON_Duplicate(jobs[0].resolved, true));
    else if (n > 1)
        cJSON_AddNumberToObject(call->result, "jobs", n);
    if (n > 0)
        jobspec_jobs_free(jobs, n);
    jobspec_errors_free(&errors);
}

static void estimate_spec(struct rpc_call *call, const struct jobspec *spec)
{
    int64_t ranks = spec->resources.ranks;
    const char *machine = NULL;
    struct estimate est;
    struct err e = ERR_INIT;

    if (rpc_param_int(call, "ranks", false, 1, ESTIMATE_MAX_RANKS, &ranks) < 0 ||
        rpc_param_str(call, "machine", &machine) < 0)
        return;
    struct estimate_query q = {.spec = spec,
                               .machine = estimate_machine_find(machine, spec, &e),
                               .ranks = (int)ranks};
    if (!q.machine || estimate_job(&q, &est, &e) < 0)
        rpc_fail_err(call, RPC_INVALID_PARAMS, &e);
    else
        call->result = estimate_to_json(&est);
}

static void spec_estimate(struct rpc_call *call)
{
    const cJSON *doc = json_find(call->params, "spec");
    struct jobspec_errors errors = {0};

    if (!doc) {
        rpc_fail(call, RPC_INVALID_PARAMS, "/params/spec: nothing found, a job spec is accepted");
        return;
    }
    struct jobspec *spec = xcalloc(1, sizeof *spec);
    if (jobspec_parse(doc, spec, NULL, &errors) == 0)
        estimate_spec(call, spec);
    else
        rpc_fail_spec(call, jobspec_errors_to_json(&errors));
    jobspec_errors_free(&errors);
    free(spec);
}

const struct rpc_method methods_daemon[] = {
    {"hello", ROLE_ANY, hello, "client protocol"},
    {"daemon.info", ROLE_VIEWER, info, ""},
    {"daemon.drain", ROLE_OPERATOR, drain, ""},
    {"daemon.shutdown", ROLE_ADMIN, shut_down, "cancel"},
    {"spec.validate", ROLE_VIEWER, spec_validate, "spec"},
    {"spec.estimate", ROLE_VIEWER, spec_estimate, "spec ranks machine"},
    {0},
};
