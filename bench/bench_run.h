/* bench_run - what the programs that measure on CPUs share: the communicator that the launcher asks for,
 * medians, memory, and the machine's name.
 */
#ifndef BENCH_BENCH_RUN_H
#define BENCH_BENCH_RUN_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "worker/comm/comm.h"

/* MPI under a launcher, else one rank. NULL is the error. */
struct comm *bench_comm_open(int *argc, char ***argv, struct err *e);
void bench_comm_close(struct comm *comm); /* NULL is legal */

/* v (n) is sorted. */
double bench_median(double *v, int n);

/* {"median", "min", "max"} of v (n), which is left as it is; "all", too, where asked for. */
cJSON *bench_spread(const double *v, int n, bool all);

/* Most bytes that this process ever had resident (VmHWM); 0 where the system does not say. */
double bench_peak_rss(void);

/* "cpu", "cores", "threads", "ranks" into doc. */
void bench_tell_machine(cJSON *doc, const struct comm *comm, long threads);

/* Prints the document and frees it; -1 when stdout is gone. */
int bench_print(cJSON *doc, struct err *e);

#endif
