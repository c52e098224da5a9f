/* cpu_dtype - one body of a kernel for both types of activations, f32 and bf16: what is read becomes f32,
 * arithmetic is in f32, and what is written is rounded, once, where it is stored.
 *
 * Functions that take the type as an argument and are always_inline cost nothing where it is a constant:
 * kernels are instantiated with FOR_DTYPE. Element-wise loops over floats go through blocks instead: of f32
 * they get the tensor itself, of bf16 a block of it in a buffer on the stack.
 *
 * Rounding to bf16 is to nearest, ties to even; numbers below 2^-126 become zero, and a NaN stays one
 * (quiet). AVX512-BF16 has one instruction for it. Without, integers give the same bits.
 */
#ifndef BACKEND_CPU_DTYPE_H
#define BACKEND_CPU_DTYPE_H

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include "worker/backend/cpu/cpu_internal.h"
#include "worker/backend/cpu/cpu_simd.h"

typedef uint16_t v16h __attribute__((vector_size(32)));
typedef uint16_t v16h_unaligned __attribute__((vector_size(32), aligned(2), may_alias));

static ALWAYS_INLINE void v16_from_bf16(v16 *v, const v16h *h)
{
    *v = (v16)(__builtin_convertvector(*h, v16u) << 16);
}

/* The definition of the rounding. */
static ALWAYS_INLINE void v16_to_bf16_by_integers(v16h *h, const v16 *v)
{
    const v16u u = (v16u)*v, top = u >> 16;
    const v16i magnitude = (v16i)(u & 0x7fffffffu);
    const v16u is_nan = (v16u)(magnitude > 0x7f800000), is_tiny = (v16u)(magnitude < 0x00800000);
    v16u r = (u + 0x7fffu + (top & 1u)) >> 16;

    r = (is_nan & (top | 0x40u)) | (~is_nan & r);
    r = (is_tiny & top & 0x8000u) | (~is_tiny & r);
    *h = __builtin_convertvector(r, v16h);
}

static ALWAYS_INLINE void v16_to_bf16(v16h *h, const v16 *v)
{
#ifdef __AVX512BF16__
    *h = (v16h)_mm512_cvtneps_pbh((__m512)*v);
#else
    v16_to_bf16_by_integers(h, v);
#endif
}

/* Elements at … at+w-1 of a tensor of type t (f32 or bf16), w <= 16; the other lanes are 0. */
static ALWAYS_INLINE void v16_get(v16 *v, const void *p, int64_t at, int w, enum dtype t)
{
    const uint16_t *from = (const uint16_t *)p + at;
    v16h h = {0};

    if (t != DTYPE_BF16) {
        v16_load(v, (const float *)p + at, w);
        return;
    }
    if (w == VLEN)
        h = *(const v16h_unaligned *)from;
    else
        for (int i = 0; i < w; i++)
            h[i] = from[i];
    v16_from_bf16(v, &h);
}

static ALWAYS_INLINE void v16_put(void *p, int64_t at, const v16 *v, int w, enum dtype t)
{
    uint16_t *to = (uint16_t *)p + at;
    v16h h;

    if (t != DTYPE_BF16) {
        v16_store((float *)p + at, v, w);
        return;
    }
    v16_to_bf16(&h, v);
    if (w == VLEN)
        *(v16h_unaligned *)to = h;
    else
        for (int i = 0; i < w; i++)
            to[i] = h[i];
}

static ALWAYS_INLINE float element_of(const void *p, int64_t at, enum dtype t)
{
    v16 v;

    if (t != DTYPE_BF16)
        return ((const float *)p)[at];
    v16_get(&v, p, at, 1, t);
    return v[0];
}

/* f(…, t) with a constant t. */
#define FOR_DTYPE(t, f, ...)                                                                                 \
    do {                                                                                                     \
        if ((t) == DTYPE_BF16)                                                                               \
            f(__VA_ARGS__, DTYPE_BF16);                                                                      \
        else                                                                                                 \
            f(__VA_ARGS__, DTYPE_F32);                                                                       \
    } while (0)

/* ------------------------------------------------------------------ blocks of floats */

/* Of bf16 tensors so many elements at a time are floats, in a buffer of the first-level cache. */
enum { BLOCK_FLOATS = 1024 };

/* dst (n) = elements at … of p, as floats. */
static inline void widen(const void *p, int64_t at, int64_t n, float *dst)
{
    v16 v;
    int64_t i = 0;

    for (; i + VLEN <= n; i += VLEN) {
        v16_get(&v, p, at + i, VLEN, DTYPE_BF16);
        v16_store(dst + i, &v, VLEN);
    }
    if (i < n) {
        v16_get(&v, p, at + i, (int)(n - i), DTYPE_BF16);
        v16_store(dst + i, &v, (int)(n - i));
    }
}

/* Elements at … of p = src (n) rounded, or += when add. */
static inline void narrow(const float *src, void *p, int64_t at, int64_t n, bool add)
{
    for (int64_t i = 0; i < n; i += VLEN) {
        const int w = (int)min_i64(VLEN, n - i);
        v16 v, old;

        v16_load(&v, src + i, w);
        if (add) {
            v16_get(&old, p, at + i, w, DTYPE_BF16);
            v += old;
        }
        v16_put(p, at + i, &v, w, DTYPE_BF16);
    }
}

/* dst = elements at … of p, and the other way. */
static inline void as_floats(float *dst, const void *p, int64_t at, int64_t n, enum dtype t)
{
    if (t == DTYPE_BF16)
        widen(p, at, n, dst);
    else
        memcpy(dst, (const float *)p + at, (size_t)n * sizeof(*dst));
}

static inline void from_floats(void *p, int64_t at, const float *src, int64_t n, enum dtype t)
{
    if (t == DTYPE_BF16)
        narrow(src, p, at, n, false);
    else
        memcpy((float *)p + at, src, (size_t)n * sizeof(*src));
}

/* n <= BLOCK_FLOATS elements of p to read: p itself, or a copy in buf. */
static inline const float *block_of(const void *p, int64_t at, int64_t n, enum dtype t, float *buf)
{
    if (t != DTYPE_BF16)
        return (const float *)p + at;
    widen(p, at, n, buf);
    return buf;
}

/* Where to write n <= BLOCK_FLOATS elements of p: p itself, or buf, which has what p had if it is to be added
 * to. block_done() follows. */
static inline float *block_for(void *p, int64_t at, int64_t n, enum dtype t, float *buf, bool add)
{
    if (t != DTYPE_BF16)
        return (float *)p + at;
    if (add)
        widen(p, at, n, buf);
    return buf;
}

static inline void block_done(void *p, int64_t at, int64_t n, enum dtype t, const float *buf)
{
    if (t == DTYPE_BF16)
        narrow(buf, p, at, n, false);
}

#endif
