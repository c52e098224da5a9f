/* cpu - the backend of host memory: kernels of our own, convolutions and matrix products of oneDNN;
 * activations are f32 or, where oneDNN convolves it, bf16 (ops->bf16).
 *
 * Kernels run on the thread that calls them plus its OpenMP team, so they must be called by the thread that
 * called cpu_backend_create(): OpenMP keeps the size of the team per calling thread.
 */
#ifndef BACKEND_CPU_CPU_H
#define BACKEND_CPU_CPU_H

#include "worker/engine/backend.h"

/* n_threads >= 1: threads of every kernel. NULL on error. backend->ops->destroy() frees it. */
struct backend *cpu_backend_create(int n_threads, struct err *e);

/* The best vector instructions of this CPU, for messages: "AVX2". */
const char *cpu_isa(void);

#endif
