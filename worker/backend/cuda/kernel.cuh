/* kernel - what every .cu file includes: the CUDA language under nvcc, or its emulation on CPUs (BF_SIM), and
 * the few device helpers that kernels share.
 *
 * Kernels are plain CUDA C++: no cooperative groups, no inline PTX, no float atomics. A kernel starts by
 *
 *   BF_LAUNCH(kernel, grid, block, dynamic_shared_bytes, stream, arguments...);
 *
 * with template kernels in brackets, BF_LAUNCH((scale<float, 4>), ...), and finds its dynamic shared memory
 * by
 *
 *   BF_DYNAMIC_SHARED(float, tile);      a float *tile, aligned to 16 bytes
 *
 * Errors of a launch (a grid of 0 blocks, say) are in cudaGetLastError(), here as there.
 *
 * Sums of warps and blocks add in an order that depends on the block's size only.
 */
#ifndef BACKEND_CUDA_KERNEL_CUH
#define BACKEND_CUDA_KERNEL_CUH

#include <stdint.h>

#ifdef BF_SIM
#include "tests/sim/cuemu.h"
#else
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#define BF_LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                              \
    kernel<<<(grid), (block), (smem_bytes), (stream)>>>(__VA_ARGS__)
/* One name for all kernels of a file: extern arrays of one name must have one type. */
#define BF_DYNAMIC_SHARED(type, name)                                                                        \
    extern __shared__ __align__(16) unsigned char bf_dynamic_shared[];                                       \
    type *name = reinterpret_cast<type *>(bf_dynamic_shared)
#endif

enum { WARP_LANES = 32, BLOCK_MAX_WARPS = 32 };

/* Activations are float or __nv_bfloat16; arithmetic is in float. */
__device__ __forceinline__ float load_f(const float *p)
{
    return *p;
}

__device__ __forceinline__ float load_f(const __nv_bfloat16 *p)
{
    return __bfloat162float(*p);
}

__device__ __forceinline__ void store_f(float *p, float v)
{
    *p = v;
}

/* Rounds to nearest, ties to even. */
__device__ __forceinline__ void store_f(__nv_bfloat16 *p, float v)
{
    *p = __float2bfloat16_rn(v);
}

struct op_sum {
    template <class T> static __device__ __forceinline__ T apply(T a, T b) { return a + b; }
};

struct op_max {
    template <class T> static __device__ __forceinline__ T apply(T a, T b)
    {
        return a > b ? a : b; /* b when either is NaN */
    }
};

/* Over the 32 lanes, all of which must call; every lane gets the result, the same bits. */
template <class Op, class T> __device__ __forceinline__ T warp_reduce(T v)
{
    for (int lanes = WARP_LANES / 2; lanes > 0; lanes /= 2)
        v = Op::apply(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}

template <class T> __device__ __forceinline__ T warp_sum(T v)
{
    return warp_reduce<op_sum>(v);
}

template <class T> __device__ __forceinline__ T warp_max(T v)
{
    return warp_reduce<op_max>(v);
}

/* Over a one-dimensional block of whole warps, all of whose threads must call; every thread gets the result.
 * parts: shared memory for BLOCK_MAX_WARPS values, free for the next use when this returns. */
template <class Op, class T> __device__ __forceinline__ T block_reduce(T v, T *parts)
{
    int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    int n_warps = blockDim.x / WARP_LANES;

    v = warp_reduce<Op>(v);
    if (lane == 0)
        parts[warp] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < n_warps; w++)
        v = Op::apply(v, parts[w]);
    __syncthreads();
    return v;
}

template <class T> __device__ __forceinline__ T block_sum(T v, T *parts)
{
    return block_reduce<op_sum>(v, parts);
}

template <class T> __device__ __forceinline__ T block_max(T v, T *parts)
{
    return block_reduce<op_max>(v, parts);
}

#endif
