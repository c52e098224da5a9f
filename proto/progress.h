/* progress - what the ranks of a job and the daemon say to each other, over the daemon's ordinary socket.
 *
 * Rank 0 speaks for the run, on one connection:
 *   request       worker.attach    {job, attempt, token, pid, host, ranks} → {accepted: true}
 *   notification  worker.progress  struct progress
 *   notification  worker.metrics   {step, epoch, kind, values: {name: number}}   one metrics.jsonl line
 *   notification  worker.done      {status: "succeeded" | "failed" | "stopped", reason, result}
 *   from the daemon, notification  worker.command  {command: "stop" | "checkpoint"}
 * Every rank speaks for itself, on another:
 *   request       worker.hello     {job, attempt, token, rank, pid, host} → {accepted: true}
 *   notification  worker.beat      struct progress_beat
 *
 * The worker finds the daemon by environment variables that the launcher sets for every rank. The token is
 * the job attempt's own; the daemon compares it in constant time. A worker whose daemon goes away trains on
 * and comes back when the daemon does: silence on these links alone never ends a run that makes steps.
 */
#ifndef PROTO_PROGRESS_H
#define PROTO_PROGRESS_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "common/err.h"

#define PROGRESS_ENV_ADDRESS "BATCHFORMER_LINK"    /* "unix:PATH" */
#define PROGRESS_ENV_JOB "BATCHFORMER_JOB"         /* job id, decimal */
#define PROGRESS_ENV_ATTEMPT "BATCHFORMER_ATTEMPT" /* 1, 2, … */
#define PROGRESS_ENV_TOKEN "BATCHFORMER_TOKEN"     /* hex */

struct progress {
    char phase[16];          /* "start" | "train" | "evaluate" | "checkpoint" | "finish" */
    int64_t step, n_steps;   /* optimiser steps done, and of the whole run */
    int64_t epoch, n_epochs; /* epochs finished, and of the whole run */
    double loss;             /* of the last logged step; NaN when none yet (null on the wire) */
    double images_per_s;     /* over the last interval, all ranks */
    double eta_s;            /* until the end of the run; NaN when unknown */
    int64_t checkpoint_step; /* of the newest complete checkpoint; -1 when none */
};

cJSON *progress_to_json(const struct progress *p);
int progress_from_json(const cJSON *v, struct progress *p, struct err *e);

/* worker.attach parameters. */
struct progress_attach {
    int64_t job, attempt, pid, ranks;
    char token[65];
    char host[256];
};

/* Job, attempt and token from the environment; host and pid of this process. The rest is the caller's. */
int progress_attach_from_env(struct progress_attach *a, struct err *e);

cJSON *progress_attach_to_json(const struct progress_attach *a);
int progress_attach_from_json(const cJSON *v, struct progress_attach *a, struct err *e);

/* worker.hello parameters. */
struct progress_hello {
    int64_t job, attempt, pid, rank;
    char token[65];
    char host[256];
};

cJSON *progress_hello_to_json(const struct progress_hello *h);
int progress_hello_from_json(const cJSON *v, struct progress_hello *h, struct err *e);

/* The phase of a rank that says its last word. */
#define PROGRESS_PHASE_END "end"

/* worker.beat parameters: where a rank is. Collectives are counted alike on all ranks, because all ranks make
 * the same ones in the same order; who has finished fewer is behind. */
struct progress_beat {
    char phase[16];      /* "start", "data", "forward", …: heartbeat.h of the trainer has the list */
    char waits_in[64];   /* the collective that it waits in; "" = it does not wait (null on the wire) */
    int64_t step;        /* optimiser steps done */
    int64_t collectives; /* finished in this process */
    int64_t in_ms;       /* time since it entered this phase or collective */
    int64_t n_steps;     /* made in this process */
    double step_ms;      /* a step's time, a mean over the last ones; NaN when none was made */
    double work_ms;      /* of that, what it did not wait for others */
};

cJSON *progress_beat_to_json(const struct progress_beat *b);
int progress_beat_from_json(const cJSON *v, struct progress_beat *b, struct err *e);

#endif
