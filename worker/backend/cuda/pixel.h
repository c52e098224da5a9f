/* pixel - launchers of what looks at pixels but convolution: max pooling, mean over pixels, the
 * parameter-free shortcut.
 *
 * Activations are f32 or bf16, channels-last, 16-byte aligned where C is a multiple of 4 (f32) or 8 (bf16). A
 * launcher neither allocates nor waits, needs no scratch, and returns cudaErrorInvalidValue for sizes that it
 * does not take (2^31 pieces of 16 bytes, or of one channel, in a tensor; another element type; a pointer
 * that is not aligned) and else cudaGetLastError(). Zero rows are legal.
 *
 * Letters: n samples, H×W and Ho×Wo pixels, C channels.
 */
#ifndef BACKEND_CUDA_PIXEL_H
#define BACKEND_CUDA_PIXEL_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "worker/engine/tensor.h"

/* kernel 1 to 255, pad at most kernel/2: no window is empty and a place in it fits 16 bits. */
struct cuda_pool_shape {
    int64_t n, H, W, C, Ho, Wo;
    int kernel, stride, pad;
    enum dtype dtype;
};

/* place u16 (n,Ho,Wo,C), 16-byte aligned, receives each maximum's place in its window, row-major: of equals
 * the first, and a NaN wins over numbers. */
cudaError_t cuda_maxpool_forward(const struct cuda_pool_shape *s, const void *x, void *y, uint16_t *place,
                                 cudaStream_t stream);
cudaError_t cuda_maxpool_backward(const struct cuda_pool_shape *s, const void *dy, const uint16_t *place,
                                  void *dx, bool add, cudaStream_t stream);

/* x (n,pixels,C), y (n,C). */
cudaError_t cuda_mean_spatial_forward(int64_t n, int64_t pixels, int64_t C, enum dtype dtype, const void *x,
                                      void *y, cudaStream_t stream);
cudaError_t cuda_mean_spatial_backward(int64_t n, int64_t pixels, int64_t C, enum dtype dtype, const void *dy,
                                       void *dx, bool add, cudaStream_t stream);

/* x (n,H,W,C) → y (n,⌈H/stride⌉,⌈W/stride⌉,Co): of the Co - C new channels half, rounded down, lie in front.
 */
struct cuda_shortcut_shape {
    int64_t n, H, W, C, Co;
    int stride;
    enum dtype dtype;
};

cudaError_t cuda_shortcut_pad_forward(const struct cuda_shortcut_shape *s, const void *x, void *y,
                                      cudaStream_t stream);
cudaError_t cuda_shortcut_pad_backward(const struct cuda_shortcut_shape *s, const void *dy, void *dx,
                                       bool add, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
