/* sched_victims - which running jobs give up what, so that one gang fits now.
 *
 * As few as possible, and of those the ones that come first: it is tried whether one alone is enough, in
 * order of preference; then whether those that come first are, and whether those that hold most are, each
 * list as long as it must be. Then each, the last first, gets back as much as the gang can spare: in the end
 * nobody gives up a rank without which it would fit too. (The smallest set at all would be a knapsack
 * problem.)
 *
 * Nothing is decided here: the caller tries the result in a whole pass.
 */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <stdlib.h>
#include <string.h>

struct trial {
    struct timeline *tl;
    int64_t now;
    const struct gang *g;
    struct victim *v;
    size_t n;
    struct sched_piece *pieces; /* room for the most that a victim holds */
};

static int compare_larger(const void *a, const void *b)
{
    const struct sched_piece *x = a, *y = b;

    if (x->ranks != y->ranks)
        return x->ranks > y->ranks ? -1 : 1;
    return (x->node > y->node) - (x->node < y->node);
}

/* What the victim would hold with `keep` ranks, had it stayed where it is. */
static size_t trim(struct trial *t, const struct victim *v, int32_t keep)
{
    const struct sched_running *r = v->h->r;
    size_t n = 0;

    memcpy(t->pieces, r->pieces, r->n_pieces * sizeof *t->pieces);
    if (keep == v->h->held)
        return r->n_pieces;
    qsort(t->pieces, r->n_pieces, sizeof *t->pieces, compare_larger);
    for (; n < r->n_pieces && keep > 0; n++) {
        int32_t left = (int32_t)(r->n_pieces - n), share = (keep + left - 1) / left;
        int32_t most = r->job.nodes ? share : keep;
        if (most < t->pieces[n].ranks)
            t->pieces[n].ranks = most;
        keep -= t->pieces[n].ranks;
    }
    return n;
}

static void set_keep(struct trial *t, struct victim *v, int32_t keep)
{
    const struct sched_job *job = &v->h->r->job;
    int32_t both[2] = {v->keep, keep};

    for (int k = 0; k < 2; k++) {
        if (!both[k])
            continue;
        size_t n = trim(t, v, both[k]);
        int64_t run = board_run_ms(job, both[k]);
        timeline_hold(t->tl, t->pieces, n, job->gpus_per_rank, t->now,
                      run >= TIMELINE_FOREVER ? TIMELINE_FAR : t->now + run, 0, k ? 1 : -1);
    }
    v->keep = keep;
    for (size_t i = 0; i < v->h->r->n_pieces; i++)
        timeline_retally(t->tl, t->g, v->h->r->pieces[i].node);
}

static bool fits_with(struct trial *t, struct victim *v, int32_t keep)
{
    set_keep(t, v, keep);
    return timeline_tally_fits(t->tl, t->g);
}

static int32_t lowest(const struct victim *v)
{
    return v->whole ? 0 : v->least;
}

/* The gang fits with v at its lowest: gives back what can be spared. */
static void give_back(struct trial *t, struct victim *v)
{
    int32_t lo = lowest(v), hi = v->h->held;

    if (fits_with(t, v, hi))
        return;
    if (!lo && v->least < hi && fits_with(t, v, v->least))
        lo = v->least;
    while (lo && hi - lo > 1) {
        int32_t mid = lo + (hi - lo) / 2;
        if (fits_with(t, v, mid))
            lo = mid;
        else
            hi = mid;
    }
    set_keep(t, v, lo);
}

static void put_back(struct trial *t)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->v[i].keep != t->v[i].h->held)
            set_keep(t, &t->v[i], t->v[i].h->held);
}

static bool choose_one(struct trial *t)
{
    for (size_t i = 0; i < t->n; i++) {
        if (fits_with(t, &t->v[i], lowest(&t->v[i]))) {
            give_back(t, &t->v[i]);
            return true;
        }
        set_keep(t, &t->v[i], t->v[i].h->held);
    }
    return false;
}

/* As many as it takes, in the given order. Returns how many gave up something; 0: all are not enough. */
static size_t choose_in_order(struct trial *t, struct victim *const *order)
{
    size_t n = 0, chosen = 0;

    while (n < t->n && !fits_with(t, order[n], lowest(order[n])))
        n++;
    if (n == t->n)
        return 0;
    for (size_t i = n + 1; i-- > 0;) {
        give_back(t, order[i]);
        chosen += order[i]->keep != order[i]->h->held;
    }
    return chosen;
}

static int compare_holds_more(const void *a, const void *b)
{
    const struct victim *x = *(struct victim *const *)a, *y = *(struct victim *const *)b;

    if (x->h->held != y->h->held)
        return x->h->held > y->h->held ? -1 : 1;
    return (x > y) - (x < y);
}

static bool choose_many(struct trial *t)
{
    struct victim **order = xmalloc((t->n + 1) * sizeof *order);
    int32_t *keep = xmalloc((t->n + 1) * sizeof *keep);
    size_t by_preference, by_size;

    for (size_t i = 0; i < t->n; i++)
        order[i] = &t->v[i];
    by_preference = choose_in_order(t, order);
    for (size_t i = 0; i < t->n; i++)
        keep[i] = t->v[i].keep;
    put_back(t);
    if (by_preference > 2) { /* one alone is not enough, so two are the fewest */
        qsort(order, t->n, sizeof *order, compare_holds_more);
        by_size = choose_in_order(t, order);
        for (size_t i = 0; i < t->n; i++)
            keep[i] = by_size < by_preference ? t->v[i].keep : keep[i];
        put_back(t);
    }
    for (size_t i = 0; i < t->n; i++)
        t->v[i].keep = keep[i];
    free(order);
    free(keep);
    return by_preference > 0;
}

bool victims_choose(struct timeline *tl, int64_t now_ms, const struct gang *g, struct victim *v, size_t n)
{
    struct trial t = {tl, now_ms, g, v, n, NULL};
    size_t most = 1;
    bool found;

    for (size_t i = 0; i < n; i++) {
        v[i].keep = v[i].h->held;
        most = v[i].h->r->n_pieces > most ? v[i].h->r->n_pieces : most;
    }
    t.pieces = xmalloc(most * sizeof *t.pieces);
    timeline_tally(tl, g);
    if (choose_one(&t)) {
        int32_t *keep = xmalloc((n + 1) * sizeof *keep);
        for (size_t i = 0; i < n; i++)
            keep[i] = v[i].keep;
        put_back(&t);
        for (size_t i = 0; i < n; i++)
            v[i].keep = keep[i];
        free(keep);
        found = true;
    } else {
        found = choose_many(&t);
    }
    free(t.pieces);
    return found;
}
