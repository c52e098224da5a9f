/* bench_sched_sim - a machine in virtual time: jobs are submitted, start on GPUs, end; what yields is gone
 * restart_ms later and waits with what is left of it. Slots are not scarce: a node has as many as GPUs. */
#include "bench/bench_sched.h"
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

static const int64_t measured_after_ms = 2 * MINUTE;

struct sim *sim_create(const struct options *o, const struct load *l)
{
    struct sim *s = xcalloc(1, sizeof *s);

    s->o = o;
    s->load = l;
    s->jobs = xcalloc(l->n, sizeof *s->jobs);
    s->queue = xcalloc(l->n, sizeof *s->queue);
    s->running = xcalloc(l->n, sizeof *s->running);
    s->waiting_in = xcalloc(l->n, sizeof *s->waiting_in);
    s->running_in = xcalloc(l->n, sizeof *s->running_in);
    s->nodes = xcalloc((size_t)o->nodes, sizeof *s->nodes);
    s->free = xcalloc((size_t)o->nodes, sizeof *s->free);
    for (long i = 0; i < o->nodes; i++) {
        s->nodes[i] = (struct sched_node){"node", "", (int32_t)o->gpus, (int32_t)o->gpus, true};
        s->free[i] = (int32_t)o->gpus;
    }
    s->n_free = o->nodes * o->gpus;
    sched_settings_init(&s->set);
    s->set.max_reservations = (int32_t)o->depth;
    return s;
}

void sim_destroy(struct sim *s)
{
    for (size_t i = 0; i < s->load->n; i++)
        free(s->jobs[i].pieces);
    sched_plan_free(s->last);
    free(s->jobs);
    free(s->queue);
    free(s->running);
    free(s->waiting_in);
    free(s->running_in);
    free(s->nodes);
    free(s->free);
    free(s->ends);
    free(s);
}

/* --- the heap of ends --- */

static void ends_push(struct sim *s, struct sim_end x)
{
    size_t i = s->n_ends++;

    if (i == s->cap_ends) {
        s->cap_ends = s->cap_ends ? 2 * s->cap_ends : 1024;
        s->ends = xrealloc(s->ends, s->cap_ends * sizeof *s->ends);
    }
    for (; i && s->ends[(i - 1) / 2].t > x.t; i = (i - 1) / 2)
        s->ends[i] = s->ends[(i - 1) / 2];
    s->ends[i] = x;
}

static struct sim_end ends_pop(struct sim *s)
{
    struct sim_end top = s->ends[0], x = s->ends[--s->n_ends];
    size_t i = 0;

    for (size_t k; (k = 2 * i + 1) < s->n_ends; i = k) {
        if (k + 1 < s->n_ends && s->ends[k + 1].t < s->ends[k].t)
            k++;
        if (s->ends[k].t >= x.t)
            break;
        s->ends[i] = s->ends[k];
    }
    s->ends[i] = x;
    return top;
}

/* --- jobs --- */

static void progress(struct sim *s, uint32_t id, int64_t now)
{
    struct sim_job *j = &s->jobs[id];
    int64_t done = (now - j->since_ms) * j->held, until = s->load->span_ms;

    j->work = done < j->work ? j->work - done : 0;
    j->limit_work -= done;
    if (j->since_ms < until)
        s->used_ms += (double)((now < until ? now : until) - j->since_ms) * j->held;
    j->since_ms = now;
}

static void leave(struct sim *s, uint32_t id)
{
    struct sim_job *j = &s->jobs[id];

    for (int32_t k = 0; k < j->n_pieces; k++)
        s->free[j->pieces[k].node] += j->pieces[k].ranks;
    s->n_free += j->held;
    j->held = 0;
}

static void take_end(struct sim *s, struct sim_end e)
{
    struct sim_job *j = &s->jobs[e.job];

    if (j->state != SIM_RUNS || j->generation != e.generation)
        return;
    progress(s, e.job, e.t);
    leave(s, e.job);
    j->yield_ms = 0;
    if (!j->work) {
        j->state = SIM_DONE;
        j->end_ms = e.t;
        return;
    }
    j->state = SIM_WAITS;
    j->queued_ms = e.t;
    s->queue[s->n_queue++] = e.job;
}

void sim_submit(struct sim *s)
{
    const struct load_job *l = &s->load->jobs[s->n_new];
    struct sim_job *j = &s->jobs[s->n_new];

    j->state = SIM_WAITS;
    j->first_start_ms = j->promised_ms = -1;
    j->work = l->run_ms * l->ranks;
    j->limit_work = l->limit_ms * l->ranks;
    j->queued_ms = l->submit_ms;
    s->queue[s->n_queue++] = (uint32_t)s->n_new++;
}

void sim_advance(struct sim *s, int64_t now)
{
    size_t kept = 0;

    while (s->n_ends && s->ends[0].t <= now)
        take_end(s, ends_pop(s));
    while (s->n_new < s->load->n && s->load->jobs[s->n_new].submit_ms <= now)
        sim_submit(s);
    for (size_t i = 0; i < s->n_running; i++)
        if (s->jobs[s->running[i]].state == SIM_RUNS)
            s->running[kept++] = s->running[i];
    s->n_running = kept;
    s->now = now;
}

bool sim_is_over(const struct sim *s)
{
    return s->n_new == s->load->n && !s->n_queue && !s->n_running;
}

int64_t sim_next(const struct sim *s)
{
    int64_t t = s->n_ends ? s->ends[0].t : INT64_MAX;

    if (s->n_new < s->load->n && s->load->jobs[s->n_new].submit_ms < t)
        t = s->load->jobs[s->n_new].submit_ms;
    return t;
}

void sim_start(struct sim *s, uint32_t id, const struct sched_piece *pieces, size_t n)
{
    struct sim_job *j = &s->jobs[id];

    ASSERT(j->state == SIM_WAITS);
    j->state = SIM_RUNS;
    j->pieces = xrealloc(j->pieces, n * sizeof *pieces);
    memcpy(j->pieces, pieces, n * sizeof *pieces);
    j->n_pieces = (int32_t)n;
    for (size_t k = 0; k < n; k++) {
        j->held += pieces[k].ranks;
        s->free[pieces[k].node] -= pieces[k].ranks;
        ASSERT(s->free[pieces[k].node] >= 0);
    }
    s->n_free -= j->held;
    j->start_ms = j->since_ms = s->now;
    s->n_starts++;
    if (j->first_start_ms < 0)
        j->first_start_ms = s->now;
    j->resize_to = 0;
    s->running[s->n_running++] = id;
    ends_push(s, (struct sim_end){s->now + (j->work + j->held - 1) / j->held, id, ++j->generation});
}

void sim_drop_started(struct sim *s)
{
    size_t kept = 0;

    for (size_t i = 0; i < s->n_queue; i++)
        if (s->jobs[s->queue[i]].state == SIM_WAITS)
            s->queue[kept++] = s->queue[i];
    s->n_queue = kept;
}

/* --- ours --- */

static struct sched_job job_in(const struct sim *s, uint32_t id)
{
    const struct load_job *l = &s->load->jobs[id];
    const struct sim_job *j = &s->jobs[id];
    bool elastic = s->elastic && l->elastic;
    struct sched_job job = {.id = (int64_t)id + 1,
                            .ranks = l->ranks,
                            .min_ranks = elastic ? (l->ranks + 1) / 2 : l->ranks,
                            .max_ranks = elastic ? 2 * l->ranks : l->ranks,
                            .resize_to = j->resize_to,
                            .gpus_per_rank = 1,
                            .submitted_ms = l->submit_ms,
                            .queued_ms = j->queued_ms,
                            .run_ms = j->limit_work / l->ranks};

    if (s->measures && j->state == SIM_RUNS && s->now - j->start_ms >= measured_after_ms) {
        job.run_ms = (int64_t)((double)(j->work / l->ranks) * l->measured);
        job.run_measured = true;
    } else if (s->predicts) {
        job.run_ms = (int64_t)((double)(j->work / l->ranks) * l->predicted);
    }
    return job;
}

struct sched_input sim_input(struct sim *s)
{
    for (size_t i = 0; i < s->n_queue; i++)
        s->waiting_in[i] = job_in(s, s->queue[i]);
    for (size_t i = 0; i < s->n_running; i++) {
        uint32_t id = s->running[i];
        const struct sim_job *j = &s->jobs[id];
        progress(s, id, s->now);
        s->running_in[i] = (struct sched_running){.job = job_in(s, id),
                                                  .pieces = j->pieces,
                                                  .n_pieces = (size_t)j->n_pieces,
                                                  .started_ms = j->start_ms,
                                                  .can_yield = true,
                                                  .yielding = j->yield_ms > 0};
    }
    return (struct sched_input){.now_ms = s->now,
                                .nodes = s->nodes,
                                .n_nodes = (size_t)s->o->nodes,
                                .waiting = s->waiting_in,
                                .n_waiting = s->n_queue,
                                .running = s->running_in,
                                .n_running = s->n_running,
                                .settings = &s->set,
                                .last = s->last};
}

void sim_carry_out(struct sim *s, struct sched_plan *p)
{
    for (size_t i = 0; i < p->n_verdicts; i++) {
        struct sim_job *j = &s->jobs[p->verdicts[i].job - 1];
        if (j->promised_ms < 0 && j->first_start_ms < 0 && p->verdicts[i].reason != SCHED_STARTS)
            j->promised_ms = p->verdicts[i].start_ms;
    }
    for (size_t i = 0; i < p->n_starts; i++)
        sim_start(s, (uint32_t)(p->starts[i].job - 1), p->starts[i].pieces, (size_t)p->starts[i].n_pieces);
    sim_drop_started(s);
    for (size_t i = 0; i < p->n_yields; i++) {
        uint32_t id = (uint32_t)(p->yields[i].job - 1);
        struct sim_job *j = &s->jobs[id];
        int64_t end = j->since_ms + (j->work + j->held - 1) / j->held;
        j->resize_to = p->yields[i].resize_to;
        j->yield_ms = s->now + s->set.restart_ms;
        ends_push(s, (struct sim_end){j->yield_ms < end ? j->yield_ms : end, id, ++j->generation});
    }
    s->n_yields += (int64_t)p->n_yields;
    sched_plan_free(s->last);
    s->last = p;
}

void sim_plan(struct sim *s)
{
    struct sched_input in = sim_input(s);
    struct sched_plan *p = sched_plan(&in);

    sim_carry_out(s, p);
}
