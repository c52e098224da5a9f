/* actions - what is done about the state that jobs are in: start, stop, take up again, and draw the
 * conclusion when an attempt has ended.
 *
 * A run is the living side of a job that holds slots: who reports for it, what it reported last, how far its
 * stop has come. Runs are memory only; all that must survive is in the journal. Nothing is done before the
 * journal has the event that says so: a start follows a durable "starting", slots are used again after a
 * durable end.
 *
 * Stopping: rank 0 is asked (at once, when it is attached); after stop_ms (yield_ms for one that goes on
 * later) SIGTERM; after kill_ms more SIGKILL to every process, again each second until none is left. A run
 * that nobody reports for gets SIGTERM at once. One that a rank holds up for good (beat_judge.h) is not
 * asked, because it could not answer: SIGTERM at once, SIGKILL LOST_KILL_MS later, and a restart.
 */
#ifndef DAEMON_ACTIONS_H
#define DAEMON_ACTIONS_H

#include "daemon/daemon.h"
#include "proto/progress.h"

struct beats;
struct conn;
struct planner;

struct actions *actions_create(struct daemon *d);

/* Takes up every job that held slots when the last coordinator ended. Once, after the replay. */
void actions_take_up(struct actions *a);

/* For the launcher. */
struct launch_listener actions_launch_listener(struct daemon *d);

/* For the journal: an event is durable and applied; a round is over. */
void actions_applied(struct actions *a, struct job *job, const struct job_event *ev);
void actions_round_done(struct actions *a);

/* Cancels everything that holds slots; for the end of the daemon. */
void actions_cancel_all(struct actions *a, const char *why);

/* How many jobs hold slots, as far as this process knows. */
int64_t actions_n_runs(const struct actions *a);

/* Lets go of all runs; their processes go on. */
void actions_destroy(struct actions *a);

/* --- what rank 0 says (worker_link.c, or a launcher on its behalf) --- */

/* Makes the connection the run's link. -1 when there is no such run or the token is not its own. */
int actions_attach(struct actions *a, struct conn *c, const struct progress_attach *at, struct err *e);
void actions_link_lost(struct actions *a, struct conn *c);
void actions_progress(struct actions *a, int64_t job, int64_t attempt, const struct progress *p);
void actions_metrics(struct actions *a, int64_t job, int64_t attempt, const cJSON *metrics);
void actions_done(struct actions *a, int64_t job, int64_t attempt, const char *status, const char *reason);

/* Any rank's: makes the connection the link of its heartbeats; likewise. A beat on it. */
int actions_hello(struct actions *a, struct conn *c, const struct progress_hello *h, struct err *e);
void actions_beat(struct actions *a, const struct conn *c, const struct progress_beat *beat);

/* --- what methods want to know or have done --- */

/* The latest progress; NULL when there is none. */
const struct progress *actions_latest(const struct actions *a, int64_t job);

/* The latest metrics by kind: {kind: {step, epoch, values}}; NULL when there are none. Borrowed. */
const cJSON *actions_latest_metrics(const struct actions *a, int64_t job);

/* Why a start that was decided has not happened yet: the disk has no room. NULL when it is not so. */
const char *actions_waits_for(const struct actions *a, int64_t job);

/* The heartbeats of its ranks; NULL when it holds no slots. Borrowed. */
const struct beats *actions_beats(const struct actions *a, int64_t job);

/* Tells rank 0 "checkpoint". False when nobody reports for the job. */
bool actions_command(struct actions *a, int64_t job, const char *command);

/* Who decides what starts; borrowed. */
struct planner *actions_planner(const struct actions *a);

#endif
