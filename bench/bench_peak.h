/* bench_peak - what the machine reaches: products from registers, and the triad a = b + s·c from memory. */
#ifndef BENCH_BENCH_PEAK_H
#define BENCH_BENCH_PEAK_H

#include "common/err.h"

/* Of all threads together. */
struct bench_peak {
    double fp32_gflop_per_s, bf16_gflop_per_s; /* bf16: 0 where this build has no instruction for it */
    double dram_gb_per_s, cache_gb_per_s;      /* three arrays that do not fit any cache, and that fit L3 */
    double cache_bytes;                        /* of L3; those three where the system does not say */
};

enum { BENCH_CACHE_BYTES = 12 << 20 }; /* of the three arrays that fit */

int bench_peak_measure(int n_threads, struct bench_peak *out, struct err *e);

#endif
