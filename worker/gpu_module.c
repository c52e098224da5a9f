/* gpu_module - what the GPU module exports; see gpu.h. The only file that names both CUDA's backend and
 * NCCL's communicator. */
#include "worker/gpu.h"

#include "worker/backend/cuda/cuda.h"
#include "worker/comm/comm_nccl.h"

static struct backend *backend_create(const struct gpu_config *cfg, struct err *e)
{
    struct cuda_config cuda = {
        .device = cfg->device, .allow_tf32 = cfg->allow_tf32, .deterministic = true, .graphs = cfg->graphs};

    return cuda_backend_create(&cuda, e);
}

static struct comm *comm_create(struct comm *host, struct backend *be, int timeout_ms, struct err *e)
{
    struct comm_nccl_config cfg = {.timeout_ms = timeout_ms};

    cuda_backend_streams(be, &cfg.compute_stream, &cfg.comm_stream);
    return comm_nccl_create(host, &cfg, e);
}

static void probe(cJSON *doc)
{
    struct err e = ERR_INIT;
    int n = cuda_device_count(&e);
    cJSON *gpus = cJSON_AddArrayToObject(doc, "gpus");

    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(gpus, cuda_probe_device(i));
    if (n == 0)
        cJSON_AddStringToObject(doc, "gpus_trouble", e.msg);
    cuda_probe_versions(doc);
    cJSON_AddNumberToObject(doc, "nccl", comm_nccl_version());
}

extern const struct gpu_module batchformer_gpu;

__attribute__((visibility("default"))) const struct gpu_module batchformer_gpu = {
    .version = BF_VERSION,
    .device_count = cuda_device_count,
    .backend_create = backend_create,
    .comm_create = comm_create,
    .probe = probe,
};
