/* launch - the interface behind which processes are started: one attempt of one job is one launch.
 *
 * start() and adopt() lead to exactly one on_exit(), and never from within themselves; by then no process of
 * the attempt is left. Whether a job runs, ends or restarts is not the launcher's business.
 */
#ifndef DAEMON_LAUNCH_H
#define DAEMON_LAUNCH_H

#include <uv.h>
#include "common/log.h"
#include "daemon/job.h"
#include "proto/progress.h"

/* Borrowed for the time of the call. */
struct launch_request {
    int64_t job, attempt, n_ranks;
    int64_t uid; /* who submitted it: under root it runs as that user */
    bool resume;
    const struct place *place; /* where the ranks are to be; NULL for one that is looked for */
    const char *run_dir, *token;
};

struct launch_exit {
    bool known; /* false: nobody watched when it ended */
    int status; /* exit status, when no signal killed it */
    int signal;
    bool hung; /* the launcher had no rank any more and did not end; it was killed */
};

struct launch_listener {
    void *ctx;
    void (*on_exit)(void *ctx, int64_t job, int64_t attempt, const struct launch_exit *exit);
    /* For launchers whose ranks do not speak for themselves over the socket. */
    void (*on_attached)(void *ctx, int64_t job, int64_t attempt, const char *host);
    void (*on_progress)(void *ctx, int64_t job, int64_t attempt, const struct progress *p);
    void (*on_done)(void *ctx, int64_t job, int64_t attempt, const char *status, const char *reason);
};

enum launch_found {
    LAUNCH_FOUND,   /* the launcher process lives: *process */
    LAUNCH_ORPHANS, /* it is gone, some of its ranks live */
    LAUNCH_GONE
};

struct launcher;

struct launcher_ops {
    const char *name;
    /* Starts the attempt; *process is zero for a launcher without processes. */
    int (*start)(struct launcher *l, const struct launch_request *rq, struct job_process *process,
                 struct err *e);
    /* Takes over an attempt that an earlier coordinator started. If it is gone, what is left of it is ended
     * and on_exit() comes with known == false. process->pid may be 0. */
    void (*adopt)(struct launcher *l, const struct launch_request *rq, const struct job_process *process);
    /* Looks for an attempt of which only the token is known, and where its run directory would be. */
    enum launch_found (*find)(struct launcher *l, const struct launch_request *rq,
                              struct job_process *process);
    /* Tells rank 0 "stop" or "checkpoint" by a way of the launcher's own; NULL when the socket is the only
     * way. */
    bool (*command)(struct launcher *l, int64_t job, const char *command);
    /* SIGTERM to the launcher process, or SIGKILL to every process of the attempt. */
    void (*signal)(struct launcher *l, int64_t job, int signo);
    /* Lets go of what runs; the loop must run once more to finish closing. */
    void (*destroy)(struct launcher *l);
};

/* The first member of every launcher. */
struct launcher {
    const struct launcher_ops *ops;
};

struct launch_mpirun_config {
    uv_loop_t *loop;
    const struct log *log;
    struct launch_listener listener;
    const char *mpirun;        /* path; NULL: look in $PATH at each start */
    const char *worker;        /* path */
    const char *address;       /* where rank 0 finds the coordinator: "unix:/absolute/path" */
    const char *guest_address; /* the same for ranks that run as another user; NULL: there is no such place */
    const char *host;          /* this host's name among nodes */
    const char *far_address;   /* the same for ranks on other hosts: "tcp:HOST:PORT" */
    const char *far_ca;        /* file of certificates to trust there; NULL: the system's */
    const char *launch_agent;  /* what mpirun reaches other hosts with; NULL: its default */
    int64_t hang_ms;           /* an mpirun that has been without a rank for so long hangs */
};

/* Borrows the strings of the config. */
struct launcher *launch_mpirun_create(const struct launch_mpirun_config *config);

/* A launcher without processes for tests: `behaviour` is a list like "run_ms=50,steps=10,fail=0", see
 * launch_fake.c; NULL or "" for the defaults. */
struct launcher *launch_fake_create(uv_loop_t *loop, const char *behaviour, struct launch_listener listener,
                                    struct err *e);

static inline void launcher_destroy(struct launcher *l)
{
    if (l)
        l->ops->destroy(l);
}

#endif
