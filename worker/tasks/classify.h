/* classify - evaluation of a classifier: forward programs over whole splits, hits and totals by class.
 *
 * A split is cut into batches of at most two sizes (sampler.h), so it needs at most two programs; splits
 * share programs of equal size. All are compiled by classify_add(), before training starts. Each rank runs
 * its slice of each batch; hits and totals are whole numbers summed over the ranks, so they do not depend on
 * the world size.
 *
 * Shape letters: n rows of this rank in a batch, H×W pixels, c channels, K classes, S streams.
 */
#ifndef TASKS_CLASSIFY_H
#define TASKS_CLASSIFY_H

#include "worker/data/loader.h"
#include "worker/train/task.h"

/* Appends the evaluation graph: *images is the f32 input (n,H,W,c), *logits (S·n,K), stream after stream. */
typedef int classify_build_fn(void *arg, struct graph *g, struct node **images, struct node **logits,
                              struct err *e);

struct classify_cfg {
    struct task_env env;      /* what it points to is borrowed */
    classify_build_fn *build; /* builds the same model for any number of rows */
    void *arg;
    int streams; /* logits of S streams are averaged before the prediction */
    int n_classes;
    struct augment_config augment; /* only `normalize` counts */
};

/* Sums over all ranks. */
struct classify_counts {
    int32_t *hits, *totals; /* (K); owned by the caller, zeroed and filled in by classify_run() */
    double loss_sum;        /* Σ cross entropy of the averaged logits, without any offset */
    int64_t n;
};

struct classify;

struct classify *classify_create(const struct classify_cfg *cfg);
void classify_destroy(struct classify *c); /* NULL is legal */

/* Prepares a split (borrowed). Returns its number for classify_run(), or -1. No collective. */
int classify_add(struct classify *c, const struct split *split, struct err *e);

/* Collective. Prediction is the first largest logit. */
int classify_run(struct classify *c, int which, struct classify_counts *out, struct err *e);

/* Cross entropy of one row, in doubles. */
double classify_row_loss(const float *logits, int n_classes, int label);

#endif
