/* bench_times - how long every operator of a step took: a clock behind the watch of program_impl.h. */
#ifndef BENCH_BENCH_TIMES_H
#define BENCH_BENCH_TIMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct program;

/* What a watched step does beside its operators. */
enum bench_part { BENCH_PART_FEED, BENCH_PART_SUMS, BENCH_PART_UPDATE, N_BENCH_PARTS };

/* All in milliseconds. */
struct bench_times {
    double *step_ms; /* [n_steps] */
    double *losses;  /* [n_losses]: of all steps made, in order */
    int n_steps, n_losses;
    int n_nodes, n_watched;
    double *node_ms;              /* [2·n_nodes][n_watched]; 0: did not run. Backward is the second half. */
    double *parts[N_BENCH_PARTS]; /* [n_watched] */
    double peak_rss;              /* bytes */
    int64_t mark_ns;              /* the end of what was timed last */
    int step;                     /* the watched step that runs now */
};

void bench_times_open(struct bench_times *t, int n_nodes, int n_watched);
void bench_times_close(struct bench_times *t);

/* From now on the program's operators are timed; before each step: t->step is set, and t->mark_ns. */
void bench_times_watch(struct bench_times *t, struct program *p);

/* What has been done since the last mark was this part. */
void bench_times_part(struct bench_times *t, enum bench_part part);

/* Median of a node's direction over the watched steps; sorts what was measured. */
double bench_times_node(struct bench_times *t, int node, bool backward);

#endif
