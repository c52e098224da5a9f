/* watch - the event stream: every durable event once and in order, from any point of the past on.
 *
 * A watch is a cursor. While it lags behind the journal it reads on from the store, a chunk whenever the
 * client has taken what was sent; once it has caught up, events come as they happen. So a slow client costs
 * no memory, and what it has not seen is never thrown away. Progress is not an event: it goes to whoever has
 * caught up and has little unsent, carries the seq of the last event, and is never replayed.
 */
#ifndef DAEMON_WATCH_H
#define DAEMON_WATCH_H

#include <stdbool.h>
#include <stdint.h>
#include "daemon/job.h"
#include "proto/progress.h"

struct conn;
struct daemon;

struct watch {
    bool active;
    bool all_users; /* else only jobs of the connection's user */
    int64_t job;    /* 0 = all */
    int64_t cursor; /* seq of the last event that was sent or passed over */
};

/* A new durable event. */
void watch_event(struct daemon *d, const struct job *job, const struct job_event *ev);

/* News from a running job. */
void watch_progress(struct daemon *d, const struct job *job, const struct progress *p);

/* Sends what the connection's watch lags behind, as far as it has room. Between rounds of the journal only:
 * within one the store is ahead of the jobs. */
void watch_pump(struct conn *c);

/* The same for every connection; at the end of a round. */
void watch_pump_all(struct daemon *d);

#endif
