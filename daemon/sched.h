/* sched - who starts now, who yields, and for everybody else why not and until when: a pure function of
 * nodes, jobs, users' usage, the time and settings.
 *
 * No clock, no I/O, nothing kept between calls: what one call should know of the one before is handed in as
 * `last`. The same input gives the same plan, in whatever order jobs are handed over. docs/scheduling.md has
 * the rules, their reasons, and the proofs that nobody starves and that no preemption loops.
 *
 * In short: jobs are taken in one total order. Each starts now, all ranks at once, or gets a reservation on
 * the timeline of every node; it starts only where that moves no reservation of a job before it (conservative
 * backfill, Mu'alem and Feitelson 2001). Elastic jobs start with fewer ranks when they end earlier so, are
 * shrunk for jobs that wait, and are grown when nothing waits. A job of strictly higher priority may have
 * others yield, when that really starts it.
 *
 * Times are milliseconds, all of one clock (Unix epoch). A slot is what one rank takes; a rank of a job with
 * gpus_per_rank g also takes g GPUs of its node.
 */
#ifndef DAEMON_SCHED_H
#define DAEMON_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A node is known by its index in sched_input.nodes. That order is the caller's and means something: where
 * two nodes serve equally well, the first is taken. */
struct sched_node {
    const char *name;  /* for sentences */
    const char *state; /* for sentences, while it is not usable: "drained", "down", "set aside" */
    int32_t slots, gpus;
    bool usable; /* false: nothing starts there; what runs there is left alone */
};

struct sched_user {
    double usage; /* decayed, any unit that all users share (sched_usage_at) */
    double share; /* above 0; relative to other users' */
};

/* A job that waits or runs. Jobs that may not start for reasons of their own (paused, dependencies that have
 * not succeeded) are not handed in. */
struct sched_job {
    int64_t id;                   /* above 0, unique among waiting and running */
    int64_t priority;             /* higher first */
    int32_t user;                 /* index in sched_input.users */
    int32_t ranks;                /* wanted */
    int32_t min_ranks, max_ranks; /* 1 <= min_ranks <= ranks <= max_ranks; all equal when it is not elastic */
    int32_t resize_to;     /* sched_yield.resize_to of the yield that sent it back to the queue, until it
                            * starts: wanted instead of `ranks`. 0: none */
    int32_t gpus_per_rank; /* 0 or more */
    int32_t nodes;         /* exactly so many, ranks spread evenly; 0: as few as possible */
    int64_t submitted_ms;
    int64_t queued_ms;     /* since when it waits: submitted, freed of dependencies, resumed or requeued, the
                            * latest of these. Age counts from here */
    int64_t not_before_ms; /* back-off: it does not start before; 0: none */
    int64_t run_ms;    /* what remains, had it `ranks` ranks; below 0: unknown. A caller that measures with r
                        * ranks says measured * r / ranks (sched_run_ms is the other direction) */
    bool run_measured; /* run_ms is from its own steps, and not its time limit; for sentences */
};

struct sched_piece {
    int32_t node, ranks;
};

struct sched_running {
    struct sched_job job;
    const struct sched_piece *pieces; /* what it holds */
    size_t n_pieces;
    int64_t started_ms; /* this attempt; also its last change of size */
    bool can_yield;     /* it would hear a request to stop at a step boundary */
    bool yielding;      /* has been asked to; job.resize_to says what for */
    int32_t n_preempted;
};

/* All durations in ms. sched_settings_init() gives what is in brackets. */
struct sched_settings {
    /* [256] So many waiting jobs get a reservation. Those behind may start at once where that moves none of
     * them, and have no estimate (Slurm: bf_max_job_test). */
    int32_t max_reservations;
    /* [1 h] How long a reservation lasts when the run time is unknown. */
    int64_t default_run_ms;
    /* [12 h] Who has waited so long goes before all whom only fair share puts before it. 0: never. */
    int64_t age_share_ms;
    /* [24 h] Each full period of it (of the clock) that a job has waited through counts as one point of
     * priority in the order, not for preemption. 0: never. */
    int64_t age_priority_ms;
    /* [true] Jobs may be asked to yield for jobs of higher priority. */
    bool preempt;
    /* [true] Running elastic jobs may be asked to yield in order to be resized. */
    bool resize;
    /* [5 min] Nobody yields for another before it has run so long. */
    int64_t grace_ms;
    /* [1 min] What a yield costs: from the request until the slots are free. Nobody yields for a job that
     * would start sooner anyway. */
    int64_t restart_ms;
    /* [10 min] Nobody is grown before it has run so long unchanged. */
    int64_t grow_ms;
    /* [8] For so many waiting jobs per plan it is tried in vain whether others could yield. A try costs about
     * as much as a plan. */
    int32_t max_yield_tries;
};

struct sched_plan;

struct sched_input {
    int64_t now_ms;
    const struct sched_node *nodes;
    size_t n_nodes;
    const struct sched_user *users;
    size_t n_users;
    const struct sched_job *waiting;
    size_t n_waiting;
    const struct sched_running *running;
    size_t n_running;
    const struct sched_settings *settings; /* NULL: the defaults */
    /* The plan before this one, for the same nodes, or NULL. Reservations keep their nodes while they can;
     * without that a job that has started since might shift them. */
    const struct sched_plan *last;
};

/* --- decisions --- */

struct sched_start {
    int64_t job;
    int32_t ranks; /* sum of the pieces' */
    int32_t n_pieces;
    const struct sched_piece *pieces; /* in order of nodes */
};

/* Ask the job to write a checkpoint at a step boundary and stop; then it is queued again. The caller notes
 * resize_to with it and hands it in (sched_job.resize_to) until it starts. */
struct sched_yield {
    int64_t job;
    int64_t for_job;   /* which job will start; 0: none, it is to grow */
    int32_t resize_to; /* to start again with so many ranks; 0: preempted, it waits in its place */
};

enum sched_reason {
    SCHED_STARTS,   /* is among the starts */
    SCHED_BUSY,     /* not enough is free */
    SCHED_HELD,     /* enough is free, but is kept for a job before it: other_job */
    SCHED_YIELD,    /* waits for other_job to yield */
    SCHED_BACK_OFF, /* not before not_before_ms */
    SCHED_UNUSABLE, /* the nodes that are usable could not hold it, all nodes could; node: one of those that
                     * are not usable */
    SCHED_TOO_BIG,  /* all nodes together could not hold it */
    SCHED_TOO_DEEP, /* more than max_reservations jobs are before it: no estimate */
};

/* For each waiting job. */
struct sched_verdict {
    int64_t job;
    enum sched_reason reason;
    int64_t start_ms; /* estimate; now for a start; -1: unknown */
    /* The job that it waits for: who yields, whose reservation comes first, or at whose end it starts. 0:
     * none */
    int64_t other_job;
    bool other_runs;     /* that one runs now */
    bool other_measured; /* and its end is known from its own steps */
    int32_t ranks; /* with how many it starts; of its least, how many the usable nodes (SCHED_UNUSABLE) or all
                    * nodes (SCHED_TOO_BIG) could hold */
    int32_t node;  /* -1: none */
    size_t n_before; /* jobs that come before it in order, could run and do not start now */
};

/* What a waiting job is promised, or one that yields and will wait. */
struct sched_reservation {
    int64_t job, start_ms; /* start_ms: far beyond all dates when it waits for jobs without an estimate */
    int32_t ranks, n_pieces;
    const struct sched_piece *pieces;
};

struct sched_plan {
    int64_t now_ms;
    const struct sched_start *starts;
    size_t n_starts;
    const struct sched_yield *yields;
    size_t n_yields;
    const struct sched_verdict *verdicts; /* one for each waiting job, in order */
    size_t n_verdicts;
    const struct sched_reservation *reservations; /* by id */
    size_t n_reservations;
    /* Of usable nodes, once the starts have happened. */
    int64_t slots, slots_free, gpus, gpus_free;
};

/* The plan is the caller's and refers to nothing of the input. Never NULL. */
struct sched_plan *sched_plan(const struct sched_input *in);
void sched_plan_free(struct sched_plan *p); /* NULL is legal */

/* NULL: the job did not wait when the plan was made. */
const struct sched_verdict *sched_plan_verdict(const struct sched_plan *p, int64_t job);

/* One sentence that says why the job waits, for what, and when it starts: "job 17 needs 8 ranks and 3 of 16
 * slots are free; it starts in about 12 min, when job 9 ends (estimate from its own step time)". `job` and
 * `nodes` as they were handed in; now_ms may be later than the plan's. */
void sched_explain_text(const struct sched_plan *p, const struct sched_verdict *v,
                        const struct sched_job *job, const struct sched_node *nodes, int64_t now_ms,
                        char *out, size_t size);

/* --- parts of it --- */

void sched_settings_init(struct sched_settings *s);

/* The total order: below 0 when a comes before b at now_ms. Never 0 for different ids. */
int sched_compare(const struct sched_input *in, const struct sched_job *a, const struct sched_job *b);

/* What remains with `ranks` ranks: run_ms * job->ranks / ranks, rounded up; below 0: unknown. */
int64_t sched_run_ms(const struct sched_job *job, int32_t ranks);

/* Usage after elapsed_ms in which the user held `held` (slots, GPUs, …) all the time, in held-seconds that
 * lose half of their weight in half_life_ms: u 2^(-t/h) + held h/ln 2 (1 - 2^(-t/h)). In one step or in many
 * the result is the same. half_life_ms <= 0: nothing decays. */
double sched_usage_at(double usage, double held, int64_t elapsed_ms, int64_t half_life_ms);

#endif
