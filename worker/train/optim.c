/* optim - see optim.h. */
#include "worker/train/optim.h"

#include <stdlib.h>

/* What a kind keeps of each weight. */
static const struct kind {
    const char *name;
    const char *states[OPTIM_MAX_STATES]; /* ends with NULL: the last one is for the average */
} kinds[] = {
    [OPTIM_SGD] = {"sgd", {"momentum"}},
    [OPTIM_ADAM] = {"adam", {"exp_avg", "exp_avg_sq"}},
    [OPTIM_ADAMW] = {"adamw", {"exp_avg", "exp_avg_sq"}},
    [OPTIM_LARS] = {"lars", {"momentum"}},
};

static double decay_of(const struct param *p, double weight_decay)
{
    return p->weight_decay < 0 ? weight_decay : p->weight_decay;
}

/* Weights lie in backward order: the last declared first. */
int optim_segments(const struct params *params, double weight_decay, struct optim_segment **out)
{
    struct optim_segment *v = xcalloc((size_t)params->n + 1, sizeof *v);
    int n = 0;

    for (int i = params->n - 1; i >= 0; i--) {
        const struct param *p = params->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        double wd = decay_of(p, weight_decay);
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

/* --- birth and death --- */

static int check_backend(const struct optim *o, struct err *e)
{
    const struct backend_ops *ops = o->params->backend->ops;
    const struct flat_ops *f = ops->flat;
    const bool there[] = {
        [OPTIM_SGD] = f->sgd, [OPTIM_ADAM] = f->adam, [OPTIM_ADAMW] = f->adam, [OPTIM_LARS] = f->lars};

    if (!there[o->kind])
        return err_set(e, "backend %s has no optimiser %s (/optim/kind)", ops->name, kinds[o->kind].name);
    if (o->decay > 0 && !f->ema)
        return err_set(e, "backend %s has no moving average of weights (/optim/ema)", ops->name);
    return 0;
}

/* NULL is the error. The buffer is zero. */
static float *add_state(struct optim *o, const char *name, struct err *e)
{
    struct backend *be = o->params->backend;
    size_t bytes = o->params->n_weights * sizeof(float);
    float *values = be->ops->mem_alloc(be, bytes, e);

    if (values)
        o->states.v[o->states.n++] = (struct optim_state){name, values};
    if (!values || be->ops->zero(be, values, bytes, e) < 0) {
        err_wrap(e, "%s of the optimiser", name);
        return NULL;
    }
    return values;
}

static int add_states(struct optim *o, struct err *e)
{
    for (const char *const *name = kinds[o->kind].states; *name; name++)
        if (!add_state(o, *name, e))
            return -1;
    if (o->decay > 0 && !(o->average = add_state(o, "ema", e)))
        return -1;
    return 0;
}

/* Copies a table of the host into new memory of the device; NULL is the error. */
static void *to_device(struct backend *be, const void *host, size_t bytes, struct err *e)
{
    void *p = be->ops->mem_alloc(be, bytes, e);

    if (p && be->ops->upload(be, p, host, bytes, e) < 0) {
        be->ops->mem_free(be, p);
        return NULL;
    }
    return p;
}

/* Tensors in the order of the flat buffers; returns how many. */
static int64_t list_tensors(const struct params *ps, double weight_decay, struct flat_tensor *out)
{
    int64_t n = 0;

    for (int i = ps->n - 1; i >= 0; i--) {
        const struct param *p = ps->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        const bool adapts = p->shape.n_dims > 1;
        out[n++] = (struct flat_tensor){.first = (int64_t)p->offset,
                                        .count = shape_count(p->shape),
                                        .lr_scale = p->lr_scale,
                                        .weight_decay = adapts ? (float)decay_of(p, weight_decay) : 0,
                                        .adapts = adapts};
    }
    return n;
}

static int add_tables(struct optim *o, double weight_decay, struct err *e)
{
    struct backend *be = o->params->backend;
    struct lars_args *a = &o->lars;
    struct flat_tensor *tensors = xcalloc((size_t)o->params->n + 1, sizeof *tensors);

    a->n_tensors = list_tensors(o->params, weight_decay, tensors);
    a->n_chunks = flat_chunks(tensors, a->n_tensors, NULL);
    const size_t nt = (size_t)a->n_tensors, nc = (size_t)a->n_chunks;
    struct flat_chunk *chunks = xcalloc(nc + 1, sizeof *chunks);
    flat_chunks(tensors, a->n_tensors, chunks);
    a->tensors = to_device(be, tensors, nt * sizeof *tensors, e);
    a->chunks = a->tensors ? to_device(be, chunks, nc * sizeof *chunks, e) : NULL;
    a->partials = a->chunks ? be->ops->mem_alloc(be, 2 * nc * sizeof *a->partials, e) : NULL;
    a->trust = a->partials ? be->ops->mem_alloc(be, nt * sizeof *a->trust, e) : NULL;
    free(tensors);
    free(chunks);
    return a->trust ? 0 : err_wrap(e, "tables of the optimiser");
}

struct optim *optim_create(const struct jobspec *spec, struct params *params, struct err *e)
{
    const float momentum = (float)spec->optim.momentum;
    struct optim *o = xcalloc(1, sizeof *o);

    o->params = params;
    o->kind = spec->optim.kind;
    o->decay = spec->optim.ema;
    o->n_segments = optim_segments(params, spec->optim.weight_decay, &o->segments);
    o->sgd = (struct sgd_args){.momentum = momentum, .nesterov = spec->optim.nesterov};
    o->adam = (struct adam_args){.beta1 = spec->optim.beta1,
                                 .beta2 = spec->optim.beta2,
                                 .eps = (float)spec->optim.eps,
                                 .decoupled = o->kind == OPTIM_ADAMW};
    o->lars = (struct lars_args){.coefficient = spec->optim.trust_coefficient,
                                 .eps = spec->optim.eps,
                                 .momentum = momentum,
                                 .nesterov = spec->optim.nesterov};
    if (check_backend(o, e) < 0 || add_states(o, e) < 0 ||
        (o->kind == OPTIM_LARS && add_tables(o, spec->optim.weight_decay, e) < 0)) {
        optim_destroy(o);
        return NULL;
    }
    return o;
}

void optim_destroy(struct optim *o)
{
    if (!o)
        return;
    struct backend *be = o->params->backend;
    for (int i = 0; i < o->states.n; i++)
        be->ops->mem_free(be, o->states.v[i].values);
    be->ops->mem_free(be, (void *)o->lars.tensors);
    be->ops->mem_free(be, (void *)o->lars.chunks);
    be->ops->mem_free(be, o->lars.partials);
    be->ops->mem_free(be, o->lars.trust);
    free(o->segments);
    free(o);
}

/* --- steps --- */

int optim_measure(const struct optim *o, const double *loss, struct step_scalars *s, struct err *e)
{
    const struct params *ps = o->params;

    return ps->backend->ops->flat->measure(ps->backend, ps->grads, ps->n_weights, loss, s, e);
}

static int sgd_segment(struct optim *o, const struct optim_segment *seg, const struct step_scalars *s,
                       struct err *e)
{
    const struct params *ps = o->params;
    struct sgd_args a = o->sgd;

    a.lr_scale = seg->lr_scale;
    a.weight_decay = (float)seg->weight_decay;
    return ps->backend->ops->flat->sgd(ps->backend, ps->weights + seg->first, ps->grads + seg->first,
                                       o->states.v[0].values + seg->first, seg->count, &a, s, e);
}

static int adam_segment(struct optim *o, const struct optim_segment *seg, const struct step_scalars *s,
                        struct err *e)
{
    const struct params *ps = o->params;
    struct adam_args a = o->adam;

    a.lr_scale = seg->lr_scale;
    a.weight_decay = (float)seg->weight_decay;
    return ps->backend->ops->flat->adam(ps->backend, ps->weights + seg->first, ps->grads + seg->first,
                                        o->states.v[0].values + seg->first,
                                        o->states.v[1].values + seg->first, seg->count, &a, s, e);
}

static int update(struct optim *o, const struct step_scalars *s, struct err *e)
{
    const struct params *ps = o->params;
    int rc = 0;

    if (o->kind == OPTIM_LARS)
        return ps->backend->ops->flat->lars(ps->backend, ps->weights, ps->grads, o->states.v[0].values,
                                            &o->lars, s, e);
    for (int i = 0; i < o->n_segments && rc == 0; i++)
        rc = (o->kind == OPTIM_SGD ? sgd_segment : adam_segment)(o, &o->segments[i], s, e);
    return rc;
}

int optim_step(struct optim *o, const struct step_scalars *s, struct err *e)
{
    const struct params *ps = o->params;

    if (update(o, s, e) < 0)
        return -1;
    if (!o->average)
        return 0;
    return ps->backend->ops->flat->ema(ps->backend, o->average, ps->weights, ps->n_weights, o->decay, s, e);
}

/* --- the average --- */

static int copy_flat(struct optim *o, float *dst, const float *src, struct err *e)
{
    struct backend *be = o->params->backend;

    return o->average ? be->ops->copy(be, dst, src, o->params->n_weights * sizeof(float), e) : 0;
}

int optim_begin(struct optim *o, struct err *e)
{
    return copy_flat(o, o->average, o->params->weights, e);
}

int optim_use_average(struct optim *o, struct err *e)
{
    if (copy_flat(o, o->params->grads, o->params->weights, e) < 0)
        return -1;
    return copy_flat(o, o->params->weights, o->average, e);
}

int optim_use_weights(struct optim *o, struct err *e)
{
    return copy_flat(o, o->params->weights, o->params->grads, e);
}
