/* planner - see planner.h; what the scheduler is told is put together in planner_gather.c. */
#include "daemon/planner.h"
#include "common/clock.h"
#include "daemon/planner_impl.h"
#include "proto/rpc_msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    RETRY_MS = 1000,
    LOOK_MS = 5000,  /* estimates and ages are looked at so often */
    IDLE_FACTOR = 4, /* after a plan that took so long, none for four times as long */
};

struct planner {
    struct daemon *daemon;
    uv_timer_t again;
    bool dirty;
    int64_t n_pending;     /* decisions that are with the journal */
    int64_t not_before_ns; /* the next plan */
    struct users users;
    struct gathered gathered; /* of the newest plan */
    struct sched_plan *plan;  /* NULL before the first */
};

static void on_again(uv_timer_t *t)
{
    struct planner *p = t->data;

    planner_wake(p);
    planner_run(p);
}

/* Plans again in so many milliseconds, or earlier if that was asked before. */
static void plan_in(struct planner *p, int64_t ms)
{
    uint64_t wait = ms > 0 ? (uint64_t)ms : 0;

    if (!uv_is_active((uv_handle_t *)&p->again) || uv_timer_get_due_in(&p->again) > wait)
        uv_timer_start(&p->again, on_again, wait, 0);
}

/* --- decisions become events --- */

static void on_decided(void *ctx, int code, int64_t id, const char *why)
{
    struct planner *p = ctx;

    p->n_pending--;
    if (!code || p->daemon->stopping)
        return;
    log_warn(&p->daemon->log, "job %lld: a decision is put off: %s", (long long)id, why);
    plan_in(p, code == RPC_OVERLOADED ? RETRY_MS : 0);
}

static void decide(struct planner *p, const struct job_event *ev)
{
    p->n_pending++;
    journal_append(p->daemon->journal, ev, on_decided, p);
}

static int make_token(char out[JOB_TOKEN_BYTES])
{
    unsigned char raw[32];

    if (getrandom(raw, sizeof raw, 0) != (ssize_t)sizeof raw)
        return -1;
    for (size_t i = 0; i < sizeof raw; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

/* The lowest GPUs of a node that nobody has; they are somebody's from now on. */
static uint64_t take_gpus(const struct node *node, struct node_use *use, int64_t n)
{
    uint64_t taken = 0;

    for (int i = 0; i < PLACE_MAX_GPUS && n > 0; i++) {
        uint64_t bit = (uint64_t)1 << i;
        if (!(node->gpus & bit) || (use->gpus & bit))
            continue;
        taken |= bit;
        n--;
    }
    use->gpus |= taken;
    return taken;
}

static void start(struct planner *p, const struct sched_start *s)
{
    struct daemon *d = p->daemon;
    const struct job *job = jobs_find(&d->jobs, s->job);
    struct place place = {0};
    struct job_event ev;
    char brief[256];

    for (int32_t i = 0; i < s->n_pieces; i++) {
        const struct sched_piece *piece = &s->pieces[i];
        const struct node *node = &d->inventory.v[piece->node];
        place_add(&place, node->name, piece->ranks,
                  take_gpus(node, &p->gathered.use[piece->node], piece->ranks * job->gpus_per_rank));
    }
    place_brief(&place, brief, sizeof brief);
    job_event_init(&ev, JOB_EV_STARTING, job->id, clock_wall_ms(),
                   "starting with %d rank%s on %s, attempt %lld of %lld", s->ranks, s->ranks == 1 ? "" : "s",
                   brief, (long long)job->n_restarts + 1, (long long)job->max_restarts + 1);
    ev.attempt = job->attempt + 1;
    ev.n_ranks = s->ranks;
    snprintf(ev.node, sizeof ev.node, "%s", place.v[0].node);
    char *text = place_text(&place);
    ev.place = text;
    if (make_token(ev.token) < 0) {
        log_error(&d->log, "job %lld is not started: the system gives no random numbers", (long long)job->id);
        plan_in(p, RETRY_MS);
    } else {
        decide(p, &ev);
    }
    free(text);
    place_free(&place);
}

static void yield(struct planner *p, const struct sched_yield *y)
{
    const struct daemon *d = p->daemon;
    const struct job *job = jobs_find(&d->jobs, y->job), *other = jobs_find(&d->jobs, y->for_job);
    struct job_event ev;

    if (!other)
        job_event_init(&ev, JOB_EV_YIELD_REQUESTED, job->id, clock_wall_ms(),
                       "asked to stop and grow to %d ranks", y->resize_to);
    else if (y->resize_to)
        job_event_init(&ev, JOB_EV_YIELD_REQUESTED, job->id, clock_wall_ms(),
                       "asked to stop and shrink to %d rank%s, so that job %lld can start", y->resize_to,
                       y->resize_to == 1 ? "" : "s", (long long)other->id);
    else
        job_event_init(&ev, JOB_EV_YIELD_REQUESTED, job->id, clock_wall_ms(),
                       "asked to give its ranks to job %lld, whose priority is %lld", (long long)other->id,
                       (long long)other->priority);
    ev.yield_to = JOB_YIELD_QUEUE;
    ev.resize_to = y->resize_to;
    snprintf(ev.user, sizeof ev.user, "the coordinator");
    decide(p, &ev);
}

static void give_up(struct planner *p, const struct job *job, const struct job *first)
{
    struct job_event ev;

    job_event_init(&ev, JOB_EV_CANCEL_REQUESTED, job->id, clock_wall_ms(),
                   "cancelled: job %lld, which had to succeed first, %s", (long long)first->id,
                   first->state == JOB_FAILED ? "has failed" : "was cancelled");
    snprintf(ev.user, sizeof ev.user, "the coordinator");
    decide(p, &ev);
}

/* --- planning --- */

/* Jobs that wait for a moment or for others: notes when to look again, gives up those that wait in vain. */
static void look_at_waiting(struct planner *p, int64_t now_ms)
{
    const struct daemon *d = p->daemon;

    for (size_t i = 0; i < d->jobs.n_active; i++) {
        const struct job *job = d->jobs.active[i], *never = NULL;
        if (job->state != JOB_QUEUED)
            continue;
        if (job->not_before_ms > now_ms)
            plan_in(p, job->not_before_ms - now_ms);
        if (job->n_after && !planner_is_due(&d->jobs, job, &never) && never)
            give_up(p, job, never);
    }
    for (size_t i = 0; i < d->inventory.n; i++)
        if (d->inventory.v[i].aside_until_ms > now_ms)
            plan_in(p, d->inventory.v[i].aside_until_ms - now_ms);
}

static void make_plan(struct planner *p)
{
    struct gathered g;
    int64_t now_ms = clock_wall_ms();

    users_update(&p->users, p->daemon, now_ms);
    if (p->daemon->jobs.n_active == 0 && !p->plan)
        return;
    look_at_waiting(p, now_ms);
    gather(&g, p->daemon, &p->users, now_ms);
    g.in.last = p->plan;
    struct sched_plan *plan = sched_plan(&g.in);
    gathered_free(&p->gathered);
    sched_plan_free(p->plan);
    p->gathered = g;
    p->gathered.in.last = NULL;
    p->plan = plan;
    for (size_t i = 0; i < plan->n_starts; i++)
        start(p, &plan->starts[i]);
    for (size_t i = 0; i < plan->n_yields; i++)
        yield(p, &plan->yields[i]);
}

void planner_wake(struct planner *p)
{
    p->dirty = true;
}

void planner_run(struct planner *p)
{
    const struct daemon *d = p->daemon;
    int64_t from_ns = clock_mono_ns();

    /* Decisions that are not durable yet are not in the jobs: look again when they are. */
    if (!p->dirty || p->n_pending || d->draining || d->stopping)
        return;
    if (from_ns < p->not_before_ns) {
        plan_in(p, (p->not_before_ns - from_ns + 999999) / 1000000);
        return;
    }
    p->dirty = false;
    make_plan(p);
    int64_t took_ns = clock_mono_ns() - from_ns;
    p->not_before_ns = from_ns + took_ns + IDLE_FACTOR * took_ns;
    if (d->jobs.n_active)
        plan_in(p, LOOK_MS);
}

/* --- why --- */

bool planner_explain(const struct planner *p, const struct job *job, char *out, size_t size)
{
    const struct sched_verdict *v = p->plan ? sched_plan_verdict(p->plan, job->id) : NULL;

    for (size_t i = 0; v && i < p->gathered.in.n_waiting; i++)
        if (p->gathered.waiting[i].id == job->id) {
            sched_explain_text(p->plan, v, &p->gathered.waiting[i], p->gathered.nodes, clock_wall_ms(), out,
                               size);
            return true;
        }
    return false;
}

/* --- life --- */

struct planner *planner_create(struct daemon *d)
{
    struct planner *p = xcalloc(1, sizeof *p);

    p->daemon = d;
    users_init(&p->users, d, clock_wall_ms());
    uv_timer_init(&d->loop, &p->again);
    p->again.data = p;
    return p;
}

static void on_closed(uv_handle_t *h)
{
    struct planner *p = h->data;

    gathered_free(&p->gathered);
    sched_plan_free(p->plan);
    users_free(&p->users);
    free(p);
}

void planner_destroy(struct planner *p)
{
    uv_close((uv_handle_t *)&p->again, on_closed);
}
