/* cpu - the CPU backend: oneDNN for convolution, pooling and GEMM, own kernels for the rest. */
#ifndef BACKEND_CPU_CPU_H
#define BACKEND_CPU_CPU_H

#include "worker/engine/backend.h"

/* n_threads OpenMP threads a rank; >= 1. */
struct backend *cpu_backend_create(int n_threads, struct err *e);

#endif
