/* rundir - the run directory: claiming it, and the names in it.
 *
 *   job.json  metrics.jsonl  result.json  model.safetensors  log/  checkpoints/  tensorboard/
 */
#ifndef TRAIN_RUNDIR_H
#define TRAIN_RUNDIR_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "common/err.h"

/* Rank 0: creates the directory and log/, and writes the resolved spec to job.json unless it is there
 * already. Refuses a directory that holds what an earlier run left (anything of the above but job.json and
 * log/, which launchers write before us), unless `resume`. */
int rundir_claim(const char *dir, bool resume, const cJSON *resolved, struct err *e);

/* Opens DIR/log/rank-0003.log for appending, creating log/ (a host of its own may not see rank 0's). Returns
 * the descriptor or -1. */
int rundir_open_log(const char *dir, int rank, struct err *e);

#endif
