/* test_kernels - small kernels for the simulator's tests: right ones, and one for each mistake. */
#ifndef TESTS_SIM_TEST_KERNELS_H
#define TESTS_SIM_TEST_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y[i] = a·x[i] */
cudaError_t scale_run(const float *x, float *y, int n, float a, cudaStream_t s);
/* Sums of blocks, by shared memory, shuffles, votes and atomics: out[b] for 3 blocks; count += n. */
cudaError_t sums_run(const float *x, float *out, int n, int *count, cudaStream_t s);

/* One block of 64 threads of the kernel with this mistake. */
cudaError_t mistake_run(const char *which, float *x, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
