/* cpu_gemm - see cpu_gemm.h; and OP_LINEAR.
 *
 * The loops around cpu_panel's product. gemm_run(): a slab of the right operand, SLAB_COLS columns of one
 * depth block, is packed by all threads together and shared; then each thread takes rows of the result, packs
 * its rows of the left operand, where they are used more than a few times, and multiplies. An element's bits
 * depend on its row and its column only (cpu_panel.h), so rows and columns may be dealt out to any number of
 * threads.
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
    SLAB_COLS = 1024,      /* 1 MiB of the right operand */
    BLOCK_ROWS = 256,      /* 256 KiB of the left operand: a quarter of a second-level cache */
    PACKED_COLS_MIN = 257, /* of the result: fewer do not pay for packing the left operand's rows */
    SUM_ROWS = 64,
    PARTS_MAX = 8,
    PART_DEPTH_MIN = 1024,
    PARTS_FLOATS_MAX = 4 << 20, /* 16 MiB */
};

/* How the m×n result is dealt out. */
struct gemm_grid {
    int64_t rows, cols; /* of an item */
    int64_t n_row_items, n_col_items;
};

static int64_t round_up(int64_t a, int64_t unit)
{
    return ceil_div(a, unit) * unit;
}

/* As many items as threads, or a multiple; columns are cut only where there are fewer panels of rows than
 * threads. */
static struct gemm_grid grid_make(int64_t m, int64_t n, int n_threads)
{
    const int64_t rounds = ceil_div(m, (int64_t)BLOCK_ROWS * n_threads);
    struct gemm_grid g = {.rows = round_up(ceil_div(m, rounds * n_threads), PANEL_ROWS)};

    g.n_row_items = ceil_div(m, g.rows);
    g.cols = round_up(ceil_div(n, ceil_div(n_threads, g.n_row_items)), PANEL_COLS);
    g.n_col_items = ceil_div(n, g.cols);
    return g;
}

size_t gemm_scratch_bytes(int n_threads)
{
    return ((size_t)SLAB_COLS + (size_t)n_threads * BLOCK_ROWS) * PANEL_DEPTH * sizeof(float);
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

/* Panels of the slab's columns, n of them from column j, depth p to p+k: all threads of the team. */
static void pack_slab(const struct gemm *g, int64_t j, int64_t n, int64_t p, int64_t k, float *slab)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i += PANEL_COLS)
        panel_pack_rhs(g->b + p * g->b_depth + (j + i) * g->b_col, g->b_depth, g->b_col, k,
                       min_i64(PANEL_COLS, n - i), 1, slab + i * k);
}

/* The slab's share of the result: all threads of the team. */
static void multiply_slab(const struct gemm *g, int64_t j, int64_t n, int64_t p, int64_t k,
                          const struct gemm_grid *grid, const float *slab, float *packed)
{
#pragma omp for schedule(static)
    for (int64_t t = 0; t < grid->n_row_items * grid->n_col_items; t++) {
        const int64_t i = t / grid->n_col_items * grid->rows, l = t % grid->n_col_items * grid->cols;
        const int64_t rows = min_i64(grid->rows, g->m - i);
        const struct panel_lhs lhs = left_rows(g, i, rows, p, k, packed);

        panel_product(rows, min_i64(grid->cols, n - l), k, &lhs, slab + l * k, g->c + i * g->n + j + l, g->n,
                      g->bias && p == 0 ? g->bias + j + l : NULL, g->add || p > 0);
    }
}

void gemm_run(const struct gemm *g, float *scratch, int n_threads)
{
    if (g->m == 0 || g->n == 0)
        return;
#pragma omp parallel num_threads(n_threads)
    {
        float *slab = scratch;
        float *packed = slab + (size_t)(SLAB_COLS + cpu_thread_idx() * BLOCK_ROWS) * PANEL_DEPTH;

        for (int64_t j = 0; j < g->n; j += SLAB_COLS) {
            const int64_t n = min_i64(SLAB_COLS, g->n - j);
            const struct gemm_grid grid = grid_make(g->m, n, n_threads);
            int64_t p = 0;

            do { /* once at least: a sum over nothing is bias, or 0 */
                const int64_t k = min_i64(PANEL_DEPTH, g->k - p);

                pack_slab(g, j, n, p, k, slab);
                multiply_slab(g, j, n, p, k, &grid, slab, packed);
                p += PANEL_DEPTH;
            } while (p < g->k);
        }
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
    const int64_t of_threads = (int64_t)n_threads * (SLAB_COLS + BLOCK_ROWS) * PANEL_DEPTH;

    return parts == 1
               ? gemm_scratch_bytes(n_threads)
               : align_up((size_t)(parts * m * n) * sizeof(float)) + (size_t)of_threads * sizeof(float);
}

/* c (m,n) = the product in depths [begin, end), by one thread; room for its operands at `packed`. */
static void sum_part(const struct gemm *g, int64_t begin, int64_t end, float *c, float *packed)
{
    float *slab = packed + BLOCK_ROWS * PANEL_DEPTH;

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

void gemm_sum(const struct gemm *g, float *scratch, int n_threads)
{
    const int n = n_parts(g->m, g->n, g->k);

    if (n == 1) {
        gemm_run(g, scratch, n_threads);
        return;
    }
    const struct chunks parts = chunks_make(g->k, ceil_div(ceil_div(g->k, n), PANEL_DEPTH) * PANEL_DEPTH);
    const int64_t count = g->m * g->n;
    float *operands = scratch + align_up((size_t)(parts.n * count) * sizeof(float)) / sizeof(float);

#pragma omp parallel num_threads(n_threads)
    {
        float *mine = operands + (int64_t)cpu_thread_idx() * (SLAB_COLS + BLOCK_ROWS) * PANEL_DEPTH;

#pragma omp for schedule(static)
        for (int q = 0; q < parts.n; q++)
            sum_part(g, chunk_first(&parts, q), chunk_end(&parts, q), scratch + q * count, mine);
#pragma omp for simd schedule(static)
        for (int64_t i = 0; i < count; i++) {
            float sum = scratch[i];

            for (int q = 1; q < parts.n; q++)
                sum += scratch[q * count + i];
            g->c[i] = g->add ? g->c[i] + sum : sum;
        }
    }
}

/* ------------------------------------------------------------------ linear */

/* out = or += column sums of x (rows, cols): fp32 over SUM_ROWS rows, fp64 over those. */
static void column_sums(const float *x, int64_t rows, int64_t cols, float *out, bool add)
{
#pragma omp parallel for schedule(static)
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

    (void)e;
    if (dx.c)
        gemm_run(&dx, c->scratch, cpu_of(c->state)->n_threads);
    if (dw.c)
        gemm_sum(&dw, c->scratch, cpu_of(c->state)->n_threads);
    if (n->n_inputs > 2 && c->din[2])
        column_sums(c->dout, M, O, c->din[2], acc_bit(c, 2));
    return 0;
}
