/* cpu_simd - sixteen floats at a time in GNU C's vector types (one cache line; one AVX-512 register, two of
 * AVX, four of SSE: the compiler splits them), and exp and erf written so that a plain loop over them
 * vectorises.
 *
 * Vectors are passed by pointer: by value their calling convention would depend on the instruction set.
 */
#ifndef BACKEND_CPU_SIMD_H
#define BACKEND_CPU_SIMD_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h> /* where GNU C has no word for one instruction */
#endif

enum { VLEN = 16 };

typedef float v16 __attribute__((vector_size(64)));
typedef float v16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* The first w <= 16 lanes from p; the others are 0. Called with a constant w = 16 this is one load. */
static ALWAYS_INLINE void v16_load(v16 *v, const float *p, int w)
{
    if (w == VLEN) {
        *v = *(const v16_unaligned *)p;
    } else {
        *v = (v16){0};
        for (int i = 0; i < w; i++)
            (*v)[i] = p[i];
    }
}

static ALWAYS_INLINE void v16_store(float *p, const v16 *v, int w)
{
    if (w == VLEN)
        *(v16_unaligned *)p = *v;
    else
        for (int i = 0; i < w; i++)
            p[i] = (*v)[i];
}

/* v where sign > 0, else 0. NaN in sign gives 0. */
static ALWAYS_INLINE void v16_mask_positive(v16 *v, const v16 *sign)
{
    *v = (v16)((v16i)*v & (*sign > (v16){0}));
}

/* max(v, 0); a NaN stays one. */
static ALWAYS_INLINE void v16_relu(v16 *v)
{
    *v = (v16)((v16i)*v & ~(*v < (v16){0}));
}

/* e^x for x <= 88, within 2 ulp; 0 below -87.3 (no denormal results); NaN for NaN. */
static ALWAYS_INLINE float simd_expf(float x)
{
    float shifted =
        x * 1.44269504088896341f + 12582912.0f; /* 1.5·2^23: the low bits of the sum are round(x/ln 2) */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    uint32_t bits;
    float two_n, p;

    r = r - n * -2.12194440e-4f;
    memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits << 23) + 0x3F800000u;
    memcpy(&two_n, &bits, sizeof(two_n));
    p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r * r + r + 1.0f) * two_n;
    return x < -87.3f ? 0.0f : p;
}

/* The same, sixteen at a time. */
static ALWAYS_INLINE void v16_exp(v16 *x)
{
    const v16 shifted = *x * 1.44269504088896341f + 12582912.0f;
    const v16 n = shifted - 12582912.0f;
    const v16 r = *x - n * 0.693359375f - n * -2.12194440e-4f;
    const v16 two_n = (v16)(((v16u)shifted << 23) + 0x3F800000u); /* NaN may wrap */
    v16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;

    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r * r + r + 1.0f) * two_n;
    *x = (v16)((v16i)p & ~(*x < -87.3f));
}

/* The larger of each pair; a's lane where either is NaN. */
static ALWAYS_INLINE void v16_max(v16 *a, const v16 *b)
{
#ifdef __AVX512F__
    *a = (v16)_mm512_max_ps((__m512)*b, (__m512)*a);
#else
    const v16i more = *b > *a;

    *a = (v16)(((v16i)*b & more) | ((v16i)*a & ~more));
#endif
}

/* Lane l becomes 0 where bit l of bits is 0. */
static ALWAYS_INLINE void v16_keep(v16 *v, uint32_t bits)
{
#ifdef __AVX512F__
    *v = (v16)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)*v);
#else
    const v16i lanes = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

    *v = (v16)((v16i)*v & ((lanes & (int32_t)bits) != 0));
#endif
}

/* The lanes turned by a half, a quarter, … of them: four times this, and each has met all others. */
static ALWAYS_INLINE void v16_turned(v16 *to, const v16 *v, int by)
{
    const v16 x = *v;

    if (by == 8)
        *to = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    else if (by == 4)
        *to = __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    else if (by == 2)
        *to = __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    else
        *to = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

/* Over the lanes, always in the same order. */
static ALWAYS_INLINE float v16_sum_lanes(const v16 *v)
{
    v16 x = *v, other;

#pragma GCC unroll 4
    for (int by = VLEN / 2; by > 0; by /= 2) {
        v16_turned(&other, &x, by);
        x += other;
    }
    return x[0];
}
static ALWAYS_INLINE float v16_max_lanes(const v16 *v)
{
    v16 x = *v, other;

#pragma GCC unroll 4
    for (int by = VLEN / 2; by > 0; by /= 2) {
        v16_turned(&other, &x, by);
        v16_max(&x, &other);
    }
    return x[0];
}

/* erf(x), absolute error below 5e-7: a rational function in x² on [-4, 4], beyond which erf is ±1 in fp32. */
static ALWAYS_INLINE float simd_erff(float x)
{
    float c = x > 4.0f ? 4.0f : x < -4.0f ? -4.0f : x;
    float s = c * c;
    float p = -2.72614225801306e-10f, q = -1.45660718464996e-05f;

    p = p * s + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    q = q * s + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    return c * p / q;
}

/* How many vectors side by side a loop over rows and channels takes: a longer run of memory at a time, where
 * the registers are enough. */
#ifdef __AVX512F__
enum { WIDE = 4 };
#else
enum { WIDE = 1 };
#endif

/* Calls f(…, nv, w) for blocks of nv vectors × w lanes from channel j = 0 to C: first wide ones, then single
 * vectors, then what is left. f is always_inline: each call has constants for nv and, but for the last, for
 * w. */
#define FOR_CHANNEL_BLOCKS(j, C, f, ...)                                                                     \
    do {                                                                                                     \
        int64_t j = 0;                                                                                       \
        for (; j + WIDE * VLEN <= (C); j += WIDE * VLEN)                                                     \
            f(__VA_ARGS__, WIDE, VLEN);                                                                      \
        for (; j + VLEN <= (C); j += VLEN)                                                                   \
            f(__VA_ARGS__, 1, VLEN);                                                                         \
        if (j < (C))                                                                                         \
            f(__VA_ARGS__, 1, (int)((C)-j));                                                                 \
    } while (0)

/* sum += v, lane by lane, in fp64. */
static ALWAYS_INLINE void add_lanes(double *sum, const v16 *v, int w)
{
    float f[VLEN];

    v16_store(f, v, VLEN);
    for (int l = 0; l < w; l++)
        sum[l] += (double)f[l];
}

#endif
