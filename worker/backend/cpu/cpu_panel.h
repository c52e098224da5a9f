/* cpu_panel - the matrix product that the others are made of: c (m,n) = or += a (m,k) · b (k,n), by one
 * thread, on operands packed into panels.
 *
 * The right operand lies in panels of PANEL_COLS columns, each (k, PANEL_COLS) without gaps (the last may be
 * VLEN wide), zeros where columns end: panels begin at b + j·k for a column j that is a multiple of
 * PANEL_COLS. The left one lies in panels of PANEL_ROWS rows, each (k, PANEL_ROWS), panels at a + i·k; or it
 * is read where it is, by strides. An operand that is used again is packed once.
 *
 * Bits: an element of c is summed over blocks of PANEL_DEPTH in order, in each over k in order from zero. So
 * it depends on its row of a, its column of b and what c was, and on nothing else: not on m, n, the element's
 * place in a tile, nor on how a caller cuts rows and columns.
 */
#ifndef BACKEND_CPU_PANEL_H
#define BACKEND_CPU_PANEL_H

#include <stdbool.h>
#include <stddef.h>
#include "worker/backend/cpu/cpu_simd.h"

enum {
#ifdef __AVX512F__
    PANEL_ROWS = 8, /* 8×32 sums in registers: 16 of 32 vectors */
    PANEL_COLS = 32,
#else
    PANEL_ROWS = 4,
    PANEL_COLS = VLEN,
#endif
    PANEL_DEPTH = 256, /* of a block: its panel of b (32 KiB) stays in the first-level cache */
};

/* The left operand: element (i, p) at at[i / PANEL_ROWS · panel + i % PANEL_ROWS · row + p · depth]. Rows up
 * to the next multiple of PANEL_ROWS are read, whatever is there is not used. */
struct panel_lhs {
    const float *at;
    int64_t panel, row, depth;
};

/* What panel_pack_lhs() wrote, from row 0. */
static inline struct panel_lhs panel_lhs_packed(const float *packed, int64_t k)
{
    return (struct panel_lhs){packed, PANEL_ROWS * k, 1, PANEL_ROWS};
}

/* Element (i, p) at a[i·row + p·depth]; one of the strides is 1. Not good where `row` is a large power of
 * two: such rows compete for few lines of the cache. */
static inline struct panel_lhs panel_lhs_plain(const float *a, int64_t row, int64_t depth)
{
    return (struct panel_lhs){a, PANEL_ROWS * row, row, depth};
}

/* Floats of a packed operand. */
static inline size_t panel_lhs_floats(int64_t m, int64_t k)
{
    return (size_t)((m + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS * k);
}
static inline size_t panel_rhs_floats(int64_t k, int64_t n)
{
    return (size_t)((n + VLEN - 1) / VLEN * VLEN * k);
}

/* dst = scale · a, packed; element (i, p) at a[i·row + p·depth], one of the strides 1. */
void panel_pack_lhs(const float *a, int64_t row, int64_t depth, int64_t m, int64_t k, float scale,
                    float *dst);

/* dst = scale · b, packed; element (p, j) at b[p·depth + j·col], one of the strides 1. dst is aligned to a
 * vector. */
void panel_pack_rhs(const float *b, int64_t depth, int64_t col, int64_t k, int64_t n, float scale,
                    float *dst);

/* c = a·b [+ bias], or c += a·b. bias (n) may be NULL; with add it must be. k = 0 is an empty sum. */
void panel_product(int64_t m, int64_t n, int64_t k, const struct panel_lhs *a, const float *b, float *c,
                   int64_t ldc, const float *bias, bool add);

#endif
