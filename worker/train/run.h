/* run - one rank from a checked spec to an exit status: run directory, logs, backend, coordinator, trainer,
 * result.
 *
 * Whatever happens after the run directory was claimed, result.json says how it ended; a directory that was
 * refused is not touched, and neither is the result of a run that this spec cannot go on with.
 */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "worker/train/dump.h"
#include "worker/train/task.h"

struct run_cfg { /* all borrowed */
    const struct jobspec *spec;
    const cJSON *resolved;
    struct comm *comm;
    /* Kernels and memory for this rank; and a communicator on that memory, or `comm` where it is the host's.
     */
    struct backend *(*backend)(const struct jobspec *spec, struct comm *comm, int n_threads, struct err *e);
    struct comm *(*device_comm)(struct comm *comm, struct backend *be, struct err *e);
    const struct task_ops *task;
    const char *run_dir;
    bool resume;
    int64_t max_steps;
    struct dump dump;
    int signal_fd;
    int64_t start_ns, comm_ns; /* monotonic times: the program started; it had its communicator */
};

enum run_exit {
    RUN_SUCCEEDED = 0, /* also when max_steps was reached */
    RUN_FAILED = 1,    /* for a stated reason */
    RUN_USAGE = 2,     /* command line or spec */
    RUN_PEER_LOST = 4, /* another rank was lost */
    RUN_STOPPED = 130, /* asked to stop, with a checkpoint */
};

/* Returns the exit status. *orderly: all ranks come here with the same status; else the caller must abort the
 * communicator, because other ranks may wait for this one. Messages have been logged, and printed once. */
enum run_exit run_job(const struct run_cfg *cfg, bool *orderly);

/* The exit status that a failure asks for. */
enum run_exit run_exit_of(const struct err *e);

#endif
