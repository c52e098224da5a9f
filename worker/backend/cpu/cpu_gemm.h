/* cpu_gemm - matrix products of f32 by all threads, for linear layers and 1×1 convolutions. The same bits for
 * every number of threads.
 */
#ifndef BACKEND_CPU_GEMM_H
#define BACKEND_CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* c (m,n) = a (m,k) · b (k,n) [+ bias], or c += …; element (i, p) of a at a[i·a_row + p·a_depth], (p, j) of b
 * at b[p·b_depth + j·b_col], one stride of each is 1. Any of m, n, k may be 0. */
struct gemm {
    int64_t m, n, k;
    const float *a, *b, *bias;
    int64_t a_row, a_depth, b_depth, b_col;
    float *c;
    bool add;
};

/* A row of c has the same bits whatever rows are beside it. scratch: gemm_scratch_bytes(), aligned to 64. */
void gemm_run(const struct gemm *g, float *scratch, int n_threads);
size_t gemm_scratch_bytes(int n_threads);

/* The same where k is long beside m and n, without a bias; the order of the sum depends on m, n and k. */
void gemm_sum(const struct gemm *g, float *scratch, int n_threads);
size_t gemm_sum_scratch_bytes(int64_t m, int64_t n, int64_t k, int n_threads);

#endif
