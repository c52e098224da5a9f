/* schedule - see schedule.h. */
#include "worker/train/schedule.h"

#include <math.h>

void schedule_init(struct schedule *s, const struct jobspec *spec, int64_t steps_per_epoch)
{
    double spe = (double)steps_per_epoch;

    *s = (struct schedule){
        .kind = spec->optim.schedule.kind,
        .lr = spec->optim.lr,
        .min_lr = spec->optim.schedule.min_lr,
        .gamma = spec->optim.schedule.gamma,
        .warmup_steps = llround(spec->optim.schedule.warmup_epochs * spe),
        .total_steps = spec->train.epochs * steps_per_epoch,
        .n_milestones = spec->optim.schedule.n_milestones,
    };
    for (int i = 0; i < s->n_milestones; i++)
        s->milestones[i] = llround(spec->optim.schedule.milestones[i] * spe);
}

static double after_warmup(const struct schedule *s, int64_t step)
{
    double lr = s->lr;

    switch (s->kind) {
    case SCHEDULE_CONSTANT:
        break;
    case SCHEDULE_STEP:
        for (int i = 0; i < s->n_milestones; i++)
            if (s->milestones[i] <= step)
                lr *= s->gamma;
        break;
    case SCHEDULE_COSINE: {
        /* Only a step beyond the run could make the span 0. */
        double span = (double)(s->total_steps - s->warmup_steps);
        double t = span > 0 ? (double)(step - s->warmup_steps) / span : 1;
        lr = s->min_lr + (s->lr - s->min_lr) * (1 + cos(M_PI * t)) / 2;
        break;
    }
    }
    return lr;
}

double schedule_lr(const struct schedule *s, int64_t step)
{
    if (step < s->warmup_steps)
        return s->lr * (double)(step + 1) / (double)s->warmup_steps;
    return after_warmup(s, step);
}
