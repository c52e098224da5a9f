/* rundir - the run directory: claiming it, and the names in it.
 *
 *   job.json  plans.json (plans.h)  metrics.jsonl  result.json  model.safetensors
 *   log/  checkpoints/  tensorboard/  lock
 */
#ifndef TRAIN_RUNDIR_H
#define TRAIN_RUNDIR_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "common/log.h"

/* Takes DIR/lock and returns its descriptor, or -1: two runs in one directory would remove each other's
 * checkpoints and mix their lines. Waits up to wait_ms for the process that holds it, and says so to
 * `console`. The lock ends with its holder, however that ends. */
int rundir_lock(const char *dir, int wait_ms, const struct log *console, struct err *e);

/* Rank 0: creates the directory and log/, and locks it; returns the lock's descriptor or -1. Refuses a
 * directory that holds what an earlier run left (metrics, weights or checkpoints; launchers write job.json
 * and log/ before us, and a run that failed before its first step leaves no more than a result), unless
 * `resume`. Who resumes waits for what an accident has left running: ranks outlive a killed mpirun by some
 * seconds. */
int rundir_claim(const char *dir, bool resume, const struct log *console, struct err *e);

/* Rank 0: writes the resolved spec to job.json unless it says the same already. */
int rundir_write_spec(const char *dir, const cJSON *resolved, struct err *e);

/* Rank 0, when the first step is about to be made: the spec is this run's, and a result that an earlier
 * attempt left goes, so that result.json, where there is one, tells how the last attempt ended. */
int rundir_begin(const char *dir, const cJSON *resolved, struct err *e);

/* Opens DIR/log/rank-0003.log for appending, creating log/ (a host of its own may not see rank 0's). Returns
 * the descriptor or -1. */
int rundir_open_log(const char *dir, int rank, struct err *e);

#endif
