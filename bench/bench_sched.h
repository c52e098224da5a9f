/* bench_sched - what the parts of the scheduler's bench share: the workload, the simulated machine, policies.
 */
#ifndef BENCH_BENCH_SCHED_H
#define BENCH_BENCH_SCHED_H

#include "daemon/sched.h"

enum { SECOND = 1000, MINUTE = 60 * SECOND };

struct options {
    long nodes, gpus, jobs, seed, tick_s, depth, calls;
    double load, elastic;
    const char *out;
};

/* --- the workload (bench_sched_load.c) --- */

struct load_job {
    int64_t submit_ms, run_ms; /* run_ms: with `ranks` ranks */
    int64_t limit_ms;          /* what its user says */
    double measured;           /* its own estimate by what is true, once it has run a while */
    double predicted;          /* a model's estimate by what is true, before it has run */
    int32_t ranks;             /* of one GPU each */
    bool elastic;              /* from a half of ranks to twice as many */
};

struct load {
    struct load_job *jobs; /* by submit_ms */
    size_t n;
    double gpu_hours, mean_ranks, mean_run_s;
    int64_t span_ms; /* from the first submission to the last */
};

void load_make(struct load *l, const struct options *o);
double random_unit(uint64_t *seed);

/* --- the simulated machine (bench_sched_sim.c) --- */

enum sim_state { SIM_NEW, SIM_WAITS, SIM_RUNS, SIM_DONE };

struct sim_job {
    enum sim_state state;
    int64_t work, limit_work; /* rank-ms that remain, truly and by the limit, as of since_ms */
    int64_t since_ms, start_ms, first_start_ms, end_ms, yield_ms, queued_ms;
    int64_t promised_ms; /* its start, when first there was an estimate; -1: none */
    int32_t held, resize_to;
    uint32_t generation; /* of its next end in the heap */
    struct sched_piece *pieces;
    int32_t n_pieces;
};

struct sim_end {
    int64_t t;
    uint32_t job, generation;
};

struct sim {
    const struct options *o;
    const struct load *load;
    int64_t now;
    struct sim_job *jobs;
    uint32_t *queue; /* waiting, in order of submission */
    size_t n_queue, n_new, n_running;
    uint32_t *running;
    struct sim_end *ends; /* a heap */
    size_t n_ends, cap_ends;
    struct sched_node *nodes;
    int32_t *free; /* GPUs, by node */
    int64_t n_free;
    double used_ms; /* GPU-ms, until the last submission */
    int64_t n_starts, n_yields;
    /* what the scheduler is given */
    struct sched_settings set;
    struct sched_job *waiting_in;
    struct sched_running *running_in;
    struct sched_plan *last;
    bool measures, predicts, elastic;
};

struct sim *sim_create(const struct options *o, const struct load *l);
void sim_destroy(struct sim *s);

/* Hands in the next job of the workload, whatever its time. */
void sim_submit(struct sim *s);

/* Hands in what has been submitted and takes out what has ended or yielded, up to and including `now`. */
void sim_advance(struct sim *s, int64_t now);
bool sim_is_over(const struct sim *s);

/* When anything happens next; INT64_MAX: never. */
int64_t sim_next(const struct sim *s);

/* Starts a waiting job on pieces, which are copied; the caller drops it from the queue (sim_drop_started). */
void sim_start(struct sim *s, uint32_t job, const struct sched_piece *pieces, size_t n);
void sim_drop_started(struct sim *s);

/* Everything that runs or waits, as the coordinator would hand it in. */
struct sched_input sim_input(struct sim *s);

/* Carries the plan out and keeps it as the last one. */
void sim_carry_out(struct sim *s, struct sched_plan *p);

/* One plan of ours, carried out. */
void sim_plan(struct sim *s);

/* --- the other policies (bench_sched_base.c) --- */

void base_fifo(struct sim *s);
void base_easy(struct sim *s);

#endif
