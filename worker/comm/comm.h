/* comm - collectives between the ranks of one job. Sums, never means; row counts per rank may differ.
 *
 * All ranks call the same functions in the same order. Every sum ends with the same bits on every rank. A
 * call that does not finish within the communicator's timeout fails with kind ERR_PEER_LOST and names what it
 * waited for. Pointers are device pointers of the backend that the implementation belongs to (host memory for
 * comm_single, comm_mpi and comm_tcp).
 *
 * A communicator of a device enqueues: a call returns before it is done, what follows on the device's stream
 * sees its result, and a rank that does not come shows in comm_sync() only.
 */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/engine/tensor.h"

struct comm;

/* A nonblocking all-reduce in flight. */
struct comm_req {
    void *handle;
};

struct comm_ops {
    const char *name; /* "single", "mpi", "tcp", "nccl" */
    const char *note; /* what a job whose features and gradients go this way should know; NULL: nothing */
    /* local: counts[rank] rows → all: Σcounts rows in rank order. Any element type. */
    int (*all_gather)(struct comm *c, const void *local, void *all, const int64_t *counts, size_t row_bytes,
                      struct err *e);
    /* all: Σcounts rows of `width` floats on every rank → local: own rows, summed over ranks. */
    int (*reduce_scatter)(struct comm *c, const float *all, float *local, const int64_t *counts,
                          int64_t width, struct err *e);
    /* send: for each rank in order send_counts[r] units of unit_bytes → recv: from each rank in order
     * recv_counts[r] units. What a rank sends to another is what that one receives from it. */
    int (*all_to_all)(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                      const int64_t *recv_counts, size_t unit_bytes, struct err *e);
    /* In place, n elements of DTYPE_F32, DTYPE_F64 or DTYPE_I32. */
    int (*all_reduce)(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e);
    /* The same, begun; buf must not be touched before comm_wait(). */
    int (*all_reduce_start)(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                            struct err *e);
    int (*wait)(struct comm *c, struct comm_req *r, struct err *e);
    int (*broadcast)(struct comm *c, void *buf, size_t bytes, int root, struct err *e);
    int (*barrier)(struct comm *c, struct err *e);
    /* Waits, within the timeout, until all that was enqueued so far is done; `what` says in the message what
     * that is. NULL: nothing is ever enqueued. */
    int (*sync)(struct comm *c, const char *what, struct err *e);
    /* Nanoseconds that this rank has been in calls that wait for others, the moving of data in them included.
     * NULL: not known, for nobody waits on the host. */
    int64_t (*wait_ns)(const struct comm *c);
    /* Best effort: makes the other ranks fail rather than wait: they are ended (MPI), or get ERR_PEER_LOST
     * with code exit_status (TCP). */
    void (*abort)(struct comm *c, int exit_status);
    void (*destroy)(struct comm *c);
};

/* Implementations embed this first. */
struct comm {
    const struct comm_ops *ops;
    int rank, size;
};

static inline int comm_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                                  size_t row_bytes, struct err *e)
{
    return c->ops->all_gather(c, local, all, counts, row_bytes, e);
}

static inline int comm_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                                      int64_t width, struct err *e)
{
    return c->ops->reduce_scatter(c, all, local, counts, width, e);
}

static inline int comm_all_to_all(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                                  const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    return c->ops->all_to_all(c, send, send_counts, recv, recv_counts, unit_bytes, e);
}

static inline int comm_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    return c->ops->all_reduce(c, buf, n, t, e);
}

static inline int comm_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                                        struct err *e)
{
    return c->ops->all_reduce_start(c, buf, n, t, r, e);
}

static inline int comm_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    return c->ops->wait(c, r, e);
}

static inline int comm_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct err *e)
{
    return c->ops->broadcast(c, buf, bytes, root, e);
}

static inline int comm_barrier(struct comm *c, struct err *e)
{
    return c->ops->barrier(c, e);
}

static inline int comm_sync(struct comm *c, const char *what, struct err *e)
{
    return c->ops->sync ? c->ops->sync(c, what, e) : 0;
}

/* -1: not known. */
static inline int64_t comm_wait_ns(const struct comm *c)
{
    return c->ops->wait_ns ? c->ops->wait_ns(c) : -1;
}

static inline void comm_abort(struct comm *c, int exit_status)
{
    c->ops->abort(c, exit_status);
}

static inline void comm_destroy(struct comm *c)
{
    if (c)
        c->ops->destroy(c);
}

/* comm_tcp.h and comm_nccl.h have the others' constructors.
 *
 * One rank: every collective is a copy or nothing. */
struct comm *comm_single_create(void);

/* MPI_COMM_WORLD, host buffers. MPI must be initialised and stay so; timeout_ms < 0 waits for ever. */
struct comm *comm_mpi_create(int timeout_ms, struct err *e);

#endif
