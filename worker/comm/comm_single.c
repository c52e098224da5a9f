/* comm_single - a job of one rank: gathering is a copy, summing is nothing. */
#include "worker/comm/comm.h"

#include <stdlib.h>
#include <string.h>

static int single_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                             size_t row_bytes, struct err *e)
{
    (void)c;
    (void)e;
    if (counts[0])
        memcpy(all, local, (size_t)counts[0] * row_bytes);
    return 0;
}

static int single_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                                 int64_t width, struct err *e)
{
    (void)c;
    (void)e;
    if (counts[0])
        memcpy(local, all, (size_t)(counts[0] * width) * sizeof(float));
    return 0;
}

static int single_all_to_all(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                             const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    (void)c;
    (void)e;
    ASSERT(send_counts[0] == recv_counts[0]);
    if (send_counts[0])
        memcpy(recv, send, (size_t)send_counts[0] * unit_bytes);
    return 0;
}

static int single_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    (void)c, (void)buf, (void)n, (void)t, (void)e;
    return 0;
}

static int single_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                                   struct err *e)
{
    (void)c, (void)buf, (void)n, (void)t, (void)e;
    r->handle = NULL;
    return 0;
}

static int single_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    (void)c, (void)r, (void)e;
    return 0;
}

static int single_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct err *e)
{
    (void)c, (void)buf, (void)bytes, (void)root, (void)e;
    return 0;
}

static int single_barrier(struct comm *c, struct err *e)
{
    (void)c, (void)e;
    return 0;
}

static int64_t single_wait_ns(const struct comm *c)
{
    (void)c;
    return 0;
}

static void single_abort(struct comm *c, int exit_status)
{
    (void)c, (void)exit_status;
}

static void single_destroy(struct comm *c)
{
    free(c);
}

static const struct comm_ops single_ops = {
    .name = "single",
    .all_gather = single_all_gather,
    .reduce_scatter = single_reduce_scatter,
    .all_to_all = single_all_to_all,
    .all_reduce = single_all_reduce,
    .all_reduce_start = single_all_reduce_start,
    .wait = single_wait,
    .broadcast = single_broadcast,
    .barrier = single_barrier,
    .wait_ns = single_wait_ns,
    .abort = single_abort,
    .destroy = single_destroy,
};

struct comm *comm_single_create(void)
{
    struct comm *c = xcalloc(1, sizeof *c);

    *c = (struct comm){&single_ops, 0, 1};
    return c;
}
