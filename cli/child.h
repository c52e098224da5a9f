/* child - the programs that bfctl starts: apart from its terminal, ended for sure, and what they said last.
 */
#ifndef CLI_CHILD_H
#define CLI_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include "common/err.h"

/* Starts a program with `in` as stdin and `log` as stdout and stderr, no signal blocked, in a session of its
 * own: Ctrl-C reaches us only, and we end it in order. */
int child_start(const char *program, char *const argv[], char *const env[], int in, int log, pid_t *pid,
                struct err *e);

/* Waits for its end. True once it is reaped; *pid is 0 then, and *status, which may be NULL, as waitpid's. */
bool child_reap(pid_t *pid, int *status, int timeout_ms);

/* SIGKILL to every living process of the session that a child began, whatever its process group; waits until
 * none is left, at most some seconds (one that waits for a disk ends later). Call it before the child is
 * reaped, so that its pid is nobody else's. */
void child_kill_session(pid_t leader);

/* The last n lines of a log, without control characters (but newlines), cut to cap - 1 bytes; "it wrote
 * nothing" when there are none. */
void child_last_lines(const char *log, int n, char *out, size_t cap);

#endif
