/* reorder - weights of convolutions between the engine's layout and cuDNN's.
 *
 * The engine keeps fp32 masters as (O, I, k, k), PyTorch's layout; cuDNN is fast on channels-last activations
 * with weights (O, k, k, I) ("KRSC") of the activations' type. O output channels, I input channels of a
 * group, K = k·k places of the kernel.
 */
#ifndef BACKEND_CUDA_REORDER_H
#define BACKEND_CUDA_REORDER_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out (O,K,I) of `dtype` (enum dtype: DTYPE_F32 or DTYPE_BF16, rounded to nearest even) = w (O,I,K) f32. */
cudaError_t reorder_weights_to_krsc(const float *w, void *out, int dtype, int64_t O, int64_t I, int64_t K,
                                    cudaStream_t stream);

/* out (O,I,K) f32 = dw (O,K,I) of `dtype`, or += when add is not 0. */
cudaError_t reorder_grad_from_krsc(const void *dw, int dtype, float *out, int add, int64_t O, int64_t I,
                                   int64_t K, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
