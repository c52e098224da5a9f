/* cpu_wino - see cpu_wino.h; the transforms are in cpu_wino_tile.h.
 *
 * Tiles of 4×4 output pixels are numbered through all samples and taken in blocks that fit the second-level
 * cache. A block goes through three stages on one thread: its patches are transformed into 36 planes
 * (tiles × C), each plane is multiplied by its own C × K matrix of transformed weights, and the 36 planes of
 * results (tiles × K) are transformed back. Backward for data is the same with the filters turned round and C
 * and K exchanged. Backward for weights multiplies the planes of x by those of dy, transposed.
 *
 * Letters: C channels read, K channels written (by forward; backward for data reads Co and writes Ci), p one
 * of 36 points.
 */
#include "worker/backend/cpu/cpu_wino.h"
#include <string.h>
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_wino_tile.h"

enum {
    GROUP_ROWS = 12,          /* tiles that a product holds in registers */
    SUM_CHANNELS = 64,        /* products summed in one go */
    BLOCK_FLOATS = 64 * 1024, /* aim for the planes of a block: 256 KiB */
    BLOCK_TILES_MAX = 96,
    CHUNKS_GRAD_MAX = 8,       /* parts of the weights' gradient, at most */
    GRAD_BYTES_MAX = 24 << 20, /* and bytes of them */
    GRAD_GROUP = 128,          /* output channels that a thread takes at a time there */
};

/* The tiles of an image of h×w pixels. */
struct tiles {
    int64_t h, w, ny, nx;
};

static struct tiles tiles_of(int64_t h, int64_t w)
{
    return (struct tiles){h, w, ceil_div(h, TILE), ceil_div(w, TILE)};
}

static int64_t tiles_count(const struct tiles *t)
{
    return t->ny * t->nx;
}

bool wino_fits(const struct conv_shape *s)
{
    const struct tiles t = tiles_of(s->ho, s->wo);

    if (s->kernel != 3 || s->stride != 1 || s->pad != 1 || s->groups != 1)
        return false;
    if (s->ci % VLEN || s->co % VLEN)
        return false;
    return tiles_count(&t) * TILE * TILE <= 2 * s->ho * s->wo; /* little of a tile hangs over the edge */
}

/* Floats between planes: a little more than their size, so that 36 streams do not meet in one cache set. */
static int64_t plane_floats(int64_t tiles, int64_t channels)
{
    return tiles * channels + VLEN;
}

/* Tiles of a block: as many as keep both sets of planes in the cache, and enough for the weights to be used
 * often once they are read. */
static int64_t block_tiles(int64_t C, int64_t K)
{
    const int64_t least = C + K <= 128 ? 2 * GROUP_ROWS : C + K <= 256 ? 4 * GROUP_ROWS : BLOCK_TILES_MAX;
    const int64_t fit = BLOCK_FLOATS / (POINTS * (C + K)) / GROUP_ROWS * GROUP_ROWS;

    return min_i64(max_i64(fit, least), BLOCK_TILES_MAX);
}

/* ------------------------------------------------------------------ patches and tiles */

/* Where the pixels of a patch or tile lie: element offset from the sample, < 0 outside the image. */
struct pixels {
    int64_t at[POINTS];
};

/* `side`×`side` pixels from (y0, x0). */
static ALWAYS_INLINE void locate(struct pixels *px, const struct tiles *t, int64_t C, int64_t y0, int64_t x0,
                                 int side)
{
    for (int i = 0; i < side; i++) {
        const bool row = y0 + i >= 0 && y0 + i < t->h;
        const int64_t at = ((y0 + i) * t->w + x0) * C;

        for (int j = 0; j < side; j++)
            px->at[i * side + j] = row && x0 + j >= 0 && x0 + j < t->w ? at + j * C : -1;
    }
}

/* The vectors of channels c … c+15; 0 outside the image. */
static ALWAYS_INLINE void gather(const float *x, const struct pixels *px, int64_t c, v16 *d, int n)
{
    static const float outside[VLEN] = {0};

#pragma GCC unroll 36
    for (int i = 0; i < n; i++)
        v16_load(&d[i], px->at[i] < 0 ? outside : x + px->at[i] + c, VLEN);
}

/* Tile number `i` of all samples. */
struct place {
    int64_t sample, y, x;
};

static struct place place_of(const struct tiles *t, int64_t i)
{
    const int64_t n = tiles_count(t), r = i % n;

    return (struct place){i / n, r / t->nx * TILE, r % t->nx * TILE};
}

/* Planes of the patches of tiles [first, end) of x (·,h,w,C). */
static void transform_patches(const float *x, const struct tiles *t, int64_t C, int64_t first, int64_t end,
                              float *planes, int64_t plane)
{
    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(t, i);
        struct pixels px;
        v16 d[POINTS];

        locate(&px, t, C, p.y - 1, p.x - 1, PATCH);
        for (int64_t c = 0; c < C; c += VLEN) {
            gather(x + p.sample * t->h * t->w * C, &px, c, d, POINTS);
            patch_2d(d, planes + (i - first) * C + c, plane);
        }
    }
}

/* Planes of channels [k0, k0+width) of the tiles [first, end) of dy (·,h,w,K). */
static void transform_tiles(const float *dy, const struct tiles *t, int64_t K, int64_t k0, int64_t width,
                            int64_t first, int64_t end, float *planes, int64_t plane)
{
    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(t, i);
        struct pixels px;
        v16 d[TILE * TILE];

        locate(&px, t, K, p.y, p.x, TILE);
        for (int64_t k = 0; k < width; k += VLEN) {
            gather(dy + p.sample * t->h * t->w * K, &px, k0 + k, d, TILE * TILE);
            tile_grad_2d(d, planes + (i - first) * width + k, plane);
        }
    }
}

/* y's tiles [first, end) from the planes of results, as far as they lie within the image. */
static void put_tiles(float *y, const struct tiles *t, int64_t K, int64_t first, int64_t end,
                      const float *planes, int64_t plane, bool add)
{
    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(t, i);
        const int rows = (int)min_i64(TILE, t->h - p.y), columns = (int)min_i64(TILE, t->w - p.x);
        float *out = y + ((p.sample * t->h + p.y) * t->w + p.x) * K;

        for (int64_t k = 0; k < K; k += VLEN) {
            v16 v[TILE * TILE], old;

            tile_2d(planes + (i - first) * K + k, plane, v);
            for (int a = 0; a < rows; a++)
                for (int b = 0; b < columns; b++) {
                    float *at = out + (a * t->w + b) * K + k;

                    if (add) {
                        v16_load(&old, at, VLEN);
                        v[a * TILE + b] += old;
                    }
                    v16_store(at, &v[a * TILE + b], VLEN);
                }
        }
    }
}

/* Memory that a block will read or write soon, of floats [at, end). Transforms come in bursts that the caches
 * cannot keep up with; products leave memory alone, so what comes next is fetched during them, a part with
 * each plane. */
struct soon {
    const float *at, *end;
};

/* The pixels of tiles [first, end), whole tile rows of them. */
static struct soon soon_of(const float *x, const struct tiles *t, int64_t C, int64_t first, int64_t end)
{
    const struct place a = place_of(t, first), b = place_of(t, end + t->nx - 1);

    return (struct soon){x + (a.sample * t->h + a.y) * t->w * C,
                         x + (b.sample * t->h + min_i64(b.y, t->h)) * t->w * C};
}

static ALWAYS_INLINE void fetch(const struct soon *s, int p, bool to_write)
{
    const int64_t lines = (s->end - s->at) / VLEN;

    for (int64_t i = lines * p / POINTS; i < lines * (p + 1) / POINTS; i++) {
        if (to_write)
            __builtin_prefetch(s->at + i * VLEN, 1, 2);
        else
            __builtin_prefetch(s->at + i * VLEN, 0, 2);
    }
}

/* ------------------------------------------------------------------ forward and backward for data */

/* Weights as a pass reads them: element (k, c, tap) of `w` at k·of_k + c·of_c + tap, or the taps in reverse.
 */
struct filters {
    const float *w;
    int64_t C, K, of_c, of_k;
    bool turned;
};

/* 36 matrices (C,K), each in panels of 32 columns (the last may be 16), as products read them. */
static void transform_filters(const struct filters *f, float *out)
{
    const int64_t C = f->C, K = f->K;

#pragma omp for schedule(static)
    for (int64_t i = 0; i < K / VLEN * C; i++) {
        const int64_t c = i % C, k = i / C * VLEN;
        const int64_t panel = k / (2 * VLEN) * (2 * VLEN), width = min_i64(2 * VLEN, K - panel);
        const float *w = f->w + k * f->of_k + c * f->of_c;
        float lanes[TAPS][VLEN];
        v16 g[TAPS];

        for (int l = 0; l < VLEN; l++)
            for (int r = 0; r < TAPS; r++)
                lanes[r][l] = w[l * f->of_k + (f->turned ? TAPS - 1 - r : r)];
        for (int r = 0; r < TAPS; r++)
            v16_load(&g[r], lanes[r], VLEN);
        filter_2d(g, out + panel * C + c * width + (k - panel), C * K);
    }
}

/* One plane: m (rows,K) = v (rows,C) · u (C,K in panels), summed over SUM_CHANNELS at a time. Rows beyond the
 * last tile are computed with what is there, and nobody reads them. */
static void multiply_plane(const float *v, const float *u, int64_t C, int64_t K, int64_t rows, float *m)
{
    for (int64_t k = 0; k < K; k += 2 * VLEN, u += 2 * VLEN * C)
        for (int64_t r = 0; r < rows; r += GROUP_ROWS)
            for (int64_t c = 0; c < C; c += SUM_CHANNELS) {
                const float *a = v + r * C + c;
                const int64_t n = min_i64(SUM_CHANNELS, C - c);

                if (K - k >= 2 * VLEN)
                    product_block(a, C, 1, u + c * 2 * VLEN, 2 * VLEN, n, m + r * K + k, K, c > 0, GROUP_ROWS,
                                  2);
                else
                    product_block(a, C, 1, u + c * VLEN, VLEN, n, m + r * K + k, K, c > 0, GROUP_ROWS, 1);
            }
}

/* Fewer tiles than a block has room for where threads would otherwise have nothing to do. */
static int64_t share_tiles(int64_t C, int64_t K, int64_t n_tiles, int n_threads)
{
    const int64_t share = ceil_div(ceil_div(n_tiles, n_threads), GROUP_ROWS) * GROUP_ROWS;

    return min_i64(block_tiles(C, K), share);
}

/* y = or += the convolution of x (n,h,w,C); scratch: [weights | planes of each thread]. */
static void convolve(const struct filters *f, const struct tiles *t, int64_t n, const float *x, float *y,
                     bool add, float *scratch, int n_threads)
{
    const int64_t C = f->C, K = f->K, n_tiles = n * tiles_count(t);
    const int64_t T = share_tiles(C, K, n_tiles, n_threads);
    const int64_t plane_v = plane_floats(T, C), plane_m = plane_floats(T, K);
    float *u = scratch, *planes = u + POINTS * C * K;

#pragma omp parallel num_threads(n_threads)
    {
        float *v = planes + (int64_t)cpu_thread_idx() * POINTS * (plane_v + plane_m);
        float *m = v + POINTS * plane_v;

        transform_filters(f, u);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < ceil_div(n_tiles, T); b++) {
            const int64_t first = b * T, end = min_i64(first + T, n_tiles);
            const struct soon next = soon_of(x, t, C, end, min_i64(end + T, n_tiles));
            const struct soon out = soon_of(y, t, K, first, end);

            transform_patches(x, t, C, first, end, v, plane_v);
            for (int p = 0; p < POINTS; p++) {
                fetch(&next, p, false);
                fetch(&out, p, true);
                multiply_plane(v + p * plane_v, u + p * C * K, C, K, end - first, m + p * plane_m);
            }
            put_tiles(y, t, K, first, end, m, plane_m, add);
        }
    }
}

void wino_forward(const struct conv_shape *s, const float *x, const float *w, float *y, float *scratch,
                  int n_threads)
{
    const struct filters f = {w, s->ci, s->co, TAPS, s->ci * TAPS, false};
    const struct tiles t = tiles_of(s->ho, s->wo);

    convolve(&f, &t, s->n, x, y, false, scratch, n_threads);
}

void wino_backward_data(const struct conv_shape *s, const float *dy, const float *w, float *dx, bool add,
                        float *scratch, int n_threads)
{
    const struct filters f = {w, s->co, s->ci, s->ci * TAPS, TAPS, true};
    const struct tiles t = tiles_of(s->h, s->w);

    convolve(&f, &t, s->n, dy, dx, add, scratch, n_threads);
}

/* ------------------------------------------------------------------ backward for weights */

/* How the sum over tiles is cut: samples into chunks, each with a sum of its own, and output channels into
 * groups. A thread takes a group of a chunk. */
struct grad_cut {
    struct chunks samples;
    int64_t n_groups, T;
};

static struct grad_cut grad_cut_of(const struct conv_shape *s)
{
    const int64_t bytes = POINTS * s->ci * s->co * (int64_t)sizeof(float);
    const int64_t parts = max_i64(min_i64(GRAD_BYTES_MAX / bytes, CHUNKS_GRAD_MAX), 1);
    const int64_t step = ceil_div(s->n, parts);

    return (struct grad_cut){
        .samples = {s->n, step, (int)ceil_div(s->n, step)},
        .n_groups = ceil_div(s->co, GRAD_GROUP),
        .T = block_tiles(s->ci, min_i64(s->co, GRAD_GROUP)),
    };
}

static int64_t grad_thread_floats(const struct conv_shape *s, int64_t T)
{
    return POINTS * (plane_floats(T, s->ci) + plane_floats(T, min_i64(s->co, GRAD_GROUP)));
}

/* One plane: du (C, of rows ldu) = or += vᵀ·d, v (tiles,C), d (tiles,width). */
static void multiply_plane_grad(const float *v, const float *d, int64_t C, int64_t width, int64_t tiles,
                                float *du, int64_t ldu, bool add)
{
    for (int64_t k = 0; k < width; k += 2 * VLEN)
        if (width - k >= 2 * VLEN)
            for (int64_t c = 0; c < C; c += 8)
                product_block(v + c, 1, C, d + k, width, tiles, du + c * ldu + k, ldu, add, 8, 2);
        else
            for (int64_t c = 0; c < C; c += VLEN)
                product_block(v + c, 1, C, d + k, width, tiles, du + c * ldu + k, ldu, add, VLEN, 1);
}

/* The sum over the tiles of a chunk of samples, for one group of channels. planes: a thread's. */
static void sum_chunk(const struct conv_shape *s, const struct grad_cut *cut, int chunk, int64_t group,
                      const float *x, const float *dy, float *planes, float *du)
{
    const struct tiles t = tiles_of(s->ho, s->wo);
    const int64_t C = s->ci, K = s->co, k0 = group * GRAD_GROUP, width = min_i64(GRAD_GROUP, K - k0);
    const int64_t begin = chunk_first(&cut->samples, chunk) * tiles_count(&t);
    const int64_t end = chunk_end(&cut->samples, chunk) * tiles_count(&t);
    const int64_t plane_v = plane_floats(cut->T, C), plane_d = plane_floats(cut->T, width);
    float *d = planes + POINTS * plane_v;

    for (int64_t i = begin; i < end; i += cut->T) {
        const int64_t stop = min_i64(i + cut->T, end), after = min_i64(stop + cut->T, end);
        const struct soon next_x = soon_of(x, &t, C, stop, after), next_dy = soon_of(dy, &t, K, stop, after);

        transform_patches(x, &t, C, i, stop, planes, plane_v);
        transform_tiles(dy, &t, K, k0, width, i, stop, d, plane_d);
        for (int p = 0; p < POINTS; p++) {
            fetch(&next_x, p, false);
            fetch(&next_dy, p, false);
            multiply_plane_grad(planes + p * plane_v, d + p * plane_d, C, width, stop - i,
                                du + p * C * K + k0, K, i > begin);
        }
    }
}

/* dw from the sums of all chunks, `parts` (n_parts,36,C,K). */
static void put_filters(const float *parts, int n_parts, int64_t C, int64_t K, float *dw, bool add)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < C * (K / VLEN); i++) {
        const int64_t c = i / (K / VLEN), k = i % (K / VLEN) * VLEN;
        float *out = dw + (k * C + c) * TAPS, lanes[VLEN];
        v16 t[POINTS], g[TAPS], more;

        for (int p = 0; p < POINTS; p++) {
            const float *at = parts + (p * C + c) * K + k;

            v16_load(&t[p], at, VLEN);
            for (int q = 1; q < n_parts; q++) {
                v16_load(&more, at + q * POINTS * C * K, VLEN);
                t[p] += more;
            }
        }
        filter_grad_2d(t, g);
        for (int r = 0; r < TAPS; r++) {
            v16_store(lanes, &g[r], VLEN);
            for (int l = 0; l < VLEN; l++)
                out[l * C * TAPS + r] = (add ? out[l * C * TAPS + r] : 0.0f) + lanes[l];
        }
    }
}

void wino_backward_weights(const struct conv_shape *s, const float *x, const float *dy, float *dw, bool add,
                           float *scratch, int n_threads)
{
    const struct grad_cut cut = grad_cut_of(s);
    const int64_t of_part = POINTS * s->ci * s->co, of_thread = grad_thread_floats(s, cut.T);
    float *planes = scratch + cut.samples.n * of_part;

#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < cut.samples.n * cut.n_groups; i++) {
            const int chunk = (int)(i / cut.n_groups);

            sum_chunk(s, &cut, chunk, i % cut.n_groups, x, dy, planes + cpu_thread_idx() * of_thread,
                      scratch + chunk * of_part);
        }
        put_filters(scratch, cut.samples.n, s->ci, s->co, dw, add);
    }
}

size_t wino_scratch_bytes(const struct conv_shape *s, unsigned passes, int n_threads)
{
    const struct grad_cut cut = grad_cut_of(s);
    const int64_t u = POINTS * s->ci * s->co, T = block_tiles(s->ci, s->co);
    const int64_t convolve_floats =
        u + n_threads * POINTS * (plane_floats(T, s->ci) + plane_floats(T, s->co));
    const int64_t grad_floats = cut.samples.n * u + n_threads * grad_thread_floats(s, cut.T);

    return (size_t)(passes >> CONV_BACKWARD_WEIGHTS & 1 ? max_i64(convolve_floats, grad_floats)
                                                        : convolve_floats) *
           sizeof(float);
}
