/* agree - see agree.h. */
#include "worker/train/agree.h"

#include <stdlib.h>

int agree_gather(struct comm *comm, const void *own, void *all, size_t bytes, struct err *e)
{
    int64_t *counts = xcalloc((size_t)comm->size, sizeof *counts);

    for (int r = 0; r < comm->size; r++)
        counts[r] = 1;
    int rc = comm_all_gather(comm, own, all, counts, bytes, e);
    free(counts);
    return rc;
}

/* Everyone learns who failed; *failed is the lowest such rank, or -1. */
static int find_failed(struct comm *comm, int rc, int *failed, struct err *e)
{
    int32_t own = rc < 0;
    int32_t *all = xcalloc((size_t)comm->size, sizeof *all);
    int got = agree_gather(comm, &own, all, sizeof own, e);

    *failed = -1;
    for (int r = comm->size - 1; r >= 0; r--)
        if (all[r])
            *failed = r;
    free(all);
    return got;
}

static int take_from(struct comm *comm, int rank, const struct err *own, struct err *e)
{
    struct err told = ERR_INIT;

    if (comm->rank == rank)
        told = *own;
    if (comm_broadcast(comm, &told, sizeof told, rank, e) == 0)
        *e = told;
    return -1;
}

int agree_outcome(struct comm *comm, int rc, struct err *e)
{
    struct err own = *e;
    int failed;

    if (find_failed(comm, rc, &failed, e) < 0)
        return -1;
    if (failed < 0)
        return 0;
    take_from(comm, failed, &own, e);
    return comm->size > 1 ? err_wrap(e, "rank %d", failed) : -1;
}

int agree_outcome_rank0(struct comm *comm, int rc, struct err *e)
{
    struct err own = *e;
    int32_t failed = comm->rank == 0 && rc < 0;

    if (comm_all_reduce(comm, &failed, 1, DTYPE_I32, e) < 0)
        return -1;
    return failed ? take_from(comm, 0, &own, e) : 0;
}
