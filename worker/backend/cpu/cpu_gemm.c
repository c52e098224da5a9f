/* cpu_gemm - see cpu_gemm.h; and OP_LINEAR.
 *
 * The loops around cpu_panel's product. gemm_run(): all threads together pack a slab of the right operand,
 * some columns of some depth, which they share; then each takes rows of the result, packs its rows of the
 * left operand, where they are used more than a few times, and multiplies. There are two slabs, so that a
 * thread that is done packs the next one while others multiply: the threads meet once a slab, when it is
 * packed. An element's bits depend on its row and its column only (cpu_panel.h), so rows and columns may be
 * dealt out to any number of threads.
 *
 * gemm_sum(), where the depth is a number of rows: it is cut into a few parts, which depend on the shape
 * alone; a thread computes a part by itself, without waiting for others, and the parts are added up in order.
 *
 * Letters: M rows, I inputs, O outputs.
 */
#include <string.h>
#include "worker/backend/cpu/cpu_gemm.h"
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_panel.h"
#include "worker/backend/cpu/cpu_simd.h"

enum {
    SLAB_COLS = 512,
    SLAB_FLOATS = SLAB_COLS * PANEL_DEPTH, /* 512 KiB; deeper where there are fewer columns */
    BLOCK_ROWS = 256,
    BLOCK_FLOATS =
        BLOCK_ROWS * PANEL_DEPTH, /* 256 KiB of the left operand: a quarter of a second-level cache */
    PACKED_COLS_MIN = 257,        /* of the result: fewer do not pay for packing the left operand's rows */
    SUM_ROWS = 64,
    PARTS_MAX = 8,
    PART_DEPTH_MIN = 1024,
    PARTS_FLOATS_MAX = 4 << 20, /* 16 MiB */
};

/* One thread of the team. */
struct worker {
    float *slabs[2], *packed;
    int next; /* slab: the same for all threads */
    int n_threads;
};

size_t gemm_scratch_bytes(int n_threads)
{
    return (2 * (size_t)SLAB_FLOATS + (size_t)n_threads * BLOCK_FLOATS) * sizeof(float);
}

static struct worker worker_make(void *scratch, int n_threads)
{
    float *at = scratch;

    return (struct worker){.slabs = {at, at + SLAB_FLOATS},
                           .packed = at + 2 * SLAB_FLOATS + (size_t)cpu_thread_idx() * BLOCK_FLOATS,
                           .n_threads = n_threads};
}

static int64_t round_up(int64_t a, int64_t unit)
{
    return ceil_div(a, unit) * unit;
}

/* A slab: columns j … j+n-1, depth p … p+k-1. A block of PANEL_DEPTH lies behind the other. */
struct slab {
    int64_t j, n, p, k;
    int64_t width; /* floats of a step of the depth */
    float *at;
};

/* All threads of the team. */
static void pack_slab(const struct gemm *g, const struct slab *s)
{
    const int64_t panels = ceil_div(s->n, PANEL_COLS), blocks = ceil_div(s->k, PANEL_DEPTH);

#pragma omp for schedule(static)
    for (int64_t t = 0; t < blocks * panels; t++) {
        const int64_t i = t % panels * PANEL_COLS, q = t / panels * PANEL_DEPTH;
        const int64_t k = min_i64(PANEL_DEPTH, s->k - q);

        panel_pack_rhs(g->b + (s->p + q) * g->b_depth + (s->j + i) * g->b_col, g->b_depth, g->b_col, k,
                       min_i64(PANEL_COLS, s->n - i), 1, s->at + q * s->width + i * k);
    }
}

/* Rows [i, i+rows) of the left operand in depths [p, p+k): where they lie, if they will not be read often,
 * and if no row beyond the last would be read with them. */
static struct panel_lhs left_rows(const struct gemm *g, int64_t i, int64_t rows, int64_t p, int64_t k,
                                  float *packed)
{
    const float *at = g->a + i * g->a_row + p * g->a_depth;

    if (g->n < PACKED_COLS_MIN && rows % PANEL_ROWS == 0)
        return panel_lhs_plain(at, g->a_row, g->a_depth);
    panel_pack_lhs(at, g->a_row, g->a_depth, rows, k, 1, packed);
    return panel_lhs_packed(packed, k);
}

/* Rows i … i+rows-1 and columns l … l+cols-1 of the slab. */
static void multiply_item(const struct gemm *g, const struct slab *s, int64_t i, int64_t rows, int64_t l,
                          int64_t cols, float *packed)
{
    const int64_t j = s->j + l;
    int64_t q = 0;

    do { /* once at least: a sum over nothing is bias, or 0 */
        const int64_t k = min_i64(PANEL_DEPTH, s->k - q);
        const bool first = s->p + q == 0;
        const struct panel_lhs lhs = left_rows(g, i, rows, s->p + q, k, packed);

        panel_product(rows, cols, k, &lhs, s->at + q * s->width + l * k, g->c + i * g->n + j, g->n,
                      g->bias && first ? g->bias + j : NULL, g->add || !first);
        q += PANEL_DEPTH;
    } while (q < s->k);
}

/* As many items as threads, or a multiple; columns are cut only where there are fewer panels of rows than
 * threads. All threads of the team; none waits for the others. */
static void multiply_slab(const struct gemm *g, const struct slab *s, const struct worker *w)
{
    const int64_t rounds = ceil_div(g->m, (int64_t)BLOCK_ROWS * w->n_threads);
    const int64_t rows = round_up(ceil_div(g->m, rounds * w->n_threads), PANEL_ROWS);
    const int64_t row_items = ceil_div(g->m, rows);
    const int64_t cols = round_up(ceil_div(s->n, ceil_div(w->n_threads, row_items)), PANEL_COLS);
    const int64_t col_items = ceil_div(s->n, cols);

#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < row_items * col_items; t++) {
        const int64_t i = t / col_items * rows, l = t % col_items * cols;

        multiply_item(g, s, i, min_i64(rows, g->m - i), l, min_i64(cols, s->n - l), w->packed);
    }
}

/* All threads of the team. c is complete when the region ends, or the threads have met twice. */
static void run_in_team(const struct gemm *g, struct worker *w)
{
    if (g->m == 0)
        return;
    for (int64_t j = 0; j < g->n; j += SLAB_COLS) {
        struct slab s = {.j = j, .n = min_i64(SLAB_COLS, g->n - j)};
        int64_t depth;

        s.width = round_up(s.n, VLEN);
        depth = SLAB_FLOATS / s.width / PANEL_DEPTH * PANEL_DEPTH;
        do {
            s.k = min_i64(depth, g->k - s.p);
            s.at = w->slabs[w->next];
            w->next ^= 1;
            pack_slab(g, &s);
            multiply_slab(g, &s, w);
            s.p += depth;
        } while (s.p < g->k);
    }
}

/* ------------------------------------------------------------------ deep sums */

static int n_parts(int64_t m, int64_t n, int64_t k)
{
    int parts = 1;

    while (parts < PARTS_MAX && k >= 2 * parts * PART_DEPTH_MIN && 2 * parts * m * n <= PARTS_FLOATS_MAX)
        parts *= 2;
    return parts;
}

size_t gemm_sum_scratch_bytes(int64_t m, int64_t n, int64_t k, int n_threads)
{
    const int parts = n_parts(m, n, k);
    const size_t of_threads = (size_t)n_threads * (SLAB_FLOATS + BLOCK_FLOATS) * sizeof(float);

    return parts == 1 ? gemm_scratch_bytes(n_threads)
                      : align_up((size_t)(parts * m * n) * sizeof(float)) + of_threads;
}

/* c (m,n) = the product in depths [begin, end), by one thread; room for its operands at `packed`. */
static void sum_part(const struct gemm *g, int64_t begin, int64_t end, float *c, float *packed)
{
    float *slab = packed + BLOCK_FLOATS;

    for (int64_t p = begin; p < end; p += PANEL_DEPTH) {
        const int64_t k = min_i64(PANEL_DEPTH, end - p);

        for (int64_t j = 0; j < g->n; j += SLAB_COLS) {
            const int64_t n = min_i64(SLAB_COLS, g->n - j);

            panel_pack_rhs(g->b + p * g->b_depth + j * g->b_col, g->b_depth, g->b_col, k, n, 1, slab);
            for (int64_t i = 0; i < g->m; i += BLOCK_ROWS) {
                const int64_t rows = min_i64(BLOCK_ROWS, g->m - i);
                const struct panel_lhs lhs = left_rows(g, i, rows, p, k, packed);

                panel_product(rows, n, k, &lhs, slab, c + i * g->n + j, g->n, NULL, p > begin);
            }
        }
    }
}

/* All threads of the team, whose scratch begins at w->slabs[0]. */
static void sum_in_team(const struct gemm *g, struct worker *w)
{
    const int n = n_parts(g->m, g->n, g->k);

    if (n == 1) {
        run_in_team(g, w);
        return;
    }
    const struct chunks parts = chunks_make(g->k, round_up(ceil_div(g->k, n), PANEL_DEPTH));
    const int64_t count = g->m * g->n;
    float *all = w->slabs[0],
          *operands = all + align_up((size_t)(parts.n * count) * sizeof(float)) / sizeof(float);

#ifdef _OPENMP
#pragma omp barrier /* slabs may still be in use */
#endif
#pragma omp for schedule(static)
    for (int q = 0; q < parts.n; q++)
        sum_part(g, chunk_first(&parts, q), chunk_end(&parts, q), all + q * count,
                 operands + (int64_t)cpu_thread_idx() * (SLAB_FLOATS + BLOCK_FLOATS));
#pragma omp for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float sum = all[i];

        for (int q = 1; q < parts.n; q++)
            sum += all[q * count + i];
        g->c[i] = g->add ? g->c[i] + sum : sum;
    }
}

/* ------------------------------------------------------------------ by themselves */

void gemm_run(const struct gemm *g, float *scratch, int n_threads)
{
#pragma omp parallel num_threads(n_threads)
    {
        struct worker w = worker_make(scratch, n_threads);

        run_in_team(g, &w);
    }
}

void gemm_sum(const struct gemm *g, float *scratch, int n_threads)
{
#pragma omp parallel num_threads(n_threads)
    {
        struct worker w = worker_make(scratch, n_threads);

        sum_in_team(g, &w);
    }
}

/* ------------------------------------------------------------------ linear */

/* out = or += column sums of x (rows, cols): fp32 over SUM_ROWS rows, fp64 over those. All threads of the
 * team. */
static void column_sums(const float *x, int64_t rows, int64_t cols, float *out, bool add)
{
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < cols; j += VLEN) {
        const int w = (int)min_i64(VLEN, cols - j);
        double sum[VLEN] = {0};

        for (int64_t r0 = 0; r0 < rows; r0 += SUM_ROWS) {
            v16 s = {0}, v;

            for (int64_t r = r0, end = min_i64(rows, r0 + SUM_ROWS); r < end; r++) {
                v16_load(&v, x + r * cols + j, w);
                s += v;
            }
            for (int l = 0; l < w; l++)
                sum[l] += s[l];
        }
        for (int l = 0; l < w; l++)
            out[j + l] = (float)(add ? out[j + l] + sum[l] : sum[l]);
    }
}

KERNEL_PREPARE(linear)
{
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int n_threads = cpu_of(be)->n_threads;
    const size_t sum = gemm_sum_scratch_bytes(shape_channels(n->shape), I, M, n_threads);

    (void)e;
    p->state = be; /* borrowed: tells how many threads have scratch */
    p->scratch_bytes = gemm_scratch_bytes(n_threads);
    if (n->in[1]->needs_grad && sum > p->scratch_bytes)
        p->scratch_bytes = sum;
    return 0;
}

KERNEL_FORWARD(linear)
{
    const struct node *n = c->node;
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int64_t O = shape_channels(n->shape);
    const struct gemm y = {.m = M,
                           .n = O,
                           .k = I,
                           .a = c->in[0],
                           .a_row = I,
                           .a_depth = 1,
                           .b = c->in[1],
                           .b_depth = 1,
                           .b_col = I,
                           .bias = n->n_inputs > 2 ? c->in[2] : NULL,
                           .c = c->out};

    (void)e;
    gemm_run(&y, c->scratch, cpu_of(c->state)->n_threads);
    return 0;
}

/* dx = dy·w, dw = dyᵀ·x. */
KERNEL_BACKWARD(linear)
{
    const struct node *n = c->node;
    const int64_t M = shape_rows(n->in[0]->shape), I = shape_channels(n->in[0]->shape);
    const int64_t O = shape_channels(n->shape);
    const struct gemm dx = {.m = M,
                            .n = I,
                            .k = O,
                            .a = c->dout,
                            .a_row = O,
                            .a_depth = 1,
                            .b = c->in[1],
                            .b_depth = I,
                            .b_col = 1,
                            .c = c->din[0],
                            .add = acc_bit(c, 0)};
    const struct gemm dw = {.m = O,
                            .n = I,
                            .k = M,
                            .a = c->dout,
                            .a_row = 1,
                            .a_depth = O,
                            .b = c->in[0],
                            .b_depth = I,
                            .b_col = 1,
                            .c = c->din[1],
                            .add = acc_bit(c, 1)};

    const int n_threads = cpu_of(c->state)->n_threads;

    (void)e;
#pragma omp parallel num_threads(n_threads)
    {
        struct worker w = worker_make(c->scratch, n_threads);

        if (dx.c)
            run_in_team(&dx, &w);
        if (dw.c)
            sum_in_team(&dw, &w);
        if (n->n_inputs > 2 && c->din[2])
            column_sums(c->dout, M, O, c->din[2], acc_bit(c, 2));
    }
    return 0;
}
