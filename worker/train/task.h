/* task - what is trained and how it is judged: the seam between the trainer and worker/tasks.
 *
 * A task knows data, model and loss; the trainer knows steps, optimiser, checkpoints and reports. A new task
 * is one file and one row in the table of main.c.
 *
 * Order of calls, the same on every rank:
 *   create → steps_per_epoch → build (training graph; the trainer then finalises the parameters) →
 * set_constants → prepare_eval (every evaluation program, so that nothing is compiled in the middle of a run)
 *   → feed / evaluate … → describe → destroy
 * All calls up to prepare_eval may fail on one rank alone (its memory, its files) and contain no collective:
 * the trainer agrees on their outcome, and where engines are measured calls prepare_eval on rank 0 first.
 * evaluate contains collectives.
 */
#ifndef TRAIN_TASK_H
#define TRAIN_TASK_H

#include <cjson/cJSON.h>
#include "common/hash.h"
#include "common/log.h"
#include "proto/jobspec.h"
#include "worker/engine/program.h"

/* What a task works with; all borrowed and longer-lived than the task. */
struct task_env {
    const struct jobspec *spec;
    struct comm *comm;        /* on host memory */
    struct comm *device_comm; /* on the backend's memory; may be the same */
    struct backend *backend;
    struct params *params;
    const struct log *log;
};

/* The training graph as the trainer needs it. The task keeps its inputs. */
struct task_graph {
    struct node *loss; /* f64 (1): this rank's contribution to the loss of the global mini-batch */
};

enum task_split { TASK_VALIDATION, TASK_TEST };

enum { TASK_MAX_SCALARS = 16 };

/* Outcome of an evaluation, the same on every rank. */
struct task_eval {
    struct {
        const char *name; /* static storage */
        double value;     /* NaN: undefined (a group without classes); null in reports */
    } scalars[TASK_MAX_SCALARS];
    int n_scalars;
    double *per_class; /* (n_classes) accuracy; owned, NULL when the task has no classes */
    int n_classes;
    int64_t n_samples; /* 0: the split does not exist, and nothing else is set */
};

struct task;

struct task_ops {
    const char *name;       /* as in the spec: "long_tailed" */
    const char *primary;    /* scalar of the validation split that "best" goes by; the larger the better */
    const char *train_only; /* prefix of parameters that inference does without: "batchformer." */

    /* Reads and checks the data. */
    struct task *(*create)(const struct task_env *env, struct err *e);
    int64_t (*steps_per_epoch)(const struct task *t);

    /* Appends the training graph for this rank's rows (graph->rows) of the global mini-batch. */
    int (*build)(struct task *t, struct graph *g, struct task_graph *out, struct err *e);

    /* Fills in PARAM_CONST values; after params_finalize(). */
    int (*set_constants)(struct task *t, struct err *e);

    /* Feeds the inputs of the graph given to build() with this rank's rows of the batch of `step` (from 0).
     */
    int (*feed)(struct task *t, struct program *p, int64_t step, struct err *e);

    /* While the device is busy with a step: prepares the batch of `step`, which is likely to be fed next;
     * feeding another is right all the same. NULL: there is nothing to prepare. After it, batch_digest() says
     * nothing before the next feed(). */
    int (*feed_ahead)(struct task *t, struct program *p, int64_t step, struct err *e);

    /* Which samples this rank's rows of the batch fed last were, and at which rows of the global batch:
     * summed mod 2^64 over the ranks it is the same for any number of them. Of what was really fed, not of a
     * plan. */
    uint64_t (*batch_digest)(const struct task *t);

    int (*prepare_eval)(struct task *t, struct err *e);
    int (*evaluate)(struct task *t, enum task_split split, struct task_eval *out, struct err *e);

    /* Adds what explains the numbers of `eval` (rules, protocol) to it. */
    void (*describe)(const struct task *t, cJSON *eval);

    /* Checksum of the data and of the choice of samples: equal exactly when two runs see the same data. */
    struct hash_hex (*fingerprint)(const struct task *t);

    /* Name of the last layer, whose width is the number of classes: "fc". */
    const char *(*classifier)(const struct task *t);

    /* Nanoseconds that feed() and feed_ahead() have waited for data. */
    int64_t (*data_wait_ns)(const struct task *t);

    void (*destroy)(struct task *t);
};

/* Tasks embed this first. */
struct task {
    const struct task_ops *ops;
};

static inline void task_destroy(struct task *t)
{
    if (t)
        t->ops->destroy(t);
}

/* The value called `name`, or NaN. */
double task_eval_scalar(const struct task_eval *v, const char *name);
void task_eval_free(struct task_eval *v); /* zeroes it */

#endif
