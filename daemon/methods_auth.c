/* methods_auth - auth.login and the token.* methods. */
#include "common/clock.h"
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/identity.h"
#include "daemon/limits.h"
#include "daemon/server.h"
#include "daemon/tokens.h"

#include <stdio.h>
#include <string.h>

enum { DEFAULT_EXPIRES_S = 30 * 86400, MAX_EXPIRES_S = 10 * 365 * 86400 };

static struct tokens *tokens_of(const struct rpc_call *call)
{
    return server_tokens(call->daemon->server);
}

static void add_time(cJSON *v, const char *key, int64_t ms)
{
    cJSON_AddItemToObject(v, key, ms ? cJSON_CreateNumber((double)ms) : cJSON_CreateNull());
}

/* --- auth.login --- */

/* The connection hears why and ends: a guesser begins anew each time. */
static void turn_away(struct rpc_call *call)
{
    struct conn *c = call->conn;

    log_warn(&call->daemon->log, "client %llu (%s): login with a token that is not known here",
             (unsigned long long)c->id, c->peer);
    rpc_fail(call, RPC_NOT_LOGGED_IN,
             "this token is not known here: it is wrong, has expired or was revoked");
    c->close_when_flushed = true;
}

static void login(struct rpc_call *call)
{
    struct conn *c = call->conn;
    int64_t now = clock_wall_ms();
    const char *secret = "";
    struct limit_hit hit;

    if (rpc_param_str(call, "token", &secret) < 0)
        return;
    if (c->kind == CONN_GUEST) {
        rpc_fail(call, RPC_FORBIDDEN, "this socket is for workers: people come in by another one");
        return;
    }
    if (c->token || c->worker_job) {
        rpc_fail(call, RPC_WRONG_STATE, "this connection is logged in already");
        return;
    }
    const struct token *t = tokens_match(tokens_of(call), secret, now);
    if (!t) {
        turn_away(call);
        return;
    }
    if (conn_login(c, t, &hit) < 0) {
        rpc_fail_limit(call, &hit);
        c->close_when_flushed = true;
        return;
    }
    log_info(&call->daemon->log, "client %llu is %s, role %s", (unsigned long long)c->id, c->peer,
             role_name(t->role));
    call->result = cJSON_CreateObject();
    cJSON_AddStringToObject(call->result, "user", t->user);
    cJSON_AddStringToObject(call->result, "role", role_name(t->role));
    add_time(call->result, "expires", t->expires_ms);
    tokens_used(tokens_of(call), t->id, now);
}

/* --- token.* --- */

static int bad_param(struct rpc_call *call, const char *name, const struct err *e)
{
    rpc_fail(call, RPC_INVALID_PARAMS, "/params/%s: %s", name, e->msg);
    return -1;
}

/* One line of text. */
static int read_note(struct rpc_call *call, struct token *t)
{
    const char *note = "";
    size_t n;

    if (rpc_param_str(call, "note", &note) < 0)
        return -1;
    for (n = 0; note[n]; n++)
        if ((unsigned char)note[n] < 0x20 || note[n] == 0x7f)
            break;
    if (note[n] || n > TOKEN_MAX_NOTE) {
        rpc_fail(call, RPC_INVALID_PARAMS,
                 "/params/note: at most %d bytes without control characters are accepted", TOKEN_MAX_NOTE);
        return -1;
    }
    strcpy(t->note, note);
    return 0;
}

static int read_wanted(struct rpc_call *call, struct token *t)
{
    const char *user = NULL, *role = "user";
    int64_t expires_s = DEFAULT_EXPIRES_S;
    struct err e = ERR_INIT;

    *t = (struct token){.uid = call->conn->uid, .created_ms = clock_wall_ms()};
    if (rpc_param_str(call, "user", &user) < 0 || rpc_param_str(call, "role", &role) < 0 ||
        rpc_param_int(call, "expires_s", false, 0, MAX_EXPIRES_S, &expires_s) < 0 || read_note(call, t) < 0)
        return -1;
    if (user && identity_find_user(user, &t->uid, &e) < 0)
        return bad_param(call, "user", &e);
    if (role_parse(role, &t->role, &e) < 0)
        return bad_param(call, "role", &e);
    if (t->uid == 0 && call->conn->uid != 0) {
        rpc_fail(call, RPC_FORBIDDEN,
                 "a token for root is root's alone to make: under root its jobs run as root");
        return -1;
    }
    identity_name(t->uid, t->user, sizeof t->user);
    identity_name(call->conn->uid, t->by, sizeof t->by);
    t->expires_ms = expires_s ? t->created_ms + expires_s * 1000 : 0;
    return 0;
}

static void create(struct rpc_call *call)
{
    struct tokens *tokens = tokens_of(call);
    char secret[TOKEN_TEXT_BYTES];
    struct err e = ERR_INIT;
    struct token t;
    int64_t id;

    if (read_wanted(call, &t) < 0)
        return;
    tokens_tend(tokens);
    if (tokens_create(tokens, &t, &id, secret, &e) < 0) {
        rpc_fail_err(call, RPC_OVERLOADED, &e);
        return;
    }
    log_info(&call->daemon->log, "token %lld for %s, role %s, made by %s", (long long)id, t.user,
             role_name(t.role), t.by);
    call->result = cJSON_CreateObject();
    cJSON_AddNumberToObject(call->result, "id", (double)id);
    cJSON_AddStringToObject(call->result, "token", secret);
    cJSON_AddStringToObject(call->result, "user", t.user);
    cJSON_AddStringToObject(call->result, "role", role_name(t.role));
    add_time(call->result, "expires", t.expires_ms);
}

static cJSON *view(const struct token *t, int64_t now_ms)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "id", (double)t->id);
    cJSON_AddStringToObject(v, "user", t->user);
    cJSON_AddNumberToObject(v, "uid", (double)t->uid);
    cJSON_AddStringToObject(v, "role", role_name(t->role));
    cJSON_AddStringToObject(v, "note", t->note);
    cJSON_AddStringToObject(v, "by", t->by);
    cJSON_AddBoolToObject(v, "expired", t->expires_ms && now_ms >= t->expires_ms);
    add_time(v, "created", t->created_ms);
    add_time(v, "expires", t->expires_ms);
    add_time(v, "used", t->used_ms);
    return v;
}

static void list(struct rpc_call *call)
{
    enum { MAX_LIST = 1000 }; /* of at most some hundred bytes each */
    struct tokens *tokens = tokens_of(call);
    int64_t above = 0, now = clock_wall_ms(), last = 0;
    const struct token *t;
    int n = 0;

    if (rpc_param_int(call, "cursor", false, 0, (int64_t)1 << 53, &above) < 0)
        return;
    call->result = cJSON_CreateObject();
    cJSON *all = cJSON_AddArrayToObject(call->result, "tokens");
    for (size_t i = 0; (t = tokens_at(tokens, i)); i++) {
        if (t->id <= above)
            continue;
        if (n++ == MAX_LIST) {
            cJSON_AddNumberToObject(call->result, "cursor", (double)last);
            break;
        }
        cJSON_AddItemToArray(all, view(t, now));
        last = t->id;
    }
}

struct revoked {
    int64_t id;
    int n_conns;
};

/* The connection that revokes its own token still hears that it is done. */
static void end_conn(struct conn *c, void *ctx)
{
    struct revoked *r = ctx;

    if (c->token != r->id)
        return;
    r->n_conns++;
    conn_expel(c, "the token of this connection was revoked");
}

static void revoke_one(struct rpc_call *call)
{
    struct tokens *tokens = tokens_of(call);
    struct err e = ERR_INIT;
    struct revoked r = {0};

    if (rpc_param_int(call, "id", true, 1, (int64_t)1 << 53, &r.id) < 0)
        return;
    tokens_tend(tokens);
    if (tokens_revoke(tokens, r.id, &e) < 0) {
        rpc_fail_err(call, e.kind == ERR_USAGE ? RPC_NOT_FOUND : RPC_OVERLOADED, &e);
        return;
    }
    log_info(&call->daemon->log, "token %lld was revoked (by client %llu, %s)", (long long)r.id,
             (unsigned long long)call->conn->id, call->conn->peer);
    server_each(call->daemon->server, end_conn, &r);
    call->result = cJSON_CreateObject();
    cJSON_AddNumberToObject(call->result, "id", (double)r.id);
    cJSON_AddNumberToObject(call->result, "connections", r.n_conns);
}

const struct rpc_method methods_auth[] = {
    {"auth.login", ROLE_ANY, login, "token"},
    {"token.create", ROLE_ADMIN, create, "user role expires_s note"},
    {"token.list", ROLE_ADMIN, list, "cursor"},
    {"token.revoke", ROLE_ADMIN, revoke_one, "id"},
    {0},
};
