/* job - a job's record and the pure state machine that moves it.
 *
 * A job changes only through job_apply(job, event); events come from the journal, so replaying the journal
 * gives the same job again. job_apply has no effect but on *job: it reads no clock, starts nothing, writes
 * nothing.
 *
 *   queued → starting → running → succeeded | failed | cancelled
 *            starting, running → queued          "restarting", after a fault
 *            starting, running → preempting      asked to yield
 *            preempting → queued | paused        it has
 *   queued ⇄ paused
 *   failed, cancelled → queued                   "requeued"
 *
 * "starting" holds from the decision to start until rank 0 has spoken. What is asked of a job that has
 * processes is a wish until they are gone: a cancellation (`cancelling`), or to yield (state preempting):
 * write a checkpoint and give its slots back, then wait in the queue or paused (`yield_to`). A job that has
 * failed or was cancelled can be queued again; it goes on from its newest checkpoint.
 *
 * An attempt that yields is no fault of the job's: only restarts count against max_restarts.
 */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "daemon/place.h"
#include "proto/progress.h"

enum job_state {
    JOB_NEW, /* before its first event */
    JOB_QUEUED,
    JOB_STARTING,
    JOB_RUNNING,
    JOB_SUCCEEDED,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_PAUSED,     /* waits until somebody resumes it */
    JOB_PREEMPTING, /* was asked to yield; still holds its slots */
    JOB_N_STATES
};

enum job_event_type {
    JOB_EV_SUBMITTED,
    JOB_EV_STARTING, /* the decision: attempt, ranks, node, token; journalled before any process exists */
    JOB_EV_STARTED,  /* processes exist: who they are */
    JOB_EV_ATTACHED, /* rank 0 has spoken */
    JOB_EV_CHECKPOINTED,
    JOB_EV_CANCEL_REQUESTED,
    JOB_EV_RESTARTING, /* the attempt is over and all its processes are gone; there will be another */
    JOB_EV_SUCCEEDED,
    JOB_EV_FAILED,
    JOB_EV_CANCELLED,
    JOB_EV_YIELD_REQUESTED, /* to give its slots back at a step boundary; yield_to says what then */
    JOB_EV_YIELDED,         /* it has; back in the queue */
    JOB_EV_PAUSED,          /* it has, or never held any; paused */
    JOB_EV_RESUMED,         /* paused → queued */
    JOB_EV_REQUEUED,        /* an ended job is queued again */
    JOB_N_EVENTS
};

enum {
    JOB_MAX_NAME = 128,
    JOB_MAX_USER = 64,
    JOB_MAX_REASON = 512,
    JOB_MAX_NODE = 256,
    JOB_TOKEN_BYTES = 65,   /* 64 hex digits and a NUL */
    JOB_BOOT_ID_BYTES = 40, /* a UUID and a NUL */
    JOB_MAX_AFTER = 16
};

/* Where a job that yields goes; the journal keeps the name. */
enum job_yield_to { JOB_YIELD_QUEUE, JOB_YIELD_PAUSE };

/* Which process an attempt is; pids and start times are unique within one boot only. */
struct job_process {
    int64_t pid; /* 0: none known */
    int64_t start_ticks;
    char boot_id[JOB_BOOT_ID_BYTES];
};

/* One event. Which fields beyond the first block count depends on the type: see the table in job_event.c. */
struct job_event {
    int64_t seq; /* global, rising, never reused */
    int64_t job;
    int64_t time_ms; /* Unix epoch */
    enum job_event_type type;
    enum job_state state; /* the job's after this event */
    char reason[JOB_MAX_REASON];

    int64_t uid, n_ranks, min_ranks, max_ranks; /* submitted; n_ranks also starting */
    int64_t gpus_per_rank, n_nodes;             /* submitted; n_nodes 0 = any number of nodes */
    int64_t max_restarts, priority;             /* submitted */
    double time_limit_s;                        /* submitted; 0 = none */
    int64_t array, array_index;                 /* submitted: id of the array's first job; 0 = no array */
    int64_t after[JOB_MAX_AFTER], n_after;      /* submitted: ids of jobs that must have succeeded */
    char name[JOB_MAX_NAME];                    /* submitted */
    char user[JOB_MAX_USER];                    /* submitted, and who asked for a request */

    int64_t attempt;         /* starting, restarting (the next one) */
    char node[JOB_MAX_NODE]; /* starting: the first of its nodes */
    const char *place;       /* starting: all of them, as text (place.h), borrowed; NULL: n_ranks on `node` */
    char token[JOB_TOKEN_BYTES];
    struct job_process process; /* started */
    int64_t step; /* checkpointed, restarting, yielded, paused: of the newest checkpoint; -1 = none */
    int64_t not_before_ms; /* restarting: no start before this moment; 0 = at once */
    int64_t yield_to;      /* yield requested: enum job_yield_to */
    int64_t resize_to;     /* yield requested: to start again with so many ranks; 0: as many as it can get */
    bool has_progress;     /* succeeded, failed, cancelled, restarting: what was reported last */
    struct progress progress;
};

/* There may be very many, most of them ended long ago: a record owns its strings (place, progress, after and
 * all texts; never NULL once it is submitted) and has no room to spare. */
struct job {
    int64_t id;
    enum job_state state;
    bool cancelling;
    const char *reason;      /* of the last event that moved it */
    const char *cancel_user; /* who asked for it */

    int64_t uid, n_ranks, min_ranks, max_ranks, gpus_per_rank, n_nodes, max_restarts, priority;
    double time_limit_s;
    int64_t array, array_index;
    int64_t *after, n_after;
    const char *name, *user;
    int64_t submitted_ms, started_ms, ended_ms; /* 0 = not yet; started: the first attempt */

    int64_t attempt;            /* the current or last one, yielded ones counted; 0 before the first */
    int64_t n_restarts;         /* after faults; at most max_restarts */
    int64_t n_yields;           /* how often it gave its slots back */
    int64_t used_ms;            /* of wall time in attempts that are over */
    int64_t not_before_ms;      /* back-off after a fault */
    enum job_yield_to yield_to; /* while preempting */
    int64_t resize_to;          /* ranks to start with next, which it was asked to yield for; 0: none */
    int64_t queued_ms;          /* since when it waits, or waited last */
    int64_t last_ranks;         /* of this attempt, or the one before */
    int64_t checkpoint_step;    /* -1 = none */
    struct progress *progress;  /* what was reported last before the latest attempt ended; NULL: nothing */

    /* Of the current attempt; cleared when it ends. */
    int64_t held_ranks; /* slots it holds */
    struct place place; /* where; owned */
    int64_t attempt_ms; /* when it was decided */
    const char *node, *token;
    struct job_process process;
};

/* The state that `event` leads to from `state`, or JOB_N_STATES when it is not possible there. */
enum job_state job_next(enum job_state state, enum job_event_type event);

/* Lets go of what the record owns. */
void job_free(struct job *job);

/* Applies the event. -1 when it is not possible in the job's state: *job is unchanged then. */
int job_apply(struct job *job, const struct job_event *ev, struct err *e);

bool job_state_is_final(enum job_state s);
bool job_state_holds_slots(enum job_state s); /* starting, running, preempting */

const char *job_state_name(enum job_state s);
int job_state_parse(const char *name, enum job_state *out, struct err *e);
const char *job_event_name(enum job_event_type t);

/* --- job_event.c --- */

/* An event with everything empty but type, job, time and reason (which may be cut). */
void job_event_init(struct job_event *ev, enum job_event_type type, int64_t job, int64_t time_ms,
                    const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* What the journal keeps beside seq, job and time: an object owned by the caller. */
cJSON *job_event_to_journal(const struct job_event *ev);
int job_event_from_journal(const cJSON *v, struct job_event *ev, struct err *e); /* ev borrows from v */

/* What clients see: {seq, id, time, type, state, reason, …} without secrets. */
cJSON *job_event_to_client(const struct job_event *ev);

#endif
