/* cpu_conv - operators that look at pixels: convolution, max pooling, mean over pixels, the parameter-free
 * shortcut.
 *
 * Convolution is oneDNN's direct algorithm on NHWC activations (dn.h). It is repeatable for one number of
 * threads, but its bits may depend on that number: backward for weights splits its sum among the threads, and
 * oneDNN 3 cuts backward for data differently too (2.6 does not). oneDNN defines gradients only, so where one
 * is to be added to, it is made in scratch and added.
 *
 * Scratch of conv2d: [dn's | gradient of x]. Letters: n samples, H×W and Ho×Wo pixels, C channels, k kernel.
 */
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"

/* ------------------------------------------------------------------ convolution */

/* A rank without rows has no state: there is nothing to convolve. */
KERNEL_PREPARE(conv2d)
{
    const struct conv_shape s = conv_shape_of(n);
    struct dn_conv *conv;

    if (s.n == 0)
        return 0;
    conv = dn_conv_create(cpu_of(be)->dn, &s, n->dtype, conv_passes_of(n), e);
    if (!conv)
        return -1;
    p->state = conv;
    p->scratch_bytes = align_up(dn_conv_scratch_bytes(conv));
    if (n->in[0]->needs_grad)
        p->scratch_bytes += (size_t)shape_count(n->in[0]->shape) * dtype_bytes(n->dtype);
    return 0;
}

void cpu_conv2d_release(void *state)
{
    dn_conv_destroy(state);
}

KERNEL_FORWARD(conv2d)
{
    return c->state ? dn_conv_forward(c->state, c->in[0], c->in[1], c->out, c->scratch, e) : 0;
}

static int conv_grad_weights(const struct op_call *c, struct err *e)
{
    const int64_t count = shape_count(c->node->in[1]->shape);
    const float *dw;

    if (!c->state) {
        if (!acc_bit(c, 1))
            memset(c->din[1], 0, (size_t)count * sizeof(float));
        return 0;
    }
    if (dn_conv_backward_weights(c->state, c->in[0], c->dout, c->scratch, &dw, e) < 0)
        return -1;
    cpu_copy_or_add(c->din[1], dw, count, acc_bit(c, 1));
    return 0;
}

static int conv_grad_data(const struct op_call *c, struct err *e)
{
    void *dx = c->din[0];

    if (acc_bit(c, 0))
        dx = (char *)c->scratch + align_up(dn_conv_scratch_bytes(c->state));
    if (dn_conv_backward_data(c->state, c->dout, c->in[1], dx, c->scratch, e) < 0)
        return -1;
    if (acc_bit(c, 0))
        cpu_write_or_add(c->din[0], dx, shape_count(c->node->in[0]->shape), c->node->dtype, true);
    return 0;
}

KERNEL_BACKWARD(conv2d)
{
    if (c->din[1] && conv_grad_weights(c, e) < 0)
        return -1;
    return c->din[0] && c->state ? conv_grad_data(c, e) : 0;
}

/* ------------------------------------------------------------------ max pooling */

enum {
    POOL_BLOCK = 64,       /* channels at a time */
    POOL_KERNEL_MAX = 255, /* a place in the window fits 16 bits */
};

/* aux: the place of each maximum within its window, row-major, 16 bits. */
KERNEL_PREPARE(maxpool)
{
    const int k = n->attr.conv.kernel, pad = n->attr.conv.pad;

    (void)be;
    if (k > POOL_KERNEL_MAX)
        return err_set(e, "max pooling with kernel %d; accepted: 1 to %d", k, POOL_KERNEL_MAX);
    if (pad > k / 2)
        return err_set(
            e, "max pooling with kernel %d and padding %d; accepted: padding 0 to %d (no empty window)", k,
            pad, k / 2);
    p->aux_bytes = (size_t)shape_count(n->shape) * sizeof(uint16_t);
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

/* Channels [c0, c0+w) of one output pixel; x is the sample. */
static void pool_pixel(const struct window *v, const float *x, int64_t c0, int64_t w, float *out,
                       uint16_t *place)
{
    float best[POOL_BLOCK];
    int32_t at[POOL_BLOCK];
    bool first = true;

    for (int64_t y = max_i64(v->y0, 0); y < min_i64(v->y0 + v->k, v->H); y++) {
        for (int64_t z = max_i64(v->x0, 0); z < min_i64(v->x0 + v->k, v->W); z++) {
            const float *p = x + (y * v->W + z) * v->C + c0;
            const int32_t here = (int32_t)((y - v->y0) * v->k + (z - v->x0));

            if (first) {
                memcpy(best, p, (size_t)w * sizeof(*best));
                for (int64_t j = 0; j < w; j++)
                    at[j] = here;
                first = false;
            } else {
                pool_update(p, w, here, best, at);
            }
        }
    }
    memcpy(out, best, (size_t)w * sizeof(*out));
    for (int64_t j = 0; j < w; j++)
        place[j] = (uint16_t)at[j];
}

KERNEL_FORWARD(maxpool)
{
    const struct node *n = c->node;
    const int64_t *d = n->shape.dims, pixels = d[1] * d[2], C = d[3];
    const int64_t in_stride = d[0] ? shape_count(n->in[0]->shape) / d[0] : 0;
    const float *x = c->in[0];
    float *y = c->out;
    uint16_t *place = c->aux;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0] * pixels; i++) {
        const struct window v = window_at(n, i % pixels / d[2], i % d[2]);

        for (int64_t c0 = 0; c0 < C; c0 += POOL_BLOCK)
            pool_pixel(&v, x + i / pixels * in_stride, c0, min_i64(POOL_BLOCK, C - c0), y + i * C + c0,
                       place + i * C + c0);
    }
    return 0;
}

/* Adds the gradients of one sample to where its maxima came from. */
static void pool_scatter(const struct node *n, const float *dy, const uint16_t *place, float *dx)
{
    const int64_t *d = n->shape.dims, C = d[3];
    const int k = n->attr.conv.kernel;

    for (int64_t i = 0; i < d[1] * d[2]; i++) {
        const struct window v = window_at(n, i / d[2], i % d[2]);

        for (int64_t j = 0; j < C; j++) {
            int64_t y = v.y0 + place[i * C + j] / k, x = v.x0 + place[i * C + j] % k;

            dx[(y * v.W + x) * C + j] += dy[i * C + j];
        }
    }
}

KERNEL_BACKWARD(maxpool)
{
    const struct node *n = c->node;
    const int64_t rows = n->shape.dims[0];
    const int64_t in_stride = rows ? shape_count(n->in[0]->shape) / rows : 0;
    const int64_t out_stride = rows ? shape_count(n->shape) / rows : 0;
    const float *dy = c->dout;
    const uint16_t *place = c->aux;
    float *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        if (!acc_bit(c, 0))
            memset(dx + i * in_stride, 0, (size_t)in_stride * sizeof(*dx));
        pool_scatter(n, dy + i * out_stride, place + i * out_stride, dx + i * in_stride);
    }
    return 0;
}

/* ------------------------------------------------------------------ mean over pixels */

KERNEL_FORWARD(mean_spatial)
{
    const int64_t *d = c->node->in[0]->shape.dims, pixels = d[1] * d[2], C = d[3];
    const float inv = 1.0f / (float)pixels, *x = c->in[0];
    float *out = c->out;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0]; i++) {
        float *y = out + i * C;

        memset(y, 0, (size_t)C * sizeof(*y));
        for (int64_t p = 0; p < pixels; p++) {
            const float *v = x + (i * pixels + p) * C;

#pragma omp simd
            for (int64_t j = 0; j < C; j++)
                y[j] += v[j];
        }
        for (int64_t j = 0; j < C; j++)
            y[j] *= inv;
    }
    return 0;
}

KERNEL_BACKWARD(mean_spatial)
{
    const int64_t *d = c->node->in[0]->shape.dims, pixels = d[1] * d[2], C = d[3];
    const float inv = 1.0f / (float)pixels, *dout = c->dout;
    const bool add = acc_bit(c, 0);
    float *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < d[0] * pixels; i++) {
        const float *g = dout + i / pixels * C;

#pragma omp simd
        for (int64_t j = 0; j < C; j++)
            dx[i * C + j] = (add ? dx[i * C + j] : 0.0f) + g[j] * inv;
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
    const float *x = c->in[0];
    float *y = c->out;

    (void)e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s.n * s.Ho * s.Wo; i++) {
        float *v = y + i * s.Co;

        memset(v, 0, (size_t)s.Co * sizeof(*v));
        memcpy(v + s.front, x + shortcut_source(&s, i), (size_t)s.C * sizeof(*v));
    }
    return 0;
}

KERNEL_BACKWARD(shortcut_pad)
{
    const struct shortcut s = shortcut_of(c->node);
    const int64_t in_stride = s.H * s.W * s.C, pixels = s.Ho * s.Wo;
    const float *dy = c->dout;
    float *dx = c->din[0];

    (void)e;
    if (!dx)
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s.n; i++) {
        if (!acc_bit(c, 0))
            memset(dx + i * in_stride, 0, (size_t)in_stride * sizeof(*dx));
        for (int64_t p = i * pixels; p < (i + 1) * pixels; p++) {
            const float *g = dy + p * s.Co + s.front;
            float *d = dx + shortcut_source(&s, p);

#pragma omp simd
            for (int64_t j = 0; j < s.C; j++)
                d[j] += g[j];
        }
    }
    return 0;
}
