/* groups - see groups.h. */
#include "worker/tasks/groups.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/err.h"

static void by_counts(struct groups *g, const int32_t *counts, int64_t many_above, int64_t few_below)
{
    g->rule = "counts";
    for (int c = 0; c < g->n_classes; c++)
        g->of[c] = counts[c] > many_above ? GROUP_MANY : counts[c] < few_below ? GROUP_FEW : GROUP_MEDIUM;
    snprintf(
        g->text, sizeof g->text,
        "by training images of a class: many > %lld, few < %lld, medium the rest; a group's accuracy is the "
        "unweighted mean over its classes",
        (long long)many_above, (long long)few_below);
}

static void by_thirds(struct groups *g, int64_t few_below)
{
    int k = g->n_classes, many = (k + 2) / 3, medium = (k - many + 1) / 2;

    g->rule = "thirds";
    for (int c = 0; c < k; c++)
        g->of[c] = c < many ? GROUP_MANY : c < many + medium ? GROUP_MEDIUM : GROUP_FEW;
    snprintf(
        g->text, sizeof g->text,
        "no class has fewer than %lld training images, so thirds of the classes in label order: the first %d "
        "many, the next %d medium, the last %d few; a group's accuracy is the unweighted mean over its "
        "classes",
        (long long)few_below, many, medium, k - many - medium);
}

void groups_init(struct groups *g, const int32_t *counts, int n_classes, int64_t many_above,
                 int64_t few_below)
{
    bool any_few = false;

    *g = (struct groups){.n_classes = n_classes};
    g->of = xcalloc((size_t)n_classes, sizeof *g->of);
    for (int c = 0; c < n_classes; c++)
        any_few |= counts[c] < few_below;
    if (any_few)
        by_counts(g, counts, many_above, few_below);
    else
        by_thirds(g, few_below);
    for (int c = 0; c < n_classes; c++)
        g->sizes[g->of[c]]++;
}

void groups_free(struct groups *g)
{
    free(g->of);
    g->of = NULL;
}

double groups_mean(const struct groups *g, enum group which, const double *per_class)
{
    double sum = 0;
    int n = 0;

    for (int c = 0; c < g->n_classes; c++)
        if (g->of[c] == which && !isnan(per_class[c])) {
            sum += per_class[c];
            n++;
        }
    return n ? sum / n : NAN;
}
