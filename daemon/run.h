/* run - the living side of one attempt; private to actions*.c. See actions.h. */
#ifndef DAEMON_RUN_H
#define DAEMON_RUN_H

#include "daemon/actions.h"
#include "daemon/beats.h"

enum stop_phase { STOP_NONE, STOP_ASKED, STOP_TERM, STOP_KILL };

struct run {
    struct run *next;
    struct daemon *daemon;
    int64_t job, attempt;
    uint64_t link_id; /* of the connection that reports; 0 = none */
    bool told_attached;
    int64_t told_checkpoint;
    bool has_progress;
    struct progress progress;
    cJSON *metrics;
    char done_status[16], done_reason[JOB_MAX_REASON];
    bool is_done;
    enum stop_phase stop;
    char stopped_for[160]; /* why we ended it, unless that was a cancellation; "" = we did not */
    char lost_for[320];    /* which rank held it up, so that we ended it; "" = we did not */
    bool ended;            /* its end is with the journal */
    bool waits;            /* its start was decided; the disk has no room for its run directory yet */
    char waits_for[256];   /* what the disk says */
    struct beats *beats;
    uv_timer_t escalate, limit, tick;
    int n_handles;
};

struct actions {
    struct daemon *daemon;
    struct run *runs;
    int64_t n_runs;
    struct planner *planner;
    uv_timer_t retry; /* launches again after the disk had no room */
    int launch_fault, prepared_fault, launched_fault;
};

struct run *run_create(struct actions *a, const struct job *job);
struct run *run_find(const struct actions *a, int64_t job);

/* Lets go of the run; its memory goes when the loop has closed its timers. */
void run_release(struct actions *a, struct run *r);

/* Begins to stop it: asks, and grace_ms later sends SIGTERM. Once begun, only a shorter grace changes
 * anything. */
void run_stop(struct run *r, int64_t grace_ms);

/* Starts the clock of the job's time limit, if it has one. */
void run_watch_limit(struct run *r, const struct job *job);

/* The launcher says that nothing of it is left. */
void run_ended(void *ctx, int64_t job, int64_t attempt, const struct launch_exit *how);

#endif
