/* cuda - the GPU backend: one GPU a process, kernels of our own for what is bound by memory, cuDNN and
 * cuBLASLt for what is bound by arithmetic.
 *
 * Everything is enqueued on one compute stream, in the order of the calls; nothing waits but download() and
 * sumsq(). Gradients that are summed over ranks while backward goes on use the communication stream
 * (comm_nccl.h). A training step that was made once is recorded as a CUDA graph and replayed.
 */
#ifndef BACKEND_CUDA_CUDA_H
#define BACKEND_CUDA_CUDA_H

#include <cjson/cJSON.h>
#include "worker/engine/backend.h"

struct cuda_config {
    int device;         /* index among the visible GPUs */
    bool allow_tf32;    /* fp32 products on tensor cores, operands rounded to 10 bits of mantissa */
    bool deterministic; /* convolutions by engines that give the same bits every time */
    bool graphs;        /* record steps */
};

struct backend *cuda_backend_create(const struct cuda_config *cfg, struct err *e);

/* cudaStream_t of the compute and the communication stream; the backend keeps them. */
void cuda_backend_streams(struct backend *be, void **compute, void **comm);

/* Number of visible GPUs; 0 with a reason when there is none (no driver, too old a driver, …). */
int cuda_device_count(struct err *e);

/* Name, memory, versions of one GPU and of the libraries, as a JSON object for --probe; the caller's. */
cJSON *cuda_probe_device(int device);

/* Adds the versions of driver, runtime and cuDNN to *doc. */
void cuda_probe_versions(cJSON *doc);

#endif
