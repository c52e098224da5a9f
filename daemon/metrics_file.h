/* metrics_file - series from a run's metrics.jsonl. */
#ifndef DAEMON_METRICS_FILE_H
#define DAEMON_METRICS_FILE_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "common/err.h"

/* {series: {name: [[step, value], …]}} of every number in the file's lines with step >= since_step, under the
 * names that it has there: no name is used by two kinds of line. `names`, unless NULL, is an array of the
 * names that are wanted. Bounded in what is read and given: where that was not all, the result has next_step,
 * from which to ask again. A file that is not there yet gives no series. */
cJSON *metrics_file_read(const char *path, const cJSON *names, int64_t since_step, struct err *e);

/* The last line of each kind, in the form of worker.metrics: {kind: {step, epoch, kind, values: {name:
 * number}}}, from the end of the file. NULL when there are none. */
cJSON *metrics_file_latest(const char *path);

#endif
