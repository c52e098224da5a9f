/* comm_nccl - comm.h on NCCL, for device buffers; one GPU a process, the one that is current at creation.
 *
 * Two streams: collectives inside the graph are enqueued on the compute stream, in order with the kernels
 * around them; an all-reduce that is begun goes on the communication stream behind all that the compute
 * stream was given so far, and waiting for it makes the compute stream wait, not the host. There is one
 * communicator: NCCL runs its operations in the order of the calls whatever their streams, the same on every
 * rank, so that two of them never wait for each other's GPU. Everything but creation, barrier, comm_sync()
 * and destruction can be captured in a CUDA graph that begins on the compute stream, in mode "thread local"
 * or "relaxed"; requests are waited for before the capture ends. Run a step uncaptured first: NCCL connects
 * when it first needs to.
 *
 * Bytes that a rank receives (and, in a ring, sends), R ranks, B bytes of all rows: all-gather B·(R-1)/R,
 * reduce-scatter likewise, all-reduce of B 2B·(R-1)/R. Unequal rows are a group of R broadcasts or
 * reductions, which move the same bytes without staging; padding to the longest would move R·max and copy
 * once more, and pairwise sends would need (R-1)² connections. The group costs R small operations in one
 * launch, so equal rows take NCCL's own collective.
 *
 * Sums are NCCL's: the same on every rank, and the same bits again for one set of machines, as long as its
 * environment chooses the same algorithm; not the same for other numbers of ranks.
 *
 * Left out: registration of buffers (ncclCommRegister, windows). It would bind the communicator to the
 * engine's arenas, and only measurements on NVLink switches would show what it gains.
 */
#ifndef COMM_COMM_NCCL_H
#define COMM_COMM_NCCL_H

#include <stdbool.h>
#include "worker/comm/comm.h"

struct comm_nccl_config {
    void *compute_stream, *comm_stream; /* cudaStream_t; the caller keeps them until after the communicator */
    int timeout_ms;                     /* < 0 waits for ever */
    /* NCCL's calls return at once and are polled, so that one that waits for a rank that is gone (NCCL
     * connects in its first calls) ends with the timeout as well. Costs a thread a call outside graphs. */
    bool nonblocking;
};

/* The ranks are those of `host` (comm_mpi, comm_tcp, comm_single), which carries NCCL's unique id, makes sure
 * that all ranks are there, and is aborted along. It must outlive the communicator. */
struct comm *comm_nccl_create(struct comm *host, const struct comm_nccl_config *cfg, struct err *e);

/* 22803 for 2.28.3, of the library that is loaded; 0 when it does not say. */
int comm_nccl_version(void);

/* 0 while all is well; else what NCCL found out since (a rank that is gone: ERR_PEER_LOST). Never waits. */
int comm_nccl_poll(struct comm *c, struct err *e);

/* Waits until `stream` (a cudaStream_t) has done all that it was given so far; `what` says what that is. A
 * rank that is gone or silent for the timeout is ERR_PEER_LOST; then only destruction and abort are left. */
int comm_nccl_wait_stream(struct comm *c, void *stream, const char *what, struct err *e);

#endif
