/* cpu_loss - softmax cross-entropy, with an optional offset per class (balanced softmax: log class counts).
 *
 * Row losses are found in fp64 from fp32 exponentials and added up in row order by one thread. aux keeps each
 * row's maximum and the inverse of its sum of exponentials, from which backward rebuilds the probabilities.
 * The offset gets no gradient.
 *
 * Letters: M rows, K classes.
 */
#include <math.h>
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_simd.h"

KERNEL_PREPARE(softmax_xent)
{
    const int64_t M = n->in[0]->shape.dims[0];

    (void)be;
    (void)e;
    p->aux_bytes = (size_t)(2 * M) * sizeof(float);
    p->scratch_bytes = (size_t)M * sizeof(double);
    return 0;
}

static int check_targets(const int32_t *y, int64_t M, int64_t K, struct err *e)
{
    for (int64_t i = 0; i < M; i++)
        if (y[i] < 0 || y[i] >= K)
            return err_set(e, "target of row %lld is %d; accepted: 0 to %lld", (long long)i, y[i],
                           (long long)(K - 1));
    return 0;
}

/* The loss of one row; stat gets its maximum and 1/Σexp. Called with a constant NULL where there is no
 * offset, so that the loops vectorise. */
static ALWAYS_INLINE double row_loss(const float *z, const float *offset, int64_t K, int32_t y, float *stat)
{
    float max = -INFINITY, sum = 0;

#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < K; j++) {
        float v = z[j] + (offset ? offset[j] : 0.0f);

        max = v > max ? v : max;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < K; j++)
        sum += simd_expf(z[j] + (offset ? offset[j] : 0.0f) - max);
    stat[0] = max;
    stat[1] = 1.0f / sum;
    return log((double)sum) - ((double)(z[y] + (offset ? offset[y] : 0.0f)) - max);
}

KERNEL_FORWARD(softmax_xent)
{
    const struct node *n = c->node;
    const int64_t M = n->in[0]->shape.dims[0], K = n->in[0]->shape.dims[1];
    const float *z = c->in[0], *offset = n->n_inputs > 2 ? c->in[2] : NULL;
    const int32_t *y = c->in[1];
    float *stat = c->aux;
    double *loss = c->scratch, sum = 0;

    if (check_targets(y, M, K, e) < 0)
        return -1;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < M; i++)
        loss[i] = offset ? row_loss(z + i * K, offset, K, y[i], stat + 2 * i)
                         : row_loss(z + i * K, NULL, K, y[i], stat + 2 * i);
    for (int64_t i = 0; i < M; i++)
        sum += loss[i];
    *(double *)c->out = sum / n->attr.xent.denominator;
    return 0;
}

/* dz = or += (softmax - onehot)·a */
static ALWAYS_INLINE void row_grad(const float *z, const float *offset, int64_t K, int32_t y,
                                   const float *stat, float a, float *dz, bool add)
{
    const float max = stat[0], inv = stat[1];

#pragma omp simd
    for (int64_t j = 0; j < K; j++) {
        float p = simd_expf(z[j] + (offset ? offset[j] : 0.0f) - max) * inv;

        dz[j] = (add ? dz[j] : 0.0f) + (p - (j == y ? 1.0f : 0.0f)) * a;
    }
}

KERNEL_BACKWARD(softmax_xent)
{
    const struct node *n = c->node;
    const int64_t M = n->in[0]->shape.dims[0], K = n->in[0]->shape.dims[1];
    const float *z = c->in[0], *offset = n->n_inputs > 2 ? c->in[2] : NULL;
    const float a = (float)(*(const double *)c->dout / n->attr.xent.denominator);
    const float *stat = c->aux;
    const int32_t *y = c->in[1];
    float *dz = c->din[0];

    (void)e;
    if (!dz)
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < M; i++)
        row_grad(z + i * K, offset, K, y[i], stat + 2 * i, a, dz + i * K, acc_bit(c, 0));
    return 0;
}
