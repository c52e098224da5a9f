/* rpc - JSON-RPC dispatch: a table of methods with their roles and parameters, batches, answers now or later.
 */
#ifndef DAEMON_RPC_H
#define DAEMON_RPC_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "daemon/access.h"
#include "proto/rpc_msg.h"

struct conn;
struct daemon;
struct job;
struct limit_hit;
struct rpc_method;

/* One call while its method runs. */
struct rpc_call {
    struct daemon *daemon;
    struct conn *conn;
    const struct rpc_method *method;
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
    enum role role; /* that it needs; ROLE_VIEWER for those that change nothing */
    rpc_fn *fn;
    const char *params; /* names that are accepted, separated by blanks */
};

/* The families' tables, ended by a row without a name. */
extern const struct rpc_method methods_daemon[], methods_node[], methods_job[], methods_steer[],
    methods_data[], methods_worker[], methods_auth[];

/* Calls fn with the name of every method. */
void rpc_each_method(void (*fn)(void *ctx, const char *name), void *ctx);

/* Takes one line apart and answers it. */
void rpc_handle_line(struct conn *c, const char *line, size_t len);

/* Answers a line that was too long. */
void rpc_handle_too_long(struct conn *c);

/* Sets the error of a call. */
void rpc_fail(struct rpc_call *call, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void rpc_fail_err(struct rpc_call *call, int code, const struct err *e);

/* Error 1005 that names the limit, in its message and as data {limit, value, retry_ms?}. */
void rpc_fail_limit(struct rpc_call *call, const struct limit_hit *hit);

/* Counts n submitted jobs, whose resolved specs have at most n_bytes, against the caller's limits; false has
 * set the error, 1002 for one that is too large and 1005 for one too many. */
bool rpc_take_submission(struct rpc_call *call, int64_t n_jobs, int64_t n_bytes);

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

/* The job that parameter "id" names, if the caller may see it, and touch it where the method's role is above
 * ROLE_VIEWER; NULL has set the error. */
struct job *rpc_param_job(struct rpc_call *call);

/* The caller's user name, or number where it has none. */
void rpc_caller_name(const struct rpc_call *call, char *out, size_t size);

/* May the caller see into this job, change it, see those of every user? */
bool rpc_may_see(const struct rpc_call *call, const struct job *job);
bool rpc_may_touch(const struct rpc_call *call, const struct job *job);
bool rpc_sees_all(const struct rpc_call *call);

#endif
