/* inspect - see inspect.h. */
#include "worker/engine/inspect.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/program_impl.h"

enum { TIME_PARAMS = -2, TIME_INPUTS = -1 };

struct inspection {
    struct backend *be;
    struct finding *out;
    char *host; /* room for the largest value or gradient */
    size_t host_bytes;
};

static double element(const void *v, int64_t i, enum dtype t)
{
    if (t == DTYPE_F64)
        return ((const double *)v)[i];
    if (t == DTYPE_F32)
        return ((const float *)v)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)v)[i] << 16; /* bf16 is the upper half of an f32 */
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* First element that is not finite, or -1. */
static int64_t first_bad(const void *v, int64_t count, enum dtype t, double *value)
{
    for (int64_t i = 0; i < count; i++) {
        *value = element(v, i, t);
        if (!isfinite(*value))
            return i;
    }
    return -1;
}

/* Looks at a device tensor, unless something was found before. Whole numbers are always finite. */
static int look(struct inspection *in, enum finding_kind kind, int time, const char *name, const void *device,
                struct shape shape, enum dtype t, struct err *e)
{
    struct finding *f = in->out;
    int64_t count = shape_count(shape);
    double value;

    if (f->kind != FINDING_NONE || t == DTYPE_I32 || count == 0)
        return 0;
    ASSERT((size_t)count * dtype_bytes(t) <= in->host_bytes);
    if (in->be->ops->download(in->be, in->host, device, (size_t)count * dtype_bytes(t), e) < 0)
        return err_wrap(e, "%s", name);
    int64_t at = first_bad(in->host, count, t, &value);
    if (at < 0)
        return 0;
    *f = (struct finding){.kind = kind, .time = time, .element = at, .count = count, .value = value};
    snprintf(f->name, sizeof f->name, "%s", name);
    return 0;
}

static int look_at_params(struct inspection *in, const struct program *p, struct err *e)
{
    const struct params *ps = p->graph->params;

    for (int i = 0; i < ps->n; i++) {
        const struct param *prm = ps->v[i];
        if (prm->kind != PARAM_BUFFER &&
            look(in, FINDING_PARAM, TIME_PARAMS, prm->name, prm->value, prm->shape, DTYPE_F32, e) < 0)
            return -1;
    }
    return 0;
}

static int look_at_inputs(struct inspection *in, const struct program *p, struct err *e)
{
    for (int i = 0; i < p->graph->n_nodes; i++) {
        const struct node *n = p->graph->nodes[i];
        if (n->op == OP_INPUT &&
            look(in, FINDING_INPUT, TIME_INPUTS, n->name, p->steps[i].call.out, n->shape, n->dtype, e) < 0)
            return -1;
    }
    return 0;
}

/* This rank's share of a parameter's gradient. In micro-shards it is several sums, and call.din is the first.
 */
static int look_at_param_grad(struct inspection *in, const struct program *p, int time,
                              const struct param *prm, const void *first, struct err *e)
{
    int rc = look(in, FINDING_PARAM_GRAD, time, prm->name, first, prm->shape, DTYPE_F32, e);

    for (int r = 1; rc == 0 && p->sharded && r < p->sharded->sum->n_roots; r++)
        rc = look(in, FINDING_PARAM_GRAD, time, prm->name,
                  p->sharded->more_grads + (size_t)(r - 1) * p->graph->params->n_weights + prm->offset,
                  prm->shape, DTYPE_F32, e);
    return rc;
}

/* The gradients that node i's backward wrote or added to. */
static int look_at_grads(struct inspection *in, const struct program *p, int i, struct err *e)
{
    const struct node *n = p->graph->nodes[i];
    int time = 2 * p->graph->n_nodes - 1 - i;

    for (int k = 0; k < n->n_inputs; k++) {
        const struct node *x = n->in[k];
        const void *din = p->steps[i].call.din[k];
        if (!din)
            continue;
        int rc = x->op == OP_PARAM ? look_at_param_grad(in, p, time, x->param, din, e)
                                   : look(in, FINDING_GRAD, time, x->name, din, x->shape, x->grad_dtype, e);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* exec.c calls it when node i's kernel has run, and nothing that it wrote has died. */
static int after_node(void *arg, const struct program *p, int i, bool backward, struct err *e)
{
    struct inspection *in = arg;
    const struct node *n = p->graph->nodes[i];

    if (backward)
        return look_at_grads(in, p, i, e);
    return look(in, FINDING_VALUE, i, n->name, p->steps[i].call.out, n->shape, n->dtype, e);
}

/* Ranks may each be finite and their sum not. */
static int look_at_sums(struct inspection *in, const struct program *p, struct err *e)
{
    const struct params *ps = p->graph->params;

    for (int i = 0; i < ps->n; i++) {
        const struct param *prm = ps->v[i];
        if (prm->kind == PARAM_WEIGHT && look(in, FINDING_GRAD_SUM, 2 * p->graph->n_nodes, prm->name,
                                              prm->grad, prm->shape, DTYPE_F32, e) < 0)
            return -1;
    }
    return 0;
}

static size_t largest(const struct program *p)
{
    size_t most = sizeof(double);

    for (int i = 0; i < p->graph->n_nodes; i++) {
        const struct node *n = p->graph->nodes[i];
        size_t value = dtype_bytes(n->dtype), grad = dtype_bytes(n->grad_dtype); /* may be wider: graph.h */
        size_t bytes = (size_t)shape_count(n->shape) * (value > grad ? value : grad);
        most = bytes > most ? bytes : most;
    }
    for (int i = 0; i < p->graph->params->n; i++) {
        size_t bytes = (size_t)shape_count(p->graph->params->v[i]->shape) * sizeof(float);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int run(struct inspection *in, struct program *p, uint64_t seed, uint64_t step, struct err *e)
{
    if (look_at_params(in, p, e) < 0 || look_at_inputs(in, p, e) < 0 || program_forward(p, seed, step, e) < 0)
        return -1;
    if (p->loss_grad && (program_backward(p, e) < 0 || look_at_sums(in, p, e) < 0))
        return -1;
    return 0;
}

int program_find_not_finite(struct program *p, uint64_t seed, uint64_t step, struct finding *out,
                            struct err *e)
{
    const size_t bytes = largest(p);
    struct inspection in = {.be = p->cfg.backend, .out = out, .host = malloc(bytes), .host_bytes = bytes};

    *out = (struct finding){0};
    if (!in.host)
        return err_set(e, "no memory to look at a tensor of %zu bytes", bytes);
    p->watch = (struct watch){after_node, &in};
    int rc = run(&in, p, seed, step, e);
    p->watch = (struct watch){0};
    free(in.host);
    return rc;
}
