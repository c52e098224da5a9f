/* diagnose - see diagnose.h. */
#include "worker/train/diagnose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/train/agree.h"

struct diagnosis diagnose_pick(const struct finding *all, int size)
{
    struct diagnosis d = {.rank = 0};

    for (int r = 0; r < size; r++)
        if (all[r].kind != FINDING_NONE && (d.first.kind == FINDING_NONE || all[r].time < d.first.time)) {
            d.first = all[r];
            d.rank = r;
        }
    for (int r = 0; r < size; r++)
        d.n_like_it += r != d.rank && d.first.kind != FINDING_NONE && all[r].kind == d.first.kind &&
                       all[r].time == d.first.time && strcmp(all[r].name, d.first.name) == 0;
    return d;
}

int diagnose_step(struct comm *comm, struct task *task, struct program *p, uint64_t seed, int64_t step,
                  struct diagnosis *out, struct err *e)
{
    struct finding own;

    if (task->ops->feed(task, p, step, e) < 0 ||
        program_find_not_finite(p, seed, (uint64_t)step, &own, e) < 0)
        return -1;
    struct finding *all = xcalloc((size_t)comm->size, sizeof *all);
    int rc = agree_gather(comm, &own, all, sizeof own, e);
    if (rc == 0)
        *out = diagnose_pick(all, comm->size);
    free(all);
    return rc;
}

/* printf shows the sign of a NaN, which means nothing. */
static const char *number(double v, char out[32])
{
    if (isnan(v))
        return "nan";
    snprintf(out, 32, "%g", v);
    return out;
}

/* "the output of layer1.0.conv1". */
static void say_what(const struct finding *f, char *out, size_t size)
{
    static const char *const forms[] = {
        [FINDING_PARAM] = "parameter %s, before the step,",
        [FINDING_INPUT] = "the input %s",
        [FINDING_VALUE] = "the output of %s",
        [FINDING_GRAD] = "the gradient of the output of %s",
        [FINDING_PARAM_GRAD] = "the gradient of %s",
        [FINDING_GRAD_SUM] = "the gradient of %s, summed over the ranks,",
    };
    const char *form = forms[f->kind], *name = strstr(form, "%s");

    snprintf(out, size, "%.*s%s%s", (int)(name - form), form, f->name, name + 2);
}

static const char *advice(const struct finding *f, int64_t step)
{
    if (f->kind == FINDING_INPUT)
        return "look at the data";
    if (f->kind == FINDING_PARAM && step == 1)
        return "look at init.weights";
    return "lower optim.lr or set train.max_grad_norm";
}

int diagnose_say(const struct diagnosis *d, int64_t step, double loss, struct err *e)
{
    const struct finding *f = &d->first;
    char what[256], where[64], a[32], b[32];

    if (f->kind == FINDING_NONE)
        return err_set_kind(
            e, ERR_NOT_FINITE,
            "step %lld: the loss was %s and something in the step not finite, but made again the "
            "same step is finite throughout: it cannot be reproduced, which points to a fault of a "
            "machine and not of the job; go on from the newest checkpoint with --resume",
            (long long)step, number(loss, a));
    say_what(f, what, sizeof what);
    if (d->n_like_it)
        snprintf(where, sizeof where, "rank %d and %d more", d->rank, d->n_like_it);
    else
        snprintf(where, sizeof where, "rank %d", d->rank);
    return err_set_kind(e, ERR_NOT_FINITE,
                        "step %lld: %s is not finite on %s (element %lld of %lld is %s); the loss is %s; %s",
                        (long long)step, what, where, (long long)f->element, (long long)f->count,
                        number(f->value, a), number(loss, b), advice(f, step));
}
