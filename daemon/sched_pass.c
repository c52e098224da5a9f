/* sched_pass - one pass over the waiting jobs in order: each starts now, or gets a reservation.
 *
 * A job is placed on a timeline that holds what runs and what was given to those before it, so it can move
 * none of them: that is all there is to conservative backfill. Deeper than max_reservations a job gets a look
 * at "now" only. Most of those looks fail for a reason that was found before (a memo by kind of gang: what
 * did not fit for so long does not fit for longer, and room only shrinks during a pass), so a pass over a
 * hundred thousand jobs is cheap.
 *
 * A job without an estimate asks for room for ever, since that is what it will count as when it runs; its
 * reservation lasts default_run_ms, so that those behind it get an estimate at all.
 */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <stdlib.h>

enum { MEMO_SLOTS = 1024 };

/* A kind of gang and the shortest run for which it has been found not to fit now. */
struct memo {
    int32_t ranks, gpus_per_rank, nodes;
    int64_t run_ms;
};

int64_t board_run_ms(const struct sched_job *job, int32_t ranks)
{
    int64_t run = sched_run_ms(job, ranks);

    return run < 0 ? TIMELINE_FOREVER : run ? run : 1;
}

static int64_t end_ms(int64_t start, int64_t run)
{
    return run >= TIMELINE_FOREVER ? TIMELINE_FAR : start + run;
}

struct gang pass_gang(const struct sched_job *job, int32_t ranks)
{
    return (struct gang){ranks, job->gpus_per_rank, job->nodes, board_run_ms(job, ranks)};
}

int32_t pass_wanted(const struct board *b, const struct sched_job *job)
{
    struct gang g = pass_gang(job, job->resize_to ? job->resize_to : job->ranks);
    int32_t most = machine_capacity(b->machine, &g, true);

    return most >= job_least(job) ? most : 0;
}

/* --- setting up --- */

static void add_holder(struct pass *p, size_t i)
{
    const struct holder *h = &p->b->holders[i];
    const struct sched_job *job = &h->r->job;
    int64_t now = p->b->in->now_ms, end = end_ms(now, board_run_ms(job, h->held ? h->held : 1));

    if (h->yielding && p->trial)
        return;
    if (h->yielding && end > now + p->b->set.restart_ms)
        end = now + (p->b->set.restart_ms > 0 ? p->b->set.restart_ms : 1);
    for (size_t k = 0; k < h->r->n_pieces; k++)
        timeline_add_running(p->tl, h->r->pieces[k].node, h->r->pieces[k].ranks,
                             h->r->pieces[k].ranks * job->gpus_per_rank, end, (int32_t)i);
}

static int compare_entries(const void *a, const void *b)
{
    return sched_key_compare(&((const struct entry *)a)->key, &((const struct entry *)b)->key);
}

static void add_extras(struct pass *p)
{
    const struct board *b = p->b;
    int64_t now = b->in->now_ms;
    size_t most = 0;

    for (size_t i = 0; i < b->n_holders; i++)
        most += b->holders[i].yielding;
    p->extras = arena_alloc(p->mem, (most + 1) * sizeof *p->extras);
    struct sched_job *jobs = arena_alloc(p->mem, (most + 1) * sizeof *jobs);
    for (size_t i = 0; i < b->n_holders; i++) {
        const struct holder *h = &b->holders[i];
        struct sched_job *job = &jobs[p->n_extras];
        if (!h->yielding)
            continue;
        *job = h->r->job;
        job->queued_ms = now;
        job->not_before_ms = p->trial ? 0 : now + (b->set.restart_ms > 0 ? b->set.restart_ms : 1);
        job->resize_to = h->resize_to;
        p->extras[p->n_extras++] =
            (struct entry){.job = job, .key = sched_key(b->in, &b->set, job), .yields = h};
    }
    if (p->n_extras)
        qsort(p->extras, p->n_extras, sizeof *p->extras, compare_entries);
}

void pass_begin(struct pass *p)
{
    const struct board *b = p->b;
    int64_t now = b->in->now_ms;

    add_extras(p);
    p->tl = timeline_create(b->in->nodes, b->in->n_nodes, now);
    p->out = xcalloc(b->n_entries + p->n_extras + 1, sizeof *p->out);
    p->memo = xcalloc(MEMO_SLOTS, sizeof *p->memo);
    for (size_t i = 0; i < b->n_holders; i++)
        add_holder(p, i);
    for (size_t i = 0; i < b->n_entries; i++) {
        const struct entry *e = &b->entries[i];
        if (!e->ranks)
            continue;
        p->out[i] = (struct outcome){SCHED_STARTS, now, e->pieces, e->n_pieces, e->ranks, TIMELINE_NOBODY};
        timeline_hold(p->tl, e->pieces, (size_t)e->n_pieces, e->job->gpus_per_rank, now,
                      end_ms(now, board_run_ms(e->job, e->ranks)), (int32_t)(b->n_holders + i), 1);
    }
}

void pass_end(struct pass *p)
{
    timeline_destroy(p->tl);
    free(p->out);
    free(p->memo);
}

/* --- the memo --- */

static struct memo *memo_slot(struct pass *p, const struct gang *g)
{
    uint64_t h = (uint64_t)g->ranks * 0x9e3779b97f4a7c15u + (uint64_t)g->gpus_per_rank * 0xc2b2ae3d27d4eb4fu +
                 (uint64_t)g->nodes * 0x165667b19e3779f9u;

    return &p->memo[(h >> 40) % MEMO_SLOTS];
}

static bool memo_fails(struct pass *p, const struct gang *g)
{
    const struct memo *m = memo_slot(p, g);

    return m->ranks == g->ranks && m->gpus_per_rank == g->gpus_per_rank && m->nodes == g->nodes &&
           m->run_ms <= g->run_ms;
}

static void memo_note(struct pass *p, const struct gang *g)
{
    *memo_slot(p, g) = (struct memo){g->ranks, g->gpus_per_rank, g->nodes, g->run_ms};
}

/* --- one job --- */

static int compare_id(const void *a, const void *b)
{
    int64_t id = *(const int64_t *)a, other = ((const struct sched_reservation *)b)->job;

    return (id > other) - (id < other);
}

const struct sched_piece *pass_place(struct pass *p, const struct gang *g, int32_t *n)
{
    size_t most = (size_t)g->ranks < p->b->in->n_nodes ? (size_t)g->ranks : p->b->in->n_nodes;
    struct sched_piece *pieces = arena_alloc(p->mem, most * sizeof *pieces);

    *n = (int32_t)timeline_place(p->tl, g, pieces);
    return pieces;
}

/* A job that was promised this time keeps its nodes: jobs that have started since lie around them, and on
 * other nodes it could be in the way of somebody's promise behind it. */
static const struct sched_piece *place_as_promised(struct pass *p, const struct sched_job *job,
                                                   const struct gang *g, int64_t t, int32_t *n)
{
    const struct board *b = p->b;
    const struct sched_reservation *r =
        b->n_hints ? bsearch(&job->id, b->hints, b->n_hints, sizeof *r, compare_id) : NULL;

    if (!r || r->start_ms != t || r->ranks != g->ranks || (g->nodes && r->n_pieces != g->nodes) ||
        !timeline_fits_at(p->tl, g, t, r->pieces, (size_t)r->n_pieces))
        return pass_place(p, g, n);
    struct sched_piece *pieces = arena_alloc(p->mem, (size_t)r->n_pieces * sizeof *pieces);
    for (int32_t i = 0; i < r->n_pieces; i++)
        pieces[i] = r->pieces[i];
    *n = r->n_pieces;
    return pieces;
}

static void start(struct pass *p, const struct sched_job *job, const struct gang *g, int32_t who,
                  struct outcome *o)
{
    int64_t now = p->b->in->now_ms;

    o->reason = SCHED_STARTS;
    o->start_ms = now;
    o->ranks = g->ranks;
    timeline_hold(p->tl, o->pieces, (size_t)o->n_pieces, job->gpus_per_rank, now, end_ms(now, g->run_ms), who,
                  1);
}

int32_t pass_most_now(struct timeline *tl, const struct sched_job *job, int32_t at_most)
{
    /* Fewer ranks run longer, and longer may have less room; so from above, until what is asked is there. */
    for (int32_t r = at_most; r >= job_least(job);) {
        struct gang g = pass_gang(job, r);
        int32_t room = timeline_capacity(tl, &g);
        if (room >= r)
            return r;
        r = room;
    }
    return 0;
}

/* Starts the job with fewer ranks now when it ends earlier so than with g's at t. */
static bool start_fewer(struct pass *p, const struct sched_job *job, const struct gang *g, int64_t t,
                        int32_t who, struct outcome *o)
{
    int64_t now = p->b->in->now_ms;
    int32_t r = pass_most_now(p->tl, job, g->ranks - 1);
    struct gang fewer = pass_gang(job, r ? r : 1);

    if (!r || (t < TIMELINE_FAR && g->run_ms < TIMELINE_FOREVER && now + fewer.run_ms >= t + g->run_ms))
        return false;
    int64_t at = timeline_fit(p->tl, &fewer, now, true);
    ASSERT(at == now);
    o->pieces = pass_place(p, &fewer, &o->n_pieces);
    start(p, job, &fewer, who, o);
    return true;
}

static void reserve(struct pass *p, const struct sched_job *job, const struct gang *g, int64_t t, int32_t who,
                    struct outcome *o)
{
    const struct board *b = p->b;
    int64_t lasts = g->run_ms < TIMELINE_FOREVER ? g->run_ms : b->set.default_run_ms;

    o->start_ms = t;
    o->other = timeline_who_ends(p->tl, o->pieces, (size_t)o->n_pieces, t);
    o->reason = SCHED_BUSY;
    if (job->not_before_ms > b->in->now_ms) {
        o->reason = SCHED_BACK_OFF;
    } else if (o->other != TIMELINE_NOBODY && (size_t)o->other < b->n_holders &&
               b->holders[o->other].yielding) {
        o->reason = SCHED_YIELD;
    } else if (!p->trial) { /* nobody asks a trial for reasons */
        int32_t before = timeline_who_is_promised(p->tl, g);
        if (before != TIMELINE_NOBODY) {
            o->other = before;
            o->reason = SCHED_HELD;
        }
    }
    timeline_hold(p->tl, o->pieces, (size_t)o->n_pieces, job->gpus_per_rank, t, t + (lasts > 0 ? lasts : 1),
                  who, 1);
    if (t >= TIMELINE_FAR)
        timeline_close(p->tl, job->gpus_per_rank);
    p->n_reserved++;
}

static void refuse(struct pass *p, const struct sched_job *job, struct outcome *o)
{
    struct gang g = pass_gang(job, job_least(job));
    int32_t all = machine_capacity(p->b->machine, &g, false);

    o->reason = all < g.ranks || g.ranks > job->ranks ? SCHED_TOO_BIG : SCHED_UNUSABLE;
    o->ranks = machine_capacity(p->b->machine, &g, o->reason == SCHED_UNUSABLE);
}

static void take(struct pass *p, const struct sched_job *job, int32_t who, struct outcome *o)
{
    int64_t now = p->b->in->now_ms, from = job->not_before_ms > now ? job->not_before_ms : now;
    bool deep = p->n_reserved >= p->b->set.max_reservations;
    int32_t want = pass_wanted(p->b, job);
    struct gang g = pass_gang(job, want ? want : 1);

    *o = (struct outcome){.start_ms = -1, .ranks = want, .other = TIMELINE_NOBODY};
    if (!want) {
        refuse(p, job, o);
        return;
    }
    o->reason = from > now ? SCHED_BACK_OFF : SCHED_TOO_DEEP;
    if (deep && (from > now || memo_fails(p, &g)))
        return;
    int64_t t = timeline_fit(p->tl, &g, from < TIMELINE_FAR ? from : TIMELINE_FAR, deep);
    if (t < 0) {
        ASSERT(deep); /* when all has ended it fits */
        memo_note(p, &g);
        return;
    }
    o->pieces = place_as_promised(p, job, &g, t, &o->n_pieces);
    if (t == now)
        start(p, job, &g, who, o);
    else if (from > now || want == job_least(job) || !start_fewer(p, job, &g, t, who, o))
        reserve(p, job, &g, t, who, o);
}

void pass_run(struct pass *p, size_t stop)
{
    const struct board *b = p->b;
    int32_t first_entry = (int32_t)b->n_holders, first_extra = first_entry + (int32_t)b->n_entries;
    size_t x = 0;

    for (size_t i = 0; i <= b->n_entries; i++) {
        const struct entry *e = i < b->n_entries ? &b->entries[i] : NULL;
        for (; x < p->n_extras && (!e || sched_key_compare(&p->extras[x].key, &e->key) < 0); x++)
            take(p, p->extras[x].job, first_extra + (int32_t)x, &p->out[b->n_entries + x]);
        if (i >= stop || !e)
            break;
        if (!e->ranks)
            take(p, e->job, first_entry + (int32_t)i, &p->out[i]);
    }
}
