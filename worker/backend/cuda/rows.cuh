/* rows - what kernels that walk along rows or flat ranges share: packs of elements that one instruction
 * moves, sums and maxima over the threads of a row in a fixed order, and the draws of dropout.
 *
 * Which thread holds which element depends on the length alone, never on alignment: an unaligned range is
 * moved element by element, but gives the same bits.
 */
#ifndef BACKEND_CUDA_ROWS_CUH
#define BACKEND_CUDA_ROWS_CUH

#include <math.h>
#include <stdint.h>
#include "common/philox.h"
#include "worker/backend/cuda/kernel.cuh"

#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

/* W elements that are loaded or stored by one instruction when W·sizeof(T) is 16 (or 8, 4, 2) bytes. */
template <typename T, int W> struct alignas(sizeof(T) * W) pack {
    T v[W];
};

/* Elements of T in 16 bytes. */
template <typename T> constexpr int PACK = 16 / (int)sizeof(T);

static inline bool aligned(const void *p, size_t bytes)
{
    return (uintptr_t)p % bytes == 0;
}

/* out = x[j … j+W-1]; `fill` beyond n. `whole`: x + j lies on a border of W elements wherever j is a multiple
 * of W. */
template <int W, typename T>
__device__ __forceinline__ void load_pack(const T *x, int64_t j, int64_t n, bool whole, float fill,
                                          float (&out)[W])
{
    if (whole && j + W <= n) {
        const pack<T, W> p = *reinterpret_cast<const pack<T, W> *>(x + j);

        UNROLL
        for (int k = 0; k < W; k++)
            out[k] = load_f(&p.v[k]);
    } else {
        UNROLL
        for (int k = 0; k < W; k++)
            out[k] = j + k < n ? load_f(x + j + k) : fill;
    }
}

/* y[j … j+W-1] = v, as far as n. */
template <int W, typename T>
__device__ __forceinline__ void store_pack(T *y, int64_t j, int64_t n, bool whole, const float (&v)[W])
{
    if (whole && j + W <= n) {
        pack<T, W> p;

        UNROLL
        for (int k = 0; k < W; k++)
            store_f(&p.v[k], v[k]);
        *reinterpret_cast<pack<T, W> *>(y + j) = p;
    } else {
        UNROLL
        for (int k = 0; k < W; k++)
            if (j + k < n)
                store_f(y + j + k, v[k]);
    }
}

/* Symmetric, unlike op_max: a NaN is passed over on whichever side it is. */
struct op_fmax {
    template <class T> static __device__ __forceinline__ T apply(T a, T b) { return fmaxf(a, b); }
};

struct op_min {
    template <class T> static __device__ __forceinline__ T apply(T a, T b) { return b < a ? b : a; }
};

/* Over GROUP threads, a warp or the whole block, all of which must call; every thread gets the result. */
template <class Op, int GROUP, class T> __device__ __forceinline__ T group_reduce(T v)
{
    if constexpr (GROUP == WARP_LANES) {
        return warp_reduce<Op>(v);
    } else {
        __shared__ T parts[GROUP / WARP_LANES];

        return block_reduce<Op>(v, parts);
    }
}

template <int GROUP, class T> __device__ __forceinline__ T group_sum(T v)
{
    return group_reduce<op_sum, GROUP>(v);
}

template <int GROUP> __device__ __forceinline__ float group_max(float v)
{
    return group_reduce<op_fmax, GROUP>(v);
}

/* Rows shared out to groups of GROUP threads: a block of ROW_THREADS holds one a warp, or a block is one. */
enum { ROW_THREADS = 128 };

template <int GROUP> constexpr int GROUP_BLOCK = GROUP == WARP_LANES ? (int)ROW_THREADS : GROUP;
template <int GROUP> constexpr int GROUP_ROWS = GROUP_BLOCK<GROUP> / GROUP;

template <int GROUP> __device__ __forceinline__ int64_t group_row(void)
{
    return (int64_t)blockIdx.x * GROUP_ROWS<GROUP> + threadIdx.x / GROUP;
}

/* What a site of dropout draws from: the key and the step are made of device memory when the kernel runs. */
struct draws {
    struct philox_key key;
    uint32_t threshold, step;
    float scale; /* of what is kept: 1/(1-p); 0 when p = 1 */
};

/* Bit k: the element at position at + k of (sample, sub) is kept, k = 0 … 3. The draws are those of the CPU's
 * dropout_keep(). */
__device__ __forceinline__ uint32_t draw_keep4(const struct draws &d, uint32_t sample, uint32_t sub,
                                               int64_t at)
{
    const int skip = (int)(at % 4);
    struct philox_block b = philox(d.key, (uint32_t)(at / 4), sample, d.step, sub);
    uint32_t bits = 0;

    UNROLL
    for (int k = 0; k < 4; k++)
        bits |= (uint32_t)(b.v[k] >= d.threshold) << k;
    if (skip == 0)
        return bits;
    b = philox(d.key, (uint32_t)(at / 4) + 1, sample, d.step, sub);
    UNROLL
    for (int k = 0; k < 4; k++)
        bits |= (uint32_t)(b.v[k] >= d.threshold) << (4 + k);
    return bits >> skip & 15u;
}

#endif
