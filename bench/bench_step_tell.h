/* bench_step_tell - what bench_step measured, as a JSON document or as a table. */
#ifndef BENCH_BENCH_STEP_TELL_H
#define BENCH_BENCH_STEP_TELL_H

#include "bench/bench_net.h"

/* What a watched step does beside its operators. */
enum bench_part { BENCH_PART_FEED, BENCH_PART_SUMS, BENCH_PART_UPDATE, N_BENCH_PARTS };

/* All in milliseconds. Slots: forward of node i is i, its backward n_nodes + i. */
struct bench_times {
    double *step_ms; /* [n_steps] */
    double *losses;  /* [n_losses]: of all steps made, in order */
    int n_steps, n_losses;
    int n_nodes, n_watched;
    double *node_ms;              /* [2·n_nodes][n_watched]; 0: did not run */
    double *parts[N_BENCH_PARTS]; /* [n_watched] */
    double peak_rss;              /* bytes */
};

void bench_times_open(struct bench_times *t, int n_nodes, int n_watched);
void bench_times_close(struct bench_times *t);

static inline double *bench_time_of(struct bench_times *t, int slot, int watched_step)
{
    return t->node_ms + (size_t)slot * (size_t)t->n_watched + watched_step;
}

struct bench_told {
    const struct bench_net *net;
    struct comm *comm;
    struct bench_times *times;
    long threads, warm;
};

/* Collective; rank 0 prints. */
int bench_step_tell(const struct bench_told *told, bool table, struct err *e);

#endif
