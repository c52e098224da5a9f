/* net - see net.h. */
#include "worker/nn/net.h"
#include "common/philox.h"

#include <stdio.h>
#include <string.h>

void net_init(struct net *net, struct graph *g, bool sync_norm, struct err *e)
{
    *net = (struct net){.graph = g, .err = e, .sync_norm = sync_norm, .lr_scale = 1, .weight_decay = -1};
}

bool net_failed(const struct net *net)
{
    return net->failed;
}

static void *fail(struct net *net)
{
    net->failed = true;
    return NULL;
}

void net_push(struct net *net, const char *fmt, ...)
{
    size_t n = strlen(net->path);
    va_list ap;

    ASSERT(net->depth < NET_MAX_DEPTH && n + 2 < sizeof net->path);
    net->cuts[net->depth++] = n;
    if (n)
        net->path[n++] = '.';
    va_start(ap, fmt);
    int m = vsnprintf(net->path + n, sizeof net->path - n, fmt, ap);
    va_end(ap);
    ASSERT(m >= 0 && (size_t)m < sizeof net->path - n);
}

void net_pop(struct net *net)
{
    ASSERT(net->depth > 0);
    net->path[net->cuts[--net->depth]] = 0;
}

/* "SCOPE.name" into out. */
static const char *full_name(const struct net *net, const char *name, char out[NET_NAME_BYTES])
{
    int n = snprintf(out, NET_NAME_BYTES, "%s%s%s", net->path, net->path[0] && name[0] ? "." : "", name);

    ASSERT(n < NET_NAME_BYTES);
    return out;
}

struct node *net_op(struct net *net, enum op op, const char *name, struct node *const *in, int n_in,
                    const union op_attr *attr)
{
    char path[NET_NAME_BYTES];

    if (net->failed)
        return NULL;
    struct node *n = graph_add(net->graph, op, full_name(net, name, path), in, n_in, attr, net->err);
    return n ? n : fail(net);
}

struct node *net_input(struct net *net, const char *name, struct shape shape, enum dtype dtype)
{
    return net_op(net, OP_INPUT, name, NULL, 0, &(union op_attr){.input = {shape, dtype}});
}

struct node *net_param(struct net *net, const char *name, enum param_kind kind, struct shape shape,
                       struct init init)
{
    char path[NET_NAME_BYTES];

    if (net->failed)
        return NULL;
    struct param *p =
        params_declare(net->graph->params, full_name(net, name, path), kind, shape, init, net->err);
    if (!p)
        return fail(net);
    p->lr_scale = net->lr_scale;
    p->weight_decay = net->weight_decay;
    struct node *n = graph_param(net->graph, p, net->err);
    return n ? n : fail(net);
}

struct node *net_conv2d(struct net *net, struct node *x, const char *name, int64_t channels, int kernel,
                        int stride, int groups, double std)
{
    if (net->failed)
        return NULL;
    int64_t ci = shape_channels(x->shape);
    net_push(net, "%s", name);
    struct node *w = net_param(net, "weight", PARAM_WEIGHT, shape4(channels, ci / groups, kernel, kernel),
                               (struct init){INIT_NORMAL, std});
    net_pop(net);
    return net_op(net, OP_CONV2D, name, (struct node *[]){x, w}, 2,
                  &(union op_attr){.conv = {kernel, stride, kernel / 2, groups}});
}

/* How many values per channel lie behind the statistics. */
static double stats_count(const struct net *net, const struct node *x)
{
    const struct row_split *rows = &net->graph->rows;
    int64_t n = net->sync_norm ? rows->total : rows->local;

    for (int i = 1; i < x->shape.n_dims - 1; i++)
        n *= x->shape.dims[i];
    return (double)n;
}

struct node *net_batchnorm(struct net *net, struct node *x, const char *name, struct node *residual,
                           bool relu, double gamma)
{
    if (net->failed)
        return NULL;
    struct shape c = shape1(shape_channels(x->shape));
    net_push(net, "%s", name);
    struct node *w = net_param(net, "weight", PARAM_WEIGHT, c, (struct init){INIT_CONST, gamma});
    struct node *b = net_param(net, "bias", PARAM_WEIGHT, c, (struct init){INIT_CONST, 0});
    struct node *mean = net_param(net, "running_mean", PARAM_BUFFER, c, (struct init){INIT_CONST, 0});
    struct node *var = net_param(net, "running_var", PARAM_BUFFER, c, (struct init){INIT_CONST, 1});
    union op_attr attr = {.bn = {stats_count(net, x), 1e-5f, 0.1f, relu}};
    struct node *y;
    if (!net->graph->training) {
        y = net_op(net, OP_BN_INFER, "", (struct node *[]){x, w, b, mean, var, residual}, residual ? 6 : 5,
                   &attr);
    } else {
        struct node *s = net_op(net, OP_BN_STATS, "stats", (struct node *[]){x}, 1, NULL);
        if (net->sync_norm)
            s = net_op(net, OP_ALL_REDUCE, "sync", (struct node *[]){s}, 1, NULL);
        y = net_op(net, OP_BN_APPLY, "", (struct node *[]){x, s, w, b, mean, var, residual}, residual ? 7 : 6,
                   &attr);
    }
    net_pop(net);
    return y;
}

struct node *net_linear(struct net *net, struct node *x, const char *name, int64_t out, struct init weight,
                        struct init bias)
{
    if (net->failed)
        return NULL;
    net_push(net, "%s", name);
    struct node *w = net_param(net, "weight", PARAM_WEIGHT, shape2(out, shape_channels(x->shape)), weight);
    struct node *b = net_param(net, "bias", PARAM_WEIGHT, shape1(out), bias);
    net_pop(net);
    return net_op(net, OP_LINEAR, name, (struct node *[]){x, w, b}, 3, NULL);
}

struct node *net_layernorm(struct net *net, struct node *x, const char *name)
{
    if (net->failed)
        return NULL;
    struct shape c = shape1(shape_channels(x->shape));
    net_push(net, "%s", name);
    struct node *w = net_param(net, "weight", PARAM_WEIGHT, c, (struct init){INIT_CONST, 1});
    struct node *b = net_param(net, "bias", PARAM_WEIGHT, c, (struct init){INIT_CONST, 0});
    net_pop(net);
    return net_op(net, OP_LAYERNORM, name, (struct node *[]){x, w, b}, 3,
                  &(union op_attr){.layernorm = {1e-5f}});
}

struct node *net_cast(struct net *net, struct node *x, enum dtype t)
{
    if (net->failed || x->dtype == t)
        return x;
    return net_op(net, OP_CAST, "cast", (struct node *[]){x}, 1, &(union op_attr){.cast = {t}});
}

struct node *net_act(struct net *net, struct node *x, enum act_kind kind)
{
    return net_op(net, OP_ACT, kind == ACT_RELU ? "relu" : "gelu", (struct node *[]){x}, 1,
                  &(union op_attr){.act = {kind}});
}

struct node *net_add(struct net *net, struct node *a, struct node *b)
{
    return net_op(net, OP_ADD, "add", (struct node *[]){a, b}, 2, NULL);
}

struct node *net_dropout(struct net *net, struct node *x, const char *name, double p)
{
    char path[NET_NAME_BYTES];

    if (p <= 0 || !net->graph->training)
        return x;
    uint32_t stream = philox_stream(full_name(net, name, path));
    return net_op(net, OP_DROPOUT, name, (struct node *[]){x}, 1,
                  &(union op_attr){.dropout = {(float)p, stream}});
}

struct node *net_mean_spatial(struct net *net, struct node *x)
{
    return net_op(net, OP_MEAN_SPATIAL, "pool", (struct node *[]){x}, 1, NULL);
}

struct node *net_maxpool(struct net *net, struct node *x, int kernel, int stride, int pad)
{
    return net_op(net, OP_MAXPOOL, "maxpool", (struct node *[]){x}, 1,
                  &(union op_attr){.conv = {kernel, stride, pad, 1}});
}

struct node *net_concat_rows(struct net *net, struct node *a, struct node *b)
{
    return net_op(net, OP_CONCAT_ROWS, "concat", (struct node *[]){a, b}, 2, NULL);
}

struct node *net_slice_rows(struct net *net, struct node *x, const char *name, int64_t from, int64_t to)
{
    return net_op(net, OP_SLICE_ROWS, name, (struct node *[]){x}, 1, &(union op_attr){.slice = {from, to}});
}

struct node *net_all_gather(struct net *net, struct node *x, const char *name)
{
    return net_op(net, OP_ALL_GATHER, name, (struct node *[]){x}, 1, NULL);
}

struct node *net_softmax_xent(struct net *net, struct node *logits, struct node *targets, struct node *offset,
                              double denominator)
{
    return net_op(net, OP_SOFTMAX_XENT, "loss", (struct node *[]){logits, targets, offset}, offset ? 3 : 2,
                  &(union op_attr){.xent = {denominator}});
}
