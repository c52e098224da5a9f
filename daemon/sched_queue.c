/* sched_queue - see sched_queue.h. */
#include "daemon/sched_queue.h"

#include <stdlib.h>

int sched_compare(const void *a, const void *b)
{
    const struct sched_job *x = a, *y = b;

    if (x->priority != y->priority)
        return x->priority > y->priority ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

int64_t sched_ranks(const struct sched_job *job, int64_t slots)
{
    if (job->min_ranks > slots)
        return 0;
    return job->n_ranks < slots ? job->n_ranks : slots;
}

size_t sched_plan(struct sched_job *queue, size_t n, struct sched_inventory inv, struct sched_placement *out)
{
    size_t n_out = 0;

    if (n)
        qsort(queue, n, sizeof *queue, sched_compare);
    for (size_t i = 0; i < n; i++) {
        int64_t ranks = sched_ranks(&queue[i], inv.slots);
        if (ranks == 0)
            continue;
        if (ranks > inv.free)
            break;
        out[n_out++] = (struct sched_placement){queue[i].id, ranks};
        inv.free -= ranks;
    }
    return n_out;
}
