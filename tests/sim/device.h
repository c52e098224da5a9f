/* device - what tests of CUDA code share: buffers on the device, bf16 on the host, numbers to compute with. A
 * failed call of the runtime ends the test. To be included after cmocka.h. */
#ifndef TESTS_SIM_DEVICE_H
#define TESTS_SIM_DEVICE_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/tensor.h"

#define CUDA_OK(call)                                                                                        \
    do {                                                                                                     \
        cudaError_t status_ = (call);                                                                        \
        if (status_ != cudaSuccess)                                                                          \
            fail_msg("%s: %s", #call, cudaGetErrorString(status_));                                          \
    } while (0)

/* What a test program without a device returns: "skipped" to ctest. */
enum { EXIT_SKIPPED = 77 };

static inline int device_missing(void)
{
    int n = 0;

    return cudaGetDeviceCount(&n) != cudaSuccess || n == 0;
}

static inline void *device_new(size_t bytes)
{
    void *p = NULL;

    CUDA_OK(cudaMalloc(&p, bytes ? bytes : 1));
    return p;
}

static inline uint16_t bf16_of(float v)
{
    uint32_t u;

    memcpy(&u, &v, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float bf16_to_f(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float v;

    memcpy(&v, &u, sizeof v);
    return v;
}

/* cudaMemcpy() of pageable memory returns when it has read it, which may be before it is on the device; and
 * streams of ours do not wait for the one it goes on. */
static inline void device_write(void *p, const void *host, size_t bytes)
{
    CUDA_OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    CUDA_OK(cudaDeviceSynchronize());
}

/* A buffer of n elements of type t with these values (rounded). */
static inline void *device_upload(const float *v, size_t n, enum dtype t)
{
    void *p = device_new(n * dtype_bytes(t));
    uint16_t *h;

    if (t == DTYPE_F32) {
        device_write(p, v, n * sizeof *v);
        return p;
    }
    h = malloc(n * sizeof *h + 1);
    for (size_t i = 0; i < n; i++)
        h[i] = bf16_of(v[i]);
    device_write(p, h, n * sizeof *h);
    free(h);
    return p;
}

/* What the buffer holds when all is done that was enqueued. */
static inline void device_download(float *v, const void *p, size_t n, enum dtype t)
{
    uint16_t *h;

    CUDA_OK(cudaDeviceSynchronize());
    if (t == DTYPE_F32) {
        CUDA_OK(cudaMemcpy(v, p, n * sizeof *v, cudaMemcpyDeviceToHost));
        return;
    }
    h = malloc(n * sizeof *h + 1);
    CUDA_OK(cudaMemcpy(h, p, n * sizeof *h, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++)
        v[i] = bf16_to_f(h[i]);
    free(h);
}

/* n numbers in [-1, 1) that bf16 holds exactly, the same for one seed. */
static inline float *numbers_new(size_t n, uint32_t seed)
{
    float *v = malloc(n * sizeof *v + 1);

    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        v[i] = (float)((int)(seed >> 25) - 64) / 64.0f;
    }
    return v;
}

/* Fails unless |got - want| <= tolerance·(1 + |want|) everywhere. */
static inline void numbers_check(const char *what, const float *got, const double *want, size_t n,
                                 double tolerance)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * (1 + fabs(want[i]))))
            fail_msg("%s: element %zu is %.9g, not %.9g", what, i, (double)got[i], want[i]);
}

/* Rounding of a result of this type; products and sums are fp32, in any order. */
static inline double tolerance_of(enum dtype t)
{
    return t == DTYPE_BF16 ? 0x1p-8 : 1e-5;
}

#endif
