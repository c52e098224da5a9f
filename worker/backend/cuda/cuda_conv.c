/* cuda_conv - operators that look at pixels: convolution through cuDNN (cuda_dnn.h), max pooling, mean over
 * pixels, the parameter-free shortcut (kernels in pixel.cu).
 *
 * Weights are fp32 masters in PyTorch's layout; each pass makes cuDNN's layout and type from them, and their
 * gradient is brought back, in scratch: [workspace | weights or their gradient | gradient of x]. cuDNN
 * defines gradients only, so where one is to be added to, it is made in scratch and added.
 *
 * Letters: n samples, H×W and Ho×Wo pixels, C channels, k kernel.
 */
#include <stdlib.h>
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/elem.h"
#include "worker/backend/cuda/pixel.h"
#include "worker/backend/cuda/reorder.h"

enum { WORKSPACE_LIMIT = 256 << 20 };

/* ------------------------------------------------------------------ convolution */

struct conv_state {
    struct cuda_state base;
    struct cuda_conv *conv; /* belongs to the cache of be->dnn */
    size_t w_bytes, dx_at;  /* of the weights in cuDNN's layout; where dx lies in scratch */
    size_t workspace;       /* aligned */
    int64_t O, I, K;        /* of the weights */
};

/* A rank without rows has no convolution, but it has a gradient to define. */
KERNEL_PREPARE(conv2d)
{
    const struct conv_shape s = conv_shape_of(n);
    const struct shape w = n->in[1]->shape;
    struct conv_state *st = xcalloc(1, sizeof *st);
    struct cuda_conv_options o = {.dtype = n->dtype,
                                  .allow_tf32 = cuda_of(be)->cfg.allow_tf32,
                                  .deterministic = cuda_of(be)->cfg.deterministic,
                                  .f32_grad = n->dtype == DTYPE_BF16,
                                  .workspace_limit = WORKSPACE_LIMIT,
                                  .tuning = be->tuning};

    st->base.be = cuda_of(be);
    p->state = st;
    if (s.n == 0)
        return 0;
    st->O = w.dims[0];
    st->I = w.dims[1];
    st->K = w.dims[2] * w.dims[3];
    if (!(st->conv = cuda_conv_get(st->base.be->dnn, &s, &o, conv_passes_of(n), e))) {
        free(st);
        p->state = NULL;
        return -1;
    }
    st->workspace = align_up(cuda_conv_workspace_bytes(st->conv));
    st->w_bytes = align_up((size_t)shape_count(w) * sizeof(float));
    st->dx_at = st->workspace + st->w_bytes;
    p->scratch_bytes = st->dx_at;
    if (n->in[0]->needs_grad)
        p->scratch_bytes += (size_t)shape_count(n->in[0]->shape) * dtype_bytes(n->dtype);
    return 0;
}

/* cuDNN's weights, in scratch behind the workspace. */
static int make_weights(const struct op_call *c, void **w, struct err *e)
{
    const struct conv_state *st = c->state;

    *w = (char *)c->scratch + st->workspace;
    CUDA_TRY(e, reorder_weights_to_krsc(c->in[1], *w, c->node->dtype, st->O, st->I, st->K,
                                        st->base.be->compute));
    return 0;
}

KERNEL_FORWARD(conv2d)
{
    const struct conv_state *st = c->state;
    void *w;

    if (!st->conv)
        return 0;
    return make_weights(c, &w, e) < 0 ? -1 : cuda_conv_forward(st->conv, c->in[0], w, c->out, c->scratch, e);
}

static int conv_grad_weights(const struct op_call *c, struct err *e)
{
    const struct conv_state *st = c->state;
    void *dw = (char *)c->scratch + st->workspace;
    const size_t bytes = (size_t)shape_count(c->node->in[1]->shape) * sizeof(float);

    if (!st->conv) {
        if (!acc_bit(c, 1))
            CUDA_TRY(e, cudaMemsetAsync(c->din[1], 0, bytes, st->base.be->compute));
        return 0;
    }
    if (cuda_conv_backward_weights(st->conv, c->in[0], c->dout, dw, c->scratch, e) < 0)
        return -1;
    CUDA_TRY(e, reorder_grad_from_krsc(dw, cuda_conv_grad_dtype(st->conv), c->din[1], acc_bit(c, 1), st->O,
                                       st->I, st->K, st->base.be->compute));
    return 0;
}

static int conv_grad_data(const struct op_call *c, struct err *e)
{
    const struct conv_state *st = c->state;
    void *w, *dx = acc_bit(c, 0) ? (char *)c->scratch + st->dx_at : c->din[0];

    if (make_weights(c, &w, e) < 0 || cuda_conv_backward_data(st->conv, c->dout, w, dx, c->scratch, e) < 0)
        return -1;
    if (acc_bit(c, 0))
        CUDA_TRY(e, elem_copy_or_add(c->node->dtype, dx, c->din[0], shape_count(c->node->in[0]->shape), 1,
                                     st->base.be->compute));
    return 0;
}

KERNEL_BACKWARD(conv2d)
{
    const struct conv_state *st = c->state;

    if (c->din[1] && conv_grad_weights(c, e) < 0)
        return -1;
    return c->din[0] && st->conv ? conv_grad_data(c, e) : 0;
}

/* ------------------------------------------------------------------ max pooling */

static struct cuda_pool_shape pool_shape(const struct node *n)
{
    const int64_t *x = n->in[0]->shape.dims, *y = n->shape.dims;

    return (struct cuda_pool_shape){.n = x[0],
                                    .H = x[1],
                                    .W = x[2],
                                    .C = x[3],
                                    .Ho = y[1],
                                    .Wo = y[2],
                                    .kernel = n->attr.conv.kernel,
                                    .stride = n->attr.conv.stride,
                                    .pad = n->attr.conv.pad,
                                    .dtype = n->dtype};
}

/* aux: the place of each maximum within its window, 16 bits. */
KERNEL_PREPARE(maxpool)
{
    const int k = n->attr.conv.kernel, pad = n->attr.conv.pad;

    if (k > 255 || pad > k / 2)
        return err_set(
            e, "max pooling with kernel %d and padding %d; accepted: kernel 1 to 255, padding 0 to %d", k,
            pad, k / 2);
    p->aux_bytes = (size_t)shape_count(n->shape) * sizeof(uint16_t);
    return cuda_plain_prepare(be, n, p, e);
}

KERNEL_FORWARD(maxpool)
{
    struct cuda_pool_shape s = pool_shape(c->node);

    CUDA_TRY(e, cuda_maxpool_forward(&s, c->in[0], c->out, c->aux, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(maxpool)
{
    struct cuda_pool_shape s = pool_shape(c->node);

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, cuda_maxpool_backward(&s, c->dout, c->aux, c->din[0], acc_bit(c, 0),
                                      cuda_call_backend(c)->compute));
    return 0;
}

/* ------------------------------------------------------------------ mean over pixels, shortcut */

KERNEL_FORWARD(mean_spatial)
{
    const struct node *x = c->node->in[0];
    const int64_t *d = x->shape.dims;

    CUDA_TRY(e, cuda_mean_spatial_forward(d[0], d[1] * d[2], d[3], x->dtype, c->in[0], c->out,
                                          cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(mean_spatial)
{
    const struct node *x = c->node->in[0];
    const int64_t *d = x->shape.dims;

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, cuda_mean_spatial_backward(d[0], d[1] * d[2], d[3], x->dtype, c->dout, c->din[0],
                                           acc_bit(c, 0), cuda_call_backend(c)->compute));
    return 0;
}

static struct cuda_shortcut_shape shortcut_shape(const struct node *n)
{
    const int64_t *x = n->in[0]->shape.dims;

    return (struct cuda_shortcut_shape){x[0],    x[1], x[2], x[3], n->shape.dims[3], n->attr.shortcut.stride,
                                        n->dtype};
}

KERNEL_FORWARD(shortcut_pad)
{
    struct cuda_shortcut_shape s = shortcut_shape(c->node);

    CUDA_TRY(e, cuda_shortcut_pad_forward(&s, c->in[0], c->out, cuda_call_backend(c)->compute));
    return 0;
}

KERNEL_BACKWARD(shortcut_pad)
{
    struct cuda_shortcut_shape s = shortcut_shape(c->node);

    if (!c->din[0])
        return 0;
    CUDA_TRY(e, cuda_shortcut_pad_backward(&s, c->dout, c->din[0], acc_bit(c, 0),
                                           cuda_call_backend(c)->compute));
    return 0;
}
