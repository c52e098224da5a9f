/* host - what a rank may use of its machine. */
#ifndef TRAIN_HOST_H
#define TRAIN_HOST_H

#include <stdint.h>
#include "worker/comm/comm.h"

/* Cores that this process may run on. */
int host_cores(void);

/* Bytes of memory of the machine. */
int64_t host_memory_bytes(void);

/* Threads for this rank: `wanted` when > 0, else $OMP_NUM_THREADS when set, else the cores this rank may run
 * on divided by the ranks of this host that may run on the same ones (a launcher that binds each rank to
 * cores of its own makes that one), at least 1. Collective. */
int host_threads(struct comm *comm, int wanted, int *n_threads, struct err *e);

/* This rank's number among the ranks of its host, and how many those are. Collective. */
int host_local_rank(struct comm *comm, int *local, int *n_here, struct err *e);

#endif
