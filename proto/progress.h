/* progress - what rank 0 of a job and the daemon say to each other, over the daemon's ordinary socket.
 *
 *   worker → daemon  request       worker.attach    {job, attempt, token, pid, host, ranks}  → {accepted:
 * true} notification  worker.progress  struct progress notification  worker.metrics   {step, epoch, kind,
 * values: {name: number}}   one metrics.jsonl line notification  worker.done      {status: "succeeded" |
 * "failed" | "stopped", reason, result} daemon → worker  notification  worker.command   {command: "stop" |
 * "checkpoint"}
 *
 * The worker finds the daemon by three environment variables that the launcher sets for every rank. The token
 * is the job attempt's own; the daemon compares it in constant time. A worker whose daemon goes away trains
 * on and attaches again when the daemon is back: silence on this link never ends a run.
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

cJSON *progress_attach_to_json(const struct progress_attach *a);
int progress_attach_from_json(const cJSON *v, struct progress_attach *a, struct err *e);

#endif
