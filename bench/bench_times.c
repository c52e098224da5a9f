/* bench_times - see bench_times.h. */
#include "bench/bench_times.h"

#include <stdlib.h>
#include "bench/bench_run.h"
#include "common/clock.h"
#include "worker/engine/program_impl.h"

static double *slot(struct bench_times *t, int node, bool backward)
{
    return t->node_ms + (size_t)(t->n_nodes * backward + node) * (size_t)t->n_watched;
}

static double since_mark(struct bench_times *t)
{
    const int64_t now = clock_mono_ns();
    const double ms = (double)(now - t->mark_ns) / 1e6;

    t->mark_ns = now;
    return ms;
}

static int after_node(void *arg, const struct program *p, int i, bool backward, struct err *e)
{
    struct bench_times *t = arg;

    (void)p;
    (void)e;
    slot(t, i, backward)[t->step] = since_mark(t);
    return 0;
}

void bench_times_open(struct bench_times *t, int n_nodes, int n_watched)
{
    t->n_nodes = n_nodes;
    t->n_watched = n_watched;
    t->node_ms = xcalloc(2 * (size_t)n_nodes * (size_t)n_watched + 1, sizeof *t->node_ms);
    for (int i = 0; i < N_BENCH_PARTS; i++)
        t->parts[i] = xcalloc((size_t)n_watched + 1, sizeof *t->parts[i]);
}

void bench_times_close(struct bench_times *t)
{
    free(t->step_ms);
    free(t->losses);
    free(t->node_ms);
    for (int i = 0; i < N_BENCH_PARTS; i++)
        free(t->parts[i]);
}

void bench_times_watch(struct bench_times *t, struct program *p)
{
    p->watch = (struct watch){after_node, t};
}

void bench_times_part(struct bench_times *t, enum bench_part part)
{
    t->parts[part][t->step] = since_mark(t);
}

double bench_times_node(struct bench_times *t, int node, bool backward)
{
    return t->n_watched > 0 ? bench_median(slot(t, node, backward), t->n_watched) : 0;
}
