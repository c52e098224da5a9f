/* planner - when to schedule, and what becomes of a plan: gathers what the pure scheduler (sched.h) wants to
 * know, and turns its decisions into events.
 *
 * It plans at the end of a journal's round, when something has changed and no decision of the plan before is
 * still on its way to the disk; when the moment has come for which something was held back; and every few
 * seconds while there is anything to be decided, because estimates and ages change by themselves. It spends
 * at most a fifth of its time on that, however long the queue.
 */
#ifndef DAEMON_PLANNER_H
#define DAEMON_PLANNER_H

#include "daemon/daemon.h"

struct planner;

struct planner *planner_create(struct daemon *d);
void planner_destroy(struct planner *p); /* its memory goes with the loop's handles */

/* Something that matters to the scheduler has changed. */
void planner_wake(struct planner *p);

/* Plans, if there is reason to. */
void planner_run(struct planner *p);

/* One sentence why a queued job waits and until when, as of the newest plan: "job 17 needs …". False when it
 * was in no plan yet. */
bool planner_explain(const struct planner *p, const struct job *job, char *out, size_t size);

#endif
