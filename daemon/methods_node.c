/* methods_node - node.list, drain, resume. */
#include "common/clock.h"
#include "daemon/actions.h"
#include "daemon/conn.h"
#include "daemon/planner.h"

#include <stdlib.h>
#include <string.h>

static void add_jobs(cJSON *v, const struct daemon *d, const struct node *n)
{
    cJSON *jobs = cJSON_AddArrayToObject(v, "jobs");

    for (size_t i = 0; i < d->jobs.n_active; i++) {
        const struct job *job = d->jobs.active[i];
        for (int64_t k = 0; k < job->place.n; k++)
            if (strcmp(job->place.v[k].node, n->name) == 0)
                cJSON_AddItemToArray(jobs, cJSON_CreateNumber((double)job->id));
    }
}

static cJSON *view_node(const struct daemon *d, const struct node *n, const struct node_use *use,
                        bool with_jobs)
{
    int64_t now_ms = clock_wall_ms();
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "name", n->name);
    cJSON_AddStringToObject(v, "health",
                            d->draining && inventory_usable(n, now_ms) ? "draining"
                                                                       : inventory_health(n, now_ms));
    if (n->reason[0])
        cJSON_AddStringToObject(v, "reason", n->reason);
    if (n->drained)
        cJSON_AddNumberToObject(v, "drained_ms", (double)n->drained_ms);
    else if (!inventory_usable(n, now_ms))
        cJSON_AddNumberToObject(v, "aside_until_ms", (double)n->aside_until_ms);
    cJSON_AddNumberToObject(v, "slots", (double)n->slots);
    cJSON_AddNumberToObject(v, "slots_free", (double)(n->slots - use->ranks));
    cJSON_AddNumberToObject(v, "gpus", __builtin_popcountll(n->gpus));
    cJSON_AddNumberToObject(v, "gpus_free", __builtin_popcountll(n->gpus & ~use->gpus));
    if (with_jobs)
        add_jobs(v, d, n);
    return v;
}

static struct node_use *use_of(const struct daemon *d)
{
    struct node_use *use = xcalloc(d->inventory.n, sizeof *use);

    inventory_use(&d->inventory, &d->jobs, use);
    return use;
}

static void list(struct rpc_call *call)
{
    const struct daemon *d = call->daemon;
    struct node_use *use = use_of(d);

    call->result = cJSON_CreateObject();
    cJSON *nodes = cJSON_AddArrayToObject(call->result, "nodes");
    for (size_t i = 0; i < d->inventory.n; i++)
        cJSON_AddItemToArray(nodes, view_node(d, &d->inventory.v[i], &use[i], true));
    free(use);
}

static void set_drained(struct rpc_call *call, bool drained)
{
    struct daemon *d = call->daemon;
    const char *name = NULL, *reason = NULL;
    char user[JOB_MAX_USER], why[NODE_MAX_REASON];
    struct err e = ERR_INIT;

    if (rpc_param_str(call, "name", &name) < 0 || (drained && rpc_param_str(call, "reason", &reason) < 0))
        return;
    struct node *n = name ? inventory_find(&d->inventory, name) : NULL;
    if (!n) {
        rpc_fail(call, name ? RPC_NOT_FOUND : RPC_INVALID_PARAMS,
                 name ? "there is no node \"%.64s\""
                      : "/params/name: nothing found, a node's name is accepted%s",
                 name ? name : "");
        return;
    }
    rpc_caller_name(call, user, sizeof user);
    snprintf(why, sizeof why, "%s by %s%s%s", drained ? "drained" : "resumed", user,
             reason && *reason ? ": " : "", reason ? reason : "");
    if (inventory_drain(n, d->store, drained, drained ? why : "", clock_wall_ms(), &e) < 0) {
        rpc_fail_err(call, RPC_OVERLOADED, &e);
        return;
    }
    log_info(&d->log, "node %s %s", n->name, why);
    planner_wake(actions_planner(d->actions));
    planner_run(actions_planner(d->actions));
    struct node_use *use = use_of(d);
    call->result = view_node(d, n, &use[n - d->inventory.v], true);
    free(use);
}

static void drain(struct rpc_call *call)
{
    set_drained(call, true);
}

static void resume(struct rpc_call *call)
{
    set_drained(call, false);
}

const struct rpc_method methods_node[] = {
    {"node.list", ROLE_VIEWER, list, ""},
    {"node.drain", ROLE_OPERATOR, drain, "name reason"},
    {"node.resume", ROLE_OPERATOR, resume, "name"},
    {0},
};
