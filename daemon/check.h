/* check - batchformerd --check: is what lies in a state directory whole? Starts and changes nothing. */
#ifndef DAEMON_CHECK_H
#define DAEMON_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include "common/err.h"

/* Verifies the database (pages, indices, references, numbers), every event by parsing it and applying it to
 * its job, every spec, and the ids of the run directories. Prints a line for each fault, with what to do, and
 * a summary. Returns the number of faults; -1 when it cannot look, because a coordinator works there or there
 * is no such database. */
int64_t check_state(const char *state_dir, FILE *out, struct err *e);

#endif
