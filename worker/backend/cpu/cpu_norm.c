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
 * x, y and their gradients are f32 or bf16 (cpu_dtype.h); a block function gets a tensor, and the index of
 * its first element there. Coefficients are f32, sums as above, whatever the type.
 *
 * Letters: M rows (all but the last dimension), C channels.
 */
#include <math.h>
#include <string.h>
#include "worker/backend/cpu/cpu_dtype.h"

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

/* s1 += Σ(x-pivot), s2 += Σ(x-pivot)² over the block at `at`; the pivots are at `pivot`. Two sums each hide
 * the latency of an addition. */
static ALWAYS_INLINE void stats_block(const void *x, int64_t at, int64_t rows, int64_t ld, int64_t pivot,
                                      double *s1, double *s2, enum dtype t, int nv, int w)
{
    v16 k[WIDE], a[WIDE], b[WIDE], qa[WIDE], qb[WIDE], v;
    int64_t r = 0;

    for (int i = 0; i < nv; i++) {
        v16_get(&k[i], x, pivot + i * VLEN, w, t);
        a[i] = b[i] = qa[i] = qb[i] = (v16){0};
    }
    for (; r + 1 < rows; r += 2, at += 2 * ld) {
        for (int i = 0; i < nv; i++) {
            v16_get(&v, x, at + i * VLEN, w, t);
            v -= k[i];
            a[i] += v;
            qa[i] += v * v;
            v16_get(&v, x, at + ld + i * VLEN, w, t);
            v -= k[i];
            b[i] += v;
            qb[i] += v * v;
        }
    }
    for (int i = 0; i < nv; i++) {
        if (r < rows) {
            v16_get(&v, x, at + i * VLEN, w, t);
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
static ALWAYS_INLINE void stats_sample(const struct samples *sm, const void *x, int64_t r0, double *tmp,
                                       double *part, enum dtype t)
{
    const int64_t C = sm->C, pivot = r0 * C;
    const double n = (double)sm->rows;

    memset(tmp, 0, (size_t)(2 * C) * sizeof(*tmp));
    for (int64_t r = r0; r < r0 + sm->rows; r += SUM_ROWS) {
        const int64_t rows = block_rows(sm, r);

        FOR_CHANNEL_BLOCKS(j, C, stats_block, x, r * C + j, rows, C, pivot + j, tmp + j, tmp + C + j, t);
    }
    for (int64_t j = 0; j < C; j++) {
        double k = element_of(x, pivot + j, t), s1 = tmp[j], s2 = tmp[C + j];

        part[j] += s1 + n * k;
        part[C + j] += s2 + 2 * k * s1 + n * k * k;
    }
}

/* The sums of chunk k; tmp and part are this chunk's. */
static ALWAYS_INLINE void stats_chunk(const struct samples *sm, int k, const void *x, double *tmp,
                                      double *part, enum dtype t)
{
    memset(part, 0, (size_t)(2 * sm->C) * sizeof(*part));
    for (int64_t r = first_row(sm, k); r < end_row(sm, k); r += sm->rows)
        stats_sample(sm, x, r, tmp, part, t);
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
    for (int k = 0; k < sm.chunks.n; k++)
        FOR_DTYPE(c->node->in[0]->dtype, stats_chunk, &sm, k, c->in[0], tmp + k * 2 * C, part + k * 2 * C);
    cpu_sum_parts(part, sm.chunks.n, 2 * C, c->out);
    return 0;
}

/* dx = or += a + b·(x - pivot) for the block at `at`; a, b from the gradient of the sums. */
static ALWAYS_INLINE void stats_grad_block(const void *x, void *dx, int64_t at, int64_t rows, int64_t ld,
                                           int64_t pivot, const double *d1, const double *d2, bool add,
                                           enum dtype t, int nv, int w)
{
    v16 a[WIDE], b[WIDE], k[WIDE], v, old;

    for (int i = 0; i < nv; i++) {
        float ta[VLEN] = {0}, tb[VLEN] = {0};

        v16_get(&k[i], x, pivot + i * VLEN, w, t);
        for (int l = 0; l < w; l++) {
            int j = i * VLEN + l;

            ta[l] = (float)(d1[j] + 2 * k[i][l] * d2[j]);
            tb[l] = (float)(2 * d2[j]);
        }
        v16_load(&a[i], ta, VLEN);
        v16_load(&b[i], tb, VLEN);
    }
    for (int64_t r = 0; r < rows; r++, at += ld) {
        for (int i = 0; i < nv; i++) {
            v16_get(&v, x, at + i * VLEN, w, t);
            v = a[i] + b[i] * (v - k[i]);
            if (add) {
                v16_get(&old, dx, at + i * VLEN, w, t);
                v += old;
            }
            v16_put(dx, at + i * VLEN, &v, w, t);
        }
    }
}

static ALWAYS_INLINE void stats_grad_chunk(const struct samples *sm, int chunk, const void *x, void *dx,
                                           const double *d1, const double *d2, bool add, enum dtype t)
{
    const int64_t C = sm->C;

    for (int64_t r = first_row(sm, chunk), rows; r < end_row(sm, chunk); r += rows) {
        const int64_t pivot = (r - r % sm->rows) * C;

        rows = block_rows(sm, r);
        FOR_CHANNEL_BLOCKS(j, C, stats_grad_block, x, dx, r * C + j, rows, C, pivot + j, d1 + j, d2 + j, add,
                           t);
    }
}

KERNEL_BACKWARD(bn_stats)
{
    const struct samples sm = samples_of(c->node->in[0]->shape);
    const double *d1 = c->dout, *d2 = d1 + sm.C;
    const bool add = acc_bit(c, 0);

    (void)e;
    if (!c->din[0])
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < sm.chunks.n; k++)
        FOR_DTYPE(c->node->in[0]->dtype, stats_grad_chunk, &sm, k, c->in[0], c->din[0], d1, d2, add);
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

/* k is at the block's first channel, `at` its first element. */
static ALWAYS_INLINE void apply_block(const void *x, const void *res, void *y, int64_t at, int64_t rows,
                                      int64_t ld, struct bn_coef k, bool relu, enum dtype t, int nv, int w)
{
    v16 mean[WIDE], scale[WIDE], shift[WIDE], v, old;

    for (int i = 0; i < nv; i++) {
        v16_load(&mean[i], k.mean + i * VLEN, w);
        v16_load(&scale[i], k.scale + i * VLEN, w);
        v16_load(&shift[i], k.shift + i * VLEN, w);
    }
    for (int64_t r = 0; r < rows; r++, at += ld) {
        for (int i = 0; i < nv; i++) {
            v16_get(&v, x, at + i * VLEN, w, t);
            v = (v - mean[i]) * scale[i] + shift[i];
            if (res) {
                v16_get(&old, res, at + i * VLEN, w, t);
                v += old;
            }
            if (relu)
                v16_relu(&v);
            v16_put(y, at + i * VLEN, &v, w, t);
        }
    }
}

static ALWAYS_INLINE void apply_chunk(const struct op_call *c, const struct samples *sm, int chunk,
                                      const struct bn_coef *k, const void *res, enum dtype t)
{
    const int64_t C = sm->C;
    const bool relu = c->node->attr.bn.relu;

    for (int64_t r = first_row(sm, chunk), rows; r < end_row(sm, chunk); r += rows) {
        rows = block_rows(sm, r);
        FOR_CHANNEL_BLOCKS(j, C, apply_block, c->in[0], res, c->out, r * C + j, rows, C, coef_from(k, j),
                           relu, t);
    }
}

/* The forward pass that bn_apply and bn_infer share; res may be NULL. */
static void apply_all(const struct op_call *c, const struct bn_coef *k, const void *res)
{
    const struct samples sm = samples_of(c->node->shape);

#pragma omp parallel for schedule(static)
    for (int q = 0; q < sm.chunks.n; q++)
        FOR_DTYPE(c->node->dtype, apply_chunk, c, &sm, q, k, res);
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
    const void *x, *dy, *y; /* y only with ReLU */
    void *dx, *dres;
    bool add_dx, add_dres;
    struct bn_coef k;
    int64_t C;
};

/* Elements at … of dst = v, or += v. */
static ALWAYS_INLINE void put_or_add(void *dst, int64_t at, v16 *v, bool add, int w, enum dtype t)
{
    v16 old;

    if (add) {
        v16_get(&old, dst, at, w, t);
        *v += old;
    }
    v16_put(dst, at, v, w, t);
}

/* g = dy where y > 0; dres and dx from g; s1 += Σg, s2 += Σ g·(x - mean). `at` is the block's first element,
 * j its first channel. */
static ALWAYS_INLINE void apply_grad_block(const struct bn_grad *b, int64_t at, int64_t rows, int64_t j,
                                           double *s1, double *s2, enum dtype t, int nv, int w)
{
    v16 mean[WIDE], scale[WIDE], a[WIDE], q[WIDE], g, v;

    for (int i = 0; i < nv; i++) {
        v16_load(&mean[i], b->k.mean + j + i * VLEN, w);
        v16_load(&scale[i], b->k.scale + j + i * VLEN, w);
        a[i] = q[i] = (v16){0};
    }
    for (int64_t r = 0; r < rows; r++, at += b->C) {
        for (int i = 0; i < nv; i++) {
            const int64_t p = at + i * VLEN;

            v16_get(&g, b->dy, p, w, t);
            if (b->y) {
                v16_get(&v, b->y, p, w, t);
                v16_mask_positive(&g, &v);
            }
            v16_get(&v, b->x, p, w, t);
            a[i] += g;
            q[i] += g * (v - mean[i]);
            if (b->dres) {
                v = g;
                put_or_add(b->dres, p, &v, b->add_dres, w, t);
            }
            if (b->dx) {
                g *= scale[i];
                put_or_add(b->dx, p, &g, b->add_dx, w, t);
            }
        }
    }
    for (int i = 0; i < nv; i++) {
        add_lanes(s1 + i * VLEN, &a[i], w);
        add_lanes(s2 + i * VLEN, &q[i], w);
    }
}

static ALWAYS_INLINE void apply_grad_chunk(const struct bn_grad *b, const struct samples *sm, int k,
                                           double *part, enum dtype t)
{
    const int64_t C = b->C;

    memset(part, 0, (size_t)(2 * C) * sizeof(*part));
    for (int64_t r = first_row(sm, k), rows; r < end_row(sm, k); r += rows) {
        rows = block_rows(sm, r);
        FOR_CHANNEL_BLOCKS(j, C, apply_grad_block, b, r * C + j, rows, j, part + j, part + C + j, t);
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
        FOR_DTYPE(n->dtype, apply_grad_chunk, &b, &sm, k, part + k * 2 * C);
    cpu_sum_parts(part, sm.chunks.n, 2 * C, sums);
    finish_grads(c, sums);
    return 0;
}
