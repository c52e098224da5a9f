/* spawn - starts a program in a session of its own, as ourselves or as another user. */
#ifndef DAEMON_SPAWN_H
#define DAEMON_SPAWN_H

#include <sys/types.h>
#include "common/err.h"
#include "daemon/identity.h"

struct spawn {
    const char *file; /* path */
    char *const *args, *const *env;
    const char *cwd;           /* entered with the rights of `as` */
    int out_fd;                /* becomes its standard output and error; its input is /dev/null */
    const struct identity *as; /* NULL: ourselves */
};

/* Returns when the program runs, or -1: then there is no process. The caller waits for its end (waitpid).
 *
 * For `as`: its groups, then its group, then its user, each for good, checked before the program starts; no
 * program that it starts can gain rights by a set-user-id bit; umask 027. No other descriptor is handed on.
 */
int spawn_start(const struct spawn *s, pid_t *pid, struct err *e);

#endif
