/* launcher - see launcher.h. */
#include "worker/comm/launcher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 1 << 24 };

/* In the order in which they count: srun may start mpirun, and its variables stay. */
static const char *const mpi_marks[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"};
static const char *const mpi_ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"};
static const char *const mpi_sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};

#define N_OF(list) (sizeof(list) / sizeof *(list))

static const char *first_set(const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (getenv(names[i]))
            return names[i];
    return NULL;
}

static int env_int(const char *name, int min, int *out, struct err *e)
{
    const char *text = getenv(name);
    char *end;
    long v;

    if (!text)
        return err_set_kind(e, ERR_USAGE, "%s is not set: is this a task of srun?", name);
    v = strtol(text, &end, 10);
    if (!*text || *end || v < min || v > MAX_RANKS)
        return err_set_kind(e, ERR_USAGE, "%s: '%s' found, a number from %d to %d is accepted", name, text,
                            min, MAX_RANKS);
    *out = (int)v;
    return 0;
}

static int of_mpi(struct launcher *l, struct err *e)
{
    const char *rank = first_set(mpi_ranks, N_OF(mpi_ranks));
    const char *all = getenv("OMPI_COMM_WORLD_SIZE"), *here = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");

    l->kind = LAUNCHER_MPI;
    l->one_host = all && here && strcmp(all, here) == 0;
    l->size_of = first_set(mpi_sizes, N_OF(mpi_sizes));
    if (rank && env_int(rank, 0, &l->rank, e) < 0)
        return -1;
    return l->size_of ? env_int(l->size_of, 1, &l->size, e) : 0;
}

/* The variable's value, which will be part of a file's name. */
static int step_part(const char *name, const char *otherwise, const char **out, struct err *e)
{
    *out = getenv(name);
    if (!*out && otherwise)
        *out = otherwise;
    if (!*out)
        return err_set_kind(e, ERR_USAGE, "%s is not set: is this a task of srun?", name);
    if (!**out || strlen(*out) > 16 || strspn(*out, "0123456789") != strlen(*out))
        return err_set_kind(e, ERR_USAGE, "%s: '%s' found, a number is accepted", name, *out);
    return 0;
}

static int of_slurm(struct launcher *l, struct err *e)
{
    const char *job, *step, *restart;

    l->size_of = "SLURM_STEP_NUM_TASKS";
    if (env_int(l->size_of, 1, &l->size, e) < 0)
        return -1;
    if (l->size == 1)
        return 0;
    l->kind = LAUNCHER_SLURM;
    if (env_int("SLURM_PROCID", 0, &l->rank, e) < 0 || step_part("SLURM_JOB_ID", NULL, &job, e) < 0 ||
        step_part("SLURM_STEP_ID", NULL, &step, e) < 0 ||
        step_part("SLURM_RESTART_COUNT", "0", &restart, e) < 0)
        return -1;
    if (l->rank >= l->size) {
        err_set_kind(e, ERR_USAGE, "SLURM_PROCID: %d found, less than SLURM_STEP_NUM_TASKS=%d is accepted",
                     l->rank, l->size);
        l->rank = 0; /* nobody else finds it */
        return -1;
    }
    snprintf(l->step, sizeof l->step, "%s.%s.%s", job, step, restart);
    return 0;
}

int launcher_find(struct launcher *l, struct err *e)
{
    *l = (struct launcher){.kind = LAUNCHER_NONE};
    if (first_set(mpi_marks, N_OF(mpi_marks)))
        return of_mpi(l, e);
    return getenv("SLURM_STEP_NUM_TASKS") ? of_slurm(l, e) : 0;
}

void launcher_prepare_mpi(const struct launcher *l)
{
    if (l->kind == LAUNCHER_MPI)
        setenv("OMPI_MCA_coll_libnbc_iallreduce_algorithm", "3", 0);
    if (l->one_host && !getenv("OMPI_MCA_pml") && !getenv("OMPI_MCA_mtl"))
        setenv("OMPI_MCA_pml", "ob1", 1);
}

int launcher_check_size(const struct launcher *l, int mpi_size, struct err *e)
{
    if (!l->size || l->size == mpi_size)
        return 0;
    return err_set_kind(
        e, ERR_USAGE,
        "the launcher started %d processes (%s) and MPI sees %d: MPI does not understand this "
        "launcher; under Slurm use srun --mpi=pmix or --mpi=none, or mpirun inside the "
        "allocation",
        l->size, l->size_of, mpi_size);
}
