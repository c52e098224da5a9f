/* test_kernels - see test_kernels.h. */
#include <cstring>
#include "tests/sim/test_kernels.h"
#include "worker/backend/cuda/kernel.cuh"

__global__ void scale(const float *__restrict__ x, float *y, int n, float a)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = a * x[i];
}

template <int BLOCK>
__global__ void __launch_bounds__(BLOCK) sums(const float *x, float *out, int n, int *count)
{
    __shared__ float parts[BLOCK_MAX_WARPS];
    BF_DYNAMIC_SHARED(float, tile);
    float a = 0;
    int mine = 0;

    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < n; i += gridDim.x * BLOCK) {
        a += load_f(x + i);
        mine++;
    }
    tile[threadIdx.x] = a;
    __syncthreads();
    a = tile[BLOCK - 1 - threadIdx.x];
    atomicAdd(count, mine);
    a = block_sum(a, parts);
    if (threadIdx.x == 0)
        out[blockIdx.x] = a;
}

__global__ void no_barrier(float *x)
{
    BF_DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void no_barrier_static(float *x)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

/* Of a template, whose variables the compiler places differently. Missing: the barrier before the second
 * round. */
template <class T> __global__ void no_second_barrier(T *x)
{
    __shared__ T tile[64];
    for (int round = 0; round < 2; round++) {
        tile[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
    }
}

__global__ void no_syncwarp(float *x)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    x[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void divergent(float *x)
{
    if (threadIdx.x < 16)
        __syncthreads();
    x[threadIdx.x] = 1;
}

__global__ void two_barriers(float *x)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 1;
}

__global__ void exited_lane(float *x)
{
    if (threadIdx.x % 32 == 3)
        return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

__global__ void outside_mask(float *x)
{
    if (threadIdx.x % 32 < 16)
        x[threadIdx.x] = __shfl_down_sync(0x0000ffffu, x[threadIdx.x], 8);
}

__global__ void half_warp(float *x)
{
    if (threadIdx.x % 32 < 16)
        __syncwarp();
    __syncthreads();
    x[threadIdx.x] = 1;
}

__global__ void out_of_bounds(float *x)
{
    x[threadIdx.x + 1] = 1;
}

__global__ void out_of_shared(float *x)
{
    BF_DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + 1] = x[threadIdx.x];
}

__global__ void uninitialised(float *x)
{
    __shared__ float tile[64];
    if (threadIdx.x < 63)
        tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];
}

__global__ void blocks_race(float *x)
{
    x[threadIdx.x] = float(blockIdx.x);
}

__global__ void misaligned(float *x)
{
    if (threadIdx.x == 0)
        *reinterpret_cast<float4 *>(x + 1) = make_float4(1, 2, 3, 4);
}

#ifdef PLANT_FLOAT_ATOMIC
__global__ void float_atomic(float *x)
{
    atomicAdd(x, 1.0f);
}
#endif

__global__ void endless_recursion(float *x, int depth)
{
    volatile float room[4096];
    room[threadIdx.x] = x[threadIdx.x] + float(depth);
    if (depth)
        endless_recursion(x, depth - 1);
    x[threadIdx.x] = room[threadIdx.x];
}

extern "C" cudaError_t scale_run(const float *x, float *y, int n, float a, cudaStream_t s)
{
    BF_LAUNCH(scale, (n + 63) / 64, 64, 0, s, x, y, n, a);
    return cudaGetLastError();
}

extern "C" cudaError_t sums_run(const float *x, float *out, int n, int *count, cudaStream_t s)
{
    BF_LAUNCH((sums<128>), 3, 128, 128 * sizeof(float), s, x, out, n, count);
    return cudaGetLastError();
}

extern "C" cudaError_t mistake_run(const char *which, float *x, cudaStream_t s)
{
    static const struct {
        const char *name;
        void (*kernel)(float *);
        int blocks;
    } mistakes[] = {
        {"no_barrier", no_barrier, 1},
        {"no_barrier_static", no_barrier_static, 1},
        {"no_second_barrier", no_second_barrier<float>, 1},
        {"no_syncwarp", no_syncwarp, 1},
        {"divergent", divergent, 1},
        {"two_barriers", two_barriers, 1},
        {"exited_lane", exited_lane, 1},
        {"outside_mask", outside_mask, 1},
        {"half_warp", half_warp, 1},
        {"out_of_bounds", out_of_bounds, 1},
        {"out_of_shared", out_of_shared, 1},
        {"uninitialised", uninitialised, 1},
        {"blocks_race", blocks_race, 2},
        {"misaligned", misaligned, 1},
    };

    for (const auto &m : mistakes)
        if (!strcmp(m.name, which)) {
            BF_LAUNCH(m.kernel, m.blocks, 64, 64 * sizeof(float), s, x);
            return cudaGetLastError();
        }
    if (!strcmp(which, "stack")) {
        BF_LAUNCH(endless_recursion, 1, 64, 0, s, x, 100);
        return cudaGetLastError();
    }
    if (!strcmp(which, "empty_grid")) {
        BF_LAUNCH(divergent, 0, 64, 0, s, x);
        return cudaGetLastError();
    }
    return cudaErrorInvalidValue;
}
