/* mpi_main - the main() of a cmocka program whose processes are the ranks of one job. */
#ifndef TESTS_MPI_MPI_MAIN_H
#define TESTS_MPI_MPI_MAIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <mpi.h>

enum { TEST_TIMEOUT_MS = 60000 };

/* A rank whose test failed ends the job at once: the others may be waiting for it in a collective. */
#define MPI_TEST_MAIN(tests)                                                                                 \
    int main(int argc, char **argv)                                                                          \
    {                                                                                                        \
        MPI_Init(&argc, &argv);                                                                              \
        int n_failed = cmocka_run_group_tests(tests, NULL, NULL);                                            \
        if (n_failed)                                                                                        \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                    \
        MPI_Finalize();                                                                                      \
        return 0;                                                                                            \
    }

#endif
