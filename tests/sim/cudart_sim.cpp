/* cudart_sim - the CUDA runtime's functions for devices, memory, copies, launches and errors; those for
 * streams, events and graphs are in sim_stream.cpp. See sim.h for the settings.
 *
 * What a program does wrong ends the process with a sentence. What can go wrong in a right one (no memory, a
 * launch of 0 blocks) is returned, as CUDA does.
 */
#include <cstdio>
#include <cstring>
#include <cuda_profiler_api.h>
#include "tests/sim/cuemu.h"
#include "tests/sim/sim.h"

using cusim::die;
using cusim::Lock;
using cusim::Op;

namespace
{
cudaError_t last_error = cudaSuccess;
int current_device = 0;

const char *kind_name(cudaMemcpyKind k)
{
    static const char *const names[] = {"host to host", "host to device", "device to host",
                                        "device to device", "default"};
    return names[k <= cudaMemcpyDefault ? k : cudaMemcpyDefault];
}

cudaMemcpyKind kind_of(const void *dst, const void *src, cudaMemcpyKind k)
{
    if (k != cudaMemcpyDefault)
        return k;
    bool to = cusim::in_device_space(dst), from = cusim::in_device_space(src);
    return to ? (from ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
              : (from ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
}

void check_end(const char *what, bool device, const void *p, size_t n, bool may_be_pageable)
{
    if (device)
        cusim::require_device(what, p, n);
    else if (cusim::in_device_space(p))
        die("%s: %p is device memory where host memory was announced", what, p);
    else if (!may_be_pageable)
        cusim::require_pinned(what, p, n);
}

cudaError_t copy(void *dst, const void *src, size_t n, cudaMemcpyKind k, cudaStream_t s, bool may_be_pageable)
{
    k = kind_of(dst, src, k);
    std::string name = "copy of " + std::to_string(n) + " bytes " + kind_name(k);
    bool to_device = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice;
    bool from_device = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice;

    check_end((name + ", destination").c_str(), to_device, dst, n, may_be_pageable);
    check_end((name + ", source").c_str(), from_device, src, n, may_be_pageable);
    if (!n)
        return cudaSuccess;
    const char *d = static_cast<const char *>(dst), *c = static_cast<const char *>(src);
    if (d < c + n && c < d + n)
        die("%s: the ranges overlap", name.c_str());
    Op op;
    op.name = name;
    op.reads(src, n).writes(dst, n).run = [=] { memcpy(dst, src, n); };
    cusim::stream_push(s, std::move(op));
    return cudaSuccess;
}
} // namespace

cudaError_t cusim::set_error(cudaError_t e)
{
    if (e != cudaSuccess)
        last_error = e;
    return e;
}

void cuemu::enqueue(const char *name, dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                    std::function<void()> body)
{
    Lock lock;
    unsigned long threads = 1ul * block.x * block.y * block.z;

    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        !threads || threads > 1024 || block.z > 64) {
        cusim::set_error(cudaErrorInvalidConfiguration);
        return;
    }
    if (smem_bytes > 48 << 10) {
        cusim::set_error(cudaErrorInvalidValue);
        return;
    }
    Op op;
    op.name = std::string("kernel ") + name;
    op.is_kernel = true;
    op.run = [=] { run_grid(name, grid, block, smem_bytes, body); };
    cusim::stream_push(stream, std::move(op));
}

extern "C" {

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = cusim::settings().devices;
    return *n ? cudaSuccess : cusim::set_error(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= cusim::settings().devices)
        return cusim::set_error(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    if (device < 0 || device >= cusim::settings().devices)
        return cusim::set_error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    std::string name = cusim::rank_setting("CUSIM_NAME");
    snprintf(p->name, sizeof p->name, "%s", name.empty() ? "simulated device" : name.c_str());
    p->uuid.bytes[0] = char(device);
    p->totalGlobalMem = cusim::settings().memory_bytes;
    p->sharedMemPerBlock = 48 << 10;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 64 << 10;
    p->major = 9;
    p->multiProcessorCount = 4;
    p->concurrentKernels = p->asyncEngineCount = 1;
    p->unifiedAddressing = 1;
    p->maxThreadsPerMultiProcessor = 2048;
    p->pciBusID = device + 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device)
{
    if (device < 0 || device >= cusim::settings().devices)
        return cusim::set_error(cudaErrorInvalidDevice);
    switch (attr) {
    case cudaDevAttrMultiProcessorCount:
        *value = 4;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        break;
    default:
        die("cudaDeviceGetAttribute: attribute %d is not simulated", int(attr));
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int n, int device)
{
    if (device < 0 || device >= cusim::settings().devices)
        return cusim::set_error(cudaErrorInvalidDevice);
    snprintf(id, size_t(n), "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned)
{
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    Lock lock;

    *total = cusim::settings().memory_bytes;
    *free_bytes = *total - cusim::device_bytes_used();
    return cudaSuccess;
}

cudaError_t cudaProfilerStart(void)
{
    return cudaSuccess;
}

cudaError_t cudaProfilerStop(void)
{
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    Lock lock;

    cusim::forbid_in_capture("cudaMalloc");
    return cusim::set_error(cusim::device_alloc(p, bytes));
}

/* Waits for the device, as CUDA does. */
cudaError_t cudaFree(void *p)
{
    Lock lock;

    if (!p)
        return cudaSuccess;
    cusim::forbid_in_capture("cudaFree");
    cudaError_t e = cudaDeviceSynchronize();
    cusim::device_free(p, "cudaFree");
    return e;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    Lock lock;

    cusim::forbid_in_capture("cudaHostAlloc");
    cusim::host_alloc(p, bytes);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return cudaHostAlloc(p, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *p)
{
    Lock lock;

    if (!p)
        return cudaSuccess;
    cusim::forbid_in_capture("cudaFreeHost");
    cudaError_t e = cudaDeviceSynchronize();
    cusim::host_free(p);
    return e;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    Lock lock;

    cusim::host_register(p, bytes);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    Lock lock;
    cudaError_t e = cudaDeviceSynchronize();

    cusim::host_unregister(p);
    return e;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    Lock lock;
    uintptr_t x = reinterpret_cast<uintptr_t>(p);

    memset(a, 0, sizeof *a);
    a->device = current_device;
    a->type = cusim::device_find(x)   ? cudaMemoryTypeDevice
              : cusim::pinned_find(x) ? cudaMemoryTypeHost
                                      : cudaMemoryTypeUnregistered;
    if (a->type == cudaMemoryTypeDevice)
        a->devicePointer = const_cast<void *>(p);
    else
        a->hostPointer = const_cast<void *>(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind k, cudaStream_t s)
{
    Lock lock;

    return copy(dst, src, n, k, s, false);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind k)
{
    Lock lock;

    cusim::forbid_in_capture("cudaMemcpy");
    cudaError_t e = copy(dst, src, n, k, nullptr, true);
    return e == cudaSuccess ? cudaStreamSynchronize(nullptr) : e;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t n, cudaStream_t s)
{
    Lock lock;
    Op op;

    op.name = "memset of " + std::to_string(n) + " bytes";
    cusim::require_device(op.name.c_str(), dst, n);
    if (!n)
        return cudaSuccess;
    op.writes(dst, n).run = [=] { memset(dst, value, n); };
    cusim::stream_push(s, std::move(op));
    return cudaSuccess;
}

cudaError_t cudaMemset(void *dst, int value, size_t n)
{
    Lock lock;

    cusim::forbid_in_capture("cudaMemset");
    return cudaMemsetAsync(dst, value, n, nullptr);
}

cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int value, size_t width, size_t height, cudaStream_t s)
{
    Lock lock;
    Op op;
    char *p = static_cast<char *>(dst);

    op.name = "memset of " + std::to_string(width) + "x" + std::to_string(height) + " bytes";
    if (width > pitch)
        return cusim::set_error(cudaErrorInvalidValue);
    if (!width || !height)
        return cudaSuccess;
    cusim::require_device(op.name.c_str(), dst, (height - 1) * pitch + width);
    for (size_t i = 0; i < height; i++)
        op.writes(p + i * pitch, width);
    op.run = [=] {
        for (size_t i = 0; i < height; i++)
            memset(p + i * pitch, value, width);
    };
    cusim::stream_push(s, std::move(op));
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, cudaMemcpyKind k, cudaStream_t s)
{
    Lock lock;
    cudaError_t e = cudaSuccess;

    for (size_t i = 0; i < height && e == cudaSuccess; i++)
        e = copy(static_cast<char *>(dst) + i * dst_pitch, static_cast<const char *>(src) + i * src_pitch,
                 width, k, s, false);
    return e;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg)
{
    Lock lock;
    Op op;

    op.name = "host function";
    op.run = [=] { fn(arg); };
    cusim::stream_push(s, std::move(op));
    return cudaSuccess;
}

/* ---- errors ---- */

cudaError_t cudaGetLastError(void)
{
    Lock lock;
    cudaError_t e = last_error;

    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
        return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
        return "cudaErrorLaunchFailure";
    default:
        return "cudaError (not named by the simulator)";
    }
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return "an error that the simulator has no words for";
    }
}
}
