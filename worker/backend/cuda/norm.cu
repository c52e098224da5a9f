/* norm - batch normalisation in its three operators: statistics, apply, and apply with running statistics.
 *
 * Statistics are taken of x - pivot, the pivot being the sample's first row, and turned into Σx and Σx² in
 * fp64 after each run of rows, so Σx²/count - mean² keeps its digits when |mean| is far above the standard
 * deviation. Backward evaluates dS1 + 2·x·dS2, two large terms that nearly cancel in that case, as
 * (dS1 + 2·pivot·dS2) + 2·(x - pivot)·dS2 with the bracket in fp64.
 *
 * A launcher is up to three kernels: coefficients of the C channels to scratch, one pass over the tensor that
 * leaves a chunk's partial sums in scratch, and their sum in order with whatever follows from it.
 *
 * Scratch: [mean | scale | shift, f32 (C) each | part, f64 (chunks,2,C)]; statistics have the part only.
 * Letters: n samples of `pixels` rows, C channels, V channels a piece.
 */
#include "worker/backend/cuda/columns.cuh"
#include "worker/backend/cuda/norm.h"

enum {
    LOADS = 4, /* rows that a thread has on their way at once */
    COEF_THREADS = 128,
};

static bool shape_valid(const struct cuda_bn_shape *s)
{
    return col_valid(s->n, s->pixels, s->C, s->dtype);
}

static bool aligned(const struct cuda_bn_shape *s, const void *p)
{
    return col_aligned(p, s->C, s->dtype);
}

static struct columns columns_of(const struct cuda_bn_shape *s)
{
    return columns_make(s->n, s->pixels, s->C, s->dtype);
}

/* ------------------------------------------------------------------ statistics */

/* s1 += Σ(x - pivot), s2 += Σ(x - pivot)² over L rows. */
template <class T, int V, int L>
static __device__ __forceinline__ void stats_rows(const T *x, int64_t step, const float (&pivot)[V],
                                                  float (&s1)[V], float (&s2)[V])
{
    pack<T, V> p[L];
    float f[V];

#pragma unroll
    for (int i = 0; i < L; i++)
        p[i] = pack_at<T, V>(x + i * step);
#pragma unroll
    for (int i = 0; i < L; i++) {
        pack_floats(p[i], f);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float d = f[v] - pivot[v];

            s1[v] += d;
            s2[v] += d * d;
        }
    }
}

/* sums += Σx, Σx² of a thread's rows of one unit. */
template <class T, int V>
static __device__ __forceinline__ void stats_unit(const T *x, const struct col_rows &r,
                                                  struct col_sums<V> &sums, uint32_t me)
{
    float pivot[V], s1[V] = {}, s2[V] = {};
    int left = r.count;

    if (left == 0)
        return;
    load_floats<T, V>(x + r.sample, pivot);
    x += r.at;
#pragma unroll 1
    for (; left >= LOADS; left -= LOADS, x += LOADS * r.step)
        stats_rows<T, V, LOADS>(x, r.step, pivot, s1, s2);
#pragma unroll 1
    for (; left > 0; left--, x += r.step)
        stats_rows<T, V, 1>(x, r.step, pivot, s1, s2);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const double q = pivot[v], d = s1[v], nq = r.count * q;

        sums.v[0][v][me] += d + nq;
        sums.v[1][v][me] += s2[v] + q * (2 * d + nq);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS, 2)
    bn_stats_kernel(struct columns k, const T *__restrict__ x, double *__restrict__ part)
{
    __shared__ struct col_sums<V> sums;
    const uint32_t me = columns_thread(k);
    const int64_t c = columns_channel<V>(k);

    columns_zero(sums, me);
    if (c < k.C)
#pragma unroll 1
        for (uint32_t u = columns_unit(k); u < columns_end(k); u += columns_step(k))
            stats_unit<T, V>(x + c, columns_rows(k, u), sums, me);
    columns_write<V>(k, sums, part);
}

__global__ void __launch_bounds__(COL_SUM_X *COL_SUM_Y)
    bn_stats_sum_kernel(const double *__restrict__ part, uint32_t chunks, int64_t C,
                        double *__restrict__ sums)
{
    const int64_t c = (int64_t)blockIdx.x * COL_SUM_X + threadIdx.x;
    double a, b;

    columns_sum(part, chunks, C, &a, &b);
    if (threadIdx.y == 0 && c < C) {
        sums[c] = a;
        sums[C + c] = b;
    }
}

/* dx = or += a + b·(x - pivot) for L rows. */
template <class T, int V, int L>
static __device__ __forceinline__ void stats_grad_rows(const T *x, T *dx, int64_t step,
                                                       const float (&pivot)[V], const float (&a)[V],
                                                       const float (&b)[V], bool add)
{
    pack<T, V> p[L];
    float f[V];

#pragma unroll
    for (int i = 0; i < L; i++)
        p[i] = pack_at<T, V>(x + i * step);
#pragma unroll
    for (int i = 0; i < L; i++) {
        pack_floats(p[i], f);
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = a[v] + b[v] * (f[v] - pivot[v]);
        put_floats<T, V>(dx + i * step, f, add);
    }
}

/* dx = or += (d1 + 2·pivot·d2) + 2·d2·(x - pivot). */
template <class T, int V>
static __device__ __forceinline__ void stats_grad_unit(const T *x, const double *d1, const double *d2, T *dx,
                                                       bool add, const struct col_rows &r)
{
    float pivot[V], a[V], b[V];
    int left = r.count;

    if (left == 0)
        return;
    load_floats<T, V>(x + r.sample, pivot);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const double twice = 2 * d2[v];

        a[v] = (float)(d1[v] + pivot[v] * twice);
        b[v] = (float)twice;
    }
    x += r.at;
    dx += r.at;
#pragma unroll 1
    for (; left >= LOADS; left -= LOADS, x += LOADS * r.step, dx += LOADS * r.step)
        stats_grad_rows<T, V, LOADS>(x, dx, r.step, pivot, a, b, add);
#pragma unroll 1
    for (; left > 0; left--, x += r.step, dx += r.step)
        stats_grad_rows<T, V, 1>(x, dx, r.step, pivot, a, b, add);
}

template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS)
    bn_stats_grad_kernel(struct columns k, const T *__restrict__ x, const double *__restrict__ dsums,
                         T *__restrict__ dx, bool add)
{
    const int64_t c = columns_channel<V>(k);

    if (c < k.C)
#pragma unroll 1
        for (uint32_t u = columns_unit(k); u < columns_end(k); u += columns_step(k))
            stats_grad_unit<T, V>(x + c, dsums + c, dsums + k.C + c, dx + c, add, columns_rows(k, u));
}

template <class T, int V>
static void launch_stats(const struct columns *k, const void *x, double *part, cudaStream_t stream)
{
    BF_LAUNCH((bn_stats_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, (const T *)x, part);
}

template <class T, int V>
static void launch_stats_grad(const struct columns *k, const void *x, const double *dsums, void *dx, bool add,
                              cudaStream_t stream)
{
    BF_LAUNCH((bn_stats_grad_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, (const T *)x,
              dsums, (T *)dx, add);
}

size_t cuda_bn_stats_scratch_bytes(const struct cuda_bn_shape *s)
{
    if (!shape_valid(s) || s->C == 0)
        return 0;
    const struct columns k = columns_of(s);
    return columns_part_bytes(&k);
}

cudaError_t cuda_bn_stats_forward(const struct cuda_bn_shape *s, const void *x, double *sums, void *scratch,
                                  cudaStream_t stream)
{
    double *part = (double *)scratch;

    if (!shape_valid(s) || !aligned(s, x))
        return cudaErrorInvalidValue;
    if (s->C == 0)
        return cudaSuccess;
    const struct columns k = columns_of(s);
    if (k.chunks > 0)
        COLUMNS_RUN(launch_stats, s->C, s->dtype, &k, x, part, stream);
    BF_LAUNCH(bn_stats_sum_kernel, columns_sum_grid(s->C), columns_sum_block(), 0, stream, part, k.chunks,
              s->C, sums);
    return cudaGetLastError();
}

cudaError_t cuda_bn_stats_backward(const struct cuda_bn_shape *s, const void *x, const double *dsums,
                                   void *dx, bool add, cudaStream_t stream)
{
    if (!shape_valid(s) || !aligned(s, x) || !aligned(s, dx))
        return cudaErrorInvalidValue;
    if (s->C == 0)
        return cudaSuccess;
    const struct columns k = columns_of(s);
    if (k.chunks == 0)
        return cudaSuccess;
    COLUMNS_RUN(launch_stats_grad, s->C, s->dtype, &k, x, dsums, dx, add, stream);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------ coefficients */

/* Per channel: y = (x - mean)·scale + shift. */
struct coef {
    float *mean, *scale, *shift;
};

static struct coef coef_at(void *scratch, int64_t C)
{
    float *f = (float *)scratch;
    const int64_t step = (int64_t)(align_up((size_t)C * sizeof(float)) / sizeof(float));

    return {f, f + step, f + 2 * step};
}

static size_t coef_bytes(int64_t C)
{
    return 3 * align_up((size_t)C * sizeof(float));
}

static dim3 coef_grid(int64_t C)
{
    return dim3((unsigned)col_ceil(C, COEF_THREADS));
}

/* Mean and variance of channel c from the sums over `count` rows; the variance is at least 0. */
static __device__ __forceinline__ void moments(const double *sums, int64_t C, int64_t c, double count,
                                               double *mean, double *var)
{
    const double m = sums[c] / count, v = sums[C + c] / count - m * m;

    *mean = m;
    *var = v < 0 ? 0 : v; /* a NaN stays one */
}

/* Running statistics move where there are any: in the forward pass. */
__global__ void __launch_bounds__(COEF_THREADS)
    bn_coef_kernel(struct cuda_bn_apply a, int64_t C, const double *__restrict__ sums,
                   const float *__restrict__ gamma, const float *__restrict__ beta,
                   float *__restrict__ running_mean, float *__restrict__ running_var, struct coef k)
{
    const int64_t c = (int64_t)blockIdx.x * COEF_THREADS + threadIdx.x;
    const double m = a.momentum, unbiased = a.count > 1 ? a.count / (a.count - 1) : 1;
    double mean, var;

    if (c >= C)
        return;
    moments(sums, C, c, a.count, &mean, &var);
    k.mean[c] = (float)mean;
    k.scale[c] = (float)(gamma[c] / sqrt(var + a.eps));
    if (running_mean) {
        k.shift[c] = beta[c];
        running_mean[c] = (float)((1 - m) * running_mean[c] + m * mean);
        running_var[c] = (float)((1 - m) * running_var[c] + m * var * unbiased);
    }
}

__global__ void __launch_bounds__(COEF_THREADS)
    bn_infer_coef_kernel(double eps, int64_t C, const float *__restrict__ gamma,
                         const float *__restrict__ beta, const float *__restrict__ mean,
                         const float *__restrict__ var, struct coef k)
{
    const int64_t c = (int64_t)blockIdx.x * COEF_THREADS + threadIdx.x;

    if (c >= C)
        return;
    k.mean[c] = mean[c];
    k.scale[c] = (float)(gamma[c] / sqrt((double)var[c] + eps));
    k.shift[c] = beta[c];
}

/* ------------------------------------------------------------------ apply */

/* y = (x - mean)·scale + shift [+ res] [max 0; a NaN stays one] for L rows; res may be NULL. */
template <class T, int V, int L>
static __device__ __forceinline__ void apply_rows(const T *x, const T *res, T *y, int64_t step,
                                                  const float (&mean)[V], const float (&scale)[V],
                                                  const float (&shift)[V], bool relu)
{
    pack<T, V> p[L], q[L];
    float f[V], g[V];

#pragma unroll
    for (int i = 0; i < L; i++) {
        p[i] = pack_at<T, V>(x + i * step);
        if (res)
            q[i] = pack_at<T, V>(res + i * step);
    }
#pragma unroll
    for (int i = 0; i < L; i++) {
        pack_floats(p[i], f);
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = (f[v] - mean[v]) * scale[v] + shift[v];
        if (res) {
            pack_floats(q[i], g);
#pragma unroll
            for (int v = 0; v < V; v++)
                f[v] += g[v];
        }
#pragma unroll
        for (int v = 0; v < V; v++)
            f[v] = relu && f[v] < 0 ? 0 : f[v];
        put_floats<T, V>(y + i * step, f, false);
    }
}

/* Units are single rows here. */
template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS)
    bn_apply_kernel(struct columns k, struct coef coef, bool relu, const T *__restrict__ x,
                    const T *__restrict__ res, T *__restrict__ y)
{
    constexpr int L = V == 8 ? 2 : LOADS;
    const int64_t c = columns_channel<V>(k);
    const struct col_rows r = columns_single_rows(k);
    float mean[V], scale[V], shift[V];
    int left = r.count;

    if (c >= k.C)
        return;
    load_floats<float, V>(coef.mean + c, mean);
    load_floats<float, V>(coef.scale + c, scale);
    load_floats<float, V>(coef.shift + c, shift);
    x += r.at + c;
    y += r.at + c;
    res += res ? r.at + c : 0;
#pragma unroll 1
    for (; left >= L; left -= L, x += L * r.step, y += L * r.step) {
        apply_rows<T, V, L>(x, res, y, r.step, mean, scale, shift, relu);
        res += res ? L * r.step : 0;
    }
#pragma unroll 1
    for (; left > 0; left--, x += r.step, y += r.step) {
        apply_rows<T, V, 1>(x, res, y, r.step, mean, scale, shift, relu);
        res += res ? r.step : 0;
    }
}

template <class T, int V>
static void launch_apply(const struct columns *k, struct coef coef, bool relu, const void *x, const void *res,
                         void *y, cudaStream_t stream)
{
    BF_LAUNCH((bn_apply_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, coef, relu,
              (const T *)x, (const T *)res, (T *)y);
}

/* The pass over the tensor that bn_apply and bn_infer share. */
static void apply_all(const struct cuda_bn_shape *s, bool relu, const void *x, const void *res, void *y,
                      void *scratch, cudaStream_t stream)
{
    const struct columns k = columns_make(s->n * s->pixels, 1, s->C, s->dtype);

    if (k.chunks > 0)
        COLUMNS_RUN(launch_apply, s->C, s->dtype, &k, coef_at(scratch, s->C), relu, x, res, y, stream);
}

size_t cuda_bn_apply_scratch_bytes(const struct cuda_bn_shape *s)
{
    if (!shape_valid(s) || s->C == 0)
        return 0;
    const struct columns k = columns_of(s);
    return coef_bytes(s->C) + columns_part_bytes(&k);
}

cudaError_t cuda_bn_apply_forward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a, const void *x,
                                  const double *sums, const float *gamma, const float *beta,
                                  float *running_mean, float *running_var, const void *residual, void *y,
                                  void *scratch, cudaStream_t stream)
{
    if (!shape_valid(s) || !aligned(s, x) || !aligned(s, residual) || !aligned(s, y))
        return cudaErrorInvalidValue;
    if (s->C == 0)
        return cudaSuccess;
    BF_LAUNCH(bn_coef_kernel, coef_grid(s->C), dim3(COEF_THREADS), 0, stream, *a, s->C, sums, gamma, beta,
              running_mean, running_var, coef_at(scratch, s->C));
    apply_all(s, a->relu, x, residual, y, scratch, stream);
    return cudaGetLastError();
}

size_t cuda_bn_infer_scratch_bytes(const struct cuda_bn_shape *s)
{
    return shape_valid(s) ? coef_bytes(s->C) : 0;
}

cudaError_t cuda_bn_infer_forward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a, const void *x,
                                  const float *gamma, const float *beta, const float *running_mean,
                                  const float *running_var, const void *residual, void *y, void *scratch,
                                  cudaStream_t stream)
{
    if (!shape_valid(s) || !aligned(s, x) || !aligned(s, residual) || !aligned(s, y))
        return cudaErrorInvalidValue;
    if (s->C == 0)
        return cudaSuccess;
    BF_LAUNCH(bn_infer_coef_kernel, coef_grid(s->C), dim3(COEF_THREADS), 0, stream, (double)a->eps, s->C,
              gamma, beta, running_mean, running_var, coef_at(scratch, s->C));
    apply_all(s, a->relu, x, residual, y, scratch, stream);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------ apply, backward */

template <class T> struct grad_pass {
    const T *x, *y, *dy; /* y is NULL without ReLU */
    T *dx, *dres;        /* or NULL */
    bool add_dx, add_dres;
};

/* g = dy where y > 0; dres and dx from g; s1 += Σg, s2 += Σ g·(x - mean) over L rows from element `at` on. */
template <class T, int V, int L>
static __device__ __forceinline__ void apply_grad_rows(const struct grad_pass<T> &b, int64_t at, int64_t step,
                                                       const float (&mean)[V], const float (&scale)[V],
                                                       float (&s1)[V], float (&s2)[V])
{
    pack<T, V> dy[L], x[L], y[L];
    float g[V], f[V];

#pragma unroll
    for (int i = 0; i < L; i++) {
        dy[i] = pack_at<T, V>(b.dy + at + i * step);
        x[i] = pack_at<T, V>(b.x + at + i * step);
        if (b.y)
            y[i] = pack_at<T, V>(b.y + at + i * step);
    }
#pragma unroll
    for (int i = 0; i < L; i++) {
        pack_floats(dy[i], g);
        if (b.y) {
            pack_floats(y[i], f);
#pragma unroll
            for (int v = 0; v < V; v++)
                g[v] = f[v] > 0 ? g[v] : 0;
        }
        if (b.dres)
            put_floats<T, V>(b.dres + at + i * step, g, b.add_dres);
        pack_floats(x[i], f);
#pragma unroll
        for (int v = 0; v < V; v++) {
            s1[v] += g[v];
            s2[v] += g[v] * (f[v] - mean[v]);
            f[v] = g[v] * scale[v];
        }
        if (b.dx)
            put_floats<T, V>(b.dx + at + i * step, f, b.add_dx);
    }
}

/* A thread's rows of one unit; `at` is the first, from the tensor's first element. */
template <class T, int V>
static __device__ __forceinline__ void
apply_grad_unit(const struct grad_pass<T> &b, const struct col_rows &r, int64_t at, const float (&mean)[V],
                const float (&scale)[V], struct col_sums<V> &sums, uint32_t me)
{
    constexpr int L = V == 8 ? 1 : 2;
    float s1[V] = {}, s2[V] = {};
    int left = r.count;

#pragma unroll 1
    for (; left >= L; left -= L, at += L * r.step)
        apply_grad_rows<T, V, L>(b, at, r.step, mean, scale, s1, s2);
    if (left > 0)
        apply_grad_rows<T, V, 1>(b, at, r.step, mean, scale, s1, s2);
#pragma unroll
    for (int v = 0; v < V; v++) {
        sums.v[0][v][me] += s1[v];
        sums.v[1][v][me] += s2[v];
    }
}

template <class T, int V>
__global__ void __launch_bounds__(COL_THREADS, 2)
    bn_apply_grad_kernel(struct columns k, struct coef coef, struct grad_pass<T> b, double *__restrict__ part)
{
    __shared__ struct col_sums<V> sums;
    const uint32_t me = columns_thread(k);
    const int64_t c = columns_channel<V>(k);

    columns_zero(sums, me);
    if (c < k.C) {
        float mean[V], scale[V];

        load_floats<float, V>(coef.mean + c, mean);
        load_floats<float, V>(coef.scale + c, scale);
#pragma unroll 1
        for (uint32_t u = columns_unit(k); u < columns_end(k); u += columns_step(k)) {
            const struct col_rows r = columns_rows(k, u);

            apply_grad_unit<T, V>(b, r, r.at + c, mean, scale, sums, me);
        }
    }
    columns_write<V>(k, sums, part);
}

/* Gradients of what there is one of per channel. */
struct grad_finish {
    const double *sums;
    const float *gamma;
    double *dsums;
    float *dgamma, *dbeta;
    bool add_dsums, add_dgamma, add_dbeta;
};

/* From A = Σg and B = Σ g·(x-mean), summed over chunks, to the gradients of γ, β and of the sums. */
__global__ void __launch_bounds__(COL_SUM_X *COL_SUM_Y)
    bn_apply_finish_kernel(const double *__restrict__ part, uint32_t chunks, int64_t C, double count,
                           double eps, struct grad_finish f)
{
    const int64_t c = (int64_t)blockIdx.x * COL_SUM_X + threadIdx.x;
    double A, B, mean, var;

    columns_sum(part, chunks, C, &A, &B);
    if (threadIdx.y > 0 || c >= C)
        return;
    moments(f.sums, C, c, count, &mean, &var);
    const double istd = 1 / sqrt(var + eps);
    B *= istd;
    if (f.dsums) {
        const double dmean = -f.gamma[c] * istd * A, dvar = -0.5 * f.gamma[c] * istd * istd * B;

        put_sum(&f.dsums[c], (dmean - 2 * mean * dvar) / count, f.add_dsums);
        put_sum(&f.dsums[C + c], dvar / count, f.add_dsums);
    }
    if (f.dgamma)
        put_sum(&f.dgamma[c], B, f.add_dgamma);
    if (f.dbeta)
        put_sum(&f.dbeta[c], A, f.add_dbeta);
}

template <class T, int V>
static void launch_apply_grad(const struct columns *k, struct coef coef, const struct cuda_bn_grad *g,
                              bool relu, double *part, cudaStream_t stream)
{
    const struct grad_pass<T> b = {
        (const T *)g->x, relu ? (const T *)g->y : nullptr, (const T *)g->dy, (T *)g->dx,
            (T *)g->dres, g->add_dx, g->add_dres
    };

    BF_LAUNCH((bn_apply_grad_kernel<T, V>), columns_grid(k), columns_block(k), 0, stream, *k, coef, b, part);
}

cudaError_t cuda_bn_apply_backward(const struct cuda_bn_shape *s, const struct cuda_bn_apply *a,
                                   const struct cuda_bn_grad *g, void *scratch, cudaStream_t stream)
{
    const struct grad_finish f = {g->sums,  g->gamma,     g->dsums,      g->dgamma,
                                  g->dbeta, g->add_dsums, g->add_dgamma, g->add_dbeta};

    if (!shape_valid(s) || !aligned(s, g->x) || !aligned(s, g->dy) || !aligned(s, g->dx) ||
        !aligned(s, g->dres) || (a->relu && !aligned(s, g->y)))
        return cudaErrorInvalidValue;
    if (s->C == 0)
        return cudaSuccess;
    const struct columns k = columns_of(s);
    const struct coef coef = coef_at(scratch, s->C);
    double *part = (double *)((char *)scratch + coef_bytes(s->C));
    if (k.chunks > 0) {
        BF_LAUNCH(bn_coef_kernel, coef_grid(s->C), dim3(COEF_THREADS), 0, stream, *a, s->C, g->sums, g->gamma,
                  (const float *)nullptr, (float *)nullptr, (float *)nullptr, coef);
        COLUMNS_RUN(launch_apply_grad, s->C, s->dtype, &k, coef, g, a->relu, part, stream);
    }
    BF_LAUNCH(bn_apply_finish_kernel, columns_sum_grid(s->C), columns_sum_block(), 0, stream, part, k.chunks,
              s->C, a->count, (double)a->eps, f);
    return cudaGetLastError();
}
