/* sched_explain - a verdict as one sentence: what the job needs, what there is, what it waits for, until
 * when. */
#include "daemon/sched.h"

#include <stdarg.h>
#include <stdio.h>

struct text {
    char *out;
    size_t size, n;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    if (t->n >= t->size)
        return;
    va_start(ap, fmt);
    n = vsnprintf(t->out + t->n, t->size - t->n, fmt, ap);
    va_end(ap);
    t->n += n > 0 ? (size_t)n : 0;
}

static const char *plural(int64_t n)
{
    return n == 1 ? "" : "s";
}

static void add_need(struct text *t, const struct sched_job *job, int32_t ranks, const char *least)
{
    add(t, "job %lld needs %s%d rank%s", (long long)job->id, least, ranks, plural(ranks));
    if (job->gpus_per_rank)
        add(t, " with %d GPU%s each", job->gpus_per_rank, plural(job->gpus_per_rank));
    if (job->nodes)
        add(t, " on %d node%s", job->nodes, plural(job->nodes));
}

static void add_free(struct text *t, const struct sched_plan *p, const struct sched_job *job)
{
    bool gpus = job->gpus_per_rank > 0;
    long long there = gpus ? p->gpus : p->slots, left = gpus ? p->gpus_free : p->slots_free;

    add(t, "%lld of %lld %s%s %s free", left, there, gpus ? "GPU" : "slot", plural(there),
        left == 1 ? "is" : "are");
}

/* "in about 12 min": two figures are as much as an estimate is worth. */
static void add_time(struct text *t, int64_t ms)
{
    long long s = ms > 0 ? (ms + 500) / 1000 : 0;

    if (s < 2)
        add(t, "in a moment");
    else if (s < 100)
        add(t, "in about %lld s", s);
    else if (s < 100 * 60)
        add(t, "in about %lld min", (s + 30) / 60);
    else if (s < 48 * 3600)
        add(t, "in about %lld h", (s + 1800) / 3600);
    else
        add(t, "in about %lld days", (s + 43200) / 86400);
}

static void add_start(struct text *t, const struct sched_verdict *v, int64_t now_ms)
{
    add(t, "; it starts ");
    add_time(t, v->start_ms - now_ms);
}

static void add_before(struct text *t, const struct sched_verdict *v)
{
    if (v->n_before)
        add(t, "; %zu job%s before it", v->n_before, v->n_before == 1 ? " comes" : "s come");
}

static void add_busy(struct text *t, const struct sched_verdict *v, int64_t now_ms)
{
    add_before(t, v);
    if (v->start_ms < 0) {
        if (v->other_job)
            add(t, "; nobody knows when it starts: job %lld %s and has no estimate", (long long)v->other_job,
                v->other_runs ? "runs" : "comes first");
        else
            add(t, "; nobody knows when it starts");
        return;
    }
    add_start(t, v, now_ms);
    if (v->other_job)
        add(t, ", when job %lld ends%s", (long long)v->other_job,
            !v->other_runs      ? ", which also waits"
            : v->other_measured ? " (estimate from its own step time)"
                                : " (estimate from its time limit)");
}

static void add_waiting(struct text *t, const struct sched_plan *p, const struct sched_verdict *v,
                        const struct sched_job *job, int64_t now_ms)
{
    add_need(t, job, v->ranks, "");
    add(t, " and ");
    add_free(t, p, job);
    if (v->reason == SCHED_HELD) {
        add(t, ", but kept for job %lld, which comes before it", (long long)v->other_job);
        if (v->start_ms >= 0)
            add_start(t, v, now_ms);
        else
            add(t, "; nobody knows when it starts, for want of estimates");
    } else if (v->reason == SCHED_YIELD) {
        add(t, "; job %lld has been asked to stop at a step boundary", (long long)v->other_job);
        add_start(t, v, now_ms);
    } else if (v->reason == SCHED_TOO_DEEP) {
        add_before(t, v);
        add(t, "; there are estimates for those in front only");
    } else {
        add_busy(t, v, now_ms);
    }
}

void sched_explain_text(const struct sched_plan *p, const struct sched_verdict *v,
                        const struct sched_job *job, const struct sched_node *nodes, int64_t now_ms,
                        char *out, size_t size)
{
    struct text t = {out, size, 0};

    switch (v->reason) {
    case SCHED_STARTS:
        add(&t, "job %lld starts now with %d rank%s", (long long)job->id, v->ranks, plural(v->ranks));
        break;
    case SCHED_BACK_OFF:
        add_need(&t, job, v->ranks, "");
        add(&t, " and is held back for a while after its last attempt; it starts ");
        add_time(&t, (v->start_ms < 0 ? job->not_before_ms : v->start_ms) - now_ms);
        add(&t, "%s", v->start_ms < 0 ? " at the earliest" : "");
        break;
    case SCHED_UNUSABLE:
        add_need(&t, job, job->min_ranks, job->min_ranks < job->ranks ? "at least " : "");
        add(&t, ", and the nodes in use have room for %d", v->ranks);
        if (v->node >= 0)
            add(&t, ": node %s is %s", nodes[v->node].name,
                nodes[v->node].state ? nodes[v->node].state : "not usable");
        break;
    case SCHED_TOO_BIG:
        add_need(&t, job, job->min_ranks, job->min_ranks < job->ranks ? "at least " : "");
        add(&t, ", and all nodes together have room for %d: it can never start here", v->ranks);
        break;
    default:
        add_waiting(&t, p, v, job, now_ms);
    }
}
