/* reorder - see reorder.h. One thread an element of the result: writes are coalesced, and the reads of a warp
 * fall into few cache lines because K is at most 49 or so. Weights are a thousandth of what a step moves. */
#include "worker/backend/cuda/kernel.cuh"
#include "worker/backend/cuda/reorder.h"
extern "C" {
#include "worker/engine/tensor.h"
}

enum { REORDER_BLOCK = 256 };

/* At most this many elements (the grid's first dimension has 31 bits). */
static const int64_t REORDER_MAX = (int64_t)REORDER_BLOCK * 0x7fffffff;

template <typename T>
__global__ void reorder_to_krsc_kernel(const float *w, T *out, int64_t I, int64_t K, int64_t count)
{
    const int64_t at = (int64_t)blockIdx.x * REORDER_BLOCK + threadIdx.x;

    if (at < count) {
        const int64_t i = at % I, k = at / I % K, o = at / (I * K);

        store_f(out + at, w[(o * I + i) * K + k]);
    }
}

template <typename T>
__global__ void reorder_from_krsc_kernel(const T *dw, float *out, int add, int64_t I, int64_t K,
                                         int64_t count)
{
    const int64_t at = (int64_t)blockIdx.x * REORDER_BLOCK + threadIdx.x;

    if (at < count) {
        const int64_t k = at % K, i = at / K % I, o = at / (I * K);
        const float v = load_f(dw + (o * K + k) * I + i);

        out[at] = add ? out[at] + v : v;
    }
}

/* *count elements in blocks of a thread each; false for what cannot be reordered. */
static bool reorder_grid(int dtype, int64_t O, int64_t I, int64_t K, int64_t *count, unsigned *grid)
{
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        return false;
    if (O < 0 || I < 0 || K < 0 || (O && I && K && O > REORDER_MAX / I / K))
        return false;
    *count = O * I * K;
    *grid = (unsigned)((*count + REORDER_BLOCK - 1) / REORDER_BLOCK);
    return true;
}

extern "C" cudaError_t reorder_weights_to_krsc(const float *w, void *out, int dtype, int64_t O, int64_t I,
                                               int64_t K, cudaStream_t stream)
{
    int64_t count;
    unsigned grid;

    if (!reorder_grid(dtype, O, I, K, &count, &grid))
        return cudaErrorInvalidValue;
    if (count == 0)
        return cudaSuccess;
    if (dtype == DTYPE_F32)
        BF_LAUNCH(reorder_to_krsc_kernel<float>, grid, REORDER_BLOCK, 0, stream, w, (float *)out, I, K,
                  count);
    else
        BF_LAUNCH(reorder_to_krsc_kernel<__nv_bfloat16>, grid, REORDER_BLOCK, 0, stream, w,
                  (__nv_bfloat16 *)out, I, K, count);
    return cudaGetLastError();
}

extern "C" cudaError_t reorder_grad_from_krsc(const void *dw, int dtype, float *out, int add, int64_t O,
                                              int64_t I, int64_t K, cudaStream_t stream)
{
    int64_t count;
    unsigned grid;

    if (!reorder_grid(dtype, O, I, K, &count, &grid))
        return cudaErrorInvalidValue;
    if (count == 0)
        return cudaSuccess;
    if (dtype == DTYPE_F32)
        BF_LAUNCH(reorder_from_krsc_kernel<float>, grid, REORDER_BLOCK, 0, stream, (const float *)dw, out,
                  add, I, K, count);
    else
        BF_LAUNCH(reorder_from_krsc_kernel<__nv_bfloat16>, grid, REORDER_BLOCK, 0, stream,
                  (const __nv_bfloat16 *)dw, out, add, I, K, count);
    return cudaGetLastError();
}
