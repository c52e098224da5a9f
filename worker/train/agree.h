/* agree - ranks fail together: what goes wrong on one rank before it enters a collective must end that phase
 * on all.
 *
 * Used where ranks do things alone (open files, build graphs, write a checkpoint) and then meet again.
 * Everything here is host memory, a few bytes.
 */
#ifndef TRAIN_AGREE_H
#define TRAIN_AGREE_H

#include "worker/comm/comm.h"

/* Every rank calls it with the outcome of what it did alone: rc 0, or -1 with the reason in *e. Returns 0 on
 * every rank when all succeeded. Otherwise -1 on every rank, and *e everywhere is the failure (kind and
 * message) of the lowest rank that failed; with more than one rank its message begins with "rank R: ". */
int agree_outcome(struct comm *comm, int rc, struct err *e);

/* The same for something that only rank 0 does; the message then names no rank. rc of other ranks is ignored.
 */
int agree_outcome_rank0(struct comm *comm, int rc, struct err *e);

/* One item of `bytes` bytes from each rank: `all` has room for one a rank, in rank order. */
int agree_gather(struct comm *comm, const void *own, void *all, size_t bytes, struct err *e);

#endif
