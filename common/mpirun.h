/* mpirun - what everyone who starts mpirun needs: its path, and an environment in which it starts afresh. */
#ifndef COMMON_MPIRUN_H
#define COMMON_MPIRUN_H

#include <stddef.h>

/* The path of mpirun in $PATH, malloc'ed; NULL when it is not there. */
char *mpirun_find(void);

/* Our environment with changes: "NAME=value" sets a variable, "NAME" takes it away. The variables by which an
 * outer MPI or Slurm step would make mpirun believe that it is part of it are left out, ranks wait without
 * spinning (OMP_WAIT_POLICY), and under root mpirun is told that root is meant. Free it with mpirun_free().
 */
char **mpirun_env(const char *const *changes, size_t n_changes);

/* Frees a NULL-terminated list of malloc'ed strings; NULL is legal. */
void mpirun_free(char **list);

#endif
