/* test_comm_nccl - the contract of comm.h (comm_contract.h) on comm_nccl, on all ranks of this job; and what
 * a communicator of a device promises besides: graphs, streams that wait for each other, ranks that are gone.
 */
#define MPI_TEST_SKIP() device_missing()
#include "tests/mpi/mpi_main.h"
#include "tests/mpi/comm_contract.h"
#include "tests/sim/device.h"
#include "worker/comm/comm_nccl.h"
#include "worker/comm/comm_tcp.h"

#include <unistd.h>

struct job {
    struct comm *host, *c;
    cudaStream_t compute, side;
};

/* j->host is there. */
static struct comm_nccl_config job_streams(struct job *j, int timeout_ms)
{
    int n_devices;

    CUDA_OK(cudaGetDeviceCount(&n_devices));
    CUDA_OK(cudaSetDevice(j->host->rank % n_devices));
    CUDA_OK(cudaStreamCreateWithFlags(&j->compute, cudaStreamNonBlocking));
    CUDA_OK(cudaStreamCreateWithFlags(&j->side, cudaStreamNonBlocking));
    return (struct comm_nccl_config){.compute_stream = j->compute,
                                     .comm_stream = j->side,
                                     .timeout_ms = timeout_ms};
}

static struct job job_new(int timeout_ms, bool nonblocking)
{
    struct err e = ERR_INIT;
    struct job j = {.host = comm_mpi_create(TEST_TIMEOUT_MS, &e)};
    struct comm_nccl_config cfg = job_streams(&j, timeout_ms);

    cfg.nonblocking = nonblocking;
    j.c = comm_nccl_create(j.host, &cfg, &e);
    if (!j.c)
        fail_msg("%s", e.msg);
    return j;
}

static void job_done(struct job *j)
{
    comm_destroy(j->c);
    comm_destroy(j->host);
    CUDA_OK(cudaStreamDestroy(j->compute));
    CUDA_OK(cudaStreamDestroy(j->side));
}

static void *memory_alloc(size_t bytes)
{
    return device_new(bytes);
}

static void memory_release(void *p)
{
    CUDA_OK(cudaFree(p));
}

static void memory_put(void *buffer, const void *host, size_t bytes)
{
    device_write(buffer, host, bytes);
}

static void memory_get(struct comm *c, void *host, const void *buffer, size_t bytes)
{
    struct err e = ERR_INIT;

    if (comm_sync(c, "the test's data", &e) < 0)
        fail_msg("%s", e.msg);
    CUDA_OK(cudaMemcpy(host, buffer, bytes, cudaMemcpyDeviceToHost));
}

static const struct contract_memory device_memory = {memory_alloc, memory_release, memory_put, memory_get};

static void test_contract(void **state)
{
    (void)state;
    struct job j = job_new(TEST_TIMEOUT_MS, false);
    struct err e = ERR_INIT;

    assert_int_equal(j.c->rank, j.host->rank);
    assert_int_equal(j.c->size, j.host->size);
    contract_check(j.c, &device_memory);
    assert_int_equal(comm_nccl_poll(j.c, &e), 0);
    job_done(&j);
}

static void test_nonblocking(void **state)
{
    (void)state;
    struct job j = job_new(TEST_TIMEOUT_MS, true);

    contract_check(j.c, &device_memory);
    job_done(&j);
}

/* A rank alone, over comm_single; of more ranks all would use the first device. */
static void test_alone(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct job j = {0};
    struct comm_nccl_config cfg;
    int n_ranks;

    MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
    if (n_ranks > 1)
        skip();
    j.host = comm_single_create();
    cfg = job_streams(&j, TEST_TIMEOUT_MS);
    j.c = comm_nccl_create(j.host, &cfg, &e);
    if (!j.c)
        fail_msg("%s", e.msg);
    contract_check(j.c, &device_memory);
    job_done(&j);
}

/* The ranks of this job as tasks of Slurm without PMIx: NCCL's id goes over TCP. MPI tells the directory. */
static void test_over_tcp(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *mpi = comm_mpi_create(TEST_TIMEOUT_MS, &e);
    char dir[64] = "/tmp/bf-nccl-XXXXXX";
    const struct comm_tcp_config tcp = {.dir = dir,
                                        .name = "test",
                                        .rank = mpi->rank,
                                        .size = mpi->size,
                                        .meet_ms = TEST_TIMEOUT_MS,
                                        .timeout_ms = TEST_TIMEOUT_MS};
    struct comm_nccl_config cfg;
    struct job j = {0};

    if (mpi->rank == 0)
        assert_non_null(mkdtemp(dir));
    assert_int_equal(comm_broadcast(mpi, dir, sizeof dir, 0, &e), 0);
    j.host = comm_tcp_create(&tcp, &e);
    if (!j.host)
        fail_msg("%s", e.msg);
    cfg = job_streams(&j, TEST_TIMEOUT_MS);
    j.c = comm_nccl_create(j.host, &cfg, &e);
    if (!j.c)
        fail_msg("%s", e.msg);
    contract_check(j.c, &device_memory);
    if (mpi->rank == 0)
        assert_int_equal(rmdir(dir), 0); /* nothing was left in it */
    job_done(&j);
    comm_destroy(mpi);
}

enum { N = 64 };

/* What a step does: sum, gather, scatter on the compute stream, with a bucket in flight all along. */
static void step(const struct job *j, float *bucket, float *local, float *all, const int64_t *counts)
{
    struct comm_req r;
    struct err e = ERR_INIT;

    if (comm_all_reduce_start(j->c, bucket, N, DTYPE_F32, &r, &e) < 0 ||
        comm_all_reduce(j->c, local, (size_t)counts[j->c->rank], DTYPE_F32, &e) < 0 ||
        comm_all_gather(j->c, local, all, counts, sizeof(float), &e) < 0 ||
        comm_reduce_scatter(j->c, all, local, counts, 1, &e) < 0 ||
        comm_all_to_all(j->c, local, counts, local + counts[0] * j->c->size, counts, sizeof(float), &e) < 0 ||
        comm_broadcast(j->c, all, sizeof(float), 0, &e) < 0 || comm_wait(j->c, &r, &e) < 0)
        fail_msg("%s", e.msg);
}

/* Captured, then replayed as often as one likes. */
static void check_graph(bool nonblocking)
{
    struct job j = job_new(TEST_TIMEOUT_MS, nonblocking);
    const int R = j.c->size;
    float ones[N], got[N];
    float *bucket, *local, *all;
    int64_t counts[CONTRACT_MAX_RANKS];
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    double sum = 1;
    struct err e = ERR_INIT;

    for (int i = 0; i < N; i++)
        ones[i] = 1;
    for (int r = 0; r < R; r++)
        counts[r] = 3;
    bucket = device_upload(ones, N, DTYPE_F32);
    local = device_upload(ones, N, DTYPE_F32);
    all = device_upload(ones, N, DTYPE_F32);
    step(&j, bucket, local, all, counts); /* connects */
    sum *= R;
    assert_int_equal(comm_sync(j.c, "the first step", &e), 0);
    CUDA_OK(cudaStreamBeginCapture(j.compute, cudaStreamCaptureModeThreadLocal));
    step(&j, bucket, local, all, counts);
    CUDA_OK(cudaStreamEndCapture(j.compute, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int k = 0; k < 3; k++) {
        CUDA_OK(cudaGraphLaunch(exec, j.compute));
        sum *= R;
    }
    assert_int_equal(comm_sync(j.c, "the replays", &e), 0);
    CUDA_OK(cudaMemcpy(got, bucket, sizeof got, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++)
        assert_float_equal(got[i], sum, 0);
    CUDA_OK(cudaMemcpy(got, local, sizeof got, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 3; i++) /* a step sums, gathers, and sums what was gathered: R² */
        assert_float_equal(got[i], sum * sum, 0);
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaFree(bucket));
    CUDA_OK(cudaFree(local));
    CUDA_OK(cudaFree(all));
    job_done(&j);
}

static void test_graph(void **state)
{
    (void)state;
    check_graph(false);
    check_graph(true);
}

/* The compute stream waits for the request, and the request for what the compute stream did before. */
static void test_order(void **state)
{
    (void)state;
    enum { LARGE = 100000 };
    struct job j = job_new(TEST_TIMEOUT_MS, false);
    float *x = malloc(LARGE * sizeof *x), *buffer, *copy;
    struct comm_req r[3];
    struct err e = ERR_INIT;

    for (int i = 0; i < LARGE; i++)
        x[i] = (float)(i % 1000);
    copy = device_upload(x, LARGE, DTYPE_F32);
    buffer = device_new(3 * LARGE * sizeof *buffer);
    for (int k = 0; k < 3; k++) {
        CUDA_OK(cudaMemcpyAsync(buffer + k * LARGE, copy, LARGE * sizeof *x, cudaMemcpyDeviceToDevice,
                                j.compute));
        assert_int_equal(comm_all_reduce_start(j.c, buffer + k * LARGE, LARGE, DTYPE_F32, &r[k], &e), 0);
    }
    for (int k = 2; k >= 0; k--) {
        assert_int_equal(comm_wait(j.c, &r[k], &e), 0);
        CUDA_OK(cudaMemcpyAsync(copy, buffer + k * LARGE, LARGE * sizeof *x, cudaMemcpyDeviceToDevice,
                                j.compute));
    }
    assert_int_equal(comm_sync(j.c, "the copy", &e), 0);
    CUDA_OK(cudaMemcpy(x, copy, LARGE * sizeof *x, cudaMemcpyDeviceToHost));
    for (int i = 0; i < LARGE; i++)
        assert_float_equal(x[i], (float)(i % 1000 * j.c->size), 0);
    CUDA_OK(cudaFree(copy));
    CUDA_OK(cudaFree(buffer));
    free(x);
    job_done(&j);
}

static void test_refused(void **state)
{
    (void)state;
    struct job j = job_new(TEST_TIMEOUT_MS, false);
    struct comm_req r;
    struct err e = ERR_INIT;
    void *x = device_new(64);

    assert_int_equal(comm_all_reduce(j.c, x, 4, DTYPE_BF16, &e), -1);
    assert_non_null(strstr(e.msg, "bf16"));
    assert_int_equal(comm_all_reduce_start(j.c, x, 0, DTYPE_F32, &r, &e), 0); /* nothing */
    assert_int_equal(comm_wait(j.c, &r, &e), 0);
    CUDA_OK(cudaFree(x));
    job_done(&j);
}

/* A rank that does not come is an error with a name, not a hang; afterwards nothing but the end is left. */
static void test_late(void **state)
{
    (void)state;
    struct job j = job_new(300, false);
    struct err e = ERR_INIT;
    float *x = device_upload((float[]){1}, 1, DTYPE_F32);

    if (j.c->size > 1 && j.c->rank == 0) {
        assert_int_equal(comm_all_reduce(j.c, x, 1, DTYPE_F32, &e), 0);
        assert_int_equal(comm_sync(j.c, "step 7", &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
        assert_non_null(strstr(e.msg, "step 7: rank 0 waited 0 s and another rank did not come"));
        assert_int_equal(comm_all_reduce(j.c, x, 1, DTYPE_F32, &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
    }
    assert_int_equal(comm_barrier(j.host, &e), 0);
    comm_destroy(j.c); /* rank 0 aborts what hangs */
    comm_destroy(j.host);
    CUDA_OK(cudaFree(x));
    CUDA_OK(cudaStreamDestroy(j.compute));
    CUDA_OK(cudaStreamDestroy(j.side));
}

#ifdef BF_SIM
/* With NCCLSIM_FAIL=1:n rank 1 finds out that its peer is gone, and rank 0 waits in vain: nobody hangs. */
static void test_peer_gone(void **state)
{
    (void)state;
    struct job j;
    struct err e = ERR_INIT;
    float *x;

    if (!getenv("NCCLSIM_FAIL"))
        skip();
    j = job_new(1000, false);
    x = device_upload((float[]){1}, 1, DTYPE_F32);
    assert_int_equal(comm_nccl_poll(j.c, &e), 0);
    assert_int_equal(comm_all_reduce(j.c, x, 1, DTYPE_F32, &e), 0);
    assert_int_equal(comm_sync(j.c, "step 8", &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    assert_non_null(strstr(e.msg, "step 8: rank "));
    if (j.c->rank == 1) {
        assert_non_null(strstr(e.msg, "NCCL: step 8: rank 1: "));
        assert_int_equal(comm_nccl_poll(j.c, &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
    }
    assert_int_equal(comm_barrier(j.host, &e), 0);
    job_done(&j);
    CUDA_OK(cudaFree(x));
}
#endif

static const struct CMUnitTest tests[] = {
#ifdef BF_SIM
    cmocka_unit_test(test_peer_gone), /* first: the fault strikes the first operation */
#endif

    cmocka_unit_test(test_contract),  cmocka_unit_test(test_nonblocking), cmocka_unit_test(test_alone),
    cmocka_unit_test(test_over_tcp),  cmocka_unit_test(test_graph),       cmocka_unit_test(test_order),
    cmocka_unit_test(test_refused),   cmocka_unit_test(test_late),
};

MPI_TEST_MAIN(tests)
