/* beats - the heartbeats of one run: what each rank said last, and when; see beat_judge.h for what follows.
 *
 * Ages are not by the wall or the monotonic clock but by time in which this process was there to hear: each
 * tick adds at most BEATS_MAX_STEP_MS. A coordinator that was stopped, or starved, for an hour finds its
 * ranks a second older and reads what they said meanwhile before it judges any of them.
 *
 * Memory only, and bounded by the run's number of ranks. A coordinator that was restarted hears of the ranks
 * when they come back, and judges none that has not.
 */
#ifndef DAEMON_BEATS_H
#define DAEMON_BEATS_H

#include <cjson/cJSON.h>
#include "daemon/beat_judge.h"
#include "daemon/job.h"

enum { BEATS_TICK_MS = 500, BEATS_MAX_STEP_MS = 1000, BEATS_MAX_ROWS = 512 };

struct beats;

struct beats *beats_create(int64_t n_ranks, int64_t now_ms);
void beats_destroy(struct beats *b); /* NULL is legal */

/* A rank says hello on connection conn_id. `process` is its process when that is known for sure and on this
 * machine, else NULL. Returns the connection that it had before (0: none), or -1 when there is no such rank.
 */
int64_t beats_hello(struct beats *b, const struct progress_hello *h, uint64_t conn_id,
                    const struct job_process *process);

/* A beat of a rank that said hello on this very connection; others are ignored. */
void beats_beat(struct beats *b, int64_t rank, uint64_t conn_id, const struct progress_beat *beat);

/* To be called every BEATS_TICK_MS, with the monotonic time: judges. */
void beats_tick(struct beats *b, int64_t now_ms, const struct beat_limits *limits, struct beat_verdict *out);

/* The verdict in words. */
void beats_say(const struct beats *b, const struct beat_verdict *v, char *out, unsigned long size);

/* The next rank that has become slow since it was last asked about; -1: none. Each rank is told of once. */
int64_t beats_next_slow(struct beats *b);

/* The worst of those that are slow now; -1: none. */
int64_t beats_slowest(const struct beats *b);

/* "rank 3 on node2 is slow: its own work in a step takes 36.0 ms, 1.8 times the median" */
void beats_say_slow(const struct beats *b, int64_t rank, char *out, unsigned long size);

/* [{rank, host, pid, state, step, phase, waits_in, age_s, step_ms, work_ms, ratio}] in the order of ranks; of
 * more than BEATS_MAX_ROWS ranks the odd ones and the slowest, those first. Empty when no rank ever beat. */
cJSON *beats_to_json(const struct beats *b);

#endif
