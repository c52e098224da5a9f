/* ranks - runs batchformer-worker on a number of ranks, without a coordinator, and waits for its end. */
#ifndef CLI_RANKS_H
#define CLI_RANKS_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"

struct ranks {
    const char *run_dir; /* holds job.json; its log/launcher.log gets what mpirun and the ranks print */
    int n;
    bool resume;
    int64_t max_steps;
    const char *dump; /* file for a dump of the last step; NULL: none */
};

/* Starts mpirun in a session of its own and waits. A signal on signal_fd (follow_signal_fd) stops the ranks.
 * Errors carry the worker's own reason; kind ERR_USAGE when the spec or the steps do not suit the worker,
 * ERR_INTERRUPTED after a signal, when nothing runs any more. */
int ranks_run(const struct ranks *r, int signal_fd, struct err *e);

/* RUN/log/launcher.log, malloc'ed. */
char *ranks_log(const char *run_dir);

/* True when a signal came; it is taken. */
bool ranks_signalled(int signal_fd);

#endif
