/* log - one line an event, for people or for machines:
 *
 *   2026-01-31T09:30:00.123Z INFO  batchformerd: job 7 running: running on node1
 *   {"time":"2026-01-31T09:30:00.123Z","level":"info","component":"batchformerd","job":7,"message":"job 7 …"}
 *
 * A message about a job begins with "job N", and nothing else does: that is where "job" comes from.
 */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include "common/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_TEXT, LOG_JSON };

/* Owned by the program's context and passed down; there is no global log. */
struct log {
    int fd;
    enum log_level level;
    const char *component; /* borrowed */
    enum log_format format;
};

/* Writes one line of at most 4096 bytes with a single write(2), so that lines of several processes on one
 * file never mix. Control characters become blanks: nobody's name can begin a line or move a cursor. A NULL
 * log is legal: nothing is written. */
void log_write(const struct log *l, enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "debug" | "info" | "warn" | "error". */
int log_level_parse(const char *s, enum log_level *out, struct err *e);

/* "text" | "json". */
int log_format_parse(const char *s, enum log_format *out, struct err *e);

#define log_debug(l, ...) log_write((l), LOG_DEBUG, __VA_ARGS__)
#define log_info(l, ...) log_write((l), LOG_INFO, __VA_ARGS__)
#define log_warn(l, ...) log_write((l), LOG_WARN, __VA_ARGS__)
#define log_error(l, ...) log_write((l), LOG_ERROR, __VA_ARGS__)

#endif
