/* conv - what a convolution node asks of a backend's library: sizes, and the passes that a step will run. */
#ifndef ENGINE_CONV_H
#define ENGINE_CONV_H

#include <stdint.h>

struct node;

struct conv_shape {
    int64_t n, h, w, ci; /* x (n,h,w,ci) */
    int64_t ho, wo, co;  /* y (n,ho,wo,co) */
    int64_t groups, kernel, stride, pad;
};

enum conv_pass { CONV_FORWARD, CONV_BACKWARD_DATA, CONV_BACKWARD_WEIGHTS, N_CONV_PASSES };

/* Of an OP_CONV2D node; n is this rank's rows, which may be 0. */
struct conv_shape conv_shape_of(const struct node *n);

/* The set of them, 1 << enum conv_pass: forward, and backward for each input that needs a gradient. */
unsigned conv_passes_of(const struct node *n);

#endif
