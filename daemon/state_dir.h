/* state_dir - the directory that belongs to one coordinator at a time: <state-dir>/lock, flock'ed, holds its
 * pid. */
#ifndef DAEMON_STATE_DIR_H
#define DAEMON_STATE_DIR_H

#include "common/err.h"

/* Makes the directory (0700 when new) and locks it. Returns the lock's descriptor; -1, naming the pid of the
 * owner, when another coordinator has it. Closing the descriptor, also by dying, unlocks. */
int state_dir_lock(const char *path, struct err *e);

#endif
