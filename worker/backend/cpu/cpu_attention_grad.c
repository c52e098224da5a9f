/* cpu_attention_grad - backward of cpu_attention.c: weights are computed again, tile by tile, from each row's
 * maximum and sum.
 *
 *   D = Σ dO∘O over a row's d channels     P = exp(S - m)/l     P̃ = keep∘P     dP̃ = dO·Vᵀ
 *   dV += P̃ᵀ·dO     dS = P∘(keep∘dP̃ - D)     dQ += dS·K/√d     dK += dSᵀ·Q/√d
 *
 * where keep is 1/(1-p) or 0; D is Σⱼ P·keep∘dP̃ without another pass over the keys.
 *
 * dK and dV are sums over queries, dQ is one over keys. Keys are cut into chunks; a unit of work is a head
 * and a chunk for a group of queries. It owns its rows of dK and dV, and leaves its part of dQ in a slot of
 * scratch; after each group the slots are added up in order. How many chunks there are depends on shapes
 * only, so bits do not depend on the number of threads, and a group's slots are all the memory that it takes.
 */
#include <math.h>
#include <string.h>
#include "worker/backend/cpu/cpu_attention.h"

enum {
    CHUNKS_OF_KEYS = 8,     /* at most */
    UNITS = 16,             /* as many as that for each group, where there are keys enough */
    GROUP_FLOATS = 1 << 18, /* 1 MiB of a group's queries */
};

struct grad_plan {
    int64_t group;           /* queries of a group */
    int64_t chunk, n_chunks; /* keys of a chunk */
};

static struct grad_plan plan_make(int64_t n, int64_t N, int64_t h, int64_t d)
{
    const int64_t wanted = min_i64(ceil_div(UNITS, h), CHUNKS_OF_KEYS);
    const int64_t chunks = max_i64(min_i64(wanted, N / KEY_BLOCK), 1);
    const int64_t rows = min_i64(GROUP_ROWS, GROUP_FLOATS / d / TILE_ROWS * TILE_ROWS);
    struct grad_plan p = {.chunk = attention_round_up(ceil_div(N, chunks), PANEL_COLS)};

    p.n_chunks = p.chunk ? ceil_div(N, p.chunk) : 0;
    p.group = min_i64(max_i64(rows, TILE_ROWS), attention_round_up(n, TILE_ROWS));
    return p;
}

/* What a thread holds: of a group of queries, and of a block of keys. */
struct scratch {
    float *q, *dout;           /* packed rows: q/√d, keep·dO */
    float *q_cols, *dout_cols; /* the same, each tile of rows packed into columns */
    float *dot;                /* D */
    float *keys, *values;      /* transposed, packed into columns */
    float *key_cols;
    float *weights, *grad; /* tiles: P, then P̃; dP̃, then dS */
};

static float *take(float **at, size_t floats)
{
    float *p = *at;

    *at += align_up(floats * sizeof(float)) / sizeof(float);
    return p;
}

/* Returns how many floats. base NULL: only counts. */
static size_t scratch_lay_out(struct scratch *s, float *base, int64_t group, int64_t d)
{
    float *at = base;

    s->q = take(&at, panel_lhs_floats(group, d));
    s->dout = take(&at, panel_lhs_floats(group, d));
    s->q_cols = take(&at, panel_rhs_floats(group, d));
    s->dout_cols = take(&at, panel_rhs_floats(group, d));
    s->dot = take(&at, (size_t)group);
    s->keys = take(&at, panel_rhs_floats(d, KEY_BLOCK));
    s->values = take(&at, panel_rhs_floats(d, KEY_BLOCK));
    s->key_cols = take(&at, panel_rhs_floats(KEY_BLOCK, d));
    s->weights = take(&at, TILE_FLOATS);
    s->grad = take(&at, TILE_FLOATS);
    return (size_t)(at - base);
}

size_t attention_grad_scratch_bytes(const struct node *n, int n_threads)
{
    const int64_t C = n->shape.dims[1], h = n->attr.attention.heads;
    const struct grad_plan p = plan_make(n->shape.dims[0], n->in[1]->shape.dims[0], h, C / h);
    struct scratch s;

    return ((size_t)(p.n_chunks * p.group * C) +
            (size_t)n_threads * scratch_lay_out(&s, NULL, p.group, C / h)) *
           sizeof(float);
}

struct grad {
    struct attention a;
    struct grad_plan plan;
    const float *out, *dout;
    float *dq, *dkv;
    bool add_dq, add_dkv;
    float *slots; /* (chunks, group, C) */
};

/* A group's queries: rows of one head. */
struct group {
    int64_t head, row0, rows;
};

static void pack_group(const struct grad *g, const struct scratch *s, const struct group *r)
{
    const struct attention *a = &g->a;
    const int64_t d = a->d, at = r->row0 * a->C + r->head * d, wide = attention_round_up(d, VLEN);
    const float *q = a->q + at, *dout = g->dout + at, *out = g->out + at;

    panel_pack_lhs(q, a->C, 1, r->rows, d, a->scale, s->q);
    panel_pack_lhs(dout, a->C, 1, r->rows, d, a->keep_scale, s->dout);
    for (int64_t i = 0; i < r->rows; i += TILE_ROWS) {
        const int64_t rows = min_i64(TILE_ROWS, r->rows - i);

        panel_pack_rhs(q + i * a->C, a->C, 1, rows, d, a->scale, s->q_cols + i * wide);
        panel_pack_rhs(dout + i * a->C, a->C, 1, rows, d, a->keep_scale, s->dout_cols + i * wide);
    }
    for (int64_t i = 0; i < r->rows; i++) {
        const float *x = dout + i * a->C, *y = out + i * a->C;
        float dot = 0;

#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < d; j++)
            dot += x[j] * y[j];
        s->dot[i] = dot;
    }
}

/* From p = S and dp = dP̃ of one row: p becomes P̃, less its factor 1/(1-p), and dp becomes dS. */
static void score_grad_row(float *p, float *dp, int64_t n_vectors, float max, float inv_sum, float dot,
                           const uint32_t *bits)
{
    for (int64_t j = 0; j < n_vectors; j++) {
        v16 w = ((const v16 *)p)[j] - max, g = ((const v16 *)dp)[j];

        v16_exp(&w);
        w *= inv_sum;
        if (bits)
            v16_keep(&g, bits[j / 2] >> j % 2 * VLEN);
        ((v16 *)dp)[j] = w * (g - dot);
        if (bits)
            v16_keep(&w, bits[j / 2] >> j % 2 * VLEN);
        ((v16 *)p)[j] = w;
    }
}

/* Keys of a block, from key j of all. */
struct keys {
    int64_t j, n;
    bool first; /* of the unit's chunk */
    const struct draws *draws;
};

/* Rows i … i+rows-1 of the group over a block of keys. */
static void backward_tile(const struct grad *g, const struct scratch *s, const struct group *r,
                          const struct keys *k, int64_t i, float *slot)
{
    const struct attention *a = &g->a;
    const int64_t d = a->d, C = a->C, rows = min_i64(TILE_ROWS, r->rows - i);
    const int64_t n_vectors = ceil_div(k->n, VLEN), wide = attention_round_up(d, VLEN);
    const struct panel_lhs dout = panel_lhs_packed(s->dout + i * d, d);
    const struct panel_lhs grad = panel_lhs_plain(s->grad, TILE_LD, 1);
    const struct panel_lhs grad_t = panel_lhs_plain(s->grad, 1, TILE_LD);
    const struct panel_lhs weights_t = panel_lhs_plain(s->weights, 1, TILE_LD);
    uint32_t bits[DRAWS_BLOCKS];

    attention_scores(s->q + i * d, s->keys, rows, k->n, d, s->weights);
    panel_product(rows, attention_round_up(k->n, VLEN), d, &dout, s->values, s->grad, TILE_LD, NULL, false);
    for (int64_t t = 0; t < rows; t++) {
        const int64_t row = r->row0 + i + t, at = r->head * a->n + row;

        if (k->draws)
            draws_keep_bits(k->draws, (uint32_t)(a->query0 + row), bits);
        score_grad_row(s->weights + t * TILE_LD, s->grad + t * TILE_LD, n_vectors, a->row_max[at],
                       1.0f / a->row_sum[at], s->dot[i + t], k->draws ? bits : NULL);
    }
    if (g->dq)
        panel_product(rows, d, k->n, &grad, s->key_cols, slot + i * C, C, NULL, !k->first);
    if (g->dkv) {
        float *dk = g->dkv + k->j * 2 * C + r->head * d;
        const bool add = g->add_dkv || r->row0 + i > 0;

        panel_product(k->n, d, rows, &grad_t, s->q_cols + i * wide, dk, 2 * C, NULL, add);
        panel_product(k->n, d, rows, &weights_t, s->dout_cols + i * wide, dk + C, 2 * C, NULL, add);
    }
}

static void backward_unit(const struct grad *g, const struct scratch *s, const struct group *r, int64_t chunk)
{
    const struct attention *a = &g->a;
    const int64_t d = a->d, step = 2 * a->C, first = chunk * g->plan.chunk;
    const int64_t end = min_i64(first + g->plan.chunk, a->N);
    float *slot = g->slots + chunk * g->plan.group * a->C + r->head * d;
    struct draws draws;

    pack_group(g, s, r);
    for (int64_t j = first; j < end; j += KEY_BLOCK) {
        const struct keys k = {j, min_i64(KEY_BLOCK, end - j), j == first, a->drops ? &draws : NULL};
        const float *key = a->kv + j * step + r->head * d, *value = key + a->C;

        panel_pack_rhs(key, 1, step, d, k.n, 1, s->keys);
        panel_pack_rhs(value, 1, step, d, k.n, 1, s->values);
        panel_pack_rhs(key, step, 1, k.n, d, 1, s->key_cols);
        if (a->drops)
            draws_init(&draws, &a->site, (uint32_t)r->head, a->key0 + j, (int)k.n);
        for (int64_t i = 0; i < r->rows; i += TILE_ROWS)
            backward_tile(g, s, r, &k, i, slot);
    }
}

/* dq of a row = or += the slots' sum /√d. */
static void sum_slots(const struct grad *g, int64_t row0, int64_t i)
{
    const int64_t C = g->a.C, stride = g->plan.group * C;
    const float *slot = g->slots + i * C;
    float *dq = g->dq + (row0 + i) * C;

#pragma omp simd
    for (int64_t j = 0; j < C; j++) {
        float sum = slot[j];

        for (int64_t u = 1; u < g->plan.n_chunks; u++)
            sum += slot[u * stride + j];
        dq[j] = (g->add_dq ? dq[j] : 0.0f) + sum * g->a.scale;
    }
}

static void backward_all(const struct grad *g, float *thread_scratch)
{
    const int64_t n_chunks = g->plan.n_chunks;
    struct scratch s;
    const size_t floats = scratch_lay_out(&s, NULL, g->plan.group, g->a.d);

#pragma omp parallel num_threads(g->a.n_threads) private(s)
    {
        scratch_lay_out(&s, thread_scratch + (size_t)cpu_thread_idx() * floats, g->plan.group, g->a.d);
        for (int64_t row0 = 0; row0 < g->a.n; row0 += g->plan.group) {
            const int64_t rows = min_i64(g->plan.group, g->a.n - row0);

#pragma omp for schedule(static)
            for (int64_t u = 0; u < g->a.h * n_chunks; u++) {
                const struct group r = {u / n_chunks, row0, rows};

                backward_unit(g, &s, &r, u % n_chunks);
            }
            if (g->dq) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < rows; i++)
                    sum_slots(g, row0, i);
            }
        }
    }
}

KERNEL_BACKWARD(attention)
{
    struct grad g = {.out = c->out,
                     .dout = c->dout,
                     .dq = c->din[0],
                     .dkv = c->din[1],
                     .add_dq = acc_bit(c, 0),
                     .add_dkv = acc_bit(c, 1),
                     .slots = c->scratch};

    if (attention_init(&g.a, c, e) < 0)
        return -1;
    if (!g.a.n) {
        if (g.dkv && !g.add_dkv)
            memset(g.dkv, 0, (size_t)(2 * g.a.N * g.a.C) * sizeof(*g.dkv));
        return 0;
    }
    g.plan = plan_make(g.a.n, g.a.N, g.a.h, g.a.d);
    backward_all(&g, g.slots + g.plan.n_chunks * g.plan.group * g.a.C);
    return 0;
}
