/* sched_queue - who starts now on one node: a pure function of the queue and the free slots.
 *
 * The order is total: higher priority first, then the lower id (a job that restarts keeps its place). The
 * first job in that order that does not fit now holds back all behind it, so that a big job is never starved
 * by small ones.
 *
 * A job gets min(ranks, slots that exist) ranks and waits until so many are free: how many ranks a job has
 * depends on the machine, never on the moment at which it started. A job whose min_ranks exceed the slots
 * that exist can never start here; it is passed over and holds nobody back.
 */
#ifndef DAEMON_SCHED_QUEUE_H
#define DAEMON_SCHED_QUEUE_H

#include <stddef.h>
#include <stdint.h>

struct sched_job {
    int64_t id, priority, n_ranks, min_ranks;
};

struct sched_placement {
    int64_t id, n_ranks;
};

struct sched_inventory {
    int64_t slots, free;
};

/* Sorts `queue` into scheduling order and writes at most n placements to `out` (room for n). Returns how
 * many. */
size_t sched_plan(struct sched_job *queue, size_t n, struct sched_inventory inv, struct sched_placement *out);

/* How many ranks the job would run with here, or 0 when it never can. */
int64_t sched_ranks(const struct sched_job *job, int64_t slots);

/* Compares by scheduling order, for qsort. */
int sched_compare(const void *a, const void *b);

#endif
