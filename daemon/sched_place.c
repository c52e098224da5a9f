/* sched_place - where a gang goes among the nodes of a tally: as few nodes as possible, and of those the ones
 * that leave the least spare room, so that big holes stay whole.
 *
 * With c the room of a node and m ranks left to place: while no node has c >= m, take the node with the most
 * room whole; then the one with the least c >= m. Taking the largest first needs the fewest nodes; the last
 * one is where spare room arises. For an exact number of nodes, k: ranks mod k nodes get one rank more than
 * the others; those take the tightest nodes that hold so many, then the others the tightest of the rest.
 */
#include "common/err.h"
#include "daemon/sched_timeline_impl.h"

#include <stdlib.h>

/* Tightest first; a gang that wants no GPUs first spares nodes that have some. */
static int compare_tight(const void *a, const void *b)
{
    const struct pick *x = a, *y = b;

    if (x->gpus != y->gpus)
        return x->gpus < y->gpus ? -1 : 1;
    if (x->ranks != y->ranks)
        return x->ranks < y->ranks ? -1 : 1;
    return (x->node > y->node) - (x->node < y->node);
}

static int compare_roomy(const void *a, const void *b)
{
    const struct pick *x = a, *y = b;

    if (x->ranks != y->ranks)
        return x->ranks > y->ranks ? -1 : 1;
    if (x->gpus != y->gpus)
        return x->gpus < y->gpus ? -1 : 1;
    return (x->node > y->node) - (x->node < y->node);
}

static int compare_node(const void *a, const void *b)
{
    const struct sched_piece *x = a, *y = b;

    return (x->node > y->node) - (x->node < y->node);
}

static int32_t collect(struct timeline *tl, const struct gang *g)
{
    int32_t n = 0;

    for (int32_t i = 0; i < tl->n_seen; i++) {
        int32_t node = tl->seen[i], ranks = tl->room[node].ranks;
        if (ranks)
            tl->picks[n++] = (struct pick){ranks, g->gpus_per_rank ? 0 : tl->nodes[node].gpus, node};
    }
    return n;
}

/* The tightest pick from `first` on with room for `ranks`, or -1. */
static int32_t tightest(const struct timeline *tl, int32_t first, int32_t n, int32_t ranks)
{
    int32_t best = -1;

    for (int32_t i = first; i < n; i++)
        if (tl->picks[i].ranks >= ranks && (best < 0 || compare_tight(&tl->picks[i], &tl->picks[best]) < 0))
            best = i;
    return best;
}

static size_t place_few(struct timeline *tl, int32_t n, int32_t left, struct sched_piece *out)
{
    int32_t last = tightest(tl, 0, n, left);
    size_t n_out = 0;

    if (last < 0)
        qsort(tl->picks, (size_t)n, sizeof *tl->picks, compare_roomy);
    for (int32_t i = 0; last < 0; i++) {
        ASSERT(i < n);
        out[n_out++] = (struct sched_piece){tl->picks[i].node, tl->picks[i].ranks};
        left -= tl->picks[i].ranks;
        if (i + 1 < n && tl->picks[i + 1].ranks >= left)
            last = tightest(tl, i + 1, n, left);
    }
    out[n_out++] = (struct sched_piece){tl->picks[last].node, left};
    return n_out;
}

static size_t place_exact(struct timeline *tl, const struct gang *g, int32_t n, struct sched_piece *out)
{
    int32_t more = g->ranks % g->nodes, each = g->ranks / g->nodes;
    size_t n_out = 0;

    qsort(tl->picks, (size_t)n, sizeof *tl->picks, compare_tight);
    for (int32_t i = 0; i < n && more; i++) {
        if (tl->picks[i].ranks <= each)
            continue;
        out[n_out++] = (struct sched_piece){tl->picks[i].node, each + 1};
        tl->picks[i].ranks = 0;
        more--;
    }
    for (int32_t i = 0; i < n && n_out < (size_t)g->nodes; i++)
        if (tl->picks[i].ranks >= each)
            out[n_out++] = (struct sched_piece){tl->picks[i].node, each};
    ASSERT(!more && n_out == (size_t)g->nodes);
    return n_out;
}

size_t timeline_place(struct timeline *tl, const struct gang *g, struct sched_piece *out)
{
    int32_t n = collect(tl, g);
    size_t n_out = g->nodes ? place_exact(tl, g, n, out) : place_few(tl, n, g->ranks, out);

    qsort(out, n_out, sizeof *out, compare_node);
    return n_out;
}
