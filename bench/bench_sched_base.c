/* bench_sched_base - the policies that ours is held against, on the same simulated machine: plain FIFO, and
 * EASY backfill (Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995).
 *
 * Both place a gang on as few nodes as possible. A rank is one GPU and any node will do, so whether a gang
 * fits is a question of the number of free GPUs alone.
 */
#include "bench/bench_sched.h"
#include "common/err.h"

#include <stdlib.h>

struct placing {
    struct sim *s;
    struct sched_piece *pieces;
    size_t n;
    int32_t left;
};

static void put(struct placing *p, long node, int32_t most)
{
    int32_t ranks = p->left < most ? p->left : most;

    p->pieces[p->n++] = (struct sched_piece){(int32_t)node, ranks};
    p->s->free[node] -= ranks;
    p->left -= ranks;
}

/* Whole nodes first; then the tightest that takes the rest; else whatever is left, the largest first. */
static void start(struct sim *s, uint32_t id)
{
    int32_t ranks = s->load->jobs[id].ranks, per_node = (int32_t)s->o->gpus;
    struct placing p = {s, xmalloc((size_t)ranks * sizeof *p.pieces), 0, ranks};

    for (long k = 0; k < s->o->nodes && p.left >= per_node; k++)
        if (s->free[k] == per_node)
            put(&p, k, per_node);
    for (int32_t size = p.left; p.left && size <= per_node; size++)
        for (long k = 0; k < s->o->nodes && p.left; k++)
            if (s->free[k] == size)
                put(&p, k, size);
    for (int32_t size = per_node; p.left && size > 0; size--)
        for (long k = 0; k < s->o->nodes && p.left; k++)
            if (s->free[k] == size)
                put(&p, k, size);
    ASSERT(!p.left);
    for (size_t i = 0; i < p.n; i++) /* sim_start() takes them */
        s->free[p.pieces[i].node] += p.pieces[i].ranks;
    sim_start(s, id, p.pieces, p.n);
    free(p.pieces);
}

void base_fifo(struct sim *s)
{
    size_t i = 0;

    while (i < s->n_queue && s->load->jobs[s->queue[i]].ranks <= s->n_free)
        start(s, s->queue[i++]);
    sim_drop_started(s);
}

struct release {
    int64_t t;
    int32_t ranks;
};

static int compare_release(const void *a, const void *b)
{
    const struct release *x = a, *y = b;

    return (x->t > y->t) - (x->t < y->t);
}

/* When the head of the queue can start by the estimates of what runs, and how many GPUs it leaves then. */
static int64_t shadow(const struct sched_input *in, int64_t n_free, int32_t need, int64_t *extra)
{
    struct release *r = xmalloc((in->n_running + 1) * sizeof *r);
    int64_t there = n_free, t = in->now_ms;

    for (size_t i = 0; i < in->n_running; i++)
        r[i] = (struct release){in->now_ms + in->running[i].job.run_ms, in->running[i].job.ranks};
    qsort(r, in->n_running, sizeof *r, compare_release);
    for (size_t i = 0; i < in->n_running && there < need; i++) {
        there += r[i].ranks;
        t = r[i].t;
    }
    *extra = there - need;
    free(r);
    return t;
}

void base_easy(struct sim *s)
{
    size_t i = 0;
    int64_t extra;

    while (i < s->n_queue && s->load->jobs[s->queue[i]].ranks <= s->n_free)
        start(s, s->queue[i++]);
    sim_drop_started(s);
    if (!s->n_queue || !s->n_free)
        return;
    struct sched_input in = sim_input(s);
    int64_t t = shadow(&in, s->n_free, in.waiting[0].ranks, &extra);
    for (i = 1; i < s->n_queue && s->n_free; i++) {
        const struct sched_job *job = &in.waiting[i];
        bool ends = s->now + job->run_ms <= t;
        if (job->ranks > s->n_free || (!ends && job->ranks > extra))
            continue;
        extra -= ends ? 0 : job->ranks;
        start(s, s->queue[i]);
    }
    sim_drop_started(s);
}
