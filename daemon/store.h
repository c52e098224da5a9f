/* store - the SQLite database of jobs, events and nodes: <state-dir>/state.db.
 *
 * WAL with synchronous=FULL: what store_commit() said yes to survives a power failure. Ids and sequence
 * numbers rise and are never used twice (AUTOINCREMENT). One process at a time: the state directory's lock
 * sees to that. The store knows rows, not what they mean.
 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"

enum { STORE_SCHEMA_VERSION = 2 };

struct store;

/* Opens or creates; an older schema is brought up to date, with a copy of the old database kept beside.
 * Refuses one that is damaged, is not ours, was written by a newer version, or has lost a part; the message
 * says what to do. */
struct store *store_open(const char *path, struct err *e);
void store_close(struct store *s);

/* Opens for reading only: writes nothing, migrates nothing, and takes a lost part for granted. The caller
 * sees to it that nobody writes meanwhile. */
struct store *store_open_to_check(const char *path, struct err *e);

/* The schema that the file has; STORE_SCHEMA_VERSION after store_open(). */
int store_version(const struct store *s);

/* Makes every id given from now on larger than `id`: what lies in runs/ must not be met again by a database
 * that is new or older than it. */
int store_skip_ids(struct store *s, int64_t id, struct err *e);

/* Between begin and commit or rollback nothing is visible to others. A failed commit has been rolled back. */
int store_begin(struct store *s, struct err *e);
int store_commit(struct store *s, struct err *e);
void store_rollback(struct store *s);

/* Adds a job; `key` may be NULL. Sets *id. */
int store_add_job(struct store *s, int64_t uid, const char *key, const char *spec, int64_t *id,
                  struct err *e);

/* Looks for the job that this user submitted with this key: 1 and *id, 0 when there is none, -1. */
int store_find_key(struct store *s, int64_t uid, const char *key, int64_t *id, struct err *e);

int store_add_event(struct store *s, int64_t job, int64_t time_ms, const char *data, int64_t *seq,
                    struct err *e);

/* The spec as it was stored, malloc'ed; NULL when there is no such job or it cannot be read. */
char *store_spec(struct store *s, int64_t job, struct err *e);

/* Calls fn for at most `limit` events with seq > since (of one job, or of all when job is 0), in order. fn
 * returns -1 to stop with its error. Returns how many were given, or -1. `data` is borrowed. */
typedef int store_event_fn(void *ctx, int64_t seq, int64_t job, int64_t time_ms, const char *data,
                           struct err *e);
int64_t store_each_event(struct store *s, int64_t job, int64_t since, int64_t limit, store_event_fn *fn,
                         void *ctx, struct err *e);

/* A node that an administrator has taken out of service, or has put back. Borrowed in callbacks. */
struct store_node {
    const char *name, *reason;
    bool drained;
    int64_t since_ms;
};

/* Adds the node or replaces what is known of it. Durable on return when no transaction is open. */
int store_set_node(struct store *s, const struct store_node *node, struct err *e);

/* Calls fn for every node that was ever set, by name. fn returns -1 to stop with its error. Returns how many,
 * or -1. */
typedef int store_node_fn(void *ctx, const struct store_node *node, struct err *e);
int64_t store_each_node(struct store *s, store_node_fn *fn, void *ctx, struct err *e);

/* --- store_check.c: looking for faults --- */

/* `what` is a sentence. */
typedef void store_fault_fn(void *ctx, const char *what);

/* What the database itself can say: its pages and indices, references, counters that would give a number
 * again, gaps in the sequence of events. -1 when it cannot even be asked. */
int store_check(struct store *s, store_fault_fn *fn, void *ctx, struct err *e);

/* Says when a part of the database that was there at the last commit is missing: its write-ahead log, or
 * itself. */
int store_check_parts(const char *path, struct err *e);

/* The largest id that was ever given to a job or stepped over. */
int store_last_id(struct store *s, int64_t *id, struct err *e);

/* Calls fn for every job, by id. */
typedef int store_job_fn(void *ctx, int64_t id, int64_t uid, const char *spec, struct err *e);
int64_t store_each_job(struct store *s, store_job_fn *fn, void *ctx, struct err *e);

#endif
