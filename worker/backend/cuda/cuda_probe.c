/* cuda_probe - what GPUs there are, and whether they can be used. */
#include <cjson/cJSON.h>
#include "worker/backend/cuda/cuda.h"
#include "worker/backend/cuda/cuda_internal.h"

enum { OLDEST_MAJOR = 8 }; /* compute capability that the kernels are compiled for */

int cuda_device_count(struct err *e)
{
    int n = 0, driver = 0, runtime = 0;
    cudaError_t s = cudaGetDeviceCount(&n);

    if (s == cudaSuccess && n > 0)
        return n;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        err_set(e, "no NVIDIA driver is loaded on this host, so there is no GPU to use");
    else if (s == cudaErrorInsufficientDriver)
        err_set(e, "the NVIDIA driver supports CUDA %d.%d, this program needs %d.%d: update the driver",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (s == cudaErrorNoDevice || (s == cudaSuccess && n == 0))
        err_set(e, "this process sees no GPU (is CUDA_VISIBLE_DEVICES empty?)");
    else
        err_set(e, "GPUs cannot be used: %s", cudaGetErrorString(s));
    return 0;
}

static void add_memory(cJSON *doc)
{
    size_t free_bytes = 0, total = 0;

    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        return;
    cJSON_AddNumberToObject(doc, "memory_bytes", (double)total);
    cJSON_AddNumberToObject(doc, "free_bytes", (double)free_bytes);
}

/* A small allocation and a copy there and back: what fails here fails in a run. */
static const char *check_health(void)
{
    unsigned sent = 0x5a17c0deu, back = 0;
    void *p = NULL;

    if (cudaMalloc(&p, sizeof sent) != cudaSuccess)
        return "no memory can be allocated";
    bool ok = cudaMemcpy(p, &sent, sizeof sent, cudaMemcpyHostToDevice) == cudaSuccess &&
              cudaMemcpy(&back, p, sizeof back, cudaMemcpyDeviceToHost) == cudaSuccess;
    cudaFree(p);
    return ok && sent == back ? NULL : "what is copied to it does not come back";
}

cJSON *cuda_probe_device(int device)
{
    struct cudaDeviceProp prop;
    cJSON *doc = cJSON_CreateObject();
    const char *trouble = NULL;

    cJSON_AddNumberToObject(doc, "index", device);
    if (cudaSetDevice(device) != cudaSuccess || cudaGetDeviceProperties(&prop, device) != cudaSuccess) {
        cJSON_AddStringToObject(doc, "trouble", cudaGetErrorString(cudaGetLastError()));
        return doc;
    }
    cJSON_AddStringToObject(doc, "name", prop.name);
    cJSON *capability = cJSON_AddArrayToObject(doc, "compute_capability");
    cJSON_AddItemToArray(capability, cJSON_CreateNumber(prop.major));
    cJSON_AddItemToArray(capability, cJSON_CreateNumber(prop.minor));
    cJSON_AddNumberToObject(doc, "multiprocessors", prop.multiProcessorCount);
    add_memory(doc);
    trouble = prop.major < OLDEST_MAJOR ? "compute capability 8.0 or above is needed" : check_health();
    if (trouble)
        cJSON_AddStringToObject(doc, "trouble", trouble);
    else
        cJSON_AddNullToObject(doc, "trouble");
    return doc;
}

void cuda_probe_versions(cJSON *doc)
{
    int driver = 0, runtime = 0;

    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cJSON_AddNumberToObject(doc, "cuda_driver", driver); /* 13000: CUDA 13.0; 0: no driver */
    cJSON_AddNumberToObject(doc, "cuda_runtime", runtime);
    cJSON_AddNumberToObject(doc, "cudnn", (double)cuda_dnn_version());
}
