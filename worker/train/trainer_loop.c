/* trainer_loop - the steps of a run; see trainer.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/clock.h"
#include "common/fsutil.h"
#include "worker/train/agree.h"
#include "worker/train/signals.h"
#include "worker/train/trainer_impl.h"
#include "worker/train/weights.h"

enum { CONSOLE_EVERY_MS = 1000 };

static double pace_per_s(const struct pace *p)
{
    return p->ns > 0 ? (double)p->images * 1e9 / (double)p->ns : NAN;
}

/* Seconds of training left at the pace of this process so far. */
static double eta_s(const struct trainer *t)
{
    if (!t->steps_done)
        return NAN;
    return (double)(t->n_steps - t->at.step) * (double)t->whole.ns / (double)t->steps_done / 1e9;
}

void trainer_progress(struct trainer *t, const char *phase)
{
    t->phase = phase;
    if (!t->cfg.report)
        return;
    report_progress(t->cfg.report, &(struct report_progress){.phase = phase,
                                                             .step = t->at.step,
                                                             .n_steps = t->n_steps,
                                                             .epoch = trainer_epoch(t),
                                                             .n_epochs = t->cfg.spec->train.epochs,
                                                             .loss = t->loss,
                                                             .images_per_s = t->images_per_s,
                                                             .eta_s = eta_s(t),
                                                             .checkpoint_step = t->checkpoint_step});
}

/* What clocks and counters say now; the pace of a step is the difference. */
static struct pace read_clocks(const struct trainer *t)
{
    return (struct pace){.ns = clock_mono_ns(),
                         .data_wait_ns = t->task->ops->data_wait_ns(t->task),
                         .comm_wait_ns = comm_wait_ns(t->cfg.device_comm)};
}

static void add_pace(struct trainer *t, const struct pace *from)
{
    struct pace *all[] = {&t->interval, &t->epoch, &t->whole}, now = read_clocks(t);

    for (int i = 0; i < 3; i++) {
        all[i]->images += t->graph->rows.total;
        all[i]->ns += now.ns - from->ns;
        all[i]->data_wait_ns += now.data_wait_ns - from->data_wait_ns;
        all[i]->comm_wait_ns += now.comm_wait_ns - from->comm_wait_ns;
    }
}

static void tell_person(struct trainer *t)
{
    int64_t now = clock_mono_ns();

    if (!t->cfg.console || now - t->console_ns < (int64_t)CONSOLE_EVERY_MS * 1000000)
        return;
    t->console_ns = now;
    log_info(t->cfg.console, "step %lld/%lld epoch %lld/%lld: loss %.4f, lr %.4g, %.0f images/s, %.0f s left",
             (long long)t->at.step, (long long)t->n_steps, (long long)trainer_epoch(t),
             (long long)t->cfg.spec->train.epochs, t->loss, t->lr, t->images_per_s, eta_s(t));
}

static int log_step(struct trainer *t, struct err *e)
{
    struct record r = {.kind = "step", .step = t->at.step, .epoch = trainer_epoch(t)};

    struct pace interval = t->interval;
    t->images_per_s = pace_per_s(&interval);
    t->interval = (struct pace){0};
    tell_person(t);
    if (!t->rank0)
        return 0;
    record_add(&r, "", "loss", t->loss);
    record_add(&r, "", "lr", t->lr);
    record_add(&r, "", "images_per_s", t->images_per_s);
    record_add(&r, "", "data_wait_s", (double)interval.data_wait_ns / 1e9);
    if (comm_wait_ns(t->cfg.device_comm) >= 0)
        record_add(&r, "", "comm_wait_s", (double)interval.comm_wait_ns / 1e9);
    return recorder_write(&t->recorder, &r, e);
}

/* The mean over the steps of the epoch: the sum goes through checkpoints, so it has the same bits after one.
 */
static int log_epoch(struct trainer *t, struct err *e)
{
    struct record r = {.kind = "epoch", .step = t->at.step, .epoch = trainer_epoch(t)};

    record_add(&r, "", "epoch_loss", t->at.epoch_loss_sum / (double)t->steps_per_epoch);
    record_add(&r, "", "epoch_images_per_s", pace_per_s(&t->epoch));
    t->at.epoch_loss_sum = 0;
    t->epoch = (struct pace){0};
    return t->rank0 ? recorder_write(&t->recorder, &r, e) : 0;
}

static int check_flat(struct trainer *t, const char *what, const float *values, struct err *e)
{
    const struct params *ps = t->params;
    double sq;

    if (ps->backend->ops->flat->sumsq(ps->backend, values, ps->n_weights, &sq, e) < 0)
        return -1;
    if (isfinite(sq))
        return 0;
    err_set_kind(e, ERR_NOT_FINITE,
                 "step %lld: the update left %s that are not finite, no checkpoint of them is written; lower "
                 "optim.lr or set train.max_grad_norm",
                 (long long)t->at.step, what);
    return trainer_together(t, -1, e);
}

/* An update can overflow although its gradient was finite: no run could go on from such weights, and Adam
 * would never again move one whose mean square is infinite. All ranks hold the same, so all come to the same
 * end. */
static int check_updated(struct trainer *t, struct err *e)
{
    const struct optim_states *states = &t->optim->states;
    int rc = check_flat(t, "weights", t->params->weights, e);

    for (int i = 0; i < states->n && rc == 0; i++)
        rc = check_flat(t, "values of the optimiser", states->v[i].values, e);
    return rc;
}

static int save_checkpoint(struct trainer *t, struct err *e)
{
    int64_t from = clock_mono_ns();
    const char *before = t->phase;
    enum heart_phase heart = trainer_heart(t, HEART_CHECKPOINT);
    int rc = 0;

    if (trainer_check_drift(t, e) < 0 || check_updated(t, e) < 0)
        return -1;
    trainer_progress(t, "checkpoint");
    if (t->rank0) {
        rc = recorder_sync(&t->recorder, e);
        if (rc == 0)
            rc = checkpoint_save(&t->checkpoint, &t->at, t->params, &t->optim->states, e);
    }
    if (trainer_together(t, agree_outcome_rank0(t->cfg.comm, rc, e), e) < 0)
        return -1;
    t->checkpoint_step = t->at.step;
    t->checkpoint_ns += clock_mono_ns() - from;
    log_info(t->cfg.log, "checkpoint of step %lld written", (long long)t->at.step);
    trainer_progress(t, before);
    trainer_heart(t, heart);
    return 0;
}

static bool every(int64_t period, int64_t n)
{
    return period > 0 && n % period == 0;
}

/* What follows a step: lines, validation, checkpoint. `last`: the loop ends here. */
static int after_step(struct trainer *t, const struct step_scalars *v, bool last, struct err *e)
{
    const struct jobspec *spec = t->cfg.spec;
    bool epoch_ends = t->at.step % t->steps_per_epoch == 0, ends = t->at.step == t->n_steps;

    t->loss = v->loss;
    t->lr = schedule_lr(&t->schedule, t->at.step - 1);
    t->at.epoch_loss_sum += v->loss;
    if (trainer_receipt(t, v->loss, e) < 0)
        return -1;
    if ((every(spec->train.log_every_steps, t->at.step) || last) && log_step(t, e) < 0)
        return -1;
    if (epoch_ends && log_epoch(t, e) < 0)
        return -1;
    if (ends || (epoch_ends && every(spec->eval.every_epochs, trainer_epoch(t))))
        if (trainer_validate(t, true, e) < 0)
            return -1;
    if (last || v->checkpoint > 0 || every(spec->checkpoint.every_steps, t->at.step))
        if (save_checkpoint(t, e) < 0)
            return -1;
    trainer_progress(t, "train");
    return 0;
}

static void say_who_stopped(const struct trainer *t, struct err *e)
{
    char name[32];

    if (t->stop_signal)
        err_set_kind(e, ERR_INTERRUPTED, "stopped by %s after step %lld", signals_name(t->stop_signal, name),
                     (long long)t->at.step);
    else
        err_set_kind(e, ERR_INTERRUPTED, "stopped by %s after step %lld",
                     t->coordinator_stops ? "the coordinator" : "a signal to another rank",
                     (long long)t->at.step);
}

/* 1: asked to stop. 0: reached end_step. -1. */
static int run_steps(struct trainer *t, struct err *e)
{
    bool stop = false;

    t->phase = "train";
    while (!stop && t->at.step < t->end_step) {
        struct step_scalars v;
        struct pace from = read_clocks(t);
        if (!t->first_step_ns)
            t->first_step_ns = from.ns;
        if (trainer_step(t, &v, e) < 0)
            return -1;
        add_pace(t, &from);
        if (!t->steps_done++)
            t->first_step_end_ns = clock_mono_ns();
        stop = v.stop > 0;
        if (after_step(t, &v, stop || t->at.step == t->end_step, e) < 0)
            return -1;
    }
    return stop;
}

/* The end of a run that has made all its steps: the test set, and the weights for inference. */
static int finish(struct trainer *t, struct err *e)
{
    int rc = 0;

    /* A run that was resumed at its very end has the validation's line already, but not its numbers. */
    if (t->validated_step != t->at.step && trainer_validate(t, false, e) < 0)
        return -1;
    if (trainer_test(t, e) < 0)
        return -1;
    trainer_progress(t, "finish");
    trainer_heart(t, HEART_FINISH);
    if (t->rank0) {
        char *path = fs_join(t->cfg.run_dir, "model.safetensors");
        rc = optim_use_average(t->optim, e);
        if (rc == 0)
            rc = weights_save(path, t->params, t->task->ops->train_only, t->at.step, NULL, e);
        if (rc == 0)
            rc = optim_use_weights(t->optim, e);
        free(path);
        if (rc == 0)
            rc = recorder_sync(&t->recorder, e);
    }
    return trainer_together(t, agree_outcome_rank0(t->cfg.comm, rc, e), e);
}

enum trainer_outcome trainer_run(struct trainer *t, struct err *e)
{
    enum trainer_outcome failed[] = {TRAINER_FAILED_ALONE, TRAINER_FAILED_TOGETHER};
    int rc = run_steps(t, e);

    if (rc < 0)
        return failed[t->together];
    if (rc > 0) {
        say_who_stopped(t, e);
        return TRAINER_STOPPED;
    }
    if (t->at.step < t->n_steps)
        return TRAINER_PAUSED;
    return finish(t, e) < 0 ? failed[t->together] : TRAINER_SUCCEEDED;
}
