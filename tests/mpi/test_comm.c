/* test_comm - the contract of comm.h (comm_contract.h) on host memory: comm_mpi on all ranks of this job and,
 * on each rank, comm_single; and how ranks without a process manager meet. */
#include "tests/mpi/mpi_main.h"
#include "tests/mpi/comm_contract.h"
#include "worker/comm/rendezvous.h"

#include <stdio.h>
#include <unistd.h>

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

/* The ranks of this job, as if each was told by Slurm only who it is. */
static void test_rendezvous(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *c = comm_mpi_create(TEST_TIMEOUT_MS, &e);
    char dir[64] = "/tmp/bf-rendezvous-XXXXXX", name[128], number[16], text[128];
    struct rendezvous r = {.dir = dir, .timeout_ms = TEST_TIMEOUT_MS};

    if (c->rank == 0)
        assert_non_null(mkdtemp(dir));
    assert_int_equal(comm_broadcast(c, dir, sizeof dir, 0, &e), 0);
    assert_int_equal(unsetenv("SLURM_PROCID"), 0);
    assert_int_equal(rendezvous_from_slurm(&r, name, &e), -1);
    assert_non_null(strstr(e.msg, "SLURM_PROCID is not set"));
    snprintf(number, sizeof number, "%d", c->rank);
    setenv("SLURM_PROCID", number, 1);
    snprintf(number, sizeof number, "%d", c->size);
    setenv("SLURM_NTASKS", number, 1);
    setenv("SLURM_JOB_ID", "17", 1);
    unsetenv("SLURM_STEP_ID");
    unsetenv("SLURM_RESTART_COUNT");
    assert_int_equal(rendezvous_from_slurm(&r, name, &e), 0);
    assert_int_equal(r.rank, c->rank);
    assert_int_equal(r.size, c->size);
    assert_string_equal(r.name, "nccl-17.0.0");

    int word = c->rank == 0 ? 4711 : 0;
    assert_int_equal(rendezvous_share(&r, &word, sizeof word, &e), 0);
    assert_int_equal(word, 4711);
    assert_int_equal(comm_barrier(c, &e), 0);
    rendezvous_clean(&r);

    /* A rank that does not come is named. */
    r.name = "late";
    r.timeout_ms = 300;
    if (c->size > 1 && c->rank == 0) {
        assert_int_equal(rendezvous_share(&r, &word, sizeof word, &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
        snprintf(text, sizeof text, "1 of %d ranks did not come within 0 s: %d", c->size, c->size - 1);
        assert_non_null(strstr(e.msg, text));
    } else if (c->size > 1 && c->rank < c->size - 1) {
        assert_int_equal(rendezvous_share(&r, &word, sizeof word, &e), -1);
        assert_non_null(strstr(e.msg, "waited 0 s for rank 0 to see all"));
    }
    assert_int_equal(comm_barrier(c, &e), 0);
    if (c->rank == 0)
        assert_int_equal(rmdir(dir), 0);
    comm_destroy(c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_single),
    cmocka_unit_test(test_mpi),
    cmocka_unit_test(test_timeout),
    cmocka_unit_test(test_rendezvous),
};

MPI_TEST_MAIN(tests)
