/* fake_backend - see fake_backend.h. */
#include "fake_backend.h"

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

static void sgd(float *w, float *g, float *m, size_t n, const struct sgd_args *a)
{
    for (size_t i = 0; i < n; i++) {
        g[i] += a->weight_decay * w[i];
        m[i] = a->momentum * m[i] + g[i];
        w[i] -= a->lr * (a->nesterov ? g[i] + a->momentum * m[i] : m[i]);
    }
}

static void scale(float *x, size_t n, float a)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= a;
}

static double sumsq(const float *x, size_t n)
{
    double s = 0;

    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return s;
}

static const struct flat_ops flat = {sgd, scale, sumsq};

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

struct backend fake_backend = {&ops};

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
