/* launcher - who started this process, and as which of how many: what the environment says of it. */
#ifndef COMM_LAUNCHER_H
#define COMM_LAUNCHER_H

#include <stdbool.h>
#include "common/err.h"

enum launcher_kind {
    LAUNCHER_NONE,  /* nobody, a batch script, or srun of one task: a job of one rank */
    LAUNCHER_MPI,   /* one that MPI_Init() speaks with: mpirun, or srun with PMIx or PMI */
    LAUNCHER_SLURM, /* srun without them: its tasks must find each other (comm_tcp.h) */
};

struct launcher {
    enum launcher_kind kind;
    int rank, size;      /* 0, 0 where the environment does not say */
    const char *size_of; /* the variable that says it, or NULL */
    bool one_host;       /* Open MPI says that all ranks are on this host */
    char step[64];       /* LAUNCHER_SLURM: "17.0.1", job, step and restart; no other step has it now */
};

/* Slurm's step is told by SLURM_STEP_NUM_TASKS, which srun alone sets: SLURM_NTASKS and SLURM_PROCID are also
 * in a batch script that no srun started. Marks of MPI (OMPI_COMM_WORLD_SIZE, PMI_SIZE, PMI_RANK, PMIX_RANK)
 * come first. An error has kind ERR_USAGE and names the variable and its value. */
int launcher_find(struct launcher *l, struct err *e);

/* For MPI_Init() to come, by variables of the environment that nobody has set (mpirun --mca sets them, too).
 * Other MPIs than Open MPI do not know them.
 *
 * Transport: where all ranks are on this host and nobody chose otherwise (OMPI_MCA_pml or OMPI_MCA_mtl), Open
 * MPI takes its own, ob1 over shared memory. Left to itself it first asks every network library that it was
 * built with, a fifth of a second each time, and comes to the same.
 *
 * Sums (OMPI_MCA_coll_libnbc_iallreduce_algorithm): by halves and back, Rabenseifner's, each rank 2·(R-1)/R
 * of the bytes. For sums in place Open MPI would take a binomial tree, all bytes 2·log2 R times and through
 * rank 0. */
void launcher_prepare_mpi(const struct launcher *l);

/* MPI's number of ranks against the launcher's: where they differ, MPI does not understand the launcher, and
 * each process would believe to be a job of its own. */
int launcher_check_size(const struct launcher *l, int mpi_size, struct err *e);

#endif
