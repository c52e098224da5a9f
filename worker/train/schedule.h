/* schedule - the learning rate of every step, a pure function of the step.
 *
 * Steps count from 0; T = steps of the whole run, W = warm-up steps, both from epochs × steps per epoch
 * (rounded to the nearest step).
 *
 *   s < W      lr · (s + 1) / W                  rises linearly, never 0, and reaches lr at step W - 1
 *   constant   lr
 *   step       lr · gamma^k                      k = number of milestones m with round(m · steps per epoch)
 * <= s cosine     min_lr + (lr - min_lr) · (1 + cos(π (s - W) / (T - W))) / 2 lr at step W; min_lr would be
 * reached at step T, one past the last
 */
#ifndef TRAIN_SCHEDULE_H
#define TRAIN_SCHEDULE_H

#include "proto/jobspec.h"

struct schedule {
    enum jobspec_schedule kind;
    double lr, min_lr, gamma;
    int64_t warmup_steps, total_steps;
    int64_t milestones[JOBSPEC_MAX_MILESTONES]; /* steps */
    int n_milestones;
};

/* steps_per_epoch >= 1. */
void schedule_init(struct schedule *s, const struct jobspec *spec, int64_t steps_per_epoch);

double schedule_lr(const struct schedule *s, int64_t step);

#endif
