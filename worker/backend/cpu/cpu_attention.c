/* cpu_attention - multi-head attention of the rank's n queries over N keys, in tiles of query rows.
 *
 * For a head and a tile of T rows: S = Q·Kᵀ/√d (a GEMM straight on the strided q and kv), a softmax over
 * whole rows (all N keys are in the tile, so nothing is rescaled), dropout on the weights, O = P̃·V (a GEMM).
 * Only T×N weights exist at a time, T chosen so that they stay in the second-level cache. aux keeps each
 * row's maximum and sum; backward recomputes P from them, tile by tile:
 *
 *   dV += P̃ᵀ·dO   dP̃ = dO·Vᵀ   dS = P∘(keep∘dP̃ - Σⱼ P·keep∘dP̃)   dQ = dS·K/√d   dK += dSᵀ·Q/√d
 *
 * where P̃ = keep∘P and keep is 1/(1-p) or 0. In backward a head is one thread's work from first tile to last,
 * so dK and dV are summed in one order; in forward so is a (head, tile).
 *
 * Dropout is keyed by the global indices of query and key (philox.h): how rows lie on ranks does not matter.
 *
 * Letters: n local rows, N keys, C width, h heads, d = C/h, T rows of a tile.
 */
#include <math.h>
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_simd.h"

enum {
    TILE_FLOATS = 1 << 17, /* 512 KiB of weights in all tiles of a thread */
    TILE_ROWS_MIN = 16,
    TILE_ROWS_MAX = 256,
};

struct attention {
    int64_t n, N, C, h, d, T;
    float scale; /* 1/√d */
    const float *q, *kv;
    float *row_max, *row_sum; /* (h, n), in aux */
    bool drops;
    struct dropout_site site;
    int64_t query0, key0; /* global sample indices of row 0 of q and of kv */
};

/* Rows of a tile when a thread holds n_tiles of them. */
static int64_t tile_rows(int64_t n, int64_t N, int n_tiles)
{
    int64_t t = TILE_FLOATS / (n_tiles * max_i64(N, 1)) / TILE_ROWS_MIN * TILE_ROWS_MIN;

    t = min_i64(max_i64(t, TILE_ROWS_MIN), TILE_ROWS_MAX);
    return max_i64(min_i64(t, n), 1);
}

/* Floats of a thread's scratch: two tiles (backward) and a row of keep factors. */
static size_t thread_floats(const struct node *n)
{
    const int64_t rows = n->shape.dims[0], N = n->in[1]->shape.dims[0];
    const int64_t forward = tile_rows(rows, N, 1), backward = 2 * tile_rows(rows, N, 2);

    return align_up((size_t)((max_i64(forward, backward) + 1) * N) * sizeof(float)) / sizeof(float);
}

KERNEL_PREPARE(attention)
{
    (void)e;
    p->state = be; /* borrowed: tells how many threads have scratch */
    p->aux_bytes = (size_t)(2 * n->attr.attention.heads * n->shape.dims[0]) * sizeof(float);
    p->scratch_bytes = (size_t)cpu_of(be)->n_threads * thread_floats(n) * sizeof(float);
    return 0;
}

static int attention_init(struct attention *a, const struct op_call *c, int n_tiles, struct err *e)
{
    const struct node *n = c->node;
    const int64_t rows = n->shape.dims[0], heads = n->attr.attention.heads;

    *a = (struct attention){
        .n = rows,
        .N = n->in[1]->shape.dims[0],
        .C = n->shape.dims[1],
        .h = heads,
        .d = n->shape.dims[1] / heads,
        .T = tile_rows(rows, n->in[1]->shape.dims[0], n_tiles),
        .q = c->in[0],
        .kv = c->in[1],
        .row_max = c->aux,
        .drops = n->attr.attention.dropout > 0,
        .key0 = n->attr.attention.key_row0,
    };
    a->scale = 1.0f / sqrtf((float)a->d);
    if (rows)
        a->row_sum = a->row_max + heads * rows;
    if (rows && !a->N)
        return err_set(e, "attention of %lld queries over 0 keys", (long long)rows);
    if (!a->drops)
        return 0;
    if (rows != c->rows->local)
        return err_set(
            e,
            "attention with dropout over %lld queries; the rank has %lld rows, and masks are keyed by them",
            (long long)rows, (long long)c->rows->local);
    a->query0 = c->rows->first;
    a->site = dropout_site_make(c->step, n->attr.attention.stream, n->attr.attention.dropout);
    return 0;
}

/* The calling thread's part of scratch. */
static float *thread_scratch(const struct op_call *c)
{
    return (float *)c->scratch + (size_t)cpu_thread_idx() * thread_floats(c->node);
}

static void keep_row(const struct attention *a, int64_t head, int64_t row, float *keep)
{
    dropout_keep(&a->site, (uint32_t)(a->query0 + row), (uint32_t)head, a->key0, a->N, keep);
}

/* s = exp(s - max)/sum; sets *max and *sum. */
static void softmax_row(float *s, int64_t N, float *max, float *sum)
{
    float m = -INFINITY, t = 0, inv;

#pragma omp simd reduction(max : m)
    for (int64_t j = 0; j < N; j++)
        m = s[j] > m ? s[j] : m;
#pragma omp simd reduction(+ : t)
    for (int64_t j = 0; j < N; j++) {
        s[j] = simd_expf(s[j] - m);
        t += s[j];
    }
    inv = 1.0f / t;
#pragma omp simd
    for (int64_t j = 0; j < N; j++)
        s[j] *= inv;
    *max = m;
    *sum = t;
}

/* The same numbers again, from the row's maximum and sum. */
static void softmax_row_again(float *s, int64_t N, float max, float sum)
{
    const float inv = 1.0f / sum;

#pragma omp simd
    for (int64_t j = 0; j < N; j++)
        s[j] = simd_expf(s[j] - max) * inv;
}

/* S (t,N) = Q·Kᵀ/√d for rows r0 … r0+t-1 of a head. */
static int scores(const struct attention *a, int64_t head, int64_t r0, int64_t t, float *S)
{
    return dn_sgemm('N', 'T', t, a->N, a->d, a->scale, a->q + r0 * a->C + head * a->d, a->C,
                    a->kv + head * a->d, 2 * a->C, 0, S, a->N, NULL);
}

static int forward_tile(const struct attention *a, int64_t head, int64_t r0, float *scratch, float *out)
{
    const int64_t t = min_i64(a->T, a->n - r0), N = a->N;
    float *S = scratch, *keep = scratch + a->T * N;

    if (scores(a, head, r0, t, S) < 0)
        return -1;
    for (int64_t i = 0; i < t; i++) {
        float *s = S + i * N;
        int64_t at = head * a->n + r0 + i;

        softmax_row(s, N, &a->row_max[at], &a->row_sum[at]);
        if (!a->drops)
            continue;
        keep_row(a, head, r0 + i, keep);
#pragma omp simd
        for (int64_t j = 0; j < N; j++)
            s[j] *= keep[j];
    }
    return dn_sgemm('N', 'N', t, a->d, N, 1, S, N, a->kv + a->C + head * a->d, 2 * a->C, 0,
                    out + r0 * a->C + head * a->d, a->C, NULL);
}

KERNEL_FORWARD(attention)
{
    struct attention a;
    int failed = 0;

    if (attention_init(&a, c, 1, e) < 0)
        return -1;
    const int64_t n_tiles = ceil_div(a.n, a.T);

#pragma omp parallel for schedule(static) num_threads(cpu_of(c->state)->n_threads) reduction(| : failed)
    for (int64_t k = 0; k < a.h * n_tiles; k++) {
        if (forward_tile(&a, k / n_tiles, k % n_tiles * a.T, thread_scratch(c), c->out) < 0)
            failed = 1;
    }
    return failed ? err_set(e, "attention: a matrix product failed") : 0;
}

/* From p = P and dp = dP̃ of one row: p becomes P̃ and dp becomes dS. keep may be NULL: no dropout. */
static void score_grad_row(float *restrict p, float *restrict dp, const float *restrict keep, int64_t N)
{
    float dot = 0;

    if (!keep) {
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < N; j++)
            dot += p[j] * dp[j];
#pragma omp simd
        for (int64_t j = 0; j < N; j++)
            dp[j] = p[j] * (dp[j] - dot);
        return;
    }
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < N; j++)
        dot += p[j] * (keep[j] * dp[j]);
#pragma omp simd
    for (int64_t j = 0; j < N; j++) {
        dp[j] = p[j] * (keep[j] * dp[j] - dot);
        p[j] *= keep[j];
    }
}

struct attention_grad {
    const float *dout;
    float *dq, *dkv;
    bool add_dq, add_dkv;
};

static int backward_tile(const struct attention *a, const struct attention_grad *g, int64_t head, int64_t r0,
                         float *scratch)
{
    const int64_t t = min_i64(a->T, a->n - r0), N = a->N, C = a->C, d = a->d;
    const int64_t at = r0 * C + head * d; /* of the tile in q, out and their gradients */
    const float beta = g->add_dkv || r0 > 0 ? 1.0f : 0.0f;
    const float *k = a->kv + head * d, *v = k + C;
    float *P = scratch, *dP = P + a->T * N, *keep = dP + a->T * N;

    if (scores(a, head, r0, t, P) < 0 ||
        dn_sgemm('N', 'T', t, N, d, 1, g->dout + at, C, v, 2 * C, 0, dP, N, NULL) < 0)
        return -1;
    for (int64_t i = 0; i < t; i++) {
        int64_t row = head * a->n + r0 + i;

        softmax_row_again(P + i * N, N, a->row_max[row], a->row_sum[row]);
        if (a->drops)
            keep_row(a, head, r0 + i, keep);
        score_grad_row(P + i * N, dP + i * N, a->drops ? keep : NULL, N);
    }
    if (g->dq && dn_sgemm('N', 'N', t, d, N, a->scale, dP, N, k, 2 * C, g->add_dq ? 1.0f : 0.0f, g->dq + at,
                          C, NULL) < 0)
        return -1;
    if (!g->dkv)
        return 0;
    if (dn_sgemm('T', 'N', N, d, t, a->scale, dP, N, a->q + at, C, beta, g->dkv + head * d, 2 * C, NULL) < 0)
        return -1;
    return dn_sgemm('T', 'N', N, d, t, 1, P, N, g->dout + at, C, beta, g->dkv + C + head * d, 2 * C, NULL);
}

KERNEL_BACKWARD(attention)
{
    const struct attention_grad g = {c->dout, c->din[0], c->din[1], acc_bit(c, 0), acc_bit(c, 1)};
    struct attention a;
    int failed = 0;

    if (attention_init(&a, c, 2, e) < 0)
        return -1;
    if (!a.n) {
        if (g.dkv && !g.add_dkv)
            memset(g.dkv, 0, (size_t)(2 * a.N * a.C) * sizeof(*g.dkv));
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(cpu_of(c->state)->n_threads) reduction(| : failed)
    for (int64_t head = 0; head < a.h; head++) {
        for (int64_t r0 = 0; r0 < a.n; r0 += a.T) {
            if (backward_tile(&a, &g, head, r0, thread_scratch(c)) < 0)
                failed = 1;
        }
    }
    return failed ? err_set(e, "attention: a matrix product failed") : 0;
}
