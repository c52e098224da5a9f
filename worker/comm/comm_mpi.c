/* comm_mpi - collectives over MPI on host buffers; the only file that knows mpi.h besides worker/main.c.
 *
 * Everything is a nonblocking collective followed by a bounded wait, so that a rank that stopped is an error
 * with a name after timeout_ms and not a hang.
 *
 * Gradient buckets are begun in backward and other collectives run while they are in flight; MPI matches them
 * by order of the calls, which is the same on every rank because the graph is.
 */
#include "worker/comm/comm.h"
#include "common/clock.h"
#include "worker/comm/back_off.h"

#include <limits.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct comm_mpi {
    struct comm base;
    MPI_Comm comm;
    int timeout_ms;
    int64_t wait_ns;
    int *counts, *displs;           /* [size]: of the call in progress */
    int *recv_counts, *recv_displs; /* [size]: likewise, of an all-to-all */
};

_Static_assert(sizeof(MPI_Request) <= sizeof(void *), "a request fits into struct comm_req");

static int mpi_fail(int code, const char *what, struct err *e)
{
    char text[MPI_MAX_ERROR_STRING];
    int n;

    MPI_Error_string(code, text, &n);
    return err_set_kind(e, ERR_PEER_LOST, "%s: %s", what, text);
}

#define MPI_TRY(call, e)                                                                                     \
    do {                                                                                                     \
        int code_ = (call);                                                                                  \
        if (code_ != MPI_SUCCESS)                                                                            \
            return mpi_fail(code_, #call, e);                                                                \
    } while (0)

static int poll(const struct comm_mpi *m, MPI_Request *req, int64_t start, const char *what, struct err *e)
{
    for (int n_polls = 0;; n_polls = back_off_next(n_polls)) {
        int done = 0;
        MPI_TRY(MPI_Test(req, &done, MPI_STATUS_IGNORE), e);
        if (done)
            return 0;
        if (m->timeout_ms >= 0 && n_polls % 256 == 255 && clock_mono_ns() - start > m->timeout_ms * 1000000LL)
            return err_set_kind(e, ERR_PEER_LOST, "%s: rank %d waited %d s and another rank did not come",
                                what, m->base.rank, m->timeout_ms / 1000);
        back_off(n_polls);
    }
}

static int finish(struct comm_mpi *m, MPI_Request *req, const char *what, struct err *e)
{
    int64_t start = clock_mono_ns();
    int rc = poll(m, req, start, what, e);

    m->wait_ns += clock_mono_ns() - start;
    return rc;
}

static MPI_Datatype mpi_type(enum dtype t)
{
    return t == DTYPE_F64 ? MPI_DOUBLE : t == DTYPE_I32 ? MPI_INT32_T : MPI_FLOAT;
}

/* counts[r] × unit elements, and where they start. MPI 3 counts with int. */
static int fill_counts(int size, const int64_t *counts, int64_t unit, int *n_out, int *displs, struct err *e)
{
    int64_t at = 0;

    for (int r = 0; r < size; r++) {
        int64_t n = counts[r] * unit;
        if (at + n > INT_MAX)
            return err_set(e, "%lld elements in one collective, at most %d are possible with MPI",
                           (long long)(at + n), INT_MAX);
        n_out[r] = (int)n;
        displs[r] = (int)at;
        at += n;
    }
    return 0;
}

static int set_counts(struct comm_mpi *m, const int64_t *counts, int64_t unit, struct err *e)
{
    return fill_counts(m->base.size, counts, unit, m->counts, m->displs, e);
}

/* The widest MPI type that a unit is a multiple of, and how many of them it is. */
static MPI_Datatype unit_type(size_t unit_bytes, int64_t *per_unit)
{
    bool words = unit_bytes % 4 == 0;

    *per_unit = (int64_t)(words ? unit_bytes / 4 : unit_bytes);
    return words ? MPI_INT32_T : MPI_BYTE;
}

static int mpi_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                          size_t row_bytes, struct err *e)
{
    struct comm_mpi *m = (struct comm_mpi *)c;
    int64_t per_row;
    MPI_Datatype t = unit_type(row_bytes, &per_row);
    MPI_Request req;

    if (set_counts(m, counts, per_row, e) < 0)
        return -1;
    MPI_TRY(MPI_Iallgatherv(local, m->counts[c->rank], t, all, m->counts, m->displs, t, m->comm, &req), e);
    return finish(m, &req, "all-gather", e);
}

static int mpi_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                              int64_t width, struct err *e)
{
    struct comm_mpi *m = (struct comm_mpi *)c;
    MPI_Request req;

    if (set_counts(m, counts, width, e) < 0)
        return -1;
    MPI_TRY(MPI_Ireduce_scatter(all, local, m->counts, MPI_FLOAT, MPI_SUM, m->comm, &req), e);
    return finish(m, &req, "reduce-scatter", e);
}

static int mpi_all_to_all(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                          const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    struct comm_mpi *m = (struct comm_mpi *)c;
    int64_t per_unit;
    MPI_Datatype t = unit_type(unit_bytes, &per_unit);
    MPI_Request req;

    if (set_counts(m, send_counts, per_unit, e) < 0 ||
        fill_counts(c->size, recv_counts, per_unit, m->recv_counts, m->recv_displs, e) < 0)
        return -1;
    MPI_TRY(MPI_Ialltoallv(send, m->counts, m->displs, t, recv, m->recv_counts, m->recv_displs, t, m->comm,
                           &req),
            e);
    return finish(m, &req, "all-to-all", e);
}

static int mpi_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                                struct err *e)
{
    struct comm_mpi *m = (struct comm_mpi *)c;
    MPI_Request req;

    if (n > INT_MAX)
        return err_set(e, "%zu elements in one all-reduce, at most %d are possible with MPI", n, INT_MAX);
    MPI_TRY(MPI_Iallreduce(MPI_IN_PLACE, buf, (int)n, mpi_type(t), MPI_SUM, m->comm, &req), e);
    r->handle = NULL;
    memcpy(&r->handle, &req, sizeof req);
    return 0;
}

static int mpi_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    MPI_Request req;

    memcpy(&req, &r->handle, sizeof req);
    return finish((struct comm_mpi *)c, &req, "all-reduce", e);
}

static int mpi_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    struct comm_req r = {NULL};

    return mpi_all_reduce_start(c, buf, n, t, &r, e) < 0 ? -1 : mpi_wait(c, &r, e);
}

static int mpi_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct err *e)
{
    enum { CHUNK = 1 << 30 };
    struct comm_mpi *m = (struct comm_mpi *)c;

    for (size_t at = 0; at < bytes; at += CHUNK) {
        int n = bytes - at < CHUNK ? (int)(bytes - at) : CHUNK;
        MPI_Request req;
        MPI_TRY(MPI_Ibcast((char *)buf + at, n, MPI_BYTE, root, m->comm, &req), e);
        if (finish(m, &req, "broadcast", e) < 0)
            return -1;
    }
    return 0;
}

static int mpi_barrier(struct comm *c, struct err *e)
{
    struct comm_mpi *m = (struct comm_mpi *)c;
    MPI_Request req;

    MPI_TRY(MPI_Ibarrier(m->comm, &req), e);
    return finish(m, &req, "barrier", e);
}

static int64_t mpi_wait_ns(const struct comm *c)
{
    return ((const struct comm_mpi *)c)->wait_ns;
}

static void mpi_abort(struct comm *c, int exit_status)
{
    MPI_Abort(((struct comm_mpi *)c)->comm, exit_status);
}

static void mpi_destroy(struct comm *c)
{
    struct comm_mpi *m = (struct comm_mpi *)c;

    MPI_Comm_free(&m->comm);
    free(m->counts);
    free(m->displs);
    free(m->recv_counts);
    free(m->recv_displs);
    free(m);
}

static const struct comm_ops mpi_ops = {
    .name = "mpi",
    .all_gather = mpi_all_gather,
    .reduce_scatter = mpi_reduce_scatter,
    .all_to_all = mpi_all_to_all,
    .all_reduce = mpi_all_reduce,
    .all_reduce_start = mpi_all_reduce_start,
    .wait = mpi_wait,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .wait_ns = mpi_wait_ns,
    .abort = mpi_abort,
    .destroy = mpi_destroy,
};

struct comm *comm_mpi_create(int timeout_ms, struct err *e)
{
    struct comm_mpi *m = xcalloc(1, sizeof *m);
    int code = MPI_Comm_dup(MPI_COMM_WORLD, &m->comm);

    if (code != MPI_SUCCESS) {
        mpi_fail(code, "MPI_Comm_dup", e);
        free(m);
        return NULL;
    }
    MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN);
    m->base.ops = &mpi_ops;
    m->timeout_ms = timeout_ms;
    MPI_Comm_rank(m->comm, &m->base.rank);
    MPI_Comm_size(m->comm, &m->base.size);
    m->counts = xcalloc((size_t)m->base.size, sizeof *m->counts);
    m->displs = xcalloc((size_t)m->base.size, sizeof *m->displs);
    m->recv_counts = xcalloc((size_t)m->base.size, sizeof *m->recv_counts);
    m->recv_displs = xcalloc((size_t)m->base.size, sizeof *m->recv_displs);
    return &m->base;
}
