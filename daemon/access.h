/* access - who may do what.
 *
 * Roles rise: who has one may call what the roles below it may. What a role may see and touch of other
 * people's jobs is not a matter of the method alone: a viewer sees all jobs and touches none, a user sees and
 * touches his own, operators and administrators all.
 *
 * The role of a user of this machine: root and the user whom the daemon runs as are administrators, others
 * what the lists of the options say (the highest, when several do), everybody else is a user. Who comes from
 * another machine has the role of his token (tokens.h).
 */
#ifndef DAEMON_ACCESS_H
#define DAEMON_ACCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "daemon/options.h"

enum role {
    ROLE_ANY, /* also who has not logged in */
    ROLE_VIEWER,
    ROLE_USER,
    ROLE_OPERATOR,
    ROLE_ADMIN,
    ROLE_WORKER /* aside: a connection that attached with an attempt's token */
};

const char *role_name(enum role r);

/* viewer, user, operator or admin. */
int role_parse(const char *name, enum role *out, struct err *e);

/* May jobs of every user be seen, changed? */
bool role_sees_all(enum role r);
bool role_touches_all(enum role r);

struct access;

/* Looks up the names in the lists; one that nobody has is an error. */
struct access *access_create(const struct options *o, struct err *e);
void access_destroy(struct access *a);

/* Who is at the other end of a socket of this machine. */
struct access_peer {
    int64_t uid, gid;
    const gid_t *groups; /* supplementary */
    int n_groups;
};

enum role access_role(const struct access *a, const struct access_peer *peer);

#endif
