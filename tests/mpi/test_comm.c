/* test_comm - the contract of comm.h on every implementation: comm_mpi on all ranks of this job and, on each
 * rank, comm_single. Inputs are small whole numbers, so sums are exact and compared exactly. */
#include "tests/mpi/mpi_main.h"
#include "worker/comm/comm.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 8, WIDTH = 5 };

/* Unequal rows: 3, 1, 0, 2, 3, 1, … */
static int64_t fill_counts(int64_t *counts, int size)
{
    static const int64_t pattern[] = {3, 1, 0, 2};
    int64_t total = 0;

    for (int r = 0; r < size; r++)
        total += counts[r] = pattern[r % 4];
    return total;
}

static void check_all_gather(struct comm *c)
{
    int64_t counts[MAX_RANKS], total = fill_counts(counts, c->size), first = 0;
    int32_t local[3 * WIDTH], all[3 * MAX_RANKS * WIDTH];
    struct err e;

    for (int r = 0; r < c->rank; r++)
        first += counts[r];
    for (int64_t i = 0; i < counts[c->rank] * WIDTH; i++)
        local[i] = (int32_t)(first * WIDTH + i);
    memset(all, 0xff, sizeof all);
    assert_int_equal(comm_all_gather(c, local, all, counts, WIDTH * sizeof *local, &e), 0);
    for (int64_t i = 0; i < total * WIDTH; i++)
        assert_int_equal(all[i], i);
}

static void check_reduce_scatter(struct comm *c)
{
    int64_t counts[MAX_RANKS], total = fill_counts(counts, c->size), first = 0;
    float all[3 * MAX_RANKS * WIDTH], local[3 * WIDTH];
    struct err e;

    for (int r = 0; r < c->rank; r++)
        first += counts[r];
    for (int64_t i = 0; i < total * WIDTH; i++)
        all[i] = (float)(i * (c->rank + 1));
    assert_int_equal(comm_reduce_scatter(c, all, local, counts, WIDTH, &e), 0);
    int ranks = c->size * (c->size + 1) / 2; /* Σ(rank+1) */
    for (int64_t i = 0; i < counts[c->rank] * WIDTH; i++)
        assert_float_equal(local[i], (float)((first * WIDTH + i) * ranks), 0);
}

/* Rank r sends rank s r + s units of two words: what came from r says so. */
static void check_all_to_all(struct comm *c)
{
    enum { UNIT = 2 };
    int32_t send[2 * MAX_RANKS * MAX_RANKS * UNIT], recv[2 * MAX_RANKS * MAX_RANKS * UNIT];
    int64_t send_counts[MAX_RANKS], recv_counts[MAX_RANKS], n = 0;
    struct err e;

    for (int s = 0; s < c->size; s++) {
        send_counts[s] = recv_counts[s] = c->rank + s;
        for (int64_t i = 0; i < send_counts[s] * UNIT; i++)
            send[n++] = (int32_t)(1000 * c->rank + 100 * s + i);
    }
    memset(recv, 0xff, sizeof recv);
    assert_int_equal(comm_all_to_all(c, send, send_counts, recv, recv_counts, UNIT * sizeof *send, &e), 0);
    n = 0;
    for (int r = 0; r < c->size; r++)
        for (int64_t i = 0; i < recv_counts[r] * UNIT; i++)
            assert_int_equal(recv[n++], 1000 * r + 100 * c->rank + i);
}

static void check_all_reduce(struct comm *c)
{
    enum { N = 1000 };
    static float f[N];
    double d[3] = {c->rank + 1, 0.5, -1};
    int32_t k[2] = {c->rank, 7};
    struct comm_req r[2];
    struct err e;

    for (int i = 0; i < N; i++)
        f[i] = (float)(i + c->rank);
    assert_int_equal(comm_all_reduce_start(c, f, N, DTYPE_F32, &r[0], &e), 0);
    assert_int_equal(comm_all_reduce_start(c, d, 3, DTYPE_F64, &r[1], &e), 0);
    assert_int_equal(comm_all_reduce(c, k, 2, DTYPE_I32, &e), 0); /* others are in flight */
    assert_int_equal(comm_wait(c, &r[0], &e), 0);
    assert_int_equal(comm_wait(c, &r[1], &e), 0);
    int pairs = c->size * (c->size - 1) / 2;
    for (int i = 0; i < N; i++)
        assert_float_equal(f[i], (float)(i * c->size + pairs), 0);
    assert_float_equal(d[0], pairs + c->size, 0);
    assert_float_equal(d[1], 0.5 * c->size, 0);
    assert_int_equal(k[0], pairs);
    assert_int_equal(k[1], 7 * c->size);
}

/* Sums of numbers that round: whatever the order of the additions, all ranks hold the same bits. */
static void check_same_bits(struct comm *c)
{
    static const int sizes[] = {1, 7, 100, 5000, 300001};
    struct err e;

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        float *x = malloc((size_t)n * sizeof *x), *ref = malloc((size_t)n * sizeof *ref);
        for (int i = 0; i < n; i++)
            x[i] = 1.0f / (float)(3 + i % 97 + 13 * c->rank);
        assert_int_equal(comm_all_reduce(c, x, (size_t)n, DTYPE_F32, &e), 0);
        memcpy(ref, x, (size_t)n * sizeof *x);
        assert_int_equal(comm_broadcast(c, ref, (size_t)n * sizeof *ref, 0, &e), 0);
        assert_memory_equal(x, ref, (size_t)n * sizeof *x);
        free(x);
        free(ref);
    }
}

static void check_broadcast(struct comm *c)
{
    struct err e;

    for (int root = 0; root < c->size; root++) {
        char text[32] = "";
        if (c->rank == root)
            strcpy(text, "from the root");
        assert_int_equal(comm_broadcast(c, text, sizeof text, root, &e), 0);
        assert_string_equal(text, "from the root");
    }
    assert_int_equal(comm_barrier(c, &e), 0);
}

static void check_contract(struct comm *c)
{
    check_all_gather(c);
    check_reduce_scatter(c);
    check_all_to_all(c);
    check_all_reduce(c);
    check_same_bits(c);
    check_broadcast(c);
    comm_destroy(c);
}

static void test_single(void **state)
{
    (void)state;
    check_contract(comm_single_create());
}

static void test_mpi(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *c = comm_mpi_create(TEST_TIMEOUT_MS, &e);

    assert_non_null(c);
    check_contract(c);
}

/* A rank that does not come is an error with a name, not a hang. */
static void test_timeout(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *sync = comm_mpi_create(TEST_TIMEOUT_MS, &e), *c;
    static float x = 1; /* stays in flight after the timeout */

    __lsan_disable(); /* never destroyed: after a timeout a communicator can only be aborted */
    c = comm_mpi_create(200, &e);
    __lsan_enable();
    if (c->size > 1 && c->rank == 0) {
        assert_int_equal(comm_all_reduce(c, &x, 1, DTYPE_F32, &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
        assert_non_null(strstr(e.msg, "all-reduce: rank 0 waited"));
    }
    assert_int_equal(comm_barrier(sync, &e), 0);
    if (c->size > 1 && c->rank != 0) { /* come late, so that MPI can finish cleanly */
        comm_all_reduce(c, &x, 1, DTYPE_F32, &e);
    }
    comm_destroy(sync);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_single),
    cmocka_unit_test(test_mpi),
    cmocka_unit_test(test_timeout),
};

MPI_TEST_MAIN(tests)
