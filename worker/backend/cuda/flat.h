/* flat - kernels of the sweeps over flat fp32 ranges: norms of gradients, the step's vote, optimisers.
 * engine/flat.h has the formulas.
 *
 * What changes from step to step is read from device memory (struct step_scalars), so that a captured graph
 * can be replayed. Every update is skipped, on the device, when the vote says that a loss or a gradient is
 * not finite on any rank.
 *
 * Where all ranges are aligned to 16 bytes, 16 bytes are moved at a time.
 */
#ifndef BACKEND_CUDA_FLAT_H
#define BACKEND_CUDA_FLAT_H

#include <cuda_runtime_api.h>
#include "worker/engine/flat.h"

#ifdef __cplusplus
extern "C" {
#endif

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

/* keep_grad != 0 leaves the clipped and decayed gradient in the gradients; 0 saves writing it. */
struct flat_sgd_args {
    float momentum, weight_decay;
    int nesterov, keep_grad;
};
cudaError_t flat_sgd(const struct flat_range *r, float *m, const struct flat_sgd_args *a,
                     const struct step_scalars *s, cudaStream_t stream);

cudaError_t flat_adam(const struct flat_range *r, float *m, float *v, const struct adam_args *a,
                      const struct step_scalars *s, cudaStream_t stream);

/* r->n and lr_scale are not read: the tensors say. */
cudaError_t flat_lars(const struct flat_range *r, float *m, const struct lars_args *a,
                      const struct step_scalars *s, cudaStream_t stream);

cudaError_t flat_ema(float *ema, const float *w, int64_t n, double decay, const struct step_scalars *s,
                     cudaStream_t stream);

/* x = factor·x, whatever the vote says. */
cudaError_t flat_scale(float *x, int64_t n, float factor, cudaStream_t stream);

cudaError_t flat_zero(void *x, size_t bytes, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
