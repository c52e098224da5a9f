/* elem - see elem.h.
 *
 * One thread takes a pack of 16 bytes (of the wider type) at a time; what is left after the last whole pack,
 * or everything where a range is not aligned, goes element by element.
 */
#include "worker/backend/cuda/elem.h"
#include "worker/backend/cuda/rows.cuh"
#include "worker/engine/backend.h"

namespace
{

enum { THREADS = 256 };

constexpr int64_t BLOCKS_MAX = 1 << 20;

enum map_op { MAP_COPY, MAP_ADD, MAP_SCALE, MAP_RELU, MAP_RELU_GRAD, MAP_GELU, MAP_GELU_GRAD };

/* May add to y: gradients and copies. */
template <int OP> constexpr bool ADDS = OP == MAP_COPY || OP == MAP_RELU_GRAD || OP == MAP_GELU_GRAD;
/* Reads w beside x. */
template <int OP> constexpr bool READS_W = OP == MAP_ADD || OP == MAP_RELU_GRAD || OP == MAP_GELU_GRAD;

/* For gradients x is the operator's input and w is dy. */
template <int OP> __device__ __forceinline__ float map_of(float x, float w, float factor)
{
    if constexpr (OP == MAP_ADD)
        return x + w;
    if constexpr (OP == MAP_SCALE)
        return factor * x;
    if constexpr (OP == MAP_RELU)
        return x < 0 ? 0.0f : x;
    if constexpr (OP == MAP_RELU_GRAD)
        return x > 0 ? w : 0.0f;
    if constexpr (OP == MAP_GELU)
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if constexpr (OP == MAP_GELU_GRAD) {
        const float cdf = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
        const float pdf = 0.39894228040143268f * expf(-0.5f * x * x);

        return (cdf + x * pdf) * w;
    }
    return x;
}

/* y[i] (+)= op(x[i], w[i]) for all i < n; the first n_packs·W by packs. */
template <int OP, bool ADD, typename S, typename D>
__global__ void elem_map(const S *x, const S *w, D *y, int64_t n_packs, int64_t n, float factor)
{
    constexpr int W = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D));
    const int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x, step = (int64_t)gridDim.x * THREADS;

    for (int64_t i = first; i < n_packs; i += step) {
        float vx[W], vw[W] = {}, vy[W] = {};

        load_pack(x, i * W, n, true, 0.0f, vx);
        if constexpr (READS_W<OP>)
            load_pack(w, i * W, n, true, 0.0f, vw);
        if constexpr (ADD)
            load_pack(y, i * W, n, true, 0.0f, vy);
        UNROLL
        for (int k = 0; k < W; k++) {
            const float v = map_of<OP>(vx[k], vw[k], factor);

            vy[k] = ADD ? vy[k] + v : v;
        }
        store_pack(y, i * W, n, true, vy);
    }
    for (int64_t i = n_packs * W + first; i < n; i += step) {
        const float v = map_of<OP>(load_f(x + i), READS_W<OP> ? load_f(w + i) : 0.0f, factor);

        store_f(y + i, ADD ? load_f(y + i) + v : v);
    }
}

/* dst += src without a detour by fp32. */
template <typename T> __global__ void elem_add_exact(const T *src, T *dst, int64_t n_packs, int64_t n)
{
    constexpr int W = PACK<T>;
    const int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x, step = (int64_t)gridDim.x * THREADS;

    for (int64_t i = first; i < n_packs; i += step) {
        const pack<T, W> a = *reinterpret_cast<const pack<T, W> *>(src + i * W);
        pack<T, W> b = *reinterpret_cast<pack<T, W> *>(dst + i * W);

        UNROLL
        for (int k = 0; k < W; k++)
            b.v[k] += a.v[k];
        *reinterpret_cast<pack<T, W> *>(dst + i * W) = b;
    }
    for (int64_t i = n_packs * W + first; i < n; i += step)
        dst[i] += src[i];
}

struct dropout_args {
    struct elem_dropout_args d;
    uint32_t threshold;
    float scale;
    int64_t groups; /* packs of a row */
    bool whole;     /* rows and packs are aligned */
};

/* A thread takes a pack of one row: whole Philox blocks, since packs begin at multiples of 4. */
template <bool ADD, typename T> __global__ void elem_drop(struct dropout_args a, const T *src, T *dst)
{
    constexpr int W = PACK<T>;
    const int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x, step = (int64_t)gridDim.x * THREADS;
    const int64_t items = a.d.rows * a.groups;
    const struct draws draws = {philox_make_key(a.d.step->seed, a.d.stream), a.threshold,
                                (uint32_t)a.d.step->step, a.scale};

    for (int64_t i = first; i < items; i += step) {
        /* 32-bit division where it is enough: it is several times as fast. */
        const int64_t row = items <= UINT32_MAX ? (int64_t)((uint32_t)i / (uint32_t)a.groups) : i / a.groups;
        const int64_t j = (i - row * a.groups) * W, at = row * a.d.width;
        float v[W], y[W] = {};

        load_pack(src + at, j, a.d.width, a.whole, 0.0f, v);
        if constexpr (ADD)
            load_pack(dst + at, j, a.d.width, a.whole, 0.0f, y);
        UNROLL
        for (int q = 0; q < W; q += 4) {
            const uint32_t bits = draw_keep4(draws, (uint32_t)(a.d.first + row), 0, j + q);

            UNROLL
            for (int k = 0; k < 4; k++) {
                const float kept = bits >> k & 1 ? v[q + k] * a.scale : 0.0f;

                y[q + k] = ADD ? y[q + k] + kept : kept;
            }
        }
        store_pack(dst + at, j, a.d.width, a.whole, y);
    }
}

unsigned blocks_for(int64_t items)
{
    const int64_t blocks = (items + THREADS - 1) / THREADS;

    return (unsigned)(blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX);
}

template <int OP, typename S, typename D>
cudaError_t map_launch(const void *x, const void *w, void *y, int64_t n, bool add, float factor,
                       cudaStream_t stream)
{
    constexpr int W = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D));
    const bool whole = aligned(x, sizeof(S) * W) && aligned(w, sizeof(S) * W) && aligned(y, sizeof(D) * W);
    const int64_t n_packs = whole ? n / W : 0;
    const unsigned blocks = blocks_for(n_packs ? n_packs : n);

    if constexpr (ADDS<OP>) {
        if (add) {
            BF_LAUNCH((elem_map<OP, true, S, D>), blocks, THREADS, 0, stream, (const S *)x, (const S *)w,
                      (D *)y, n_packs, n, factor);
            return cudaGetLastError();
        }
    }
    (void)add;
    BF_LAUNCH((elem_map<OP, false, S, D>), blocks, THREADS, 0, stream, (const S *)x, (const S *)w, (D *)y,
              n_packs, n, factor);
    return cudaGetLastError();
}

/* Of one type, f32 or bf16. */
template <int OP>
cudaError_t map(enum dtype t, const void *x, const void *w, void *y, int64_t n, bool add, float factor,
                cudaStream_t stream)
{
    if (n < 0 || (t != DTYPE_F32 && t != DTYPE_BF16))
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    if (t == DTYPE_F32)
        return map_launch<OP, float, float>(x, w, y, n, add, factor, stream);
    return map_launch<OP, __nv_bfloat16, __nv_bfloat16>(x, w, y, n, add, factor, stream);
}

template <typename T> cudaError_t add_exact(const void *src, void *dst, int64_t n, cudaStream_t stream)
{
    const int64_t n_packs = aligned(src, 16) && aligned(dst, 16) ? n / PACK<T> : 0;

    BF_LAUNCH(elem_add_exact<T>, blocks_for(n_packs ? n_packs : n), THREADS, 0, stream, (const T *)src,
              (T *)dst, n_packs, n);
    return cudaGetLastError();
}

template <typename T>
cudaError_t drop(const struct elem_dropout_args *d, const void *src, void *dst, bool add, cudaStream_t stream)
{
    struct dropout_args a = {};

    a.d = *d;
    a.threshold = philox_threshold(d->p);
    a.scale = d->p < 1 ? 1.0f / (1.0f - d->p) : 0.0f;
    a.groups = (d->width + PACK<T> - 1) / PACK<T>;
    a.whole = d->width % PACK<T> == 0 && aligned(src, 16) && aligned(dst, 16);
    const unsigned blocks = blocks_for(d->rows * a.groups);

    if (add)
        BF_LAUNCH((elem_drop<true, T>), blocks, THREADS, 0, stream, a, (const T *)src, (T *)dst);
    else
        BF_LAUNCH((elem_drop<false, T>), blocks, THREADS, 0, stream, a, (const T *)src, (T *)dst);
    return cudaGetLastError();
}

} // namespace

cudaError_t elem_act(enum act_kind kind, enum dtype t, const void *x, void *y, int64_t n, cudaStream_t stream)
{
    return kind == ACT_RELU ? map<MAP_RELU>(t, x, NULL, y, n, false, 0, stream)
                            : map<MAP_GELU>(t, x, NULL, y, n, false, 0, stream);
}

cudaError_t elem_act_grad(enum act_kind kind, enum dtype t, const void *x, const void *dy, void *dx,
                          int64_t n, int acc, cudaStream_t stream)
{
    return kind == ACT_RELU ? map<MAP_RELU_GRAD>(t, x, dy, dx, n, acc != 0, 0, stream)
                            : map<MAP_GELU_GRAD>(t, x, dy, dx, n, acc != 0, 0, stream);
}

cudaError_t elem_add(enum dtype t, const void *a, const void *b, void *y, int64_t n, cudaStream_t stream)
{
    return map<MAP_ADD>(t, a, b, y, n, false, 0, stream);
}

cudaError_t elem_copy_or_add(enum dtype t, const void *src, void *dst, int64_t n, int acc,
                             cudaStream_t stream)
{
    if (n < 0)
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    if (!acc)
        return cudaMemcpyAsync(dst, src, (size_t)n * dtype_bytes(t), cudaMemcpyDeviceToDevice, stream);
    switch (t) {
    case DTYPE_F64:
        return add_exact<double>(src, dst, n, stream);
    case DTYPE_I32:
        return add_exact<int32_t>(src, dst, n, stream);
    case DTYPE_F32:
    case DTYPE_BF16:
        return map<MAP_COPY>(t, src, NULL, dst, n, true, 0, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t elem_cast(enum dtype from, enum dtype to, const void *src, void *dst, int64_t n, int acc,
                      cudaStream_t stream)
{
    const bool down = from == DTYPE_F32 && to == DTYPE_BF16;

    if (n < 0 || (!down && !(from == DTYPE_BF16 && to == DTYPE_F32)))
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    return down ? map_launch<MAP_COPY, float, __nv_bfloat16>(src, NULL, dst, n, acc != 0, 0, stream)
                : map_launch<MAP_COPY, __nv_bfloat16, float>(src, NULL, dst, n, acc != 0, 0, stream);
}

cudaError_t elem_scale(enum dtype t, void *x, int64_t n, float factor, cudaStream_t stream)
{
    return map<MAP_SCALE>(t, x, NULL, x, n, false, factor, stream);
}

cudaError_t elem_fill_nan(void *dst, size_t bytes, cudaStream_t stream)
{
    return bytes ? cudaMemsetAsync(dst, 0xFF, bytes, stream) : cudaSuccess;
}

cudaError_t elem_dropout(const struct elem_dropout_args *d, enum dtype t, const void *src, void *dst, int acc,
                         cudaStream_t stream)
{
    if (d->rows < 0 || d->width < 0 || (t != DTYPE_F32 && t != DTYPE_BF16))
        return cudaErrorInvalidValue;
    if (d->rows == 0 || d->width == 0)
        return cudaSuccess;
    return t == DTYPE_F32 ? drop<float>(d, src, dst, acc != 0, stream)
                          : drop<__nv_bfloat16>(d, src, dst, acc != 0, stream);
}
