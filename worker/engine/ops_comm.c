/* ops_comm - see ops_comm.h.
 *
 * The adjoint of "every rank gets all rows" is "every row gets the sum of all ranks' gradients for it": a
 * reduce-scatter with SUM. The adjoint of a sum over ranks, whose result every rank uses, is a sum over
 * ranks. Leaving either out, or averaging, keeps the loss and breaks the gradient.
 */
#include "worker/engine/ops_comm.h"

/* What the kernels need from the backend; also the state of the node. */
static int prepare_scratch(struct backend *be, const struct node *n, struct op_prep *p, struct err *e)
{
    (void)e;
    p->state = be;
    p->scratch_bytes = (size_t)shape_count(n->in[0]->shape) * dtype_bytes(n->grad_dtype);
    return 0;
}

static int64_t row_elements(const struct node *n)
{
    int64_t k = 1;

    for (int i = 1; i < n->shape.n_dims; i++)
        k *= n->shape.dims[i];
    return k;
}

static int all_gather_forward(const struct op_call *c, struct err *e)
{
    size_t row_bytes = (size_t)row_elements(c->node) * dtype_bytes(c->node->dtype);

    return comm_all_gather(c->comm, c->in[0], c->out, c->rows->counts, row_bytes, e);
}

static int all_gather_backward(const struct op_call *c, struct err *e)
{
    struct backend *be = c->state;
    const struct node *x = c->node->in[0];
    bool acc = c->acc & 1, other_type = x->grad_dtype != DTYPE_F32;
    float *local = acc || other_type ? c->scratch : c->din[0];

    if (comm_reduce_scatter(c->comm, c->dout, local, c->rows->counts, row_elements(c->node), e) < 0)
        return -1;
    if (other_type)
        return be->ops->from_f32(be, c->din[0], x->grad_dtype, local, (size_t)shape_count(x->shape), acc, e);
    return acc ? be->ops->accumulate(be, c->din[0], local, (size_t)shape_count(x->shape), x->dtype, e) : 0;
}

static int all_reduce_forward(const struct op_call *c, struct err *e)
{
    struct backend *be = c->state;
    size_t n = (size_t)shape_count(c->node->shape);

    if (be->ops->copy(be, c->out, c->in[0], n * dtype_bytes(c->node->dtype), e) < 0)
        return -1;
    return comm_all_reduce(c->comm, c->out, n, c->node->dtype, e);
}

static int all_reduce_backward(const struct op_call *c, struct err *e)
{
    struct backend *be = c->state;
    size_t n = (size_t)shape_count(c->node->shape);
    bool acc = c->acc & 1;
    void *sum = acc ? c->scratch : c->din[0];

    if (be->ops->copy(be, sum, c->dout, n * dtype_bytes(c->node->dtype), e) < 0 ||
        comm_all_reduce(c->comm, sum, n, c->node->dtype, e) < 0)
        return -1;
    return acc ? be->ops->accumulate(be, c->din[0], sum, n, c->node->dtype, e) : 0;
}

static const struct kernel all_gather_kernel = {prepare_scratch, NULL, all_gather_forward,
                                                all_gather_backward};
static const struct kernel all_reduce_kernel = {prepare_scratch, NULL, all_reduce_forward,
                                                all_reduce_backward};

const struct kernel *comm_kernel(enum op op)
{
    return op == OP_ALL_GATHER ? &all_gather_kernel : op == OP_ALL_REDUCE ? &all_reduce_kernel : NULL;
}
