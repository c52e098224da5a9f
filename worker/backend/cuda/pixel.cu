/* pixel - max pooling, mean over pixels, the parameter-free shortcut.
 *
 * Most kernels give each thread one piece (V channels of one pixel) of what they write; backward gathers, so
 * nothing is added to by two threads. A piece's index fits 31 bits: divisions are of 32 bits.
 *
 * Letters: n samples, H×W and Ho×Wo pixels, C channels, V channels a piece, P = C/V pieces a pixel.
 */
#include "worker/backend/cuda/columns.cuh"
#include "worker/backend/cuda/pixel.h"

enum { PIECE_THREADS = 256, PLACE_KERNEL_MAX = 255 };

/* Whether n·h·w pixels of C channels have an index of 31 bits each, in pieces of V. */
static bool pieces_valid(int64_t n, int64_t h, int64_t w, int64_t C, int V)
{
    int64_t room = INT32_MAX;

    if (n < 0 || h < 0 || w < 0 || C < 0)
        return false;
    if (n == 0 || h == 0 || w == 0 || C == 0)
        return true;
    room /= n;
    room /= h;
    room /= w;
    return C / V <= room;
}

static dim3 piece_grid(uint32_t pieces)
{
    return dim3((unsigned)col_ceil(pieces, PIECE_THREADS));
}

static __device__ __forceinline__ uint32_t piece_of_thread()
{
    return blockIdx.x * PIECE_THREADS + threadIdx.x;
}

/* Where piece i lies: channel c of pixel (y, x) of sample s. */
struct spot {
    uint32_t s, y, x, c;
};

template <int V>
static __device__ __forceinline__ struct spot spot_of(uint32_t i, uint32_t h, uint32_t w, uint32_t P)
{
    struct spot t;

    t.c = i % P * V;
    i /= P;
    t.x = i % w;
    i /= w;
    t.y = i % h;
    t.s = i / h;
    return t;
}

/* ------------------------------------------------------------------ max pooling */

struct pool {
    uint32_t H, W, C, Ho, Wo;
    int kernel, stride, pad;
};

/* Keeps the larger value and its place; of equals the first, and a NaN wins over numbers. */
template <int V>
static __device__ __forceinline__ void pool_update(const float (&f)[V], int place, float (&best)[V],
                                                   uint16_t (&at)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        const bool better = f[v] > best[v] || (f[v] != f[v] && best[v] == best[v]);

        best[v] = better ? f[v] : best[v];
        at[v] = better ? (uint16_t)place : at[v];
    }
}

template <class T, int V>
__global__ void __launch_bounds__(PIECE_THREADS)
    maxpool_kernel(struct pool k, uint32_t pieces, const T *__restrict__ x, T *__restrict__ y,
                   uint16_t *__restrict__ place)
{
    const uint32_t i = piece_of_thread();
    pack<uint16_t, V> at;
    float best[V], f[V];

    if (i >= pieces)
        return;
    const struct spot t = spot_of<V>(i, k.Ho, k.Wo, k.C / V);
    const int top = (int)t.y * k.stride - k.pad, left = (int)t.x * k.stride - k.pad;
    const int y0 = max(top, 0), y1 = min(top + k.kernel, (int)k.H);
    const int x0 = max(left, 0), x1 = min(left + k.kernel, (int)k.W);
#pragma unroll
    for (int v = 0; v < V; v++) {
        best[v] = -INFINITY; /* and the first pixel's place, should it not be more than that */
        at.v[v] = (uint16_t)((y0 - top) * k.kernel + (x0 - left));
    }
    x += (int64_t)t.s * k.H * k.W * k.C + t.c;
    for (int py = y0; py < y1; py++) {
        for (int px = x0; px < x1; px++) {
            load_floats<T, V>(x + ((int64_t)py * k.W + px) * k.C, f);
            pool_update(f, (py - top) * k.kernel + (px - left), best, at.v);
        }
    }
    put_floats<T, V>(y + (int64_t)i * V, best, false);
    *(pack<uint16_t, V> *)(place + (int64_t)i * V) = at;
}

/* The windows that cover pixel p: their range [*from, *to] along one axis with `size` of them. */
static __device__ __forceinline__ void windows_over(int p, int kernel, int stride, int pad, int size,
                                                    int *from, int *to)
{
    const int last = p + pad, before = last - kernel; /* the first ends behind `before` */

    *from = before < 0 ? 0 : before / stride + 1;
    *to = min(last / stride, size - 1);
}

/* dx: what the windows over this pixel have for it, where their maximum is here; in the order of the windows.
 */
template <class T, int V>
__global__ void __launch_bounds__(PIECE_THREADS)
    maxpool_grad_kernel(struct pool k, uint32_t pieces, const T *__restrict__ dy,
                        const uint16_t *__restrict__ place, T *__restrict__ dx, bool add)
{
    const uint32_t i = piece_of_thread();
    float sum[V] = {}, f[V];
    int y0, y1, x0, x1;

    if (i >= pieces)
        return;
    const struct spot t = spot_of<V>(i, k.H, k.W, k.C / V);
    windows_over((int)t.y, k.kernel, k.stride, k.pad, (int)k.Ho, &y0, &y1);
    windows_over((int)t.x, k.kernel, k.stride, k.pad, (int)k.Wo, &x0, &x1);
    if (add)
        load_floats<T, V>(dx + (int64_t)i * V, sum);
    for (int oy = y0; oy <= y1; oy++) {
        for (int ox = x0; ox <= x1; ox++) {
            const int64_t at = (((int64_t)t.s * k.Ho + oy) * k.Wo + ox) * k.C + t.c;
            const int row = (int)t.y + k.pad - oy * k.stride, col = (int)t.x + k.pad - ox * k.stride;
            const pack<uint16_t, V> here = pack_at<uint16_t, V>(place + at);

            load_floats<T, V>(dy + at, f);
#pragma unroll
            for (int v = 0; v < V; v++)
                sum[v] += here.v[v] == row * k.kernel + col ? f[v] : 0;
        }
    }
    put_floats<T, V>(dx + (int64_t)i * V, sum, false);
}

template <class T, int V>
static void launch_maxpool(const struct pool *k, int64_t n, const void *x, void *y, uint16_t *place,
                           cudaStream_t stream)
{
    const uint32_t pieces = (uint32_t)n * k->Ho * k->Wo * (k->C / V);

    BF_LAUNCH((maxpool_kernel<T, V>), piece_grid(pieces), dim3(PIECE_THREADS), 0, stream, *k, pieces,
              (const T *)x, (T *)y, place);
}

template <class T, int V>
static void launch_maxpool_grad(const struct pool *k, int64_t n, const void *dy, const uint16_t *place,
                                void *dx, bool add, cudaStream_t stream)
{
    const uint32_t pieces = (uint32_t)n * k->H * k->W * (k->C / V);

    BF_LAUNCH((maxpool_grad_kernel<T, V>), piece_grid(pieces), dim3(PIECE_THREADS), 0, stream, *k, pieces,
              (const T *)dy, place, (T *)dx, add);
}

static bool type_valid(enum dtype t)
{
    return t == DTYPE_F32 || t == DTYPE_BF16;
}

/* Every window has a pixel, and its rows and columns fit an int. */
static bool pool_axis_valid(int64_t size, int64_t out, int kernel, int stride, int pad)
{
    return size > 0 && out > 0 && size + 2 * (int64_t)pad <= INT32_MAX && (out - 1) * stride - pad < size &&
           (out - 1) * stride + kernel <= INT32_MAX;
}

static bool pool_valid(const struct cuda_pool_shape *s)
{
    if (!type_valid(s->dtype) || s->kernel < 1 || s->kernel > PLACE_KERNEL_MAX || s->stride < 1 ||
        s->pad < 0 || s->pad > s->kernel / 2)
        return false;
    if (!pool_axis_valid(s->H, s->Ho, s->kernel, s->stride, s->pad) ||
        !pool_axis_valid(s->W, s->Wo, s->kernel, s->stride, s->pad))
        return false;
    const int V = col_vector(s->C, s->dtype);
    return pieces_valid(s->n, s->H, s->W, s->C, V) && pieces_valid(s->n, s->Ho, s->Wo, s->C, V);
}

static struct pool pool_of(const struct cuda_pool_shape *s)
{
    return {(uint32_t)s->H,  (uint32_t)s->W, (uint32_t)s->C, (uint32_t)s->Ho,
            (uint32_t)s->Wo, s->kernel,      s->stride,      s->pad};
}

/* A place is 2 bytes: a piece of 4 is 8, of 8 is 16. */
static bool place_aligned(const uint16_t *place, const struct cuda_pool_shape *s)
{
    return (uintptr_t)place % (col_vector(s->C, s->dtype) * sizeof(*place)) == 0;
}

cudaError_t cuda_maxpool_forward(const struct cuda_pool_shape *s, const void *x, void *y, uint16_t *place,
                                 cudaStream_t stream)
{
    if (!pool_valid(s) || !col_aligned(x, s->C, s->dtype) || !col_aligned(y, s->C, s->dtype) ||
        !place_aligned(place, s))
        return cudaErrorInvalidValue;
    if (s->n == 0 || s->C == 0)
        return cudaSuccess;
    const struct pool k = pool_of(s);
    COLUMNS_RUN(launch_maxpool, s->C, s->dtype, &k, s->n, x, y, place, stream);
    return cudaGetLastError();
}

cudaError_t cuda_maxpool_backward(const struct cuda_pool_shape *s, const void *dy, const uint16_t *place,
                                  void *dx, bool add, cudaStream_t stream)
{
    if (!pool_valid(s) || !col_aligned(dy, s->C, s->dtype) || !col_aligned(dx, s->C, s->dtype) ||
        !place_aligned(place, s))
        return cudaErrorInvalidValue;
    if (s->n == 0 || s->C == 0)
        return cudaSuccess;
    const struct pool k = pool_of(s);
    COLUMNS_RUN(launch_maxpool_grad, s->C, s->dtype, &k, s->n, dy, place, dx, add, stream);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------ mean over pixels */

/* A block is one sample and tile of channels: blockIdx.x = sample·tiles + tile; ty lanes walk down its pixels
 * and add up in a tree. */
template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS)
    mean_kernel(struct columns k, float inv, const T *__restrict__ x, T *__restrict__ y)
{
    __shared__ float s[V][COL_THREADS];
    const uint32_t sample = blockIdx.x / k.tiles, tile = blockIdx.x % k.tiles, me = columns_thread(k);
    const int64_t c = ((int64_t)tile * k.tx + threadIdx.x) * V;
    float sum[V] = {}, f[V];

    x += sample * k.pixels * k.C + c;
    if (c < k.C) {
#pragma unroll 4
        for (int64_t p = threadIdx.y; p < k.pixels; p += k.ty) {
            load_floats<T, V>(x + p * k.C, f);
#pragma unroll
            for (int v = 0; v < V; v++)
                sum[v] += f[v];
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++)
        s[v][me] = sum[v];
    for (uint32_t rows = k.ty / 2; rows > 0; rows /= 2) {
        __syncthreads();
        if (threadIdx.y < rows) {
#pragma unroll
            for (int v = 0; v < V; v++)
                s[v][me] += s[v][me + rows * k.tx];
        }
    }
    if (threadIdx.y > 0 || c >= k.C)
        return;
#pragma unroll
    for (int v = 0; v < V; v++)
        f[v] = s[v][me] * inv;
    put_floats<T, V>(y + sample * k.C + c, f, false);
}

template <class T, int V>
__global__ void __launch_bounds__(PIECE_THREADS)
    mean_grad_kernel(uint32_t pieces, uint32_t pixels, uint32_t C, float inv, const T *__restrict__ dy,
                     T *__restrict__ dx, bool add)
{
    const uint32_t i = piece_of_thread();
    float f[V];

    if (i >= pieces)
        return;
    const struct spot t = spot_of<V>(i, pixels, 1, C / V); /* a pixel counts as a row of one */
    load_floats<T, V>(dy + (int64_t)t.s * C + t.c, f);
#pragma unroll
    for (int v = 0; v < V; v++)
        f[v] *= inv;
    put_floats<T, V>(dx + (int64_t)i * V, f, add);
}

template <class T, int V>
static void launch_mean(const struct columns *k, int64_t n, const void *x, void *y, cudaStream_t stream)
{
    BF_LAUNCH((mean_kernel<T, V>), dim3((unsigned)n * k->tiles), columns_block(k), 0, stream, *k,
              1.0f / (float)k->pixels, (const T *)x, (T *)y);
}

template <class T, int V>
static void launch_mean_grad(int64_t n, int64_t pixels, int64_t C, const void *dy, void *dx, bool add,
                             cudaStream_t stream)
{
    const uint32_t pieces = (uint32_t)(n * pixels * (C / V));

    BF_LAUNCH((mean_grad_kernel<T, V>), piece_grid(pieces), dim3(PIECE_THREADS), 0, stream, pieces,
              (uint32_t)pixels, (uint32_t)C, 1.0f / (float)pixels, (const T *)dy, (T *)dx, add);
}

static bool mean_valid(int64_t n, int64_t pixels, int64_t C, enum dtype t)
{
    return col_valid(n, pixels, C, t) && pixels > 0 && pieces_valid(n, pixels, 1, C, col_vector(C, t));
}

cudaError_t cuda_mean_spatial_forward(int64_t n, int64_t pixels, int64_t C, enum dtype dtype, const void *x,
                                      void *y, cudaStream_t stream)
{
    if (!mean_valid(n, pixels, C, dtype) || !col_aligned(x, C, dtype) || !col_aligned(y, C, dtype))
        return cudaErrorInvalidValue;
    if (n == 0 || C == 0)
        return cudaSuccess;
    const struct columns k = columns_make(n, pixels, C, dtype);
    COLUMNS_RUN(launch_mean, C, dtype, &k, n, x, y, stream);
    return cudaGetLastError();
}

cudaError_t cuda_mean_spatial_backward(int64_t n, int64_t pixels, int64_t C, enum dtype dtype, const void *dy,
                                       void *dx, bool add, cudaStream_t stream)
{
    if (!mean_valid(n, pixels, C, dtype) || !col_aligned(dy, C, dtype) || !col_aligned(dx, C, dtype))
        return cudaErrorInvalidValue;
    if (n == 0 || C == 0)
        return cudaSuccess;
    COLUMNS_RUN(launch_mean_grad, C, dtype, n, pixels, C, dy, dx, add, stream);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------ shortcut */

struct shortcut {
    uint32_t H, W, C, Ho, Wo, Co, front, stride;
};

template <class T, int V>
__global__ void __launch_bounds__(PIECE_THREADS)
    shortcut_kernel(struct shortcut k, uint32_t pieces, const T *__restrict__ x, T *__restrict__ y)
{
    const uint32_t i = piece_of_thread();
    float f[V] = {};

    if (i >= pieces)
        return;
    const struct spot t = spot_of<V>(i, k.Ho, k.Wo, k.Co / V);
    if (t.c >= k.front && t.c < k.front + k.C)
        load_floats<T, V>(
            x + (((int64_t)t.s * k.H + t.y * k.stride) * k.W + t.x * k.stride) * k.C + t.c - k.front, f);
    put_floats<T, V>(y + (int64_t)i * V, f, false);
}

template <class T, int V>
__global__ void __launch_bounds__(PIECE_THREADS)
    shortcut_grad_kernel(struct shortcut k, uint32_t pieces, const T *__restrict__ dy, T *__restrict__ dx,
                         bool add)
{
    const uint32_t i = piece_of_thread();
    float f[V] = {};

    if (i >= pieces)
        return;
    const struct spot t = spot_of<V>(i, k.H, k.W, k.C / V);
    const bool taken = t.y % k.stride == 0 && t.x % k.stride == 0;
    if (taken)
        load_floats<T, V>(
            dy + (((int64_t)t.s * k.Ho + t.y / k.stride) * k.Wo + t.x / k.stride) * k.Co + k.front + t.c, f);
    if (taken || !add)
        put_floats<T, V>(dx + (int64_t)i * V, f, add);
}

template <class T, int V>
static void launch_shortcut(const struct shortcut *k, int64_t n, const void *x, void *y, cudaStream_t stream)
{
    const uint32_t pieces = (uint32_t)n * k->Ho * k->Wo * (k->Co / V);

    BF_LAUNCH((shortcut_kernel<T, V>), piece_grid(pieces), dim3(PIECE_THREADS), 0, stream, *k, pieces,
              (const T *)x, (T *)y);
}

template <class T, int V>
static void launch_shortcut_grad(const struct shortcut *k, int64_t n, const void *dy, void *dx, bool add,
                                 cudaStream_t stream)
{
    const uint32_t pieces = (uint32_t)n * k->H * k->W * (k->C / V);

    BF_LAUNCH((shortcut_grad_kernel<T, V>), piece_grid(pieces), dim3(PIECE_THREADS), 0, stream, *k, pieces,
              (const T *)dy, (T *)dx, add);
}

/* A width that is a multiple of what both tensors' channels, and where the old ones begin, are multiples of.
 */
static int64_t shortcut_width(const struct cuda_shortcut_shape *s)
{
    const int64_t front = (s->Co - s->C) / 2;

    return col_vector(s->C, s->dtype) == col_vector(s->Co, s->dtype) &&
                   col_vector(front, s->dtype) == col_vector(s->C, s->dtype)
               ? s->C
               : 1;
}

static bool shortcut_valid(const struct cuda_shortcut_shape *s, const void *x, const void *y)
{
    if (!type_valid(s->dtype) || s->stride < 1 || s->C < 0 || s->Co < s->C || s->H > INT32_MAX - s->stride ||
        s->W > INT32_MAX - s->stride)
        return false;
    const int64_t width = shortcut_width(s), V = col_vector(width, s->dtype);
    return pieces_valid(s->n, s->H, s->W, s->C, (int)V) &&
           pieces_valid(s->n, col_ceil(s->H, s->stride), col_ceil(s->W, s->stride), s->Co, (int)V) &&
           s->Co <= INT32_MAX && col_aligned(x, width, s->dtype) && col_aligned(y, width, s->dtype);
}

static struct shortcut shortcut_of(const struct cuda_shortcut_shape *s)
{
    return {(uint32_t)s->H,
            (uint32_t)s->W,
            (uint32_t)s->C,
            (uint32_t)col_ceil(s->H, s->stride),
            (uint32_t)col_ceil(s->W, s->stride),
            (uint32_t)s->Co,
            (uint32_t)((s->Co - s->C) / 2),
            (uint32_t)s->stride};
}

cudaError_t cuda_shortcut_pad_forward(const struct cuda_shortcut_shape *s, const void *x, void *y,
                                      cudaStream_t stream)
{
    if (!shortcut_valid(s, x, y))
        return cudaErrorInvalidValue;
    if (s->n == 0 || s->H == 0 || s->W == 0 || s->Co == 0)
        return cudaSuccess;
    const struct shortcut k = shortcut_of(s);
    COLUMNS_RUN(launch_shortcut, shortcut_width(s), s->dtype, &k, s->n, x, y, stream);
    return cudaGetLastError();
}

cudaError_t cuda_shortcut_pad_backward(const struct cuda_shortcut_shape *s, const void *dy, void *dx,
                                       bool add, cudaStream_t stream)
{
    if (!shortcut_valid(s, dx, dy))
        return cudaErrorInvalidValue;
    if (s->n == 0 || s->H == 0 || s->W == 0 || s->C == 0)
        return cudaSuccess;
    const struct shortcut k = shortcut_of(s);
    COLUMNS_RUN(launch_shortcut_grad, shortcut_width(s), s->dtype, &k, s->n, dy, dx, add, stream);
    return cudaGetLastError();
}
