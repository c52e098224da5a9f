/* optim - see optim.h. */
#include "worker/train/optim.h"

#include <stdlib.h>

/* Weights lie in backward order: the last declared first. */
int optim_segments(const struct params *params, double weight_decay, struct optim_segment **out)
{
    struct optim_segment *v = xcalloc((size_t)params->n + 1, sizeof *v);
    int n = 0;

    for (int i = params->n - 1; i >= 0; i--) {
        const struct param *p = params->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        double wd = p->weight_decay < 0 ? weight_decay : p->weight_decay;
        ASSERT(n > 0 || p->offset == 0);
        if (n == 0 || v[n - 1].lr_scale != p->lr_scale || v[n - 1].weight_decay != wd) {
            if (n > 0)
                v[n - 1].count = p->offset - v[n - 1].first;
            v[n++] = (struct optim_segment){p->offset, 0, p->lr_scale, wd};
        }
    }
    if (n > 0)
        v[n - 1].count = params->n_weights - v[n - 1].first;
    *out = v;
    return n;
}

struct optim *optim_create(const struct jobspec *spec, struct params *params, struct err *e)
{
    struct backend *be = params->backend;
    size_t bytes = params->n_weights * sizeof(float);
    float *momentum = be->ops->mem_alloc(be, bytes, e);

    if (!momentum || be->ops->zero(be, momentum, bytes, e) < 0) {
        if (momentum)
            be->ops->mem_free(be, momentum);
        err_wrap(e, "momentum of the optimiser");
        return NULL;
    }
    struct optim *o = xcalloc(1, sizeof *o);
    o->params = params;
    o->momentum = momentum;
    o->momentum_factor = (float)spec->optim.momentum;
    o->nesterov = spec->optim.nesterov;
    o->n_segments = optim_segments(params, spec->optim.weight_decay, &o->segments);
    return o;
}

void optim_destroy(struct optim *o)
{
    if (!o)
        return;
    o->params->backend->ops->mem_free(o->params->backend, o->momentum);
    free(o->segments);
    free(o);
}

int optim_measure(const struct optim *o, const double *loss, struct step_scalars *s, struct err *e)
{
    const struct params *ps = o->params;

    return ps->backend->ops->flat->measure(ps->backend, ps->grads, ps->n_weights, loss, s, e);
}

int optim_step(struct optim *o, const struct step_scalars *s, struct err *e)
{
    const struct params *ps = o->params;

    for (int i = 0; i < o->n_segments; i++) {
        const struct optim_segment *seg = &o->segments[i];
        struct sgd_args a = {.lr_scale = seg->lr_scale,
                             .momentum = o->momentum_factor,
                             .weight_decay = (float)seg->weight_decay,
                             .nesterov = o->nesterov};
        if (ps->backend->ops->flat->sgd(ps->backend, ps->weights + seg->first, ps->grads + seg->first,
                                        o->momentum + seg->first, seg->count, &a, s, e) < 0)
            return -1;
    }
    return 0;
}
