/* cuda_blas - matrix products on cuBLASLt: cuda_blas.c is the only file that includes its header.
 *
 * Matrices are row-major: C (m,n) = alpha·op(A)·op(B) + beta·C, A and B of one type, sums in fp32. cuBLASLt
 * is column-major, where the same memory is the transposed matrix: it is asked for Cᵀ = op(B)ᵀ·op(A)ᵀ.
 *
 * An algorithm is chosen once for a shape (heuristics; nothing is measured) and kept, so a product has the
 * same bits whenever it is made on one kind of GPU with one version of the library: split sums go through the
 * workspace, which has one size and one stream. A product allocates nothing once its shape was seen, and can
 * be captured in a CUDA graph.
 *
 * Choices are not in the table of engine/tuning.h. They are made in the first step, when the alignment of the
 * matrices is known and the other ranks wait for this one, so they are not measured; and where nothing is
 * measured there is nothing to write down: on the same kind of GPU the same library says the same again.
 */
#ifndef BACKEND_CUDA_BLAS_H
#define BACKEND_CUDA_BLAS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/engine/tensor.h"

struct cuda_blas;

/* What happens to the product before it is stored. */
enum cuda_epilogue {
    CUDA_EPILOGUE_NONE,
    CUDA_EPILOGUE_BIAS,      /* + bias (n) */
    CUDA_EPILOGUE_BIAS_RELU, /* max(0, … + bias (n)) */
    /* C as without, and bias (m) is defined as the sums of op(A) over k: with A = dy transposed, the gradient
     * of the bias beside that of the weights. Not every type and shape has it: cuda_gemm_possible(). */
    CUDA_EPILOGUE_BIAS_GRAD,
};

/* op is the transpose for 'T' and nothing for 'N'; ld* are elements between rows as stored. */
struct cuda_gemm {
    char ta, tb;
    int64_t m, n, k;
    float alpha, beta;
    enum dtype ab_type, c_type; /* DTYPE_F32 or DTYPE_BF16; fp32 operands make fp32 results only */
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc;
    enum cuda_epilogue epilogue;
    void *bias; /* of c_type */
    /* More than one product (0 and 1 are one): elements from a matrix to the next, 0 to use it again. */
    int64_t batch, stride_a, stride_b, stride_c;
};

/* Everything runs on `stream`, which the caller keeps until after cuda_blas_destroy(); the workspace is
 * allocated here. allow_tf32: tensor cores may read fp32 operands with 10 bits of mantissa. */
struct cuda_blas *cuda_blas_create(cudaStream_t stream, bool allow_tf32, struct err *e);
void cuda_blas_destroy(struct cuda_blas *b);

/* Any of m, n, k, may be 0; k = 0 not together with a bias. Pointers are aligned to their elements at least;
 * fast is 16 bytes. */
int cuda_gemm_run(struct cuda_blas *b, const struct cuda_gemm *g, struct err *e);

/* Whether the library has an algorithm for it (pointers count by their alignment only). */
bool cuda_gemm_possible(struct cuda_blas *b, const struct cuda_gemm *g);

/* Writes a line for every shape so far into out, as much as fits: shape, algorithm, tile, split. */
void cuda_blas_text(const struct cuda_blas *b, char *out, size_t size);

#endif
