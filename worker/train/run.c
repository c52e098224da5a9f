/* run - see run.h. */
#include "worker/train/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/fsutil.h"
#include "worker/train/agree.h"
#include "worker/train/heartbeat.h"
#include "worker/train/host.h"
#include "worker/train/plans.h"
#include "worker/train/rundir.h"
#include "worker/train/trainer.h"

enum { DONE_WAIT_MS = 5000 };

struct run {
    struct run_cfg cfg;
    bool rank0, claimed;
    char component[32];
    struct log log, console;
    struct backend *backend;
    struct tuning *tuning;                   /* the backend's; NULL: its libraries choose by themselves */
    struct comm *device_comm, *device_inner; /* device_inner: what is watched as device_comm; else NULL */
    struct report *report;
    struct heartbeat *heart; /* NULL without a coordinator */
    struct comm *watched;    /* cfg.comm where the heartbeat watches it; else NULL */
    struct trainer *trainer;
    struct host_threads threads;
    int lock; /* of the run directory; rank 0's */
};

enum run_exit run_exit_of(const struct err *e)
{
    switch (e->kind) {
    case ERR_USAGE:
    case ERR_SPEC:
        return RUN_USAGE;
    case ERR_PEER_LOST:
        return e->code ? (enum run_exit)e->code : RUN_PEER_LOST;
    case ERR_INTERRUPTED:
        return RUN_STOPPED;
    default:
        return RUN_FAILED;
    }
}

static void say(struct run *r, enum log_level level, const char *text)
{
    if (r->claimed)
        log_write(&r->log, level, "%s", text);
    log_write(&r->console, level, "%s", text);
}

/* Collective. */
static int open_run_dir(struct run *r, struct err *e)
{
    const struct run_cfg *cfg = &r->cfg;
    int rc = 0;

    if (r->rank0 && (r->lock = rundir_claim(cfg->run_dir, cfg->resume, &r->console, e)) < 0)
        rc = -1;
    if (r->rank0 && rc == 0 && !cfg->resume)
        rc = rundir_write_spec(cfg->run_dir, cfg->resolved, e);
    if (agree_outcome_rank0(cfg->comm, rc, e) < 0)
        return -1;
    r->claimed = true;
    snprintf(r->component, sizeof r->component, "rank %d", cfg->comm->rank);
    r->log = (struct log){.fd = rundir_open_log(cfg->run_dir, cfg->comm->rank, e), .component = r->component};
    r->log.level = LOG_INFO;
    return agree_outcome(cfg->comm, r->log.fd < 0 ? -1 : 0, e);
}

static int open_report(struct run *r, struct err *e)
{
    if (!r->rank0 || !report_wanted())
        return 0;
    r->report = report_create(&r->log, r->cfg.comm->size, e);
    return r->report ? 0 : -1;
}

/* Every rank's; from here on it is known what this one waits in. */
static int open_heartbeat(struct run *r, struct err *e)
{
    if (!report_wanted())
        return 0;
    if (!(r->heart = heartbeat_start(&r->log, r->cfg.comm->rank, e)))
        return -1;
    struct comm_watcher w = heartbeat_watcher(r->heart);
    r->cfg.comm = r->watched = comm_watch_create(r->cfg.comm, &w);
    return 0;
}

/* Collective. */
static struct comm *open_device_comm(struct run *r, struct err *e)
{
    struct comm *own = r->cfg.device_comm(r->cfg.comm, r->backend, e);

    if (!own || !r->heart || own == r->cfg.comm)
        return own;
    struct comm_watcher w = heartbeat_watcher(r->heart);
    r->device_inner = own;
    return comm_watch_create(own, &w);
}

/* Collective. */
static int open_machine(struct run *r, struct err *e)
{
    int began = open_heartbeat(r, e);
    struct comm *comm = r->cfg.comm;

    if (agree_outcome(comm, began, e) < 0)
        return -1;
    /* Bitwise: one convolution's bits depend on the number of threads (cpu_conv.c). */
    bool bitwise = r->cfg.spec->train.determinism == DETERMINISM_BITWISE;
    if (host_threads(comm, bitwise ? 1 : r->cfg.spec->resources.threads_per_rank, &r->threads, e) < 0)
        return -1;
    if (bitwise)
        r->threads.from = "determinism";
    int rc = open_report(r, e);
    if (rc == 0 && !(r->backend = r->cfg.backend(r->cfg.spec, comm, r->threads.n, e)))
        rc = -1;
    if (agree_outcome(comm, rc, e) < 0)
        return -1;
    r->device_comm = open_device_comm(r, e);
    return agree_outcome(comm, r->device_comm ? 0 : -1, e);
}

/* Collective. */
static int open_plans(struct run *r, struct err *e)
{
    const struct run_cfg *cfg = &r->cfg;

    if (!cfg->spec->train.autotune)
        return 0;
    r->tuning = plans_open(cfg->comm, cfg->run_dir, cfg->resume, &r->log, e);
    r->backend->tuning = r->tuning;
    return r->tuning ? 0 : -1;
}

static void log_threads(const struct run *r)
{
    const struct host_threads *t = &r->threads;

    log_write(&r->log, t->n * t->sharing > t->cores && t->n > 1 ? LOG_WARN : LOG_INFO,
              "threads: %d, by %s; this rank may use %d cores, which %d ranks of this host share", t->n,
              t->from, t->cores, t->sharing);
}

/* Collective. */
static int open_trainer(struct run *r, struct err *e)
{
    const struct run_cfg *cfg = &r->cfg;
    struct trainer_cfg tc = {.spec = cfg->spec,
                             .resolved = cfg->resolved,
                             .comm = cfg->comm,
                             .device_comm = r->device_comm,
                             .backend = r->backend,
                             .task = cfg->task,
                             .run_dir = cfg->run_dir,
                             .resume = cfg->resume,
                             .max_steps = cfg->max_steps,
                             .dump = cfg->dump,
                             .log = &r->log,
                             .console = r->rank0 && !r->report ? &r->console : NULL,
                             .report = r->report,
                             .heart = r->heart,
                             .signal_fd = cfg->signal_fd,
                             .start_ns = cfg->start_ns,
                             .comm_ns = cfg->comm_ns};

    log_threads(r);
    log_info(&r->log, "job \"%s\" (%s), version %s, %d ranks, %d threads a rank, pid %ld", cfg->spec->name,
             cfg->task->name, BF_VERSION, cfg->comm->size, r->threads.n, (long)getpid());
    if (r->rank0 && cfg->comm->ops->note)
        say(r, r->device_comm == cfg->comm ? LOG_WARN : LOG_INFO, cfg->comm->ops->note);
    if (!(r->trainer = trainer_create(&tc, e)))
        return -1;
    /* A run that goes on has its checkpoint now: only a spec that fits may take the place of the old one. */
    int rc = r->rank0 ? rundir_begin(cfg->run_dir, cfg->resolved, e) : 0;
    if (rc == 0 && r->tuning)
        rc = plans_close(r->tuning, cfg->comm->rank, cfg->run_dir, &r->log, e);
    return agree_outcome_rank0(cfg->comm, rc, e);
}

/* result.json and the last word to the coordinator. */
static int write_result(struct run *r, const char *status, const char *reason, bool peer_lost, struct err *e)
{
    const struct run_cfg *cfg = &r->cfg;
    struct result res = {.status = status,
                         .reason = reason,
                         .peer_lost = peer_lost,
                         .name = cfg->spec->name,
                         .task = cfg->task->name,
                         .primary = cfg->task->primary,
                         .batchformer = cfg->spec->batchformer.enabled,
                         .world_size = cfg->comm->size,
                         .threads_per_rank = r->threads.n,
                         .threads_from = r->threads.from,
                         .n_epochs = cfg->spec->train.epochs,
                         .best = {-1, -1, 0},
                         .loss = NAN,
                         .images_per_s = NAN,
                         .timings = RESULT_NO_TIMINGS};

    if (r->trainer)
        trainer_result(r->trainer, &res);
    res.timings.total_s = (double)(clock_mono_ns() - cfg->start_ns) / 1e9;
    cJSON *doc = result_to_json(&res);
    int rc = result_write(cfg->run_dir, doc, e);
    if (r->report)
        report_done(r->report, status, reason, doc, DONE_WAIT_MS);
    cJSON_Delete(doc);
    return rc;
}

/* A spec or command line that does not fit the run in the directory says nothing about that run. */
static bool leaves_alone(const struct run *r, const struct err *e)
{
    return !r->claimed || (r->cfg.resume && !r->trainer && run_exit_of(e) == RUN_USAGE);
}

/* A failure that every rank knows: rank 0 tells it, others only log. */
static enum run_exit fail_together(struct run *r, const struct err *e)
{
    struct err later = ERR_INIT;

    if (r->rank0)
        say(r, LOG_ERROR, e->msg);
    else if (r->claimed)
        log_error(&r->log, "%s", e->msg);
    if (r->rank0 && !leaves_alone(r, e) && write_result(r, "failed", e->msg, false, &later) < 0)
        say(r, LOG_ERROR, later.msg);
    comm_barrier(r->cfg.comm, NULL); /* nobody leaves before the result is written: see end_orderly() */
    return run_exit_of(e);
}

/* A failure of this rank, or one that each rank finds for itself (a lost peer). The rank that caused it
 * writes the result, because rank 0 will be killed in the middle of a collective; of a lost peer rank 0
 * tells. */
static enum run_exit fail_alone(struct run *r, struct err *e)
{
    struct err later = ERR_INIT;
    /* By the rank that gave up, in the result, too; of a peer that it lost rank 0 must tell. */
    bool told = e->kind == ERR_PEER_LOST && e->code && e->code != RUN_PEER_LOST;
    bool tells = (r->rank0 && !told) || e->kind != ERR_PEER_LOST;

    if (r->cfg.comm->size > 1)
        err_wrap(e, "rank %d", r->cfg.comm->rank);
    if (tells)
        say(r, LOG_ERROR, e->msg);
    else
        log_error(&r->log, "%s", e->msg);
    if (tells && r->claimed && write_result(r, "failed", e->msg, e->kind == ERR_PEER_LOST, &later) < 0)
        say(r, LOG_ERROR, later.msg);
    return run_exit_of(e);
}

/* After a run that came to an orderly end: all ranks stay until rank 0 has written the result, because a
 * launcher ends all ranks when the first leaves with a status other than 0. */
static enum run_exit end_orderly(struct run *r, enum trainer_outcome outcome, struct err *e)
{
    static const char *const paused = "reached --max-steps";
    const char *status = outcome == TRAINER_SUCCEEDED ? "succeeded" : "stopped";
    const char *reason = outcome == TRAINER_SUCCEEDED ? NULL : outcome == TRAINER_PAUSED ? paused : e->msg;
    struct err later = ERR_INIT;
    int rc = r->rank0 ? write_result(r, status, reason, false, &later) : 0;

    if (r->rank0) {
        char *line = xasprintf("%s%s%s", status, reason ? ": " : "", reason ? reason : "");
        say(r, LOG_INFO, line);
        free(line);
    }
    if (agree_outcome_rank0(r->cfg.comm, rc, &later) < 0) {
        if (r->rank0)
            say(r, LOG_ERROR, later.msg);
        return run_exit_of(&later);
    }
    return outcome == TRAINER_STOPPED ? RUN_STOPPED : RUN_SUCCEEDED;
}

static enum run_exit run_all(struct run *r, bool *orderly)
{
    struct err e = ERR_INIT;

    *orderly = true;
    if (open_run_dir(r, &e) < 0 || open_machine(r, &e) < 0 || open_plans(r, &e) < 0 ||
        open_trainer(r, &e) < 0) {
        *orderly = e.kind != ERR_PEER_LOST;
        return *orderly ? fail_together(r, &e) : fail_alone(r, &e);
    }
    enum trainer_outcome outcome = trainer_run(r->trainer, &e);
    if (outcome == TRAINER_FAILED_TOGETHER)
        return fail_together(r, &e);
    if (outcome != TRAINER_FAILED_ALONE)
        return end_orderly(r, outcome, &e);
    *orderly = false;
    return fail_alone(r, &e);
}

enum run_exit run_job(const struct run_cfg *cfg, bool *orderly)
{
    struct run r = {.cfg = *cfg,
                    .rank0 = cfg->comm->rank == 0,
                    .lock = -1,
                    .log = {.fd = -1, .level = LOG_INFO, .component = "worker"},
                    .console = {.fd = STDERR_FILENO, .level = LOG_INFO, .component = "batchformer-worker"}};
    enum run_exit status = run_all(&r, orderly);

    if (!*orderly)
        return status; /* collectives may be in flight in what would be freed; the process ends now */
    heartbeat_stop(r.heart);
    report_destroy(r.report);
    trainer_destroy(r.trainer);
    if (r.device_comm != r.cfg.comm)
        comm_destroy(r.device_comm);
    comm_destroy(r.device_inner);
    if (r.backend)
        r.backend->ops->destroy(r.backend);
    tuning_destroy(r.tuning);
    comm_destroy(r.watched);
    if (r.log.fd >= 0)
        close(r.log.fd);
    if (r.lock >= 0)
        close(r.lock);
    return status;
}
