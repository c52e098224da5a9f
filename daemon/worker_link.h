/* worker_link - the ranks' side of the socket: the worker.* methods, and commands back. */
#ifndef DAEMON_WORKER_LINK_H
#define DAEMON_WORKER_LINK_H

#include <stdbool.h>

struct conn;

/* Compares in a time that does not depend on where the tokens differ. False for an empty one. */
bool worker_token_equal(const char *ours, const char *theirs);

/* worker.command {command} */
void worker_link_command(struct conn *c, const char *command);

#endif
