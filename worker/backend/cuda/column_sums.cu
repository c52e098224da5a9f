/* column_sums - sums over rows, channel by channel: the gradient of a bias. Declared in norm.h.
 *
 * Cut as the sums of batch norm are (columns.cuh): each row goes into fp64 by itself, partial sums of chunks
 * are added up in order.
 *
 * Letters: M rows, C channels, V channels a piece.
 */
#include "worker/backend/cuda/columns.cuh"
#include "worker/backend/cuda/norm.h"

template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS)
    column_sums_kernel(struct columns k, const T *__restrict__ x, double *__restrict__ part)
{
    __shared__ struct col_sums<V> s;
    const uint32_t me = columns_thread(k);
    const int64_t c = columns_channel<V>(k);

    columns_zero<V>(s, me);
    if (c < k.C) {
        struct col_rows r = columns_single_rows(k);

        for (int i = 0; i < r.count; i++, r.at += r.step) {
            float f[V];

            load_floats<T, V>(x + r.at + c, f);
#pragma unroll
            for (int v = 0; v < V; v++)
                s.v[0][v][me] += f[v];
        }
    }
    columns_write<V>(k, s, part);
}

__global__ void __launch_bounds__(COL_SUM_X *COL_SUM_Y)
    column_sums_finish(const double *__restrict__ part, uint32_t chunks, int64_t C, float *__restrict__ out,
                       bool add)
{
    const int64_t c = (int64_t)blockIdx.x * COL_SUM_X + threadIdx.x;
    double sum, none;

    columns_sum(part, chunks, C, &sum, &none);
    if (threadIdx.y == 0 && c < C)
        put_sum(&out[c], sum, add);
}

template <class T, int V>
static void launch_sums(const struct columns *k, const void *x, double *part, cudaStream_t stream)
{
    BF_LAUNCH((column_sums_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, (const T *)x,
              part);
}

size_t cuda_column_sums_scratch_bytes(int64_t M, int64_t C, enum dtype dtype)
{
    if (!col_valid(M, 1, C, dtype) || C == 0)
        return 0;
    const struct columns k = columns_make(M, 1, C, dtype);
    return columns_part_bytes(&k);
}

cudaError_t cuda_column_sums(int64_t M, int64_t C, enum dtype dtype, const void *x, float *out, bool add,
                             void *scratch, cudaStream_t stream)
{
    double *part = (double *)scratch;

    if (!col_valid(M, 1, C, dtype) || !col_aligned(x, C, dtype))
        return cudaErrorInvalidValue;
    if (C == 0)
        return cudaSuccess;
    const struct columns k = columns_make(M, 1, C, dtype);
    if (k.chunks > 0)
        COLUMNS_RUN(launch_sums, C, dtype, &k, x, part, stream);
    BF_LAUNCH(column_sums_finish, columns_sum_grid(C), columns_sum_block(), 0, stream, part, k.chunks, C, out,
              add);
    return cudaGetLastError();
}
