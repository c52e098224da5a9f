/* cpu_wino_tile - the transforms of F(4×4, 3×3), sixteen channels at a time, and the product between them.
 *
 *   Y = Aᵀ[(G g Gᵀ) ∘ (Bᵀ d B)]A          d a 6×6 patch of x, g a 3×3 filter, Y a 4×4 tile of y
 *   dg = Gᵀ[(A dY Aᵀ) ∘ (Bᵀ d B)]G
 *
 * with the interpolation points 0, ±5/8, ±3/2, ∞. Each transform is one-dimensional, first down the columns,
 * then along the rows; *_1d reads its inputs `from` elements apart and writes its outputs `to` elements
 * apart.
 */
#ifndef BACKEND_CPU_CPU_WINO_TILE_H
#define BACKEND_CPU_CPU_WINO_TILE_H

#include <stdbool.h>
#include "worker/backend/cpu/cpu_dtype.h"

enum { TILE = 4, PATCH = 6, POINTS = PATCH * PATCH, TAPS = 9 };

/* The finite points but 0, ±A and ±B, and what the matrices are made of. With these the rounding is half of
 * what ±1, ±2 would give, and every number of Aᵀ and Bᵀ is exact. */
#define WA 0.625f
#define WB 1.5f
#define WA2 (WA * WA)
#define WB2 (WB * WB)

/* Bᵀ: 6 → 6. */
static ALWAYS_INLINE void patch_1d(const v16 *d, int from, v16 *t, int to)
{
    const v16 d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
    const v16 even = d4 - WB2 * d2, odd = d3 - WB2 * d1, even2 = d4 - WA2 * d2, odd2 = d3 - WA2 * d1;

    t[0] = (d4 - (WA2 + WB2) * d2) + WA2 * WB2 * d0;
    t[to] = even + WA * odd;
    t[2 * to] = even - WA * odd;
    t[3 * to] = even2 + WB * odd2;
    t[4 * to] = even2 - WB * odd2;
    t[5 * to] = (d5 - (WA2 + WB2) * d3) + WA2 * WB2 * d1;
}

/* Aᵀ: 6 → 4. */
static ALWAYS_INLINE void tile_1d(const v16 *m, int from, v16 *y, int to)
{
    const v16 m1 = m[from], m2 = m[2 * from], m3 = m[3 * from], m4 = m[4 * from];
    const v16 sum = m1 + m2, diff = m1 - m2, sum2 = m3 + m4, diff2 = m3 - m4;

    y[0] = m[0] + sum + sum2;
    y[to] = WA * diff + WB * diff2;
    y[2 * to] = WA2 * sum + WB2 * sum2;
    y[3 * to] = (m[5 * from] + WA * WA2 * diff) + WB * WB2 * diff2;
}

/* A: 4 → 6. */
static ALWAYS_INLINE void tile_grad_1d(const v16 *y, int from, v16 *m, int to)
{
    const v16 y0 = y[0], y1 = y[from], y2 = y[2 * from], y3 = y[3 * from];
    const v16 even = y0 + WA2 * y2, odd = y1 + WA2 * y3, even2 = y0 + WB2 * y2, odd2 = y1 + WB2 * y3;

    m[0] = y0;
    m[to] = even + WA * odd;
    m[2 * to] = even - WA * odd;
    m[3 * to] = even2 + WB * odd2;
    m[4 * to] = even2 - WB * odd2;
    m[5 * to] = y3;
}

/* The row of G for the points ±P is (1, ±P, P²) / WN(P², Q²), ±Q being the other two; that for 0 is
 * (1, 0, 0) / (A²·B²). */
#define WN(p2, q2) (2 * (p2) * ((p2) - (q2)))
#define GA (1 / WN(WA2, WB2))
#define GB (1 / WN(WB2, WA2))
#define G0 (1 / (WA2 * WB2))

/* G: 3 → 6. */
static ALWAYS_INLINE void filter_1d(const v16 *g, int from, v16 *t, int to)
{
    const v16 g0 = g[0], g1 = g[from], g2 = g[2 * from];
    const v16 even = GA * g0 + GA * WA2 * g2, odd = GA * WA * g1;
    const v16 even2 = GB * g0 + GB * WB2 * g2, odd2 = GB * WB * g1;

    t[0] = G0 * g0;
    t[to] = even + odd;
    t[2 * to] = even - odd;
    t[3 * to] = even2 + odd2;
    t[4 * to] = even2 - odd2;
    t[5 * to] = g2;
}

/* Gᵀ: 6 → 3. */
static ALWAYS_INLINE void filter_grad_1d(const v16 *t, int from, v16 *g, int to)
{
    const v16 t1 = t[from], t2 = t[2 * from], t3 = t[3 * from], t4 = t[4 * from];
    const v16 sum = t1 + t2, sum2 = t3 + t4;

    g[0] = G0 * t[0] + GA * sum + GB * sum2;
    g[to] = GA * WA * (t1 - t2) + GB * WB * (t3 - t4);
    g[2 * to] = GA * WA2 * sum + GB * WB2 * sum2 + t[5 * from];
}

/* out[p], p < 36, `plane` floats apart, from the 6×6 vectors at d, of type t. A column is read just before it
 * is used: there are fewer registers than vectors. */
static ALWAYS_INLINE void patch_2d(const uintptr_t *d, enum dtype t, float *out, int64_t plane)
{
    v16 half[POINTS], row[PATCH];

#pragma GCC unroll 6
    for (int j = 0; j < PATCH; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < PATCH; i++)
            v16_get(&row[i], (const void *)d[i * PATCH + j], 0, VLEN, t);
        patch_1d(row, 1, half + j, PATCH);
    }
#pragma GCC unroll 6
    for (int i = 0; i < PATCH; i++) {
        patch_1d(half + i * PATCH, 1, row, 1);
#pragma GCC unroll 6
        for (int j = 0; j < PATCH; j++)
            v16_store(out + (i * PATCH + j) * plane, &row[j], VLEN);
    }
}

/* The 4×4 vectors of y from in[p], p < 36, `plane` floats apart. */
static ALWAYS_INLINE void tile_2d(const float *in, int64_t plane, v16 *y)
{
    v16 half[TILE * PATCH], column[PATCH];

#pragma GCC unroll 6
    for (int j = 0; j < PATCH; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < PATCH; i++)
            v16_load(&column[i], in + (i * PATCH + j) * plane, VLEN);
        tile_1d(column, 1, half + j, PATCH);
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++)
        tile_1d(half + i * PATCH, 1, y + i * TILE, 1);
}

/* out[p] from the 4×4 vectors at y. */
static ALWAYS_INLINE void tile_grad_2d(const uintptr_t *y, enum dtype t, float *out, int64_t plane)
{
    v16 half[PATCH * TILE], row[PATCH];

#pragma GCC unroll 4
    for (int j = 0; j < TILE; j++) {
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++)
            v16_get(&row[i], (const void *)y[i * TILE + j], 0, VLEN, t);
        tile_grad_1d(row, 1, half + j, TILE);
    }
#pragma GCC unroll 6
    for (int i = 0; i < PATCH; i++) {
        tile_grad_1d(half + i * TILE, 1, row, 1);
#pragma GCC unroll 6
        for (int j = 0; j < PATCH; j++)
            v16_store(out + (i * PATCH + j) * plane, &row[j], VLEN);
    }
}

/* out[p] from the 3×3 vectors of g. */
static ALWAYS_INLINE void filter_2d(const v16 *g, float *out, int64_t plane)
{
    v16 half[PATCH * 3], row[PATCH];

#pragma GCC unroll 3
    for (int j = 0; j < 3; j++)
        filter_1d(g + j, 3, half + j, 3);
#pragma GCC unroll 6
    for (int i = 0; i < PATCH; i++) {
        filter_1d(half + i * 3, 1, row, 1);
#pragma GCC unroll 6
        for (int j = 0; j < PATCH; j++)
            v16_store(out + (i * PATCH + j) * plane, &row[j], VLEN);
    }
}

/* The 3×3 vectors of g from the 6×6 of t. */
static ALWAYS_INLINE void filter_grad_2d(const v16 *t, v16 *g)
{
    v16 half[3 * PATCH];

#pragma GCC unroll 6
    for (int j = 0; j < PATCH; j++)
        filter_grad_1d(t + j, PATCH, half + j, PATCH);
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++)
        filter_grad_1d(half + i * PATCH, 1, g + i * 3, 1);
}

/* c (nr, 16·nv) = or += a·b in registers: a's element (r,k) at a[r·a_row + k·a_k], b's row k at b + k·b_k. nr
 * and nv are constants at the call. What is added to is added to last: sums of sums lose fewer digits.
 * (cpu_panel.h has the product for large operands. Here sums are 64 long at most for the sake of Winograd's
 * rounding, operands are in the cache already, and no row ever needs masking.) */
static ALWAYS_INLINE void product_block(const float *a, int64_t a_row, int64_t a_k, const float *b,
                                        int64_t b_k, int64_t n_k, float *c, int64_t ldc, bool add, int nr,
                                        int nv)
{
    v16 acc[16][2], v[2], old;

#pragma GCC unroll 16
    for (int r = 0; r < nr; r++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            acc[r][j] = (v16){0};
    for (int64_t k = 0; k < n_k; k++, a += a_k, b += b_k) {
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            v16_load(&v[j], b + j * VLEN, VLEN);
#pragma GCC unroll 16
        for (int r = 0; r < nr; r++)
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                acc[r][j] += a[r * a_row] * v[j];
    }
    for (int r = 0; add && r < nr; r++)
        for (int j = 0; j < nv; j++) {
            v16_load(&old, c + r * ldc + j * VLEN, VLEN);
            acc[r][j] += old;
        }
#pragma GCC unroll 16
    for (int r = 0; r < nr; r++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            v16_store(c + r * ldc + j * VLEN, &acc[r][j], VLEN);
}

#endif
