/* sched_timeline_impl - the inside of a timeline, for sched_timeline.c and sched_place.c. */
#ifndef DAEMON_SCHED_TIMELINE_IMPL_H
#define DAEMON_SCHED_TIMELINE_IMPL_H

#include "daemon/sched_timeline.h"

/* What is free from t until the next segment's t, and whose holds end and begin at t. Below 0 when more runs
 * on the node than it has now. */
struct seg {
    int64_t t;
    int32_t slots, gpus, ends, begins;
};

/* v[0].t is now. Until it is settled, v[1..] are unsorted ends: what comes back, not what is free. */
struct line {
    struct seg *v;
    int32_t n, cap;
    bool settled, closed, own;
};

struct moment {
    int64_t t;
    int32_t node;
};

struct moments {
    struct moment *v;
    size_t n, cap;
};

/* Room for so many ranks of the gang. */
struct room {
    int32_t ranks;
    bool seen;
};

struct open {
    int32_t *v, n;
};

struct pick {
    int32_t ranks, gpus, node;
};

struct timeline {
    const struct sched_node *nodes;
    int32_t n_nodes;
    int64_t now;
    struct line *lines;
    struct seg *segs;          /* where lines start out */
    struct moments ends, heap; /* all ends: the earliest of them sorted, the others in a heap */
    struct moments begins;     /* of promises, sorted */
    struct open open[2];       /* nodes with a free slot now; with a free slot and a free GPU */
    bool open_known;
    bool any_closed;
    int32_t closed_gpus;
    /* The tally: room by node, of the nodes in seen[] (others: none). */
    struct room *room;
    int32_t *seen, n_seen;
    int64_t sum;
    int32_t per_node, n_low, n_high; /* for an exact number of nodes: nodes with >= per_node, > per_node */
    struct pick *picks;              /* room to sort them */
};

struct line *timeline_line(struct timeline *tl, int32_t node);

/* How many ranks the node has room for in [t, t + run). */
int32_t timeline_room(struct timeline *tl, const struct gang *g, int32_t node, int64_t t);

#endif
