/* main - batchformer-worker: with device.c the only file that names concrete tasks, backends and
 * communicators.
 *
 * Order: options → signals blocked, before any thread exists → communicator (MPI when a launcher started us,
 * else none) → spec, checked by every rank → run_job() → exit status. Everything below knows only interfaces.
 */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/json.h"
#include "worker/device.h"
#include "worker/options.h"
#include "worker/tasks/long_tailed.h"
#include "worker/train/agree.h"
#include "worker/train/run.h"
#include "worker/train/signals.h"

/* A rank that says nothing for so long is lost. Longer than anything one rank does alone between two
 * collectives (reading a data set, writing a checkpoint). */
enum { COMM_TIMEOUT_MS = 10 * 60 * 1000 };

static const struct {
    enum jobspec_task id;
    const struct task_ops *ops;
} tasks[] = {
    {TASK_LONG_TAILED, &long_tailed_task},
};

/* Environment variables by which launchers tell a process that it is one of many. */
static const char *const launcher_marks[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"};
static const char *const launcher_ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"};

static bool under_launcher(void)
{
    for (size_t i = 0; i < sizeof launcher_marks / sizeof *launcher_marks; i++)
        if (getenv(launcher_marks[i]))
            return true;
    return false;
}

/* Before there is a communicator: only the first rank speaks, so that a message comes once. */
static bool speaks(void)
{
    for (size_t i = 0; i < sizeof launcher_ranks / sizeof *launcher_ranks; i++) {
        const char *rank = getenv(launcher_ranks[i]);
        if (rank)
            return strcmp(rank, "0") == 0;
    }
    return true;
}

/* srun without PMIx starts tasks that cannot meet: each would believe to be a job of one rank. */
static int check_srun(struct err *e)
{
    const char *started = getenv("SLURM_STEP_NUM_TASKS");

    if (under_launcher() || !started || atoi(started) <= 1)
        return 0;
    return err_set_kind(
        e, ERR_USAGE,
        "srun started %s tasks without PMIx, so they cannot find each other: use srun --mpi=pmix, or "
        "mpirun inside the allocation",
        started);
}

static int print_probe(void)
{
    cJSON *doc = device_probe();
    char *text = json_text(doc);

    puts(text);
    free(text);
    cJSON_Delete(doc);
    return fflush(stdout) == 0 ? RUN_SUCCEEDED : RUN_FAILED;
}

static struct comm *open_comm(int *argc, char ***argv, bool mpi, struct err *e)
{
    int provided;

    if (!mpi)
        return comm_single_create();
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        err_set(e, "MPI_Init_thread failed");
        return NULL;
    }
    return comm_mpi_create(COMM_TIMEOUT_MS, e);
}

/* Every rank reads the spec; all agree that it is good. */
static int load_spec(struct comm *comm, const char *path, struct jobspec *spec, cJSON **resolved,
                     struct err *e)
{
    return agree_outcome(comm, jobspec_load(path, spec, resolved, e), e);
}

static const struct task_ops *find_task(enum jobspec_task id)
{
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (tasks[i].id == id)
            return tasks[i].ops;
    return NULL;
}

static enum run_exit train(struct comm *comm, const struct options *o, int signal_fd, int64_t start_ns,
                           bool *orderly)
{
    struct jobspec *spec = xcalloc(1, sizeof *spec);
    struct err e = ERR_INIT;
    cJSON *resolved = NULL;
    enum run_exit status;

    *orderly = true;
    if (load_spec(comm, o->job, spec, &resolved, &e) < 0) {
        *orderly = e.kind != ERR_PEER_LOST;
        if (comm->rank == 0)
            fprintf(stderr, "batchformer-worker: %s\n", e.msg);
        status = run_exit_of(&e);
    } else {
        struct run_cfg cfg = {.spec = spec,
                              .resolved = resolved,
                              .comm = comm,
                              .backend = device_backend,
                              .device_comm = device_comm,
                              .task = find_task(spec->task),
                              .run_dir = o->run_dir,
                              .resume = o->resume,
                              .max_steps = o->max_steps,
                              .dump = o->dump,
                              .signal_fd = signal_fd,
                              .start_ns = start_ns};
        ASSERT(cfg.task);
        status = run_job(&cfg, orderly);
    }
    cJSON_Delete(resolved);
    free(spec);
    return status;
}

/* With signals blocked and the communicator open. */
static enum run_exit run_rank(int argc, char **argv, const struct options *o, int64_t start_ns)
{
    struct err e = ERR_INIT;
    bool mpi = under_launcher(), orderly;
    int signal_fd = signals_open(&e);
    struct comm *comm = signal_fd < 0 ? NULL : open_comm(&argc, &argv, mpi, &e);

    if (!comm) {
        fprintf(stderr, "batchformer-worker: %s\n", e.msg);
        return RUN_FAILED;
    }
    enum run_exit status = train(comm, o, signal_fd, start_ns, &orderly);
    if (!orderly) {
        /* Others may wait for this rank in a collective, and MPI_Finalize would wait for them. */
        comm_abort(comm, status);
        fflush(NULL);
        _exit(status);
    }
    comm_destroy(comm);
    if (mpi)
        MPI_Finalize();
    close(signal_fd);
    return status;
}

int main(int argc, char **argv)
{
    int64_t start_ns = clock_mono_ns();
    struct options o;
    struct err e = ERR_INIT;
    int status;

    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error of write(2), not our end */
    if (options_parse(&o, argc, argv, &e) < 0) {
        if (speaks())
            fprintf(stderr, "batchformer-worker: %s\n", e.msg);
        status = RUN_USAGE;
    } else if (o.help) {
        options_print_help();
        status = RUN_SUCCEEDED;
    } else if (o.version) {
        printf("batchformer-worker %s\n", BF_VERSION);
        status = RUN_SUCCEEDED;
    } else if (o.probe) {
        status = print_probe();
    } else if (check_srun(&e) < 0) {
        const char *task = getenv("SLURM_PROCID");
        if (!task || strcmp(task, "0") == 0)
            fprintf(stderr, "batchformer-worker: %s\n", e.msg);
        status = RUN_USAGE;
    } else {
        status = run_rank(argc, argv, &o, start_ns);
    }
    options_free(&o);
    return status;
}
