/* cpu_norm - batch normalisation in its three operators, and layer normalisation.
 *
 * Batch norm works on blocks of SUM_ROWS rows × 16 channels that stay in registers and in the first-level
 * cache; blocks are grouped into chunks by rows. Sums are fp32 within a block and fp64 from there on.
 *
 * Statistics are taken of x - pivot, the pivot being the chunk's first row, and turned into Σx and Σx² in
 * fp64. So the variance Σx²/count - mean² keeps its digits when |mean| is far above the standard deviation:
 * the fp32 rounding is relative to the deviations. Backward evaluates dS1 + 2·x·dS2, two large terms that
 * nearly cancel in that case, as (dS1 + 2·pivot·dS2) + 2·(x - pivot)·dS2 with the bracket in fp64.
 *
 * Backward of "stats → all-reduce → apply" is the product of the three operators' own derivatives: bn_apply
 * gives the gradient of the sums, the all-reduce adds it up over ranks, bn_stats adds its share to dx.
 * Nothing is special about the synchronised case.
 *
 * Letters: M rows (all but the last dimension), C channels.
 */
#include <math.h>
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_simd.h"

enum {
    SUM_ROWS = 64,
    LN_ROWS = 32,
};

static struct chunks row_chunks(struct shape s)
{
    return chunks_make(shape_rows(s), SUM_ROWS);
}

/* ------------------------------------------------------------------ statistics */

/* s1 += Σ(x-pivot), s2 += Σ(x-pivot)² over a block. Two sums each hide the latency of an addition. */
static ALWAYS_INLINE void stats_block(const float *x, int64_t rows, int64_t ld, const float *pivot,
                                      double *s1, double *s2, int nv, int w)
{
    v16 k[WIDE], a[WIDE], b[WIDE], qa[WIDE], qb[WIDE], v;
    int64_t r = 0;

    for (int i = 0; i < nv; i++) {
        v16_load(&k[i], pivot + i * VLEN, w);
        a[i] = b[i] = qa[i] = qb[i] = (v16){0};
    }
    for (; r + 1 < rows; r += 2, x += 2 * ld) {
        for (int i = 0; i < nv; i++) {
            v16_load(&v, x + i * VLEN, w);
            v -= k[i];
            a[i] += v;
            qa[i] += v * v;
            v16_load(&v, x + ld + i * VLEN, w);
            v -= k[i];
            b[i] += v;
            qb[i] += v * v;
        }
    }
    for (int i = 0; i < nv; i++) {
        if (r < rows) {
            v16_load(&v, x + i * VLEN, w);
            v -= k[i];
            a[i] += v;
            qa[i] += v * v;
        }
        a[i] += b[i];
        qa[i] += qb[i];
        add_lanes(s1 + i * VLEN, &a[i], w);
        add_lanes(s2 + i * VLEN, &qa[i], w);
    }
}

/* Σx and Σx² of rows [r0, r1) into part[0…C-1] and part[C…2C-1]. */
static void stats_chunk(const float *x, int64_t r0, int64_t r1, int64_t C, double *part)
{
    const float *pivot = x + r0 * C;
    const double n = (double)(r1 - r0);

    memset(part, 0, (size_t)(2 * C) * sizeof(*part));
    for (int64_t r = r0; r < r1; r += SUM_ROWS) {
        const int64_t rows = min_i64(SUM_ROWS, r1 - r);

        FOR_CHANNEL_BLOCKS(j, C, stats_block, x + r * C + j, rows, C, pivot + j, part + j, part + C + j);
    }
    for (int64_t j = 0; j < C; j++) {
        double k = pivot[j], s1 = part[j], s2 = part[C + j];

        part[j] = s1 + n * k;
        part[C + j] = s2 + 2 * k * s1 + n * k * k;
    }
}

/* out[i] = Σ over chunks of part[k][i], in order. */
static void sum_parts(const double *part, int n_parts, int64_t width, double *out)
{
    memset(out, 0, (size_t)width * sizeof(*out));
    for (int k = 0; k < n_parts; k++)
        for (int64_t i = 0; i < width; i++)
            out[i] += part[k * width + i];
}

KERNEL_PREPARE(bn_stats)
{
    (void)be;
    (void)e;
    p->scratch_bytes =
        (size_t)(row_chunks(n->in[0]->shape).n * 2 * shape_channels(n->in[0]->shape)) * sizeof(double);
    return 0;
}

KERNEL_FORWARD(bn_stats)
{
    const struct shape s = c->node->in[0]->shape;
    const struct chunks ch = row_chunks(s);
    const int64_t C = shape_channels(s);
    double *part = c->scratch;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        stats_chunk(c->in[0], chunk_first(&ch, k), chunk_end(&ch, k), C, part + k * 2 * C);
    sum_parts(part, ch.n, 2 * C, c->out);
    return 0;
}

/* dx = or += a + b·(x - pivot) for a block; a, b from the gradient of the sums. */
static ALWAYS_INLINE void stats_grad_block(const float *x, float *dx, int64_t rows, int64_t ld,
                                           const float *pivot, const double *d1, const double *d2, bool add,
                                           int nv, int w)
{
    v16 a[WIDE], b[WIDE], k[WIDE], v, old;

    for (int i = 0; i < nv; i++) {
        float ta[VLEN] = {0}, tb[VLEN] = {0};

        for (int l = 0; l < w; l++) {
            int j = i * VLEN + l;

            ta[l] = (float)(d1[j] + 2 * pivot[j] * d2[j]);
            tb[l] = (float)(2 * d2[j]);
        }
        v16_load(&a[i], ta, VLEN);
        v16_load(&b[i], tb, VLEN);
        v16_load(&k[i], pivot + i * VLEN, w);
    }
    for (int64_t r = 0; r < rows; r++, x += ld, dx += ld) {
        for (int i = 0; i < nv; i++) {
            v16_load(&v, x + i * VLEN, w);
            v = a[i] + b[i] * (v - k[i]);
            if (add) {
                v16_load(&old, dx + i * VLEN, w);
                v += old;
            }
            v16_store(dx + i * VLEN, &v, w);
        }
    }
}

KERNEL_BACKWARD(bn_stats)
{
    const struct shape s = c->node->in[0]->shape;
    const struct chunks ch = row_chunks(s);
    const int64_t C = shape_channels(s);
    const float *x = c->in[0];
    const double *d1 = c->dout, *d2 = d1 + C;
    const bool add = acc_bit(c, 0);
    float *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        for (int64_t r = chunk_first(&ch, k), end = chunk_end(&ch, k); r < end; r += SUM_ROWS) {
            const int64_t rows = min_i64(SUM_ROWS, end - r), at = r * C;

            FOR_CHANNEL_BLOCKS(j, C, stats_grad_block, x + at + j, dx + at + j, rows, C, x + j, d1 + j,
                               d2 + j, add);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ apply */

/* Per channel, at the start of scratch: y = (x - mean)·scale + shift. */
struct bn_coef {
    float *mean, *scale, *shift;
};

static struct bn_coef coef_at(void *scratch, int64_t C)
{
    float *f = scratch;

    return (struct bn_coef){f, f + C, f + 2 * C};
}

static struct bn_coef coef_from(const struct bn_coef *k, int64_t j)
{
    return (struct bn_coef){k->mean + j, k->scale + j, k->shift + j};
}

static size_t coef_bytes(int64_t C)
{
    return align_up((size_t)(3 * C) * sizeof(float));
}

/* Mean and variance of channel j from the sums over `count` rows; the variance is at least 0. */
static void moments(const double *sums, int64_t C, int64_t j, double count, double *mean, double *var)
{
    *mean = sums[j] / count;
    *var = fmax(sums[C + j] / count - *mean * *mean, 0);
}

/* k is at the block's first channel. */
static ALWAYS_INLINE void apply_block(const float *x, const float *res, float *y, int64_t rows, int64_t ld,
                                      struct bn_coef k, bool relu, int nv, int w)
{
    v16 mean[WIDE], scale[WIDE], shift[WIDE], v, t;

    for (int i = 0; i < nv; i++) {
        v16_load(&mean[i], k.mean + i * VLEN, w);
        v16_load(&scale[i], k.scale + i * VLEN, w);
        v16_load(&shift[i], k.shift + i * VLEN, w);
    }
    for (int64_t r = 0; r < rows * ld; r += ld) {
        for (int i = 0; i < nv; i++) {
            v16_load(&v, x + r + i * VLEN, w);
            v = (v - mean[i]) * scale[i] + shift[i];
            if (res) {
                v16_load(&t, res + r + i * VLEN, w);
                v += t;
            }
            if (relu)
                v16_relu(&v);
            v16_store(y + r + i * VLEN, &v, w);
        }
    }
}

/* The forward pass that bn_apply and bn_infer share; res may be NULL. */
static void apply_all(const struct op_call *c, const struct bn_coef *k, const float *res)
{
    const struct shape s = c->node->shape;
    const struct chunks ch = row_chunks(s);
    const int64_t C = shape_channels(s);
    const bool relu = c->node->attr.bn.relu;
    const float *x = c->in[0];
    float *y = c->out;

#pragma omp parallel for schedule(static)
    for (int q = 0; q < ch.n; q++) {
        for (int64_t r = chunk_first(&ch, q), end = chunk_end(&ch, q); r < end; r += SUM_ROWS) {
            const int64_t rows = min_i64(SUM_ROWS, end - r), at = r * C;

            FOR_CHANNEL_BLOCKS(j, C, apply_block, x + at + j, res ? res + at + j : NULL, y + at + j, rows, C,
                               coef_from(k, j), relu);
        }
    }
}

KERNEL_PREPARE(bn_apply)
{
    const int64_t C = shape_channels(n->shape);

    (void)be;
    (void)e;
    p->scratch_bytes = coef_bytes(C) + (size_t)((row_chunks(n->shape).n + 1) * 2 * C) * sizeof(double);
    return 0;
}

KERNEL_FORWARD(bn_apply)
{
    const struct node *n = c->node;
    const int64_t C = shape_channels(n->shape);
    const double count = n->attr.bn.count, m = n->attr.bn.momentum;
    const double unbiased = count > 1 ? count / (count - 1) : 1;
    const float *gamma = c->in[2], *beta = c->in[3];
    float *running_mean = c->in[4], *running_var = c->in[5];
    const struct bn_coef k = coef_at(c->scratch, C);

    (void)e;
    for (int64_t j = 0; j < C; j++) {
        double mean, var;

        moments(c->in[1], C, j, count, &mean, &var);
        k.mean[j] = (float)mean;
        k.scale[j] = (float)(gamma[j] / sqrt(var + n->attr.bn.eps));
        k.shift[j] = beta[j];
        running_mean[j] = (float)((1 - m) * running_mean[j] + m * mean);
        running_var[j] = (float)((1 - m) * running_var[j] + m * var * unbiased);
    }
    apply_all(c, &k, n->n_inputs > 6 ? c->in[6] : NULL);
    return 0;
}

KERNEL_PREPARE(bn_infer)
{
    (void)be;
    (void)e;
    p->scratch_bytes = coef_bytes(shape_channels(n->shape));
    return 0;
}

KERNEL_FORWARD(bn_infer)
{
    const struct node *n = c->node;
    const int64_t C = shape_channels(n->shape);
    const float *gamma = c->in[1], *beta = c->in[2], *mean = c->in[3], *var = c->in[4];
    const struct bn_coef k = coef_at(c->scratch, C);

    (void)e;
    for (int64_t j = 0; j < C; j++) {
        k.mean[j] = mean[j];
        k.scale[j] = (float)(gamma[j] / sqrt((double)var[j] + n->attr.bn.eps));
        k.shift[j] = beta[j];
    }
    apply_all(c, &k, n->n_inputs > 5 ? c->in[5] : NULL);
    return 0;
}

/* What one pass of bn_apply's backward reads and writes; NULL where there is nothing. */
struct bn_grad {
    const float *x, *dy, *y; /* y only with ReLU */
    float *dx, *dres;
    bool add_dx, add_dres;
    struct bn_coef k;
    int64_t C;
};

/* dst = v, or dst += v. */
static ALWAYS_INLINE void store_or_add(float *dst, v16 *v, bool add, int w)
{
    v16 old;

    if (add) {
        v16_load(&old, dst, w);
        *v += old;
    }
    v16_store(dst, v, w);
}

/* g = dy where y > 0; dres and dx from g; s1 += Σg, s2 += Σ g·(x - mean). `at` is the block's first element,
 * j its first channel. */
static ALWAYS_INLINE void apply_grad_block(const struct bn_grad *b, int64_t at, int64_t rows, int64_t j,
                                           double *s1, double *s2, int nv, int w)
{
    v16 mean[WIDE], scale[WIDE], a[WIDE], q[WIDE], g, t;

    for (int i = 0; i < nv; i++) {
        v16_load(&mean[i], b->k.mean + j + i * VLEN, w);
        v16_load(&scale[i], b->k.scale + j + i * VLEN, w);
        a[i] = q[i] = (v16){0};
    }
    for (int64_t r = 0; r < rows; r++, at += b->C) {
        for (int i = 0; i < nv; i++) {
            const int64_t p = at + i * VLEN;

            v16_load(&g, b->dy + p, w);
            if (b->y) {
                v16_load(&t, b->y + p, w);
                v16_mask_positive(&g, &t);
            }
            v16_load(&t, b->x + p, w);
            a[i] += g;
            q[i] += g * (t - mean[i]);
            if (b->dres) {
                t = g;
                store_or_add(b->dres + p, &t, b->add_dres, w);
            }
            if (b->dx) {
                g *= scale[i];
                store_or_add(b->dx + p, &g, b->add_dx, w);
            }
        }
    }
    for (int i = 0; i < nv; i++) {
        add_lanes(s1 + i * VLEN, &a[i], w);
        add_lanes(s2 + i * VLEN, &q[i], w);
    }
}

static void apply_grad_chunk(const struct bn_grad *b, int64_t r0, int64_t r1, double *part)
{
    const int64_t C = b->C;

    memset(part, 0, (size_t)(2 * C) * sizeof(*part));
    for (int64_t r = r0; r < r1; r += SUM_ROWS) {
        const int64_t rows = min_i64(SUM_ROWS, r1 - r);

        FOR_CHANNEL_BLOCKS(j, C, apply_grad_block, b, r * C + j, rows, j, part + j, part + C + j);
    }
}

static void put(float *dst, double v, bool add)
{
    *dst = (float)(add ? *dst + v : v);
}

/* From A = Σg and B = Σ g·(x-mean) to the gradients of γ, β and of the sums. */
static void finish_grads(const struct op_call *c, const double *sums)
{
    const struct node *n = c->node;
    const int64_t C = shape_channels(n->shape);
    const double count = n->attr.bn.count;
    const float *gamma = c->in[2];
    double *dsums = c->din[1];
    float *dgamma = c->din[2], *dbeta = c->din[3];

    for (int64_t j = 0; j < C; j++) {
        double mean, var, istd, A = sums[j], B, dmean, dvar;

        moments(c->in[1], C, j, count, &mean, &var);
        istd = 1 / sqrt(var + n->attr.bn.eps);
        B = sums[C + j] * istd;
        dmean = -gamma[j] * istd * A;
        dvar = -0.5 * gamma[j] * istd * istd * B;
        if (dgamma)
            put(&dgamma[j], B, acc_bit(c, 2));
        if (dbeta)
            put(&dbeta[j], A, acc_bit(c, 3));
        if (dsums) {
            double d1 = (dmean - 2 * mean * dvar) / count, d2 = dvar / count;

            dsums[j] = acc_bit(c, 1) ? dsums[j] + d1 : d1;
            dsums[C + j] = acc_bit(c, 1) ? dsums[C + j] + d2 : d2;
        }
    }
}

KERNEL_BACKWARD(bn_apply)
{
    const struct node *n = c->node;
    const int64_t C = shape_channels(n->shape);
    const struct chunks ch = row_chunks(n->shape);
    const float *gamma = c->in[2];
    double *sums = (double *)((char *)c->scratch + coef_bytes(C)), *part = sums + 2 * C;
    const struct bn_grad b = {
        .x = c->in[0],
        .dy = c->dout,
        .y = n->attr.bn.relu ? c->out : NULL,
        .dx = c->din[0],
        .dres = n->n_inputs > 6 ? c->din[6] : NULL,
        .add_dx = acc_bit(c, 0),
        .add_dres = acc_bit(c, 6),
        .k = coef_at(c->scratch, C),
        .C = C,
    };

    (void)e;
    for (int64_t j = 0; j < C; j++) {
        double mean, var;

        moments(c->in[1], C, j, n->attr.bn.count, &mean, &var);
        b.k.mean[j] = (float)mean;
        b.k.scale[j] = (float)(gamma[j] / sqrt(var + n->attr.bn.eps));
    }
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        apply_grad_chunk(&b, chunk_first(&ch, k), chunk_end(&ch, k), part + k * 2 * C);
    sum_parts(part, ch.n, 2 * C, sums);
    finish_grads(c, sums);
    return 0;
}

/* ------------------------------------------------------------------ layer norm */

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
    sum_parts(part, ch.n, 2 * C, sums);
    for (int64_t j = 0; j < C; j++) {
        if (c->din[1])
            put((float *)c->din[1] + j, sums[j], acc_bit(c, 1));
        if (c->din[2])
            put((float *)c->din[2] + j, sums[C + j], acc_bit(c, 2));
    }
    return 0;
}
