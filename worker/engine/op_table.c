/* op_table - every operator's arity, shape rule and backward reads, one row each; see op.h.
 *
 * A shape rule sees inputs whose number is already checked. It checks their shapes and types and sets the
 * node's.
 */
#include "worker/engine/graph.h"

static int want_dtype(const struct node *n, int i, enum dtype t, struct err *e)
{
    if (n->in[i]->dtype == t)
        return 0;
    return err_set(e, "input %d is %s, %s is accepted", i, dtype_name(n->in[i]->dtype), dtype_name(t));
}

static int want_float(const struct node *n, int i, struct err *e)
{
    enum dtype t = n->in[i]->dtype;

    if (t == DTYPE_F32 || t == DTYPE_BF16)
        return 0;
    return err_set(e, "input %d is %s, f32 or bf16 is accepted", i, dtype_name(t));
}

static int want_dims(const struct node *n, int i, int n_dims, struct err *e)
{
    char text[96];

    if (n->in[i]->shape.n_dims == n_dims)
        return 0;
    return err_set(e, "input %d has shape %s, %d dimensions are accepted", i,
                   shape_text(n->in[i]->shape, text), n_dims);
}

static int want_shape(const struct node *n, int i, struct shape s, struct err *e)
{
    char found[96], want[96];

    if (shape_equal(n->in[i]->shape, s))
        return 0;
    return err_set(e, "input %d has shape %s, %s is accepted", i, shape_text(n->in[i]->shape, found),
                   shape_text(s, want));
}

/* Inputs [from, to) are f32 (C). */
static int want_channel_vectors(const struct node *n, int from, int to, int64_t c, struct err *e)
{
    for (int i = from; i < to; i++)
        if (want_dtype(n, i, DTYPE_F32, e) < 0 || want_shape(n, i, shape1(c), e) < 0)
            return -1;
    return 0;
}

static int like_input0(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0)
        return -1;
    n->shape = n->in[0]->shape;
    n->dtype = n->in[0]->dtype;
    return 0;
}

static int infer_input(struct node *n, struct err *e)
{
    (void)e;
    n->shape = n->attr.input.shape;
    n->dtype = n->attr.input.dtype;
    return 0;
}

static int infer_param(struct node *n, struct err *e)
{
    (void)e;
    n->shape = n->param->shape;
    n->dtype = DTYPE_F32;
    return 0;
}

/* Output extent of a window of k moved by s over size + 2·pad. */
static int64_t window_out(int64_t size, int k, int s, int pad)
{
    return (size + 2 * pad - k) / s + 1;
}

static int infer_window(struct node *n, int64_t channels, struct err *e)
{
    struct shape x = n->in[0]->shape;
    int k = n->attr.conv.kernel, s = n->attr.conv.stride, p = n->attr.conv.pad;

    if (k < 1 || s < 1 || p < 0)
        return err_set(e, "kernel %d, stride %d, pad %d: positive kernel and stride are accepted", k, s, p);
    if (x.dims[1] + 2 * p < k || x.dims[2] + 2 * p < k)
        return err_set(e, "a %d×%d window does not fit into %lld×%lld pixels with padding %d", k, k,
                       (long long)x.dims[1], (long long)x.dims[2], p);
    n->shape = shape4(x.dims[0], window_out(x.dims[1], k, s, p), window_out(x.dims[2], k, s, p), channels);
    n->dtype = n->in[0]->dtype;
    return 0;
}

static int infer_conv2d(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0 || want_dims(n, 0, 4, e) < 0 || want_dtype(n, 1, DTYPE_F32, e) < 0 ||
        want_dims(n, 1, 4, e) < 0)
        return -1;
    struct shape w = n->in[1]->shape;
    int64_t ci = n->in[0]->shape.dims[3];
    int k = n->attr.conv.kernel, groups = n->attr.conv.groups;
    if (groups < 1 || ci % groups || w.dims[0] % groups)
        return err_set(e, "%d groups do not divide %lld input and %lld output channels", groups,
                       (long long)ci, (long long)w.dims[0]);
    if (want_shape(n, 1, shape4(w.dims[0], ci / groups, k, k), e) < 0)
        return -1;
    return infer_window(n, w.dims[0], e);
}

static int infer_maxpool(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0 || want_dims(n, 0, 4, e) < 0)
        return -1;
    return infer_window(n, n->in[0]->shape.dims[3], e);
}

static int infer_bn_stats(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0)
        return -1;
    n->shape = shape2(2, shape_channels(n->in[0]->shape));
    n->dtype = DTYPE_F64;
    return 0;
}

/* Residual is the last input when present; its place differs between the two batch norm operators. */
static int check_residual_relu(struct node *n, int residual, struct err *e)
{
    if (n->n_inputs > residual &&
        (want_dtype(n, residual, n->in[0]->dtype, e) < 0 || want_shape(n, residual, n->in[0]->shape, e) < 0))
        return -1;
    if (n->attr.bn.relu)
        n->bwd_reads |= READS_OUT;
    return 0;
}

static int infer_bn_apply(struct node *n, struct err *e)
{
    int64_t c = shape_channels(n->in[0]->shape);

    if (like_input0(n, e) < 0 || want_dtype(n, 1, DTYPE_F64, e) < 0 ||
        want_shape(n, 1, shape2(2, c), e) < 0 || want_channel_vectors(n, 2, 6, c, e) < 0)
        return -1;
    if (!(n->attr.bn.count >= 1))
        return err_set(e, "%g rows behind the statistics, at least 1 is accepted", n->attr.bn.count);
    return check_residual_relu(n, 6, e);
}

static int infer_bn_infer(struct node *n, struct err *e)
{
    if (like_input0(n, e) < 0 || want_channel_vectors(n, 1, 5, shape_channels(n->in[0]->shape), e) < 0)
        return -1;
    return check_residual_relu(n, 5, e);
}

static int infer_layernorm(struct node *n, struct err *e)
{
    if (like_input0(n, e) < 0)
        return -1;
    return want_channel_vectors(n, 1, 3, shape_channels(n->shape), e);
}

static int infer_linear(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0 || want_dims(n, 0, 2, e) < 0 || want_dtype(n, 1, DTYPE_F32, e) < 0 ||
        want_dims(n, 1, 2, e) < 0)
        return -1;
    struct shape x = n->in[0]->shape, w = n->in[1]->shape;
    if (want_shape(n, 1, shape2(w.dims[0], x.dims[1]), e) < 0)
        return -1;
    n->shape = shape2(x.dims[0], w.dims[0]);
    n->dtype = n->in[0]->dtype;
    return n->n_inputs > 2 ? want_channel_vectors(n, 2, 3, w.dims[0], e) : 0;
}

static int infer_attention(struct node *n, struct err *e)
{
    if (like_input0(n, e) < 0 || want_dtype(n, 1, n->dtype, e) < 0 || want_dims(n, 0, 2, e) < 0 ||
        want_dims(n, 1, 2, e) < 0)
        return -1;
    int64_t c = n->shape.dims[1];
    int heads = n->attr.attention.heads;
    if (heads < 1 || c % heads)
        return err_set(e, "%d heads do not divide width %lld", heads, (long long)c);
    if (n->attr.attention.dropout < 0 || n->attr.attention.dropout > 1)
        return err_set(e, "dropout %g, 0 to 1 is accepted", (double)n->attr.attention.dropout);
    return want_shape(n, 1, shape2(n->in[1]->shape.dims[0], 2 * c), e);
}

static int infer_cast(struct node *n, struct err *e)
{
    enum dtype to = n->attr.cast.dtype;

    if (like_input0(n, e) < 0)
        return -1;
    if (to != DTYPE_F32 && to != DTYPE_BF16)
        return err_set(e, "to %s, f32 or bf16 is accepted", dtype_name(to));
    n->dtype = to;
    return 0;
}

static int infer_add(struct node *n, struct err *e)
{
    if (like_input0(n, e) < 0 || want_dtype(n, 1, n->dtype, e) < 0)
        return -1;
    return want_shape(n, 1, n->shape, e);
}

static int infer_dropout(struct node *n, struct err *e)
{
    if (n->attr.dropout.p < 0 || n->attr.dropout.p > 1)
        return err_set(e, "probability %g, 0 to 1 is accepted", (double)n->attr.dropout.p);
    return like_input0(n, e);
}

static int infer_mean_spatial(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0 || want_dims(n, 0, 4, e) < 0)
        return -1;
    n->shape = shape2(n->in[0]->shape.dims[0], n->in[0]->shape.dims[3]);
    n->dtype = n->in[0]->dtype;
    return 0;
}

static int infer_concat_rows(struct node *n, struct err *e)
{
    struct shape s = n->in[0]->shape;

    n->dtype = n->in[0]->dtype;
    for (int i = 1; i < n->n_inputs; i++) {
        struct shape t = n->in[i]->shape;
        int64_t rows = t.dims[0];
        t.dims[0] = n->in[0]->shape.dims[0];
        if (!shape_equal(n->in[0]->shape, t) || want_dtype(n, i, n->dtype, e) < 0)
            return err_set(e, "input %d differs from input 0 in more than its rows", i);
        s.dims[0] += rows;
    }
    n->shape = s;
    return 0;
}

static int infer_slice_rows(struct node *n, struct err *e)
{
    int64_t from = n->attr.slice.from, to = n->attr.slice.to;

    if (like_input0(n, e) < 0)
        return -1;
    if (from < 0 || from > to || to > n->shape.dims[0])
        return err_set(e, "rows %lld to %lld of %lld", (long long)from, (long long)to,
                       (long long)n->shape.dims[0]);
    n->shape.dims[0] = to - from;
    return 0;
}

static int infer_shortcut_pad(struct node *n, struct err *e)
{
    if (like_input0(n, e) < 0 || want_dims(n, 0, 4, e) < 0)
        return -1;
    struct shape x = n->shape;
    int s = n->attr.shortcut.stride;
    int64_t c = n->attr.shortcut.channels;
    if (s < 1 || c < x.dims[3])
        return err_set(e, "stride %d to %lld channels: stride >= 1 and at least %lld channels are accepted",
                       s, (long long)c, (long long)x.dims[3]);
    n->shape = shape4(x.dims[0], (x.dims[1] + s - 1) / s, (x.dims[2] + s - 1) / s, c);
    return 0;
}

static int infer_softmax_xent(struct node *n, struct err *e)
{
    if (want_float(n, 0, e) < 0 || want_dims(n, 0, 2, e) < 0 || want_dtype(n, 1, DTYPE_I32, e) < 0)
        return -1;
    struct shape z = n->in[0]->shape;
    if (want_shape(n, 1, shape1(z.dims[0]), e) < 0)
        return -1;
    if (n->n_inputs > 2 && want_channel_vectors(n, 2, 3, z.dims[1], e) < 0)
        return -1;
    if (!(n->attr.xent.denominator > 0))
        return err_set(e, "denominator %g, a positive number is accepted", n->attr.xent.denominator);
    n->shape = shape1(1);
    n->dtype = DTYPE_F64;
    return 0;
}

/* The rows become N in graph_add(): only the graph knows N. */
static int infer_all_gather(struct node *n, struct err *e)
{
    n->shape = n->in[0]->shape;
    n->dtype = n->in[0]->dtype;
    (void)e;
    return 0;
}

static int infer_all_reduce(struct node *n, struct err *e)
{
    (void)e;
    n->shape = n->in[0]->shape;
    n->dtype = n->in[0]->dtype;
    return 0;
}

enum { IN0 = 1, IN1 = 2, IN2 = 4, IN3 = 8, IN6 = 64, ALL_INPUTS = 255 };

const struct op_def op_table[OP_COUNT] = {
    /*                     name          inputs    gradient to             backward reads          shape rule
     * flags
     */
    [OP_INPUT] = {"input", 0, 0, 0, 0, infer_input, 0},
    [OP_PARAM] = {"param", 0, 0, 0, 0, infer_param, 0},
    [OP_CONV2D] = {"conv2d", 2, 2, IN0 | IN1, IN0 | IN1, infer_conv2d, 0},
    [OP_BN_STATS] = {"bn_stats", 1, 1, IN0, IN0, infer_bn_stats, OP_SUMS_ROWS},
    [OP_BN_APPLY] = {"bn_apply", 6, 7, IN0 | IN1 | IN2 | IN3 | IN6, IN0 | IN1 | IN2, infer_bn_apply,
                     OP_WHOLE_FORWARD},
    [OP_BN_INFER] = {"bn_infer", 5, 6, 0, 0, infer_bn_infer, 0},
    [OP_LAYERNORM] = {"layernorm", 3, 3, IN0 | IN1 | IN2, IN0 | IN1, infer_layernorm, 0},
    [OP_LINEAR] = {"linear", 2, 3, IN0 | IN1 | IN2, IN0 | IN1, infer_linear, 0},
    [OP_ATTENTION] = {"attention", 2, 2, IN0 | IN1, IN0 | IN1 | READS_OUT, infer_attention, 0},
    [OP_CAST] = {"cast", 1, 1, IN0, 0, infer_cast, 0},
    [OP_ACT] = {"act", 1, 1, IN0, IN0, like_input0, 0},
    [OP_ADD] = {"add", 2, 2, IN0 | IN1, 0, infer_add, 0},
    [OP_DROPOUT] = {"dropout", 1, 1, IN0, 0, infer_dropout, 0},
    [OP_MAXPOOL] = {"maxpool", 1, 1, IN0, 0, infer_maxpool, 0},
    [OP_MEAN_SPATIAL] = {"mean_spatial", 1, 1, IN0, 0, infer_mean_spatial, 0},
    [OP_CONCAT_ROWS] = {"concat_rows", 1, OP_MAX_INPUTS, ALL_INPUTS, 0, infer_concat_rows,
                        OP_WHOLE_FORWARD | OP_WHOLE_BACKWARD},
    [OP_SLICE_ROWS] = {"slice_rows", 1, 1, IN0, 0, infer_slice_rows, OP_WHOLE_FORWARD | OP_WHOLE_BACKWARD},
    [OP_SHORTCUT_PAD] = {"shortcut_pad", 1, 1, IN0, 0, infer_shortcut_pad, 0},
    [OP_SOFTMAX_XENT] = {"softmax_xent", 2, 3, IN0, IN0 | IN1 | IN2, infer_softmax_xent, OP_SUMS_ROWS},
    [OP_ALL_GATHER] = {"all_gather", 1, 1, IN0, 0, infer_all_gather, 0},
    [OP_ALL_REDUCE] = {"all_reduce", 1, 1, IN0, 0, infer_all_reduce, 0},
};
