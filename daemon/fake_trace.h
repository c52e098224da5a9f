/* fake_trace - what runs of the fake launcher leave behind: <run-dir>/fake.log, a line for each start and
 * each end.
 *
 *   start ATTEMPT TOKEN TIME_MS
 *   end ATTEMPT HOW TIME_MS
 *
 * Tests read from it which attempts ran when. A fake run that survives its coordinator has its life there.
 */
#ifndef DAEMON_FAKE_TRACE_H
#define DAEMON_FAKE_TRACE_H

#include <stdbool.h>
#include "daemon/job.h"

/* What the lines say; nothing of a run that never started. */
struct fake_trace {
    bool started, ended;
    int64_t attempt, start_ms;
    char token[JOB_TOKEN_BYTES]; /* of the last start */
};

/* One write(2) each: a line is there or not. */
int fake_trace_start(const char *run_dir, int64_t attempt, const char *token, struct err *e);
int fake_trace_end(const char *run_dir, int64_t attempt, const char *how, struct err *e);

void fake_trace_read(const char *run_dir, struct fake_trace *out);

/* result.json, as a worker leaves it. */
int fake_trace_result(const char *run_dir, const char *status, const char *reason, struct err *e);

#endif
