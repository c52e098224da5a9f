/* test_ranks - programs of several ranks: a product on a compute stream and its sum over ranks on a
 * communication stream, captured and launched again and again, beside all that NCCL is used for. With an
 * argument: a mistake, which must end the job with a sentence. */
#include <cstring>
#include <string>
#include <unistd.h>
#include <cublas_v2.h>
#include <mpi.h>
#include <nccl.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#else
#define __lsan_do_leak_check() ((void)0)
#define __lsan_disable() ((void)0)
#define __lsan_enable() ((void)0)
#endif
#include "tests/sim/test_check.h"
#include "tests/sim/test_kernels.h"

namespace
{
enum { N = 16 };

struct Rig {
    int rank, size;
    ncclComm_t comm;
    cudaStream_t compute, side;
    cudaEvent_t done, back;
    cublasHandle_t blas;
    float *a, *b, *c, *out;

    explicit Rig(bool own_device)
    {
        ncclUniqueId id;
        std::vector<float> ones(N * N, 1.0f);

        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        MPI_Comm_size(MPI_COMM_WORLD, &size);
        CHECK(cudaSetDevice(own_device ? rank : 0) == cudaSuccess);
        CHECK(ncclGetUniqueId(&id) == ncclSuccess);
        if (ncclCommInitRank(&comm, size, id, rank) != ncclSuccess) {
            puts(ncclGetLastError(nullptr));
            exit(1);
        }
        cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
        cudaEventCreateWithFlags(&back, cudaEventDisableTiming);
        cublasCreate(&blas);
        cublasSetStream(blas, compute);
        a = to_device(ones);
        b = to_device(ones);
        c = static_cast<float *>(device_bytes(N * N * sizeof(float)));
        cudaHostAlloc(reinterpret_cast<void **>(&out), N * N * sizeof(float), 0);
    }
    void gemm()
    {
        float one = 1, zero = 0;
        CHECK(cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, N, N, N, &one, a, CUDA_R_32F, N, b, CUDA_R_32F, N,
                           &zero, c, CUDA_R_32F, N, CUBLAS_COMPUTE_32F,
                           CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    }
    /* The product, and its sum on the other stream. */
    void step()
    {
        gemm();
        cudaEventRecord(done, compute);
        cudaStreamWaitEvent(side, done, 0);
        CHECK(ncclAllReduce(c, c, N * N, ncclFloat32, ncclSum, comm, side) == ncclSuccess);
        cudaEventRecord(back, side);
        cudaStreamWaitEvent(compute, back, 0);
    }
    void fetch()
    {
        cudaMemcpyAsync(out, c, N * N * sizeof(float), cudaMemcpyDeviceToHost, compute);
        CHECK(cudaStreamSynchronize(compute) == cudaSuccess);
    }
    void end()
    {
        for (void *p : {a, b, c})
            cudaFree(p);
        cudaFreeHost(out);
        CHECK(ncclCommFinalize(comm) == ncclSuccess && ncclCommDestroy(comm) == ncclSuccess);
        cublasDestroy(blas);
        cudaEventDestroy(done);
        cudaEventDestroy(back);
        cudaStreamDestroy(compute);
        cudaStreamDestroy(side);
    }
};

void test_training_step(Rig &r)
{
    cudaGraph_t g;
    cudaGraphExec_t x;

    r.step();
    r.fetch();
    CHECK(r.out[0] == float(N * r.size) && r.out[N * N - 1] == float(N * r.size));
    cudaStreamBeginCapture(r.compute, cudaStreamCaptureModeThreadLocal);
    r.step();
    CHECK(cudaStreamEndCapture(r.compute, &g) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&x, g, 0) == cudaSuccess);
    cudaGraphDestroy(g);
    for (int i = 0; i < 3; i++)
        cudaGraphLaunch(x, r.compute);
    r.fetch();
    CHECK(r.out[0] == float(N * r.size));
    cudaGraphExecDestroy(x);
}

template <class T> std::vector<T> ramp(size_t n, int from)
{
    std::vector<T> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = T(from + int(i));
    return v;
}

template <class T> void test_all_reduce(Rig &r, ncclDataType_t type)
{
    T *p = to_device(ramp<T>(10, r.rank));

    CHECK(ncclAllReduce(p, p, 10, type, ncclSum, r.comm, r.side) == ncclSuccess);
    CHECK(cudaStreamSynchronize(r.side) == cudaSuccess);
    CHECK(to_host(p, 10)[3] == T(3 * r.size + r.size * (r.size - 1) / 2));
    CHECK(ncclAllReduce(p, p, 10, type, ncclMax, r.comm, r.side) == ncclSuccess);
    CHECK(cudaStreamSynchronize(r.side) == cudaSuccess);
    cudaFree(p);
}

void test_gather_and_scatter(Rig &r)
{
    float *all = static_cast<float *>(device_bytes(size_t(r.size) * 4 * sizeof(float)));
    float *mine = to_device(ramp<float>(4, 100 * r.rank)),
          *sum = static_cast<float *>(device_bytes(4 * sizeof(float)));

    ncclAllGather(mine, all, 4, ncclFloat32, r.comm, r.side);
    ncclReduceScatter(all, sum, 4, ncclFloat32, ncclSum, r.comm, r.side);
    cudaStreamSynchronize(r.side);
    CHECK(to_host(all, 4 * size_t(r.size))[4 * size_t(r.size) - 1] == float(100 * (r.size - 1) + 3));
    CHECK(to_host(sum, 4)[2] == float(r.size * (100 * r.rank + 2)));
    ncclBroadcast(mine, all, 4, ncclFloat32, r.size - 1, r.comm, r.side);
    cudaStreamSynchronize(r.side);
    CHECK(to_host(all, 4)[0] == float(100 * (r.size - 1)));
    for (float *p : {all, mine, sum})
        cudaFree(p);
}

/* All to all, of different sizes: rank s sends d+1 elements of value 10s + d to rank d. */
void test_group(Rig &r)
{
    size_t n_send = size_t(r.size * (r.size + 1) / 2), n_recv = size_t(r.size * (r.rank + 1)), at = 0;
    std::vector<int> send(n_send);
    for (int d = 0; d < r.size; d++)
        for (int i = 0; i <= d; i++)
            send[at++] = 10 * r.rank + d;
    int *from = to_device(send), *to = to_device(std::vector<int>(n_recv)), *s = from, *d = to;

    CHECK(ncclGroupStart() == ncclSuccess);
    for (int peer = 0; peer < r.size; peer++) {
        ncclSend(s, size_t(peer + 1), ncclInt32, peer, r.comm, r.side);
        ncclRecv(d, size_t(r.rank + 1), ncclInt32, peer, r.comm, r.side);
        s += peer + 1;
        d += r.rank + 1;
    }
    CHECK(ncclGroupEnd() == ncclSuccess);
    CHECK(cudaStreamSynchronize(r.side) == cudaSuccess);
    std::vector<int> got = to_host(to, n_recv);
    for (size_t i = 0; i < n_recv; i++)
        CHECK(got[i] == 10 * (int(i) / (r.rank + 1)) + r.rank);
    /* Uneven gather: a group of broadcasts and of reductions. */
    CHECK(ncclGroupStart() == ncclSuccess);
    for (int root = 0; root < r.size; root++)
        ncclReduce(from, root == r.rank ? to : nullptr, 1, ncclInt32, ncclSum, root, r.comm, r.side);
    CHECK(ncclGroupEnd() == ncclSuccess);
    CHECK(cudaStreamSynchronize(r.side) == cudaSuccess);
    CHECK(to_host(to, 1)[0] == 10 * r.size * (r.size - 1) / 2);
    cudaFree(from);
    cudaFree(to);
}

/* Two streams of a communicator, and ranks that wait for them in different order, some of them in MPI. */
void test_orders(Rig &r)
{
    float *p = to_device(ramp<float>(4, 0)), *q = to_device(ramp<float>(4, 0));

    ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.side);
    ncclAllReduce(q, q, 4, ncclFloat32, ncclSum, r.comm, r.compute);
    if (r.rank % 2)
        MPI_Barrier(MPI_COMM_WORLD);
    cudaStreamSynchronize(r.rank % 2 ? r.compute : r.side);
    cudaStreamSynchronize(r.rank % 2 ? r.side : r.compute);
    if (r.rank % 2 == 0)
        MPI_Barrier(MPI_COMM_WORLD);
    CHECK(to_host(p, 4)[1] == float(r.size) && to_host(q, 4)[2] == float(2 * r.size));
    cudaFree(p);
    cudaFree(q);
}

/* The error reaches the host of the rank where it happened, and abort sets its streams free. */
void injected(Rig &r)
{
    ncclResult_t async = ncclSuccess;

    ncclAllReduce(r.a, r.a, N, ncclFloat32, ncclSum, r.comm, r.side);
    cudaEventRecord(r.done, r.side);
    for (int polls = 0; polls < 2000 && async == ncclSuccess; polls++) {
        CHECK(cudaEventQuery(r.done) == cudaErrorNotReady);
        CHECK(ncclCommGetAsyncError(r.comm, &async) == ncclSuccess);
        usleep(100);
    }
    printf("rank %d: %s (%s)\n", r.rank, ncclGetErrorString(async), ncclGetLastError(r.comm));
    CHECK((async == ncclRemoteError) == (r.rank == 1));
    CHECK(ncclCommAbort(r.comm) == ncclSuccess);
    CHECK(cudaStreamSynchronize(r.side) == cudaSuccess);
    puts("aborted, and the stream goes on");
    fflush(stdout);
    _exit(0);
}

int mistake(Rig &r, const std::string &which)
{
    if (which == "forgotten_wait") {
        r.gemm();
        cudaEventRecord(r.done, r.compute);
        /* missing: cudaStreamWaitEvent(r.side, r.done, 0) */
        ncclAllReduce(r.c, r.c, N * N, ncclFloat32, ncclSum, r.comm, r.side);
        cudaMemcpyAsync(r.out, r.c, N * N * sizeof(float), cudaMemcpyDeviceToHost, r.side);
        cudaStreamSynchronize(r.side);
        printf("rank %d: %g instead of %d\n", r.rank, double(r.out[0]), N * r.size);
        cudaStreamSynchronize(r.compute);
    } else if (which == "sequences") {
        ncclAllReduce(r.a, r.a, N, ncclFloat32, ncclSum, r.comm, r.side);
        if (r.rank == 0)
            ncclAllReduce(r.a, r.a, N, ncclFloat32, ncclSum, r.comm, r.side);
        else
            ncclAllGather(r.a, r.c, N, ncclFloat32, r.comm, r.side);
        cudaStreamSynchronize(r.side);
    } else if (which == "one_missing") {
        if (r.rank == 0)
            ncclAllReduce(r.a, r.a, N, ncclFloat32, ncclSum, r.comm, r.side);
        cudaStreamSynchronize(r.side);
        MPI_Barrier(MPI_COMM_WORLD);
    } else if (which == "destroyed_early") {
        ncclAllReduce(r.a, r.a, N, ncclFloat32, ncclSum, r.comm, r.side);
        ncclCommDestroy(r.comm);
    } else if (which == "injected") {
        injected(r);
    } else {
        return 2;
    }
    puts("nothing was found");
    return 0;
}
} // namespace

int main(int argc, char **argv)
{
    __lsan_disable(); /* Open MPI's components leak, and some are unloaded at once */
    MPI_Init(&argc, &argv);
    __lsan_enable();
    Rig r(argc < 2 || strcmp(argv[1], "same_device"));

    if (argc > 1)
        return mistake(r, argv[1]);
    test_training_step(r);
    test_all_reduce<float>(r, ncclFloat32);
    test_all_reduce<double>(r, ncclFloat64);
    test_all_reduce<int>(r, ncclInt32);
    test_gather_and_scatter(r);
    test_group(r);
    test_orders(r);
    r.end();
    __lsan_do_leak_check();
    MPI_Finalize();
    puts("all programs passed");
    return 0;
}
