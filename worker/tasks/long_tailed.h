/* long_tailed - image classification from a long-tailed training set, with or without BatchFormer: the task
 * "long_tailed". */
#ifndef TASKS_LONG_TAILED_H
#define TASKS_LONG_TAILED_H

#include "worker/nn/batchformer.h"
#include "worker/train/task.h"

extern const struct task_ops long_tailed_task;

/* What the ranks exchange when the spec says "auto": the cheaper of the two by a small model, for features of
 * width c. Per remote row of the mini-batch, forward and backward:
 *   keys and values   2 · 2c floats on the wire
 *   features          2 · c floats on the wire, and the projection to K|V done again here: 3 · 4c² FLOP
 * (forward, and the two products of backward) at 10⁹ bytes/s (a 10 Gbit/s network) and 5 · 10¹⁰ FLOP/s (a few
 * CPU cores). Both grow with the same number of rows, so only c decides; one rank gathers nothing. */
enum gather_kind long_tailed_gather(int world_size, int64_t c);

#endif
