/* cpu_elem - operators that look at one element at a time, or copy rows: act, add, dropout, cast, concat,
 * slice.
 *
 * Dropout masks are never stored: forward and backward draw the same numbers (philox.h), keyed by the global
 * index of the sample, so that a mask does not depend on how rows lie on ranks.
 */
#include <string.h>
#include "worker/backend/cpu/cpu_dtype.h"

enum { ELEM_STEP = 4096 }; /* elements; a chunk is a multiple */

void cpu_copy_or_add(float *dst, const float *src, int64_t n, bool add)
{
    const struct chunks ch = chunks_make(n, ELEM_STEP);

#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t first = chunk_first(&ch, k), end = chunk_end(&ch, k);

        if (!add) {
            memcpy(dst + first, src + first, (size_t)(end - first) * sizeof(*dst));
            continue;
        }
#pragma omp simd
        for (int64_t i = first; i < end; i++)
            dst[i] += src[i];
    }
}

/* dst = a + b, elements first … end-1. */
static ALWAYS_INLINE void sum_range(void *dst, const void *a, const void *b, int64_t first, int64_t end,
                                    enum dtype t)
{
    for (int64_t i = first; i < end; i += VLEN) {
        const int w = (int)min_i64(VLEN, end - i);
        v16 u, v;

        v16_get(&u, a, i, w, t);
        v16_get(&v, b, i, w, t);
        u += v;
        v16_put(dst, i, &u, w, t);
    }
}

void cpu_write_or_add(void *dst, const void *src, int64_t n, enum dtype t, bool add)
{
    const struct chunks ch = chunks_make(n, ELEM_STEP);

    if (t == DTYPE_F32) {
        cpu_copy_or_add(dst, src, n, add);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        const int64_t first = chunk_first(&ch, k), end = chunk_end(&ch, k);

        if (add)
            sum_range(dst, dst, src, first, end, DTYPE_BF16);
        else
            memcpy((uint16_t *)dst + first, (const uint16_t *)src + first,
                   (size_t)(end - first) * sizeof(uint16_t));
    }
}

/* dst (floats) = or += bf16 src, elements first … end-1. */
static void widen_range(float *dst, const void *src, int64_t first, int64_t end, bool add)
{
    for (int64_t i = first; i < end; i += VLEN) {
        const int w = (int)min_i64(VLEN, end - i);
        v16 v, old;

        v16_get(&v, src, i, w, DTYPE_BF16);
        if (add) {
            v16_load(&old, dst + i, w);
            v += old;
        }
        v16_store(dst + i, &v, w);
    }
}

void cpu_cast(void *dst, enum dtype to, const void *src, enum dtype from, int64_t n, bool add)
{
    const struct chunks ch = chunks_make(n, ELEM_STEP);

    if (from == to) {
        cpu_write_or_add(dst, src, n, to, add);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        const int64_t first = chunk_first(&ch, k), end = chunk_end(&ch, k);

        if (to == DTYPE_BF16)
            narrow((const float *)src + first, dst, first, end - first, add);
        else
            widen_range(dst, src, first, end, add);
    }
}

/* The gradient's type is that of its node's gradient: f32 where the values are bf16, but gathered. */
KERNEL_FORWARD(cast)
{
    (void)e;
    cpu_cast(c->out, c->node->dtype, c->in[0], c->node->in[0]->dtype, shape_count(c->node->shape), false);
    return 0;
}

KERNEL_BACKWARD(cast)
{
    const struct node *n = c->node;

    (void)e;
    if (c->din[0])
        cpu_cast(c->din[0], n->in[0]->grad_dtype, c->dout, n->grad_dtype, shape_count(n->shape),
                 acc_bit(c, 0));
    return 0;
}

/* One chunk of an activation's forward, y = f(x). */
static void act_range(enum act_kind kind, const float *restrict x, float *restrict y, int64_t n)
{
    if (kind == ACT_RELU) {
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < 0 ? 0 : x[i]; /* NaN stays NaN */
    } else {
        for (int64_t i = 0; i < n; i++)
            y[i] = 0.5f * x[i] * (1.0f + simd_erff(x[i] * 0.70710678118654752f));
    }
}

/* One chunk of backward: dx = dy·f'(x), or dx += …. Called with a constant `add`, so that the loops
 * vectorise. */
static ALWAYS_INLINE void act_grad_loop(enum act_kind kind, const float *restrict x, const float *restrict dy,
                                        float *restrict dx, int64_t n, bool add)
{
    if (kind == ACT_RELU) {
        for (int64_t i = 0; i < n; i++)
            dx[i] = (add ? dx[i] : 0.0f) + (x[i] > 0 ? dy[i] : 0.0f);
    } else {
        for (int64_t i = 0; i < n; i++) {
            float cdf = 0.5f * (1.0f + simd_erff(x[i] * 0.70710678118654752f));
            float pdf = 0.39894228040143268f * simd_expf(-0.5f * x[i] * x[i]);

            dx[i] = (add ? dx[i] : 0.0f) + (cdf + x[i] * pdf) * dy[i];
        }
    }
}

static void act_grad_range(enum act_kind kind, const float *x, const float *dy, float *dx, int64_t n,
                           bool add)
{
    if (add)
        act_grad_loop(kind, x, dy, dx, n, true);
    else
        act_grad_loop(kind, x, dy, dx, n, false);
}

static void act_chunk(enum act_kind kind, const void *x, void *y, int64_t first, int64_t end, enum dtype t)
{
    float in[BLOCK_FLOATS], out[BLOCK_FLOATS];

    for (int64_t i = first, n; i < end; i += n) {
        float *to = block_for(y, i, n = min_i64(BLOCK_FLOATS, end - i), t, out, false);

        act_range(kind, block_of(x, i, n, t, in), to, n);
        block_done(y, i, n, t, to);
    }
}

KERNEL_FORWARD(act)
{
    const struct node *n = c->node;
    const struct chunks ch = chunks_make(shape_count(n->shape), ELEM_STEP);

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        act_chunk(n->attr.act.kind, c->in[0], c->out, chunk_first(&ch, k), chunk_end(&ch, k), n->dtype);
    return 0;
}

static void act_grad_chunk(const struct op_call *c, int64_t first, int64_t end, enum dtype t)
{
    const bool add = acc_bit(c, 0);
    float in[BLOCK_FLOATS], grad[BLOCK_FLOATS], out[BLOCK_FLOATS];

    for (int64_t i = first, n; i < end; i += n) {
        float *to = block_for(c->din[0], i, n = min_i64(BLOCK_FLOATS, end - i), t, out, add);

        act_grad_range(c->node->attr.act.kind, block_of(c->in[0], i, n, t, in),
                       block_of(c->dout, i, n, t, grad), to, n, add);
        block_done(c->din[0], i, n, t, to);
    }
}

KERNEL_BACKWARD(act)
{
    const struct chunks ch = chunks_make(shape_count(c->node->shape), ELEM_STEP);

    (void)e;
    if (!c->din[0])
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        act_grad_chunk(c, chunk_first(&ch, k), chunk_end(&ch, k), c->node->dtype);
    return 0;
}

KERNEL_FORWARD(add)
{
    const struct chunks ch = chunks_make(shape_count(c->node->shape), ELEM_STEP);

    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        FOR_DTYPE(c->node->dtype, sum_range, c->out, c->in[0], c->in[1], chunk_first(&ch, k),
                  chunk_end(&ch, k));
    return 0;
}

/* a and b may be one node: then din[0] and din[1] are one buffer, defined first and added to second. */
KERNEL_BACKWARD(add)
{
    int64_t n = shape_count(c->node->shape);

    (void)e;
    for (int i = 0; i < 2; i++)
        if (c->din[i])
            cpu_write_or_add(c->din[i], c->dout, n, c->node->dtype, acc_bit(c, i));
    return 0;
}

enum { DROP_BLOCK = DRAWS_MAX };

/* dst = mask∘src (or += when add) for one row of `width` elements that begins at `at`. */
static void dropout_row(const struct dropout_site *site, uint32_t sample, const void *src, void *dst,
                        int64_t at, int64_t width, bool add, enum dtype t)
{
    float keep[DROP_BLOCK], in[DROP_BLOCK], out[DROP_BLOCK];

    for (int64_t j = 0; j < width; j += DROP_BLOCK) {
        const int64_t w = min_i64(DROP_BLOCK, width - j);
        const float *x = block_of(src, at + j, w, t, in);
        float *y = block_for(dst, at + j, w, t, out, add);

        dropout_keep(site, sample, 0, j, w, keep);
        /* Select, so that a dropped element is 0 whatever it was. */
        for (int64_t i = 0; i < w; i++) {
            float v = keep[i] > 0 ? x[i] * keep[i] : 0.0f;

            y[i] = add ? y[i] + v : v;
        }
        block_done(dst, at + j, w, t, y);
    }
}

/* dst = mask∘src (or += when add) for all rows. */
static int dropout_run(const struct op_call *c, const void *src, void *dst, bool add, struct err *e)
{
    const struct node *n = c->node;
    const struct dropout_site site = dropout_site_make(c->step, n->attr.dropout.stream, n->attr.dropout.p);
    const int64_t rows = n->shape.dims[0], first = c->rows->first;
    const int64_t width = rows ? shape_count(n->shape) / rows : 0;

    if (rows != c->rows->local)
        return err_set(e, "dropout over %lld rows; the rank has %lld, and masks are keyed by its rows",
                       (long long)rows, (long long)c->rows->local);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        dropout_row(&site, (uint32_t)(first + i), src, dst, i * width, width, add, n->dtype);
    return 0;
}

KERNEL_FORWARD(dropout)
{
    return dropout_run(c, c->in[0], c->out, false, e);
}

KERNEL_BACKWARD(dropout)
{
    return c->din[0] ? dropout_run(c, c->dout, c->din[0], acc_bit(c, 0), e) : 0;
}

/* Bytes of one row of a tensor of n's type and inner shape. */
static size_t row_bytes(const struct node *n)
{
    size_t bytes = dtype_bytes(n->dtype);

    for (int i = 1; i < n->shape.n_dims; i++)
        bytes *= (size_t)n->shape.dims[i];
    return bytes;
}

KERNEL_FORWARD(concat_rows)
{
    const size_t row = row_bytes(c->node);
    char *dst = c->out;

    (void)e;
    for (int i = 0; i < c->node->n_inputs; i++) {
        size_t bytes = (size_t)c->node->in[i]->shape.dims[0] * row;

        if (bytes)
            memcpy(dst, c->in[i], bytes);
        dst += bytes;
    }
    return 0;
}

KERNEL_BACKWARD(concat_rows)
{
    const enum dtype t = c->node->dtype;
    const char *src = c->dout;

    (void)e;
    for (int i = 0; i < c->node->n_inputs; i++) {
        int64_t count = shape_count(c->node->in[i]->shape);

        if (c->din[i])
            cpu_write_or_add(c->din[i], src, count, t, acc_bit(c, i));
        src += (size_t)count * dtype_bytes(t);
    }
    return 0;
}

KERNEL_FORWARD(slice_rows)
{
    const size_t row = row_bytes(c->node);
    const size_t bytes = (size_t)c->node->shape.dims[0] * row;

    (void)e;
    if (bytes)
        memcpy(c->out, (const char *)c->in[0] + (size_t)c->node->attr.slice.from * row, bytes);
    return 0;
}

KERNEL_BACKWARD(slice_rows)
{
    const size_t row = row_bytes(c->node);
    const int64_t rows = c->node->in[0]->shape.dims[0];
    const int64_t from = c->node->attr.slice.from, to = c->node->attr.slice.to;
    char *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
    if (!acc_bit(c, 0) && row) {
        memset(dx, 0, (size_t)from * row);
        memset(dx + (size_t)to * row, 0, (size_t)(rows - to) * row);
    }
    cpu_write_or_add(dx + (size_t)from * row, c->dout, shape_count(c->node->shape), c->node->dtype,
                     acc_bit(c, 0));
    return 0;
}
