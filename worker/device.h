/* device - where a rank computes: the backend and the communicator that a job's spec asks for. With main.c
 * the only place that names concrete ones.
 */
#ifndef WORKER_DEVICE_H
#define WORKER_DEVICE_H

#include "proto/jobspec.h"
#include "worker/engine/backend.h"

/* resources.gpus_per_rank 0: CPU, n_threads; 1: the GPU whose number among those visible is this rank's
 * number among the ranks of its host. Collective. Fails, on this rank, where there is no such GPU, or kind
 * ERR_SPEC where this build has none. */
struct backend *device_backend(const struct jobspec *spec, struct comm *comm, int n_threads, struct err *e);

/* A communicator on the backend's memory: `comm` itself for CPUs. Collective. */
struct comm *device_comm(struct comm *comm, struct backend *be, struct err *e);

/* What this machine has, for --probe. The caller's. */
cJSON *device_probe(void);

#endif
