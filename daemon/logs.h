/* logs - job.logs: the lines of a job's logs, and new ones as they come. */
#ifndef DAEMON_LOGS_H
#define DAEMON_LOGS_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "daemon/job.h"

struct conn;

enum { LOGS_MAX_TAIL = 5000, LOGS_DEFAULT_TAIL = 1000, LOGS_ALL = -2, LOGS_LAUNCHER = -1 };

/* What a connection follows. */
struct follow;

/* The last `tail` lines as an array of {line, rank?}: of one rank, of the launcher, or (LOGS_ALL) of all of
 * them in order of their time stamps. Bounded in bytes as well; older lines give way. Bytes that are not
 * UTF-8 become U+FFFD. With
 * `upto` only what lies before the place where that begins to follow, so that nothing is said twice or left
 * out. */
cJSON *logs_tail(const char *run_dir, int64_t rank, int64_t tail, const struct follow *upto);

/* From now on the connection gets job.log {id, line, rank?} for each new line, and {id, end: true} when the
 * job has ended and all is said. Replaces what it followed before. Lines that are there already (as
 * logs_tail() gave them) are not repeated. */
void logs_follow(struct conn *c, const struct job *job, const char *run_dir, int64_t rank);
void logs_follow_end(struct conn *c); /* also when nothing is followed */

#endif
