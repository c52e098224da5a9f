/* cuda_loss - softmax cross-entropy: shapes and pointers for the kernels of loss.cu. A target outside of its
 * classes makes the loss NaN, which the vote of the step finds.
 *
 * Letters: M rows, K classes.
 */
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/loss.h"

static struct loss_rows rows_of(const struct op_call *c)
{
    const struct node *n = c->node, *z = n->in[0];

    return (struct loss_rows){.M = z->shape.dims[0],
                              .K = z->shape.dims[1],
                              .t = z->dtype,
                              .logits = c->in[0],
                              .y = c->in[1],
                              .offset = n->n_inputs > 2 ? c->in[2] : NULL,
                              .denominator = n->attr.xent.denominator};
}

/* aux: maximum and 1/Σexp of each row. Scratch: the rows' losses. */
KERNEL_PREPARE(softmax_xent)
{
    const size_t M = (size_t)n->in[0]->shape.dims[0];

    p->aux_bytes = 2 * M * sizeof(float);
    p->scratch_bytes = M * sizeof(double);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(softmax_xent)
{
    struct loss_rows r = rows_of(c);

    CUDA_TRY(e, loss_softmax_xent(&r, c->aux, c->scratch, c->out, NULL, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(softmax_xent)
{
    struct loss_rows r = rows_of(c);

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, loss_softmax_xent_grad(&r, c->aux, c->dout, c->din[0], acc_bit(c, 0),
                                       cuda_call_backend(c)->compute));
    return 0;
}
