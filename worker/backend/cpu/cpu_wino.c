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
#include "worker/backend/cpu/cpu_dtype.h"
#include "worker/backend/cpu/cpu_wino_tile.h"

enum {
    GROUP_ROWS = 12,           /* tiles that a product holds in registers */
    SUM_CHANNELS = 64,         /* products summed in one go */
    PLANES_FLOATS = 64 * 1024, /* aim for the planes of a block: 256 KiB */
    BLOCK_TILES_MAX = 96,
    WIDE_FLOATS_MIN = 4 << 20,    /* of transformed weights: more do not stay in the cache */
    WIDE_PLANES_FLOATS = 3 << 20, /* aim for the planes of patches then: 12 MiB */
    CHUNKS_GRAD_MAX = 8,          /* parts of the weights' gradient, at most */
    GRAD_BYTES_MAX = 24 << 20,    /* and bytes of them */
    GRAD_GROUP = 128,             /* output channels that a thread takes at a time there */
};

/* A tensor (n,h,w,channels), and the tiles that each sample is cut into. */
struct images {
    void *at;
    enum dtype dtype;
    int64_t h, w, channels;
    int64_t ny, nx;
};

/* Where the pixels are only read, constness is cast away here and kept by transform_*(). */
static struct images images_of(const void *at, enum dtype t, int64_t h, int64_t w, int64_t channels)
{
    return (struct images){(void *)(uintptr_t)at, t, h, w, channels, ceil_div(h, TILE), ceil_div(w, TILE)};
}

static struct images input_of(const struct conv_shape *s, const void *x, enum dtype t)
{
    return images_of(x, t, s->h, s->w, s->ci);
}

static struct images output_of(const struct conv_shape *s, const void *y, enum dtype t)
{
    return images_of(y, t, s->ho, s->wo, s->co);
}

static int64_t sample_tiles(const struct images *v)
{
    return v->ny * v->nx;
}

static int64_t sample_floats(const struct images *v)
{
    return v->h * v->w * v->channels;
}

bool wino_fits(const struct conv_shape *s)
{
    const struct images y = output_of(s, NULL, DTYPE_F32);

    if (s->kernel != 3 || s->stride != 1 || s->pad != 1 || s->groups != 1)
        return false;
    if (s->ci % VLEN || s->co % VLEN)
        return false;
    return sample_tiles(&y) * TILE * TILE <= 2 * s->ho * s->wo; /* little of a tile hangs over the edge */
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
    const int64_t fit = PLANES_FLOATS / (POINTS * (C + K)) / GROUP_ROWS * GROUP_ROWS;

    return min_i64(max_i64(fit, least), BLOCK_TILES_MAX);
}

/* ------------------------------------------------------------------ patches and tiles */

static const float outside[VLEN]; /* zeros, of either type */

/* Where sixteen channels of the pixels of a patch or tile lie, and how far it is to the next sixteen. A pixel
 * outside the image is `outside`, for all channels. */
struct pixels {
    uintptr_t at[POINTS];
    uintptr_t step[POINTS];
};

static uintptr_t all_if(bool v)
{
    return v ? ~(uintptr_t)0 : 0;
}

/* `side`×`side` pixels from (y0, x0) of a sample, from channel c on. */
static ALWAYS_INLINE void locate(struct pixels *px, const struct images *v, int64_t sample, int64_t y0,
                                 int64_t x0, int64_t c, int side)
{
    const uintptr_t bytes = dtype_bytes(v->dtype), pixel = (uintptr_t)v->channels * bytes;
    const uintptr_t none = (uintptr_t)outside, next = VLEN * bytes;
    const int64_t at = sample * sample_floats(v) + (y0 * v->w + x0) * v->channels + c;
    const uintptr_t origin = (uintptr_t)v->at + (uintptr_t)at * bytes;
    uintptr_t column[PATCH];

    for (int j = 0; j < side; j++)
        column[j] = all_if(x0 + j >= 0 && x0 + j < v->w);
    for (int i = 0; i < side; i++) {
        const uintptr_t row = all_if(y0 + i >= 0 && y0 + i < v->h);

        for (int j = 0; j < side; j++) {
            const uintptr_t in = row & column[j],
                            here = origin + ((uintptr_t)(i * v->w) + (uintptr_t)j) * pixel;

            px->at[i * side + j] = none + ((here - none) & in);
            px->step[i * side + j] = next & in;
        }
    }
}

/* To the next sixteen channels. */
static ALWAYS_INLINE void advance(struct pixels *px, int n)
{
    for (int i = 0; i < n; i++)
        px->at[i] += px->step[i];
}

/* Tile number `i` of all samples. */
struct place {
    int64_t sample, y, x;
};

static struct place place_of(const struct images *v, int64_t i)
{
    const int64_t n = sample_tiles(v), r = i % n;

    return (struct place){i / n, r / v->nx * TILE, r % v->nx * TILE};
}

static ALWAYS_INLINE void patches_body(const struct images *x, int64_t first, int64_t end, float *planes,
                                       int64_t plane, enum dtype t)
{
    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(x, i);
        struct pixels px;

        locate(&px, x, p.sample, p.y - 1, p.x - 1, 0, PATCH);
        for (int64_t c = 0; c < x->channels; c += VLEN) {
            patch_2d(px.at, t, planes + (i - first) * x->channels + c, plane);
            advance(&px, POINTS);
        }
    }
}

/* Planes (tiles,C) of the patches of tiles [first, end). */
static void transform_patches(const struct images *x, int64_t first, int64_t end, float *planes,
                              int64_t plane)
{
    FOR_DTYPE(x->dtype, patches_body, x, first, end, planes, plane);
}

static ALWAYS_INLINE void tiles_body(const struct images *dy, int64_t k0, int64_t width, int64_t first,
                                     int64_t end, float *planes, int64_t plane, enum dtype t)
{
    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(dy, i);
        struct pixels px;

        locate(&px, dy, p.sample, p.y, p.x, k0, TILE);
        for (int64_t k = 0; k < width; k += VLEN) {
            tile_grad_2d(px.at, t, planes + (i - first) * width + k, plane);
            advance(&px, TILE * TILE);
        }
    }
}

/* Planes (tiles,width) of channels [k0, k0+width) of the tiles [first, end). */
static void transform_tiles(const struct images *dy, int64_t k0, int64_t width, int64_t first, int64_t end,
                            float *planes, int64_t plane)
{
    FOR_DTYPE(dy->dtype, tiles_body, dy, k0, width, first, end, planes, plane);
}

static ALWAYS_INLINE void put_body(const struct images *y, int64_t k0, int64_t width, int64_t first,
                                   int64_t end, const float *planes, int64_t plane, bool add, enum dtype t)
{
    const int64_t K = y->channels;

    for (int64_t i = first; i < end; i++) {
        const struct place p = place_of(y, i);
        const int rows = (int)min_i64(TILE, y->h - p.y), columns = (int)min_i64(TILE, y->w - p.x);
        const int64_t out = p.sample * sample_floats(y) + (p.y * y->w + p.x) * K + k0;

        for (int64_t k = 0; k < width; k += VLEN) {
            v16 v[TILE * TILE], old;

            tile_2d(planes + (i - first) * width + k, plane, v);
            for (int a = 0; a < rows; a++)
                for (int b = 0; b < columns; b++) {
                    const int64_t at = out + (a * y->w + b) * K + k;

                    if (add) {
                        v16_get(&old, y->at, at, VLEN, t);
                        v[a * TILE + b] += old;
                    }
                    v16_put(y->at, at, &v[a * TILE + b], VLEN, t);
                }
        }
    }
}

/* Channels [k0, k0+width) of y's tiles [first, end), as far as they lie within the image, from the planes of
 * results (tiles,width). */
static void put_tiles(const struct images *y, int64_t k0, int64_t width, int64_t first, int64_t end,
                      const float *planes, int64_t plane, bool add)
{
    FOR_DTYPE(y->dtype, put_body, y, k0, width, first, end, planes, plane, add);
}

/* Memory that a block will read or write soon. Transforms come in bursts that the caches cannot keep up with;
 * products leave memory alone, so what comes next is fetched during them, a part with each plane. */
struct soon {
    const char *at, *end;
};

/* The pixels of tiles [first, end), whole tile rows of them. */
static struct soon soon_of(const struct images *v, int64_t first, int64_t end)
{
    const struct place a = place_of(v, first), b = place_of(v, end + v->nx - 1);
    const int64_t row = v->w * v->channels * (int64_t)dtype_bytes(v->dtype);
    const char *at = v->at;

    return (struct soon){at + (a.sample * v->h + a.y) * row, at + (b.sample * v->h + b.y) * row};
}

static ALWAYS_INLINE void fetch(const struct soon *s, int p, bool to_write)
{
    const int64_t lines = (s->end - s->at) / TENSOR_ALIGN_BYTES;

    for (int64_t i = lines * p / POINTS; i < lines * (p + 1) / POINTS; i++) {
        if (to_write)
            __builtin_prefetch(s->at + i * TENSOR_ALIGN_BYTES, 1, 2);
        else
            __builtin_prefetch(s->at + i * TENSOR_ALIGN_BYTES, 0, 2);
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

enum { PANEL = 2 * VLEN }; /* output channels; the last panel may have VLEN */

static int64_t panel_width(const struct filters *f, int64_t k)
{
    return min_i64(PANEL, f->K - k);
}

/* 36 matrices (C, width of the panel that begins at output channel k0), `plane` floats apart. */
static void transform_panel(const struct filters *f, int64_t k0, float *out, int64_t plane)
{
    const int64_t width = panel_width(f, k0);

    for (int64_t k = 0; k < width; k += VLEN)
        for (int64_t c = 0; c < f->C; c++) {
            const float *w = f->w + (k0 + k) * f->of_k + c * f->of_c;
            float lanes[TAPS][VLEN];
            v16 g[TAPS];

            for (int l = 0; l < VLEN; l++)
                for (int r = 0; r < TAPS; r++)
                    lanes[r][l] = w[l * f->of_k + (f->turned ? TAPS - 1 - r : r)];
            for (int r = 0; r < TAPS; r++)
                v16_load(&g[r], lanes[r], VLEN);
            filter_2d(g, out + c * width + k, plane);
        }
}

/* 36 matrices (C,K), each in panels, as products read them. */
static void transform_filters(const struct filters *f, float *out)
{
#pragma omp for schedule(static)
    for (int64_t k = 0; k < f->K; k += PANEL)
        transform_panel(f, k, out + k * f->C, f->C * f->K);
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

/* Where the transformed weights of all channels would not stay in the cache (is_wide()), loops are turned
 * round: the patches of many tiles are transformed together, and each thread takes panels of output channels,
 * transforms their filters, multiplies, and puts their tiles. The sums are the same. scratch: [planes of
 * patches | filters and planes of results of each thread]. */
static bool is_wide(int64_t C, int64_t K)
{
    return POINTS * C * K > WIDE_FLOATS_MIN;
}

static int64_t wide_tiles(int64_t C, int64_t n_tiles)
{
    const int64_t all = ceil_div(n_tiles, GROUP_ROWS) * GROUP_ROWS;

    return min_i64(all, max_i64(WIDE_PLANES_FLOATS / (POINTS * C) / GROUP_ROWS, 1) * GROUP_ROWS);
}

static int64_t wide_thread_floats(int64_t C, int64_t T)
{
    return POINTS * (C * PANEL + plane_floats(T, PANEL));
}

/* Tiles [first, end), whose patches lie in the planes v: one panel of output channels. */
static void convolve_panel(const struct filters *f, int64_t k, const float *v, int64_t plane_v, int64_t first,
                           int64_t end, const struct images *y, bool add, float *mine)
{
    const int64_t width = panel_width(f, k), plane_m = plane_floats(end - first + GROUP_ROWS, width);
    float *u = mine, *m = u + POINTS * f->C * PANEL;

    transform_panel(f, k, u, f->C * width);
    for (int p = 0; p < POINTS; p++)
        multiply_plane(v + p * plane_v, u + p * f->C * width, f->C, width, end - first, m + p * plane_m);
    put_tiles(y, k, width, first, end, m, plane_m, add);
}

static void convolve_wide(const struct filters *f, int64_t n, const struct images *x, const struct images *y,
                          bool add, float *scratch, int n_threads)
{
    const int64_t C = f->C, n_tiles = n * sample_tiles(y), T = wide_tiles(C, n_tiles);
    const int64_t plane = plane_floats(T, C), of_thread = wide_thread_floats(C, T + GROUP_ROWS);
    float *v = scratch;

    (void)n_threads; /* builds without OpenMP */
#pragma omp parallel num_threads(n_threads)
    {
        float *mine = v + POINTS * plane + cpu_thread_idx() * of_thread;

        for (int64_t first = 0; first < n_tiles; first += T) {
            const int64_t end = min_i64(first + T, n_tiles);

#pragma omp for schedule(static)
            for (int64_t i = first; i < end; i += GROUP_ROWS)
                transform_patches(x, i, min_i64(i + GROUP_ROWS, end), v + (i - first) * C, plane);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < f->K; k += PANEL)
                convolve_panel(f, k, v, plane, first, end, y, add, mine);
        }
    }
}

/* y = or += the convolution of n samples x; scratch: [weights | planes of each thread]. */
static void convolve_narrow(const struct filters *f, int64_t n, const struct images *x,
                            const struct images *y, bool add, float *scratch, int n_threads)
{
    const int64_t C = f->C, K = f->K, n_tiles = n * sample_tiles(y);
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
            const struct soon next = soon_of(x, end, min_i64(end + T, n_tiles)), out = soon_of(y, first, end);

            transform_patches(x, first, end, v, plane_v);
            for (int p = 0; p < POINTS; p++) {
                fetch(&next, p, false);
                fetch(&out, p, true);
                multiply_plane(v + p * plane_v, u + p * C * K, C, K, end - first, m + p * plane_m);
            }
            put_tiles(y, 0, K, first, end, m, plane_m, add);
        }
    }
}

static void convolve(const struct filters *f, int64_t n, const struct images *x, const struct images *y,
                     bool add, float *scratch, int n_threads)
{
    if (is_wide(f->C, f->K))
        convolve_wide(f, n, x, y, add, scratch, n_threads);
    else
        convolve_narrow(f, n, x, y, add, scratch, n_threads);
}

static int64_t convolve_floats(const struct conv_shape *s, int64_t C, int64_t K, int n_threads)
{
    const struct images y = output_of(s, NULL, DTYPE_F32); /* as many tiles as x has */
    const int64_t wide = wide_tiles(C, s->n * sample_tiles(&y)), narrow = block_tiles(C, K);

    if (is_wide(C, K))
        return POINTS * plane_floats(wide, C) + n_threads * wide_thread_floats(C, wide + GROUP_ROWS);
    return POINTS * C * K + n_threads * POINTS * (plane_floats(narrow, C) + plane_floats(narrow, K));
}

void wino_forward(const struct conv_shape *s, enum dtype t, const void *x, const float *w, void *y,
                  float *scratch, int n_threads)
{
    const struct filters f = {w, s->ci, s->co, TAPS, s->ci * TAPS, false};
    const struct images in = input_of(s, x, t), out = output_of(s, y, t);

    convolve(&f, s->n, &in, &out, false, scratch, n_threads);
}

void wino_backward_data(const struct conv_shape *s, enum dtype t, const void *dy, const float *w, void *dx,
                        bool add, float *scratch, int n_threads)
{
    const struct filters f = {w, s->co, s->ci, s->ci * TAPS, TAPS, true};
    const struct images in = output_of(s, dy, t), out = input_of(s, dx, t);

    convolve(&f, s->n, &in, &out, add, scratch, n_threads);
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
static void sum_chunk(const struct grad_cut *cut, int chunk, int64_t group, const struct images *x,
                      const struct images *dy, float *planes, float *du)
{
    const int64_t C = x->channels, K = dy->channels;
    const int64_t k0 = group * GRAD_GROUP, width = min_i64(GRAD_GROUP, K - k0);
    const int64_t begin = chunk_first(&cut->samples, chunk) * sample_tiles(dy);
    const int64_t end = chunk_end(&cut->samples, chunk) * sample_tiles(dy);
    const int64_t plane_v = plane_floats(cut->T, C), plane_d = plane_floats(cut->T, width);
    float *d = planes + POINTS * plane_v;

    for (int64_t i = begin; i < end; i += cut->T) {
        const int64_t stop = min_i64(i + cut->T, end), after = min_i64(stop + cut->T, end);
        const struct soon next_x = soon_of(x, stop, after), next_dy = soon_of(dy, stop, after);

        transform_patches(x, i, stop, planes, plane_v);
        transform_tiles(dy, k0, width, i, stop, d, plane_d);
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

void wino_backward_weights(const struct conv_shape *s, enum dtype t, const void *x, const void *dy, float *dw,
                           bool add, float *scratch, int n_threads)
{
    const struct images in = input_of(s, x, t), out = output_of(s, dy, t);
    const struct grad_cut cut = grad_cut_of(s);
    const int64_t of_part = POINTS * s->ci * s->co, of_thread = grad_thread_floats(s, cut.T);
    float *planes = scratch + cut.samples.n * of_part;

    (void)n_threads; /* builds without OpenMP */
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < cut.samples.n * cut.n_groups; i++) {
            const int chunk = (int)(i / cut.n_groups);

            sum_chunk(&cut, chunk, i % cut.n_groups, &in, &out, planes + cpu_thread_idx() * of_thread,
                      scratch + chunk * of_part);
        }
        put_filters(scratch, cut.samples.n, s->ci, s->co, dw, add);
    }
}

size_t wino_scratch_bytes(const struct conv_shape *s, unsigned passes, int n_threads)
{
    const struct grad_cut cut = grad_cut_of(s);
    const int64_t grad = cut.samples.n * POINTS * s->ci * s->co + n_threads * grad_thread_floats(s, cut.T);
    int64_t most = convolve_floats(s, s->ci, s->co, n_threads);

    if (passes >> CONV_BACKWARD_DATA & 1)
        most = max_i64(most, convolve_floats(s, s->co, s->ci, n_threads));
    if (passes >> CONV_BACKWARD_WEIGHTS & 1)
        most = max_i64(most, grad);
    return (size_t)most * sizeof(float);
}
