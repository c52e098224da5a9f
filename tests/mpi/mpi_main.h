/* mpi_main - the main() of a cmocka program whose processes are the ranks of one job. */
#ifndef TESTS_MPI_MPI_MAIN_H
#define TESTS_MPI_MPI_MAIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <mpi.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#else
#define __lsan_do_leak_check() ((void)0)
#define __lsan_disable() ((void)0)
#define __lsan_enable() ((void)0)
#endif

enum { TEST_TIMEOUT_MS = 60000 };

/* Said by a test program before main(): on a machine like this there is nothing to test. */
#ifndef MPI_TEST_SKIP
#define MPI_TEST_SKIP() 0
#endif

/* A rank whose test failed ends the job at once: the others may be waiting for it in a collective. Leaks are
 * looked for before MPI_Finalize(): afterwards Open MPI's components are unloaded, and what they leak has no
 * name to suppress it by. */
#define MPI_TEST_MAIN(tests)                                                                                 \
    int main(int argc, char **argv)                                                                          \
    {                                                                                                        \
        __lsan_disable(); /* Open MPI's components leak, and some are unloaded at once */                    \
        MPI_Init(&argc, &argv);                                                                              \
        __lsan_enable();                                                                                     \
        int skipped = MPI_TEST_SKIP();                                                                       \
        int n_failed = skipped ? 0 : cmocka_run_group_tests(tests, NULL, NULL);                              \
        if (n_failed)                                                                                        \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                    \
        __lsan_do_leak_check();                                                                              \
        MPI_Finalize();                                                                                      \
        return skipped ? 77 : 0;                                                                             \
    }

#endif
