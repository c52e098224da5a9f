/* proc - what /proc says about processes: who they are, which belong to an attempt, and ending them for sure.
 *
 * A pid alone names nobody: it is used again. A process is (pid, start time, boot); signals go through a
 * pidfd that is opened before the identity is checked, so that they cannot hit a successor.
 */
#ifndef DAEMON_PROC_H
#define DAEMON_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include "daemon/job.h"

/* The identity of a living process. -1 when there is none, or it is a zombie. */
int proc_identify(int64_t pid, struct job_process *out);

/* Is it still the same process, and alive? */
bool proc_alive(const struct job_process *p);

/* Its state as /proc has it: 'R', 'S', 'D', 'T' (stopped by a signal), 't' (by a debugger), …; 0 when it is
 * gone. */
char proc_state(const struct job_process *p);

/* A pidfd of that very process, or -1. */
int proc_open(const struct job_process *p);

/* The processes of an attempt: those of the session that `leader` began (0: not known), and those whose
 * environment holds `env` ("NAME=value"), wherever they went. */
struct proc_family {
    struct job_process leader;
    const char *env;
};

/* Sends the signal to every living member (0: only counts). Returns how many there were. */
int proc_signal_family(const struct proc_family *f, int signo);

/* The eldest living member that leads its own session: the launcher. 0 and *out, or -1. */
int proc_find_leader(const char *env, struct job_process *out);

#endif
