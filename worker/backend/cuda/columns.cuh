/* columns - channels-last tensors in 16-byte pieces, and sums over their rows.
 *
 * A block of COL_THREADS threads is tx pieces of V channels wide and ty rows high; grid.x are tiles of
 * channels, grid.y chunks of rows. What a row sum does with fp32 never crosses from one sample to the next,
 * nor more than COL_RUN rows of a thread: a *unit* is a stretch of one sample, `lanes` threads walk down it,
 * each sums its rows in fp32 and goes on in fp64. So a sum over the mini-batch comes out the same, but for
 * the last bits of fp64, however the samples are spread over ranks. Chunks are runs of units; their partial
 * sums go to scratch and are added up in order. Everything is cut by shapes alone, so the bits depend on
 * shapes only.
 *
 * Letters: n samples of `pixels` rows, C channels, V channels a piece (16 bytes, or 1 where C is no
 * multiple).
 */
#ifndef BACKEND_CUDA_COLUMNS_CUH
#define BACKEND_CUDA_COLUMNS_CUH

#include <stdint.h>
#include "worker/backend/cuda/kernel.cuh"
extern "C" {
#include "worker/engine/tensor.h"
}

enum {
    COL_THREADS = 256,
    COL_TX_MAX = 32,   /* pieces side by side: 512 bytes of one row */
    COL_RUN = 16,      /* rows that a thread sums in fp32, at most */
    COL_BLOCKS = 1024, /* blocks of a launch, about */
    COL_SUM_X = 32,    /* channels and */
    COL_SUM_Y = 16,    /* lanes of a block that adds up partial sums */
    COL_CHANNELS_MAX = 1 << 24,
};

/* ------------------------------------------------------------------ pieces of 16 bytes */

template <class T, int V> struct alignas(sizeof(T) * V) pack {
    T v[V];
};

template <class T, int V> static __device__ __forceinline__ pack<T, V> pack_at(const T *p)
{
    return *(const pack<T, V> *)p;
}

template <class T, int V>
static __device__ __forceinline__ void pack_floats(const pack<T, V> &p, float (&f)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++)
        f[v] = load_f(&p.v[v]);
}

template <class T, int V> static __device__ __forceinline__ void load_floats(const T *p, float (&f)[V])
{
    pack_floats(pack_at<T, V>(p), f);
}

/* dst = f, or dst += f. */
template <class T, int V>
static __device__ __forceinline__ void put_floats(T *dst, const float (&f)[V], bool add)
{
    pack<T, V> out;

    if (add) {
        const pack<T, V> old = pack_at<T, V>(dst);

#pragma unroll
        for (int v = 0; v < V; v++)
            store_f(&out.v[v], load_f(&old.v[v]) + f[v]);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++)
            store_f(&out.v[v], f[v]);
    }
    *(pack<T, V> *)dst = out;
}

/* V channels of a parameter, which need not lie on 16 bytes. */
template <int V> static __device__ __forceinline__ void load_param(const float *p, float (&f)[V])
{
    if (V % 4 == 0 && ((uintptr_t)p & 15) == 0) {
#pragma unroll
        for (int v = 0; v + 3 < V; v += 4) {
            const pack<float, 4> q = pack_at<float, 4>(p + v);

#pragma unroll
            for (int i = 0; i < 4; i++)
                f[v + i] = q.v[i];
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = p[v];
    }
}

/* *dst = v, or *dst += v. */
template <class T> static __device__ __forceinline__ void put_sum(T *dst, double v, bool add)
{
    *dst = (T)(add ? (double)*dst + v : v);
}

/* ------------------------------------------------------------------ how rows are cut */

struct columns {
    int64_t pixels, C;
    int64_t unit_rows; /* COL_RUN·lanes */
    uint32_t units, units_per_sample;
    uint32_t units_per_chunk;
    uint32_t chunks; /* grid.y */
    uint32_t tiles;  /* grid.x */
    uint32_t tx, ty;
    uint32_t log_lanes; /* 2^log_lanes of the ty share a unit */
};

static inline int64_t col_ceil(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t col_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t col_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Channels that a thread takes at a time. */
static inline int col_vector(int64_t C, enum dtype t)
{
    const int v = t == DTYPE_BF16 ? 8 : 4;

    return C % v == 0 ? v : 1;
}

/* Activations of a shape that the kernels take; rows may be 0. */
static inline bool col_valid(int64_t n, int64_t pixels, int64_t C, enum dtype t)
{
    return n >= 0 && pixels >= 0 && C >= 0 && C <= COL_CHANNELS_MAX && (t == DTYPE_F32 || t == DTYPE_BF16) &&
           (pixels == 0 || n <= INT32_MAX / pixels);
}

/* Whether p may be read in pieces; NULL may. */
static inline bool col_aligned(const void *p, int64_t C, enum dtype t)
{
    return (uintptr_t)p % (col_vector(C, t) * dtype_bytes(t)) == 0;
}

/* C > 0. Without rows there are no chunks. */
static inline struct columns columns_make(int64_t n, int64_t pixels, int64_t C, enum dtype t)
{
    const int64_t pieces = C / col_vector(C, t);
    struct columns k = {};
    int64_t lanes = 1, groups, run, step;

    for (k.tx = 1; k.tx < pieces && k.tx < COL_TX_MAX;)
        k.tx *= 2;
    k.ty = COL_THREADS / k.tx;
    k.tiles = (uint32_t)col_ceil(pieces, k.tx);
    k.pixels = pixels;
    k.C = C;
    while (lanes < k.ty && COL_RUN * lanes < pixels) {
        lanes *= 2;
        k.log_lanes++;
    }
    k.unit_rows = COL_RUN * lanes;
    k.units_per_sample = (uint32_t)col_max(col_ceil(pixels, k.unit_rows), 1);
    k.units = pixels ? (uint32_t)n * k.units_per_sample : 0;
    groups = k.ty / lanes;
    run = col_max(col_min(pixels, k.unit_rows) / lanes, 1);
    step = col_max(col_ceil(k.units, col_max(COL_BLOCKS / k.tiles, 1)), groups * col_max(4 / run, 1));
    k.units_per_chunk = (uint32_t)(col_ceil(step, groups) * groups);
    k.chunks = (uint32_t)col_ceil(k.units, k.units_per_chunk);
    return k;
}

static inline dim3 columns_grid(const struct columns *k)
{
    return dim3(k->tiles, k->chunks);
}

static inline dim3 columns_block(const struct columns *k)
{
    return dim3(k->tx, k->ty);
}

/* Two sums a channel and chunk. */
static inline size_t columns_part_bytes(const struct columns *k)
{
    return align_up((size_t)k->chunks * 2 * (size_t)k->C * sizeof(double));
}

/* This thread's first channel. */
template <int V> static __device__ __forceinline__ int64_t columns_channel(const struct columns &k)
{
    return ((int64_t)blockIdx.x * k.tx + threadIdx.x) * V;
}

/* This thread's first unit, the step to its next, and the end of the chunk. */
static __device__ __forceinline__ uint32_t columns_unit(const struct columns &k)
{
    return blockIdx.y * k.units_per_chunk + (threadIdx.y >> k.log_lanes);
}

static __device__ __forceinline__ uint32_t columns_step(const struct columns &k)
{
    return k.ty >> k.log_lanes;
}

static __device__ __forceinline__ uint32_t columns_end(const struct columns &k)
{
    const uint32_t end = (blockIdx.y + 1) * k.units_per_chunk;

    return end < k.units ? end : k.units;
}

/* This thread's rows of a unit: `count` from element `at` on, `step` elements apart; the sample begins at
 * element `sample`. Elements count from the thread's first channel in row 0. */
struct col_rows {
    int64_t sample, at, step;
    int count;
};

static __device__ __forceinline__ struct col_rows columns_rows(const struct columns &k, uint32_t unit)
{
    const uint32_t s = unit / k.units_per_sample, b = unit % k.units_per_sample, lanes = 1u << k.log_lanes;
    const int64_t first = b * k.unit_rows + (threadIdx.y & (lanes - 1));
    const int64_t end = min((b + 1) * k.unit_rows, k.pixels);
    struct col_rows r;

    r.sample = s * k.pixels * k.C;
    r.at = r.sample + first * k.C;
    r.step = lanes * k.C;
    r.count = first < end ? (int)(((end - first - 1) >> k.log_lanes) + 1) : 0;
    return r;
}

/* This thread's rows of the chunk, where units are single rows (pixels = 1). */
static __device__ __forceinline__ struct col_rows columns_single_rows(const struct columns &k)
{
    const uint32_t first = columns_unit(k), end = columns_end(k), step = columns_step(k);
    struct col_rows r;

    r.sample = r.at = first * k.C;
    r.step = step * k.C;
    r.count = first < end ? (int)((end - first - 1) / step + 1) : 0;
    return r;
}

/* ------------------------------------------------------------------ sums over a block, over chunks */

/* A block's running sums: two for each of V channels of each thread, fp64, in shared memory (registers are
 * for what is on its way). A thread touches its own until columns_write(). */
template <int V> struct col_sums {
    double v[2][V][COL_THREADS];
};

static __device__ __forceinline__ uint32_t columns_thread(const struct columns &k)
{
    return threadIdx.y * k.tx + threadIdx.x;
}

template <int V> static __device__ __forceinline__ void columns_zero(struct col_sums<V> &s, uint32_t me)
{
#pragma unroll
    for (int v = 0; v < V; v++)
        s.v[0][v][me] = s.v[1][v][me] = 0;
}

/* The chunk's sums to part[chunk][2][C]. All threads of the block call it; those beyond the last channel have
 * no say. */
template <int V>
static __device__ __forceinline__ void columns_write(const struct columns &k, struct col_sums<V> &s,
                                                     double *part)
{
    const uint32_t me = columns_thread(k);
    const int64_t c = columns_channel<V>(k);

    for (uint32_t rows = k.ty / 2; rows > 0; rows /= 2) {
        __syncthreads();
        if (threadIdx.y < rows) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                s.v[0][v][me] += s.v[0][v][me + rows * k.tx];
                s.v[1][v][me] += s.v[1][v][me + rows * k.tx];
            }
        }
    }
    if (threadIdx.y > 0 || c >= k.C)
        return;
#pragma unroll
    for (int v = 0; v < V; v++) {
        part[blockIdx.y * 2 * k.C + c + v] = s.v[0][v][me];
        part[(blockIdx.y * 2 + 1) * k.C + c + v] = s.v[1][v][me];
    }
}

/* Sums of part over all chunks for the channel blockIdx.x·COL_SUM_X + threadIdx.x, in a block of COL_SUM_X ×
 * COL_SUM_Y threads that all call it; valid where threadIdx.y is 0. */
static __device__ __forceinline__ void columns_sum(const double *part, uint32_t chunks, int64_t C, double *a,
                                                   double *b)
{
    __shared__ double s[2][COL_SUM_Y][COL_SUM_X];
    const int64_t c = (int64_t)blockIdx.x * COL_SUM_X + threadIdx.x;
    double sa = 0, sb = 0;

    if (c < C) {
#pragma unroll 4
        for (uint32_t i = threadIdx.y; i < chunks; i += COL_SUM_Y) {
            sa += part[(int64_t)i * 2 * C + c];
            sb += part[((int64_t)i * 2 + 1) * C + c];
        }
    }
    s[0][threadIdx.y][threadIdx.x] = sa;
    s[1][threadIdx.y][threadIdx.x] = sb;
    __syncthreads();
    *a = *b = 0;
    if (threadIdx.y == 0) {
        for (int y = 0; y < COL_SUM_Y; y++) {
            *a += s[0][y][threadIdx.x];
            *b += s[1][y][threadIdx.x];
        }
    }
}

static inline dim3 columns_sum_grid(int64_t C)
{
    return dim3((unsigned)col_ceil(C, COL_SUM_X));
}

static inline dim3 columns_sum_block(void)
{
    return dim3(COL_SUM_X, COL_SUM_Y);
}

/* run<T, V>(…) for the element type and as many channels a piece as C allows. */
#define COLUMNS_RUN(run, C, t, ...)                                                                          \
    do {                                                                                                     \
        if ((t) == DTYPE_BF16 && col_vector(C, t) == 8)                                                      \
            run<__nv_bfloat16, 8>(__VA_ARGS__);                                                              \
        else if ((t) == DTYPE_BF16)                                                                          \
            run<__nv_bfloat16, 1>(__VA_ARGS__);                                                              \
        else if (col_vector(C, t) == 4)                                                                      \
            run<float, 4>(__VA_ARGS__);                                                                      \
        else                                                                                                 \
            run<float, 1>(__VA_ARGS__);                                                                      \
    } while (0)

#endif
