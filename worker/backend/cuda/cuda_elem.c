/* cuda_elem - operators that look at one element at a time (kernels in elem.cu) or copy rows (the runtime's
 * copies).
 */
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/elem.h"

KERNEL_FORWARD(act)
{
    const struct node *n = c->node;

    CUDA_TRY(e, elem_act(n->attr.act.kind, n->dtype, c->in[0], c->out, shape_count(n->shape),
                         cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(act)
{
    const struct node *n = c->node;

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, elem_act_grad(n->attr.act.kind, n->dtype, c->in[0], c->dout, c->din[0], shape_count(n->shape),
                              acc_bit(c, 0), cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_FORWARD(add)
{
    const struct node *n = c->node;

    CUDA_TRY(e, elem_add(n->dtype, c->in[0], c->in[1], c->out, shape_count(n->shape),
                         cuda_call_backend(c)->compute));
    return 0;
}

/* a and b may be one node: then din[0] and din[1] are one buffer, defined first and added to second. */
KERNEL_BACKWARD(add)
{
    const struct node *n = c->node;

    for (int i = 0; i < 2; i++)
        if (c->din[i])
            CUDA_TRY(e, elem_copy_or_add(n->dtype, c->dout, c->din[i], shape_count(n->shape), acc_bit(c, i),
                                         cuda_call_backend(c)->compute));
    return 0;
}

static int cast(const struct op_call *c, enum dtype from, enum dtype to, const void *src, void *dst, bool add,
                struct err *e)
{
    int64_t count = shape_count(c->node->shape);
    cudaStream_t stream = cuda_call_backend(c)->compute;

    if (from == to)
        CUDA_TRY(e, elem_copy_or_add(from, src, dst, count, add, stream));
    else
        CUDA_TRY(e, elem_cast(from, to, src, dst, count, add, stream));
    return 0;
}

KERNEL_FORWARD(cast)
{
    return cast(c, c->node->in[0]->dtype, c->node->dtype, c->in[0], c->out, false, e);
}

KERNEL_BACKWARD(cast)
{
    if (!c->din[0])
        return 0;
    return cast(c, c->node->grad_dtype, c->node->in[0]->grad_dtype, c->dout, c->din[0], acc_bit(c, 0), e);
}

static int dropout(const struct op_call *c, const void *src, void *dst, bool add, struct err *e)
{
    const struct node *n = c->node;
    const struct cuda_backend *be = cuda_call_backend(c);
    const int64_t rows = n->shape.dims[0];
    struct elem_dropout_args d = {.rows = rows,
                                  .width = rows ? shape_count(n->shape) / rows : 0,
                                  .first = c->rows->first,
                                  .p = n->attr.dropout.p,
                                  .stream = n->attr.dropout.stream,
                                  .step = be->step};

    if (rows != c->rows->local)
        return err_set(e, "dropout over %lld rows; the rank has %lld, and masks are keyed by its rows",
                       (long long)rows, (long long)c->rows->local);
    CUDA_TRY(e, elem_dropout(&d, n->dtype, src, dst, add, be->compute));
    return 0;
}

KERNEL_FORWARD(dropout)
{
    return dropout(c, c->in[0], c->out, false, e);
}

KERNEL_BACKWARD(dropout)
{
    return c->din[0] ? dropout(c, c->dout, c->din[0], acc_bit(c, 0), e) : 0;
}

/* Bytes of one row of a tensor of n's type and inner shape. */
static size_t row_bytes(const struct node *n)
{
    size_t bytes = dtype_bytes(n->dtype);

    for (int i = 1; i < n->shape.n_dims; i++)
        bytes *= (size_t)n->shape.dims[i];
    return bytes;
}

static int copy(const struct op_call *c, void *dst, const void *src, size_t bytes, struct err *e)
{
    if (bytes)
        CUDA_TRY(e,
                 cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_FORWARD(concat_rows)
{
    const size_t row = row_bytes(c->node);
    char *dst = c->out;

    for (int i = 0; i < c->node->n_inputs; i++) {
        size_t bytes = (size_t)c->node->in[i]->shape.dims[0] * row;
        if (copy(c, dst, c->in[i], bytes, e) < 0)
            return -1;
        dst += bytes;
    }
    return 0;
}

KERNEL_BACKWARD(concat_rows)
{
    const struct node *n = c->node;
    const char *src = c->dout;

    for (int i = 0; i < n->n_inputs; i++) {
        int64_t count = shape_count(n->in[i]->shape);
        if (c->din[i])
            CUDA_TRY(e, elem_copy_or_add(n->dtype, src, c->din[i], count, acc_bit(c, i),
                                         cuda_call_backend(c)->compute));
        src += (size_t)count * dtype_bytes(n->dtype);
    }
    return 0;
}

KERNEL_FORWARD(slice_rows)
{
    const size_t row = row_bytes(c->node);

    return copy(c, c->out, (const char *)c->in[0] + (size_t)c->node->attr.slice.from * row,
                (size_t)c->node->shape.dims[0] * row, e);
}

KERNEL_BACKWARD(slice_rows)
{
    const struct node *n = c->node;
    const size_t row = row_bytes(n);
    const int64_t from = n->attr.slice.from, to = n->attr.slice.to, rows = n->in[0]->shape.dims[0];
    cudaStream_t stream = cuda_call_backend(c)->compute;
    char *dx = c->din[0];

    if (!dx)
        return 0;
    if (!acc_bit(c, 0)) {
        if (from > 0)
            CUDA_TRY(e, cudaMemsetAsync(dx, 0, (size_t)from * row, stream));
        if (to < rows)
            CUDA_TRY(e, cudaMemsetAsync(dx + (size_t)to * row, 0, (size_t)(rows - to) * row, stream));
    }
    CUDA_TRY(e, elem_copy_or_add(n->dtype, c->dout, dx + (size_t)from * row, shape_count(n->shape),
                                 acc_bit(c, 0), stream));
    return 0;
}
