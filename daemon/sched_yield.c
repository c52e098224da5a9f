/* sched_yield - who stops at a step boundary: so that a waiting job starts, or to grow.
 *
 * A job that waits longer than a restart costs may have others shrunk (elastic ones of no higher priority
 * that hold more than they must), or, where that is not enough, preempted (of strictly lower priority).
 * Whatever is found is tried before it is decided: a whole pass over the world in which those who yield have
 * yielded and wait. Only if the job starts in that pass, each job that is to be shrunk starts with just its
 * new size, and each job for which others yield already starts too, is anybody asked. So nobody yields in
 * vain, and what is decided is what will happen when nothing else comes in between.
 */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_VICTIMS = 4096 };

static void ask(struct holder *h, int64_t for_job, int32_t resize_to)
{
    h->yielding = h->decided = true;
    h->for_job = for_job;
    h->resize_to = resize_to;
}

static void take_back(struct holder *h)
{
    h->yielding = h->decided = false;
    h->for_job = h->resize_to = 0;
}

void yield_undo(struct board *b, const struct entry *e)
{
    for (size_t i = 0; i < b->n_holders; i++)
        if (b->holders[i].decided && b->holders[i].for_job == e->job->id)
            take_back(&b->holders[i]);
}

/* --- candidates --- */

/* Who should yield first: lower priority, less often preempted, less progressed, smaller, younger. */
static int compare_preference(const void *a, const void *b)
{
    const struct holder *h = *(struct holder *const *)a, *i = *(struct holder *const *)b;
    const struct sched_running *x = h->r, *y = i->r;

    if (x->job.priority != y->job.priority)
        return x->job.priority < y->job.priority ? -1 : 1;
    if (x->n_preempted != y->n_preempted)
        return x->n_preempted < y->n_preempted ? -1 : 1;
    if (x->started_ms != y->started_ms)
        return x->started_ms > y->started_ms ? -1 : 1;
    if (h->held != i->held)
        return h->held < i->held ? -1 : 1;
    return (x->job.id < y->job.id) - (x->job.id > y->job.id);
}

static bool can_yield(const struct board *b, const struct holder *h, int64_t after_ms)
{
    return h->r->can_yield && !h->yielding && h->held && b->in->now_ms - h->r->started_ms >= after_ms;
}

static struct holder **candidates(const struct board *b, struct arena *mem, size_t *n)
{
    struct holder **able = arena_alloc(mem, (b->n_holders + 1) * sizeof *able);

    *n = 0;
    for (size_t i = 0; i < b->n_holders; i++)
        if (can_yield(b, &b->holders[i], b->set.grace_ms))
            able[(*n)++] = &b->holders[i];
    if (*n)
        qsort(able, *n, sizeof *able, compare_preference);
    return able;
}

static bool may_preempt(const struct board *b, const struct sched_job *job, const struct holder *h)
{
    return b->set.preempt && h->r->job.priority < job->priority;
}

/* With how many ranks h must be left when it is shrunk for a job that will start with `ranks`. Among equals
 * an elastic job takes no more than it leaves. */
static int32_t least_kept(const struct board *b, const struct sched_job *job, const struct holder *h,
                          int32_t ranks)
{
    int32_t least = job_least(&h->r->job);

    if (!b->set.resize || h->r->job.priority > job->priority)
        return h->held;
    if (h->r->job.priority == job->priority && job->min_ranks < job->ranks && ranks > least)
        least = ranks;
    return least < h->held ? least : h->held;
}

static size_t list_victims(const struct board *b, const struct sched_job *job, struct holder *const *able,
                           size_t n_able, int32_t ranks, bool preempt, struct victim *v)
{
    size_t n = 0;

    for (size_t i = 0; i < n_able && n < MAX_VICTIMS; i++) {
        struct victim x = {able[i], least_kept(b, job, able[i], ranks),
                           preempt && may_preempt(b, job, able[i]), 0};
        if (x.whole || x.least < able[i]->held)
            v[n++] = x;
    }
    return n;
}

/* --- for a job that waits --- */

/* Whether an extra was to be shrunk. */
static bool shrinks(const struct entry *extra)
{
    return extra->job->resize_to && extra->job->resize_to < extra->yields->held;
}

static bool starts(const struct outcome *o)
{
    return o->reason == SCHED_STARTS && o->ranks; /* all zero: not looked at */
}

/* Whether all goes as planned once those who yield have yielded. */
static bool holds_true(struct board *b, const struct pass *base, size_t job)
{
    struct arena mem = {0};
    struct pass p = {.b = b, .mem = &mem, .trial = true};
    struct sched_key last = b->entries[job].key;
    size_t stop = job + 1;
    bool ok;

    pass_begin(&p);
    for (size_t x = 0; x < p.n_extras; x++)
        if (shrinks(&p.extras[x]) && sched_key_compare(&last, &p.extras[x].key) < 0)
            last = p.extras[x].key;
    for (size_t i = stop; i < b->n_entries; i++)
        if (base->out[i].reason == SCHED_YIELD || sched_key_compare(&b->entries[i].key, &last) < 0)
            stop = i + 1;
    pass_run(&p, stop);
    ok = starts(&p.out[job]);
    for (size_t i = 0; i < stop && ok; i++)
        ok = base->out[i].reason != SCHED_YIELD || starts(&p.out[i]);
    for (size_t x = 0; x < p.n_extras && ok; x++) {
        const struct outcome *o = &p.out[b->n_entries + x];
        ok = !shrinks(&p.extras[x]) || (starts(o) && o->ranks == p.extras[x].job->resize_to);
    }
    pass_end(&p);
    arena_free(&mem);
    return ok;
}

struct search {
    struct board *b;
    struct pass *before; /* the world without those who yield, and with all that comes before the job */
    const struct sched_job *job;
    struct holder *const *able;
    size_t n_able;
    struct victim *v;
    size_t n;
};

static bool search_with(struct search *s, int32_t ranks, bool preempt)
{
    struct gang g = pass_gang(s->job, ranks);

    s->n = list_victims(s->b, s->job, s->able, s->n_able, ranks, preempt, s->v);
    return s->n && victims_choose(s->before->tl, s->b->in->now_ms, &g, s->v, s->n);
}

/* Victims for the most ranks with which the job can be started. */
static bool search_most(struct search *s, int32_t want, bool preempt)
{
    int32_t lo = job_least(s->job), hi = want;

    if (search_with(s, want, preempt))
        return true;
    if (lo >= want || !search_with(s, lo, preempt))
        return false;
    while (hi - lo > 1) {
        int32_t mid = lo + (hi - lo) / 2;
        if (search_with(s, mid, preempt))
            lo = mid;
        else
            hi = mid;
    }
    return search_with(s, lo, preempt);
}

static bool decide(struct search *s, const struct pass *base, size_t job)
{
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++) {
        if (s->v[i].keep == s->v[i].h->held)
            continue;
        ask(s->v[i].h, s->job->id, s->v[i].keep);
        n++;
    }
    if (n && holds_true(s->b, base, job))
        return true;
    for (size_t i = 0; i < s->n; i++)
        if (s->v[i].keep != s->v[i].h->held)
            take_back(s->v[i].h);
    return false;
}

static bool yield_for(struct board *b, const struct pass *base, size_t job, struct holder *const *able,
                      size_t n)
{
    struct arena mem = {0};
    struct pass before = {.b = b, .mem = &mem, .trial = true};
    struct search s = {b, &before, b->entries[job].job, able, n, NULL, 0};
    int32_t want = pass_wanted(b, s.job);
    bool done = false;

    pass_begin(&before);
    pass_run(&before, job);
    s.v = xcalloc((n < MAX_VICTIMS ? n : MAX_VICTIMS) + 1, sizeof *s.v);
    struct gang g = pass_gang(s.job, want);
    if (timeline_fit(before.tl, &g, b->in->now_ms, true) < 0) /* else those who yield already are enough */
        done = (search_most(&s, want, false) && decide(&s, base, job)) ||
               (search_most(&s, want, true) && decide(&s, base, job));
    pass_end(&before);
    free(s.v);
    arena_free(&mem);
    return done;
}

static bool anybody_may_yield(const struct board *b, const struct sched_job *job, struct holder *const *able,
                              size_t n)
{
    for (size_t i = 0; i < n && able[i]->r->job.priority <= job->priority; i++)
        if (may_preempt(b, job, able[i]) || least_kept(b, job, able[i], 1) < able[i]->held)
            return true;
    return false;
}

const struct entry *yield_for_waiting(struct board *b, const struct pass *base)
{
    struct arena mem = {0};
    size_t n;
    struct holder **able = candidates(b, &mem, &n);
    const struct entry *helped = NULL;

    while (b->yield_next < b->n_entries && n && b->yield_tries > 0 && !helped) {
        size_t i = b->yield_next++;
        const struct outcome *o = &base->out[i];
        if ((o->reason != SCHED_BUSY && o->reason != SCHED_HELD) ||
            o->start_ms <= b->in->now_ms + b->set.restart_ms ||
            !anybody_may_yield(b, b->entries[i].job, able, n))
            continue;
        b->yield_tries--;
        if (yield_for(b, base, i, able, n))
            helped = &b->entries[i];
    }
    arena_free(&mem);
    return helped;
}

/* --- to grow --- */

static bool somebody_waits_or_yields(const struct board *b, const struct pass *base)
{
    for (size_t i = 0; i < b->n_entries; i++)
        if (base->out[i].reason != SCHED_STARTS && base->out[i].reason != SCHED_UNUSABLE &&
            base->out[i].reason != SCHED_TOO_BIG)
            return true;
    for (size_t i = 0; i < b->n_holders; i++)
        if (b->holders[i].yielding)
            return true;
    return false;
}

struct grower {
    struct holder *h;
    struct sched_key key;
};

static int compare_growers(const void *a, const void *b)
{
    return sched_key_compare(&((const struct grower *)a)->key, &((const struct grower *)b)->key);
}

static void grow(struct board *b, struct pass *base, struct holder *h)
{
    const struct sched_job *job = &h->r->job;
    int64_t now = b->in->now_ms, run = board_run_ms(job, h->held);
    int64_t end = run >= TIMELINE_FOREVER ? TIMELINE_FAR : now + run;

    timeline_hold(base->tl, h->r->pieces, h->r->n_pieces, job->gpus_per_rank, now, end, 0, -1);
    struct gang g = pass_gang(job, job->max_ranks);
    int32_t ranks = pass_most_now(base->tl, job, machine_capacity(b->machine, &g, true));
    g = pass_gang(job, ranks ? ranks : 1);
    if (ranks <= h->held || (run < TIMELINE_FOREVER && g.run_ms + b->set.restart_ms >= run)) {
        timeline_hold(base->tl, h->r->pieces, h->r->n_pieces, job->gpus_per_rank, now, end, 0, 1);
        return;
    }
    int64_t at = timeline_fit(base->tl, &g, now, true);
    int32_t n;
    ASSERT(at == now);
    const struct sched_piece *pieces = pass_place(base, &g, &n);
    timeline_hold(base->tl, pieces, (size_t)n, job->gpus_per_rank, now,
                  g.run_ms >= TIMELINE_FOREVER ? TIMELINE_FAR : now + g.run_ms, 0, 1);
    ask(h, 0, ranks);
}

void yield_to_grow(struct board *b, struct pass *base)
{
    size_t n = 0;

    if (!b->set.resize || somebody_waits_or_yields(b, base))
        return;
    struct grower *able = xcalloc(b->n_holders + 1, sizeof *able);
    for (size_t i = 0; i < b->n_holders; i++) {
        struct holder *h = &b->holders[i];
        struct sched_job job = h->r->job;
        if (!can_yield(b, h, b->set.grow_ms) || h->held >= job.max_ranks)
            continue;
        job.queued_ms = b->in->now_ms; /* it does not wait */
        able[n++] = (struct grower){h, sched_key(b->in, &b->set, &job)};
    }
    if (n)
        qsort(able, n, sizeof *able, compare_growers);
    for (size_t i = 0; i < n; i++)
        grow(b, base, able[i].h);
    free(able);
}
