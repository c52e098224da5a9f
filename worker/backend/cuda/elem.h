/* elem - operators that look at one element at a time: activations, sums, copies, casts, dropout.
 *
 * Elements are of type t, DTYPE_F32 or DTYPE_BF16 unless something else is said; bf16 is computed in fp32.
 * acc != 0 adds to the destination, 0 defines every element of it. Source and destination are one range or do
 * not overlap. Where all ranges are aligned to 16 bytes, 16 bytes are moved at a time.
 */
#ifndef BACKEND_CUDA_ELEM_H
#define BACKEND_CUDA_ELEM_H

#include <cuda_runtime_api.h>
#include "worker/engine/op.h"

#ifdef __cplusplus
extern "C" {
#endif

struct step_ctx; /* backend.h */

/* y = f(x). A NaN stays one. */
cudaError_t elem_act(enum act_kind kind, enum dtype t, const void *x, void *y, int64_t n,
                     cudaStream_t stream);
/* dx (+)= f'(x)·dy */
cudaError_t elem_act_grad(enum act_kind kind, enum dtype t, const void *x, const void *dy, void *dx,
                          int64_t n, int acc, cudaStream_t stream);

/* y = a + b */
cudaError_t elem_add(enum dtype t, const void *a, const void *b, void *y, int64_t n, cudaStream_t stream);

/* dst (+)= src; any element type. */
cudaError_t elem_copy_or_add(enum dtype t, const void *src, void *dst, int64_t n, int acc,
                             cudaStream_t stream);

/* dst (+)= src, of another type: f32 to bf16 (to nearest, ties to even) or bf16 to f32. */
cudaError_t elem_cast(enum dtype from, enum dtype to, const void *src, void *dst, int64_t n, int acc,
                      cudaStream_t stream);

/* x = factor·x */
cudaError_t elem_scale(enum dtype t, void *x, int64_t n, float factor, cudaStream_t stream);

/* Fills a range with NaN: bytes of ones, a NaN in every floating type. */
cudaError_t elem_fill_nan(void *dst, size_t bytes, cudaStream_t stream);

/* Dropout of (rows, width) elements; row i is global sample first + i. */
struct elem_dropout_args {
    int64_t rows, width, first;
    float p;
    uint32_t stream;
    const struct step_ctx *step; /* in device memory */
};

/* dst (+)= keep∘src. Forward and backward are the same function: the mask is drawn again. What is dropped is
 * 0 whatever it was. */
cudaError_t elem_dropout(const struct elem_dropout_args *d, enum dtype t, const void *src, void *dst, int acc,
                         cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
