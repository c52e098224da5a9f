/* plans - RUN/plans.json: which engines of its libraries a run computes with (engine/tuning.h), so that a run
 * that goes on has the bits of one that was never stopped, and all ranks compute alike.
 *
 * Order: plans_open() → rank 0 compiles, and measures what the file does not say → plans_share() → the other
 * ranks compile with what rank 0 took → plans_close(), just before the first step: no step was ever made
 * with choices that are not in the file.
 */
#ifndef TRAIN_PLANS_H
#define TRAIN_PLANS_H

#include "worker/comm/comm.h"
#include "worker/engine/tuning.h"

/* The table of a run: with `resume` what RUN/plans.json says, if it is there, else empty. Only rank 0 reads,
 * and only its table measures. A file that cannot be read is an error: to measure again would be to go on
 * with other bits, unasked. Collective; NULL on every rank with the same *e. tuning_destroy() frees it. */
struct tuning *plans_open(struct comm *comm, const char *run_dir, bool resume, const struct log *log,
                          struct err *e);

/* Every rank has rank 0's table from now on. Collective, on host memory. */
int plans_share(struct tuning *t, struct comm *comm, struct err *e);

/* All is compiled: tells the log what was taken. Rank 0 writes the file where it does not say the same
 * already. */
int plans_close(const struct tuning *t, int rank, const char *run_dir, const struct log *log, struct err *e);

#endif
