/* cpu_norm - batch normalisation in its three operators. Layer normalisation is in cpu_layernorm.c.
 *
 * Batch norm works on blocks of at most SUM_ROWS rows × 16 channels that stay in registers and in the
 * first-level cache. A block never crosses from one sample to the next, and nothing that is rounded to fp32
 * depends on which samples lie beside it: sums are fp32 within a block and fp64 from there on. So the
 * statistics of a mini-batch come out the same, but for the last bits of fp64, however its samples are spread
 * over ranks, and the forward pass of one rank and of many agree in (almost always) every bit. Chunks, whose
 * number and bounds depend on the shape only, are what threads share.
 *
 * Statistics are taken of x - pivot, the pivot being the sample's first row, and turned into Σx and Σx² in
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

enum { SUM_ROWS = 64 };

/* x as samples of `rows` rows (pixels; 1 in (M,C)), the samples in chunks of at least SUM_ROWS rows. */
struct samples {
    int64_t rows, C;
    struct chunks chunks;
};

static struct samples samples_of(struct shape s)
{
    struct samples sm = {1, shape_channels(s), {0}};

    for (int i = 1; i < s.n_dims - 1; i++)
        sm.rows *= s.dims[i];
    sm.chunks = chunks_make(s.n_dims > 1 ? s.dims[0] : 1, ceil_div(SUM_ROWS, max_i64(sm.rows, 1)));
    return sm;
}

/* First and end row of chunk k. */
static int64_t first_row(const struct samples *sm, int k)
{
    return chunk_first(&sm->chunks, k) * sm->rows;
}

static int64_t end_row(const struct samples *sm, int k)
{
    return chunk_end(&sm->chunks, k) * sm->rows;
}

/* Rows of the block that begins at row r: up to SUM_ROWS, within r's sample. */
static int64_t block_rows(const struct samples *sm, int64_t r)
{
    return min_i64(SUM_ROWS, sm->rows - r % sm->rows);
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

/* Adds Σx and Σx² of the sample that begins at row r0 to part[0…C-1] and part[C…2C-1]; tmp holds 2C. */
static void stats_sample(const struct samples *sm, const float *x, int64_t r0, double *tmp, double *part)
{
    const int64_t C = sm->C;
    const float *pivot = x + r0 * C;
    const double n = (double)sm->rows;

    memset(tmp, 0, (size_t)(2 * C) * sizeof(*tmp));
    for (int64_t r = r0; r < r0 + sm->rows; r += SUM_ROWS) {
        const int64_t rows = block_rows(sm, r);

        FOR_CHANNEL_BLOCKS(j, C, stats_block, x + r * C + j, rows, C, pivot + j, tmp + j, tmp + C + j);
    }
    for (int64_t j = 0; j < C; j++) {
        double k = pivot[j], s1 = tmp[j], s2 = tmp[C + j];

        part[j] += s1 + n * k;
        part[C + j] += s2 + 2 * k * s1 + n * k * k;
    }
}

/* Scratch: for each chunk its sums and a sample's, 4C doubles. */
KERNEL_PREPARE(bn_stats)
{
    const struct samples sm = samples_of(n->in[0]->shape);

    (void)be;
    (void)e;
    p->scratch_bytes = (size_t)(sm.chunks.n * 4 * sm.C) * sizeof(double);
    return 0;
}

KERNEL_FORWARD(bn_stats)
{
    const struct samples sm = samples_of(c->node->in[0]->shape);
    const int64_t C = sm.C;
    double *part = c->scratch, *tmp = part + sm.chunks.n * 2 * C;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < sm.chunks.n; k++) {
        memset(part + k * 2 * C, 0, (size_t)(2 * C) * sizeof(*part));
        for (int64_t r = first_row(&sm, k); r < end_row(&sm, k); r += sm.rows)
            stats_sample(&sm, c->in[0], r, tmp + k * 2 * C, part + k * 2 * C);
    }
    cpu_sum_parts(part, sm.chunks.n, 2 * C, c->out);
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
    const struct samples sm = samples_of(c->node->in[0]->shape);
    const int64_t C = sm.C;
    const float *x = c->in[0];
    const double *d1 = c->dout, *d2 = d1 + C;
    const bool add = acc_bit(c, 0);
    float *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < sm.chunks.n; k++) {
        for (int64_t r = first_row(&sm, k), rows; r < end_row(&sm, k); r += rows) {
            const float *pivot = x + (r - r % sm.rows) * C;
            const int64_t at = r * C;

            rows = block_rows(&sm, r);
            FOR_CHANNEL_BLOCKS(j, C, stats_grad_block, x + at + j, dx + at + j, rows, C, pivot + j, d1 + j,
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
    const struct samples sm = samples_of(c->node->shape);
    const int64_t C = sm.C;
    const bool relu = c->node->attr.bn.relu;
    const float *x = c->in[0];
    float *y = c->out;

#pragma omp parallel for schedule(static)
    for (int q = 0; q < sm.chunks.n; q++) {
        for (int64_t r = first_row(&sm, q), rows; r < end_row(&sm, q); r += rows) {
            const int64_t at = r * C;

            rows = block_rows(&sm, r);
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
    p->scratch_bytes = coef_bytes(C) + (size_t)((samples_of(n->shape).chunks.n + 1) * 2 * C) * sizeof(double);
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

static void apply_grad_chunk(const struct bn_grad *b, const struct samples *sm, int k, double *part)
{
    const int64_t C = b->C;

    memset(part, 0, (size_t)(2 * C) * sizeof(*part));
    for (int64_t r = first_row(sm, k), rows; r < end_row(sm, k); r += rows) {
        rows = block_rows(sm, r);
        FOR_CHANNEL_BLOCKS(j, C, apply_grad_block, b, r * C + j, rows, j, part + j, part + C + j);
    }
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
            cpu_put(&dgamma[j], B, acc_bit(c, 2));
        if (dbeta)
            cpu_put(&dbeta[j], A, acc_bit(c, 3));
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
    const struct samples sm = samples_of(n->shape);
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
    for (int k = 0; k < sm.chunks.n; k++)
        apply_grad_chunk(&b, &sm, k, part + k * 2 * C);
    cpu_sum_parts(part, sm.chunks.n, 2 * C, sums);
    finish_grads(c, sums);
    return 0;
}
