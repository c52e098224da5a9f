/* rpc - JSON-RPC dispatch: a table of methods with their roles and parameters, batches, answers now or later.
 */
#ifndef DAEMON_RPC_H
#define DAEMON_RPC_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "proto/rpc_msg.h"

struct conn;
struct daemon;
struct job;

/* Who may call. Roles rise: an admin may do what a user may. A worker is a connection that attached with a
 * token. */
enum rpc_role { ROLE_ANY, ROLE_USER, ROLE_ADMIN, ROLE_WORKER };

/* One call while its method runs. */
struct rpc_call {
    struct daemon *daemon;
    struct conn *conn;
    const cJSON *params; /* an object, perhaps empty */
    /* The answer: a result, or a code with its message and data. Owned by the call. */
    cJSON *result;
    int code;
    char message[1024];
    cJSON *data;
    struct rpc_later *later;
    const cJSON *id; /* NULL for a notification */
    struct rpc_group *group;
};

/* A method fills in the answer and returns, or fails with rpc_fail(), or promises one with rpc_later(). */
typedef void rpc_fn(struct rpc_call *call);

struct rpc_method {
    const char *name;
    enum rpc_role role;
    rpc_fn *fn;
    const char *params; /* names that are accepted, separated by blanks */
};

/* The families' tables, ended by a row without a name. */
extern const struct rpc_method methods_daemon[], methods_node[], methods_job[], methods_steer[],
    methods_data[], methods_worker[];

/* Calls fn with the name of every method. */
void rpc_each_method(void (*fn)(void *ctx, const char *name), void *ctx);

/* Takes one line apart and answers it. */
void rpc_handle_line(struct conn *c, const char *line, size_t len);

/* Answers a line that was too long. */
void rpc_handle_too_long(struct conn *c);

/* Sets the error of a call. */
void rpc_fail(struct rpc_call *call, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void rpc_fail_err(struct rpc_call *call, int code, const struct err *e);

/* Error 1002; takes ownership of the array of {pointer, message}, which is not empty. */
void rpc_fail_spec(struct rpc_call *call, cJSON *errors);

/* Promises an answer for later; exactly one of the two functions below must follow, on every path. The
 * connection may be gone by then. */
struct rpc_later *rpc_later(struct rpc_call *call);
void rpc_later_result(struct rpc_later *l, cJSON *result); /* owns result */
struct daemon *rpc_later_daemon(const struct rpc_later *l);
void rpc_later_error(struct rpc_later *l, int code, const char *message);

/* Parameters. -1 has set the error. `out` keeps its value when an optional one is absent (or null). */
int rpc_param_int(struct rpc_call *call, const char *name, bool required, int64_t min, int64_t max,
                  int64_t *out);
int rpc_param_str(struct rpc_call *call, const char *name, const char **out);
int rpc_param_bool(struct rpc_call *call, const char *name, bool *out);

/* The job that parameter "id" names, if the caller may touch it; NULL has set the error. */
struct job *rpc_param_job(struct rpc_call *call);

/* The caller's user name, or number where it has none. */
void rpc_caller_name(const struct rpc_call *call, char *out, size_t size);

/* May the caller see into and change this job? */
bool rpc_may_touch(const struct rpc_call *call, const struct job *job);

#endif
