/* attention - the row-wise parts of attention between its matrix products: softmax and dropout of a tile of
 * scores, and the gradient of both.
 *
 * Letters: h heads, n query rows of this rank, N keys, T query rows of a tile.
 */
#ifndef BACKEND_CUDA_ATTENTION_H
#define BACKEND_CUDA_ATTENTION_H

#include <cuda_runtime_api.h>
#include "worker/engine/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct step_ctx; /* backend.h */

/* A tile of scores: (h, T, ld) fp32. What lies between N and ld is neither read nor written. Where ld is a
 * multiple of 4 and the tile aligned to 16 bytes, rows are moved 16 bytes at a time. */
struct attention_tile {
    int64_t heads, rows; /* h, T; at most 2^31 - 1 rows in all heads */
    int64_t keys, ld;    /* N >= 1; elements from one row to the next, >= N */
    int64_t n, first;    /* row statistics are (h, n); row i of the tile is query first + i of this rank */
};

/* Dropout on the weights, keyed by the global indices of query and key. */
struct attention_dropout {
    float p; /* 0: none; the rest is not read then */
    uint32_t stream;
    int64_t query0, key0;        /* global sample indices of query 0 of this rank and of key 0 */
    const struct step_ctx *step; /* in device memory */
};

/* scores (h,T,ld) → weights (h,T,ld) of type t, P̃ = keep∘softmax(scores), and row_max, row_sum (h,n). For
 * DTYPE_F32 weights may be scores. */
cudaError_t attention_softmax(const struct attention_tile *tile, const struct attention_dropout *drop,
                              const float *scores, enum dtype t, void *weights, float *row_max,
                              float *row_sum, cudaStream_t stream);

/* From the scores (computed again), row_max and row_sum, and dP̃:
 *
 *   dscores = P∘(keep∘dP̃ - Σⱼ P·keep∘dP̃)     weights = P̃, unless it is NULL
 *
 * both of type t and (h,T,ld). For DTYPE_F32 dscores may be dweights, and weights may be scores. */
cudaError_t attention_softmax_grad(const struct attention_tile *tile, const struct attention_dropout *drop,
                                   const float *scores, const float *dweights, const float *row_max,
                                   const float *row_sum, enum dtype t, void *weights, void *dscores,
                                   cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
