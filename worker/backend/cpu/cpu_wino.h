/* cpu_wino - 3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3): a quarter of the
 * products of the direct algorithm (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
 * 2016). NHWC in and out, f32 or bf16; weights plain (Co, Ci, 3, 3) and, as all that is between, f32.
 *
 * Its rounding is about four times that of a direct convolution (relative L2 error 5e-7 to 7e-7 against
 * 1.5e-7), so it is an option of the job. Bits: a sample's result and gradient depend on nothing but the
 * sample; the weights' gradient is summed in an order that depends on the shape alone. Neither depends on the
 * number of threads.
 */
#ifndef BACKEND_CPU_CPU_WINO_H
#define BACKEND_CPU_CPU_WINO_H

#include <stdbool.h>
#include <stddef.h>
#include "worker/engine/conv.h"
#include "worker/engine/tensor.h"

/* Whether the algorithm can do the convolution, and with less work than the direct one. */
bool wino_fits(const struct conv_shape *s);

/* Bytes that each call needs at `scratch`, aligned to 64, for the passes (1u << enum conv_pass) wanted. */
size_t wino_scratch_bytes(const struct conv_shape *s, unsigned passes, int n_threads);

/* y (n,Ho,Wo,Co), defined. t is the type of activations and their gradients. */
void wino_forward(const struct conv_shape *s, enum dtype t, const void *x, const float *w, void *y,
                  float *scratch, int n_threads);

/* dx (n,H,W,Ci), defined or added to. */
void wino_backward_data(const struct conv_shape *s, enum dtype t, const void *dy, const float *w, void *dx,
                        bool add, float *scratch, int n_threads);

/* dw (Co,Ci,3,3), defined or added to. */
void wino_backward_weights(const struct conv_shape *s, enum dtype t, const void *x, const void *dy, float *dw,
                           bool add, float *scratch, int n_threads);

#endif
