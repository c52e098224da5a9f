/* rpc - see rpc.h.
 *
 * All calls of one line form a group: a single call, or the members of a batch. Answers gather in the group
 * and leave together when the last one is there; a group without answers (notifications only) sends nothing,
 * as the standard says.
 */
#include "daemon/rpc.h"
#include "common/conf.h"
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/server.h"

#include <pwd.h>
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
                                                    methods_steer,  methods_data, methods_worker};
enum { N_FAMILIES = sizeof families / sizeof *families };

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

static bool role_fits(struct rpc_call *call, const struct rpc_method *m)
{
    const struct conn *c = call->conn;

    if (m->role == ROLE_WORKER ? c->worker_job != 0 : c->role >= m->role)
        return true;
    if (m->role == ROLE_WORKER)
        rpc_fail(call, RPC_FORBIDDEN, "%s is for workers that have attached", m->name);
    else
        rpc_fail(call, RPC_FORBIDDEN,
                 "%s is for administrators: root, or the user whom the coordinator runs as", m->name);
    return false;
}

static void dispatch(struct conn *c, struct rpc_group *g, const struct rpc_msg *m)
{
    static const cJSON no_params = {.type = cJSON_Object};
    struct rpc_call call = {.daemon = c->daemon,
                            .conn = c,
                            .group = g,
                            .id = m->kind == RPC_REQUEST ? m->id : NULL,
                            .params = m->params ? m->params : &no_params};
    const struct rpc_method *method = find_method(m->method);

    if (!method)
        fail_unknown(&call, m->method);
    else if (role_fits(&call, method) && params_fit(&call, method, m->params))
        method->fn(&call);
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

void rpc_caller_name(const struct rpc_call *call, char *out, size_t size)
{
    struct passwd pw, *found = NULL;
    char buf[4096];

    if (getpwuid_r((uid_t)call->conn->uid, &pw, buf, sizeof buf, &found) == 0 && found)
        snprintf(out, size, "%s", found->pw_name);
    else
        snprintf(out, size, "%lld", (long long)call->conn->uid);
}

bool rpc_may_touch(const struct rpc_call *call, const struct job *job)
{
    return call->conn->role == ROLE_ADMIN || call->conn->uid == job->uid;
}

struct job *rpc_param_job(struct rpc_call *call)
{
    int64_t id;

    if (rpc_param_int(call, "id", true, 1, (int64_t)1 << 53, &id) < 0)
        return NULL;
    struct job *job = jobs_find(&call->daemon->jobs, id);
    if (!job)
        rpc_fail(call, RPC_NOT_FOUND, "there is no job %lld", (long long)id);
    else if (!rpc_may_touch(call, job))
        rpc_fail(call, RPC_FORBIDDEN, "job %lld belongs to %s", (long long)id, job->user);
    else
        return job;
    return NULL;
}
