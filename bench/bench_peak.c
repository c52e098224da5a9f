/* bench_peak - see bench_peak.h. The best of several runs: other load only takes away. */
#include "bench/bench_peak.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/clock.h"
#include "worker/engine/tensor.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { CHAINS = 16, PRODUCTS = 400000, RUNS = 5 };
enum { DRAM_BYTES = 384 << 20, SWEEP_BYTES = 768 << 20 };

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

/* Chains that do not wait for each other: as many as latency times units, and some more. */
static double fp32_chains(float x)
{
    vec acc[CHAINS], a = {0}, b = {0};
    double sum = 0;

    a += x;
    b += 1 - x;
    for (int k = 0; k < CHAINS; k++)
        acc[k] = b + (float)k;
    for (int i = 0; i < PRODUCTS; i++)
        for (int k = 0; k < CHAINS; k++)
            acc[k] = acc[k] * a + b;
    for (int k = 0; k < CHAINS; k++)
        for (int l = 0; l < LANES; l++)
            sum += acc[k][l];
    return sum;
}

#ifdef __AVX512BF16__
static double bf16_chains(float x)
{
    __m512 acc[CHAINS];
    double sum = 0;
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(x));
    const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1 - x), _mm512_set1_ps(x - 1));

    for (int k = 0; k < CHAINS; k++)
        acc[k] = _mm512_set1_ps((float)k);
    for (int i = 0; i < PRODUCTS; i++)
        for (int k = 0; k < CHAINS; k++)
            acc[k] = _mm512_dpbf16_ps(acc[k], a, b);
    for (int k = 0; k < CHAINS; k++)
        sum += _mm512_reduce_add_ps(acc[k]);
    return sum;
}
#endif

/* GFLOP/s of `n_threads` that each run `chains`, which makes flop operations. */
static double peak_of(double (*chains)(float x), double flop, int n_threads)
{
    double best = 0, sum = 0;

    for (int r = 0; r < RUNS; r++) {
        const int64_t start = clock_mono_ns();
#pragma omp parallel for num_threads(n_threads) reduction(+ : sum) schedule(static, 1)
        for (int t = 0; t < n_threads; t++)
            sum += chains(0.5f + 0.01f * (float)t);
        const double rate = flop * n_threads / (double)(clock_mono_ns() - start);
        best = rate > best ? rate : best;
    }
    return sum != sum ? 0 : best; /* the sum is used, so it is computed */
}

/* GB/s of the triad over three arrays of `bytes` together. */
static double triad(float *a, const float *b, const float *c, size_t bytes, int n_threads)
{
    const int64_t n = (int64_t)(bytes / 3 / sizeof *a);
    const int sweeps = (int)(SWEEP_BYTES / bytes);
    double best = 0;

    for (int r = 0; r < RUNS; r++) {
        const int64_t start = clock_mono_ns();
        for (int s = 0; s < sweeps; s++) {
            const float f = 1e-3f * (float)(s + 1);
#pragma omp parallel for simd num_threads(n_threads) schedule(static)
            for (int64_t i = 0; i < n; i++)
                a[i] = b[i] + f * c[i];
        }
        const double rate = (double)bytes * sweeps / (double)(clock_mono_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static int measure_memory(int n_threads, struct bench_peak *out, struct err *e)
{
    const size_t bytes = DRAM_BYTES / 3, n = bytes / sizeof(float);
    float *v[3];
    bool ok = true;

    for (int k = 0; k < 3; k++)
        ok &= (v[k] = aligned_alloc(TENSOR_ALIGN_BYTES, align_up(bytes))) != NULL;
    if (ok) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
        for (int64_t i = 0; i < (int64_t)n; i++)
            v[0][i] = v[1][i] = v[2][i] = 1;
        out->dram_gb_per_s = triad(v[0], v[1], v[2], DRAM_BYTES, n_threads);
        out->cache_gb_per_s = triad(v[0], v[1], v[2], BENCH_CACHE_BYTES, n_threads);
    }
    for (int k = 0; k < 3; k++)
        free(v[k]);
    return ok ? 0 : err_set(e, "out of memory: %d bytes to measure its bandwidth", DRAM_BYTES);
}

/* Of L3, as the kernel knows it: sysconf() may tell of the whole host. */
static double cache_bytes(void)
{
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    long kib = 0;

    if (f && fscanf(f, "%ldK", &kib) != 1)
        kib = 0;
    if (f)
        fclose(f);
    return kib * 1024 > BENCH_CACHE_BYTES ? (double)kib * 1024 : BENCH_CACHE_BYTES;
}

int bench_peak_measure(int n_threads, struct bench_peak *out, struct err *e)
{
    *out = (struct bench_peak){.cache_bytes = cache_bytes()};
    out->fp32_gflop_per_s = peak_of(fp32_chains, 2.0 * LANES * CHAINS * PRODUCTS, n_threads);
#ifdef __AVX512BF16__
    out->bf16_gflop_per_s = peak_of(bf16_chains, 4.0 * LANES * CHAINS * PRODUCTS, n_threads);
#endif
    return measure_memory(n_threads, out, e);
}
