/* comm_watch - a communicator that does what another one does, and tells somebody what it waits in.
 *
 * Everything that may wait for other ranks is told before and after, on the calling thread; a begun
 * all-reduce is not, the wait for it is. The teller must be cheap: it is called at every collective.
 */
#ifndef COMM_COMM_WATCH_H
#define COMM_COMM_WATCH_H

#include "worker/comm/comm.h"

enum comm_call {
    COMM_ALL_GATHER,
    COMM_REDUCE_SCATTER,
    COMM_ALL_TO_ALL,
    COMM_ALL_REDUCE,
    COMM_WAIT, /* for a begun all-reduce */
    COMM_BROADCAST,
    COMM_BARRIER,
    COMM_SYNC,
    COMM_N_CALLS
};

struct comm_watcher {
    void (*enter)(void *arg, enum comm_call call);
    void (*leave)(void *arg, enum comm_call call);
    void *arg;
};

/* `inner` is borrowed: it outlives this one, and comm_destroy() leaves it alone. */
struct comm *comm_watch_create(struct comm *inner, const struct comm_watcher *watcher);

#endif
