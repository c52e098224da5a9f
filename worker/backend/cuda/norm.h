/* norm - launchers of batch norm in its three operators (norm.cu), of layer norm (layernorm.cu), and of sums
 * over rows (column_sums.cu).
 *
 * The mathematics is that of the CPU's kernels; only last bits differ. Activations are f32 or bf16, 16-byte
 * aligned where C is a multiple of 4 (f32) or 8 (bf16); parameters, their gradients and running statistics
 * are f32; sums f64. A launcher neither allocates nor waits; it returns cudaErrorInvalidValue for sizes that
 * it does not take (rows above 2^31 - 1, channels above 2^24, another element type, a pointer that is not
 * aligned) and else cudaGetLastError(). Zero rows are legal: sums and gradients of parameters are then
 * defined as 0.
 *
 * Each …_scratch_bytes() is what the launcher of that name needs, 64-byte aligned, during its kernels only.
 *
 * Letters: n samples of `pixels` rows each (1 for (n,C)), M rows, C channels.
 */
#ifndef BACKEND_CUDA_NORM_H
#define BACKEND_CUDA_NORM_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "worker/engine/tensor.h"

struct cuda_bn_shape {
    int64_t n, pixels, C;
    enum dtype dtype; /* of x, y, the residual and their gradients */
};

/* sums f64 (2,C) = Σx, Σx². */
size_t cuda_bn_stats_scratch_bytes(const struct cuda_bn_shape *s);
cudaError_t cuda_bn_stats_forward(const struct cuda_bn_shape *s, const void *x, double *sums, void *scratch,
                                  cudaStream_t stream);

/* dx = or += dΣx + 2·x·dΣx², from dsums f64 (2,C). No scratch. */
cudaError_t cuda_bn_stats_backward(const struct cuda_bn_shape *s, const void *x, const double *dsums,
                                   void *dx, bool add, cudaStream_t stream);

struct cuda_bn_apply {
    double count; /* rows behind the sums, over all ranks */
    float eps, momentum;
    bool relu;
};

/* y = (x - mean)·γ/std + β [+ residual] [max 0]; moves the running statistics once. residual may be NULL. */
size_t cuda_bn_apply_scratch_bytes(const struct cuda_bn_shape *s);
cudaError_t cuda_bn_apply_forward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a, const void *x,
                                  const double *sums, const float *gamma, const float *beta,
                                  float *running_mean, float *running_var, const void *residual, void *y,
                                  void *scratch, cudaStream_t stream);

/* What bn_apply's backward reads and writes. Each of dx, dres, dsums, dgamma, dbeta may be NULL; y is read
 * with ReLU only. dx and dres are different buffers. */
struct cuda_bn_grad {
    const void *x, *y, *dy;
    const double *sums;
    const float *gamma;
    void *dx, *dres;
    double *dsums; /* f64 (2,C) */
    float *dgamma, *dbeta;
    bool add_dx, add_dres, add_dsums, add_dgamma, add_dbeta;
};

/* Scratch: cuda_bn_apply_scratch_bytes(). */
cudaError_t cuda_bn_apply_backward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a,
                                   const struct cuda_bn_grad *g, void *scratch, cudaStream_t stream);

/* As bn_apply's forward with the running statistics for moments; a->count and a->momentum are not read. */
size_t cuda_bn_infer_scratch_bytes(const struct cuda_bn_shape *s);
cudaError_t cuda_bn_infer_forward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a, const void *x,
                                  const float *gamma, const float *beta, const float *running_mean,
                                  const float *running_var, const void *residual, void *y, void *scratch,
                                  cudaStream_t stream);

/* x (M,C); stat f32 (M,2) receives mean and 1/std of each row and is what backward reads. */
cudaError_t cuda_layernorm_forward(int64_t M, int64_t C, enum dtype dtype, float eps, const void *x,
                                   const float *gamma, const float *beta, void *y, float *stat,
                                   cudaStream_t stream);

/* dx, dgamma, dbeta may be NULL. */
size_t cuda_layernorm_backward_scratch_bytes(int64_t M, int64_t C, enum dtype dtype);
cudaError_t cuda_layernorm_backward(int64_t M, int64_t C, enum dtype dtype, const void *x, const float *gamma,
                                    const float *stat, const void *dy, void *dx, float *dgamma, float *dbeta,
                                    bool add_dx, bool add_dgamma, bool add_dbeta, void *scratch,
                                    cudaStream_t stream);

/* out (C) = or += the sums of x (M,C) over its rows (column_sums.cu). */
size_t cuda_column_sums_scratch_bytes(int64_t M, int64_t C, enum dtype dtype);
cudaError_t cuda_column_sums(int64_t M, int64_t C, enum dtype dtype, const void *x, float *out, bool add,
                             void *scratch, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
