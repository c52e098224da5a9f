/* mpirun_args - the command line of an attempt's mpirun: a pure function of the request.
 *
 * Ranks on this host alone need no host list. Otherwise --host names each node with its ranks, in the order
 * of ranks. Where ranks have GPUs, each node gets an application context of its own ("…: …"), because only so
 * can one node see other GPUs than another (CUDA_VISIBLE_DEVICES).
 */
#ifndef DAEMON_MPIRUN_ARGS_H
#define DAEMON_MPIRUN_ARGS_H

#include "daemon/launch.h"

struct mpirun_programs {
    const char *mpirun, *worker; /* paths */
    const char *host;            /* this host's name among nodes */
    const char *launch_agent;    /* NULL: Open MPI's default, ssh */
    bool passes_ca;              /* ranks on other hosts get BATCHFORMER_CA */
};

/* NULL-ended and malloc'ed, for mpirun_free(). */
char **mpirun_args(const struct mpirun_programs *programs, const struct launch_request *rq);

#endif
