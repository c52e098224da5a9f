/* cpu_gemm - matrix products: OP_LINEAR, and cpu_gemm for who needs one.
 *
 * A product is cut into fixed blocks of the result, each computed whole by one thread (inside a parallel
 * region oneDNN's sgemm runs on the caller's thread), so bits do not depend on the number of threads. A block
 * is big enough that packing its operands costs little.
 *
 * Letters: M rows, I inputs, O outputs.
 */
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_simd.h"

enum { BLOCK_M = 256, BLOCK_N = 256, SUM_ROWS = 64 };

/* k = 0: an empty sum. */
static void gemm_empty(int64_t m, int64_t n, float beta, float *c, int64_t ldc)
{
    if (beta == 0)
        for (int64_t i = 0; i < m; i++)
            memset(c + i * ldc, 0, (size_t)n * sizeof(*c));
}

int cpu_gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
             int64_t ldb, float beta, float *c, int64_t ldc, struct err *e)
{
    const int64_t mb = ceil_div(m, BLOCK_M), nb = ceil_div(n, BLOCK_N);
    int failed = 0;

    ASSERT(beta == 0 || beta == 1);
    if (m == 0 || n == 0)
        return 0;
    if (k == 0) {
        gemm_empty(m, n, beta, c, ldc);
        return 0;
    }
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (int64_t t = 0; t < mb * nb; t++) {
        int64_t i = t / nb * BLOCK_M, j = t % nb * BLOCK_N;
        const float *ai = a + (ta == 'N' ? i * lda : i);
        const float *bj = b + (tb == 'N' ? j : j * ldb);

        if (dn_sgemm(ta, tb, min_i64(BLOCK_M, m - i), min_i64(BLOCK_N, n - j), k, 1.0f, ai, lda, bj, ldb,
                     beta, c + i * ldc + j, ldc, NULL) < 0)
            failed = 1;
    }
    return failed
               ? err_set(e, "cpu: sgemm of %lld×%lld×%lld failed", (long long)m, (long long)n, (long long)k)
               : 0;
}

/* out = or += column sums of x (rows, cols): fp32 over SUM_ROWS rows, fp64 over those. */
static void column_sums(const float *x, int64_t rows, int64_t cols, float *out, bool add)
{
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < cols; j += VLEN) {
        const int w = (int)min_i64(VLEN, cols - j);
        double sum[VLEN] = {0};

        for (int64_t r0 = 0; r0 < rows; r0 += SUM_ROWS) {
            v16 s = {0}, v;

            for (int64_t r = r0, end = min_i64(rows, r0 + SUM_ROWS); r < end; r++) {
                v16_load(&v, x + r * cols + j, w);
                s += v;
            }
            for (int l = 0; l < w; l++)
                sum[l] += s[l];
        }
        for (int l = 0; l < w; l++)
            out[j + l] = (float)(add ? out[j + l] + sum[l] : sum[l]);
    }
}

KERNEL_FORWARD(linear)
{
    const struct node *n = c->node;
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int64_t O = shape_channels(n->shape);
    const float *bias = n->n_inputs > 2 ? c->in[2] : NULL;
    float *y = c->out;

    if (bias) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < M; i++)
            memcpy(y + i * O, bias, (size_t)O * sizeof(*y));
    }
    return cpu_gemm('N', 'T', M, O, I, c->in[0], I, c->in[1], I, bias ? 1 : 0, y, O, e);
}

KERNEL_BACKWARD(linear)
{
    const struct node *n = c->node;
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int64_t O = shape_channels(n->shape);

    if (c->din[0] && cpu_gemm('N', 'N', M, I, O, c->dout, O, c->in[1], I, acc_bit(c, 0), c->din[0], I, e) < 0)
        return -1;
    if (c->din[1] && cpu_gemm('T', 'N', O, I, M, c->dout, O, c->in[0], I, acc_bit(c, 1), c->din[1], I, e) < 0)
        return -1;
    if (n->n_inputs > 2 && c->din[2])
        column_sums(c->dout, M, O, c->din[2], acc_bit(c, 2));
    return 0;
}
