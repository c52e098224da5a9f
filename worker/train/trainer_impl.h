/* trainer_impl - what trainer.c builds and trainer_loop.c runs; private to trainer*.c. */
#ifndef TRAIN_TRAINER_IMPL_H
#define TRAIN_TRAINER_IMPL_H

#include "worker/train/checkpoint.h"
#include "worker/train/optim.h"
#include "worker/train/recorder.h"
#include "worker/train/schedule.h"
#include "worker/train/trainer.h"

/* Training alone: images of all ranks; time, and how much of it this rank waited for data and for other
 * ranks. */
struct pace {
    int64_t images, ns, data_wait_ns, comm_wait_ns;
};

struct trainer {
    struct trainer_cfg cfg;
    bool rank0;

    struct params *params;
    struct task *task;
    int64_t *counts; /* rows of the global mini-batch on each rank */
    struct graph *graph;
    struct task_graph built;
    struct program *program;
    struct optim *optim;
    struct step_scalars *scalars; /* device */
    void *replay;                 /* of a recorded step, where the backend records */
    struct schedule schedule;
    int64_t steps_per_epoch, n_steps, end_step; /* end_step: n_steps or max_steps */

    struct hash_hex data_hash;
    struct checkpoint checkpoint;
    struct checkpoint_state at;
    int64_t agreed_step;     /* after which all ranks last held the same weights and optimiser state */
    int fault_flip;          /* pass counter of the fault point train.flip_weight.RANK */
    int fault_step;          /* and of train.step.RANK */
    bool has_faults;         /* the environment had any at the start */
    int64_t checkpoint_step; /* newest complete one; -1: none */

    struct recorder recorder; /* rank 0 */
    bool recording;           /* recorder is open */
    struct dump dump;
    int64_t console_ns; /* when the last line for a person was written */

    const char *phase;
    double loss, lr, images_per_s;            /* of the last logged step; NaN: none yet */
    struct pace interval, epoch, whole;       /* since the last logged step; in this epoch; in this process */
    int64_t data_ns, compile_ns;              /* of the start */
    int64_t first_step_ns, first_step_end_ns; /* when it began and ended; 0: not yet */
    int64_t eval_ns, checkpoint_ns, steps_done;
    int64_t validated_step; /* step of `validation`; -1: none */
    cJSON *validation, *test;
    int stop_signal;        /* that this rank got; 0: none */
    bool coordinator_stops; /* rank 0 */
    bool together;          /* the failure being returned is known to all ranks */
};

/* Outcome of agree_*() for trainer_run(): notes that the failure, if any, is everyone's. */
int trainer_together(struct trainer *t, int rc, const struct err *e);

/* Epochs finished. */
static inline int64_t trainer_epoch(const struct trainer *t)
{
    return t->at.step / t->steps_per_epoch;
}

/* Like trainer_progress(), for heartbeats. */
static inline enum heart_phase trainer_heart(struct trainer *t, enum heart_phase phase)
{
    return heartbeat_phase(t->cfg.heart, phase);
}

/* Tells the coordinator where we are. */
void trainer_progress(struct trainer *t, const char *phase);

/* At fixed steps: compares the ranks' states and adds a receipt. Collective. (trainer_receipt.c) */
int trainer_receipt(struct trainer *t, double loss, struct err *e);

/* Fails, on all ranks, when one holds other weights or optimiser state than the others. Done at most once a
 * step. Collective. */
int trainer_check_drift(struct trainer *t, struct err *e);

/* Makes the next step; *out is what the ranks voted. Collective. (trainer_step.c) */
int trainer_step(struct trainer *t, struct step_scalars *out, struct err *e);

/* Evaluates a split, if it exists; writes a line when `record`. Collective. (trainer_eval.c) */
int trainer_validate(struct trainer *t, bool record, struct err *e);
int trainer_test(struct trainer *t, struct err *e);

#endif
