/* journal - persist, apply, act: the only way in which a job changes.
 *
 * Whoever wants a job to change appends an event. Once per loop iteration, before the loop waits, the pending
 * events are committed in one transaction (a round); only then are they applied to the jobs and told to the
 * listener, which acts and tells watchers, and only then do the `done` callbacks run that answer clients. A
 * round holds at most one event of a job, checked against the state that the one before it has left; what the
 * listener appends meanwhile is the next round.
 *
 * When the disk refuses a round, nothing is applied. Requests of clients (appends with a `done`) fail with
 * the reason and are forgotten; events that report what has happened are kept and tried again every RETRY_MS.
 * The log says so at the first refusal, once a minute after that, and when it is over.
 */
#ifndef DAEMON_JOURNAL_H
#define DAEMON_JOURNAL_H

#include <uv.h>
#include "common/log.h"
#include "daemon/jobs.h"
#include "daemon/store.h"

/* `code`: 0, or the JSON-RPC error code that fits; `why` is then the sentence. `id` is the job's. */
typedef void journal_done_fn(void *ctx, int code, int64_t id, const char *why);

struct journal_listener {
    void *ctx;
    /* The event is durable and applied. */
    void (*applied)(void *ctx, struct job *job, const struct job_event *ev);
    /* A round is over: time to schedule. */
    void (*round_done)(void *ctx);
    /* The disk refused a round; journal_trouble() says why. May be NULL. */
    void (*round_failed)(void *ctx);
};

struct journal;

/* Replays the store into `jobs`. Borrows everything. */
struct journal *journal_create(uv_loop_t *loop, struct store *store, struct jobs *jobs, const struct log *log,
                               struct journal_listener listener, struct err *e);

/* Commits what is pending, fails what cannot be, and lets go of the loop; the memory goes with the loop's
 * handles. */
void journal_destroy(struct journal *j);

/* Copies the event; seq and state are the journal's to fill. `done` may be NULL. */
void journal_append(struct journal *j, const struct job_event *ev, journal_done_fn *done, void *ctx);

/* New jobs, all or none, in one transaction: their ids follow each other, and `done` gets the first. evs are
 * JOB_EV_SUBMITTED without a job id, each with its spec; of several the array and the index are the journal's
 * to fill. Copies everything. With a `key` that this user has used before, nothing is added and `done` gets
 * the (first) job of then. */
struct journal_job {
    struct job_event ev;
    const char *spec;
};
void journal_submit(struct journal *j, const struct journal_job *jobs, int64_t n, const char *key,
                    journal_done_fn *done, void *ctx);

/* How many submitted jobs of the user (-1: of all) are not durable yet. */
int64_t journal_n_submitting(const struct journal *j, int64_t uid);

/* The newest event's seq; 0 before the first. */
int64_t journal_last_seq(const struct journal *j);

/* Why the disk refused the last round; NULL when it did not. */
const char *journal_trouble(const struct journal *j);

/* How many rounds have been committed and how many have failed. */
void journal_counts(const struct journal *j, int64_t *committed, int64_t *failed);

#endif
