/* jobs - see jobs.h. */
#include "daemon/jobs.h"

#include <stdlib.h>
#include <string.h>

void jobs_free(struct jobs *js)
{
    for (size_t i = 0; i < js->n; i++) {
        job_free(js->v[i]);
        free(js->v[i]);
    }
    free(js->v);
    free(js->active);
    *js = (struct jobs){0};
}

static size_t lower_bound(struct job *const *v, size_t n, int64_t id)
{
    size_t lo = 0;

    while (n) {
        size_t half = n / 2;
        if (v[lo + half]->id < id) {
            lo += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return lo;
}

size_t jobs_lower_bound(const struct jobs *js, int64_t id)
{
    return lower_bound(js->v, js->n, id);
}

struct job *jobs_find(const struct jobs *js, int64_t id)
{
    size_t i = jobs_lower_bound(js, id);

    return i < js->n && js->v[i]->id == id ? js->v[i] : NULL;
}

static void push(struct job ***v, size_t *n, size_t *cap, struct job *job)
{
    if (*n == *cap) {
        *cap = *cap ? *cap * 2 : 64;
        *v = xrealloc(*v, *cap * sizeof **v);
    }
    (*v)[(*n)++] = job;
}

static void remove_active(struct jobs *js, const struct job *job)
{
    size_t i = lower_bound(js->active, js->n_active, job->id);

    ASSERT(i < js->n_active && js->active[i] == job);
    memmove(js->active + i, js->active + i + 1, (js->n_active - i - 1) * sizeof *js->active);
    js->n_active--;
}

/* Back into the list, in order of id. */
static void insert_active(struct jobs *js, struct job *job)
{
    size_t i = lower_bound(js->active, js->n_active, job->id);

    push(&js->active, &js->n_active, &js->cap_active, job);
    memmove(js->active + i + 1, js->active + i, (js->n_active - 1 - i) * sizeof *js->active);
    js->active[i] = job;
}

static struct job *add_job(struct jobs *js, const struct job_event *ev, struct err *e)
{
    struct job *job = xcalloc(1, sizeof *job);

    if (js->n && js->v[js->n - 1]->id >= ev->job) {
        err_set(e, "job %lld comes after job %lld", (long long)ev->job, (long long)js->v[js->n - 1]->id);
    } else if (job_apply(job, ev, e) == 0) {
        push(&js->v, &js->n, &js->cap, job);
        push(&js->active, &js->n_active, &js->cap_active, job);
        js->counts[job->state]++;
        return job;
    }
    job_free(job);
    free(job);
    return NULL;
}

struct job *jobs_apply(struct jobs *js, const struct job_event *ev, struct err *e)
{
    struct job *job = jobs_find(js, ev->job);

    if (!job)
        return add_job(js, ev, e);
    enum job_state from = job->state;
    int64_t held = job->held_ranks;
    if (job_apply(job, ev, e) < 0)
        return NULL;
    js->counts[from]--;
    js->counts[job->state]++;
    js->held_ranks += job->held_ranks - held;
    bool was_final = job_state_is_final(from), is_final = job_state_is_final(job->state);
    if (is_final && !was_final)
        remove_active(js, job);
    else if (was_final && !is_final)
        insert_active(js, job);
    return job;
}
