/* cpu_attention - what the two passes of attention share: sizes, blocks, and the inputs taken apart.
 *
 * Letters: n local rows (queries), N keys, C width, h heads, d = C/h.
 */
#ifndef BACKEND_CPU_ATTENTION_H
#define BACKEND_CPU_ATTENTION_H

#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_panel.h"

/* Scores are made in tiles of TILE_ROWS queries × KEY_BLOCK keys, which stay in the second-level cache. */
enum {
    TILE_ROWS = 128,
    KEY_BLOCK = DRAWS_MAX,      /* 256 */
    TILE_LD = KEY_BLOCK + VLEN, /* rows a power of two apart would compete for few lines of the cache */
    TILE_FLOATS = TILE_ROWS * TILE_LD,
    GROUP_ROWS = 512, /* queries that share the packed keys of a block; a multiple of TILE_ROWS */
};

struct attention {
    int64_t n, N, C, h, d;
    float scale; /* 1/√d */
    const float *q, *kv;
    float *row_max, *row_sum; /* (h, n), in aux: of a row's scores and of exp(score - maximum) */
    bool drops;
    float keep_scale; /* of the weights that dropout keeps; 1 without dropout */
    struct dropout_site site;
    int64_t query0, key0; /* global sample indices of row 0 of q and of kv */
    int n_threads;
};

int attention_init(struct attention *a, const struct op_call *c, struct err *e);

/* S (rows, keys) = rows of q/√d · keysᵀ, keys padded to a multiple of VLEN by -∞: weights of 0. q: packed, d
 * deep, from the first of the rows. */
void attention_scores(const float *q, const float *keys, int64_t rows, int64_t n_keys, int64_t d, float *S);

/* Bytes of what a call of backward wants of scratch. */
size_t attention_grad_scratch_bytes(const struct node *n, int n_threads);

static inline int64_t attention_round_up(int64_t a, int64_t unit)
{
    return ceil_div(a, unit) * unit;
}

#endif
