/* layernorm - layer normalisation: row-local but for dγ and dβ, which are summed over rows in fp64.
 *
 * Forward and dx take a row with W threads, a warp or a whole block, in passes that read it again from cache:
 * mean, variance about the mean, result. dγ and dβ are a pass of their own down the columns (columns.cuh,
 * every row a unit: nothing is summed in fp32), and the sum over chunks.
 *
 * Letters: M rows, C channels, V channels a piece.
 */
#include "worker/backend/cuda/columns.cuh"
#include "worker/backend/cuda/norm.h"

enum {
    LN_THREADS = 256,
    LN_WARP_PIECES = 4 * WARP_LANES, /* rows up to this many pieces are a warp's */
};

/* Over the W threads that share a row; everyone gets the sum. */
template <int W> static __device__ __forceinline__ float row_sum(float v, float *parts)
{
    return W == WARP_LANES ? warp_sum(v) : block_sum(v, parts);
}

/* This thread's row: warps of a block are rows side by side, or the block is one row. */
template <int W> static __device__ __forceinline__ int64_t row_of_thread()
{
    return (int64_t)blockIdx.x * (LN_THREADS / W) + threadIdx.x / W;
}

template <class T, int V, int W>
__global__ void __launch_bounds__(LN_THREADS)
    layernorm_kernel(int64_t M, int64_t C, float eps, const T *__restrict__ x,
                     const float *__restrict__ gamma, const float *__restrict__ beta, T *__restrict__ y,
                     float *__restrict__ stat)
{
    __shared__ float parts[BLOCK_MAX_WARPS];
    const int64_t row = row_of_thread<W>(), first = (int64_t)(threadIdx.x % W) * V;
    float sum = 0, sq = 0, f[V], g[V], b[V];

    if (row >= M)
        return;
    x += row * C;
    for (int64_t c = first; c < C; c += W * V) {
        load_floats<T, V>(x + c, f);
#pragma unroll
        for (int v = 0; v < V; v++)
            sum += f[v];
    }
    const float mean = row_sum<W>(sum, parts) / (float)C;
    for (int64_t c = first; c < C; c += W * V) {
        load_floats<T, V>(x + c, f);
#pragma unroll
        for (int v = 0; v < V; v++)
            sq += (f[v] - mean) * (f[v] - mean);
    }
    const float istd = 1.0f / sqrtf(row_sum<W>(sq, parts) / (float)C + eps);
    for (int64_t c = first; c < C; c += W * V) {
        load_floats<T, V>(x + c, f);
        load_param<V>(gamma + c, g);
        load_param<V>(beta + c, b);
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = (f[v] - mean) * istd * g[v] + b[v];
        put_floats<T, V>(y + row * C + c, f, false);
    }
    if (first == 0) {
        stat[2 * row] = mean;
        stat[2 * row + 1] = istd;
    }
}

/* dx = or += istd·(g - mean(g) - x̂·mean(g·x̂)) with g = dy·γ. */
template <class T, int V, int W>
__global__ void __launch_bounds__(LN_THREADS)
    layernorm_grad_kernel(int64_t M, int64_t C, const T *__restrict__ x, const float *__restrict__ gamma,
                          const float *__restrict__ stat, const T *__restrict__ dy, T *__restrict__ dx,
                          bool add)
{
    __shared__ float parts[BLOCK_MAX_WARPS];
    const int64_t row = row_of_thread<W>(), first = (int64_t)(threadIdx.x % W) * V;
    float sg = 0, sgx = 0, f[V], d[V], g[V];

    if (row >= M)
        return;
    const float mean = stat[2 * row], istd = stat[2 * row + 1];
    x += row * C;
    dy += row * C;
    for (int64_t c = first; c < C; c += W * V) {
        load_floats<T, V>(x + c, f);
        load_floats<T, V>(dy + c, d);
        load_param<V>(gamma + c, g);
#pragma unroll
        for (int v = 0; v < V; v++) {
            sg += d[v] * g[v];
            sgx += d[v] * g[v] * ((f[v] - mean) * istd);
        }
    }
    sg = row_sum<W>(sg, parts) / (float)C;
    sgx = row_sum<W>(sgx, parts) / (float)C;
    for (int64_t c = first; c < C; c += W * V) {
        load_floats<T, V>(x + c, f);
        load_floats<T, V>(dy + c, d);
        load_param<V>(gamma + c, g);
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = istd * (d[v] * g[v] - sg - (f[v] - mean) * istd * sgx);
        put_floats<T, V>(dx + row * C + c, f, add);
    }
}

/* part[chunk] = Σ dy·x̂, Σ dy. */
template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS)
    layernorm_param_kernel(struct columns k, const T *__restrict__ x, const float *__restrict__ stat,
                           const T *__restrict__ dy, double *__restrict__ part)
{
    __shared__ struct col_sums<V> sums;
    const uint32_t me = columns_thread(k);
    const int64_t c = columns_channel<V>(k);
    float f[V], d[V];

    columns_zero(sums, me);
    if (c < k.C) {
        for (uint32_t row = columns_unit(k); row < columns_end(k); row += columns_step(k)) {
            const float mean = stat[2 * (int64_t)row], istd = stat[2 * (int64_t)row + 1];

            load_floats<T, V>(x + row * k.C + c, f);
            load_floats<T, V>(dy + row * k.C + c, d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sums.v[0][v][me] += d[v] * ((f[v] - mean) * istd);
                sums.v[1][v][me] += d[v];
            }
        }
    }
    columns_write<V>(k, sums, part);
}

__global__ void __launch_bounds__(COL_SUM_X *COL_SUM_Y)
    layernorm_finish_kernel(const double *__restrict__ part, uint32_t chunks, int64_t C,
                            float *__restrict__ dgamma, float *__restrict__ dbeta, bool add_dgamma,
                            bool add_dbeta)
{
    const int64_t c = (int64_t)blockIdx.x * COL_SUM_X + threadIdx.x;
    double a, b;

    columns_sum(part, chunks, C, &a, &b);
    if (threadIdx.y > 0 || c >= C)
        return;
    if (dgamma)
        put_sum(&dgamma[c], a, add_dgamma);
    if (dbeta)
        put_sum(&dbeta[c], b, add_dbeta);
}

/* ------------------------------------------------------------------ launchers */

static bool one_warp(int64_t C, int V)
{
    return C / V <= LN_WARP_PIECES;
}

static dim3 row_grid(int64_t M, int rows)
{
    return dim3((unsigned)col_ceil(M, rows));
}

template <class T, int V>
static void launch_rows(int64_t M, int64_t C, float eps, const void *x, const float *gamma, const float *beta,
                        void *y, float *stat, cudaStream_t stream)
{
    if (one_warp(C, V))
        BF_LAUNCH((layernorm_kernel<T, V, WARP_LANES>), row_grid(M, LN_THREADS / WARP_LANES),
                  dim3(LN_THREADS), 0, stream, M, C, eps, (const T *)x, gamma, beta, (T *)y, stat);
    else
        BF_LAUNCH((layernorm_kernel<T, V, LN_THREADS>), row_grid(M, 1), dim3(LN_THREADS), 0, stream, M, C,
                  eps, (const T *)x, gamma, beta, (T *)y, stat);
}

template <class T, int V>
static void launch_row_grads(int64_t M, int64_t C, const void *x, const float *gamma, const float *stat,
                             const void *dy, void *dx, bool add, cudaStream_t stream)
{
    if (one_warp(C, V))
        BF_LAUNCH((layernorm_grad_kernel<T, V, WARP_LANES>), row_grid(M, LN_THREADS / WARP_LANES),
                  dim3(LN_THREADS), 0, stream, M, C, (const T *)x, gamma, stat, (const T *)dy, (T *)dx, add);
    else
        BF_LAUNCH((layernorm_grad_kernel<T, V, LN_THREADS>), row_grid(M, 1), dim3(LN_THREADS), 0, stream, M,
                  C, (const T *)x, gamma, stat, (const T *)dy, (T *)dx, add);
}

template <class T, int V>
static void launch_params(const struct columns *k, const void *x, const float *stat, const void *dy,
                          double *part, cudaStream_t stream)
{
    BF_LAUNCH((layernorm_param_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, (const T *)x,
              stat, (const T *)dy, part);
}

cudaError_t cuda_layernorm_forward(int64_t M, int64_t C, enum dtype dtype, float eps, const void *x,
                                   const float *gamma, const float *beta, void *y, float *stat,
                                   cudaStream_t stream)
{
    if (!col_valid(M, 1, C, dtype) || !col_aligned(x, C, dtype) || !col_aligned(y, C, dtype))
        return cudaErrorInvalidValue;
    if (M == 0 || C == 0)
        return cudaSuccess;
    COLUMNS_RUN(launch_rows, C, dtype, M, C, eps, x, gamma, beta, y, stat, stream);
    return cudaGetLastError();
}

size_t cuda_layernorm_backward_scratch_bytes(int64_t M, int64_t C, enum dtype dtype)
{
    if (!col_valid(M, 1, C, dtype) || C == 0)
        return 0;
    const struct columns k = columns_make(M, 1, C, dtype);
    return columns_part_bytes(&k);
}

cudaError_t cuda_layernorm_backward(int64_t M, int64_t C, enum dtype dtype, const void *x, const float *gamma,
                                    const float *stat, const void *dy, void *dx, float *dgamma, float *dbeta,
                                    bool add_dx, bool add_dgamma, bool add_dbeta, void *scratch,
                                    cudaStream_t stream)
{
    double *part = (double *)scratch;

    if (!col_valid(M, 1, C, dtype) || !col_aligned(x, C, dtype) || !col_aligned(dy, C, dtype) ||
        !col_aligned(dx, C, dtype))
        return cudaErrorInvalidValue;
    if (C == 0)
        return cudaSuccess;
    if (dx && M > 0)
        COLUMNS_RUN(launch_row_grads, C, dtype, M, C, x, gamma, stat, dy, dx, add_dx, stream);
    if (dgamma || dbeta) {
        const struct columns k = columns_make(M, 1, C, dtype);

        if (k.chunks > 0)
            COLUMNS_RUN(launch_params, C, dtype, &k, x, stat, dy, part, stream);
        BF_LAUNCH(layernorm_finish_kernel, columns_sum_grid(C), columns_sum_block(), 0, stream, part,
                  k.chunks, C, dgamma, dbeta, add_dgamma, add_dbeta);
    }
    return cudaGetLastError();
}
