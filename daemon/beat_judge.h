/* beat_judge - what the heartbeats of a run's ranks say: who is lost, stopped, hung or slow. A pure function
 * of what is known, without clocks and processes.
 *
 * Collectives tie ranks together: when one rank does not come, no other finishes a collective or a step. So a
 * run in which any rank still moves is never ended, whatever the others do not say; and who holds the others
 * up is the rank that does not wait in a collective while they do.
 *
 * - silent: no beat for half of lost_ms, at most 3 s.
 * - stopped: silent, and its process is stopped by a signal. After lost_ms the run ends.
 * - lost: silent, and its process is gone; or it is on another machine, and others beat. Likewise.
 * - stalled: nobody moves, and this is the one that is waited for. The run ends after stall_ms, or 20 times a
 *   step if that is longer, times what its phase is allowed (4 in start, evaluate, checkpoint and finish,
 *   2 in data). It is shown as stalled from half of that on.
 * - slow: its work in a step, which is what it does not wait for others, takes over 1.5 times the ranks'
 *   median, for BEAT_SLOW_FOR_MS on end. Reported, never ended.
 *
 * A local process that lives, is not stopped and says nothing has lost its link, not its life: only a run
 * that stalls as a whole is ended for it.
 */
#ifndef DAEMON_BEAT_JUDGE_H
#define DAEMON_BEAT_JUDGE_H

#include <stdbool.h>
#include <stdint.h>
#include "proto/progress.h"

enum beat_process { BEAT_PROCESS_UNKNOWN, BEAT_PROCESS_RUNS, BEAT_PROCESS_STOPPED, BEAT_PROCESS_GONE };

enum beat_state {
    BEAT_OK,
    BEAT_SLOW,
    BEAT_SILENT,
    BEAT_STOPPED,
    BEAT_STALLED,
    BEAT_ABSENT, /* has never spoken to this coordinator */
    BEAT_LEFT    /* has said that it is at its end */
};

/* One rank. Ages count time in which the coordinator could have heard it. */
struct beat_row {
    bool known;       /* it has beaten at least once */
    int64_t age_ms;   /* since its last beat */
    int64_t moved_ms; /* since its step or its count of collectives changed */
    struct progress_beat at;
    enum beat_process process;
    int64_t over_ms;       /* how long its ratio has been over the limit on end */
    enum beat_state state; /* what is found; so are the next two */
    bool over;             /* its ratio is over the limit */
    double ratio;          /* its work to the median; NaN: not known */
};

enum { BEAT_SLOW_FOR_MS = 5000 };

struct beat_limits {
    int64_t lost_ms, stall_ms;
};

enum beat_end { BEAT_GO_ON, BEAT_END_STOPPED, BEAT_END_LOST, BEAT_END_STALLED };

struct beat_verdict {
    enum beat_end end;
    int64_t rank;      /* whose fault it is */
    int64_t for_ms;    /* how long it has been silent, or the run has not moved */
    int64_t n_waiting; /* other ranks that beat and wait in a collective */
    int64_t waiting;   /* the first of them; -1: none */
    bool all_wait;     /* stalled, and rank is only the one that came last */
};

/* Fills in state and ratio of every row, and the verdict. */
void beat_judge(struct beat_row *rows, int64_t n, const struct beat_limits *limits, struct beat_verdict *out);

/* "ok", "slow", "silent", "stopped", "stalled", "absent", "left". */
const char *beat_state_name(enum beat_state s);

/* The verdict in words, "" for BEAT_GO_ON. `hosts`: of each rank, "" where it is not known. */
void beat_verdict_say(const struct beat_verdict *v, const struct beat_row *rows, int64_t n,
                      const char *const *hosts, char *out, unsigned long size);

#endif
