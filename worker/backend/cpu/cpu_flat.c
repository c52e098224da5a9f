/* cpu_flat - sweeps over flat fp32 ranges: the optimiser's step, the gradient's norm.
 *
 * Chunks depend on the length alone, so the sum of squares has the same bits for every number of threads.
 */
#include <math.h>
#include "worker/backend/cpu/cpu_internal.h"

enum { FLAT_STEP = 4096 }; /* floats; a chunk is a multiple */

/* What a sweep of SGD uses, rounded once. */
struct sgd_step {
    float lr, clip, momentum, weight_decay;
    bool nesterov;
};

static void sgd_range(float *restrict w, float *restrict g, float *restrict m, int64_t n,
                      const struct sgd_step *a)
{
    const float lr = a->lr, clip = a->clip, momentum = a->momentum, wd = a->weight_decay;

    if (a->nesterov) {
        for (int64_t i = 0; i < n; i++) {
            g[i] = clip * g[i] + wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * (g[i] + momentum * m[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            g[i] = clip * g[i] + wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * m[i];
        }
    }
}

static float clip_factor(const struct step_scalars *s)
{
    double factor = s->max_grad_norm > 0 ? s->max_grad_norm / (s->grad_norm + 1e-6) : 1;

    return factor < 1 ? (float)factor : 1;
}

static int sgd(struct backend *be, float *w, float *g, float *m, size_t n, const struct sgd_args *a,
               const struct step_scalars *s, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    const struct sgd_step step = {.lr = (float)(s->lr * a->lr_scale),
                                  .clip = clip_factor(s),
                                  .momentum = a->momentum,
                                  .weight_decay = a->weight_decay,
                                  .nesterov = a->nesterov};

    (void)be;
    (void)e;
    if (s->loss_not_finite > 0 || s->grad_not_finite > 0)
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t i = chunk_first(&ch, k);

        sgd_range(w + i, g + i, m + i, chunk_end(&ch, k) - i, &step);
    }
    return 0;
}

static double sumsq_range(const float *x, int64_t n)
{
    double sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

static int sumsq(struct backend *be, const float *x, size_t n, double *out, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    double part[CHUNKS_MAX], sum = 0;

    (void)be;
    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        part[k] = sumsq_range(x + chunk_first(&ch, k), chunk_end(&ch, k) - chunk_first(&ch, k));
    for (int k = 0; k < ch.n; k++)
        sum += part[k];
    *out = sum;
    return 0;
}

static int measure(struct backend *be, const float *grads, size_t n, const double *loss,
                   struct step_scalars *s, struct err *e)
{
    double sq;

    if (sumsq(be, grads, n, &sq, e) < 0)
        return -1;
    s->grad_norm = sqrt(sq);
    s->grad_not_finite = !isfinite(sq);
    s->loss = loss ? *loss : 0;
    s->loss_not_finite = !isfinite(s->loss);
    return 0;
}

const struct flat_ops cpu_flat_ops = {measure, sgd, sumsq};
