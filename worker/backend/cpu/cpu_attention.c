/* cpu_attention - multi-head attention of the rank's n queries over N keys; backward is in
 * cpu_attention_grad.c.
 *
 * For a head and a group of queries: for each block of keys, for each tile of the queries
 *
 *   S = Q·Kᵀ/√d   m' = max(m, max S)   P = exp(S - m')   l = l·exp(m - m') + Σ P   O = O·exp(m - m') +
 * keep∘P·V
 *
 * and after the last block O = O/l (Milakov, Gimelshein: "Online normalizer calculation for softmax", 2018;
 * Dao et al.: "FlashAttention", 2022): no n × N matrix is anywhere, a tile is in the cache while it is used,
 * and keys are packed once a group. aux keeps m and l of each row for backward.
 *
 * A row's bits depend on the row, the keys and the draws, not on n: so any thread may take any group, and a
 * rank's rows are those of one rank.
 *
 * Dropout is keyed by the global indices of query and key (philox.h): how rows lie on ranks does not matter.
 */
#include "worker/backend/cpu/cpu_attention.h"

#include <math.h>

/* Queries of a group: fewer where there would not be enough groups for all threads, or where heads are wide.
 */
static int64_t group_rows(int64_t n, int64_t h, int n_threads)
{
    int64_t rows = attention_round_up(ceil_div(n * h, 4 * (int64_t)n_threads), TILE_ROWS);

    return min_i64(max_i64(rows, 2 * TILE_ROWS), GROUP_ROWS);
}

/* What a thread holds in forward. */
struct scratch {
    float *q;      /* the group's queries, packed rows, ×1/√d */
    float *keys;   /* a block of keys, transposed, packed columns */
    float *values; /* a block of values, packed columns */
    float *tile;
};

static size_t scratch_lay_out(struct scratch *s, float *base, int64_t d)
{
    float *at = base;

    s->q = at;
    at += panel_lhs_floats(GROUP_ROWS, d);
    s->keys = at;
    at += panel_rhs_floats(d, KEY_BLOCK);
    s->values = at;
    at += panel_rhs_floats(KEY_BLOCK, d);
    s->tile = at;
    at += TILE_FLOATS;
    return align_up((size_t)(at - base) * sizeof(float)) / sizeof(float);
}

KERNEL_PREPARE(attention)
{
    const int64_t heads = n->attr.attention.heads;
    const int n_threads = cpu_of(be)->n_threads;
    struct scratch s;

    (void)e;
    p->state = be; /* borrowed: tells how many threads have scratch */
    p->aux_bytes = (size_t)(2 * heads * n->shape.dims[0]) * sizeof(float);
    p->scratch_bytes =
        (size_t)n_threads * scratch_lay_out(&s, NULL, n->shape.dims[1] / heads) * sizeof(float);
    if (attention_grad_scratch_bytes(n, n_threads) > p->scratch_bytes)
        p->scratch_bytes = attention_grad_scratch_bytes(n, n_threads);
    return 0;
}

int attention_init(struct attention *a, const struct op_call *c, struct err *e)
{
    const struct node *n = c->node;
    const int64_t rows = n->shape.dims[0], heads = n->attr.attention.heads;

    *a = (struct attention){
        .n = rows,
        .N = n->in[1]->shape.dims[0],
        .C = n->shape.dims[1],
        .h = heads,
        .d = n->shape.dims[1] / heads,
        .q = c->in[0],
        .kv = c->in[1],
        .row_max = c->aux,
        .drops = n->attr.attention.dropout > 0,
        .keep_scale = 1,
        .key0 = n->attr.attention.key_row0,
        .n_threads = cpu_of(c->state)->n_threads,
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
    a->keep_scale = a->site.scale;
    return 0;
}

void attention_scores(const float *q, const float *keys, int64_t rows, int64_t n_keys, int64_t d, float *S)
{
    const struct panel_lhs lhs = panel_lhs_packed(q, d);

    panel_product(rows, n_keys, d, &lhs, keys, S, TILE_LD, NULL, false);
    for (int64_t i = 0; n_keys % VLEN && i < rows; i++)
        for (int64_t j = n_keys; j % VLEN; j++)
            S[i * TILE_LD + j] = -INFINITY;
}

static float row_maximum(const float *s, int64_t n_vectors)
{
    v16 m = *(const v16 *)s;

    for (int64_t j = 1; j < n_vectors; j++)
        v16_max(&m, (const v16 *)s + j);
    return v16_max_lanes(&m);
}

/* s = exp(s - max), where kept; returns the sum over all, kept or not. bits NULL: everything is kept. */
static float row_weights(float *s, int64_t n_vectors, float max, const uint32_t *bits)
{
    v16 sum = {0};

    for (int64_t j = 0; j < n_vectors; j++) {
        v16 p = ((const v16 *)s)[j] - max;

        v16_exp(&p);
        sum += p;
        if (bits)
            v16_keep(&p, bits[j / 2] >> j % 2 * VLEN);
        ((v16 *)s)[j] = p;
    }
    return v16_sum_lanes(&sum);
}

static void scale_row(float *x, int64_t n, float by)
{
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
        x[j] *= by;
}

/* A tile of queries over one block of keys, the first one or a later. row: of the tile, in the head. */
static void forward_tile(const struct attention *a, const struct scratch *s, int64_t head, int64_t row,
                         int64_t rows, int64_t n_keys, const float *q, const struct draws *draws, bool first,
                         float *out)
{
    const int64_t n_vectors = ceil_div(n_keys, VLEN);
    const struct panel_lhs weights = panel_lhs_plain(s->tile, TILE_LD, 1);
    uint32_t bits[DRAWS_BLOCKS];

    attention_scores(q, s->keys, rows, n_keys, a->d, s->tile);
    for (int64_t i = 0; i < rows; i++) {
        float *t = s->tile + i * TILE_LD, *max = &a->row_max[head * a->n + row + i];
        float *sum = &a->row_sum[head * a->n + row + i];
        const float block = row_maximum(t, n_vectors);

        if (first) {
            *max = block;
            *sum = 0;
        } else if (block > *max) {
            const float shrink = expf(*max - block);

            *max = block;
            *sum *= shrink;
            scale_row(out + i * a->C, a->d, shrink);
        }
        if (draws)
            draws_keep_bits(draws, (uint32_t)(a->query0 + row + i), bits);
        *sum += row_weights(t, n_vectors, *max, draws ? bits : NULL);
    }
    panel_product(rows, a->d, n_keys, &weights, s->values, out, a->C, NULL, !first);
}

/* Rows row0 … row0+rows-1 of a head. */
static void forward_group(const struct attention *a, const struct scratch *s, int64_t head, int64_t row0,
                          int64_t rows, float *out)
{
    const int64_t d = a->d, at = row0 * a->C + head * d;
    const float *k = a->kv + head * d, *v = k + a->C;
    struct draws draws;

    panel_pack_lhs(a->q + at, a->C, 1, rows, d, a->scale, s->q);
    for (int64_t j = 0; j < a->N; j += KEY_BLOCK) {
        const int64_t n_keys = min_i64(KEY_BLOCK, a->N - j);

        panel_pack_rhs(k + j * 2 * a->C, 1, 2 * a->C, d, n_keys, 1, s->keys);
        panel_pack_rhs(v + j * 2 * a->C, 2 * a->C, 1, n_keys, d, 1, s->values);
        if (a->drops)
            draws_init(&draws, &a->site, (uint32_t)head, a->key0 + j, (int)n_keys);
        for (int64_t i = 0; i < rows; i += TILE_ROWS)
            forward_tile(a, s, head, row0 + i, min_i64(TILE_ROWS, rows - i), n_keys, s->q + i * d,
                         a->drops ? &draws : NULL, j == 0, out + at + i * a->C);
    }
    for (int64_t i = 0; i < rows; i++)
        scale_row(out + at + i * a->C, d, a->keep_scale / a->row_sum[head * a->n + row0 + i]);
}

KERNEL_FORWARD(attention)
{
    struct attention a;

    if (attention_init(&a, c, e) < 0)
        return -1;
    const int64_t group = group_rows(a.n, a.h, a.n_threads), n_groups = ceil_div(a.n, group);

#pragma omp parallel num_threads(a.n_threads)
    {
        struct scratch s;
        const size_t floats = scratch_lay_out(&s, NULL, a.d);

        scratch_lay_out(&s, (float *)c->scratch + (size_t)cpu_thread_idx() * floats, a.d);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < a.h * n_groups; k++) {
            const int64_t row0 = k % n_groups * group;

            forward_group(&a, &s, k / n_groups, row0, min_i64(group, a.n - row0), c->out);
        }
    }
    return 0;
}
