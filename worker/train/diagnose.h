/* diagnose - which tensor, on which rank, was the first in a step that came out not finite.
 *
 * After the vote (trainer.h) said so and before the weights were updated: all ranks feed and make the step
 * again, look at every tensor (engine/inspect.h), and agree on the finding that came first in time; of
 * several ranks at that time on the lowest. The run ends after this: its running statistics have been updated
 * twice.
 */
#ifndef TRAIN_DIAGNOSE_H
#define TRAIN_DIAGNOSE_H

#include "worker/engine/inspect.h"
#include "worker/train/task.h"

/* The same on every rank. */
struct diagnosis {
    struct finding first;
    int rank;      /* whose it is */
    int n_like_it; /* how many other ranks found the same tensor */
};

/* Picks from the findings of all ranks, in rank order. */
struct diagnosis diagnose_pick(const struct finding *all, int size);

/* `step` from 0. Collective; a failure is this rank's alone. */
int diagnose_step(struct comm *comm, struct task *task, struct program *p, uint64_t seed, int64_t step,
                  struct diagnosis *out, struct err *e);

/* Puts the diagnosis of step `step` (from 1), whose loss was `loss`, into *e (kind ERR_NOT_FINITE); returns
 * -1. */
int diagnose_say(const struct diagnosis *d, int64_t step, double loss, struct err *e);

#endif
