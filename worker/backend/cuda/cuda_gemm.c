/* cuda_gemm - OP_LINEAR on cuBLASLt.
 *
 * Parameters are fp32 masters. With bf16 activations weights and bias are cast into scratch in each pass; the
 * gradient of the weights comes out of the product in fp32, straight into the gradient buffer.
 *
 * Scratch: [weights | bias | scratch of the bias' gradient]. Letters: M rows, I inputs, O outputs.
 */
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/elem.h"
#include "worker/backend/cuda/norm.h"

struct linear {
    struct cuda_backend *be;
    int64_t M, I, O;
    enum dtype t;
    char *w, *bias, *sums; /* in scratch */
};

static struct linear linear_of(const struct op_call *c)
{
    const struct node *n = c->node;
    struct linear l = {.be = cuda_call_backend(c),
                       .M = shape_rows(n->in[0]->shape),
                       .I = shape_channels(n->in[0]->shape),
                       .O = shape_channels(n->shape),
                       .t = n->dtype,
                       .w = c->scratch};

    l.bias = l.w + align_up((size_t)(l.O * l.I) * sizeof(float));
    l.sums = l.bias + align_up((size_t)l.O * sizeof(float));
    return l;
}

KERNEL_PREPARE(linear)
{
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int64_t O = shape_channels(n->shape);

    p->scratch_bytes = align_up((size_t)(O * I) * sizeof(float)) + align_up((size_t)O * sizeof(float)) +
                       cuda_column_sums_scratch_bytes(M, O, n->dtype);
    return cuda_plain_prepare(be, n, p, e);
}

/* A parameter as the products take it. */
static int as_operand(const struct linear *l, const float *master, int64_t count, void *room,
                      const void **out, struct err *e)
{
    *out = master;
    if (l->t == DTYPE_F32)
        return 0;
    CUDA_TRY(e, elem_cast(DTYPE_F32, l->t, master, room, count, 0, l->be->compute));
    *out = room;
    return 0;
}

KERNEL_FORWARD(linear)
{
    struct linear l = linear_of(c);
    const void *w, *bias = NULL;

    if (as_operand(&l, c->in[1], l.O * l.I, l.w, &w, e) < 0 ||
        (c->node->n_inputs > 2 && as_operand(&l, c->in[2], l.O, l.bias, &bias, e) < 0))
        return -1;
    struct cuda_gemm g = {.ta = 'N',
                          .tb = 'T',
                          .m = l.M,
                          .n = l.O,
                          .k = l.I,
                          .alpha = 1,
                          .ab_type = l.t,
                          .c_type = l.t,
                          .a = c->in[0],
                          .b = w,
                          .c = c->out,
                          .lda = l.I,
                          .ldb = l.I,
                          .ldc = l.O,
                          .epilogue = bias ? CUDA_EPILOGUE_BIAS : CUDA_EPILOGUE_NONE,
                          .bias = (void *)bias};
    return cuda_gemm_run(l.be->blas, &g, e);
}

/* dx (M,I) = or += dy·W */
static int grad_x(const struct linear *l, const struct op_call *c, struct err *e)
{
    const void *w;

    if (as_operand(l, c->in[1], l->O * l->I, l->w, &w, e) < 0)
        return -1;
    struct cuda_gemm g = {.ta = 'N',
                          .tb = 'N',
                          .m = l->M,
                          .n = l->I,
                          .k = l->O,
                          .alpha = 1,
                          .beta = acc_bit(c, 0),
                          .ab_type = l->t,
                          .c_type = c->node->in[0]->grad_dtype, /* f32 where x was gathered */
                          .a = c->dout,
                          .b = w,
                          .c = c->din[0],
                          .lda = l->O,
                          .ldb = l->I,
                          .ldc = l->I};
    return cuda_gemm_run(l->be->blas, &g, e);
}

/* dW (O,I) = or += dyᵀ·x, in fp32 */
static int grad_w(const struct linear *l, const struct op_call *c, struct err *e)
{
    struct cuda_gemm g = {.ta = 'T',
                          .tb = 'N',
                          .m = l->O,
                          .n = l->I,
                          .k = l->M,
                          .alpha = 1,
                          .beta = acc_bit(c, 1),
                          .ab_type = l->t,
                          .c_type = DTYPE_F32,
                          .a = c->dout,
                          .b = c->in[0],
                          .c = c->din[1],
                          .lda = l->O,
                          .ldb = l->I,
                          .ldc = l->I};

    return cuda_gemm_run(l->be->blas, &g, e);
}

KERNEL_BACKWARD(linear)
{
    struct linear l = linear_of(c);

    if ((c->din[0] && grad_x(&l, c, e) < 0) || (c->din[1] && grad_w(&l, c, e) < 0))
        return -1;
    if (c->node->n_inputs > 2 && c->din[2])
        CUDA_TRY(e,
                 cuda_column_sums(l.M, l.O, l.t, c->dout, c->din[2], acc_bit(c, 2), l.sums, l.be->compute));
    return 0;
}
