/* confine - the paths that a job names must lie where the operator of the daemon said that jobs may read.
 *
 * With roots (--data-root) every path of every job must lie under one of them: as it is written, and as it is
 * after all links are followed. Without roots paths are free for those who gain nothing by it: root, the
 * daemon's own user, and, where the daemon is root and each job runs as its user, everybody. Anybody else's
 * job would read with the rights of the daemon's user, so paths are refused until there are roots.
 *
 * A link can change between a check and the use, so the check is made at the submission, for the submitter,
 * and again right before each start. What lies below a path is not looked at: roots are for directories that
 * only trusted people can write.
 */
#ifndef DAEMON_CONFINE_H
#define DAEMON_CONFINE_H

#include <cjson/cJSON.h>
#include "daemon/options.h"

/* Findings [{pointer, message}, …] on the paths of a resolved spec that the user submits; NULL when there are
 * none. Owned by the caller. */
cJSON *confine_find(const struct options *o, int64_t uid, const cJSON *resolved);

/* The same before a start, for a spec as it is stored. -1 with the first finding. */
int confine_check(const struct options *o, int64_t uid, const char *spec, struct err *e);

/* Do two resolved specs name the same paths? Then what is found on one is found on the other. */
bool confine_same(const cJSON *a, const cJSON *b);

/* One path under roots of this list: 0, or -1 with what is wrong. */
int confine_path(const struct conf_list *roots, int64_t uid, const char *path, struct err *e);

#endif
