/* comm_watch - see comm_watch.h. */
#include "worker/comm/comm_watch.h"

#include <stdlib.h>

struct comm_watch {
    struct comm base;
    struct comm_ops ops; /* with the inner one's name; without what it does not have */
    struct comm *inner;
    struct comm_watcher watcher;
};

static struct comm_watch *enter(struct comm *c, enum comm_call call)
{
    struct comm_watch *w = (struct comm_watch *)c;

    w->watcher.enter(w->watcher.arg, call);
    return w;
}

static int leave(struct comm_watch *w, enum comm_call call, int rc)
{
    w->watcher.leave(w->watcher.arg, call);
    return rc;
}

static int watch_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                            size_t row_bytes, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_ALL_GATHER);

    return leave(w, COMM_ALL_GATHER, comm_all_gather(w->inner, local, all, counts, row_bytes, e));
}

static int watch_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                                int64_t width, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_REDUCE_SCATTER);

    return leave(w, COMM_REDUCE_SCATTER, comm_reduce_scatter(w->inner, all, local, counts, width, e));
}

static int watch_all_to_all(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                            const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_ALL_TO_ALL);

    return leave(w, COMM_ALL_TO_ALL,
                 comm_all_to_all(w->inner, send, send_counts, recv, recv_counts, unit_bytes, e));
}

static int watch_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_ALL_REDUCE);

    return leave(w, COMM_ALL_REDUCE, comm_all_reduce(w->inner, buf, n, t, e));
}

static int watch_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                                  struct err *e)
{
    return comm_all_reduce_start(((struct comm_watch *)c)->inner, buf, n, t, r, e);
}

static int watch_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_WAIT);

    return leave(w, COMM_WAIT, comm_wait(w->inner, r, e));
}

static int watch_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_BROADCAST);

    return leave(w, COMM_BROADCAST, comm_broadcast(w->inner, buf, bytes, root, e));
}

static int watch_barrier(struct comm *c, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_BARRIER);

    return leave(w, COMM_BARRIER, comm_barrier(w->inner, e));
}

static int watch_sync(struct comm *c, const char *what, struct err *e)
{
    struct comm_watch *w = enter(c, COMM_SYNC);

    return leave(w, COMM_SYNC, comm_sync(w->inner, what, e));
}

static int64_t watch_wait_ns(const struct comm *c)
{
    return comm_wait_ns(((const struct comm_watch *)c)->inner);
}

static void watch_abort(struct comm *c, int exit_status)
{
    comm_abort(((struct comm_watch *)c)->inner, exit_status);
}

static void watch_destroy(struct comm *c)
{
    free(c);
}

static const struct comm_ops watch_ops = {
    .all_gather = watch_all_gather,
    .reduce_scatter = watch_reduce_scatter,
    .all_to_all = watch_all_to_all,
    .all_reduce = watch_all_reduce,
    .all_reduce_start = watch_all_reduce_start,
    .wait = watch_wait,
    .broadcast = watch_broadcast,
    .barrier = watch_barrier,
    .sync = watch_sync,
    .wait_ns = watch_wait_ns,
    .abort = watch_abort,
    .destroy = watch_destroy,
};

struct comm *comm_watch_create(struct comm *inner, const struct comm_watcher *watcher)
{
    struct comm_watch *w = xcalloc(1, sizeof *w);

    w->ops = watch_ops;
    w->ops.name = inner->ops->name;
    if (!inner->ops->sync)
        w->ops.sync = NULL;
    w->base = (struct comm){.ops = &w->ops, .rank = inner->rank, .size = inner->size};
    w->inner = inner;
    w->watcher = *watcher;
    return &w->base;
}
