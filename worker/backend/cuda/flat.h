/* flat - sweeps over flat fp32 ranges: norms of gradients, the step's vote, optimisers.
 *
 * What changes from step to step is read from device memory (struct step_scalars, struct
 * step_ctx), so that a
 * captured graph can be replayed. Every update is skipped, on the device, when the vote says that a loss or a
 * gradient is not finite on any rank.
 *
 * Where all ranges are aligned to 16 bytes, 16 bytes are moved at a time.
 */
#ifndef BACKEND_CUDA_FLAT_H
#define BACKEND_CUDA_FLAT_H

#include <cuda_runtime_api.h>
#include "worker/engine/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* backend.h; both in device memory */
struct step_ctx;
struct step_scalars;

/* Doubles of scratch that a sum of squares needs. */
enum { FLAT_PARTIALS = 1024 };

/* *sum = Σx², in fp64 over fixed chunks; not finite when any x is not. */
cudaError_t flat_sumsq(const float *x, int64_t n, double *partials, double *sum, cudaStream_t stream);

/* grad_norm = √Σg²; grad_not_finite = 1 when it is not finite, else 0. */
cudaError_t flat_grad_norm(const float *g, int64_t n, double *partials, struct step_scalars *s,
                           cudaStream_t stream);

/* This rank's loss in the vote, and whether it is finite. loss NULL: 0, another rank counts it. */
cudaError_t flat_vote(const double *loss, struct step_scalars *s, cudaStream_t stream);

/* A range that an optimiser updates. bf16 (may be NULL) gets a rounded copy of the updated weights. */
struct flat_range {
    float *w, *g;
    void *bf16;
    int64_t n;
    double lr_scale; /* of the scalars' lr */
};

/* As backend.h says and torch.optim.SGD does:
 *
 *   g = clip·g + wd·w;  m = momentum·m + g;  w -= lr·(nesterov ? g + momentum·m : m)
 *
 * where clip = min(1, max_grad_norm/(grad_norm + 1e-6)). keep_grad != 0 leaves that g in the gradients; 0
 * saves writing it. */
struct flat_sgd_args {
    float momentum, weight_decay;
    int nesterov, keep_grad;
};
cudaError_t flat_sgd(const struct flat_range *r, float *m, const struct flat_sgd_args *a,
                     const struct step_scalars *s, cudaStream_t stream);

/* As torch.optim.AdamW, the number of updates being step->step + 1:
 *
 *   w -= lr·wd·w;  m += (1-β₁)(g - m);  v = β₂v + (1-β₂)g²;  w -= lr/(1-β₁ᵗ)·m/(√v/√(1-β₂ᵗ) + eps)
 */
struct flat_adamw_args {
    double beta1, beta2; /* below 1 */
    float eps, weight_decay;
};
cudaError_t flat_adamw(const struct flat_range *r, float *m, float *v, const struct flat_adamw_args *a,
                       const struct step_ctx *step, const struct step_scalars *s, cudaStream_t stream);

/* LARS works on all tensors at once, from two tables in device memory that are made once. A chunk lies within
 * one tensor. */
enum { FLAT_CHUNK = 16384 };
struct flat_tensor {
    int64_t first, count;     /* floats */
    int64_t chunk0, n_chunks; /* its chunks, set by flat_chunks() */
    double lr_scale;
    float weight_decay;
    int adapts; /* 0: plain SGD with momentum (biases, norms) */
};
struct flat_chunk {
    int64_t first; /* float */
    int32_t count, tensor;
};

/* Host code: cuts tensors into chunks, sets chunk0 and n_chunks, fills out unless it is NULL; returns how
 * many chunks there are. */
int64_t flat_chunks(struct flat_tensor *tensors, int64_t n_tensors, struct flat_chunk *out);

/*   g = trust·(clip·g + wd·w);  m = momentum·m + g;  w -= lr·(nesterov ? g + momentum·m : m)
 *   trust = eta·‖w‖/(‖clip·g‖ + wd·‖w‖ + eps), 1 when either norm is 0 or the tensor does not adapt
 *
 * Norms are per tensor, in fp64 over its chunks. */
struct flat_lars_args {
    const struct flat_tensor *tensors; /* in device memory, as chunks */
    const struct flat_chunk *chunks;
    int64_t n_tensors, n_chunks;
    float *w, *g, *m; /* whole flat ranges */
    void *bf16;       /* may be NULL */
    double *partials; /* 2·n_chunks, scratch */
    float *trust;     /* n_tensors, scratch */
    double eta, eps;
    float momentum;
    int nesterov;
};
cudaError_t flat_lars(const struct flat_lars_args *a, const struct step_scalars *s, cudaStream_t stream);

/* ema = decay·ema + (1-decay)·w */
cudaError_t flat_ema(float *ema, const float *w, int64_t n, double decay, const struct step_scalars *s,
                     cudaStream_t stream);

/* x = factor·x, whatever the vote says. */
cudaError_t flat_scale(float *x, int64_t n, float factor, cudaStream_t stream);

cudaError_t flat_zero(void *x, size_t bytes, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
