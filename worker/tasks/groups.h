/* groups - many-, medium- and few-shot classes of a long-tailed training set.
 *
 * By counts (Liu et al. 2019): many > many_above training images, few < few_below, medium the rest. When no
 * class has fewer than few_below, the groups are thirds of the classes in label order (class 0 is the head):
 * with K classes the first ⌈K/3⌉ are many, the next ⌈(K - ⌈K/3⌉)/2⌉ medium, the rest few.
 *
 * A group's accuracy is the unweighted mean of its classes' accuracies; it is undefined (NaN) for an empty
 * group.
 */
#ifndef TASKS_GROUPS_H
#define TASKS_GROUPS_H

#include <stdint.h>

enum group { GROUP_MANY, GROUP_MEDIUM, GROUP_FEW, GROUP_COUNT };

struct groups {
    int n_classes;
    const char *rule; /* "counts" | "thirds" */
    char text[256];   /* the rule in words, with its numbers */
    enum group *of;   /* (n_classes), owned */
    int sizes[GROUP_COUNT];
};

/* counts (n_classes): training images of each class. Never fails. */
void groups_init(struct groups *g, const int32_t *counts, int n_classes, int64_t many_above,
                 int64_t few_below);
void groups_free(struct groups *g);

/* per_class (n_classes): accuracies; classes that are NaN (no sample) are left out. */
double groups_mean(const struct groups *g, enum group which, const double *per_class);

#endif
