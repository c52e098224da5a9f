/* user_env - the environment of programs that the daemon, being root, starts as another user. */
#ifndef DAEMON_USER_ENV_H
#define DAEMON_USER_ENV_H

#include <stddef.h>
#include "daemon/identity.h"

/* Of our own environment only what says how to find, show and tune things (a fixed list: see user_env.c);
 * HOME, USER, LOGNAME and SHELL of the user; and `ours`, n assignments that win. Free it with mpirun_free().
 */
char **user_env(const struct identity *who, const char *const *ours, size_t n_ours);

#endif
