/* cuda_norm - batch norm in its three operators and layer norm: shapes and pointers for the kernels of
 * norm.cu and layernorm.cu.
 *
 * Letters: n samples of `pixels` rows each, M rows, C channels.
 */
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/norm.h"

static struct cuda_bn_shape bn_shape(const struct node *x)
{
    struct cuda_bn_shape s = {x->shape.dims[0], 1, shape_channels(x->shape), x->dtype};

    for (int i = 1; i < x->shape.n_dims - 1; i++)
        s.pixels *= x->shape.dims[i];
    return s;
}

static struct cuda_bn_apply bn_args(const struct node *n)
{
    return (struct cuda_bn_apply){n->attr.bn.count, n->attr.bn.eps, n->attr.bn.momentum, n->attr.bn.relu};
}

KERNEL_PREPARE(bn_stats)
{
    struct cuda_bn_shape s = bn_shape(n->in[0]);

    p->scratch_bytes = cuda_bn_stats_scratch_bytes(&s);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(bn_stats)
{
    struct cuda_bn_shape s = bn_shape(c->node->in[0]);

    CUDA_TRY(e, cuda_bn_stats_forward(&s, c->in[0], c->out, c->scratch, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(bn_stats)
{
    struct cuda_bn_shape s = bn_shape(c->node->in[0]);

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, cuda_bn_stats_backward(&s, c->in[0], c->dout, c->din[0], acc_bit(c, 0),
                                       cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_PREPARE(bn_apply)
{
    struct cuda_bn_shape s = bn_shape(n);

    p->scratch_bytes = cuda_bn_apply_scratch_bytes(&s);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(bn_apply)
{
    struct cuda_bn_shape s = bn_shape(c->node);
    struct cuda_bn_apply a = bn_args(c->node);

    CUDA_TRY(e, cuda_bn_apply_forward(&s, &a, c->in[0], c->in[1], c->in[2], c->in[3], c->in[4], c->in[5],
                                      c->node->n_inputs > 6 ? c->in[6] : NULL, c->out, c->scratch,
                                      cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(bn_apply)
{
    struct cuda_bn_shape s = bn_shape(c->node);
    struct cuda_bn_apply a = bn_args(c->node);
    struct cuda_bn_grad g = {.x = c->in[0],
                             .y = c->out,
                             .dy = c->dout,
                             .sums = c->in[1],
                             .gamma = c->in[2],
                             .dx = c->din[0],
                             .dres = c->node->n_inputs > 6 ? c->din[6] : NULL,
                             .dsums = c->din[1],
                             .dgamma = c->din[2],
                             .dbeta = c->din[3],
                             .add_dx = acc_bit(c, 0),
                             .add_dres = acc_bit(c, 6),
                             .add_dsums = acc_bit(c, 1),
                             .add_dgamma = acc_bit(c, 2),
                             .add_dbeta = acc_bit(c, 3)};

    CUDA_TRY(e, cuda_bn_apply_backward(&s, &a, &g, c->scratch, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_PREPARE(bn_infer)
{
    struct cuda_bn_shape s = bn_shape(n);

    p->scratch_bytes = cuda_bn_infer_scratch_bytes(&s);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(bn_infer)
{
    struct cuda_bn_shape s = bn_shape(c->node);
    struct cuda_bn_apply a = bn_args(c->node);

    CUDA_TRY(e, cuda_bn_infer_forward(&s, &a, c->in[0], c->in[1], c->in[2], c->in[3], c->in[4],
                                      c->node->n_inputs > 5 ? c->in[5] : NULL, c->out, c->scratch,
                                      cuda_call_backend(c)->compute));
    return 0;
}

/* aux: mean and 1/std of each row. */
KERNEL_PREPARE(layernorm)
{
    const int64_t M = shape_rows(n->shape), C = shape_channels(n->shape);

    p->aux_bytes = (size_t)(2 * M) * sizeof(float);
    p->scratch_bytes = cuda_layernorm_backward_scratch_bytes(M, C, n->dtype);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(layernorm)
{
    const struct node *n = c->node;

    CUDA_TRY(e, cuda_layernorm_forward(shape_rows(n->shape), shape_channels(n->shape), n->dtype,
                                       n->attr.layernorm.eps, c->in[0], c->in[1], c->in[2], c->out, c->aux,
                                       cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(layernorm)
{
    const struct node *n = c->node;

    CUDA_TRY(e, cuda_layernorm_backward(shape_rows(n->shape), shape_channels(n->shape), n->dtype, c->in[0],
                                        c->in[1], c->aux, c->dout, c->din[0], c->din[1], c->din[2],
                                        acc_bit(c, 0), acc_bit(c, 1), acc_bit(c, 2), c->scratch,
                                        cuda_call_backend(c)->compute));
    return 0;
}
