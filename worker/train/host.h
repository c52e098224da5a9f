/* host - what a rank may use of its machine. */
#ifndef TRAIN_HOST_H
#define TRAIN_HOST_H

#include <stdint.h>
#include "worker/comm/comm.h"

/* Cores that this process may run on. */
int host_cores(void);

/* Bytes of memory of the machine. */
int64_t host_memory_bytes(void);

/* How many threads a rank computes with, and why. */
struct host_threads {
    int n;
    const char *from; /* "threads_per_rank" | "OMP_NUM_THREADS" | "cores" */
    int cores,
        sharing; /* that this rank may use; ranks of this host that may use any of them, itself included */
};

/* `wanted` when > 0, else $OMP_NUM_THREADS when it is a number, else this rank's part of the cores that it
 * may run on: each is divided by the ranks of this host that may run on it (where a launcher binds ranks to
 * cores of their own nothing is shared), and what the control group allows by the ranks of this host; at
 * least 1. Nothing is bound here: who started the ranks may have done so. Collective. */
int host_threads(struct comm *comm, int wanted, struct host_threads *out, struct err *e);

/* This rank's number among the ranks of its host, and how many those are. Collective. */
int host_local_rank(struct comm *comm, int *local, int *n_here, struct err *e);

#endif
