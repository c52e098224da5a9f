/* heartbeat - every rank's sign of life to the coordinator: where its training thread is.
 *
 * The training thread stores phase, step and the collective it waits in into atomics; it takes no lock, makes
 * no system call and never waits. A thread of its own reads them and tells the coordinator: once every
 * HEARTBEAT_EVERY_MS, and sooner when the training thread has come to another place and stays there, which is
 * what a rank that hangs does. So it beats while the training thread computes, waits or loops, and stops when
 * the process does.
 *
 * One connection a rank (worker.hello, worker.beat). A link that breaks or is refused is made again later and
 * never ends a run. Without a coordinator in the environment there is no heartbeat and no thread: every
 * function takes NULL and does nothing.
 */
#ifndef TRAIN_HEARTBEAT_H
#define TRAIN_HEARTBEAT_H

#include <stdint.h>
#include "common/log.h"
#include "worker/comm/comm_watch.h"

enum { HEARTBEAT_EVERY_MS = 1000, HEARTBEAT_LOOK_MS = 200 };

enum heart_phase {
    HEART_START,    /* building, loading, measuring */
    HEART_DATA,     /* waiting for the mini-batch */
    HEART_FORWARD,  /* of a step; of a recorded step, all of it */
    HEART_BACKWARD, /* with the sums of the gradients */
    HEART_VOTE,
    HEART_UPDATE,
    HEART_LOG, /* between steps: metrics, receipts */
    HEART_EVALUATE,
    HEART_CHECKPOINT,
    HEART_FINISH,
    HEART_END, /* the last word: whoever says it is not waited for */
    HEART_N_PHASES
};

struct heartbeat;

/* Starts the thread. Fails when the environment's variables are malformed or no thread can be had. Signals
 * that are blocked here are blocked in the thread. */
struct heartbeat *heartbeat_start(const struct log *log, int rank, struct err *e);

/* Says that this rank is at its end, and ends the thread and the connection. */
void heartbeat_stop(struct heartbeat *h);

/* --- for the training thread --- */

/* Where it is from now on. Returns where it was. */
enum heart_phase heartbeat_phase(struct heartbeat *h, enum heart_phase phase);

/* Steps done in the whole run, where that is known without making one: at the start. */
void heartbeat_at_step(struct heartbeat *h, int64_t step);

/* Around a step: what lies between is its time; of that, what does not lie in a collective is its work. */
void heartbeat_step_begin(struct heartbeat *h);
void heartbeat_step_end(struct heartbeat *h, int64_t step);

/* For comm_watch_create(); of this heartbeat, which must not be NULL. */
struct comm_watcher heartbeat_watcher(struct heartbeat *h);

/* What a rank in this phase waits in when it is in this call, in words: "all-gather of features". */
const char *heartbeat_wait_name(enum heart_phase phase, enum comm_call call);
const char *heartbeat_phase_name(enum heart_phase phase);

#endif
