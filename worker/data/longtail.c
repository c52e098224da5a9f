/* longtail - see longtail.h. */
#include "worker/data/longtail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/mt19937.h"

static double class_share_none(double factor, int c, int n_classes)
{
    (void)factor;
    (void)c;
    (void)n_classes;
    return 1;
}

static double class_share_exp(double factor, int c, int n_classes)
{
    return pow(1.0 / factor, (double)c / (double)(n_classes - 1));
}

static double class_share_step(double factor, int c, int n_classes)
{
    return c < n_classes / 2 ? 1 : 1.0 / factor;
}

/* Which share of n_max class c keeps. */
static const struct {
    const char *name;
    double (*class_share)(double factor, int c, int n_classes);
} kinds[] = {
    [LONGTAIL_NONE] = {"none", class_share_none},
    [LONGTAIL_EXP] = {"exp", class_share_exp},
    [LONGTAIL_STEP] = {"step", class_share_step},
};

static int check_config(const struct longtail_config *cfg, int n_classes, struct err *e)
{
    if (cfg->holdout_per_class < 0 || cfg->holdout_per_class > INT32_MAX)
        return err_set(e, "holdout_per_class: %lld found, 0 to %d is accepted",
                       (long long)cfg->holdout_per_class, INT32_MAX);
    if (cfg->max_per_class < 0 || cfg->max_per_class > INT32_MAX)
        return err_set(e, "long_tail max_per_class: %lld found, 0 (automatic) to %d is accepted",
                       (long long)cfg->max_per_class, INT32_MAX);
    if (cfg->kind == LONGTAIL_NONE && cfg->max_per_class != 0)
        return err_set(e,
                       "long_tail max_per_class: %lld found without a long tail, kind exp or step is needed",
                       (long long)cfg->max_per_class);
    if (cfg->kind == LONGTAIL_NONE)
        return 0;
    if (!(cfg->factor >= 1) || !isfinite(cfg->factor))
        return err_set(e, "long_tail factor: %g found, a finite number of at least 1 is accepted",
                       cfg->factor);
    if (n_classes < 2)
        return err_set(e, "long_tail kind %s needs at least 2 classes, the data have %d",
                       kinds[cfg->kind].name, n_classes);
    return 0;
}

/* n_max of class c: what kind and factor then reduce. `smallest` is the count of the smallest class. */
static int64_t full_count(const struct longtail_config *cfg, int32_t available, int32_t smallest)
{
    if (cfg->max_per_class)
        return cfg->max_per_class;
    return (cfg->kind == LONGTAIL_NONE ? available : smallest) - cfg->holdout_per_class;
}

int longtail_counts(const struct longtail_config *cfg, const int32_t *available, int n_classes,
                    int32_t *counts, struct err *e)
{
    long long holdout = cfg->holdout_per_class;
    int least = 0;

    if (check_config(cfg, n_classes, e) < 0)
        return -1;
    for (int c = 1; c < n_classes; c++)
        least = available[c] < available[least] ? c : least;
    if (available[least] <= holdout)
        return err_set(e, "class %d: no image is left to train on: %d available, %lld to hold out", least,
                       available[least], holdout);
    for (int c = 0; c < n_classes; c++) {
        int64_t full = full_count(cfg, available[c], available[least]);
        double share = kinds[cfg->kind].class_share(cfg->factor, c, n_classes);
        int64_t keep = (int64_t)((double)full * share);
        if (keep < 1)
            return err_set(e, "class %d: no image would be kept: %lld in the largest class, factor %g", c,
                           (long long)full, cfg->factor);
        if (keep + holdout > available[c])
            return err_set(e, "class %d: %lld images to keep and %lld to hold out, but only %d available", c,
                           (long long)keep, holdout, available[c]);
        counts[c] = (int32_t)keep;
    }
    return 0;
}

/* Positions of each class in file order, class after class: a counting sort. Class c begins at start[c]. */
static int32_t *group_by_class(const struct dataset *d, const int32_t *available, int32_t *start)
{
    int32_t *order = xmalloc((size_t)d->n * sizeof *order);
    int32_t *next = xmalloc((size_t)d->n_classes * sizeof *next);
    int32_t at = 0;

    for (int c = 0; c < d->n_classes; c++) {
        start[c] = next[c] = at;
        at += available[c];
    }
    for (int32_t i = 0; i < d->n; i++)
        order[next[d->labels[i]]++] = i;
    free(next);
    return order;
}

int longtail_split(const struct longtail_config *cfg, const struct dataset *d, struct split **train,
                   struct split **holdout, struct err *e)
{
    size_t k = (size_t)d->n_classes;
    int32_t *available = xcalloc(k, sizeof *available), *counts = xcalloc(k, sizeof *counts);
    int32_t *start = xcalloc(k, sizeof *start);

    dataset_class_counts(d, available);
    int rc = longtail_counts(cfg, available, d->n_classes, counts, e);
    if (rc == 0) {
        int32_t held = (int32_t)cfg->holdout_per_class, n_kept = 0, n_held = 0;
        int32_t *order = group_by_class(d, available, start);
        int32_t *kept = xmalloc((size_t)d->n * sizeof *kept), *out = xmalloc((size_t)d->n * sizeof *out);
        struct mt19937 g;
        mt19937_seed(&g, LONGTAIL_SEED);
        for (int c = 0; c < d->n_classes; c++) {
            int32_t *of_class = order + start[c];
            mt19937_shuffle(&g, of_class, available[c]);
            memcpy(kept + n_kept, of_class, (size_t)counts[c] * sizeof *kept);
            memcpy(out + n_held, of_class + available[c] - held, (size_t)held * sizeof *out);
            n_kept += counts[c];
            n_held += held;
        }
        *train = split_create(d, kept, n_kept);
        *holdout = n_held ? split_create(d, out, n_held) : NULL;
        free(order);
        free(kept);
        free(out);
    }
    free(available);
    free(counts);
    free(start);
    return rc;
}
