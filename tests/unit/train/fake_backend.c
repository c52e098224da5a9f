/* fake_backend - see fake_backend.h. */
#include "fake_backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *mem_alloc(struct backend *be, size_t bytes, struct err *e)
{
    (void)be;
    void *p = aligned_alloc(TENSOR_ALIGN_BYTES, align_up(bytes ? bytes : 1));
    if (!p)
        err_set(e, "no memory");
    return p;
}

static void mem_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static int copy_bytes(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    (void)be;
    (void)e;
    memcpy(dst, src, bytes);
    return 0;
}

static int zero(struct backend *be, void *dst, size_t bytes, struct err *e)
{
    (void)be;
    (void)e;
    memset(dst, 0, bytes);
    return 0;
}

static int sgd(struct backend *be, float *w, float *g, float *m, size_t n, const struct sgd_args *a,
               const struct step_scalars *s, struct err *e)
{
    double lr = s->lr * a->lr_scale, c = 1;

    (void)be;
    (void)e;
    if (s->loss_not_finite > 0 || s->grad_not_finite > 0)
        return 0;
    if (s->max_grad_norm > 0 && s->max_grad_norm < s->grad_norm + 1e-6)
        c = s->max_grad_norm / (s->grad_norm + 1e-6);
    for (size_t i = 0; i < n; i++) {
        g[i] = (float)(c * g[i] + a->weight_decay * w[i]);
        m[i] = a->momentum * m[i] + g[i];
        w[i] -= (float)(lr * (a->nesterov ? g[i] + a->momentum * m[i] : m[i]));
    }
    return 0;
}

static int sumsq(struct backend *be, const float *x, size_t n, double *out, struct err *e)
{
    (void)be;
    (void)e;
    *out = 0;
    for (size_t i = 0; i < n; i++)
        *out += (double)x[i] * x[i];
    return 0;
}

static int measure(struct backend *be, const float *grads, size_t n, const double *loss,
                   struct step_scalars *s, struct err *e)
{
    double sq;

    sumsq(be, grads, n, &sq, e);
    s->grad_norm = sqrt(sq);
    s->grad_not_finite = !isfinite(sq);
    s->loss = loss ? *loss : 0;
    s->loss_not_finite = !isfinite(s->loss);
    return 0;
}

static int ema(struct backend *be, float *average, const float *w, size_t n, double decay,
               const struct step_scalars *s, struct err *e)
{
    (void)be;
    (void)e;
    if (s->loss_not_finite > 0 || s->grad_not_finite > 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        average[i] = (float)(decay * average[i] + (1 - decay) * w[i]);
    return 0;
}

static const struct flat_ops flat = {.measure = measure, .sumsq = sumsq, .sgd = sgd, .ema = ema};

static const struct backend_ops ops = {
    .name = "fake",
    .flat = &flat,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .upload = copy_bytes,
    .download = copy_bytes,
    .zero = zero,
    .copy = copy_bytes,
};

struct backend fake_backend = {.ops = &ops};

struct params *fake_params(uint64_t seed, int classes)
{
    struct params *ps = params_create(&fake_backend);
    const struct {
        const char *name;
        enum param_kind kind;
        struct shape shape;
    } rows[] = {
        {"layer.weight", PARAM_WEIGHT, shape2(4, 3)},  {"layer.bias", PARAM_WEIGHT, shape1(4)},
        {"bn.weight", PARAM_WEIGHT, shape1(5)},        {"bn.running_mean", PARAM_BUFFER, shape1(5)},
        {"bn.running_var", PARAM_BUFFER, shape1(5)},   {"prior", PARAM_CONST, shape1(4)},
        {"batchformer.w", PARAM_WEIGHT, shape2(2, 2)}, {"fc.weight", PARAM_WEIGHT, shape2(classes, 5)},
        {"fc.bias", PARAM_WEIGHT, shape1(classes)},
    };
    struct err e = ERR_INIT;

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        ASSERT(
            params_declare(ps, rows[i].name, rows[i].kind, rows[i].shape, (struct init){INIT_NORMAL, 1}, &e));
    ASSERT(params_finalize(ps, seed, &e) == 0);
    return ps;
}
