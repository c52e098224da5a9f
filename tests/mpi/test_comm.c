/* test_comm - the contract of comm.h (comm_contract.h) on host memory: comm_mpi on all ranks of this job and,
 * on each rank, comm_single. */
#include "tests/mpi/mpi_main.h"
#include "tests/mpi/comm_contract.h"

static void test_single(void **state)
{
    (void)state;
    struct comm *c = comm_single_create();

    contract_check(c, &contract_host);
    comm_destroy(c);
}

static void test_mpi(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *c = comm_mpi_create(TEST_TIMEOUT_MS, &e);

    assert_non_null(c);
    contract_check(c, &contract_host);
    comm_destroy(c);
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
