/* sched_timeline - see sched_timeline.h. Where a gang goes is in sched_place.c. */
#include "daemon/sched_timeline.h"
#include "common/err.h"
#include "daemon/sched_timeline_impl.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_SEGS = 12 };

/* --- lines --- */

struct timeline *timeline_create(const struct sched_node *nodes, size_t n_nodes, int64_t now_ms)
{
    struct timeline *tl = xcalloc(1, sizeof *tl);

    ASSERT(n_nodes <= INT32_MAX);
    tl->nodes = nodes;
    tl->n_nodes = (int32_t)n_nodes;
    tl->now = now_ms;
    tl->lines = xcalloc(n_nodes + 1, sizeof *tl->lines);
    tl->segs = xmalloc((n_nodes + 1) * FIRST_SEGS * sizeof *tl->segs);
    tl->room = xcalloc(n_nodes + 1, sizeof *tl->room);
    tl->seen = xcalloc(n_nodes + 1, sizeof *tl->seen);
    for (int k = 0; k < 2; k++)
        tl->open[k].v = xcalloc(n_nodes + 1, sizeof *tl->open[k].v);
    tl->picks = xcalloc(n_nodes + 1, sizeof *tl->picks);
    for (int32_t n = 0; n < tl->n_nodes; n++) {
        struct line *l = &tl->lines[n];
        l->v = tl->segs + (size_t)n * FIRST_SEGS;
        l->n = 1;
        l->cap = FIRST_SEGS;
        l->v[0] = (struct seg){now_ms, nodes[n].usable ? nodes[n].slots : 0,
                               nodes[n].usable ? nodes[n].gpus : 0, TIMELINE_NOBODY, TIMELINE_NOBODY};
    }
    return tl;
}

void timeline_destroy(struct timeline *tl)
{
    if (!tl)
        return;
    for (int32_t n = 0; n < tl->n_nodes; n++)
        if (tl->lines[n].own)
            free(tl->lines[n].v);
    free(tl->lines);
    free(tl->segs);
    free(tl->room);
    free(tl->seen);
    free(tl->open[0].v);
    free(tl->open[1].v);
    free(tl->picks);
    free(tl->heap.v);
    free(tl->ends.v);
    free(tl->begins.v);
    free(tl);
}

/* Room for one more breakpoint. */
static void line_reserve(struct line *l)
{
    if (l->n < l->cap)
        return;
    struct seg *v = xmalloc((size_t)l->cap * 2 * sizeof *v);
    memcpy(v, l->v, (size_t)l->n * sizeof *v);
    if (l->own)
        free(l->v);
    l->v = v;
    l->cap *= 2;
    l->own = true;
}

static int32_t lower_who(int32_t a, int32_t b)
{
    return a == TIMELINE_NOBODY || (b != TIMELINE_NOBODY && b < a) ? b : a;
}

/* Turns the ends that timeline_add_running() has left behind v[0] into breakpoints. */
static void line_settle(struct line *l)
{
    int32_t n = 1;

    for (int32_t i = 2; i < l->n; i++) {
        struct seg s = l->v[i];
        int32_t k = i;
        for (; k > 1 && l->v[k - 1].t > s.t; k--)
            l->v[k] = l->v[k - 1];
        l->v[k] = s;
    }
    for (int32_t i = 1; i < l->n; i++) {
        struct seg s = l->v[i];
        if (l->v[n - 1].t == s.t) {
            l->v[n - 1].slots += s.slots;
            l->v[n - 1].gpus += s.gpus;
            l->v[n - 1].ends = lower_who(l->v[n - 1].ends, s.ends);
        } else {
            s.slots += l->v[n - 1].slots;
            s.gpus += l->v[n - 1].gpus;
            l->v[n++] = s;
        }
    }
    l->n = n;
    l->settled = true;
}

struct line *timeline_line(struct timeline *tl, int32_t node)
{
    struct line *l = &tl->lines[node];

    if (!l->settled)
        line_settle(l);
    return l;
}

/* Index of the breakpoint at t, which is made when there is none. t is not before now. */
static int32_t line_cut(struct line *l, int64_t t)
{
    int32_t i = l->n;

    while (i > 0 && l->v[i - 1].t > t)
        i--;
    if (l->v[i - 1].t == t)
        return i - 1;
    line_reserve(l);
    memmove(&l->v[i + 1], &l->v[i], (size_t)(l->n - i) * sizeof *l->v);
    l->v[i] = (struct seg){t, l->v[i - 1].slots, l->v[i - 1].gpus, TIMELINE_NOBODY, TIMELINE_NOBODY};
    l->n++;
    return i;
}

/* --- moments: a list that is sorted by time, and a heap of those that nobody has asked for yet --- */

/* Room for n more. */
static void moments_reserve(struct moments *m, size_t n)
{
    if (m->n + n <= m->cap)
        return;
    while (m->n + n > m->cap)
        m->cap = m->cap ? m->cap * 2 : 256;
    m->v = xrealloc(m->v, m->cap * sizeof *m->v);
}

static void heap_push(struct moments *h, struct moment x)
{
    size_t i = h->n;

    moments_reserve(h, 1);
    h->n++;
    for (; i && h->v[(i - 1) / 2].t > x.t; i = (i - 1) / 2)
        h->v[i] = h->v[(i - 1) / 2];
    h->v[i] = x;
}

static struct moment heap_pop(struct moments *h)
{
    struct moment top = h->v[0], x = h->v[--h->n];
    size_t i = 0;

    for (size_t k; (k = 2 * i + 1) < h->n; i = k) {
        if (k + 1 < h->n && h->v[k + 1].t < h->v[k].t)
            k++;
        if (h->v[k].t >= x.t)
            break;
        h->v[i] = h->v[k];
    }
    h->v[i] = x;
    return top;
}

static size_t moments_after(const struct moments *m, int64_t t)
{
    size_t lo = 0, hi = m->n;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (m->v[mid].t > t)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* All pieces at one time: one move of what comes after. */
static void moments_insert(struct moments *m, int64_t t, const struct sched_piece *pieces, size_t n)
{
    size_t i = moments_after(m, t);

    moments_reserve(m, n);
    memmove(&m->v[i + n], &m->v[i], (m->n - i) * sizeof *m->v);
    for (size_t k = 0; k < n; k++)
        m->v[i + k] = (struct moment){t, pieces[k].node};
    m->n += n;
}

static void add_ends(struct timeline *tl, int64_t t, const struct sched_piece *pieces, size_t n)
{
    if (tl->ends.n && t < tl->ends.v[tl->ends.n - 1].t) {
        moments_insert(&tl->ends, t, pieces, n);
        return;
    }
    for (size_t k = 0; k < n; k++)
        heap_push(&tl->heap, (struct moment){t, pieces[k].node});
}

/* The i-th end in order of time, or NULL. */
static const struct moment *end_at(struct timeline *tl, size_t i)
{
    while (tl->ends.n <= i && tl->heap.n) {
        moments_reserve(&tl->ends, 1);
        tl->ends.v[tl->ends.n++] = heap_pop(&tl->heap);
    }
    return i < tl->ends.n ? &tl->ends.v[i] : NULL;
}

/* --- holds --- */

void timeline_add_running(struct timeline *tl, int32_t node, int32_t slots, int32_t gpus, int64_t end_ms,
                          int32_t who)
{
    struct line *l = &tl->lines[node];

    ASSERT(!l->settled && end_ms > tl->now);
    if (!tl->nodes[node].usable)
        return;
    l->v[0].slots -= slots;
    l->v[0].gpus -= gpus;
    line_reserve(l);
    l->v[l->n++] = (struct seg){end_ms, slots, gpus, who, TIMELINE_NOBODY};
    heap_push(&tl->heap, (struct moment){end_ms, node});
}

static void hold_node(struct timeline *tl, int32_t node, int32_t slots, int32_t gpus, int64_t from,
                      int64_t to, int32_t who)
{
    struct line *l = timeline_line(tl, node);
    int32_t a = line_cut(l, from), b = line_cut(l, to);

    for (int32_t i = a; i < b; i++) {
        l->v[i].slots -= slots;
        l->v[i].gpus -= gpus;
    }
    if (slots < 0)
        return;
    l->v[b].ends = lower_who(l->v[b].ends, who);
    if (from > tl->now)
        l->v[a].begins = lower_who(l->v[a].begins, who);
}

void timeline_hold(struct timeline *tl, const struct sched_piece *pieces, size_t n, int32_t gpus_per_rank,
                   int64_t from_ms, int64_t to_ms, int32_t who, int sign)
{
    for (size_t i = 0; i < n; i++)
        if (tl->nodes[pieces[i].node].usable)
            hold_node(tl, pieces[i].node, sign * pieces[i].ranks, sign * pieces[i].ranks * gpus_per_rank,
                      from_ms, to_ms, who);
    if (sign < 0) {
        tl->open_known = false;
        return;
    }
    /* Nodes that are not usable are among them; a look at those does no harm. */
    add_ends(tl, to_ms, pieces, n);
    if (from_ms > tl->now)
        moments_insert(&tl->begins, from_ms, pieces, n);
}

void timeline_close(struct timeline *tl, int32_t gpus_per_rank)
{
    if (tl->any_closed && tl->closed_gpus <= gpus_per_rank)
        return; /* what has GPUs enough for this rank was closed for one that wants no more */
    for (int32_t n = 0; n < tl->n_nodes; n++) {
        const struct sched_node *node = &tl->nodes[n];
        if (tl->lines[n].closed || !node->usable || !node->slots || node->gpus < gpus_per_rank)
            continue;
        tl->lines[n].closed = true;
        add_ends(tl, TIMELINE_FAR, &(struct sched_piece){n, 1},
                 1); /* there is room again: a moment at which to look */
    }
    tl->any_closed = true;
    tl->closed_gpus = gpus_per_rank;
}

/* --- room and tally --- */

static int32_t ranks_in(int32_t slots, int32_t gpus, int32_t gpus_per_rank)
{
    int32_t by_gpus = gpus_per_rank ? gpus / gpus_per_rank : slots;
    int32_t c = slots < by_gpus ? slots : by_gpus;

    return c > 0 ? c : 0;
}

int32_t timeline_room(struct timeline *tl, const struct gang *g, int32_t node, int64_t t)
{
    const struct line *l = timeline_line(tl, node);
    int64_t end = g->run_ms >= TIMELINE_FOREVER ? INT64_MAX : t + g->run_ms;
    int32_t i = 0, slots, gpus;

    if (l->closed && g->run_ms >= TIMELINE_FOREVER && t < TIMELINE_FAR)
        return 0;
    while (i + 1 < l->n && l->v[i + 1].t <= t)
        i++;
    slots = l->v[i].slots;
    gpus = l->v[i].gpus;
    for (i++; i < l->n && l->v[i].t < end && slots > 0; i++) {
        slots = l->v[i].slots < slots ? l->v[i].slots : slots;
        gpus = l->v[i].gpus < gpus ? l->v[i].gpus : gpus;
    }
    return ranks_in(slots, gpus, g->gpus_per_rank);
}

static void know_open(struct timeline *tl)
{
    if (tl->open_known)
        return;
    tl->open[0].n = tl->open[1].n = 0;
    for (int32_t n = 0; n < tl->n_nodes; n++) {
        const struct seg *s = tl->lines[n].v;
        if (s->slots > 0)
            tl->open[0].v[tl->open[0].n++] = n;
        if (s->slots > 0 && s->gpus > 0)
            tl->open[1].v[tl->open[1].n++] = n;
    }
    tl->open_known = true;
}

static void tally_reset(struct timeline *tl, const struct gang *g)
{
    for (int32_t i = 0; i < tl->n_seen; i++)
        tl->room[tl->seen[i]] = (struct room){0};
    tl->n_seen = 0;
    tl->sum = 0;
    tl->n_low = tl->n_high = 0;
    tl->per_node = g->nodes ? g->ranks / g->nodes : 0;
}

static void tally_set(struct timeline *tl, const struct gang *g, int32_t node, int32_t ranks)
{
    struct room *r = &tl->room[node];

    if (!r->seen) {
        if (!ranks)
            return;
        r->seen = true;
        tl->seen[tl->n_seen++] = node;
    }
    if (g->nodes) {
        tl->n_low += (ranks >= tl->per_node) - (r->ranks >= tl->per_node);
        tl->n_high += (ranks > tl->per_node) - (r->ranks > tl->per_node);
    }
    tl->sum += ranks - r->ranks;
    r->ranks = ranks;
}

bool timeline_tally_fits(const struct timeline *tl, const struct gang *g)
{
    if (g->nodes)
        return tl->per_node > 0 && tl->n_low >= g->nodes && tl->n_high >= g->ranks % g->nodes;
    return tl->sum >= g->ranks;
}

void timeline_retally(struct timeline *tl, const struct gang *g, int32_t node)
{
    if (tl->nodes[node].usable)
        tally_set(tl, g, node, timeline_room(tl, g, node, tl->now));
}

static void tally_now(struct timeline *tl, const struct gang *g)
{
    struct open *o = &tl->open[g->gpus_per_rank > 0];
    int32_t kept = 0;

    know_open(tl);
    tally_reset(tl, g);
    for (int32_t i = 0; i < o->n; i++) {
        int32_t n = o->v[i];
        const struct seg *s = tl->lines[n].v;
        if (s->slots <= 0 || (g->gpus_per_rank && s->gpus <= 0))
            continue; /* a start has filled it */
        o->v[kept++] = n;
        if (!g->gpus_per_rank || s->gpus >= g->gpus_per_rank)
            tally_set(tl, g, n, timeline_room(tl, g, n, tl->now));
    }
    o->n = kept;
}

static void tally_at(struct timeline *tl, const struct gang *g, int64_t t)
{
    tally_reset(tl, g);
    for (int32_t n = 0; n < tl->n_nodes; n++)
        if (tl->nodes[n].usable)
            tally_set(tl, g, n, timeline_room(tl, g, n, t));
}

void timeline_tally(struct timeline *tl, const struct gang *g)
{
    tally_at(tl, g, tl->now);
}

/* --- searching --- */

static int64_t sweep(struct timeline *tl, const struct gang *g, int64_t t)
{
    /* A hold that begins at b is in the window [t, t + run) from t = b - run + 1 on. */
    int64_t back = g->run_ms - 1;
    size_t e = 0, b = moments_after(&tl->begins, t + back);
    const struct moment *end;
    while (end_at(tl, e) && end_at(tl, e)->t <= t)
        e++;
    while ((end = end_at(tl, e))) {
        for (; b < tl->begins.n && tl->begins.v[b].t - back <= end->t; b++)
            tally_set(tl, g, tl->begins.v[b].node, timeline_room(tl, g, tl->begins.v[b].node, end->t));
        t = end->t;
        for (; (end = end_at(tl, e)) && end->t == t; e++)
            tally_set(tl, g, end->node, timeline_room(tl, g, end->node, t));
        if (timeline_tally_fits(tl, g))
            return t;
    }
    return -1;
}

int64_t timeline_fit(struct timeline *tl, const struct gang *g, int64_t from_ms, bool only)
{
    if (from_ms <= tl->now) {
        from_ms = tl->now;
        tally_now(tl, g);
    } else {
        tally_at(tl, g, from_ms);
    }
    if (timeline_tally_fits(tl, g))
        return from_ms;
    return only ? -1 : sweep(tl, g, from_ms);
}

static int compare_down(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return (y > x) - (y < x);
}

int32_t timeline_capacity(struct timeline *tl, const struct gang *g)
{
    int64_t sum = 0;

    tally_now(tl, g);
    if (!g->nodes)
        return (int32_t)(tl->sum < g->ranks ? tl->sum : g->ranks);
    if (tl->n_seen < g->nodes || g->ranks < g->nodes)
        return 0;
    int32_t *ranks = xmalloc((size_t)tl->n_seen * sizeof *ranks);
    for (int32_t i = 0; i < tl->n_seen; i++)
        ranks[i] = tl->room[tl->seen[i]].ranks;
    qsort(ranks, (size_t)tl->n_seen, sizeof *ranks, compare_down);
    int32_t least = ranks[g->nodes - 1];
    for (int32_t i = 0; least && i < g->nodes; i++)
        sum += least + (ranks[i] > least);
    free(ranks);
    return (int32_t)(sum < g->ranks ? sum : g->ranks);
}

bool timeline_fits_at(struct timeline *tl, const struct gang *g, int64_t t_ms,
                      const struct sched_piece *pieces, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (pieces[i].node >= tl->n_nodes || !tl->nodes[pieces[i].node].usable ||
            timeline_room(tl, g, pieces[i].node, t_ms) < pieces[i].ranks)
            return false;
    return true;
}

/* --- reasons --- */

int32_t timeline_who_ends(struct timeline *tl, const struct sched_piece *pieces, size_t n, int64_t t_ms)
{
    int32_t who = TIMELINE_NOBODY;

    for (size_t i = 0; i < n; i++) {
        const struct line *l = timeline_line(tl, pieces[i].node);
        for (int32_t k = 0; k < l->n && l->v[k].t <= t_ms; k++)
            if (l->v[k].t == t_ms)
                who = lower_who(who, l->v[k].ends);
    }
    return who;
}

/* Whose promise is the first to leave less room on the node than `ranks`. */
static int32_t who_narrows(struct timeline *tl, const struct gang *g, int32_t node, int32_t ranks)
{
    const struct line *l = timeline_line(tl, node);
    int64_t end = g->run_ms >= TIMELINE_FOREVER ? INT64_MAX : tl->now + g->run_ms;

    for (int32_t k = 1; k < l->n && l->v[k].t < end; k++)
        if (l->v[k].begins != TIMELINE_NOBODY &&
            ranks_in(l->v[k].slots, l->v[k].gpus, g->gpus_per_rank) < ranks)
            return l->v[k].begins;
    return TIMELINE_NOBODY;
}

int32_t timeline_who_is_promised(struct timeline *tl, const struct gang *g)
{
    struct gang instant = *g;
    int32_t who = TIMELINE_NOBODY;

    instant.run_ms = 1;
    tally_now(tl, &instant);
    if (!timeline_tally_fits(tl, &instant))
        return TIMELINE_NOBODY;
    for (int32_t i = 0; i < tl->n_seen; i++) {
        int32_t n = tl->seen[i], ranks = tl->room[n].ranks;
        if (timeline_room(tl, g, n, tl->now) < ranks)
            who = lower_who(who, who_narrows(tl, g, n, ranks < g->ranks ? ranks : g->ranks));
    }
    return who;
}

void timeline_free_now(const struct timeline *tl, int64_t *slots, int64_t *gpus)
{
    *slots = *gpus = 0;
    for (int32_t n = 0; n < tl->n_nodes; n++) {
        const struct seg *s = tl->lines[n].v;
        *slots += s->slots > 0 ? s->slots : 0;
        *gpus += s->gpus > 0 ? s->gpus : 0;
    }
}
