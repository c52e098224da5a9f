/* cpu_flat - sweeps over flat fp32 ranges: the optimiser's step, scaling, the sum of squares.
 *
 * Chunks depend on the length alone, so the sum of squares has the same bits for every number of threads.
 */
#include "worker/backend/cpu/cpu_internal.h"

enum { FLAT_STEP = 4096 }; /* floats; a chunk is a multiple */

static void sgd_range(float *restrict w, float *restrict g, float *restrict m, int64_t n,
                      const struct sgd_args *a)
{
    const float lr = a->lr, momentum = a->momentum, wd = a->weight_decay;

    if (a->nesterov) {
        for (int64_t i = 0; i < n; i++) {
            g[i] += wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * (g[i] + momentum * m[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            g[i] += wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * m[i];
        }
    }
}

static void sgd(float *w, float *g, float *m, size_t n, const struct sgd_args *a)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);

#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t i = chunk_first(&ch, k);

        sgd_range(w + i, g + i, m + i, chunk_end(&ch, k) - i, a);
    }
}

static void scale(float *x, size_t n, float a)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);

#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        for (int64_t i = chunk_first(&ch, k), end = chunk_end(&ch, k); i < end; i++)
            x[i] *= a;
}

static double sumsq_range(const float *x, int64_t n)
{
    double sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

static double sumsq(const float *x, size_t n)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    double part[CHUNKS_MAX], sum = 0;

#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        part[k] = sumsq_range(x + chunk_first(&ch, k), chunk_end(&ch, k) - chunk_first(&ch, k));
    for (int k = 0; k < ch.n; k++)
        sum += part[k];
    return sum;
}

const struct flat_ops cpu_flat_ops = {sgd, scale, sumsq};
