/* params - see params.h. */
#include "worker/engine/params.h"
#include "common/philox.h"
#include "worker/engine/backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN_FLOATS = TENSOR_ALIGN_BYTES / sizeof(float) };

struct params *params_create(struct backend *backend)
{
    struct params *ps = xcalloc(1, sizeof *ps);

    ps->backend = backend;
    return ps;
}

void params_destroy(struct params *ps)
{
    if (!ps)
        return;
    const struct backend_ops *be = ps->backend->ops;
    be->mem_free(ps->backend, ps->weights);
    be->mem_free(ps->backend, ps->grads);
    be->mem_free(ps->backend, ps->buffers);
    arena_free(&ps->arena);
    free(ps->v);
    free(ps);
}

struct param *params_find(const struct params *ps, const char *name)
{
    for (int i = 0; i < ps->n; i++)
        if (strcmp(ps->v[i]->name, name) == 0)
            return ps->v[i];
    return NULL;
}

static struct param *check_same(struct param *p, enum param_kind kind, struct shape shape, struct err *e)
{
    char a[96], b[96];

    if (p->kind == kind && shape_equal(p->shape, shape))
        return p;
    err_set(e, "parameter %s exists with shape %s, here it has %s", p->name, shape_text(p->shape, a),
            shape_text(shape, b));
    return NULL;
}

struct param *params_declare(struct params *ps, const char *name, enum param_kind kind, struct shape shape,
                             struct init init, struct err *e)
{
    struct param *p = params_find(ps, name);

    if (p)
        return check_same(p, kind, shape, e);
    if (ps->final) {
        err_set(e, "parameter %s is unknown to the training graph", name);
        return NULL;
    }
    if (ps->n == ps->cap) {
        ps->cap = ps->cap ? 2 * ps->cap : 64;
        ps->v = xrealloc(ps->v, (size_t)ps->cap * sizeof *ps->v);
    }
    p = arena_alloc(&ps->arena, sizeof *p);
    *p = (struct param){.name = arena_strdup(&ps->arena, name),
                        .kind = kind,
                        .shape = shape,
                        .init = init,
                        .lr_scale = 1,
                        .weight_decay = -1,
                        .idx = ps->n};
    ps->v[ps->n++] = p;
    return p;
}

/* Uniform in (0, 1]: safe for a logarithm. */
static double unit_open(uint32_t u)
{
    return ((double)u + 1) / 4294967296.0;
}

float init_value(struct init init, uint64_t seed, const char *name, int64_t i)
{
    if (init.kind == INIT_CONST)
        return (float)init.a;
    struct philox_key key = philox_make_key(seed, philox_stream(name));
    struct philox_block b = philox(key, (uint32_t)(i / 2), (uint32_t)(i / 2 >> 32), 0x1417u, 0);
    double u = unit_open(b.v[2 * (i % 2)]), v = unit_open(b.v[2 * (i % 2) + 1]);
    if (init.kind == INIT_UNIFORM)
        return (float)(init.a * (2 * u - 1));
    return (float)(init.a * sqrt(-2 * log(u)) * cos(2 * M_PI * v)); /* Box-Muller */
}

/* Backward order for weights: the last declared first. Returns the number of floats. */
static size_t lay_out(struct params *ps, bool weights)
{
    size_t at = 0;

    for (int k = 0; k < ps->n; k++) {
        struct param *p = ps->v[weights ? ps->n - 1 - k : k];
        if ((p->kind == PARAM_WEIGHT) != weights)
            continue;
        p->offset = at;
        at += ((size_t)shape_count(p->shape) + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
    }
    return at;
}

static int alloc_zeroed(struct backend *be, float **out, size_t n, const char *what, struct err *e)
{
    if (!(*out = be->ops->mem_alloc(be, n * sizeof(float), e)) ||
        be->ops->zero(be, *out, n * sizeof(float), e) < 0)
        return err_wrap(e, "%s", what);
    return 0;
}

static int draw_initial(const struct params *ps, struct param *p, uint64_t seed, struct err *e)
{
    int64_t n = shape_count(p->shape);
    float *host = xmalloc((size_t)n * sizeof *host);

    for (int64_t i = 0; i < n; i++)
        host[i] = init_value(p->init, seed, p->name, i);
    int rc = params_set(ps, p, host, e);
    free(host);
    return rc;
}

int params_finalize(struct params *ps, uint64_t seed, struct err *e)
{
    ASSERT(!ps->final);
    ps->n_weights = lay_out(ps, true);
    ps->n_buffers = lay_out(ps, false);
    if (alloc_zeroed(ps->backend, &ps->weights, ps->n_weights, "weights", e) < 0 ||
        alloc_zeroed(ps->backend, &ps->grads, ps->n_weights, "gradients", e) < 0 ||
        alloc_zeroed(ps->backend, &ps->buffers, ps->n_buffers, "buffers", e) < 0)
        return -1;
    ps->final = true;
    for (int i = 0; i < ps->n; i++) {
        struct param *p = ps->v[i];
        p->value = (p->kind == PARAM_WEIGHT ? ps->weights : ps->buffers) + p->offset;
        p->grad = p->kind == PARAM_WEIGHT ? ps->grads + p->offset : NULL;
        if (draw_initial(ps, p, seed, e) < 0)
            return -1;
    }
    return 0;
}

static size_t param_bytes(const struct param *p)
{
    return (size_t)shape_count(p->shape) * sizeof(float);
}

int params_get(const struct params *ps, const struct param *p, float *host, struct err *e)
{
    return ps->backend->ops->download(ps->backend, host, p->value, param_bytes(p), e);
}

int params_set(const struct params *ps, const struct param *p, const float *host, struct err *e)
{
    return ps->backend->ops->upload(ps->backend, p->value, host, param_bytes(p), e);
}

int params_get_grad(const struct params *ps, const struct param *p, float *host, struct err *e)
{
    ASSERT(p->grad);
    return ps->backend->ops->download(ps->backend, host, p->grad, param_bytes(p), e);
}
