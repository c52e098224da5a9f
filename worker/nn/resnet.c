/* resnet - see resnet.h.
 *
 * Initialisation. Torchvision's networks: Kaiming normal, fan-out, as there. CIFAR family: Kaiming normal,
 * fan-in. BN γ = 1, β = 0 in both.
 */
#include "worker/nn/resnet.h"

#include <math.h>
#include <string.h>

static const struct resnet_arch archs[] = {
    /* name            small   pads   bottleneck  blocks     channels  classifier */
    {"resnet8", true, true, false, {1, 1, 1, 0}, 16, "linear"},
    {"resnet20", true, true, false, {3, 3, 3, 0}, 16, "linear"},
    {"resnet32", true, true, false, {5, 5, 5, 0}, 16, "linear"},
    {"resnet18", false, false, false, {2, 2, 2, 2}, 64, "fc"},
    {"resnet50", false, false, true, {3, 4, 6, 3}, 64, "fc"},
    {"cifar-resnet18", true, false, false, {2, 2, 2, 2}, 64, "fc"},
};

const struct resnet_arch *resnet_find(const char *name)
{
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (strcmp(archs[i].name, name) == 0)
            return &archs[i];
    return NULL;
}

/* The same rounding as the job spec's (jobspec_scale_channels): nearest, at least 1. */
static int64_t scale_channels(int64_t base, double width)
{
    int64_t c = lround((double)base * width);

    return c < 1 ? 1 : c;
}

/* k×k convolution with the family's initialisation. */
static struct node *conv(struct net *net, const struct resnet_arch *a, struct node *x, const char *name,
                         int64_t channels, int kernel, int stride)
{
    if (net_failed(net))
        return NULL;
    int64_t fan = (a->pads ? shape_channels(x->shape) : channels) * kernel * kernel;
    return net_conv2d(net, x, name, channels, kernel, stride, 1, sqrt(2.0 / (double)fan));
}

/* What is added at the end of a block: x itself where shapes agree; else option A (zero channels around every
 * stride-th pixel) or a 1×1 projection with its own batch norm. */
static struct node *shortcut(struct net *net, const struct resnet_arch *a, struct node *x, int64_t channels,
                             int stride)
{
    if (net_failed(net) || (stride == 1 && shape_channels(x->shape) == channels))
        return x;
    if (a->pads)
        return net_op(net, OP_SHORTCUT_PAD, "shortcut", &x, 1,
                      &(union op_attr){.shortcut = {stride, channels}});
    net_push(net, "downsample");
    struct node *y = conv(net, a, x, "0", channels, 1, stride);
    y = net_batchnorm(net, y, "1", NULL, false, 1);
    net_pop(net);
    return y;
}

/* 3×3, 3×3 (He et al. 2016, fig. 5 left). */
static struct node *basic_block(struct net *net, const struct resnet_arch *a, struct node *x, int64_t c,
                                int stride)
{
    struct node *y = conv(net, a, x, "conv1", c, 3, stride);

    y = net_batchnorm(net, y, "bn1", NULL, true, 1);
    y = conv(net, a, y, "conv2", c, 3, 1);
    return net_batchnorm(net, y, "bn2", shortcut(net, a, x, c, stride), true, 1);
}

/* 1×1, 3×3, 1×1 to four times the channels, the stride in the 3×3 (torchvision's "v1.5"). */
static struct node *bottleneck(struct net *net, const struct resnet_arch *a, struct node *x, int64_t c,
                               int stride)
{
    struct node *y = conv(net, a, x, "conv1", c, 1, 1);

    y = net_batchnorm(net, y, "bn1", NULL, true, 1);
    y = conv(net, a, y, "conv2", c, 3, stride);
    y = net_batchnorm(net, y, "bn2", NULL, true, 1);
    y = conv(net, a, y, "conv3", 4 * c, 1, 1);
    return net_batchnorm(net, y, "bn3", shortcut(net, a, x, 4 * c, stride), true, 1);
}

static struct node *stem(struct net *net, const struct resnet_arch *a, struct node *x, int64_t c)
{
    x = conv(net, a, x, "conv1", c, a->small ? 3 : 7, a->small ? 1 : 2);
    x = net_batchnorm(net, x, "bn1", NULL, true, 1);
    return a->small ? x : net_maxpool(net, x, 3, 2, 1);
}

struct node *resnet_build(struct net *net, const struct resnet_arch *a, double width, struct node *x)
{
    int64_t c = scale_channels(a->channels, width);

    x = stem(net, a, x, c);
    for (int stage = 0; stage < 4 && a->blocks[stage]; stage++) {
        c = scale_channels(a->channels << stage, width);
        for (int i = 0; i < a->blocks[stage]; i++) {
            int stride = i == 0 && stage > 0 ? 2 : 1;
            net_push(net, "layer%d.%d", stage + 1, i);
            x = a->bottleneck ? bottleneck(net, a, x, c, stride) : basic_block(net, a, x, c, stride);
            net_pop(net);
        }
    }
    return net_mean_spatial(net, x);
}
