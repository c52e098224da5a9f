/* test_faults - makes one mistake, named on the command line, which must end the process with a sentence that
 * ctest looks for. Without the mistake the same programs pass (test_programs.cpp). */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include "tests/sim/test_check.h"
#include "tests/sim/test_kernels.h"

namespace
{
enum { N = 64, BYTES = N * sizeof(float) };

/* Two streams, two buffers on each side, an event. */
struct Rig {
    cudaStream_t compute, comm;
    cudaEvent_t event;
    float *x, *y, *pinned, *result;

    Rig()
    {
        cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&comm, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
        cudaMalloc(reinterpret_cast<void **>(&x), BYTES);
        cudaMalloc(reinterpret_cast<void **>(&y), BYTES);
        cudaHostAlloc(reinterpret_cast<void **>(&pinned), BYTES, 0);
        cudaHostAlloc(reinterpret_cast<void **>(&result), BYTES, 0);
        for (int i = 0; i < N; i++)
            pinned[i] = float(i);
        cudaMemcpyAsync(x, pinned, BYTES, cudaMemcpyHostToDevice, compute);
    }
};

void forgotten_wait(Rig &r)
{
    scale_run(r.x, r.y, N, 2, r.compute);
    cudaEventRecord(r.event, r.compute);
    /* missing: cudaStreamWaitEvent(r.comm, r.event, 0) */
    cudaMemcpyAsync(r.result, r.y, BYTES, cudaMemcpyDeviceToHost, r.comm);
    cudaStreamSynchronize(r.comm);
    cudaStreamSynchronize(r.compute);
    printf("result[1] = %g\n", double(r.result[1]));
    fflush(stdout);
}

/* The right way round by chance (eager), but without an event. */
void forgotten_wait_write(Rig &r)
{
    cudaStreamSynchronize(r.compute);
    scale_run(r.x, r.y, N, 2, r.compute);
    cudaMemsetAsync(r.x, 0, BYTES, r.comm);
    cudaStreamSynchronize(r.compute);
    cudaStreamSynchronize(r.comm);
}

/* The event is recorded before the work that it should cover. */
void event_too_early(Rig &r)
{
    cudaEventRecord(r.event, r.compute);
    scale_run(r.x, r.y, N, 2, r.compute);
    cudaStreamWaitEvent(r.comm, r.event, 0);
    cudaMemcpyAsync(r.result, r.y, BYTES, cudaMemcpyDeviceToHost, r.comm);
    cudaDeviceSynchronize();
}

void host_too_early(Rig &r)
{
    scale_run(r.x, r.y, N, 2, r.compute);
    cudaMemcpyAsync(r.result, r.y, BYTES, cudaMemcpyDeviceToHost, r.compute);
    fflush(stdout);
    printf("before the wait: %s\n", r.result[1] == 2 ? "too early" : "poison");
}

void captured_fork(Rig &r, bool wait, bool join)
{
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaEvent_t e2;

    cudaEventCreateWithFlags(&e2, cudaEventDisableTiming);
    cudaStreamBeginCapture(r.compute, cudaStreamCaptureModeThreadLocal);
    if (!wait) {
        cudaEventRecord(r.event, r.compute);
        scale_run(r.x, r.y, N, 2, r.compute);
    } else {
        scale_run(r.x, r.y, N, 2, r.compute);
        cudaEventRecord(r.event, r.compute);
    }
    cudaStreamWaitEvent(r.comm, r.event, 0);
    cudaMemcpyAsync(r.result, r.y, BYTES, cudaMemcpyDeviceToHost, r.comm);
    cudaEventRecord(e2, r.comm);
    if (join)
        cudaStreamWaitEvent(r.compute, e2, 0);
    cudaStreamEndCapture(r.compute, &g);
    cudaGraphInstantiate(&x, g, 0);
    cudaGraphLaunch(x, r.compute);
    cudaStreamSynchronize(r.compute);
}

void in_capture(Rig &r, const std::function<void()> &f)
{
    cudaStreamBeginCapture(r.compute, cudaStreamCaptureModeThreadLocal);
    f();
}

using Case = std::function<void(Rig &)>;

const std::map<std::string, Case> &cases()
{
    static const std::map<std::string, Case> all = {
        {"forgotten_wait", forgotten_wait},
        {"forgotten_wait_write", forgotten_wait_write},
        {"event_too_early", event_too_early},
        {"host_too_early", host_too_early},
        {"graph_forgotten_wait", [](Rig &r) { captured_fork(r, false, true); }},
        {"graph_not_joined", [](Rig &r) { captured_fork(r, true, false); }},
        {"host_reads_device", [](Rig &r) { printf("%g\n", double(r.x[3])); }},
        {"host_writes_device", [](Rig &r) { r.x[3] = 1; }},
        {"host_reads_freed",
         [](Rig &r) {
             cudaFree(r.x);
             printf("%g\n", double(r.x[3]));
         }},
        {"double_free",
         [](Rig &r) {
             cudaFree(r.x);
             cudaFree(r.x);
         }},
        {"double_free_host",
         [](Rig &r) {
             cudaFreeHost(r.pinned);
             cudaFreeHost(r.pinned);
         }},
        {"free_inside", [](Rig &r) { cudaFree(r.x + 1); }},
        {"sync_in_capture", [](Rig &r) { in_capture(r, [&] { cudaStreamSynchronize(r.compute); }); }},
        {"other_sync_in_capture", [](Rig &r) { in_capture(r, [&] { cudaStreamSynchronize(r.comm); }); }},
        {"malloc_in_capture",
         [](Rig &r) { in_capture(r, [&] { cudaMalloc(reinterpret_cast<void **>(&r.y), 4); }); }},
        {"outside_event_in_capture",
         [](Rig &r) {
             cudaEventRecord(r.event, r.comm);
             in_capture(r, [&] { cudaStreamWaitEvent(r.compute, r.event, 0); });
         }},
        {"event_never_recorded", [](Rig &r) { cudaStreamWaitEvent(r.comm, r.event, 0); }},
        {"not_pinned",
         [](Rig &r) {
             float host[N] = {};
             cudaMemcpyAsync(r.x, host, BYTES, cudaMemcpyHostToDevice, r.compute);
         }},
        {"copy_too_long",
         [](Rig &r) { cudaMemcpyAsync(r.x + 1, r.y, BYTES, cudaMemcpyDeviceToDevice, r.compute); }},
        {"wrong_direction",
         [](Rig &r) { cudaMemcpyAsync(r.pinned, r.x, BYTES, cudaMemcpyHostToDevice, r.compute); }},
        {"stream_destroyed_twice",
         [](Rig &r) {
             cudaStreamDestroy(r.comm);
             cudaStreamDestroy(r.comm);
         }},
        {"work_on_destroyed", [](Rig &r) { cudaStreamDestroy(r.compute); }},
        {"empty_grid",
         [](Rig &r) { printf("%s\n", cudaGetErrorString(mistake_run("empty_grid", r.x, r.compute))); }},
        {"kernel_on_host_memory",
         [](Rig &r) {
             std::vector<float> host(N);
             scale_run(host.data(), r.y, N, 2, r.compute);
             cudaStreamSynchronize(r.compute);
         }},
        {"no_memory",
         [](Rig &) {
             void *p;
             printf("%s\n", cudaGetErrorString(cudaMalloc(&p, size_t(1) << 40)));
         }},
    };
    return all;
}
} // namespace

static int run(const char *name)
{
    Rig r;

    auto it = cases().find(name);
    if (it != cases().end()) {
        it->second(r);
    } else {
        if (mistake_run(name, r.x, r.compute) != cudaSuccess)
            return 2;
        cudaStreamSynchronize(r.compute);
    }
    puts("nothing was found");
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    return argc == 2 ? in_child([&] { return run(argv[1]); }) : 2;
}
