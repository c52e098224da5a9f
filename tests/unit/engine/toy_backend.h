/* toy_backend - host memory and four kernels (add; act as x²; softmax_xent as the sum of its input; dropout
 * with a forward pass only), so that the compiler's and the executor's contracts are tested without the real
 * kernels. */
#ifndef TESTS_TOY_BACKEND_H
#define TESTS_TOY_BACKEND_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend.h"

static void *toy_alloc(struct backend *be, size_t bytes, struct err *e)
{
    (void)be, (void)e;
    return aligned_alloc(TENSOR_ALIGN_BYTES, align_up(bytes ? bytes : 1));
}

static void toy_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static int toy_copy(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    (void)be, (void)e;
    memcpy(dst, src, bytes);
    return 0;
}

static int toy_zero(struct backend *be, void *dst, size_t bytes, struct err *e)
{
    (void)be, (void)e;
    if (bytes)
        memset(dst, 0, bytes);
    return 0;
}

static int toy_accumulate(struct backend *be, void *dst, const void *src, size_t n, enum dtype t,
                          struct err *e)
{
    (void)be, (void)e, (void)t;
    for (size_t i = 0; i < n; i++)
        ((float *)dst)[i] += ((const float *)src)[i];
    return 0;
}

static void toy_poison(struct backend *be, void *dst, size_t bytes)
{
    (void)be;
    memset(dst, 0xff, bytes);
}

static void toy_put(const struct op_call *c, int k, int64_t i, float v)
{
    float *d = c->din[k];

    if (d)
        d[i] = (c->acc >> k & 1) ? d[i] + v : v;
}

static int toy_add_forward(const struct op_call *c, struct err *e)
{
    (void)e;
    for (int64_t i = 0; i < shape_count(c->node->shape); i++)
        ((float *)c->out)[i] = ((float *)c->in[0])[i] + ((float *)c->in[1])[i];
    return 0;
}

static int toy_add_backward(const struct op_call *c, struct err *e)
{
    (void)e;
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < shape_count(c->node->shape); i++)
            toy_put(c, k, i, ((const float *)c->dout)[i]);
    return 0;
}

/* OP_ACT here: y = x², whose backward reads x. */
static int toy_square_forward(const struct op_call *c, struct err *e)
{
    (void)e;
    for (int64_t i = 0; i < shape_count(c->node->shape); i++)
        ((float *)c->out)[i] = ((float *)c->in[0])[i] * ((float *)c->in[0])[i];
    return 0;
}

static int toy_square_backward(const struct op_call *c, struct err *e)
{
    (void)e;
    for (int64_t i = 0; i < shape_count(c->node->shape); i++)
        toy_put(c, 0, i, 2 * ((float *)c->in[0])[i] * ((const float *)c->dout)[i]);
    return 0;
}

/* OP_SOFTMAX_XENT here: Σ of all inputs, whatever the targets. */
static int toy_sum_forward(const struct op_call *c, struct err *e)
{
    (void)e;
    double s = 0;
    for (int64_t i = 0; i < shape_count(c->node->in[0]->shape); i++)
        s += ((float *)c->in[0])[i];
    *(double *)c->out = s;
    return 0;
}

static int toy_sum_backward(const struct op_call *c, struct err *e)
{
    (void)e;
    for (int64_t i = 0; i < shape_count(c->node->in[0]->shape); i++)
        toy_put(c, 0, i, (float)*(const double *)c->dout);
    return 0;
}

static const struct kernel toy_kernels[OP_COUNT] = {
    [OP_ADD] = {NULL, NULL, toy_add_forward, toy_add_backward},
    [OP_ACT] = {NULL, NULL, toy_square_forward, toy_square_backward},
    [OP_SOFTMAX_XENT] = {NULL, NULL, toy_sum_forward, toy_sum_backward},
    [OP_DROPOUT] = {NULL, NULL, toy_square_forward, NULL}, /* forward only, to be refused in training */
};

static const struct backend_ops toy_ops = {
    .name = "toy",
    .kernels = toy_kernels,
    .mem_alloc = toy_alloc,
    .mem_free = toy_free,
    .upload = toy_copy,
    .download = toy_copy,
    .copy = toy_copy,
    .zero = toy_zero,
    .accumulate = toy_accumulate,
    .poison = toy_poison,
};

static struct backend toy_backend = {.ops = &toy_ops};

#endif
