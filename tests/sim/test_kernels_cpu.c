/* test_kernels_cpu - norms and pixels: the CUDA kernels, run by the emulator, beside the CPU's on the shared
 * table of cases (f32), forward and backward.
 */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cuda/norm.h"
#include "worker/backend/cuda/pixel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const double TOLERANCE = 1e-6;

/* The case's buffers on the device; a gradient that is not there is NULL. */
struct device_case {
    const struct op_run *r;
    void *in[OP_MAX_INPUTS], *din[OP_MAX_INPUTS], *out, *dout, *aux, *scratch;
    cudaStream_t stream;
};

static void ok(const struct device_case *d, cudaError_t e)
{
    CHECK(e == cudaSuccess, "%s: error %d", d->r->spec->name, (int)e);
}

static size_t bytes_of(const struct op_run *r, int i)
{
    return (size_t)op_run_count(r, i) * dtype_bytes(i < 0 ? r->node.dtype : r->node.in[i]->dtype);
}

static void *device_alloc(const struct device_case *d, size_t bytes)
{
    void *p = NULL;

    ok(d, cudaMalloc(&p, bytes ? bytes : 1));
    return p;
}

static void *device_copy(const struct device_case *d, const void *src, size_t bytes)
{
    void *p = device_alloc(d, bytes);

    ok(d, cudaMemcpy(p, src, bytes, cudaMemcpyHostToDevice));
    return p;
}

/* Whether what the device has is what the CPU has. */
static void compare(const struct device_case *d, const char *what, int i, const void *dev, const void *cpu,
                    enum dtype t, int64_t n)
{
    const size_t bytes = (size_t)n * dtype_bytes(t);
    void *host = xmalloc(bytes + 1);
    double distance;

    ok(d, cudaMemcpy(host, dev, bytes, cudaMemcpyDeviceToHost));
    distance = op_distance(host, cpu, t, n);
    CHECK(distance <= TOLERANCE, "%s: %s %d differs by %.2e of its norm", d->r->spec->name, what, i,
          distance);
    free(host);
}

/* ------------------------------------------------------------------ from a node to launchers */

static struct cuda_bn_shape bn_shape(const struct op_run *r)
{
    const struct shape s = r->node.in[0]->shape;
    struct cuda_bn_shape b = {s.dims[0], 1, shape_channels(s), DTYPE_F32};

    for (int i = 1; i < s.n_dims - 1; i++)
        b.pixels *= s.dims[i];
    return b;
}

static struct cuda_bn_apply bn_attr(const struct op_run *r)
{
    return (struct cuda_bn_apply){r->node.attr.bn.count, r->node.attr.bn.eps, r->node.attr.bn.momentum,
                                  r->node.attr.bn.relu};
}

static struct cuda_pool_shape pool_shape(const struct op_run *r)
{
    const int64_t *x = r->node.in[0]->shape.dims, *y = r->node.shape.dims;

    return (struct cuda_pool_shape){.n = x[0],
                                    .H = x[1],
                                    .W = x[2],
                                    .C = x[3],
                                    .Ho = y[1],
                                    .Wo = y[2],
                                    .kernel = r->node.attr.conv.kernel,
                                    .stride = r->node.attr.conv.stride,
                                    .pad = r->node.attr.conv.pad,
                                    .dtype = DTYPE_F32};
}

static struct cuda_shortcut_shape shortcut_shape(const struct op_run *r)
{
    const int64_t *x = r->node.in[0]->shape.dims;

    return (struct cuda_shortcut_shape){
        x[0], x[1], x[2], x[3], r->node.attr.shortcut.channels, r->node.attr.shortcut.stride, DTYPE_F32};
}

static size_t scratch_bytes(const struct op_run *r)
{
    const struct cuda_bn_shape s = bn_shape(r);

    switch (r->node.op) {
    case OP_BN_STATS:
        return cuda_bn_stats_scratch_bytes(&s);
    case OP_BN_APPLY:
        return cuda_bn_apply_scratch_bytes(&s);
    case OP_LAYERNORM:
        return cuda_layernorm_backward_scratch_bytes(shape_rows(r->node.shape), s.C, DTYPE_F32);
    default:
        return 0;
    }
}

static cudaError_t forward(struct device_case *d)
{
    const struct op_run *r = d->r;
    const struct cuda_bn_shape s = bn_shape(r);
    const struct cuda_bn_apply a = bn_attr(r);
    struct cuda_pool_shape pool;
    struct cuda_shortcut_shape shortcut;

    switch (r->node.op) {
    case OP_BN_STATS:
        return cuda_bn_stats_forward(&s, d->in[0], d->out, d->scratch, d->stream);
    case OP_BN_APPLY:
        return cuda_bn_apply_forward(&s, &a, d->in[0], d->in[1], d->in[2], d->in[3], d->in[4], d->in[5],
                                     d->in[6], d->out, d->scratch, d->stream);
    case OP_LAYERNORM:
        return cuda_layernorm_forward(shape_rows(r->node.shape), s.C, DTYPE_F32, r->node.attr.layernorm.eps,
                                      d->in[0], d->in[1], d->in[2], d->out, d->aux, d->stream);
    case OP_MAXPOOL:
        pool = pool_shape(r);
        return cuda_maxpool_forward(&pool, d->in[0], d->out, d->aux, d->stream);
    case OP_MEAN_SPATIAL:
        return cuda_mean_spatial_forward(s.n, s.pixels, s.C, DTYPE_F32, d->in[0], d->out, d->stream);
    default:
        shortcut = shortcut_shape(r);
        return cuda_shortcut_pad_forward(&shortcut, d->in[0], d->out, d->stream);
    }
}

static cudaError_t backward(struct device_case *d)
{
    const struct op_run *r = d->r;
    const struct cuda_bn_shape s = bn_shape(r);
    const struct cuda_bn_apply a = bn_attr(r);
    const struct cuda_bn_grad g = {.x = d->in[0],
                                   .y = d->out,
                                   .dy = d->dout,
                                   .sums = d->in[1],
                                   .gamma = d->in[2],
                                   .dx = d->din[0],
                                   .dres = d->din[6],
                                   .dsums = d->din[1],
                                   .dgamma = d->din[2],
                                   .dbeta = d->din[3]};
    struct cuda_pool_shape pool;
    struct cuda_shortcut_shape shortcut;

    switch (r->node.op) {
    case OP_BN_STATS:
        return cuda_bn_stats_backward(&s, d->in[0], d->dout, d->din[0], false, d->stream);
    case OP_BN_APPLY:
        return cuda_bn_apply_backward(&s, &a, &g, d->scratch, d->stream);
    case OP_LAYERNORM:
        return cuda_layernorm_backward(shape_rows(r->node.shape), s.C, DTYPE_F32, d->in[0], d->in[1], d->aux,
                                       d->dout, d->din[0], d->din[1], d->din[2], false, false, false,
                                       d->scratch, d->stream);
    case OP_MAXPOOL:
        pool = pool_shape(r);
        return cuda_maxpool_backward(&pool, d->dout, d->aux, d->din[0], false, d->stream);
    case OP_MEAN_SPATIAL:
        return cuda_mean_spatial_backward(s.n, s.pixels, s.C, DTYPE_F32, d->dout, d->din[0], false,
                                          d->stream);
    default:
        shortcut = shortcut_shape(r);
        return cuda_shortcut_pad_backward(&shortcut, d->dout, d->din[0], false, d->stream);
    }
}

/* ------------------------------------------------------------------ the cases */

static void check_case(struct backend *be, const struct op_case *spec)
{
    struct op_run r;
    struct device_case d = {.r = &r};

    op_run_init(&r, be, spec, 3);
    op_run_fill_dout(&r, 4);
    op_run_want(&r, op_run_grad_mask(&r));
    ok(&d, cudaStreamCreate(&d.stream));
    for (int i = 0; i < spec->n_inputs; i++) {
        d.in[i] = device_copy(&d, r.call.in[i], bytes_of(&r, i));
        d.din[i] = r.call.din[i] ? device_alloc(&d, bytes_of(&r, i)) : NULL;
    }
    d.out = device_alloc(&d, bytes_of(&r, -1));
    d.dout = device_copy(&d, r.call.dout, bytes_of(&r, -1));
    d.aux = device_alloc(&d, r.prep.aux_bytes);
    d.scratch = device_alloc(&d, scratch_bytes(&r));

    op_run_forward(&r);
    ok(&d, forward(&d));
    ok(&d, cudaStreamSynchronize(d.stream));
    compare(&d, "output", 0, d.out, r.call.out, r.node.dtype, op_run_count(&r, -1));
    for (int i = 0; i < spec->n_inputs; i++) /* running statistics move */
        compare(&d, "input", i, d.in[i], r.call.in[i], r.node.in[i]->dtype, op_run_count(&r, i));
    op_run_backward(&r);
    ok(&d, backward(&d));
    ok(&d, cudaStreamSynchronize(d.stream));
    for (int i = 0; i < spec->n_inputs; i++)
        if (d.din[i])
            compare(&d, "gradient", i, d.din[i], r.call.din[i], r.node.in[i]->dtype, op_run_count(&r, i));

    for (int i = 0; i < spec->n_inputs; i++) {
        ok(&d, cudaFree(d.in[i]));
        ok(&d, cudaFree(d.din[i]));
    }
    ok(&d, cudaFree(d.out));
    ok(&d, cudaFree(d.dout));
    ok(&d, cudaFree(d.aux));
    ok(&d, cudaFree(d.scratch));
    ok(&d, cudaStreamDestroy(d.stream));
    op_run_free(&r);
}

static void test_as_the_cpu(void **state)
{
    struct err e = ERR_INIT;
    struct backend *be = cpu_backend_create(1, &e);
    int n = 0;

    (void)state;
    assert_non_null(be);
    for (size_t i = 0; i < n_op_cases; i++) {
        switch (op_cases[i].op) {
        case OP_BN_STATS:
        case OP_BN_APPLY:
        case OP_LAYERNORM:
        case OP_MAXPOOL:
        case OP_MEAN_SPATIAL:
        case OP_SHORTCUT_PAD:
            check_case(be, &op_cases[i]);
            n++;
            break;
        default:
            break;
        }
    }
    assert_true(n >= 20);
    be->ops->destroy(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_the_cpu)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
