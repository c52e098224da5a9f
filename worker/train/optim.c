/* optim - see optim.h. */
#include "worker/train/optim.h"

#include <math.h>
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

double optim_grad_norm(const struct optim *o)
{
    const struct params *ps = o->params;

    return sqrt(ps->backend->ops->flat->sumsq(ps->grads, ps->n_weights));
}

void optim_clip(struct optim *o, double norm, double max_norm)
{
    const struct params *ps = o->params;
    double factor = max_norm / (norm + 1e-6);

    if (factor < 1)
        ps->backend->ops->flat->scale(ps->grads, ps->n_weights, (float)factor);
}

void optim_step(struct optim *o, double lr)
{
    const struct params *ps = o->params;

    for (int i = 0; i < o->n_segments; i++) {
        const struct optim_segment *s = &o->segments[i];
        struct sgd_args a = {.lr = (float)(lr * s->lr_scale),
                             .momentum = o->momentum_factor,
                             .weight_decay = (float)s->weight_decay,
                             .nesterov = o->nesterov};
        ps->backend->ops->flat->sgd(ps->weights + s->first, ps->grads + s->first, o->momentum + s->first,
                                    s->count, &a);
    }
}
