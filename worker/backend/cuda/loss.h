/* loss - softmax cross-entropy, with an optional offset per class (balanced softmax: log class counts).
 *
 * Letters: M rows, K classes.
 */
#ifndef BACKEND_CUDA_LOSS_H
#define BACKEND_CUDA_LOSS_H

#include <cuda_runtime_api.h>
#include "worker/engine/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct loss_rows {
    int64_t M, K;
    enum dtype t;        /* of logits and their gradient: DTYPE_F32 or DTYPE_BF16 */
    const void *logits;  /* (M,K) */
    const int32_t *y;    /* (M) */
    const float *offset; /* (K), added to every row of logits; may be NULL; gets no gradient */
    double denominator;  /* global number of rows that the loss is a mean over */
};

/* loss (1) = Σ over rows of ℓ / denominator; stat (M,2) keeps each row's maximum and 1/Σexp. A row with a
 * target outside 0 … K-1 has the loss NaN; *bad_row gets the index of the first one, else -1. row_loss (M) is
 * scratch. bad_row may be NULL. */
cudaError_t loss_softmax_xent(const struct loss_rows *r, float *stat, double *row_loss, double *loss,
                              int32_t *bad_row, cudaStream_t stream);

/* dlogits (M,K) (+)= (softmax - onehot)·*dloss / denominator; dloss in device memory. */
cudaError_t loss_softmax_xent_grad(const struct loss_rows *r, const float *stat, const double *dloss,
                                   void *dlogits, int acc, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
