/* philox - counter-based random numbers (Salmon et al., SC'11: Philox4x32-10), the same bits in C and in
 * CUDA.
 *
 * Every random draw of a run is a pure function of a key and a counter, so it depends on what is drawn for
 * (which sample, which step, which site), never on which rank draws it or in which order:
 *
 *   key     = (low 32 bits of the run's seed, high 32 bits of the seed XOR stream)
 *   counter = (position / 4, row or sample, step or epoch, sub-stream)
 *
 * A stream names the purpose: a hash of the site's name (philox_stream), so adding a layer shifts nobody
 * else. Comparisons are integer comparisons, so that every backend draws the same mask.
 */
#ifndef COMMON_PHILOX_H
#define COMMON_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN static __host__ __device__ __forceinline__
#else
#define PHILOX_FN static inline
#endif

struct philox_key {
    uint32_t k0, k1;
};

struct philox_block {
    uint32_t v[4];
};

PHILOX_FN struct philox_block philox(struct philox_key key, uint32_t c0, uint32_t c1, uint32_t c2,
                                     uint32_t c3)
{
    uint32_t k0 = key.k0, k1 = key.k1;

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0;
        uint64_t b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct philox_block out = {{c0, c1, c2, c3}};
    return out;
}

/* Key of one stream of a run. */
PHILOX_FN struct philox_key philox_make_key(uint64_t seed, uint32_t stream)
{
    struct philox_key k = {(uint32_t)seed, (uint32_t)(seed >> 32) ^ stream};
    return k;
}

/* FNV-1a of a name: the stream of the site that bears it. */
static inline uint32_t philox_stream(const char *name)
{
    uint32_t h = 2166136261u;

    while (*name)
        h = (h ^ (uint8_t)*name++) * 16777619u;
    return h;
}

/* A draw u is "drop" when u < philox_threshold(p): P(drop) = p to within 2^-32; p <= 0 never drops. */
PHILOX_FN uint32_t philox_threshold(double p)
{
    return p <= 0 ? 0u : p >= 1 ? 0xFFFFFFFFu : (uint32_t)(p * 4294967296.0);
}

/* Uniform integer in [0, n) by multiply-shift (bias below n / 2^32). */
PHILOX_FN uint32_t philox_below(uint32_t u, uint32_t n)
{
    return (uint32_t)(((uint64_t)u * n) >> 32);
}

/* Uniform in [0, 1), 24 bits: exact in fp32. */
PHILOX_FN float philox_unit(uint32_t u)
{
    return (float)(u >> 8) * 0x1p-24f;
}

#endif
