/* sched_plan - one plan: the input sorted, a pass, and again a pass after each set of yields.
 *
 * Starts alone need no second pass: who has started holds what the pass gave it, every reservation keeps its
 * nodes (the hints), so each of the others would find what it found, or less. A pass after yields may find
 * that somebody could start now, because a reservation before it has moved to nodes that will be free; then
 * whoever yields might not get back what it was promised, and the yields are dropped. So a plan that has been
 * carried out leads to no other decision at the same time.
 */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <stdlib.h>
#include <string.h>

/* The plan and all that it points to. */
struct owned_plan {
    struct sched_plan plan;
    struct arena mem;
};

/* --- the board --- */

static void check_job(const struct sched_job *job)
{
    ASSERT(job->id > 0 && job->min_ranks >= 1 && job->min_ranks <= job->ranks &&
           job->ranks <= job->max_ranks);
    ASSERT(job->gpus_per_rank >= 0 && job->nodes >= 0 && job->resize_to >= 0);
}

static int compare_entries(const void *a, const void *b)
{
    return sched_key_compare(&((const struct entry *)a)->key, &((const struct entry *)b)->key);
}

static int compare_holders(const void *a, const void *b)
{
    int64_t x = ((const struct holder *)a)->r->job.id, y = ((const struct holder *)b)->r->job.id;

    return (x > y) - (x < y);
}

static void set_entries(struct board *b)
{
    const struct sched_input *in = b->in;

    b->n_entries = in->n_waiting;
    b->entries = xcalloc(in->n_waiting + 1, sizeof *b->entries);
    for (size_t i = 0; i < in->n_waiting; i++) {
        check_job(&in->waiting[i]);
        b->entries[i].job = &in->waiting[i];
        b->entries[i].key = sched_key(in, &b->set, &in->waiting[i]);
    }
    if (b->n_entries)
        qsort(b->entries, b->n_entries, sizeof *b->entries, compare_entries);
}

static void set_holders(struct board *b)
{
    const struct sched_input *in = b->in;

    b->n_holders = in->n_running;
    b->holders = xcalloc(in->n_running + 1, sizeof *b->holders);
    for (size_t i = 0; i < in->n_running; i++) {
        const struct sched_running *r = &in->running[i];
        struct holder *h = &b->holders[i];
        check_job(&r->job);
        h->r = r;
        h->yielding = r->yielding;
        h->resize_to = r->yielding ? r->job.resize_to : 0;
        for (size_t k = 0; k < r->n_pieces; k++) {
            ASSERT(r->pieces[k].node >= 0 && (size_t)r->pieces[k].node < in->n_nodes &&
                   r->pieces[k].ranks > 0);
            h->held += r->pieces[k].ranks;
        }
    }
    if (b->n_holders)
        qsort(b->holders, b->n_holders, sizeof *b->holders, compare_holders);
}

static void board_set(struct board *b, const struct sched_input *in)
{
    *b = (struct board){.in = in};
    ASSERT(in->n_waiting + in->n_running < INT32_MAX / 2);
    if (in->settings)
        b->set = *in->settings;
    else
        sched_settings_init(&b->set);
    b->yield_tries = b->set.max_yield_tries;
    b->machine = machine_create(in->nodes, in->n_nodes);
    set_entries(b);
    set_holders(b);
    if (in->last) {
        b->hints = in->last->reservations;
        b->n_hints = in->last->n_reservations;
    }
}

static void board_free(struct board *b)
{
    machine_destroy(b->machine);
    arena_free(&b->mem);
    free(b->entries);
    free(b->holders);
}

/* --- after a pass --- */

static int compare_reservations(const void *a, const void *b)
{
    int64_t x = ((const struct sched_reservation *)a)->job, y = ((const struct sched_reservation *)b)->job;

    return (x > y) - (x < y);
}

/* What the pass has decided holds from now on; what it has promised is a hint to the next one. */
static void settle(struct board *b, const struct pass *p)
{
    struct sched_reservation *r = arena_alloc(&b->mem, ((size_t)p->n_reserved + 1) * sizeof *r);
    size_t n = 0;

    for (size_t i = 0; i < b->n_entries; i++) {
        const struct outcome *o = &p->out[i];
        struct entry *e = &b->entries[i];
        if (o->reason == SCHED_STARTS) {
            e->pieces = o->pieces;
            e->n_pieces = o->n_pieces;
            e->ranks = o->ranks;
        } else if (o->pieces) {
            r[n++] = (struct sched_reservation){e->job->id, o->start_ms, o->ranks, o->n_pieces, o->pieces};
        }
    }
    for (size_t x = 0; x < p->n_extras; x++) {
        const struct outcome *o = &p->out[b->n_entries + x];
        if (o->pieces)
            r[n++] = (struct sched_reservation){p->extras[x].job->id, o->start_ms, o->ranks, o->n_pieces,
                                                o->pieces};
    }
    if (n)
        qsort(r, n, sizeof *r, compare_reservations);
    b->hints = r;
    b->n_hints = n;
}

/* --- writing it down --- */

static const struct sched_piece *copy_pieces(struct arena *mem, const struct sched_piece *pieces, int32_t n)
{
    return memcpy(arena_alloc(mem, (size_t)n * sizeof *pieces), pieces, (size_t)n * sizeof *pieces);
}

static void write_starts(const struct board *b, struct owned_plan *o)
{
    struct sched_start *v;
    size_t n = 0;

    for (size_t i = 0; i < b->n_entries; i++)
        n += b->entries[i].ranks > 0;
    v = arena_alloc(&o->mem, (n + 1) * sizeof *v);
    n = 0;
    for (size_t i = 0; i < b->n_entries; i++) {
        const struct entry *e = &b->entries[i];
        if (e->ranks)
            v[n++] = (struct sched_start){e->job->id, e->ranks, e->n_pieces,
                                          copy_pieces(&o->mem, e->pieces, e->n_pieces)};
    }
    o->plan.starts = v;
    o->plan.n_starts = n;
}

static void write_yields(const struct board *b, struct owned_plan *o)
{
    struct sched_yield *v;
    size_t n = 0;

    for (size_t i = 0; i < b->n_holders; i++)
        n += b->holders[i].decided;
    v = arena_alloc(&o->mem, (n + 1) * sizeof *v);
    n = 0;
    for (size_t i = 0; i < b->n_holders; i++) {
        const struct holder *h = &b->holders[i];
        if (h->decided)
            v[n++] = (struct sched_yield){h->r->job.id, h->for_job, h->resize_to};
    }
    o->plan.yields = v;
    o->plan.n_yields = n;
}

static int32_t first_unusable(const struct board *b)
{
    for (size_t i = 0; i < b->in->n_nodes; i++)
        if (!b->in->nodes[i].usable)
            return (int32_t)i;
    return -1;
}

static struct sched_verdict verdict(const struct board *b, const struct pass *p, const struct entry *e,
                                    const struct outcome *o)
{
    struct sched_verdict v = {
        .job = e->job->id, .reason = o->reason, .start_ms = o->start_ms, .ranks = o->ranks, .node = -1};

    if (v.start_ms >= TIMELINE_FAR)
        v.start_ms = -1;
    if (o->reason == SCHED_UNUSABLE)
        v.node = first_unusable(b);
    if (o->other == TIMELINE_NOBODY)
        return v;
    size_t who = (size_t)o->other, n = b->n_holders + b->n_entries;
    if (who >= b->n_holders && who < n) {
        v.other_job = b->entries[who - b->n_holders].job->id;
        return v;
    }
    const struct sched_running *r = who < n ? b->holders[who].r : p->extras[who - n].yields->r;
    v.other_job = r->job.id;
    v.other_runs = true;
    v.other_measured = r->job.run_ms >= 0 && r->job.run_measured;
    return v;
}

static void write_verdicts(const struct board *b, const struct pass *p, struct owned_plan *o)
{
    struct sched_verdict *v = arena_alloc(&o->mem, (b->n_entries + 1) * sizeof *v);
    size_t before = 0;

    for (size_t i = 0; i < b->n_entries; i++) {
        enum sched_reason reason = p->out[i].reason;
        v[i] = verdict(b, p, &b->entries[i], &p->out[i]);
        v[i].n_before = before;
        before += reason != SCHED_STARTS && reason != SCHED_UNUSABLE && reason != SCHED_TOO_BIG;
    }
    o->plan.verdicts = v;
    o->plan.n_verdicts = b->n_entries;
}

static void write_reservations(const struct board *b, struct owned_plan *o)
{
    struct sched_reservation *r = arena_alloc(&o->mem, (b->n_hints + 1) * sizeof *r);

    for (size_t i = 0; i < b->n_hints; i++) {
        r[i] = b->hints[i];
        r[i].pieces = copy_pieces(&o->mem, r[i].pieces, r[i].n_pieces);
    }
    o->plan.reservations = r;
    o->plan.n_reservations = b->n_hints;
}

static struct sched_plan *write_plan(const struct board *b, const struct pass *p)
{
    struct owned_plan *o = xcalloc(1, sizeof *o);

    o->plan.now_ms = b->in->now_ms;
    for (size_t i = 0; i < b->in->n_nodes; i++) {
        const struct sched_node *n = &b->in->nodes[i];
        o->plan.slots += n->usable ? n->slots : 0;
        o->plan.gpus += n->usable ? n->gpus : 0;
    }
    timeline_free_now(p->tl, &o->plan.slots_free, &o->plan.gpus_free);
    write_starts(b, o);
    write_verdicts(b, p, o);
    write_reservations(b, o);
    return &o->plan;
}

static bool starts_more(const struct board *b, const struct pass *p)
{
    for (size_t i = 0; i < b->n_entries; i++)
        if (p->out[i].reason == SCHED_STARTS && !b->entries[i].ranks)
            return true;
    return false;
}

static struct pass run_pass(struct board *b)
{
    struct pass p = {.b = b, .mem = &b->mem};

    pass_begin(&p);
    pass_run(&p, b->n_entries);
    return p;
}

struct sched_plan *sched_plan(const struct sched_input *in)
{
    struct board b;
    const struct entry *helped;

    board_set(&b, in);
    struct pass p = run_pass(&b);
    settle(&b, &p);
    while ((helped = yield_for_waiting(&b, &p))) {
        struct pass next = run_pass(&b);
        if (starts_more(&b, &next)) {
            yield_undo(&b, helped);
            pass_end(&next);
            continue;
        }
        pass_end(&p);
        p = next;
        settle(&b, &p);
        b.yield_next = 0; /* others can be helped now, perhaps */
        b.yield_tries++;
    }
    struct sched_plan *plan = write_plan(&b, &p);
    yield_to_grow(&b, &p);
    write_yields(&b, (struct owned_plan *)plan);
    pass_end(&p);
    board_free(&b);
    return plan;
}

void sched_plan_free(struct sched_plan *p)
{
    if (!p)
        return;
    arena_free(&((struct owned_plan *)p)->mem);
    free(p);
}

const struct sched_verdict *sched_plan_verdict(const struct sched_plan *p, int64_t job)
{
    for (size_t i = 0; i < p->n_verdicts; i++)
        if (p->verdicts[i].job == job)
            return &p->verdicts[i];
    return NULL;
}
