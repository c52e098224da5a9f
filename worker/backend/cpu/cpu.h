/* cpu - the backend of host memory: kernels of our own, and of oneDNN where our own do not
 * convolve (cpu_conv.c); activations are f32 or, where oneDNN convolves it, bf16 (ops->bf16).
 *
 * Kernels run on the thread that calls them plus its OpenMP team, so they must be called by the thread that
 * called cpu_backend_create(): OpenMP keeps the size of the team per calling thread.
 */
#ifndef BACKEND_CPU_CPU_H
#define BACKEND_CPU_CPU_H

#include "worker/engine/backend.h"

struct cpu_config {
    int n_threads; /* >= 1: of every kernel */
    bool winograd; /* 3×3 convolutions may take Winograd's algorithm: faster, and rounds otherwise */
};

/* NULL on error. backend->ops->destroy() frees it. */
struct backend *cpu_backend_create(const struct cpu_config *cfg, struct err *e);

/* The best vector instructions of this CPU, for messages: "AVX2". */
const char *cpu_isa(void);

#endif
