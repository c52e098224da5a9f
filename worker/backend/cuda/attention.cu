/* attention - see attention.h.
 *
 * A row is the work of one group of threads: a warp up to 1024 keys, a block beyond. Up to 16384 keys a
 * thread holds its part of the row in registers, so every score is read once and every result written once;
 * longer rows are walked over twice, forward with a running maximum. Lane l of a group of G holds the packs
 * of four keys l, l + G, l + 2G, …, so the order of every sum depends on N alone.
 */
#include "worker/backend/cuda/attention.h"
#include "worker/backend/cuda/rows.cuh"
#include "worker/engine/backend.h"

namespace
{

enum { KEYS = 4, LONG_GROUP = 512 }; /* keys of a pack; threads of a row that is longer than registers hold */

/* A launch, by value. */
struct rows_of {
    struct attention_tile tile;
    struct attention_dropout drop;
    uint32_t threshold;
    float scale;
    bool whole; /* packs are aligned */
};

/* The row of a group of threads. */
struct row {
    int64_t at;      /* its first element in the tile */
    int64_t stat;    /* its place in the row statistics */
    uint32_t sample; /* global index of the query */
    uint32_t head;
    struct draws draws;
};

__device__ __forceinline__ struct row row_of(const struct rows_of &a, int64_t r)
{
    const uint32_t T = (uint32_t)a.tile.rows, head = (uint32_t)r / T, i = (uint32_t)r % T;
    struct row row = {};

    row.at = r * a.tile.ld;
    row.stat = head * a.tile.n + a.tile.first + i;
    row.sample = (uint32_t)(a.drop.query0 + a.tile.first + i);
    row.head = head;
    if (a.drop.p > 0) {
        row.draws.key = philox_make_key(a.drop.step->seed, a.drop.stream);
        row.draws.step = (uint32_t)a.drop.step->step;
        row.draws.threshold = a.threshold;
        row.draws.scale = a.scale;
    }
    return row;
}

/* Bit k: key j + k is kept. */
__device__ __forceinline__ uint32_t keep4(const struct rows_of &a, const struct row &row, int64_t j)
{
    return a.drop.p > 0 ? draw_keep4(row.draws, row.sample, row.head, a.drop.key0 + j) : 15u;
}

/* The factor of a key: 1/(1-p) or 0. */
__device__ __forceinline__ float keep_factor(const struct rows_of &a, uint32_t bits, int k)
{
    return a.drop.p > 0 ? (bits >> k & 1 ? a.scale : 0.0f) : 1.0f;
}

__device__ __forceinline__ float max4(const float (&s)[KEYS])
{
    return fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]));
}

/* Rows of at most GROUP·PACKS·4 keys. */
template <typename T, int GROUP, int PACKS>
__global__ void __launch_bounds__(GROUP_BLOCK<GROUP>)
    attention_softmax_short(struct rows_of a, const float *scores, T *weights, float *row_max, float *row_sum)
{
    const int64_t r = group_row<GROUP>(), N = a.tile.keys;
    const int lane = threadIdx.x % GROUP;
    float s[PACKS][KEYS], max = -INFINITY, sum = 0;

    if (r >= a.tile.heads * a.tile.rows)
        return;
    const struct row row = row_of(a, r);
    UNROLL
    for (int i = 0; i < PACKS; i++) /* all loads are under way before the first is used */
        load_pack(scores + row.at, (int64_t)(i * GROUP + lane) * KEYS, N, a.whole, -INFINITY, s[i]);
    UNROLL
    for (int i = 0; i < PACKS; i++)
        max = fmaxf(max, max4(s[i]));
    max = group_max<GROUP>(max);
    UNROLL
    for (int i = 0; i < PACKS; i++) {
        UNROLL
        for (int k = 0; k < KEYS; k++) {
            s[i][k] = expf(s[i][k] - max);
            sum += s[i][k];
        }
    }
    sum = group_sum<GROUP>(sum);
    if (lane == 0) {
        row_max[row.stat] = max;
        row_sum[row.stat] = sum;
    }
    const float inv = 1.0f / sum;
    UNROLL
    for (int i = 0; i < PACKS; i++) {
        const int64_t j = (int64_t)(i * GROUP + lane) * KEYS;

        if (j < N) {
            const uint32_t bits = keep4(a, row, j);

            UNROLL
            for (int k = 0; k < KEYS; k++)
                s[i][k] *= inv * keep_factor(a, bits, k);
            store_pack(weights + row.at, j, N, a.whole, s[i]);
        }
    }
}

/* Rows of any length: each thread keeps a running maximum and the sum relative to it. */
template <typename T>
__global__ void __launch_bounds__(LONG_GROUP)
    attention_softmax_long(struct rows_of a, const float *scores, T *weights, float *row_max, float *row_sum)
{
    const int64_t N = a.tile.keys;
    const struct row row = row_of(a, blockIdx.x);
    float s[KEYS], max = -INFINITY, sum = 0;

    for (int64_t j = (int64_t)threadIdx.x * KEYS; j < N; j += LONG_GROUP * KEYS) {
        load_pack(scores + row.at, j, N, a.whole, -INFINITY, s);
        const float m = fmaxf(max, max4(s)), base = m == -INFINITY ? 0.0f : m;

        sum *= expf(max - base);
        UNROLL
        for (int k = 0; k < KEYS; k++)
            sum += expf(s[k] - base);
        max = m;
    }
    const float whole_max = group_max<LONG_GROUP>(max);
    sum = group_sum<LONG_GROUP>(sum * expf(max - whole_max));
    if (threadIdx.x == 0) {
        row_max[row.stat] = whole_max;
        row_sum[row.stat] = sum;
    }
    const float inv = 1.0f / sum;
    for (int64_t j = (int64_t)threadIdx.x * KEYS; j < N; j += LONG_GROUP * KEYS) {
        const uint32_t bits = keep4(a, row, j);

        load_pack(scores + row.at, j, N, a.whole, -INFINITY, s);
        UNROLL
        for (int k = 0; k < KEYS; k++)
            s[k] = expf(s[k] - whole_max) * (inv * keep_factor(a, bits, k));
        store_pack(weights + row.at, j, N, a.whole, s);
    }
}

/* Scores and dP̃ of the pack at key j. */
__device__ __forceinline__ void grad_load(const struct rows_of &a, const struct row &row, int64_t j,
                                          const float *scores, const float *dweights, float (&p)[KEYS],
                                          float (&d)[KEYS])
{
    load_pack(scores + row.at, j, a.tile.keys, a.whole, -INFINITY, p);
    load_pack(dweights + row.at, j, a.tile.keys, a.whole, 0.0f, d);
}

/* Makes P of scores and keep∘dP̃ of dP̃; returns the pack's keep bits and adds Σ P·keep∘dP̃ to dot. */
__device__ __forceinline__ uint32_t grad_dot(const struct rows_of &a, const struct row &row, int64_t j,
                                             float max, float inv, float (&p)[KEYS], float (&d)[KEYS],
                                             float *dot)
{
    const uint32_t bits = keep4(a, row, j);

    UNROLL
    for (int k = 0; k < KEYS; k++) {
        p[k] = expf(p[k] - max) * inv;
        d[k] *= keep_factor(a, bits, k);
        *dot += p[k] * d[k];
    }
    return bits;
}

/* Writes dS and, where it is wanted, P̃ of the pack. */
template <typename T>
__device__ __forceinline__ void grad_store(const struct rows_of &a, const struct row &row, int64_t j,
                                           uint32_t bits, float dot, float (&p)[KEYS], float (&d)[KEYS],
                                           T *weights, T *dscores)
{
    UNROLL
    for (int k = 0; k < KEYS; k++) {
        d[k] = p[k] * (d[k] - dot);
        p[k] *= keep_factor(a, bits, k);
    }
    store_pack(dscores + row.at, j, a.tile.keys, a.whole, d);
    if (weights)
        store_pack(weights + row.at, j, a.tile.keys, a.whole, p);
}

template <typename T, int GROUP, int PACKS>
__global__ void __launch_bounds__(GROUP_BLOCK<GROUP>)
    attention_grad_short(struct rows_of a, const float *scores, const float *dweights, const float *row_max,
                         const float *row_sum, T *weights, T *dscores)
{
    const int64_t r = group_row<GROUP>();
    const int lane = threadIdx.x % GROUP;
    float p[PACKS][KEYS], d[PACKS][KEYS], dot = 0;
    uint32_t bits = 0; /* four a pack: PACKS is at most 8 */

    if (r >= a.tile.heads * a.tile.rows)
        return;
    const struct row row = row_of(a, r);
    const float max = row_max[row.stat], inv = 1.0f / row_sum[row.stat];
    UNROLL
    for (int i = 0; i < PACKS; i++) /* all loads are under way before the first is used */
        grad_load(a, row, (int64_t)(i * GROUP + lane) * KEYS, scores, dweights, p[i], d[i]);
    UNROLL
    for (int i = 0; i < PACKS; i++) {
        const int64_t j = (int64_t)(i * GROUP + lane) * KEYS;

        if (j < a.tile.keys)
            bits |= grad_dot(a, row, j, max, inv, p[i], d[i], &dot) << (4 * i);
    }
    dot = group_sum<GROUP>(dot);
    UNROLL
    for (int i = 0; i < PACKS; i++) {
        const int64_t j = (int64_t)(i * GROUP + lane) * KEYS;

        if (j < a.tile.keys)
            grad_store(a, row, j, bits >> (4 * i), dot, p[i], d[i], weights, dscores);
    }
}

template <typename T>
__global__ void __launch_bounds__(LONG_GROUP)
    attention_grad_long(struct rows_of a, const float *scores, const float *dweights, const float *row_max,
                        const float *row_sum, T *weights, T *dscores)
{
    const struct row row = row_of(a, blockIdx.x);
    const float max = row_max[row.stat], inv = 1.0f / row_sum[row.stat];
    const int64_t N = a.tile.keys;
    float p[KEYS], d[KEYS], dot = 0, unused = 0;

    for (int64_t j = (int64_t)threadIdx.x * KEYS; j < N; j += LONG_GROUP * KEYS) {
        grad_load(a, row, j, scores, dweights, p, d);
        grad_dot(a, row, j, max, inv, p, d, &dot);
    }
    dot = group_sum<LONG_GROUP>(dot);
    for (int64_t j = (int64_t)threadIdx.x * KEYS; j < N; j += LONG_GROUP * KEYS) {
        grad_load(a, row, j, scores, dweights, p, d);
        const uint32_t bits = grad_dot(a, row, j, max, inv, p, d, &unused);

        grad_store(a, row, j, bits, dot, p, d, weights, dscores);
    }
}

bool tile_is_valid(const struct attention_tile *t, const struct attention_dropout *d, enum dtype type)
{
    return (type == DTYPE_F32 || type == DTYPE_BF16) && t->heads >= 0 && t->rows >= 0 && t->keys >= 1 &&
           t->ld >= t->keys && t->first >= 0 && t->first + t->rows <= t->n &&
           (t->rows == 0 || t->heads <= INT32_MAX / t->rows) && d->key0 >= 0;
}

struct rows_of rows_make(const struct attention_tile *t, const struct attention_dropout *d, bool whole)
{
    struct rows_of a = {};

    a.tile = *t;
    a.drop = *d;
    a.threshold = philox_threshold(d->p);
    a.scale = d->p < 1 ? 1.0f / (1.0f - d->p) : 0.0f;
    a.whole = whole && t->ld % KEYS == 0;
    return a;
}

/* Calls launch(GROUP, PACKS) for rows of N keys, or launch_long(). */
#define FOR_KEYS(N, launch, launch_long)                                                                     \
    do {                                                                                                     \
        if ((N) <= WARP_LANES * KEYS)                                                                        \
            launch(WARP_LANES, 1);                                                                           \
        else if ((N) <= WARP_LANES * 2 * KEYS)                                                               \
            launch(WARP_LANES, 2);                                                                           \
        else if ((N) <= WARP_LANES * 4 * KEYS)                                                               \
            launch(WARP_LANES, 4);                                                                           \
        else if ((N) <= WARP_LANES * 8 * KEYS)                                                               \
            launch(WARP_LANES, 8);                                                                           \
        else if ((N) <= 256 * 2 * KEYS)                                                                      \
            launch(256, 2);                                                                                  \
        else if ((N) <= 256 * 4 * KEYS)                                                                      \
            launch(256, 4);                                                                                  \
        else if ((N) <= 256 * 8 * KEYS)                                                                      \
            launch(256, 8);                                                                                  \
        else if ((N) <= 512 * 8 * KEYS)                                                                      \
            launch(512, 8);                                                                                  \
        else                                                                                                 \
            launch_long();                                                                                   \
    } while (0)

unsigned row_blocks(int64_t rows, int rows_per_block)
{
    return (unsigned)((rows + rows_per_block - 1) / rows_per_block);
}

template <typename T>
cudaError_t softmax(const struct rows_of &a, const float *scores, T *weights, float *row_max, float *row_sum,
                    cudaStream_t stream)
{
    const int64_t rows = a.tile.heads * a.tile.rows;

#define LAUNCH_SHORT(G, P)                                                                                   \
    BF_LAUNCH((attention_softmax_short<T, G, P>), row_blocks(rows, GROUP_ROWS<G>), GROUP_BLOCK<G>, 0,        \
              stream, a, scores, weights, row_max, row_sum)
#define LAUNCH_LONG()                                                                                        \
    BF_LAUNCH((attention_softmax_long<T>), (unsigned)rows, LONG_GROUP, 0, stream, a, scores, weights,        \
              row_max, row_sum)
    FOR_KEYS(a.tile.keys, LAUNCH_SHORT, LAUNCH_LONG);
#undef LAUNCH_SHORT
#undef LAUNCH_LONG
    return cudaGetLastError();
}

template <typename T>
cudaError_t softmax_grad(const struct rows_of &a, const float *scores, const float *dweights,
                         const float *row_max, const float *row_sum, T *weights, T *dscores,
                         cudaStream_t stream)
{
    const int64_t rows = a.tile.heads * a.tile.rows;

#define LAUNCH_SHORT(G, P)                                                                                   \
    BF_LAUNCH((attention_grad_short<T, G, P>), row_blocks(rows, GROUP_ROWS<G>), GROUP_BLOCK<G>, 0, stream,   \
              a, scores, dweights, row_max, row_sum, weights, dscores)
#define LAUNCH_LONG()                                                                                        \
    BF_LAUNCH((attention_grad_long<T>), (unsigned)rows, LONG_GROUP, 0, stream, a, scores, dweights, row_max, \
              row_sum, weights, dscores)
    FOR_KEYS(a.tile.keys, LAUNCH_SHORT, LAUNCH_LONG);
#undef LAUNCH_SHORT
#undef LAUNCH_LONG
    return cudaGetLastError();
}

} // namespace

cudaError_t attention_softmax(const struct attention_tile *tile, const struct attention_dropout *drop,
                              const float *scores, enum dtype t, void *weights, float *row_max,
                              float *row_sum, cudaStream_t stream)
{
    if (!tile_is_valid(tile, drop, t))
        return cudaErrorInvalidValue;
    if (tile->heads * tile->rows == 0)
        return cudaSuccess;
    const struct rows_of a = rows_make(tile, drop, aligned(scores, 16) && aligned(weights, 16));

    if (t == DTYPE_F32)
        return softmax(a, scores, (float *)weights, row_max, row_sum, stream);
    return softmax(a, scores, (__nv_bfloat16 *)weights, row_max, row_sum, stream);
}

cudaError_t attention_softmax_grad(const struct attention_tile *tile, const struct attention_dropout *drop,
                                   const float *scores, const float *dweights, const float *row_max,
                                   const float *row_sum, enum dtype t, void *weights, void *dscores,
                                   cudaStream_t stream)
{
    if (!tile_is_valid(tile, drop, t))
        return cudaErrorInvalidValue;
    if (tile->heads * tile->rows == 0)
        return cudaSuccess;
    const struct rows_of a = rows_make(tile, drop,
                                       aligned(scores, 16) && aligned(dweights, 16) && aligned(weights, 16) &&
                                           aligned(dscores, 16));

    if (t == DTYPE_F32)
        return softmax_grad(a, scores, dweights, row_max, row_sum, (float *)weights, (float *)dscores,
                            stream);
    return softmax_grad(a, scores, dweights, row_max, row_sum, (__nv_bfloat16 *)weights,
                        (__nv_bfloat16 *)dscores, stream);
}
