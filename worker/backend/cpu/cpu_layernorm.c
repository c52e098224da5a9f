/* cpu_layernorm - layer normalisation: row-local but for dγ and dβ, which are summed over rows in fp64.
 *
 * Letters: M rows (all but the last dimension), C channels.
 */
#include <math.h>
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"

enum { LN_ROWS = 32 };

static struct chunks ln_chunks(struct shape s)
{
    return chunks_make(shape_rows(s), LN_ROWS);
}

/* aux: mean and 1/std of each row. Scratch (backward): a chunk's dγ and dβ, 2C doubles, for each chunk. */
KERNEL_PREPARE(layernorm)
{
    (void)be;
    (void)e;
    p->aux_bytes = (size_t)(2 * shape_rows(n->shape)) * sizeof(float);
    p->scratch_bytes = (size_t)((ln_chunks(n->shape).n + 1) * 2 * shape_channels(n->shape)) * sizeof(double);
    return 0;
}

static void ln_row(const float *x, const float *gamma, const float *beta, float *y, int64_t C, float eps,
                   float *stat)
{
    float sum = 0, sq = 0, mean, istd;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < C; j++)
        sum += x[j];
    mean = sum / (float)C;
#pragma omp simd reduction(+ : sq)
    for (int64_t j = 0; j < C; j++)
        sq += (x[j] - mean) * (x[j] - mean);
    istd = 1.0f / sqrtf(sq / (float)C + eps);
#pragma omp simd
    for (int64_t j = 0; j < C; j++)
        y[j] = (x[j] - mean) * istd * gamma[j] + beta[j];
    stat[0] = mean;
    stat[1] = istd;
}

KERNEL_FORWARD(layernorm)
{
    const struct shape s = c->node->shape;
    const struct chunks ch = ln_chunks(s);
    const int64_t C = shape_channels(s);
    const float *x = c->in[0];
    float *y = c->out, *stat = c->aux;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        for (int64_t i = chunk_first(&ch, k), end = chunk_end(&ch, k); i < end; i++)
            ln_row(x + i * C, c->in[1], c->in[2], y + i * C, C, c->node->attr.layernorm.eps, stat + 2 * i);
    return 0;
}

/* dx = istd·(g - mean(g) - x̂·mean(g·x̂)) with g = dy·γ. */
static void ln_grad_row(const float *x, const float *gamma, const float *dy, float *dx, int64_t C,
                        const float *stat, bool add)
{
    const float mean = stat[0], istd = stat[1];
    float sg = 0, sgx = 0;

#pragma omp simd reduction(+ : sg, sgx)
    for (int64_t j = 0; j < C; j++) {
        float g = dy[j] * gamma[j];

        sg += g;
        sgx += g * ((x[j] - mean) * istd);
    }
    sg /= (float)C;
    sgx /= (float)C;
#pragma omp simd
    for (int64_t j = 0; j < C; j++) {
        float d = istd * (dy[j] * gamma[j] - sg - (x[j] - mean) * istd * sgx);

        dx[j] = (add ? dx[j] : 0.0f) + d;
    }
}

/* Adds a row's share of dγ and dβ, fp64. */
static void ln_param_row(const float *x, const float *dy, int64_t C, const float *stat,
                         double *restrict dgamma, double *restrict dbeta)
{
    for (int64_t j = 0; j < C; j++) {
        dgamma[j] += (double)(dy[j] * ((x[j] - stat[0]) * stat[1]));
        dbeta[j] += (double)dy[j];
    }
}

KERNEL_BACKWARD(layernorm)
{
    const struct shape s = c->node->shape;
    const struct chunks ch = ln_chunks(s);
    const int64_t C = shape_channels(s);
    const float *x = c->in[0], *dy = c->dout, *stat = c->aux;
    double *sums = c->scratch, *part = sums + 2 * C;
    float *dx = c->din[0];

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        double *mine = part + k * 2 * C;

        memset(mine, 0, (size_t)(2 * C) * sizeof(*mine));
        for (int64_t i = chunk_first(&ch, k), end = chunk_end(&ch, k); i < end; i++) {
            ln_param_row(x + i * C, dy + i * C, C, stat + 2 * i, mine, mine + C);
            if (dx)
                ln_grad_row(x + i * C, c->in[1], dy + i * C, dx + i * C, C, stat + 2 * i, acc_bit(c, 0));
        }
    }
    cpu_sum_parts(part, ch.n, 2 * C, sums);
    for (int64_t j = 0; j < C; j++) {
        if (c->din[1])
            cpu_put((float *)c->din[1] + j, sums[j], acc_bit(c, 1));
        if (c->din[2])
            cpu_put((float *)c->din[2] + j, sums[C + j], acc_bit(c, 2));
    }
    return 0;
}
