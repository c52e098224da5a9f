/* cuda_attention - multi-head attention of the rank's n queries over N keys, in tiles of query rows: cuBLASLt
 * products of all heads at once, and the kernels of attention.cu between them. backend/cpu/cpu_attention.c
 * has the equations.
 *
 * Only a tile of T rows of scores exists at a time, (h,T,ld) with ld ≥ N, so no n×N matrix lies in memory.
 * aux keeps each row's maximum and sum; backward computes the scores of a tile again. dK|dV are sums over
 * tiles, so they are made in fp32: in place where their type is that (gathered rows), else in scratch.
 *
 * Scratch: [scores | weights P̃ (bf16) | dP̃ | dS (bf16) | dK|dV (bf16)]. Letters: n local rows, N keys, C
 * width, h heads, d = C/h, T rows of a tile.
 */
#include "worker/backend/cuda/cuda_internal.h"
#include <math.h>
#include "worker/backend/cuda/attention.h"
#include "worker/backend/cuda/elem.h"

/* Floats of scores in a tile, all heads together; big enough for full products, small beside activations. */
enum { TILE_FLOATS = 16 << 20, TILE_ROWS_MIN = 16, TILE_ROWS_MAX = 1024, LD_STEP = 8 };

struct attention {
    struct cuda_backend *be;
    int64_t n, N, C, h, d, T, ld;
    enum dtype t;
    float scale; /* 1/√d */
    const char *q, *kv;
    float *row_max, *row_sum; /* (h, n), in aux */
    struct attention_dropout drop;
    float *scores, *dweights;
    void *weights, *dscores;
    float *dkv; /* (N, 2C) */
};

static int64_t tile_rows(int64_t n, int64_t ld, int64_t h)
{
    int64_t t = TILE_FLOATS / (h * ld) / TILE_ROWS_MIN * TILE_ROWS_MIN;

    t = t < TILE_ROWS_MIN ? TILE_ROWS_MIN : t > TILE_ROWS_MAX ? TILE_ROWS_MAX : t;
    return t < n ? t : n > 0 ? n : 1;
}

static void set_sizes(struct attention *a, const struct node *n)
{
    a->t = n->dtype;
    a->n = n->shape.dims[0];
    a->C = n->shape.dims[1];
    a->N = n->in[1]->shape.dims[0];
    a->h = n->attr.attention.heads;
    a->d = a->C / a->h;
    a->ld = (a->N + LD_STEP - 1) / LD_STEP * LD_STEP;
    a->T = tile_rows(a->n, a->ld, a->h);
}

/* Lays out scratch; returns its bytes. base may be NULL. */
static size_t lay_out(struct attention *a, const struct node *n, char *base)
{
    const size_t tile = (size_t)(a->h * a->T * a->ld);
    const size_t f32 = align_up(tile * sizeof(float)), narrow = align_up(tile * dtype_bytes(a->t));
    const bool own_types = a->t != DTYPE_F32;
    size_t at = 0;

    a->scores = (float *)(base + at);
    at += f32;
    a->dweights = (float *)(base + at);
    at += f32;
    a->weights = own_types ? base + at : (char *)a->scores;
    at += own_types ? narrow : 0;
    a->dscores = own_types ? base + at : (char *)a->dweights;
    at += own_types ? narrow : 0;
    a->dkv = (float *)(base + at);
    if (n->in[1]->grad_dtype != DTYPE_F32)
        at += align_up((size_t)(2 * a->N * a->C) * sizeof(float));
    return at;
}

KERNEL_PREPARE(attention)
{
    static char nowhere;
    struct attention a = {0};

    set_sizes(&a, n);
    p->aux_bytes = (size_t)(2 * a.h * a.n) * sizeof(float);
    p->scratch_bytes = lay_out(&a, n, &nowhere);
    return cuda_plain_prepare(be, n, p, e);
}

static int attention_init(struct attention *a, const struct op_call *c, struct err *e)
{
    const struct node *n = c->node;

    *a = (struct attention){.be = cuda_call_backend(c), .q = c->in[0], .kv = c->in[1], .row_max = c->aux};
    set_sizes(a, n);
    lay_out(a, n, c->scratch);
    a->scale = 1.0f / sqrtf((float)a->d);
    if (a->n)
        a->row_sum = a->row_max + a->h * a->n;
    if (a->n && !a->N)
        return err_set(e, "attention of %lld queries over 0 keys", (long long)a->n);
    a->drop = (struct attention_dropout){.p = n->attr.attention.dropout,
                                         .stream = n->attr.attention.stream,
                                         .query0 = c->rows->first,
                                         .key0 = n->attr.attention.key_row0,
                                         .step = a->be->step};
    if (a->drop.p > 0 && a->n != c->rows->local)
        return err_set(
            e,
            "attention with dropout over %lld queries; the rank has %lld rows, and masks are keyed by them",
            (long long)a->n, (long long)c->rows->local);
    return 0;
}

/* Address of (row, column 0 of head 0) in a matrix of rows of `width` elements of type t. */
static void *at_row(const void *base, int64_t row, int64_t width, enum dtype t)
{
    return (char *)(uintptr_t)base + (size_t)(row * width) * dtype_bytes(t);
}

static struct attention_tile tile_at(const struct attention *a, int64_t r0, int64_t rows)
{
    return (struct attention_tile){a->h, rows, a->N, a->ld, a->n, r0};
}

/* out (h,rows,ld) f32 = alpha · X Yᵀ for each head: X rows r0… of width C, Y the keys or values of kv. */
static int rows_by_keys(const struct attention *a, const void *x, int64_t r0, int64_t rows, const void *y,
                        float alpha, float *out, struct err *e)
{
    struct cuda_gemm g = {.ta = 'N',
                          .tb = 'T',
                          .m = rows,
                          .n = a->N,
                          .k = a->d,
                          .alpha = alpha,
                          .ab_type = a->t,
                          .c_type = DTYPE_F32,
                          .a = at_row(x, r0, a->C, a->t),
                          .b = y,
                          .c = out,
                          .lda = a->C,
                          .ldb = 2 * a->C,
                          .ldc = a->ld,
                          .batch = a->h,
                          .stride_a = a->d,
                          .stride_b = a->d,
                          .stride_c = rows * a->ld};

    return cuda_gemm_run(a->be->blas, &g, e);
}

/* out rows r0… (width C, type t) = alpha · W Y (+ beta · out) for each head: W (h,rows,ld) of type t. */
static int weights_by_keys(const struct attention *a, const void *w, const void *y, float alpha, float beta,
                           void *out, int64_t r0, int64_t rows, struct err *e)
{
    struct cuda_gemm g = {.ta = 'N',
                          .tb = 'N',
                          .m = rows,
                          .n = a->d,
                          .k = a->N,
                          .alpha = alpha,
                          .beta = beta,
                          .ab_type = a->t,
                          .c_type = a->t,
                          .a = w,
                          .b = y,
                          .c = at_row(out, r0, a->C, a->t),
                          .lda = a->ld,
                          .ldb = 2 * a->C,
                          .ldc = a->C,
                          .batch = a->h,
                          .stride_a = rows * a->ld,
                          .stride_b = a->d,
                          .stride_c = a->d};

    return cuda_gemm_run(a->be->blas, &g, e);
}

/* out (N, width 2C, f32) (+)= alpha · Wᵀ X for each head: W (h,rows,ld), X rows r0… of width C. */
static int weights_by_rows(const struct attention *a, const void *w, const void *x, int64_t r0, int64_t rows,
                           float alpha, float beta, float *out, struct err *e)
{
    struct cuda_gemm g = {.ta = 'T',
                          .tb = 'N',
                          .m = a->N,
                          .n = a->d,
                          .k = rows,
                          .alpha = alpha,
                          .beta = beta,
                          .ab_type = a->t,
                          .c_type = DTYPE_F32,
                          .a = w,
                          .b = at_row(x, r0, a->C, a->t),
                          .c = out,
                          .lda = a->ld,
                          .ldb = a->C,
                          .ldc = 2 * a->C,
                          .batch = a->h,
                          .stride_a = rows * a->ld,
                          .stride_b = a->d,
                          .stride_c = a->d};

    return cuda_gemm_run(a->be->blas, &g, e);
}

static int forward_tile(const struct attention *a, int64_t r0, int64_t rows, void *out, struct err *e)
{
    const struct attention_tile tile = tile_at(a, r0, rows);
    const void *v = at_row(a->kv, 1, a->C, a->t); /* values begin in column C */

    if (rows_by_keys(a, a->q, r0, rows, a->kv, a->scale, a->scores, e) < 0)
        return -1;
    CUDA_TRY(e, attention_softmax(&tile, &a->drop, a->scores, a->t, a->weights, a->row_max, a->row_sum,
                                  a->be->compute));
    return weights_by_keys(a, a->weights, v, 1, 0, out, r0, rows, e);
}

KERNEL_FORWARD(attention)
{
    struct attention a;

    if (attention_init(&a, c, e) < 0)
        return -1;
    for (int64_t r0 = 0; r0 < a.n; r0 += a.T)
        if (forward_tile(&a, r0, a.n - r0 < a.T ? a.n - r0 : a.T, c->out, e) < 0)
            return -1;
    return 0;
}

struct attention_grad {
    const void *dout;
    void *dq;
    float *dkv; /* where dK|dV are made; NULL: not wanted */
    bool add_dq, add_dkv;
};

static int backward_tile(const struct attention *a, const struct attention_grad *g, int64_t r0, int64_t rows,
                         struct err *e)
{
    const struct attention_tile tile = tile_at(a, r0, rows);
    const void *v = at_row(a->kv, 1, a->C, a->t);
    const float beta = g->add_dkv || r0 > 0 ? 1.0f : 0.0f;

    if (rows_by_keys(a, a->q, r0, rows, a->kv, a->scale, a->scores, e) < 0 ||
        rows_by_keys(a, g->dout, r0, rows, v, 1, a->dweights, e) < 0)
        return -1;
    CUDA_TRY(e, attention_softmax_grad(&tile, &a->drop, a->scores, a->dweights, a->row_max, a->row_sum, a->t,
                                       a->weights, a->dscores, a->be->compute));
    if (g->dq && weights_by_keys(a, a->dscores, a->kv, a->scale, g->add_dq ? 1 : 0, g->dq, r0, rows, e) < 0)
        return -1;
    if (!g->dkv)
        return 0;
    if (weights_by_rows(a, a->dscores, a->q, r0, rows, a->scale, beta, g->dkv, e) < 0)
        return -1;
    return weights_by_rows(a, a->weights, g->dout, r0, rows, 1, beta, g->dkv + a->C, e);
}

KERNEL_BACKWARD(attention)
{
    struct attention a;
    const enum dtype kv_type = c->node->in[1]->grad_dtype;
    const bool in_place = kv_type == DTYPE_F32;

    if (attention_init(&a, c, e) < 0)
        return -1;
    const int64_t count = 2 * a.N * a.C;
    struct attention_grad g = {.dout = c->dout,
                               .dq = c->din[0],
                               .dkv = !c->din[1] ? NULL
                                      : in_place ? c->din[1]
                                                 : a.dkv,
                               .add_dq = acc_bit(c, 0),
                               .add_dkv = in_place && acc_bit(c, 1)};
    if (g.dkv && !a.n && !g.add_dkv)
        CUDA_TRY(e, cudaMemsetAsync(g.dkv, 0, (size_t)count * sizeof(float), a.be->compute));
    for (int64_t r0 = 0; r0 < a.n; r0 += a.T)
        if (backward_tile(&a, &g, r0, a.n - r0 < a.T ? a.n - r0 : a.T, e) < 0)
            return -1;
    if (g.dkv && !in_place)
        CUDA_TRY(e, elem_cast(DTYPE_F32, kv_type, g.dkv, c->din[1], count, acc_bit(c, 1), a.be->compute));
    return 0;
}
