/* flat - see flat.h.
 *
 * A thread takes packs of four floats; which thread takes which pack depends on the length alone, and so do
 * the chunks of a sum: results have the same bits whether ranges are aligned or not.
 */
#include "worker/backend/cuda/flat.h"
#include "worker/backend/cuda/rows.cuh"
#include "worker/engine/backend.h"

namespace
{

enum {
    W = 4,
    THREADS = 256,
    SUM_STEP = THREADS * W * 8
}; /* floats of a pack; a chunk is a multiple of SUM_STEP */

constexpr int64_t BLOCKS_MAX = 2048; /* about two waves: what a thread computes once serves several packs */

__device__ __forceinline__ bool is_finite(double x)
{
    return x - x == 0;
}

/* No update may happen. Written so that NaN counts as "not finite". */
__device__ __forceinline__ bool skips(const struct step_scalars *s)
{
    return !(s->loss_not_finite + s->grad_not_finite <= 0);
}

__device__ __forceinline__ float clip_factor(const struct step_scalars *s)
{
    const double factor = s->max_grad_norm > 0 ? s->max_grad_norm / (s->grad_norm + 1e-6) : 1;

    return factor < 1 ? (float)factor : 1.0f;
}

/* The sum over a block of the squares of x[first … end-1]. */
__device__ __forceinline__ double block_sumsq(const float *x, int64_t first, int64_t end, bool whole)
{
    double sum = 0;

    for (int64_t j = first + (int64_t)threadIdx.x * W; j < end; j += THREADS * W) {
        float v[W];

        load_pack(x, j, end, whole, 0.0f, v);
        UNROLL
        for (int k = 0; k < W; k++)
            sum += (double)v[k] * v[k];
    }
    return group_sum<THREADS>(sum);
}

__global__ void __launch_bounds__(THREADS)
    flat_sumsq_chunk(const float *x, int64_t n, int64_t step, bool whole, double *partials)
{
    const int64_t first = blockIdx.x * step;
    const double sum = block_sumsq(x, first, first + step < n ? first + step : n, whole);

    if (threadIdx.x == 0)
        partials[blockIdx.x] = sum;
}

/* One block: adds up the chunks; to *sum, or as a norm into *s. */
__global__ void __launch_bounds__(THREADS)
    flat_sumsq_total(const double *partials, int n_partials, double *sum, struct step_scalars *s)
{
    double total = 0;

    for (int i = threadIdx.x; i < n_partials; i += THREADS)
        total += partials[i];
    total = group_sum<THREADS>(total);
    if (threadIdx.x)
        return;
    if (sum)
        *sum = total;
    if (s) {
        s->grad_norm = sqrt(total);
        s->grad_not_finite = is_finite(total) ? 0 : 1;
    }
}

/* One thread. */
__global__ void flat_vote_pack(const double *loss, struct step_scalars *s)
{
    const double share = loss ? *loss : 0;

    s->loss = share;
    s->loss_not_finite = is_finite(share) ? 0 : 1;
}

/* Where the updated weights are rounded to. */
__device__ __forceinline__ void store_weights(float *w, __nv_bfloat16 *bf16, int64_t j, int64_t n, bool whole,
                                              const float (&v)[W])
{
    store_pack(w, j, n, whole, v);
    if (bf16)
        store_pack(bf16, j, n, whole, v);
}

/* One step of SGD with momentum for one pack; g is the gradient after clipping, decay and trust. */
__device__ __forceinline__ void momentum_step(float (&w)[W], const float (&g)[W], float (&m)[W],
                                              float momentum, bool nesterov, float lr)
{
    UNROLL
    for (int k = 0; k < W; k++) {
        m[k] = momentum * m[k] + g[k];
        w[k] -= lr * (nesterov ? g[k] + momentum * m[k] : m[k]);
    }
}

__global__ void __launch_bounds__(THREADS)
    flat_sgd_sweep(struct flat_range r, float *m, struct flat_sgd_args a, const struct step_scalars *s,
                   bool whole)
{
    if (skips(s))
        return;
    const float lr = (float)(s->lr * r.lr_scale), clip = clip_factor(s);

    for (int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; j < r.n;
         j += (int64_t)gridDim.x * THREADS * W) {
        float vw[W], vg[W], vm[W];

        load_pack(r.w, j, r.n, whole, 0.0f, vw);
        load_pack(r.g, j, r.n, whole, 0.0f, vg);
        load_pack(m, j, r.n, whole, 0.0f, vm);
        UNROLL
        for (int k = 0; k < W; k++)
            vg[k] = clip * vg[k] + a.weight_decay * vw[k];
        momentum_step(vw, vg, vm, a.momentum, a.nesterov != 0, lr);
        store_weights(r.w, (__nv_bfloat16 *)r.bf16, j, r.n, whole, vw);
        store_pack(m, j, r.n, whole, vm);
        if (a.keep_grad)
            store_pack(r.g, j, r.n, whole, vg);
    }
}

/* What a sweep of Adam uses, rounded once. */
struct adam_step {
    float rate, root, keep, l2; /* lr/(1-β₁ᵗ), √(1-β₂ᵗ); the two kinds of decay */
};

/* log_beta: ln β, so that 1 - βᵗ = -expm1(t·ln β) to full precision. */
__device__ __forceinline__ struct adam_step adam_step_of(const struct step_scalars *s, double lr_scale,
                                                         const struct adam_args &a, double log_beta1,
                                                         double log_beta2)
{
    const double lr = s->lr * lr_scale, t = s->update;

    return {(float)(lr / -expm1(t * log_beta1)), (float)sqrt(-expm1(t * log_beta2)),
            a.decoupled ? (float)(1 - lr * (double)a.weight_decay) : 1.0f,
            a.decoupled ? 0.0f : a.weight_decay};
}

__global__ void __launch_bounds__(THREADS)
    flat_adam_sweep(struct flat_range r, float *m, float *v, struct adam_args a, double log_beta1,
                    double log_beta2, const struct step_scalars *s, bool whole)
{
    __shared__ struct adam_step once;

    if (skips(s))
        return;
    if (threadIdx.x == 0)
        once = adam_step_of(s, r.lr_scale, a, log_beta1, log_beta2);
    __syncthreads();
    const struct adam_step o = once;
    const float clip = clip_factor(s);
    const float b2 = (float)a.beta2, c1 = (float)(1 - a.beta1), c2 = (float)(1 - a.beta2);

    for (int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; j < r.n;
         j += (int64_t)gridDim.x * THREADS * W) {
        float vw[W], vg[W], vm[W], vv[W];

        load_pack(r.w, j, r.n, whole, 0.0f, vw);
        load_pack(r.g, j, r.n, whole, 0.0f, vg);
        load_pack(m, j, r.n, whole, 0.0f, vm);
        load_pack(v, j, r.n, whole, 0.0f, vv);
        UNROLL
        for (int k = 0; k < W; k++) {
            const float d = clip * vg[k] + o.l2 * vw[k];

            vm[k] += c1 * (d - vm[k]);
            vv[k] = b2 * vv[k] + c2 * d * d;
            vw[k] = o.keep * vw[k] - o.rate * (vm[k] / (sqrtf(vv[k]) / o.root + a.eps));
        }
        store_weights(r.w, (__nv_bfloat16 *)r.bf16, j, r.n, whole, vw);
        store_pack(m, j, r.n, whole, vm);
        store_pack(v, j, r.n, whole, vv);
    }
}

/* A block is a chunk: Σw² and Σg² of it. */
__global__ void __launch_bounds__(THREADS) flat_lars_sums(struct flat_range r, struct lars_args a, bool whole)
{
    const struct flat_chunk c = a.chunks[blockIdx.x];
    const double ww = block_sumsq(r.w + c.first, 0, c.count, whole && c.first % W == 0);
    const double gg = block_sumsq(r.g + c.first, 0, c.count, whole && c.first % W == 0);

    if (threadIdx.x == 0) {
        a.partials[2 * (int64_t)blockIdx.x] = ww;
        a.partials[2 * (int64_t)blockIdx.x + 1] = gg;
    }
}

/* A warp is a tensor. */
__global__ void __launch_bounds__(THREADS) flat_lars_trust(struct lars_args a, const struct step_scalars *s)
{
    const int64_t i = (int64_t)blockIdx.x * (THREADS / WARP_LANES) + threadIdx.x / WARP_LANES;
    double ww = 0, gg = 0;

    if (i >= a.n_tensors)
        return;
    const struct flat_tensor t = a.tensors[i];

    for (int64_t c = threadIdx.x % WARP_LANES; c < t.n_chunks; c += WARP_LANES) {
        ww += a.partials[2 * (t.chunk0 + c)];
        gg += a.partials[2 * (t.chunk0 + c) + 1];
    }
    ww = sqrt(warp_sum(ww));
    gg = sqrt(warp_sum(gg)) * clip_factor(s);
    if (threadIdx.x % WARP_LANES == 0)
        a.trust[i] = t.adapts && ww > 0 && gg > 0
                         ? (float)(a.coefficient * ww / (gg + (double)t.weight_decay * ww + a.eps))
                         : 1.0f;
}

/* A block is a chunk. */
__global__ void __launch_bounds__(THREADS)
    flat_lars_sweep(struct flat_range r, float *momentum, struct lars_args a, const struct step_scalars *s,
                    bool whole_range)
{
    if (skips(s))
        return;
    const struct flat_chunk c = a.chunks[blockIdx.x];
    const struct flat_tensor t = a.tensors[c.tensor];
    const float trust = a.trust[c.tensor], clip = clip_factor(s), lr = (float)(s->lr * t.lr_scale);
    const bool whole = whole_range && c.first % W == 0;
    float *w = r.w + c.first, *g = r.g + c.first, *m = momentum + c.first;
    __nv_bfloat16 *bf16 = r.bf16 ? (__nv_bfloat16 *)r.bf16 + c.first : NULL;

    for (int64_t j = (int64_t)threadIdx.x * W; j < c.count; j += THREADS * W) {
        float vw[W], vg[W], vm[W];

        load_pack(w, j, c.count, whole, 0.0f, vw);
        load_pack(g, j, c.count, whole, 0.0f, vg);
        load_pack(m, j, c.count, whole, 0.0f, vm);
        UNROLL
        for (int k = 0; k < W; k++)
            vg[k] = trust * (clip * vg[k] + t.weight_decay * vw[k]);
        momentum_step(vw, vg, vm, a.momentum, a.nesterov, lr);
        store_weights(w, bf16, j, c.count, whole, vw);
        store_pack(m, j, c.count, whole, vm);
    }
}

__global__ void __launch_bounds__(THREADS) flat_ema_sweep(float *ema, const float *w, int64_t n, float rest,
                                                          const struct step_scalars *s, bool whole)
{
    if (skips(s))
        return;
    for (int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; j < n;
         j += (int64_t)gridDim.x * THREADS * W) {
        float e[W], v[W];

        load_pack(ema, j, n, whole, 0.0f, e);
        load_pack(w, j, n, whole, 0.0f, v);
        UNROLL
        for (int k = 0; k < W; k++)
            e[k] += rest * (v[k] - e[k]);
        store_pack(ema, j, n, whole, e);
    }
}

__global__ void __launch_bounds__(THREADS) flat_scale_sweep(float *x, int64_t n, float factor, bool whole)
{
    for (int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; j < n;
         j += (int64_t)gridDim.x * THREADS * W) {
        float v[W];

        load_pack(x, j, n, whole, 0.0f, v);
        UNROLL
        for (int k = 0; k < W; k++)
            v[k] *= factor;
        store_pack(x, j, n, whole, v);
    }
}

unsigned sweep_blocks(int64_t n)
{
    const int64_t blocks = (n + THREADS * W - 1) / (THREADS * W);

    return (unsigned)(blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX);
}

/* Chunks of a sum over n floats: FLAT_PARTIALS at most. */
cudaError_t sumsq(const float *x, int64_t n, double *partials, double *sum, struct step_scalars *s,
                  cudaStream_t stream)
{
    const int64_t steps = (n + SUM_STEP - 1) / SUM_STEP;
    const int64_t step = (steps + FLAT_PARTIALS - 1) / FLAT_PARTIALS * SUM_STEP;
    const int64_t chunks = n > 0 ? (n + step - 1) / step : 0;

    if (n < 0)
        return cudaErrorInvalidValue;
    if (chunks)
        BF_LAUNCH(flat_sumsq_chunk, (unsigned)chunks, THREADS, 0, stream, x, n, step, aligned(x, 16),
                  partials);
    BF_LAUNCH(flat_sumsq_total, 1, THREADS, 0, stream, partials, (int)chunks, sum, s);
    return cudaGetLastError();
}

bool range_is_aligned(const struct flat_range *r)
{
    return aligned(r->w, 16) && aligned(r->g, 16) && aligned(r->bf16, 8);
}

} // namespace

cudaError_t flat_sumsq(const float *x, int64_t n, double *partials, double *sum, cudaStream_t stream)
{
    return sumsq(x, n, partials, sum, NULL, stream);
}

cudaError_t flat_grad_norm(const float *g, int64_t n, double *partials, struct step_scalars *s,
                           cudaStream_t stream)
{
    return sumsq(g, n, partials, NULL, s, stream);
}

cudaError_t flat_vote(const double *loss, struct step_scalars *s, cudaStream_t stream)
{
    BF_LAUNCH(flat_vote_pack, 1, 1, 0, stream, loss, s);
    return cudaGetLastError();
}

cudaError_t flat_sgd(const struct flat_range *r, float *m, const struct flat_sgd_args *a,
                     const struct step_scalars *s, cudaStream_t stream)
{
    if (r->n < 0)
        return cudaErrorInvalidValue;
    if (r->n == 0)
        return cudaSuccess;
    BF_LAUNCH(flat_sgd_sweep, sweep_blocks(r->n), THREADS, 0, stream, *r, m, *a, s,
              range_is_aligned(r) && aligned(m, 16));
    return cudaGetLastError();
}

cudaError_t flat_adam(const struct flat_range *r, float *m, float *v, const struct adam_args *a,
                      const struct step_scalars *s, cudaStream_t stream)
{
    if (r->n < 0 || !(a->beta1 >= 0 && a->beta1 < 1 && a->beta2 >= 0 && a->beta2 < 1))
        return cudaErrorInvalidValue;
    if (r->n == 0)
        return cudaSuccess;
    BF_LAUNCH(flat_adam_sweep, sweep_blocks(r->n), THREADS, 0, stream, *r, m, v, *a, log(a->beta1),
              log(a->beta2), s, range_is_aligned(r) && aligned(m, 16) && aligned(v, 16));
    return cudaGetLastError();
}

cudaError_t flat_lars(const struct flat_range *r, float *m, const struct lars_args *a,
                      const struct step_scalars *s, cudaStream_t stream)
{
    const bool whole = range_is_aligned(r) && aligned(m, 16);
    const int tensors_per_block = THREADS / WARP_LANES;

    if (a->n_chunks < 0 || a->n_chunks > INT32_MAX || a->n_tensors < 0 || a->n_tensors > INT32_MAX)
        return cudaErrorInvalidValue;
    if (a->n_chunks == 0)
        return cudaSuccess;
    BF_LAUNCH(flat_lars_sums, (unsigned)a->n_chunks, THREADS, 0, stream, *r, *a, whole);
    BF_LAUNCH(flat_lars_trust, (unsigned)((a->n_tensors + tensors_per_block - 1) / tensors_per_block),
              THREADS, 0, stream, *a, s);
    BF_LAUNCH(flat_lars_sweep, (unsigned)a->n_chunks, THREADS, 0, stream, *r, m, *a, s, whole);
    return cudaGetLastError();
}

cudaError_t flat_ema(float *ema, const float *w, int64_t n, double decay, const struct step_scalars *s,
                     cudaStream_t stream)
{
    if (n < 0)
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    BF_LAUNCH(flat_ema_sweep, sweep_blocks(n), THREADS, 0, stream, ema, w, n, (float)(1 - decay), s,
              aligned(ema, 16) && aligned(w, 16));
    return cudaGetLastError();
}

cudaError_t flat_scale(float *x, int64_t n, float factor, cudaStream_t stream)
{
    if (n < 0)
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    BF_LAUNCH(flat_scale_sweep, sweep_blocks(n), THREADS, 0, stream, x, n, factor, aligned(x, 16));
    return cudaGetLastError();
}

cudaError_t flat_zero(void *x, size_t bytes, cudaStream_t stream)
{
    return bytes ? cudaMemsetAsync(x, 0, bytes, stream) : cudaSuccess;
}
