/* planner_gather - jobs, nodes and users as the scheduler wants them. */
#include "daemon/actions.h"
#include "daemon/planner_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- users --- */

/* --share USER:SHARE; USER is a name or a number. */
static double share_of(const struct daemon *d, const struct job *job)
{
    const struct conf_list *l = &d->options->share;
    char uid[24];

    snprintf(uid, sizeof uid, "%lld", (long long)job->uid);
    for (size_t i = 0; i < l->n_items; i++) {
        const char *colon = strrchr(l->items[i], ':');
        size_t n = (size_t)(colon - l->items[i]);
        if ((strlen(job->user) == n && strncmp(job->user, l->items[i], n) == 0) ||
            (strlen(uid) == n && strncmp(uid, l->items[i], n) == 0))
            return strtod(colon + 1, NULL);
    }
    return 1;
}

/* Index of the first user whose uid is >= uid. */
static size_t lower_bound(const struct users *u, int64_t uid)
{
    size_t lo = 0, hi = u->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (u->v[mid].uid < uid)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct user_use *user_of(struct users *u, const struct daemon *d, const struct job *job)
{
    size_t i = lower_bound(u, job->uid);

    if (i < u->n && u->v[i].uid == job->uid)
        return &u->v[i];
    u->v = xrealloc(u->v, (u->n + 1) * sizeof *u->v);
    memmove(u->v + i + 1, u->v + i, (u->n - i) * sizeof *u->v);
    u->n++;
    u->v[i] = (struct user_use){.uid = job->uid, .share = share_of(d, job)};
    return &u->v[i];
}

static int64_t half_life_ms(const struct daemon *d)
{
    return d->options->half_life_s * 1000;
}

/* As if a job had used its slots at the moment when it ended (or now, if it has not). */
void users_init(struct users *u, const struct daemon *d, int64_t now_ms)
{
    *u = (struct users){0};
    for (size_t i = 0; i < d->jobs.n; i++) {
        const struct job *job = d->jobs.v[i];
        struct user_use *user = user_of(u, d, job);
        double used =
            (double)job->used_ms / 1000 * (double)(job->last_ranks ? job->last_ranks : job->n_ranks);
        user->at_ms = now_ms;
        user->usage += sched_usage_at(used, 0, job->ended_ms ? now_ms - job->ended_ms : 0, half_life_ms(d));
    }
}

void users_free(struct users *u)
{
    free(u->v);
    *u = (struct users){0};
}

void users_update(struct users *u, const struct daemon *d, int64_t now_ms)
{
    for (size_t i = 0; i < u->n; i++) {
        struct user_use *user = &u->v[i];
        int64_t ms = now_ms > user->at_ms ? now_ms - user->at_ms : 0;
        user->usage = sched_usage_at(user->usage, (double)user->held, ms, half_life_ms(d));
        user->at_ms = now_ms;
        user->held = 0;
    }
    for (size_t i = 0; i < d->jobs.n_active; i++) {
        const struct job *job = d->jobs.active[i];
        struct user_use *user = user_of(u, d, job);
        user->at_ms = now_ms;
        user->held += job->held_ranks;
    }
}

/* --- jobs --- */

bool planner_is_due(const struct jobs *js, const struct job *job, const struct job **never)
{
    bool due = true;

    for (int64_t i = 0; i < job->n_after; i++) {
        const struct job *first = jobs_find(js, job->after[i]);
        if (first && first->state == JOB_SUCCEEDED)
            continue;
        due = false;
        if (first && job_state_is_final(first->state))
            *never = first;
    }
    return due;
}

/* What remains, as if it had n_ranks ranks; -1: not known. Its own pace, else what its limit leaves it. */
static int64_t remaining_ms(const struct daemon *d, const struct job *job, int64_t now_ms, bool *measured)
{
    const struct progress *p = actions_latest(d->actions, job->id);
    double ranks = (double)(job->last_ranks ? job->last_ranks : job->n_ranks), ms = -1;

    if (!p)
        p = job->progress;
    *measured = p && isfinite(p->eta_s);
    if (*measured)
        ms = p->eta_s * 1000;
    else if (job->time_limit_s > 0)
        ms = job->time_limit_s * 1000 -
             (double)(job->used_ms + (job->attempt_ms ? now_ms - job->attempt_ms : 0));
    else
        return -1;
    ms = ms > 0 ? ms * ranks / (double)job->n_ranks : 0;
    return ms < 1e15 ? (int64_t)ms : -1;
}

static int64_t latest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* When it began to wait: age counts from there, and time in which it could not have run does not. */
static int64_t waits_since(const struct jobs *js, const struct job *job)
{
    int64_t ms = latest(job->submitted_ms, job->queued_ms);

    for (int64_t i = 0; i < job->n_after; i++) {
        const struct job *first = jobs_find(js, job->after[i]);
        ms = latest(ms, first ? first->ended_ms : 0);
    }
    return ms;
}

static struct sched_job describe(const struct daemon *d, const struct users *u, const struct job *job,
                                 int64_t now_ms)
{
    struct sched_job s = {.id = job->id,
                          .user = (int32_t)lower_bound(u, job->uid),
                          .priority = job->priority,
                          .ranks = (int32_t)job->n_ranks,
                          .min_ranks = (int32_t)job->min_ranks,
                          .max_ranks = (int32_t)job->max_ranks,
                          .resize_to = (int32_t)job->resize_to,
                          .gpus_per_rank = (int32_t)job->gpus_per_rank,
                          .nodes = (int32_t)job->n_nodes,
                          .submitted_ms = job->submitted_ms,
                          .queued_ms = waits_since(&d->jobs, job),
                          .not_before_ms = job->not_before_ms};

    s.run_ms = remaining_ms(d, job, now_ms, &s.run_measured);
    return s;
}

static void add_running(struct gathered *g, const struct daemon *d, const struct users *u,
                        const struct job *job, size_t *n_pieces)
{
    struct sched_running *r = &g->running[g->in.n_running++];

    *r = (struct sched_running){.job = describe(d, u, job, g->in.now_ms),
                                .pieces = &g->pieces[*n_pieces],
                                .started_ms = job->attempt_ms,
                                .can_yield = job->state == JOB_RUNNING && !job->cancelling,
                                .yielding = job->state == JOB_PREEMPTING,
                                .n_preempted = (int32_t)job->n_yields};
    for (int64_t k = 0; k < job->place.n; k++) {
        const struct node *node = inventory_find(&d->inventory, job->place.v[k].node);
        if (node)
            g->pieces[(*n_pieces)++] = (struct sched_piece){.node = (int32_t)(node - d->inventory.v),
                                                            .ranks = (int32_t)job->place.v[k].ranks};
    }
    r->n_pieces = (size_t)(&g->pieces[*n_pieces] - r->pieces);
}

static void gather_jobs(struct gathered *g, const struct daemon *d, const struct users *u)
{
    const struct jobs *js = &d->jobs;
    size_t n_pieces = 0;

    for (size_t i = 0; i < js->n_active; i++)
        n_pieces += (size_t)js->active[i]->place.n;
    g->waiting = xcalloc(js->n_active + 1, sizeof *g->waiting);
    g->running = xcalloc(js->n_active + 1, sizeof *g->running);
    g->pieces = xcalloc(n_pieces + 1, sizeof *g->pieces);
    n_pieces = 0;
    for (size_t i = 0; i < js->n_active; i++) {
        const struct job *job = js->active[i], *never;
        if (job_state_holds_slots(job->state))
            add_running(g, d, u, job, &n_pieces);
        else if (job->state == JOB_QUEUED && planner_is_due(js, job, &never))
            g->waiting[g->in.n_waiting++] = describe(d, u, job, g->in.now_ms);
    }
    g->in.waiting = g->waiting;
    g->in.running = g->running;
}

/* --- all of it --- */

static void gather_nodes(struct gathered *g, const struct daemon *d)
{
    const struct inventory *inv = &d->inventory;

    g->nodes = xcalloc(inv->n, sizeof *g->nodes);
    g->use = xcalloc(inv->n, sizeof *g->use);
    inventory_use(inv, &d->jobs, g->use);
    for (size_t i = 0; i < inv->n; i++)
        g->nodes[i] = (struct sched_node){.name = inv->v[i].name,
                                          .state = inventory_health(&inv->v[i], g->in.now_ms),
                                          .slots = (int32_t)inv->v[i].slots,
                                          .gpus = __builtin_popcountll(inv->v[i].gpus),
                                          .usable = inventory_usable(&inv->v[i], g->in.now_ms)};
    g->in.nodes = g->nodes;
    g->in.n_nodes = inv->n;
}

void gather(struct gathered *g, const struct daemon *d, const struct users *u, int64_t now_ms)
{
    const struct options *o = d->options;

    *g = (struct gathered){.in.now_ms = now_ms};
    sched_settings_init(&g->settings);
    g->settings.preempt = !o->no_preempt;
    g->settings.resize = !o->no_resize;
    g->settings.grace_ms = o->grace_ms;
    g->settings.grow_ms = o->grow_ms;
    g->in.settings = &g->settings;
    g->users = xcalloc(u->n + 1, sizeof *g->users);
    for (size_t i = 0; i < u->n; i++)
        g->users[i] = (struct sched_user){.usage = u->v[i].usage, .share = u->v[i].share};
    g->in.users = g->users;
    g->in.n_users = u->n;
    gather_nodes(g, d);
    gather_jobs(g, d, u);
}

void gathered_free(struct gathered *g)
{
    free(g->nodes);
    free(g->use);
    free(g->users);
    free(g->waiting);
    free(g->running);
    free(g->pieces);
    *g = (struct gathered){0};
}
