/* planner - when to schedule, and what becomes of a plan: gathers what the pure scheduler (sched.h) wants to
 * know, and turns its decisions into events.
 *
 * It plans at the end of a journal's round, when something has changed and no decision of the plan before is
 * still on its way to the disk; and when the moment has come for which a job was held back.
 */
#ifndef DAEMON_PLANNER_H
#define DAEMON_PLANNER_H

#include "daemon/daemon.h"
#include "daemon/sched_queue.h"

struct planner;

struct planner *planner_create(struct daemon *d);
void planner_destroy(struct planner *p); /* its memory goes with the loop's handles */

/* Something that matters to the scheduler has changed. */
void planner_wake(struct planner *p);

/* Plans, if there is reason to. */
void planner_run(struct planner *p);

/* Jobs that could start if there were room, in scheduling order; the caller frees it. */
struct sched_job *planner_queue(const struct planner *p, size_t *n);

#endif
