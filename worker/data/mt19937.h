/* mt19937 - NumPy's legacy generator, only as far as long-tailed subsets need it: numpy.random.seed and
 * .shuffle.
 *
 * Published long-tailed subsets are defined by it, so these bits are fixed. Everything else draws with
 * Philox.
 */
#ifndef DATA_MT19937_H
#define DATA_MT19937_H

#include <stdint.h>

enum { MT19937_N = 624 };

struct mt19937 {
    uint32_t state[MT19937_N];
    int next; /* state words already used; MT19937_N = refill first */
};

/* numpy.random.seed(seed) */
void mt19937_seed(struct mt19937 *g, uint32_t seed);

/* The next 32 bits. */
uint32_t mt19937_next(struct mt19937 *g);

/* Uniform integer in [0, max], drawn as NumPy's legacy code does: mask to the smallest 2^k - 1 >= max and
 * reject. max = 0 draws nothing. */
uint32_t mt19937_interval(struct mt19937 *g, uint32_t max);

/* numpy.random.shuffle of a one-dimensional array. */
void mt19937_shuffle(struct mt19937 *g, int32_t *v, int32_t n);

#endif
