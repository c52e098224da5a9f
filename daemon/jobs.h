/* jobs - all jobs in memory, by id. Ids rise, so the array is sorted; jobs are never removed.
 *
 * Owns the jobs. `active` lists those that have not ended, in order of id: whoever looks for work walks that
 * list and not the whole past.
 */
#ifndef DAEMON_JOBS_H
#define DAEMON_JOBS_H

#include <stddef.h>
#include "daemon/job.h"

struct jobs {
    struct job **v;
    size_t n, cap;
    struct job **active;
    size_t n_active, cap_active;
    int64_t counts[JOB_N_STATES];
    int64_t held_ranks; /* slots that jobs hold now */
};

void jobs_free(struct jobs *js);

/* NULL when there is no such job. */
struct job *jobs_find(const struct jobs *js, int64_t id);

/* Index in v of the first job whose id is >= id. */
size_t jobs_lower_bound(const struct jobs *js, int64_t id);

/* job_apply() on the job that the event names, which is made when the event is its first; keeps the counts.
 * Returns the job, or NULL when the event is not possible. */
struct job *jobs_apply(struct jobs *js, const struct job_event *ev, struct err *e);

#endif
