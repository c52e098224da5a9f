/* store - the SQLite database of jobs and events: <state-dir>/state.db.
 *
 * WAL with synchronous=FULL: what store_commit() said yes to survives a power failure. Ids and sequence
 * numbers rise and are never used twice (AUTOINCREMENT). One process at a time: the state directory's lock
 * sees to that. The store knows rows, not what they mean.
 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdint.h>
#include "common/err.h"

enum { STORE_SCHEMA_VERSION = 1 };

struct store;

/* Opens or creates. Refuses a database that is damaged, is not ours, or was written by a newer version; the
 * message says what to do. */
struct store *store_open(const char *path, struct err *e);
void store_close(struct store *s);

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

#endif
