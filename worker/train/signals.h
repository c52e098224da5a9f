/* signals - requests from outside, read when we are ready: the signals are blocked and arrive on a
 * descriptor, so there is no handler and no global flag.
 *
 * SIGTERM, SIGINT   stop: checkpoint, then exit 130
 * SIGUSR1           the same; what mpirun forwards to its ranks and Slurm sends before a time limit. (mpirun
 * answers SIGTERM with SIGKILL for its ranks a second later, which may be less than a checkpoint takes.)
 * SIGUSR2           checkpoint and go on
 */
#ifndef TRAIN_SIGNALS_H
#define TRAIN_SIGNALS_H

#include "common/err.h"

enum { SIGNALS_STOP = 1, SIGNALS_CHECKPOINT = 2 };

/* Blocks the signals for this thread and those it creates later (so call it first) and returns the
 * descriptor. */
int signals_open(struct err *e);

/* Takes what has arrived, never waits. Returns SIGNALS_* bits; *stop_signal becomes the number of a signal
 * that asked to stop, and stays as it is when none did. */
unsigned signals_take(int fd, int *stop_signal);

/* "SIGTERM", or "signal N". */
const char *signals_name(int signal_number, char out[32]);

#endif
