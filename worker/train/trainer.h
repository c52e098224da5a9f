/* trainer - one run: builds it, steps through it, evaluates, checkpoints.
 *
 * Life: trainer_create() builds everything and loads where to start from → trainer_run() goes on to the end,
 * to max_steps, or to a request to stop → trainer_result() → trainer_destroy().
 *
 * One step (trainer_step.c): feed → forward → backward (which sums the gradients over the ranks) → vote →
 * clip → optimiser. Then: log, evaluate, checkpoint. The vote is one all-reduce of nine doubles (struct
 * step_scalars): the loss, how many ranks found it or the gradient not finite, were asked to stop, were asked
 * for a checkpoint, and what was fed. Whatever a rank then does follows from the sums, so all ranks leave the
 * loop at the same step; a step that is not finite updates nothing.
 *
 * At one step the order is: receipt (receipt.h) → metrics line → epoch line → validation → checkpoint. A
 * checkpoint therefore covers all lines up to its step, and a run that goes on from it starts with the next.
 *
 * A step that is not finite is made again to see where it begins (diagnose.h), and the run ends with what was
 * found; the weights were not updated, and nothing is saved.
 *
 * Failing. What can go wrong on one rank outside of the steps (files, memory, models) is agreed on and all
 * ranks fail with the same message. What goes wrong on one rank inside a step leaves the others in a
 * collective: that rank must then abort the communicator (TRAINER_FAILED_ALONE).
 */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "worker/train/dump.h"
#include "worker/train/heartbeat.h"
#include "worker/train/report.h"
#include "worker/train/result.h"
#include "worker/train/task.h"

struct trainer_cfg { /* all borrowed */
    const struct jobspec *spec;
    const cJSON *resolved;    /* the spec with every default */
    struct comm *comm;        /* on host memory */
    struct comm *device_comm; /* on the backend's memory; the same one where that is the host's */
    struct backend *backend;  /* with a table of engines (plans.h) rank 0 compiles before the others */
    const struct task_ops *task;
    const char *run_dir;
    bool resume;
    int64_t max_steps; /* 0: none */
    struct dump dump;
    const struct log *log;
    const struct log *console; /* rank 0 without a coordinator: progress lines for a person; else NULL */
    struct report *report;     /* rank 0 with a coordinator; else NULL */
    struct heartbeat *heart;   /* with a coordinator; else NULL */
    int signal_fd;
    int64_t start_ns; /* monotonic time at which the program started */
    int64_t comm_ns;  /* and at which it had its communicator */
};

enum trainer_outcome {
    TRAINER_SUCCEEDED,
    TRAINER_PAUSED,          /* max_steps reached; a checkpoint is there */
    TRAINER_STOPPED,         /* asked to stop; a checkpoint is there; *e says by whom */
    TRAINER_FAILED_TOGETHER, /* *e is the same on every rank */
    TRAINER_FAILED_ALONE,    /* other ranks do not know */
};

struct trainer;

/* Collective. NULL on every rank with the same *e, except for kind ERR_PEER_LOST, which each rank finds
 * alone. */
struct trainer *trainer_create(const struct trainer_cfg *cfg, struct err *e);
enum trainer_outcome trainer_run(struct trainer *t, struct err *e);

/* Fills in what the trainer knows; pointers are borrowed from the trainer. */
void trainer_result(const struct trainer *t, struct result *r);
void trainer_destroy(struct trainer *t); /* NULL is legal */

#endif
