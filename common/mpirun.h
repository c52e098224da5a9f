/* mpirun - what everyone who starts mpirun needs: its path, and an environment in which it starts afresh. */
#ifndef COMMON_MPIRUN_H
#define COMMON_MPIRUN_H

#include <stddef.h>

/* How long OpenMP's threads wait busily at the end of a piece of work before they sleep (libgomp's
 * GOMP_SPINCOUNT): ours where the environment does not say. libgomp's own, 300000 or some milliseconds, is
 * ruinous where two jobs share cores; not to wait busily at all costs a step of two threads a sixth. This is
 * some microseconds, and as good as the better one in both cases. */
#define MPIRUN_SPIN_NAME "GOMP_SPINCOUNT"
const char *mpirun_spin_count(void);

/* The path of mpirun in $PATH, malloc'ed; NULL when it is not there. */
char *mpirun_find(void);

/* Our environment with changes: "NAME=value" sets a variable, "NAME" takes it away. The variables by which an
 * outer MPI or Slurm step would make mpirun believe that it is part of it are left out, threads
 * wait busily for a short while only (above), and under root mpirun is told that root is meant. Free it with
 * mpirun_free().
 */
char **mpirun_env(const char *const *changes, size_t n_changes);

/* Frees a NULL-terminated list of malloc'ed strings; NULL is legal. */
void mpirun_free(char **list);

#endif
