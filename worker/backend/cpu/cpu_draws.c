/* cpu_draws - see cpu_draws.h.
 *
 * Philox4x32-10 with counter (position/4, sample, step, sub), eight blocks in the 64-bit lanes of a vector: a
 * round's two products 32×32 → 64 are one instruction each, a product's high half is a shift away, and what
 * is in the high half of a word does not matter. With M0, M1 the multipliers and k(r) the keys of round r:
 *
 *   round 1   a = M0·position         c2 = hi(a)^sub^k1, c3 = lo(a); c0, c1 depend on the sample and on
 * nothing round 2   b = M1·c2 (position)    c0 = hi(b)^…, c1 = lo(b); a = M0·c0 is one number a sample round
 * 3   a = M0·c0 (position)    c2 = hi(a)^…, c3 = lo(a); b = M1·c2 is the first product of both
 *
 * so a sample costs one product in the first three rounds together, and two in each of the other seven.
 */
#include "worker/backend/cpu/cpu_draws.h"
#include "worker/backend/cpu/cpu_simd.h"

enum { WORD_DRAWS = 32 };
enum { LOW_A1, LOW_B2, HIGH_A3, LOW_A3 }; /* in product[]: with the key that they meet next */

static const uint32_t M0 = 0xD2511F53u, M1 = 0xCD9E8D57u;
static const uint32_t step0 = 0x9E3779B9u, step1 = 0xBB67AE85u; /* of the keys, a round */

static uint32_t high(uint64_t x)
{
    return (uint32_t)(x >> 32);
}

/* Low halves multiplied. */
static ALWAYS_INLINE void multiply(v8u64 *out, const v8u64 *a, uint32_t b)
{
#ifdef __AVX512F__
    *out = (v8u64)_mm512_mul_epu32((__m512i)*a, _mm512_set1_epi64(b));
#else
    *out = (*a & 0xFFFFFFFFu) * (uint64_t)b;
#endif
}

struct dropout_site dropout_site_make(const struct step_ctx *step, uint32_t stream, float p)
{
    struct dropout_site s = {
        .key = philox_make_key(step->seed, stream),
        .threshold = philox_threshold(p),
        .scale = p < 1 ? 1.0f / (1.0f - p) : 0.0f,
        .step = (uint32_t)step->step,
    };
    return s;
}

void draws_init(struct draws *d, const struct dropout_site *s, uint32_t sub, int64_t first, int n)
{
    const uint64_t b1 = (uint64_t)M1 * s->step;
    const uint32_t k0 = s->key.k0, k1 = s->key.k1;
    const v8u64 lanes = {0, 1, 2, 3, 4, 5, 6, 7};

    ASSERT(n <= DRAWS_MAX);
    d->site = *s;
    d->n = n;
    d->skip = (int)(first % 4);
    d->n_vectors = (d->skip + n + WORD_DRAWS - 1) / WORD_DRAWS;
    for (int r = 0; r < DRAWS_FULL_ROUNDS; r++) {
        d->key[r][0] = (v8u64){0} + (k0 + (uint32_t)(r + 3) * step0);
        d->key[r][1] = (v8u64){0} + (k1 + (uint32_t)(r + 3) * step1);
    }
    for (int i = 0; i < d->n_vectors; i++) {
        const v8u64 position = lanes + (uint32_t)(first / 4 + 8 * i);
        v8u64 a1, b2, a3, c0, c2, *t = d->product[i];

        multiply(&a1, &position, M0);
        c2 = (a1 >> 32) ^ (sub ^ k1);
        multiply(&b2, &c2, M1);
        c0 = (b2 >> 32) ^ ((uint32_t)b1 ^ (k0 + step0));
        multiply(&a3, &c0, M0);
        t[LOW_A1] = a1 ^ (k1 + step1);
        t[LOW_B2] = b2 ^ (k0 + 2 * step0);
        t[HIGH_A3] = (a3 >> 32) ^ (k1 + 2 * step1);
        t[LOW_A3] = a3;
    }
}

/* Bits 0 1 4 5 8 9 … of the result are bits 0 1 2 3 4 5 … of x, 16 of them. */
static ALWAYS_INLINE uint32_t spread_pairs(uint32_t x)
{
#if defined(__AVX512F__) && defined(__BMI2__)
    return _pdep_u32(x, 0x33333333u);
#else
    x = (x | x << 8) & 0x00FF00FFu;
    x = (x | x << 4) & 0x0F0F0F0Fu;
    return (x | x << 2) & 0x33333333u;
#endif
}

/* Bit l: 32-bit lane l of (low, high) halves is at least the threshold. */
static ALWAYS_INLINE uint32_t at_least(const v8u64 *low, const v8u64 *high_half, uint32_t threshold)
{
    const v8u64 u = (*low & 0xFFFFFFFFu) | *high_half << 32;
#ifdef __AVX512F__
    return _mm512_cmpge_epu32_mask((__m512i)u, _mm512_set1_epi32((int)threshold));
#else
    uint32_t bits = 0;

    for (int l = 0; l < 8; l++)
        bits |= (uint32_t)((uint32_t)u[l] >= threshold) << 2 * l | (uint32_t)(high(u[l]) >= threshold)
                                                                       << (2 * l + 1);
    return bits;
#endif
}

/* The draws of 8 blocks. a2: of the sample. */
static ALWAYS_INLINE uint32_t keep_word(const struct draws *d, const v8u64 *t, uint64_t a2)
{
    v8u64 c0, c2 = t[LOW_A1] ^ high(a2), a = t[LOW_A3], b;

    multiply(&b, &c2, M1);
    c0 = (b >> 32) ^ t[LOW_B2];
    c2 = t[HIGH_A3] ^ (uint32_t)a2;
#pragma GCC unroll 7
    for (int r = 0; r < DRAWS_FULL_ROUNDS; r++) {
        const v8u64 low_a = a, low_b = b;

        multiply(&a, &c0, M0);
        multiply(&b, &c2, M1);
        c0 = (b >> 32) ^ low_b ^ d->key[r][0];
        c2 = (a >> 32) ^ low_a ^ d->key[r][1];
    }
    return spread_pairs(at_least(&c0, &b, d->site.threshold)) |
           spread_pairs(at_least(&c2, &a, d->site.threshold)) << 2;
}

void draws_keep_bits(const struct draws *d, uint32_t sample, uint32_t bits[DRAWS_BLOCKS])
{
    const uint64_t b1 = (uint64_t)M1 * d->site.step;
    const uint64_t a2 = (uint64_t)M0 * (high(b1) ^ sample ^ d->site.key.k0);

    for (int i = 0; i < d->n_vectors; i++)
        bits[i] = keep_word(d, d->product[i], a2);
    if (d->skip)
        for (int i = 0; i < d->n_vectors; i++) {
            const uint32_t next = i + 1 < d->n_vectors ? bits[i + 1] : 0;

            bits[i] = bits[i] >> d->skip | next << (WORD_DRAWS - d->skip);
        }
}

void dropout_keep(const struct dropout_site *s, uint32_t sample, uint32_t sub, int64_t first, int64_t n,
                  float *keep)
{
    struct draws d;
    uint32_t bits[DRAWS_BLOCKS];

    for (int64_t j = 0; j < n; j += DRAWS_MAX) {
        const int w = (int)(n - j < DRAWS_MAX ? n - j : DRAWS_MAX);

        draws_init(&d, s, sub, first + j, w);
        draws_keep_bits(&d, sample, bits);
        for (int i = 0; i < w; i += VLEN) {
            v16 v = (v16){0} + s->scale;

            v16_keep(&v, bits[i / WORD_DRAWS] >> i % WORD_DRAWS);
            v16_store(keep + j + i, &v, w - i < VLEN ? w - i : VLEN);
        }
    }
}
