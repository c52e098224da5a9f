/* trainer_step - one training step; see trainer.h.
 *
 * Order: feed → tell the device what the step must know (step_scalars) → forward → backward → measure → vote
 * → update → read the scalars back. What lies between telling and reading is one fixed piece of work on the
 * device, with no question to the host in it, so that a GPU replays it from the third step on; meanwhile the
 * host prepares the next mini-batch. Two steps are different: the one that is dumped stops between vote and
 * update, and one that is not finite is made again by diagnose.c.
 */
#include <stdio.h>
#include "common/fault.h"
#include "worker/train/diagnose.h"
#include "worker/train/signals.h"
#include "worker/train/trainer_impl.h"

enum { DIGEST_LIMBS = 4, LIMB_BITS = 16 };

static void put_digest(struct step_scalars *s, uint64_t digest)
{
    for (int i = 0; i < DIGEST_LIMBS; i++)
        s->digest[i] = (double)(digest >> (i * LIMB_BITS) & 0xffff);
}

/* The sum of the ranks' digests mod 2^64: a part may have grown beyond its 16 bits. */
static uint64_t digest_of_all(const struct step_scalars *s)
{
    uint64_t sum = 0;

    for (int i = 0; i < DIGEST_LIMBS; i++)
        sum += (uint64_t)s->digest[i] << (i * LIMB_BITS);
    return sum;
}

/* What this rank has been asked since the last step. */
static void add_requests(struct trainer *t, struct step_scalars *s)
{
    unsigned got = signals_take(t->cfg.signal_fd, &t->stop_signal);
    unsigned told = t->cfg.report ? report_take_commands(t->cfg.report) : 0;

    t->coordinator_stops |= (told & REPORT_STOP) != 0;
    s->stop = (got & SIGNALS_STOP) || (told & REPORT_STOP);
    s->checkpoint = (got & SIGNALS_CHECKPOINT) || (told & REPORT_CHECKPOINT);
}

static int tell_device(struct trainer *t, struct err *e)
{
    struct backend *be = t->cfg.backend;
    struct step_scalars s = {.lr = schedule_lr(&t->schedule, t->at.step),
                             .update = (double)(t->at.step + 1),
                             .max_grad_norm = t->cfg.spec->train.max_grad_norm};

    put_digest(&s, t->task->ops->batch_digest(t->task));
    add_requests(t, &s);
    if (be->ops->upload(be, t->scalars, &s, sizeof s, e) < 0)
        return -1;
    return program_begin(t->program, t->cfg.spec->seed, (uint64_t)t->at.step, e);
}

/* Up to the vote: gradients are then those of the global mini-batch, and nothing was updated. */
static int find_gradients(struct trainer *t, struct err *e)
{
    trainer_heart(t, HEART_FORWARD);
    if (program_run(t->program, e) < 0)
        return -1;
    trainer_heart(t, HEART_BACKWARD);
    if (program_backward(t->program, e) < 0 ||
        optim_measure(t->optim, program_loss_share(t->program), t->scalars, e) < 0)
        return -1;
    trainer_heart(t, HEART_VOTE);
    return comm_all_reduce(t->cfg.device_comm, &t->scalars->loss, STEP_VOTE_COUNT, DTYPE_F64, e);
}

static int update(struct trainer *t, struct err *e)
{
    trainer_heart(t, HEART_UPDATE);
    return optim_step(t->optim, t->scalars, e);
}

static int whole_step(void *arg, struct err *e)
{
    struct trainer *t = arg;

    return find_gradients(t, e) < 0 ? -1 : update(t, e);
}

static int do_step(struct trainer *t, struct err *e)
{
    struct backend *be = t->cfg.backend;

    trainer_heart(t, HEART_FORWARD);
    return be->ops->replay ? be->ops->replay(be, &t->replay, whole_step, t, e) : whole_step(t, e);
}

/* Rank 0 keeps a copy of the gradients before they are used; every rank makes this step unrecorded. */
static int do_dumped_step(struct trainer *t, struct err *e)
{
    if (find_gradients(t, e) < 0 || (t->rank0 && dump_take_grads(&t->dump, t->params, e) < 0))
        return -1;
    return update(t, e);
}

/* The device has its work; what it is fed next can be on its way. */
static int prepare_next(struct trainer *t, struct err *e)
{
    const struct task_ops *ops = t->task->ops;
    int64_t next = t->at.step + 1;

    return ops->feed_ahead && next < t->end_step ? ops->feed_ahead(t->task, t->program, next, e) : 0;
}

/* Waits for the device, within the time that a lost rank is given. */
static int read_back(struct trainer *t, struct step_scalars *out, struct err *e)
{
    struct backend *be = t->cfg.backend;

    if (comm_sync(t->cfg.device_comm, "a training step", e) < 0)
        return -1;
    return be->ops->download(be, out, t->scalars, sizeof *out, e);
}

/* All ranks hold the same sums, so all come here and to the same end. The run ends: nothing may be saved any
 * more, for the diagnosis updates the running statistics once too often. */
static int check_finite(struct trainer *t, const struct step_scalars *s, struct err *e)
{
    struct diagnosis d;

    if (s->loss_not_finite == 0 && s->grad_not_finite == 0)
        return 0;
    log_warn(t->cfg.log,
             "step %lld is not finite (loss on %d ranks, gradient on %d): making it again to see where",
             (long long)t->at.step + 1, (int)s->loss_not_finite, (int)s->grad_not_finite);
    if (diagnose_step(t->cfg.comm, t->task, t->program, t->cfg.spec->seed, t->at.step, &d, e) < 0)
        return err_wrap(e, "step %lld is not finite; making it again", (long long)t->at.step + 1);
    return trainer_together(t, diagnose_say(&d, t->at.step + 1, s->loss, e), e);
}

/* Fault point "train.step.RANK": "loop" hangs this rank in a step, "nap" makes its steps slow. */
static void pass_fault(struct trainer *t)
{
    char point[32];

    if (!t->has_faults)
        return;
    snprintf(point, sizeof point, "train.step.%d", t->cfg.comm->rank);
    fault_hit(point, &t->fault_step);
}

int trainer_step(struct trainer *t, struct step_scalars *out, struct err *e)
{
    int64_t done = t->at.step + 1;
    bool dumps = t->dump.step == done;

    heartbeat_step_begin(t->cfg.heart);
    trainer_heart(t, HEART_DATA);
    pass_fault(t);

    if (t->task->ops->feed(t->task, t->program, t->at.step, e) < 0 || tell_device(t, e) < 0 ||
        (dumps ? do_dumped_step(t, e) : do_step(t, e)) < 0 || prepare_next(t, e) < 0 ||
        read_back(t, out, e) < 0 || check_finite(t, out, e) < 0)
        return -1;
    if (dumps && t->rank0 && dump_write(&t->dump, t->params, out->loss, e) < 0)
        return -1;
    t->at.step = done;
    heartbeat_step_end(t->cfg.heart, done);
    trainer_heart(t, HEART_LOG);
    receipts_feed(&t->at.receipts, digest_of_all(out));
    return 0;
}
