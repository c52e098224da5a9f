/* cpu_conv - operators that look at pixels: convolution, max pooling, mean over pixels, the parameter-free
 * shortcut.
 *
 * Convolution is Winograd's algorithm (cpu_wino.h) where that fits and the backend may; a matrix product
 * (cpu_gemm.h) where it is 1×1 with stride 1, in f32; else oneDNN's direct algorithm. All on NHWC
 * activations. oneDNN's (dn.h) is repeatable for one number of threads, but its bits may depend on that
 * number: backward for weights splits its sum among the threads, and oneDNN 3 cuts backward for data
 * differently too (2.6 does not). oneDNN defines gradients only, so where one is to be added to, it is made
 * in scratch and added.
 *
 * Scratch of conv2d: Winograd's, the product's, or [dn's | gradient of x]. Letters: n samples, H×W and Ho×Wo
 * pixels, C channels, k kernel.
 */
#include <stdlib.h>
#include <string.h>
#include "worker/backend/cpu/cpu_dtype.h"
#include "worker/backend/cpu/cpu_gemm.h"
#include "worker/backend/cpu/cpu_wino.h"

/* ------------------------------------------------------------------ convolution */

enum conv_algorithm { CONV_DIRECT, CONV_WINOGRAD, CONV_PRODUCT };

struct conv {
    enum conv_algorithm algorithm;
    struct conv_shape shape;
    struct dn_conv *dn; /* CONV_DIRECT */
    int n_threads;
};

/* From the shape and the type alone: all ranks and runs agree. */
static enum conv_algorithm choose(const struct cpu_backend *cpu, const struct conv_shape *s, enum dtype t)
{
    if (cpu->winograd && wino_fits(s))
        return CONV_WINOGRAD;
    if (t == DTYPE_F32 && s->kernel == 1 && s->stride == 1 && s->pad == 0 && s->groups == 1)
        return CONV_PRODUCT;
    return CONV_DIRECT;
}

static int64_t pixels_of(const struct conv_shape *s)
{
    return s->n * s->ho * s->wo;
}

/* y (pixels,Co) = x (pixels,Ci) · wᵀ; dx = dy · w; dw = dyᵀ · x. */
static struct gemm product_forward(const struct conv_shape *s, const float *x, const float *w, float *y)
{
    return (struct gemm){.m = pixels_of(s),
                         .n = s->co,
                         .k = s->ci,
                         .a = x,
                         .a_row = s->ci,
                         .a_depth = 1,
                         .b = w,
                         .b_depth = 1,
                         .b_col = s->ci,
                         .c = y};
}

static struct gemm product_data(const struct conv_shape *s, const float *dy, const float *w, float *dx,
                                bool add)
{
    return (struct gemm){.m = pixels_of(s),
                         .n = s->ci,
                         .k = s->co,
                         .a = dy,
                         .a_row = s->co,
                         .a_depth = 1,
                         .b = w,
                         .b_depth = s->ci,
                         .b_col = 1,
                         .c = dx,
                         .add = add};
}

static struct gemm product_weights(const struct conv_shape *s, const float *x, const float *dy, float *dw,
                                   bool add)
{
    return (struct gemm){.m = s->co,
                         .n = s->ci,
                         .k = pixels_of(s),
                         .a = dy,
                         .a_row = 1,
                         .a_depth = s->co,
                         .b = x,
                         .b_depth = s->ci,
                         .b_col = 1,
                         .c = dw,
                         .add = add};
}

static size_t product_scratch_bytes(const struct conv_shape *s, unsigned passes, int n_threads)
{
    const size_t run = gemm_scratch_bytes(n_threads);
    const size_t sum = gemm_sum_scratch_bytes(s->co, s->ci, pixels_of(s), n_threads);

    return passes >> CONV_BACKWARD_WEIGHTS & 1 && sum > run ? sum : run;
}

static int prepare_direct(struct conv *v, struct dn *dn, const struct node *n, struct op_prep *p,
                          struct err *e)
{
    v->dn = dn_conv_create(dn, &v->shape, n->dtype, conv_passes_of(n), e);
    if (!v->dn)
        return -1;
    p->scratch_bytes = align_up(dn_conv_scratch_bytes(v->dn));
    if (n->in[0]->needs_grad)
        p->scratch_bytes += (size_t)shape_count(n->in[0]->shape) * dtype_bytes(n->dtype);
    return 0;
}

/* A rank without rows has no state: there is nothing to convolve. */
KERNEL_PREPARE(conv2d)
{
    const struct cpu_backend *cpu = cpu_of(be);
    struct conv *v;

    if (n->shape.dims[0] == 0)
        return 0;
    v = xcalloc(1, sizeof(*v));
    v->shape = conv_shape_of(n);
    v->n_threads = cpu->n_threads;
    v->algorithm = choose(cpu, &v->shape, n->dtype);
    if (v->algorithm == CONV_WINOGRAD) {
        p->scratch_bytes = wino_scratch_bytes(&v->shape, conv_passes_of(n), v->n_threads);
    } else if (v->algorithm == CONV_PRODUCT) {
        p->scratch_bytes = product_scratch_bytes(&v->shape, conv_passes_of(n), v->n_threads);
    } else if (prepare_direct(v, cpu->dn, n, p, e) < 0) {
        free(v);
        return -1;
    }
    p->state = v;
    return 0;
}

void cpu_conv2d_release(void *state)
{
    struct conv *v = state;

    if (v)
        dn_conv_destroy(v->dn);
    free(v);
}

KERNEL_FORWARD(conv2d)
{
    const struct conv *v = c->state;
    struct gemm g;

    if (!v)
        return 0;
    switch (v->algorithm) {
    case CONV_WINOGRAD:
        wino_forward(&v->shape, c->node->dtype, c->in[0], c->in[1], c->out, c->scratch, v->n_threads);
        return 0;
    case CONV_PRODUCT:
        g = product_forward(&v->shape, c->in[0], c->in[1], c->out);
        gemm_run(&g, c->scratch, v->n_threads);
        return 0;
    default:
        return dn_conv_forward(v->dn, c->in[0], c->in[1], c->out, c->scratch, e);
    }
}

static int grad_weights(const struct conv *v, const struct op_call *c, struct err *e)
{
    const bool add = acc_bit(c, 1);
    const float *dw;
    struct gemm g;

    switch (v->algorithm) {
    case CONV_WINOGRAD:
        wino_backward_weights(&v->shape, c->node->dtype, c->in[0], c->dout, c->din[1], add, c->scratch,
                              v->n_threads);
        return 0;
    case CONV_PRODUCT:
        g = product_weights(&v->shape, c->in[0], c->dout, c->din[1], add);
        gemm_sum(&g, c->scratch, v->n_threads);
        return 0;
    default:
        if (dn_conv_backward_weights(v->dn, c->in[0], c->dout, c->scratch, &dw, e) < 0)
            return -1;
        cpu_copy_or_add(c->din[1], dw, shape_count(c->node->in[1]->shape), add);
        return 0;
    }
}

static int direct_grad_data(const struct conv *v, const struct op_call *c, struct err *e)
{
    void *dx = c->din[0];

    if (acc_bit(c, 0))
        dx = (char *)c->scratch + align_up(dn_conv_scratch_bytes(v->dn));
    if (dn_conv_backward_data(v->dn, c->dout, c->in[1], dx, c->scratch, e) < 0)
        return -1;
    if (acc_bit(c, 0))
        cpu_write_or_add(c->din[0], dx, shape_count(c->node->in[0]->shape), c->node->dtype, true);
    return 0;
}

static int grad_data(const struct conv *v, const struct op_call *c, struct err *e)
{
    struct gemm g;

    switch (v->algorithm) {
    case CONV_WINOGRAD:
        wino_backward_data(&v->shape, c->node->dtype, c->dout, c->in[1], c->din[0], acc_bit(c, 0), c->scratch,
                           v->n_threads);
        return 0;
    case CONV_PRODUCT:
        g = product_data(&v->shape, c->dout, c->in[1], c->din[0], acc_bit(c, 0));
        gemm_run(&g, c->scratch, v->n_threads);
        return 0;
    default:
        return direct_grad_data(v, c, e);
    }
}

KERNEL_BACKWARD(conv2d)
{
    const struct conv *v = c->state;

    if (!v) {
        if (c->din[1] && !acc_bit(c, 1))
            memset(c->din[1], 0, (size_t)shape_count(c->node->in[1]->shape) * sizeof(float));
        return 0;
    }
    if (c->din[1] && grad_weights(v, c, e) < 0)
        return -1;
    return c->din[0] ? grad_data(v, c, e) : 0;
}

/* ------------------------------------------------------------------ max pooling */

enum {
    POOL_BLOCK = 64,       /* channels at a time */
    POOL_KERNEL_MAX = 255, /* a place in the window fits 16 bits */
};

/* Bytes of a row of input pixels as floats. */
static size_t pool_row_bytes(const struct node *n)
{
    const int64_t *x = n->in[0]->shape.dims;

    return align_up((size_t)(x[2] * x[3]) * sizeof(float));
}

/* aux: the place of each maximum within its window, row-major, 16 bits. Scratch (backward): a row of pixels
 * for each thread. */
KERNEL_PREPARE(maxpool)
{
    const int k = n->attr.conv.kernel, pad = n->attr.conv.pad;

    if (k > POOL_KERNEL_MAX)
        return err_set(e, "max pooling with kernel %d; accepted: 1 to %d", k, POOL_KERNEL_MAX);
    if (pad > k / 2)
        return err_set(
            e, "max pooling with kernel %d and padding %d; accepted: padding 0 to %d (no empty window)", k,
            pad, k / 2);
    p->state = be; /* borrowed: tells how many threads have scratch */
    p->aux_bytes = (size_t)shape_count(n->shape) * sizeof(uint16_t);
    p->scratch_bytes = (size_t)cpu_of(be)->n_threads * pool_row_bytes(n);
    return 0;
}

/* Keeps the larger value and its place; of equals the first, and a NaN wins over numbers. */
static void pool_update(const float *x, int64_t w, int32_t place, float *best, int32_t *at)
{
    for (int64_t j = 0; j < w; j++) {
        bool better = x[j] > best[j] || (x[j] != x[j] && best[j] == best[j]);

        best[j] = better ? x[j] : best[j];
        at[j] = better ? place : at[j];
    }
}

struct window {
    int64_t y0, x0; /* top left, may be negative */
    int64_t H, W, C;
    int k;
};

static struct window window_at(const struct node *n, int64_t oy, int64_t ox)
{
    const int64_t *x = n->in[0]->shape.dims;
    const int s = n->attr.conv.stride, pad = n->attr.conv.pad;

    return (struct window){oy * s - pad, ox * s - pad, x[1], x[2], x[3], n->attr.conv.kernel};
}

/* Channels [c0, c0+w) of the output pixel whose elements begin at `at`; the sample's begin at x0. */
static void pool_pixel(const struct window *v, const void *x, int64_t x0, int64_t c0, int64_t w, void *out,
                       int64_t at, uint16_t *place, enum dtype t)
{
    float best[POOL_BLOCK], in[POOL_BLOCK];
    int32_t which[POOL_BLOCK];
    bool first = true;

    for (int64_t y = max_i64(v->y0, 0); y < min_i64(v->y0 + v->k, v->H); y++) {
        for (int64_t z = max_i64(v->x0, 0); z < min_i64(v->x0 + v->k, v->W); z++) {
            const float *p = block_of(x, x0 + (y * v->W + z) * v->C + c0, w, t, in);
            const int32_t here = (int32_t)((y - v->y0) * v->k + (z - v->x0));

            if (first) {
                memcpy(best, p, (size_t)w * sizeof(*best));
                for (int64_t j = 0; j < w; j++)
                    which[j] = here;
                first = false;
            } else {
                pool_update(p, w, here, best, which);
            }
        }
    }
    from_floats(out, at + c0, best, w, t);
    for (int64_t j = 0; j < w; j++)
        place[at + c0 + j] = (uint16_t)which[j];
}

KERNEL_FORWARD(maxpool)
{
    const struct node *n = c->node;
    const int64_t *d = n->shape.dims, pixels = d[1] * d[2], C = d[3];
    const int64_t in_stride = d[0] ? shape_count(n->in[0]->shape) / d[0] : 0;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0] * pixels; i++) {
        const struct window v = window_at(n, i % pixels / d[2], i % d[2]);

        for (int64_t c0 = 0; c0 < C; c0 += POOL_BLOCK)
            pool_pixel(&v, c->in[0], i / pixels * in_stride, c0, min_i64(POOL_BLOCK, C - c0), c->out, i * C,
                       c->aux, n->dtype);
    }
    return 0;
}

/* row (W,C) += w channels of an output pixel's dy, to where its maxima came from, if that is row `ky` of its
 * window. */
static void pool_spread(const struct window *v, int64_t ky, const float *dy, const uint16_t *place,
                        float *row, int64_t w)
{
    for (int64_t z = max_i64(v->x0, 0); z < min_i64(v->x0 + v->k, v->W); z++) {
        const uint16_t here = (uint16_t)(ky * v->k + (z - v->x0));
        float *to = row + z * v->C;

#pragma omp simd
        for (int64_t j = 0; j < w; j++)
            to[j] = place[j] == here ? to[j] + dy[j] : to[j];
    }
}

/* row (W,C) += the gradients that reach input row y of a sample, whose output pixels are dy and place. */
static void pool_grad_row(const struct node *n, int64_t y, const void *dy, int64_t at, const uint16_t *place,
                          float *row)
{
    const int64_t *d = n->shape.dims, C = d[3];
    const int s = n->attr.conv.stride, pad = n->attr.conv.pad, k = n->attr.conv.kernel;
    const int64_t first = max_i64(ceil_div(y + pad - k + 1, s), 0), last = min_i64((y + pad) / s, d[1] - 1);
    float grad[POOL_BLOCK];

    for (int64_t oy = first; oy <= last; oy++) {
        for (int64_t ox = 0; ox < d[2]; ox++) {
            struct window v = window_at(n, oy, ox);
            const int64_t p = (oy * d[2] + ox) * C;

            for (int64_t c0 = 0; c0 < C; c0 += POOL_BLOCK) {
                const int64_t w = min_i64(POOL_BLOCK, C - c0);

                pool_spread(&v, y - v.y0, block_of(dy, at + p + c0, w, n->dtype, grad), place + at + p + c0,
                            row + c0, w);
            }
        }
    }
}

KERNEL_BACKWARD(maxpool)
{
    const struct node *n = c->node;
    const int64_t *x = n->in[0]->shape.dims, width = x[2] * x[3], out = shape_count(n->shape);
    const bool add = acc_bit(c, 0);

    (void)e;
    if (!c->din[0])
        return 0;
#pragma omp parallel for schedule(static) num_threads(cpu_of(c->state)->n_threads)
    for (int64_t i = 0; i < x[0] * x[1]; i++) {
        float *row = (float *)((char *)c->scratch + (size_t)cpu_thread_idx() * pool_row_bytes(n));

        if (add)
            as_floats(row, c->din[0], i * width, width, n->dtype);
        else
            memset(row, 0, (size_t)width * sizeof(*row));
        pool_grad_row(n, i % x[1], c->dout, i / x[1] * (out / x[0]), c->aux, row);
        from_floats(c->din[0], i * width, row, width, n->dtype);
    }
    return 0;
}

/* ------------------------------------------------------------------ mean over pixels */

/* Channels [c0, c0+w) of one sample's mean; the sample's elements begin at x0. */
static void mean_block(const void *x, int64_t x0, int64_t pixels, int64_t C, int64_t c0, int64_t w, void *out,
                       int64_t at, enum dtype t)
{
    const float inv = 1.0f / (float)pixels;
    float sum[POOL_BLOCK] = {0}, in[POOL_BLOCK];

    for (int64_t p = 0; p < pixels; p++) {
        const float *v = block_of(x, x0 + p * C + c0, w, t, in);

#pragma omp simd
        for (int64_t j = 0; j < w; j++)
            sum[j] += v[j];
    }
    for (int64_t j = 0; j < w; j++)
        sum[j] *= inv;
    from_floats(out, at + c0, sum, w, t);
}

KERNEL_FORWARD(mean_spatial)
{
    const int64_t *d = c->node->in[0]->shape.dims, pixels = d[1] * d[2], C = d[3];

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0]; i++)
        for (int64_t c0 = 0; c0 < C; c0 += POOL_BLOCK)
            mean_block(c->in[0], i * pixels * C, pixels, C, c0, min_i64(POOL_BLOCK, C - c0), c->out, i * C,
                       c->node->dtype);
    return 0;
}

KERNEL_BACKWARD(mean_spatial)
{
    const int64_t *d = c->node->in[0]->shape.dims, pixels = d[1] * d[2], C = d[3];
    const enum dtype t = c->node->dtype;
    const float inv = 1.0f / (float)pixels;
    const bool add = acc_bit(c, 0);

    (void)e;
    if (!c->din[0])
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0] * pixels; i++) {
        for (int64_t c0 = 0; c0 < C; c0 += POOL_BLOCK) {
            const int64_t w = min_i64(POOL_BLOCK, C - c0), at = i * C + c0;
            float in[POOL_BLOCK], out[POOL_BLOCK];
            const float *g = block_of(c->dout, i / pixels * C + c0, w, t, in);
            float *dx = block_for(c->din[0], at, w, t, out, add);

#pragma omp simd
            for (int64_t j = 0; j < w; j++)
                dx[j] = (add ? dx[j] : 0.0f) + g[j] * inv;
            block_done(c->din[0], at, w, t, dx);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ shortcut */

/* Of C' - C new channels half, rounded down, lie in front of the old ones. */
struct shortcut {
    int64_t n, H, W, C, Ho, Wo, Co, front;
    int stride;
};

static struct shortcut shortcut_of(const struct node *n)
{
    const int64_t *x = n->in[0]->shape.dims, *y = n->shape.dims;

    return (struct shortcut){
        x[0], x[1], x[2], x[3], y[1], y[2], y[3], (y[3] - x[3]) / 2, n->attr.shortcut.stride};
}

/* First element of the input pixel that output pixel i (of all samples) is a copy of. */
static int64_t shortcut_source(const struct shortcut *s, int64_t i)
{
    int64_t ox = i % s->Wo, oy = i / s->Wo % s->Ho, sample = i / (s->Wo * s->Ho);

    return ((sample * s->H + oy * s->stride) * s->W + ox * s->stride) * s->C;
}

KERNEL_FORWARD(shortcut_pad)
{
    const struct shortcut s = shortcut_of(c->node);
    const size_t size = dtype_bytes(c->node->dtype), channels = (size_t)s.Co * size;
    const char *x = c->in[0];
    char *y = c->out;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s.n * s.Ho * s.Wo; i++) {
        char *v = y + (size_t)i * channels;

        memset(v, 0, channels);
        memcpy(v + (size_t)s.front * size, x + (size_t)shortcut_source(&s, i) * size, (size_t)s.C * size);
    }
    return 0;
}

/* Output pixels [first, end): what each is a copy of gets its gradient added. */
static ALWAYS_INLINE void shortcut_grad(const struct shortcut *s, const void *dy, void *dx, int64_t first,
                                        int64_t end, enum dtype t)
{
    for (int64_t p = first; p < end; p++) {
        const int64_t from = p * s->Co + s->front, to = shortcut_source(s, p);

        for (int64_t j = 0; j < s->C; j += VLEN) {
            const int w = (int)min_i64(VLEN, s->C - j);
            v16 g, d;

            v16_get(&g, dy, from + j, w, t);
            v16_get(&d, dx, to + j, w, t);
            d += g;
            v16_put(dx, to + j, &d, w, t);
        }
    }
}

KERNEL_BACKWARD(shortcut_pad)
{
    const struct shortcut s = shortcut_of(c->node);
    const int64_t pixels = s.Ho * s.Wo;
    const size_t in_bytes = (size_t)(s.H * s.W * s.C) * dtype_bytes(c->node->dtype);
    char *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s.n; i++) {
        if (!acc_bit(c, 0))
            memset(dx + (size_t)i * in_bytes, 0, in_bytes);
        FOR_DTYPE(c->node->dtype, shortcut_grad, &s, c->dout, dx, i * pixels, (i + 1) * pixels);
    }
    return 0;
}
