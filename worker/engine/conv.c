/* conv - see conv.h. */
#include "worker/engine/conv.h"
#include "worker/engine/graph.h"

struct conv_shape conv_shape_of(const struct node *n)
{
    const int64_t *x = n->in[0]->shape.dims, *y = n->shape.dims;

    return (struct conv_shape){
        .n = x[0],
        .h = x[1],
        .w = x[2],
        .ci = x[3],
        .ho = y[1],
        .wo = y[2],
        .co = y[3],
        .groups = n->attr.conv.groups,
        .kernel = n->attr.conv.kernel,
        .stride = n->attr.conv.stride,
        .pad = n->attr.conv.pad,
    };
}

unsigned conv_passes_of(const struct node *n)
{
    unsigned passes = 1u << CONV_FORWARD;

    if (n->in[0]->needs_grad)
        passes |= 1u << CONV_BACKWARD_DATA;
    if (n->in[1]->needs_grad)
        passes |= 1u << CONV_BACKWARD_WEIGHTS;
    return passes;
}
