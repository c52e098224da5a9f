/* rpc - see rpc.h.
 *
 * All calls of one line form a group: a single call, or the members of a batch. Answers gather in the group
 * and leave together when the last one is there; a group without answers (notifications only) sends nothing,
 * as the standard says.
 */
#include "daemon/rpc.h"
#include "common/clock.h"
#include "common/conf.h"
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/identity.h"
#include "daemon/limits.h"
#include "daemon/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCH = 128, MAX_METHODS = 64 };

struct rpc_group {
    struct daemon *daemon;
    uint64_t conn_id;
    bool batch;
    int n_open; /* answers that are still to come, and one for the line being handled */
    cJSON *answers;
};

struct rpc_later {
    struct rpc_group *group;
    cJSON *id; /* NULL for a notification: nobody waits */
};

static const struct rpc_method *const families[] = {methods_daemon, methods_node, methods_job,
                                                    methods_steer,  methods_data, methods_auth,
                                                    methods_worker};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* Methods that read files are as much work as so many plain requests. */
static const struct {
    const char *name;
    int cost;
} costs[] = {{"job.logs", 10}, {"job.metrics", 50}};

/* --- groups --- */

static void group_answer(struct rpc_group *g, cJSON *doc)
{
    cJSON_AddItemToArray(g->answers, doc);
}

static void group_release(struct rpc_group *g)
{
    if (--g->n_open > 0)
        return;
    struct conn *c = server_conn(g->daemon->server, g->conn_id);
    if (c && cJSON_GetArraySize(g->answers) > 0) {
        if (g->batch) {
            conn_send(c, g->answers);
            g->answers = NULL;
        } else {
            conn_send(c, cJSON_DetachItemFromArray(g->answers, 0));
        }
    }
    cJSON_Delete(g->answers);
    free(g);
}

static struct rpc_group *group_create(struct conn *c)
{
    struct rpc_group *g = xcalloc(1, sizeof *g);

    g->daemon = c->daemon;
    g->conn_id = c->id;
    g->n_open = 1;
    g->answers = cJSON_CreateArray();
    return g;
}

struct rpc_later *rpc_later(struct rpc_call *call)
{
    struct rpc_later *l = xcalloc(1, sizeof *l);

    l->group = call->group;
    l->group->n_open++;
    l->id = call->id ? cJSON_Duplicate(call->id, true) : NULL;
    call->later = l;
    return l;
}

static void later_finish(struct rpc_later *l, cJSON *doc)
{
    if (doc)
        group_answer(l->group, doc);
    group_release(l->group);
    cJSON_Delete(l->id);
    free(l);
}

struct daemon *rpc_later_daemon(const struct rpc_later *l)
{
    return l->group->daemon;
}

void rpc_later_result(struct rpc_later *l, cJSON *result)
{
    if (l->id) {
        later_finish(l, rpc_result(l->id, result));
    } else {
        cJSON_Delete(result);
        later_finish(l, NULL);
    }
}

void rpc_later_error(struct rpc_later *l, int code, const char *message)
{
    later_finish(l, l->id ? rpc_error(l->id, code, message, NULL) : NULL);
}

/* --- answers --- */

void rpc_fail(struct rpc_call *call, int code, const char *fmt, ...)
{
    va_list ap;

    call->code = code;
    va_start(ap, fmt);
    vsnprintf(call->message, sizeof call->message, fmt, ap);
    va_end(ap);
}

void rpc_fail_err(struct rpc_call *call, int code, const struct err *e)
{
    rpc_fail(call, code, "%s", e->msg);
}

void rpc_fail_limit(struct rpc_call *call, const struct limit_hit *hit)
{
    rpc_fail(call, RPC_OVERLOADED, "%s", hit->message);
    call->data = cJSON_CreateObject();
    cJSON_AddStringToObject(call->data, "limit", hit->option);
    cJSON_AddNumberToObject(call->data, "value", (double)hit->value);
    if (hit->retry_ms)
        cJSON_AddNumberToObject(call->data, "retry_ms", (double)hit->retry_ms);
}

void rpc_fail_spec(struct rpc_call *call, cJSON *errors)
{
    int n = cJSON_GetArraySize(errors);
    const cJSON *first = json_find(errors->child, "message"), *at = json_find(errors->child, "pointer");

    rpc_fail(call, RPC_INVALID_SPEC, "invalid spec: %d error%s; first: %s: %.600s", n, n == 1 ? "" : "s",
             cJSON_IsString(at) ? at->valuestring : "", cJSON_IsString(first) ? first->valuestring : "");
    call->data = cJSON_CreateObject();
    cJSON_AddItemToObject(call->data, "errors", errors);
}

static void answer_call(struct rpc_call *call)
{
    if (call->later || !call->id) {
        cJSON_Delete(call->result);
        cJSON_Delete(call->data);
        return;
    }
    if (call->code) {
        cJSON_Delete(call->result);
        group_answer(call->group, rpc_error(call->id, call->code, call->message, call->data));
    } else {
        group_answer(call->group, rpc_result(call->id, call->result));
    }
}

/* --- dispatch --- */

static const struct rpc_method *find_method(const char *name)
{
    for (int f = 0; f < N_FAMILIES; f++)
        for (const struct rpc_method *m = families[f]; m->name; m++)
            if (strcmp(m->name, name) == 0)
                return m;
    return NULL;
}

void rpc_each_method(void (*fn)(void *ctx, const char *name), void *ctx)
{
    for (int f = 0; f < N_FAMILIES; f++)
        for (const struct rpc_method *m = families[f]; m->name; m++)
            fn(ctx, m->name);
}

static void fail_unknown(struct rpc_call *call, const char *name)
{
    const char *names[MAX_METHODS];
    size_t n = 0;

    for (int f = 0; f < N_FAMILIES; f++)
        for (const struct rpc_method *m = families[f]; m->name && n < MAX_METHODS; m++)
            names[n++] = m->name;
    const char *near = conf_nearest(name, names, n);
    rpc_fail(call, RPC_METHOD_NOT_FOUND, "unknown method \"%.64s\"%s%s%s", name,
             near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

/* Is `name` one of the blank-separated words? */
static bool has_word(const char *words, const char *name)
{
    size_t n = strlen(name);

    for (const char *p = words; n && (p = strstr(p, name)); p += n)
        if ((p == words || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
            return true;
    return false;
}

static bool params_fit(struct rpc_call *call, const struct rpc_method *m, const cJSON *params)
{
    if (params && !cJSON_IsObject(params)) {
        rpc_fail(call, RPC_INVALID_PARAMS, "%s takes its parameters by name: an object is accepted", m->name);
        return false;
    }
    for (const cJSON *p = params ? params->child : NULL; p; p = p->next)
        if (!has_word(m->params, p->string)) {
            rpc_fail(call, RPC_INVALID_PARAMS, "%s: unknown parameter \"%.64s\"; accepted: %s", m->name,
                     p->string, *m->params ? m->params : "none");
            return false;
        }
    return true;
}

/* Who may call what needs this role. */
static const char *who_may(enum role role)
{
    switch (role) {
    case ROLE_USER:
        return "whoever is no viewer";
    case ROLE_OPERATOR:
        return "operators (--operators) and administrators";
    default:
        return "administrators: root, the user whom the coordinator runs as, and those that --admins names";
    }
}

static bool role_fits(struct rpc_call *call, const struct rpc_method *m)
{
    const struct conn *c = call->conn;

    if (m->role == ROLE_WORKER ? c->worker_job != 0 : c->role >= m->role)
        return true;
    if (m->role == ROLE_WORKER)
        rpc_fail(call, RPC_FORBIDDEN, "%s is for workers that have attached", m->name);
    else
        rpc_fail(call, RPC_FORBIDDEN, "%s is for %s; your role is %s", m->name, who_may(m->role),
                 role_name(c->role));
    return false;
}

/* A connection of which it is not known who it is may say so, or report for a worker, and nothing else: it
 * does not even learn which methods there are. */
static bool is_let_in(struct rpc_call *call, const struct rpc_method *m)
{
    struct conn *c = call->conn;

    if (!conn_is_known(c) && ++c->n_strange >= CONN_MAX_STRANGE)
        c->close_when_flushed = true;
    if (c->role != ROLE_ANY || (m && (m->role == ROLE_ANY || (m->role == ROLE_WORKER && c->worker_job))))
        return true;
    rpc_fail(call, RPC_NOT_LOGGED_IN, "not logged in: the first call is auth.login {\"token\": …}");
    return false;
}

static int cost_of(const struct rpc_method *m)
{
    for (size_t i = 0; m && i < sizeof costs / sizeof *costs; i++)
        if (strcmp(m->name, costs[i].name) == 0)
            return costs[i].cost;
    return 1;
}

/* Reports of workers are not counted: they are the daemon's own doing, and cannot be answered. */
static bool is_within_limits(struct rpc_call *call, const struct rpc_method *m)
{
    const struct conn *c = call->conn;
    struct limit_hit hit;

    if (c->role == ROLE_ANY || c->role == ROLE_ADMIN || (m && m->role == ROLE_WORKER) ||
        limits_request(server_limits(c->daemon->server), c->uid, cost_of(m), clock_mono_ns(), &hit) == 0)
        return true;
    rpc_fail_limit(call, &hit);
    return false;
}

static void dispatch(struct conn *c, struct rpc_group *g, const struct rpc_msg *m)
{
    static const cJSON no_params = {.type = cJSON_Object};
    const struct rpc_method *method = find_method(m->method);
    struct rpc_call call = {.daemon = c->daemon,
                            .conn = c,
                            .method = method,
                            .group = g,
                            .id = m->kind == RPC_REQUEST ? m->id : NULL,
                            .params = m->params ? m->params : &no_params};

    if (is_let_in(&call, method) && is_within_limits(&call, method)) {
        if (!method)
            fail_unknown(&call, m->method);
        else if (role_fits(&call, method) && params_fit(&call, method, m->params))
            method->fn(&call);
    }
    if (call.code && !call.id)
        log_debug(&c->daemon->log, "client %llu: notification %.64s ignored: %s", (unsigned long long)c->id,
                  m->method, call.message);
    answer_call(&call);
}

static void handle_doc(struct conn *c, struct rpc_group *g, const cJSON *doc)
{
    struct err e = ERR_INIT;
    struct rpc_msg m;

    if (rpc_msg_read(doc, &m, &e) < 0)
        group_answer(g, rpc_error(NULL, RPC_INVALID_REQUEST, e.msg, NULL));
    else if (m.kind == RPC_REQUEST || m.kind == RPC_NOTIFICATION)
        dispatch(c, g, &m);
    /* Results and errors answer nothing: the coordinator sends no requests. */
}

static void handle_batch(struct conn *c, struct rpc_group *g, const cJSON *doc)
{
    int n = cJSON_GetArraySize(doc);

    if (n < 1 || n > MAX_BATCH) {
        char why[96];
        snprintf(why, sizeof why, "batch of %d messages: 1 to %d are accepted", n, MAX_BATCH);
        group_answer(g, rpc_error(NULL, RPC_INVALID_REQUEST, why, NULL));
        return;
    }
    g->batch = true;
    for (const cJSON *m = doc->child; m && !c->closing; m = m->next)
        handle_doc(c, g, m);
}

void rpc_handle_line(struct conn *c, const char *line, size_t len)
{
    struct rpc_group *g = group_create(c);
    struct err e = ERR_INIT;
    cJSON *doc = json_parse(line, len, &e);

    if (!doc)
        group_answer(g, rpc_error(NULL, RPC_PARSE_ERROR, e.msg, NULL));
    else if (cJSON_IsArray(doc))
        handle_batch(c, g, doc);
    else
        handle_doc(c, g, doc);
    cJSON_Delete(doc);
    group_release(g);
    if (!c->closing && c->watch.active)
        watch_pump(c);
}

void rpc_handle_too_long(struct conn *c)
{
    char why[80];

    snprintf(why, sizeof why, "line too long: at most %d bytes are accepted", FRAME_MAX_BYTES);
    conn_send(c, rpc_error(NULL, RPC_INVALID_REQUEST, why, NULL));
}

/* Jobs of the user (-1: of all) that have not ended, those on their way to the disk among them. */
static int64_t count_active(const struct daemon *d, int64_t uid)
{
    int64_t n = journal_n_submitting(d->journal, uid);

    if (uid < 0)
        return n + (int64_t)d->jobs.n_active;
    for (size_t i = 0; i < d->jobs.n_active; i++)
        n += d->jobs.active[i]->uid == uid;
    return n;
}

static void fail_spec_size(struct rpc_call *call, const struct limit_hit *hit)
{
    cJSON *errors = cJSON_CreateArray(), *v = cJSON_CreateObject();

    cJSON_AddItemToArray(errors, v);
    cJSON_AddStringToObject(v, "pointer", "");
    cJSON_AddStringToObject(v, "message", hit->message);
    rpc_fail_spec(call, errors);
}

bool rpc_take_submission(struct rpc_call *call, int64_t n_jobs, int64_t n_bytes)
{
    const struct conn *c = call->conn;
    struct limits *l = server_limits(call->daemon->server);
    struct limits_jobs jobs = {.exempt = c->role == ROLE_ADMIN, .n_new = n_jobs};
    struct limit_hit hit;

    if (limits_spec_size(l, n_bytes, &hit) < 0) {
        fail_spec_size(call, &hit);
        return false;
    }
    jobs.n_all = count_active(call->daemon, -1);
    jobs.n_user = jobs.exempt ? 0 : count_active(call->daemon, c->uid);
    if (limits_submission(l, c->uid, &jobs, clock_mono_ns(), &hit) == 0)
        return true;
    rpc_fail_limit(call, &hit);
    return false;
}

/* --- parameters --- */

static int bad_param(struct rpc_call *call, const struct err *e)
{
    rpc_fail_err(call, RPC_INVALID_PARAMS, e);
    return -1;
}

static bool is_given(const struct rpc_call *call, const char *name)
{
    const cJSON *v = json_find(call->params, name);

    return v && !cJSON_IsNull(v);
}

int rpc_param_int(struct rpc_call *call, const char *name, bool required, int64_t min, int64_t max,
                  int64_t *out)
{
    struct err e = ERR_INIT;

    if (!required && !is_given(call, name))
        return 0;
    return json_get_int(call->params, "/params", name, min, max, out, &e) < 0 ? bad_param(call, &e) : 0;
}

int rpc_param_str(struct rpc_call *call, const char *name, const char **out)
{
    struct err e = ERR_INIT;

    if (!is_given(call, name))
        return 0;
    return json_get_str(call->params, "/params", name, out, &e) < 0 ? bad_param(call, &e) : 0;
}

int rpc_param_bool(struct rpc_call *call, const char *name, bool *out)
{
    struct err e = ERR_INIT;

    if (!is_given(call, name))
        return 0;
    return json_get_bool(call->params, "/params", name, out, &e) < 0 ? bad_param(call, &e) : 0;
}

bool rpc_sees_all(const struct rpc_call *call)
{
    return role_sees_all(call->conn->role);
}

bool rpc_may_see(const struct rpc_call *call, const struct job *job)
{
    return rpc_sees_all(call) || call->conn->uid == job->uid;
}

void rpc_caller_name(const struct rpc_call *call, char *out, size_t size)
{
    identity_name(call->conn->uid, out, size);
}

bool rpc_may_touch(const struct rpc_call *call, const struct job *job)
{
    return role_touches_all(call->conn->role) || call->conn->uid == job->uid;
}

struct job *rpc_param_job(struct rpc_call *call)
{
    int64_t id;

    if (rpc_param_int(call, "id", true, 1, (int64_t)1 << 53, &id) < 0)
        return NULL;
    struct job *job = jobs_find(&call->daemon->jobs, id);
    if (!job)
        rpc_fail(call, RPC_NOT_FOUND, "there is no job %lld", (long long)id);
    else if (!(call->method->role == ROLE_VIEWER ? rpc_may_see(call, job) : rpc_may_touch(call, job)))
        rpc_fail(call, RPC_FORBIDDEN, "job %lld belongs to %s", (long long)id, job->user);
    else
        return job;
    return NULL;
}
