/* float_sim - number formats of GPUs: bf16 and TF32. */
#ifndef TESTS_SIM_FLOAT_SIM_H
#define TESTS_SIM_FLOAT_SIM_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <cuda_bf16.h>

namespace cusim
{
inline void load_floats(float *to, const char *from, size_t n, bool bf16)
{
    if (!bf16) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        __nv_bfloat16 v;
        memcpy(&v, from + 2 * i, sizeof v);
        to[i] = __bfloat162float(v);
    }
}

inline void store_floats(char *to, const float *from, size_t n, bool bf16)
{
    if (!bf16) {
        memcpy(to, from, n * sizeof *from);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        __nv_bfloat16 v = __float2bfloat16_rn(from[i]);
        memcpy(to + 2 * i, &v, sizeof v);
    }
}

/* 10 bits of mantissa, ties away from zero. */
inline float round_tf32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7f800000u) != 0x7f800000u)
        u = (u + 0x1000u) & ~0x1fffu;
    memcpy(&x, &u, sizeof x);
    return x;
}
} // namespace cusim

#endif
