/* conv_sim - a convolution as cuDNN describes it, and its three passes on CPUs. */
#ifndef TESTS_SIM_CONV_SIM_H
#define TESTS_SIM_CONV_SIM_H

#include <cstddef>
#include <cstdint>

namespace cusim
{
/* dims (N,C,H,W) as cuDNN orders them, or (K,C/groups,R,S); strides in elements. */
struct ConvTensor {
    int64_t id, dims[4], strides[4], alignment;
    bool bf16;
    int64_t count() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
    size_t element() const { return bf16 ? 2 : 4; }
    /* From the first element to behind the last. */
    size_t bytes() const;
};

enum class Pass { FORWARD, DATA, FILTER };

struct Conv {
    Pass pass;
    ConvTensor x, w, y;
    int64_t pad[2], stride[2], dilation[2];
    double alpha, beta;
    int64_t groups() const { return x.dims[1] / w.dims[1]; }
    const ConvTensor &result() const { return pass == Pass::FORWARD ? y : pass == Pass::DATA ? x : w; }
};

/* "" when shapes, paddings and strides belong together, else what does not. */
const char *conv_mismatch(const Conv &c);

/* How it is computed. */
struct ConvWay {
    bool tf32;        /* the operands are rounded */
    unsigned shuffle; /* other than 0: the samples of the filter's gradient are added in another order */
    int64_t parts;    /* of each sum: they are added up by themselves, and then added */
};

void conv_run(const Conv &c, char *x, char *w, char *y, const ConvWay &way);
} // namespace cusim

#endif
