/* cpu_draws - which elements a dropout keeps: the draws of philox.h, computed for many positions at a time.
 *
 * A draw is keyed by (site, sub, step, sample, position), so a mask depends on what it is drawn for only: how
 * rows lie on ranks, and how the caller cuts them, changes nothing.
 */
#ifndef BACKEND_CPU_DRAWS_H
#define BACKEND_CPU_DRAWS_H

#include "common/philox.h"
#include "worker/engine/backend.h"

struct dropout_site {
    struct philox_key key;
    uint32_t threshold;
    float scale; /* of what is kept: 1/(1-p); 0 when p = 1 */
    uint32_t step;
};
struct dropout_site dropout_site_make(const struct step_ctx *step, uint32_t stream, float p);

enum {
    DRAWS_FULL_ROUNDS = 7,
    DRAWS_MAX = 256, /* positions of a range */
    DRAWS_BLOCKS =
        (DRAWS_MAX / 4 + 1 + 7) / 8, /* vectors of 8 Philox blocks that hold them wherever it begins */
};

typedef uint64_t v8u64 __attribute__((vector_size(64)));

/* A range of positions of a site. The first rounds of Philox mix position and sample so little that most of
 * their products depend on the position alone: they are made once for all samples, in low halves of lanes. */
struct draws {
    struct dropout_site site;
    int n, n_vectors;
    int skip; /* positions of the first block that lie before the range */
    v8u64 product[DRAWS_BLOCKS][4];
    v8u64 key[DRAWS_FULL_ROUNDS][2]; /* of the other rounds */
};

/* Positions first … first+n-1, n ≤ DRAWS_MAX. */
void draws_init(struct draws *d, const struct dropout_site *s, uint32_t sub, int64_t first, int n);

/* Bit j % 32 of bits[j / 32] says whether the sample keeps position first+j; what is behind n is undefined.
 */
void draws_keep_bits(const struct draws *d, uint32_t sample, uint32_t bits[DRAWS_BLOCKS]);

/* Multipliers: keep[j] = scale or 0 for positions first … first+n-1 of a sample, any n. */
void dropout_keep(const struct dropout_site *s, uint32_t sample, uint32_t sub, int64_t first, int64_t n,
                  float *keep);

#endif
