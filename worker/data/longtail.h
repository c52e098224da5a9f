/* longtail - which training images are kept: a long-tailed (or whole) training split and a balanced
 * hold-out.
 *
 * Counts, K classes in label order, class 0 always the head:
 *   exp    n_c = floor(n_max * (1 / factor)^(c / (K - 1)))
 *   step   n_c = n_max for the first K / 2 classes, floor(n_max * (1 / factor)) for the others
 *   none   n_c = all that the hold-out leaves
 * in double precision and truncated, as the reference code of CIFAR-LT does it.
 *
 * Choice: one NumPy-legacy generator, seeded LONGTAIL_SEED, shuffles each class's positions (in file order)
 * class after class. The first n_c are kept, the LAST holdout_per_class are held out: the two never overlap,
 * and holding out may lower n_max but never changes which images come first. The choice depends neither on
 * the run's seed nor on ranks.
 */
#ifndef DATA_LONGTAIL_H
#define DATA_LONGTAIL_H

#include <stdint.h>
#include "common/err.h"
#include "worker/data/dataset.h"

enum { LONGTAIL_SEED = 0 };

enum longtail_kind { LONGTAIL_NONE, LONGTAIL_EXP, LONGTAIL_STEP };

struct longtail_config {
    enum longtail_kind kind;
    double factor;             /* head count / tail count, finite, >= 1; unused for none */
    int64_t max_per_class;     /* n_max; 0 = smallest class count - holdout_per_class; must be 0 for none */
    int64_t holdout_per_class; /* >= 0 */
};

/* Fills counts[c] = n_c from available[c], both (n_classes). Errors: a class for which n_c + holdout exceeds
 * what is available (class and the three numbers are named), a class that would keep no image, a factor
 * below 1 or not finite, exp or step with fewer than two classes, negative numbers. */
int longtail_counts(const struct longtail_config *cfg, const int32_t *available, int n_classes,
                    int32_t *counts, struct err *e);

/* Splits the training part d. Both splits list class after class, each class in its shuffled order. *holdout
 * is NULL when holdout_per_class is 0. The caller destroys both. */
int longtail_split(const struct longtail_config *cfg, const struct dataset *d, struct split **train,
                   struct split **holdout, struct err *e);

#endif
