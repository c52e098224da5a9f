/* loss - see loss.h.
 *
 * A row is the work of a warp, or of a block where K is large; its second pass over the logits finds them in
 * the cache. Row losses are found in fp64 from fp32 exponentials; one block adds them up in an order that
 * depends on M alone.
 */
#include "worker/backend/cuda/loss.h"
#include "worker/backend/cuda/rows.cuh"

namespace
{

enum {
    WIDE = 256,
    WIDE_CLASSES = 512,
    SUM_THREADS = 256
}; /* threads of a row with K > WIDE_CLASSES; of the sum */

struct loss_args {
    struct loss_rows r;
    bool whole; /* rows and packs of logits (and of their gradient) are aligned */
};

/* The logits of a pack, offset added; -inf beyond K. */
template <int W, typename T>
__device__ __forceinline__ void logits_load(const struct loss_args &a, const T *z, int64_t j, float (&v)[W])
{
    load_pack(z, j, a.r.K, a.whole, -INFINITY, v);
    if (a.r.offset) {
        UNROLL
        for (int k = 0; k < W; k++)
            v[k] += j + k < a.r.K ? a.r.offset[j + k] : 0.0f;
    }
}

template <int GROUP, typename T>
__global__ void __launch_bounds__(GROUP_BLOCK<GROUP>)
    loss_rows_kernel(struct loss_args a, float *stat, double *row_loss)
{
    constexpr int W = PACK<T>;
    const int64_t row = group_row<GROUP>(), K = a.r.K;
    const int lane = threadIdx.x % GROUP;
    const T *z = (const T *)a.r.logits + row * K;
    float v[W], max = -INFINITY, sum = 0;

    if (row >= a.r.M)
        return;
    for (int64_t j = (int64_t)lane * W; j < K; j += GROUP * W) {
        logits_load(a, z, j, v);
        UNROLL
        for (int k = 0; k < W; k++)
            max = fmaxf(max, v[k]);
    }
    max = group_max<GROUP>(max);
    for (int64_t j = (int64_t)lane * W; j < K; j += GROUP * W) {
        logits_load(a, z, j, v);
        UNROLL
        for (int k = 0; k < W; k++)
            sum += expf(v[k] - max);
    }
    sum = group_sum<GROUP>(sum);
    if (lane)
        return;
    const int32_t y = a.r.y[row];

    stat[2 * row] = max;
    stat[2 * row + 1] = 1.0f / sum;
    if (y < 0 || y >= K) {
        row_loss[row] = NAN;
    } else {
        const float at = load_f(z + y) + (a.r.offset ? a.r.offset[y] : 0.0f);

        row_loss[row] = log((double)sum) - ((double)at - max);
    }
}

/* One block. */
__global__ void __launch_bounds__(SUM_THREADS)
    loss_sum(struct loss_args a, const double *row_loss, double *loss, int32_t *bad_row)
{
    double sum = 0;
    int32_t first = INT32_MAX;

    for (int64_t i = threadIdx.x; i < a.r.M; i += SUM_THREADS) {
        const int32_t y = a.r.y[i];

        sum += row_loss[i];
        if ((y < 0 || y >= a.r.K) && i < first)
            first = (int32_t)i;
    }
    sum = group_sum<SUM_THREADS>(sum);
    first = group_reduce<op_min, SUM_THREADS>(first);
    if (threadIdx.x)
        return;
    *loss = sum / a.r.denominator;
    if (bad_row)
        *bad_row = first == INT32_MAX ? -1 : first;
}

template <int GROUP, bool ADD, typename T>
__global__ void __launch_bounds__(GROUP_BLOCK<GROUP>)
    loss_grad(struct loss_args a, const float *stat, const double *dloss, T *dlogits)
{
    constexpr int W = PACK<T>;
    const int64_t row = group_row<GROUP>(), K = a.r.K;
    const int lane = threadIdx.x % GROUP;
    const T *z = (const T *)a.r.logits + row * K;
    T *dz = dlogits + row * K;

    if (row >= a.r.M)
        return;
    const float max = stat[2 * row], inv = stat[2 * row + 1], factor = (float)(*dloss / a.r.denominator);
    const int32_t y = a.r.y[row];

    for (int64_t j = (int64_t)lane * W; j < K; j += GROUP * W) {
        float v[W], d[W] = {};

        logits_load(a, z, j, v);
        if constexpr (ADD)
            load_pack(dz, j, K, a.whole, 0.0f, d);
        UNROLL
        for (int k = 0; k < W; k++)
            d[k] += (expf(v[k] - max) * inv - (j + k == y ? 1.0f : 0.0f)) * factor;
        store_pack(dz, j, K, a.whole, d);
    }
}

bool rows_are_valid(const struct loss_rows *r)
{
    return r->M >= 0 && r->M < INT32_MAX && r->K >= 1 && r->K <= INT32_MAX &&
           (r->t == DTYPE_F32 || r->t == DTYPE_BF16);
}

template <int GROUP> unsigned blocks_for(int64_t rows)
{
    return (unsigned)((rows + GROUP_ROWS<GROUP> - 1) / GROUP_ROWS<GROUP>);
}

template <int GROUP, typename T>
void rows_launch(const struct loss_args &a, float *stat, double *row_loss, cudaStream_t stream)
{
    BF_LAUNCH((loss_rows_kernel<GROUP, T>), blocks_for<GROUP>(a.r.M), GROUP_BLOCK<GROUP>, 0, stream, a, stat,
              row_loss);
}

template <int GROUP, typename T>
void grad_launch(const struct loss_args &a, const float *stat, const double *dloss, void *dlogits, bool add,
                 cudaStream_t stream)
{
    if (add)
        BF_LAUNCH((loss_grad<GROUP, true, T>), blocks_for<GROUP>(a.r.M), GROUP_BLOCK<GROUP>, 0, stream, a,
                  stat, dloss, (T *)dlogits);
    else
        BF_LAUNCH((loss_grad<GROUP, false, T>), blocks_for<GROUP>(a.r.M), GROUP_BLOCK<GROUP>, 0, stream, a,
                  stat, dloss, (T *)dlogits);
}

} // namespace

cudaError_t loss_softmax_xent(const struct loss_rows *r, float *stat, double *row_loss, double *loss,
                              int32_t *bad_row, cudaStream_t stream)
{
    if (!rows_are_valid(r))
        return cudaErrorInvalidValue;
    const bool f32 = r->t == DTYPE_F32, wide = r->K > WIDE_CLASSES;
    const struct loss_args a = {*r, r->K % (f32 ? 4 : 8) == 0 && aligned(r->logits, 16)};

    if (r->M > 0 && f32)
        wide ? rows_launch<WIDE, float>(a, stat, row_loss, stream)
             : rows_launch<WARP_LANES, float>(a, stat, row_loss, stream);
    else if (r->M > 0)
        wide ? rows_launch<WIDE, __nv_bfloat16>(a, stat, row_loss, stream)
             : rows_launch<WARP_LANES, __nv_bfloat16>(a, stat, row_loss, stream);
    BF_LAUNCH(loss_sum, 1, SUM_THREADS, 0, stream, a, (const double *)row_loss, loss, bad_row);
    return cudaGetLastError();
}

cudaError_t loss_softmax_xent_grad(const struct loss_rows *r, const float *stat, const double *dloss,
                                   void *dlogits, int acc, cudaStream_t stream)
{
    if (!rows_are_valid(r))
        return cudaErrorInvalidValue;
    if (r->M == 0)
        return cudaSuccess;
    const bool f32 = r->t == DTYPE_F32, wide = r->K > WIDE_CLASSES, add = acc != 0;
    const struct loss_args a = {*r,
                                r->K % (f32 ? 4 : 8) == 0 && aligned(r->logits, 16) && aligned(dlogits, 16)};

    if (f32)
        wide ? grad_launch<WIDE, float>(a, stat, dloss, dlogits, add, stream)
             : grad_launch<WARP_LANES, float>(a, stat, dloss, dlogits, add, stream);
    else
        wide ? grad_launch<WIDE, __nv_bfloat16>(a, stat, dloss, dlogits, add, stream)
             : grad_launch<WARP_LANES, __nv_bfloat16>(a, stat, dloss, dlogits, add, stream);
    return cudaGetLastError();
}
