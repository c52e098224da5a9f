/* fork_ranks - ranks of one job as children of a test program, without any launcher: what the tests of ranks
 * that only share a directory need, for such ranks can also be killed and stopped.
 *
 * Each child runs one cmocka test, so that a failed assertion is told with its rank. A child that ends is
 * seen by the others as a rank that is gone, so nobody waits for it.
 */
#ifndef TESTS_MPI_FORK_RANKS_H
#define TESTS_MPI_FORK_RANKS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FORK_MAX_RANKS = 8 };

/* What a rank's test finds in *state. */
struct fork_rank {
    int rank, size;
    char dir[64]; /* shared, empty, to be left empty */
    int told[2];  /* a pipe between the ranks: its ends for reading and writing */
    int victim;   /* the rank that the scenario kills or stops; -1: none */
};

struct fork_scenario {
    const char *name;
    void (*test)(void **state);
    int min_ranks;
    enum { FORK_NOBODY = -2, FORK_LAST = -1, FORK_RANK0 = 0, FORK_RANK1 = 1 } victim; /* ends by a signal */
};

static inline int fork_run_rank(struct fork_rank *r, const struct fork_scenario *s)
{
    const struct CMUnitTest tests[] = {{s->name, s->test, NULL, NULL, r}};
    char name[128];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(name, sizeof name, "%s: rank %d of %d", s->name, r->rank, r->size);
    return cmocka_run_group_tests_name(name, tests, NULL, NULL) ? 1 : 0;
}

/* The victim may be stopped: it is killed when all others have ended. */
static inline int fork_wait(const struct fork_scenario *s, const struct fork_rank *r, const pid_t *pids)
{
    int failed = 0, status;

    for (int i = 0; i < r->size; i++)
        if (i != r->victim && (waitpid(pids[i], &status, 0) != pids[i] || status != 0)) {
            fprintf(stderr, "%s: rank %d of %d ended with wait status %#x\n", s->name, i, r->size,
                    (unsigned)status);
            failed = 1;
        }
    if (r->victim >= 0) {
        kill(pids[r->victim], SIGKILL);
        if (waitpid(pids[r->victim], &status, 0) != pids[r->victim] || !WIFSIGNALED(status)) {
            fprintf(stderr, "%s: rank %d was to be a victim and ended by itself\n", s->name, r->victim);
            failed = 1;
        }
    }
    return failed;
}

static inline int fork_run(const struct fork_scenario *s, int size)
{
    struct fork_rank r = {.size = size, .dir = "/tmp/bf-ranks-XXXXXX"};
    pid_t pids[FORK_MAX_RANKS];
    int failed;

    r.victim = s->victim == FORK_NOBODY ? -1 : s->victim == FORK_LAST ? size - 1 : (int)s->victim;
    if (!mkdtemp(r.dir) || pipe(r.told) < 0) {
        perror("fork_run");
        return 1;
    }
    fflush(NULL);
    for (r.rank = 0; r.rank < size; r.rank++) {
        pids[r.rank] = fork();
        if (pids[r.rank] == 0)
            exit(fork_run_rank(&r, s));
    }
    close(r.told[0]);
    close(r.told[1]);
    failed = fork_wait(s, &r, pids);
    if (rmdir(r.dir) < 0) {
        fprintf(stderr, "%s: %d ranks left something in %s\n", s->name, size, r.dir);
        failed = 1;
    }
    return failed;
}

/* The main() of such a program: its argument is the number of ranks. */
#define FORK_TEST_MAIN(scenarios)                                                                            \
    int main(int argc, char **argv)                                                                          \
    {                                                                                                        \
        const int size = argc == 2 ? atoi(argv[1]) : 0;                                                      \
        int failed = 0;                                                                                      \
        if (size < 1 || size > FORK_MAX_RANKS) {                                                             \
            fprintf(stderr, "usage: %s RANKS, 1 to %d\n", argv[0], FORK_MAX_RANKS);                          \
            return 2;                                                                                        \
        }                                                                                                    \
        for (size_t i = 0; i < sizeof(scenarios) / sizeof *(scenarios); i++)                                 \
            if (size >= (scenarios)[i].min_ranks)                                                            \
                failed |= fork_run(&(scenarios)[i], size);                                                   \
        return failed;                                                                                       \
    }

#endif
