/* main - batchformer-worker: with device.c the only file that names concrete tasks, backends and
 * communicators.
 *
 * Order: options → signals blocked, before any thread exists → communicator (MPI under a launcher that it
 * knows; TCP between the tasks of a Slurm step that has none, which meet in the run directory; else none) →
 * spec, checked by every rank → run_job() → exit status. Everything below knows only interfaces.
 */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "worker/comm/comm_tcp.h"
#include "worker/comm/launcher.h"
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

static int print_probe(void)
{
    cJSON *doc = device_probe();
    char *text = json_text(doc);

    puts(text);
    free(text);
    cJSON_Delete(doc);
    return fflush(stdout) == 0 ? RUN_SUCCEEDED : RUN_FAILED;
}

static struct comm *open_mpi(const struct launcher *l, int *argc, char ***argv, struct err *e)
{
    struct comm *comm;
    int provided;

    launcher_prepare_mpi(l);
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        err_set(e, "MPI_Init_thread failed");
        return NULL;
    }
    comm = comm_mpi_create(COMM_TIMEOUT_MS, e);
    if (comm && launcher_check_size(l, comm->size, e) < 0) {
        comm_destroy(comm);
        return NULL;
    }
    return comm;
}

/* The run directory is what the tasks of a step share; a new one is made here, by whoever comes first. */
static struct comm *open_tcp(const struct launcher *l, const char *run_dir, struct err *e)
{
    char name[96];
    const struct comm_tcp_config cfg = {.dir = run_dir,
                                        .name = name,
                                        .rank = l->rank,
                                        .size = l->size,
                                        .meet_ms = COMM_TIMEOUT_MS,
                                        .timeout_ms = COMM_TIMEOUT_MS};

    snprintf(name, sizeof name, ".ranks-%s", l->step);
    return fs_mkdir_p(run_dir, e) < 0 ? NULL : comm_tcp_create(&cfg, e);
}

static struct comm *open_comm(const struct launcher *l, const struct options *o, int *argc, char ***argv,
                              struct err *e)
{
    switch (l->kind) {
    case LAUNCHER_MPI:
        return open_mpi(l, argc, argv, e);
    case LAUNCHER_SLURM:
        return open_tcp(l, o->run_dir, e);
    default:
        return comm_single_create();
    }
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
    int64_t comm_ns = clock_mono_ns();
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
                              .start_ns = start_ns,
                              .comm_ns = comm_ns};
        ASSERT(cfg.task);
        status = run_job(&cfg, orderly);
    }
    cJSON_Delete(resolved);
    free(spec);
    return status;
}

/* Before there is a communicator. What every rank finds, the first alone says. */
static enum run_exit fail_early(const struct launcher *l, bool all_find_it, const struct err *e)
{
    if (!all_find_it && l->kind != LAUNCHER_NONE)
        fprintf(stderr, "batchformer-worker: rank %d: %s\n", l->rank, e->msg);
    else if (l->rank == 0)
        fprintf(stderr, "batchformer-worker: %s\n", e->msg);
    return run_exit_of(e);
}

static enum run_exit run_rank(int argc, char **argv, const struct launcher *l, const struct options *o,
                              int64_t start_ns)
{
    struct err e = ERR_INIT;
    bool orderly;
    int signal_fd = signals_open(&e);
    struct comm *comm = signal_fd < 0 ? NULL : open_comm(l, o, &argc, &argv, &e);

    if (!comm)
        return fail_early(l, e.kind == ERR_USAGE, &e);
    enum run_exit status = train(comm, o, signal_fd, start_ns, &orderly);
    if (!orderly) {
        /* Others may wait for this rank in a collective, and MPI_Finalize would wait for them. */
        comm_abort(comm, status);
        fflush(NULL);
        _exit(status);
    }
    comm_destroy(comm);
    if (l->kind == LAUNCHER_MPI)
        MPI_Finalize();
    close(signal_fd);
    return status;
}

int main(int argc, char **argv)
{
    int64_t start_ns = clock_mono_ns();
    struct options o;
    struct launcher l;
    struct err e = ERR_INIT, launcher_e = ERR_INIT;
    int status, launched = launcher_find(&l, &launcher_e);

    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error of write(2), not our end */
    if (options_parse(&o, argc, argv, &e) < 0) {
        status = fail_early(&l, true, &e);
    } else if (o.help) {
        options_print_help();
        status = RUN_SUCCEEDED;
    } else if (o.version) {
        printf("batchformer-worker %s\n", BF_VERSION);
        status = RUN_SUCCEEDED;
    } else if (o.probe) {
        status = print_probe();
    } else if (launched < 0) {
        status = fail_early(&l, true, &launcher_e);
    } else {
        status = run_rank(argc, argv, &l, &o, start_ns);
    }
    options_free(&o);
    return status;
}
