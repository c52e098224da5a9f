/* gpu - the GPU backend as one table of functions, in a shared object of its own.
 *
 * CUDA's runtime, cuDNN, cuBLAS and NCCL cost a process 60 ms and hundreds of MB of address space before it
 * has done anything, so a rank loads them only when its job asks for GPUs. The object links its own copies of
 * the engine's and common's functions and exports the table alone: neither has mutable state, and what passes
 * between worker and object are the structs of backend.h and comm.h, whose functions come along in them.
 */
#ifndef WORKER_GPU_H
#define WORKER_GPU_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "worker/engine/backend.h"

#define GPU_MODULE_FILE "batchformer-cuda.so"
#define GPU_MODULE_SYMBOL "batchformer_gpu"

struct gpu_config {
    int device;      /* index among the visible GPUs */
    bool allow_tf32; /* fp32 products on tensor cores */
    bool graphs;     /* record steps */
};

struct gpu_module {
    const char *version; /* BF_VERSION that it was built as */
    /* Number of visible GPUs; 0 with a reason when there is none. */
    int (*device_count)(struct err *e);
    struct backend *(*backend_create)(const struct gpu_config *cfg, struct err *e);
    /* On the memory of a backend from backend_create(); the ranks are those of `host`. Collective. */
    struct comm *(*comm_create)(struct comm *host, struct backend *be, int timeout_ms, struct err *e);
    /* For --probe: adds "gpus", "gpus_trouble" where there is none, and the versions of the libraries. */
    void (*probe)(cJSON *doc);
};

/* The module: GPU_MODULE_FILE beside the running program, else in ../lib/batchformer from there. It stays
 * loaded. NULL, kind ERR_SPEC, where there is none (a build without CUDA); any other kind where there is one
 * that cannot be loaded, with the loader's reason. */
const struct gpu_module *gpu_module_open(struct err *e);

#endif
