/* mt19937 - see mt19937.h. Matsumoto and Nishimura 1998, with the 2002 initialisation. */
#include "worker/data/mt19937.h"

enum { MT19937_M = 397 };

void mt19937_seed(struct mt19937 *g, uint32_t seed)
{
    g->state[0] = seed;
    for (uint32_t i = 1; i < MT19937_N; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ g->state[i - 1] >> 30) + i;
    g->next = MT19937_N;
}

static void refill(struct mt19937 *g)
{
    for (int i = 0; i < MT19937_N; i++) {
        uint32_t y = (g->state[i] & 0x80000000u) | (g->state[(i + 1) % MT19937_N] & 0x7fffffffu);
        g->state[i] = g->state[(i + MT19937_M) % MT19937_N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    g->next = 0;
}

uint32_t mt19937_next(struct mt19937 *g)
{
    if (g->next == MT19937_N)
        refill(g);
    uint32_t y = g->state[g->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

uint32_t mt19937_interval(struct mt19937 *g, uint32_t max)
{
    uint32_t mask = max, v;

    if (max == 0)
        return 0;
    for (int shift = 1; shift < 32; shift *= 2)
        mask |= mask >> shift;
    do
        v = mt19937_next(g) & mask;
    while (v > max);
    return v;
}

void mt19937_shuffle(struct mt19937 *g, int32_t *v, int32_t n)
{
    for (int32_t i = n - 1; i > 0; i--) {
        uint32_t j = mt19937_interval(g, (uint32_t)i);
        int32_t t = v[i];
        v[i] = v[j];
        v[j] = t;
    }
}
