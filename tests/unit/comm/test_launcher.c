/* test_launcher - what the environment says of who started a process. */
#include "tests/unit/cm.h"
#include "worker/comm/launcher.h"

#include <stdlib.h>
#include <string.h>

/* "NAME=value", up to a NULL; everything else that launchers set is away. */
static int find(struct launcher *l, struct err *e, const char *const *vars)
{
    static const char *const known[] = {
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "PMI_SIZE",
        "PMI_RANK",
        "PMIX_RANK",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_RESTART_COUNT",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_MCA_pml",
        "OMPI_MCA_mtl",
        "OMPI_MCA_coll_libnbc_iallreduce_algorithm",
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        unsetenv(known[i]);
    for (; *vars; vars++) {
        char name[64];
        const size_t n = strcspn(*vars, "=");

        memcpy(name, *vars, n);
        name[n] = 0;
        setenv(name, *vars + n + 1, 1);
    }
    return launcher_find(l, e);
}

#define FIND(l, e, ...) find(l, e, (const char *const[]){__VA_ARGS__, NULL})

static void check(const struct launcher *l, enum launcher_kind kind, int rank, int size)
{
    assert_int_equal(l->kind, kind);
    assert_int_equal(l->rank, rank);
    assert_int_equal(l->size, size);
}

static void test_nobody(void **state)
{
    struct launcher l;
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(FIND(&l, &e, NULL), 0);
    check(&l, LAUNCHER_NONE, 0, 0);
    /* A batch script that no srun started: its one process is no task of three. */
    assert_int_equal(FIND(&l, &e, "SLURM_JOB_ID=8", "SLURM_NTASKS=3", "SLURM_PROCID=0"), 0);
    check(&l, LAUNCHER_NONE, 0, 0);
    assert_int_equal(
        FIND(&l, &e, "SLURM_JOB_ID=8", "SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=1", "SLURM_PROCID=0"), 0);
    check(&l, LAUNCHER_NONE, 0, 1);
}

static void test_mpi(void **state)
{
    struct launcher l;
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(FIND(&l, &e, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=3", "PMIX_RANK=3"), 0);
    check(&l, LAUNCHER_MPI, 3, 4);
    /* mpirun in an allocation starts its helpers by srun, whose variables the ranks see. */
    assert_int_equal(FIND(&l, &e, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=1",
                          "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=0", "SLURM_JOB_ID=1", "SLURM_STEP_ID=0"),
                     0);
    check(&l, LAUNCHER_MPI, 1, 4);
    assert_int_equal(FIND(&l, &e, "PMI_SIZE=2", "PMI_RANK=1", "SLURM_STEP_NUM_TASKS=2"), 0);
    check(&l, LAUNCHER_MPI, 1, 2);
    assert_int_equal(FIND(&l, &e, "PMIX_RANK=1", "SLURM_STEP_NUM_TASKS=2"), 0);
    check(&l, LAUNCHER_MPI, 1, 2);
    assert_int_equal(FIND(&l, &e, "PMIX_RANK=5"), 0);
    check(&l, LAUNCHER_MPI, 5, 0);
}

/* NULL: launcher_prepare_mpi() leaves the choice to Open MPI. */
static void check_pml(const char *pml, const char *const *vars)
{
    struct launcher l;
    struct err e = ERR_INIT;

    assert_int_equal(find(&l, &e, vars), 0);
    launcher_prepare_mpi(&l);
    const char *found = getenv("OMPI_MCA_pml");
    assert_true((found == NULL) == (pml == NULL));
    if (pml)
        assert_string_equal(found, pml);
}

#define CHECK_PML(pml, ...) check_pml(pml, (const char *const[]){__VA_ARGS__, NULL})

static void test_transport_of_one_host(void **state)
{
    (void)state;
    CHECK_PML("ob1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=4", "OMPI_COMM_WORLD_RANK=0");
    CHECK_PML(NULL, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=2", "OMPI_COMM_WORLD_RANK=0");
    CHECK_PML(NULL, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=0");
    CHECK_PML("ucx", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=4", "OMPI_COMM_WORLD_RANK=0",
              "OMPI_MCA_pml=ucx");
    CHECK_PML(NULL, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=4", "OMPI_COMM_WORLD_RANK=0",
              "OMPI_MCA_mtl=ofi");
    CHECK_PML(NULL, "PMI_SIZE=2", "PMI_RANK=1");
    CHECK_PML(NULL, NULL);
}

static void check_sums(const char *algorithm, const char *const *vars)
{
    static const char name[] = "OMPI_MCA_coll_libnbc_iallreduce_algorithm";
    struct launcher l;
    struct err e = ERR_INIT;

    assert_int_equal(find(&l, &e, vars), 0);
    launcher_prepare_mpi(&l);
    const char *found = getenv(name);
    assert_true((found == NULL) == (algorithm == NULL));
    if (algorithm)
        assert_string_equal(found, algorithm);
}

#define CHECK_SUMS(algorithm, ...) check_sums(algorithm, (const char *const[]){__VA_ARGS__, NULL})

static void test_sums(void **state)
{
    (void)state;
    CHECK_SUMS("3", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=2", "OMPI_COMM_WORLD_RANK=0");
    CHECK_SUMS("3", "PMIX_RANK=1");
    CHECK_SUMS("1", "PMIX_RANK=1", "OMPI_MCA_coll_libnbc_iallreduce_algorithm=1");
    CHECK_SUMS(NULL, NULL);
}

static void test_slurm(void **state)
{
    struct launcher l;
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(FIND(&l, &e, "SLURM_STEP_NUM_TASKS=3", "SLURM_NTASKS=8", "SLURM_PROCID=2",
                          "SLURM_JOB_ID=17", "SLURM_STEP_ID=4"),
                     0);
    check(&l, LAUNCHER_SLURM, 2, 3);
    assert_string_equal(l.step, "17.4.0");
    assert_int_equal(FIND(&l, &e, "SLURM_STEP_NUM_TASKS=3", "SLURM_PROCID=0", "SLURM_JOB_ID=17",
                          "SLURM_STEP_ID=4", "SLURM_RESTART_COUNT=2"),
                     0);
    assert_string_equal(l.step, "17.4.2");
}

static void refused(const char *text, const char *const *vars)
{
    struct launcher l;
    struct err e = ERR_INIT;

    assert_int_equal(find(&l, &e, vars), -1);
    assert_int_equal(e.kind, ERR_USAGE);
    if (!strstr(e.msg, text))
        fail_msg("'%s' does not say '%s'", e.msg, text);
}

#define REFUSED(text, ...) refused(text, (const char *const[]){__VA_ARGS__, NULL})

static void test_refused(void **state)
{
    (void)state;
    REFUSED("SLURM_PROCID is not set", "SLURM_STEP_NUM_TASKS=2", "SLURM_JOB_ID=1", "SLURM_STEP_ID=0");
    REFUSED("SLURM_JOB_ID is not set", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=1", "SLURM_STEP_ID=0");
    REFUSED("SLURM_STEP_ID is not set", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=1", "SLURM_JOB_ID=1");
    REFUSED("SLURM_PROCID: 2 found, less than SLURM_STEP_NUM_TASKS=2 is accepted", "SLURM_STEP_NUM_TASKS=2",
            "SLURM_PROCID=2", "SLURM_JOB_ID=1", "SLURM_STEP_ID=0");
    REFUSED("SLURM_STEP_NUM_TASKS: 'two' found", "SLURM_STEP_NUM_TASKS=two");
    REFUSED("SLURM_STEP_NUM_TASKS: '' found", "SLURM_STEP_NUM_TASKS=");
    REFUSED("SLURM_JOB_ID: '../1' found", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=1", "SLURM_JOB_ID=../1",
            "SLURM_STEP_ID=0");
    REFUSED("PMI_SIZE: '0' found, a number from 1 to", "PMI_SIZE=0", "PMI_RANK=0");
    REFUSED("OMPI_COMM_WORLD_RANK: '-1' found", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK=-1");
}

static void test_size(void **state)
{
    struct launcher l;
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(FIND(&l, &e, "PMI_SIZE=4", "PMI_RANK=1"), 0);
    assert_int_equal(launcher_check_size(&l, 4, &e), 0);
    assert_int_equal(launcher_check_size(&l, 1, &e), -1);
    assert_int_equal(e.kind, ERR_USAGE);
    assert_non_null(strstr(e.msg, "the launcher started 4 processes (PMI_SIZE) and MPI sees 1"));
    assert_int_equal(FIND(&l, &e, "PMIX_RANK=5"), 0); /* nobody says how many there are */
    assert_int_equal(launcher_check_size(&l, 6, &e), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_mpi),
        cmocka_unit_test(test_transport_of_one_host),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_slurm),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
