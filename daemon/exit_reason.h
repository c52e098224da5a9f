/* exit_reason - why an attempt ended, in a sentence for people, and what becomes of the job: a pure function.
 *
 * Evidence, the better first: what rank 0 said (worker.done), what it left (result.json), what the launcher
 * printed about a rank, the exit status. The worker's exit statuses are a contract: 0 succeeded; 1 failed for
 * a reason that it reported; 2 usage or invalid spec; 4 another rank was lost; 130 stopped on request.
 *
 * When we ended it because a rank was lost or hung, that is why, whatever the others then said; it is a lost
 * rank like any other.
 *
 * An error that the worker states would come again and is final. A lost rank, a killed launcher, or an end
 * that nobody saw is nobody's statement: the job restarts from its newest checkpoint while attempts are left.
 * One that was asked to yield has yielded, unless it succeeded or stated an error.
 */
#ifndef DAEMON_EXIT_REASON_H
#define DAEMON_EXIT_REASON_H

#include <stdbool.h>
#include "daemon/job.h"

struct exit_facts {
    const struct job *job;                 /* state, yield_to, cancelling, n_restarts, max_restarts, node */
    const char *done_status, *done_reason; /* of worker.done; NULL when it never came */
    const char *result_status, *result_reason; /* of result.json; NULL when there is none */
    bool result_peer_lost;                     /* result.json says that another rank was lost */
    bool status_known;                         /* false: it ended while nobody watched */
    int status, signal;       /* of the launcher: exit status, or the signal that killed it (else 0) */
    bool hung;                /* the launcher had no rank any more, did not end, and was killed for it */
    const char *launcher_log; /* what it printed in this attempt */
    int64_t checkpoint_step;  /* newest, -1 = none */
    int64_t step;             /* last one reported, -1 = none */
    const char *stopped_for;  /* we ended it for this reason (a time limit); NULL = we did not */
    const char *lost_for;     /* we ended it because a rank was lost or hung, in words; NULL = we did not */
    const char *lost_node;    /* exit_find_lost_node(); NULL = none */
};

struct exit_verdict {
    enum job_event_type type; /* succeeded, failed, cancelled, restarting, yielded or paused */
    char reason[JOB_MAX_REASON];
};

void exit_decide(const struct exit_facts *f, struct exit_verdict *out);

/* When the log says that the launcher could not reach a node, or lost it: the first node of the place, other
 * than `host`, that the log names; NULL when it says no such thing. */
const char *exit_find_lost_node(const char *log, const struct place *place, const char *host);

/* Finds the launcher's "process rank R … on node N exited on signal S (NAME)" and writes "rank R on N was
 * killed by signal S (NAME)". False when the log says no such thing. */
bool exit_parse_signal(const char *log, char *out, size_t size);

/* The last line that a worker printed: what lies between the launcher's own dashed boxes. Where there is
 * none, the first line in a box. "" for an empty log. */
void exit_last_line(const char *log, char *out, size_t size);

#endif
