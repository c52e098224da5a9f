/* state_dir - the directory that belongs to one coordinator at a time: <state-dir>/lock, flock'ed, holds its
 * pid. */
#ifndef DAEMON_STATE_DIR_H
#define DAEMON_STATE_DIR_H

#include "common/err.h"

/* Makes the directory (0700 when new) and locks it. Returns the lock's descriptor; -1, naming the pid of the
 * owner, when another coordinator has it. Closing the descriptor, also by dying, unlocks. */
int state_dir_lock(const char *path, struct err *e);

/* The same for someone who only looks: makes nothing. *fd is -1 when there is no lock file, for nobody ever
 * worked there. */
int state_dir_lock_to_check(const char *path, int *fd, struct err *e);

#endif
