/* cpu_panel - see cpu_panel.h.
 *
 * A tile of sums stays in registers while the depth goes by: at each step a row of the right panel is loaded
 * and multiplied by PANEL_ROWS elements of the left one. Where the last panel of columns is one vector wide
 * the tile is twice as high, so that there are always enough independent sums to hide the latency of one.
 */
#include "worker/backend/cpu/cpu_panel.h"

enum { WIDE_VECTORS = PANEL_COLS / VLEN, TALL_PANELS = WIDE_VECTORS };

static int64_t min_of(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ------------------------------------------------------------------ product */

/* Where a tile goes: mr ≤ rows of the tile and w columns of c. */
struct tile_out {
    float *c;
    int64_t ldc;
    const float *bias;
    int mr, w;
    bool add;
};

static ALWAYS_INLINE void store_tile(const struct tile_out *o, int rows, int nv, const v16 *acc)
{
    const bool whole = o->w == nv * VLEN;

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        if (r >= o->mr)
            break;
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            float *c = o->c + r * o->ldc + v * VLEN;
            const int w = whole ? VLEN : (int)min_of(VLEN, o->w - v * VLEN);
            v16 sum = acc[r * nv + v], old;

            if (w <= 0)
                break;
            if (o->add || o->bias) {
                if (whole)
                    v16_load(&old, o->add ? c : o->bias + v * VLEN, VLEN);
                else
                    v16_load(&old, o->add ? c : o->bias + v * VLEN, w);
                sum += old;
            }
            if (whole)
                v16_store(c, &sum, VLEN);
            else
                v16_store(c, &sum, w);
        }
    }
}

/* A tile of n_panels row panels × nv vectors over k steps. Called with constants for n_panels, nv and, where
 * it is one, row. */
static ALWAYS_INLINE void tile(int n_panels, int nv, int64_t k, const struct panel_lhs *lhs, int64_t row,
                               const float *a, const float *b, const struct tile_out *out)
{
    const int rows = n_panels * PANEL_ROWS;
    const int64_t panel = lhs->panel, depth = lhs->depth;
    v16 acc[PANEL_ROWS * WIDE_VECTORS];

#pragma GCC unroll 32
    for (int i = 0; i < rows * nv; i++)
        acc[i] = (v16){0};
    for (int64_t p = 0; p < k; p++) {
        v16 bv[WIDE_VECTORS];

#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            bv[v] = *(const v16 *)(b + v * VLEN);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float x = a[r / PANEL_ROWS * panel + r % PANEL_ROWS * row];

#pragma GCC unroll 2
            for (int v = 0; v < nv; v++)
                acc[r * nv + v] += x * bv[v];
        }
        a += depth;
        b += nv * VLEN;
    }
    store_tile(out, rows, nv, acc);
}

/* All rows against one panel of columns. */
static ALWAYS_INLINE void column(int n_panels, int nv, int64_t m, int64_t k, const struct panel_lhs *lhs,
                                 int64_t row, const float *a, const float *b, struct tile_out out)
{
    const int64_t step = n_panels * PANEL_ROWS;
    int64_t i = 0;

    for (; i + (n_panels - 1) * PANEL_ROWS < m; i += step) {
        out.mr = (int)min_of(step, m - i);
        tile(n_panels, nv, k, lhs, row, a, b, &out);
        a += n_panels * lhs->panel;
        out.c += step * out.ldc;
    }
    if (n_panels > 1 && i < m) {
        out.mr = (int)(m - i);
        tile(1, nv, k, lhs, row, a, b, &out);
    }
}

static void column_wide(int64_t m, int64_t k, const struct panel_lhs *lhs, const float *a, const float *b,
                        const struct tile_out *out)
{
    if (lhs->row == 1)
        column(1, WIDE_VECTORS, m, k, lhs, 1, a, b, *out);
    else
        column(1, WIDE_VECTORS, m, k, lhs, lhs->row, a, b, *out);
}

static void column_narrow(int64_t m, int64_t k, const struct panel_lhs *lhs, const float *a, const float *b,
                          const struct tile_out *out)
{
    if (lhs->row == 1)
        column(TALL_PANELS, 1, m, k, lhs, 1, a, b, *out);
    else
        column(TALL_PANELS, 1, m, k, lhs, lhs->row, a, b, *out);
}

void panel_product(int64_t m, int64_t n, int64_t k, const struct panel_lhs *a, const float *b, float *c,
                   int64_t ldc, const float *bias, bool add)
{
    int64_t p = 0;

    do {
        const int64_t steps = min_of(PANEL_DEPTH, k - p);
        const float *ap = a->at + p * a->depth;

        for (int64_t j = 0; j < n; j += PANEL_COLS) {
            const int w = (int)min_of(PANEL_COLS, n - j);
            const struct tile_out out = {c + j, ldc, bias && p == 0 ? bias + j : NULL, 0, w, add || p > 0};

            if (w > VLEN)
                column_wide(m, steps, a, ap, b + j * k + p * PANEL_COLS, &out);
            else
                column_narrow(m, steps, a, ap, b + j * k + p * VLEN, &out);
        }
        p += steps;
    } while (p < k);
}

/* ------------------------------------------------------------------ packing */

/* lo, hi = a0 b0 a1 b1 … */
static ALWAYS_INLINE void interleave(const v16 *a, const v16 *b, v16 *lo, v16 *hi)
{
    const v16 x = *a, y = *b;

    *lo = __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *hi = __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* v, n rows of 16 elements, becomes its transpose, 16 rows of n, without gaps; n is a constant, a power of
 * two. Interleaving the first half with the second turns an element's index by one bit. */
static ALWAYS_INLINE void transpose(v16 *v, int n)
{
#pragma GCC unroll 4
    for (int done = 1; done < n; done *= 2) {
        v16 u[VLEN];

#pragma GCC unroll 8
        for (int i = 0; i < n / 2; i++)
            interleave(&v[i], &v[i + n / 2], &u[2 * i], &u[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < n; i++)
            v[i] = u[i];
    }
}

/* n lines of w elements, zeros behind them and below the last of `lines`. */
static ALWAYS_INLINE void load_lines(v16 *v, const float *src, int64_t stride, int n, int lines, int w,
                                     float scale)
{
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) {
        v[i] = (v16){0};
        if (i < lines)
            v16_load(&v[i], src + i * stride, w);
        v[i] *= scale;
    }
}

/* One panel from rows that are contiguous in depth. */
static void pack_rows(const float *a, int64_t row, int64_t k, int mr, float scale, float *dst)
{
    v16 v[PANEL_ROWS];
    int64_t p = 0;

    if (mr == PANEL_ROWS)
        for (; p + VLEN <= k; p += VLEN) {
            load_lines(v, a + p, row, PANEL_ROWS, PANEL_ROWS, VLEN, scale);
            transpose(v, PANEL_ROWS);
            memcpy(dst + p * PANEL_ROWS, v, sizeof(v));
        }
    for (; p < k; p += VLEN) {
        const int w = (int)min_of(VLEN, k - p);

        load_lines(v, a + p, row, PANEL_ROWS, mr, w, scale);
        transpose(v, PANEL_ROWS);
        memcpy(dst + p * PANEL_ROWS, v, (size_t)w * PANEL_ROWS * sizeof(float));
    }
}

/* One panel from elements whose rows lie side by side. */
static void pack_row_runs(const float *a, int64_t depth, int64_t k, int mr, float scale, float *dst)
{
    for (int64_t p = 0; p < k; p++) {
        const float *x = a + p * depth;
        float *y = dst + p * PANEL_ROWS;

        if (mr == PANEL_ROWS)
            for (int r = 0; r < PANEL_ROWS; r++)
                y[r] = x[r] * scale;
        else
            for (int r = 0; r < PANEL_ROWS; r++)
                y[r] = r < mr ? x[r] * scale : 0.0f;
    }
}

/* Where an operand's runs lie across the panels, all panels get RUNS of them at a time: memory is read as it
 * lies, not once for each panel. */
enum { RUNS = 8 };

void panel_pack_lhs(const float *a, int64_t row, int64_t depth, int64_t m, int64_t k, float scale, float *dst)
{
    const int64_t step = depth == 1 ? k : RUNS;

    for (int64_t p = 0; p < k; p += step)
        for (int64_t i = 0; i < m; i += PANEL_ROWS) {
            const int mr = (int)min_of(PANEL_ROWS, m - i);

            if (depth == 1)
                pack_rows(a + i * row, row, k, mr, scale, dst + i * k);
            else
                pack_row_runs(a + i + p * depth, depth, min_of(step, k - p), mr, scale,
                              dst + i * k + p * PANEL_ROWS);
        }
}

/* One vector of columns of a panel `width` wide, from columns that are contiguous in depth. */
static void pack_cols(const float *b, int64_t col, int64_t k, int nc, float scale, float *dst, int width)
{
    v16 v[VLEN];
    int64_t p = 0;

    if (nc == VLEN)
        for (; p + VLEN <= k; p += VLEN) {
            load_lines(v, b + p, col, VLEN, VLEN, VLEN, scale);
            transpose(v, VLEN);
            for (int i = 0; i < VLEN; i++)
                *(v16 *)(dst + (p + i) * width) = v[i];
        }
    for (; p < k; p += VLEN) {
        const int w = (int)min_of(VLEN, k - p);

        load_lines(v, b + p, col, VLEN, nc, w, scale);
        transpose(v, VLEN);
        for (int i = 0; i < w; i++)
            *(v16 *)(dst + (p + i) * width) = v[i];
    }
}

/* The same from rows of columns. */
static void pack_col_runs(const float *b, int64_t depth, int64_t k, int nc, float scale, float *dst,
                          int width)
{
    for (int64_t p = 0; p < k; p++) {
        v16 v = {0};

        if (nc == VLEN)
            v16_load(&v, b + p * depth, VLEN);
        else
            v16_load(&v, b + p * depth, nc);
        *(v16 *)(dst + p * width) = v * scale;
    }
}

void panel_pack_rhs(const float *b, int64_t depth, int64_t col, int64_t k, int64_t n, float scale, float *dst)
{
    const int64_t step = depth == 1 ? k : RUNS;

    for (int64_t p = 0; p < k; p += step)
        for (int64_t j = 0; j < n; j += VLEN) {
            const int64_t first = j / PANEL_COLS * PANEL_COLS; /* of the panel */
            const int width = n - first > VLEN ? PANEL_COLS : VLEN;
            const int nc = (int)min_of(VLEN, n - j);
            float *to = dst + first * k + (j - first) + p * width;

            if (depth == 1)
                pack_cols(b + j * col, col, k, nc, scale, to, width);
            else
                pack_col_runs(b + j + p * depth, depth, min_of(step, k - p), nc, scale, to, width);
        }
}
