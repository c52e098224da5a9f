/* log - one line an event: "2026-01-31T09:30:00.123Z INFO  component: message". */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include "common/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Owned by the program's context and passed down; there is no global log. */
struct log {
    int fd;
    enum log_level level;
    const char *component; /* borrowed */
};

/* Writes one line with a single write(2), so that lines of several processes on one file never mix.
 * A NULL log is legal: nothing is written. */
void log_write(const struct log *l, enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "debug" | "info" | "warn" | "error". */
int log_level_parse(const char *s, enum log_level *out, struct err *e);

#define log_debug(l, ...) log_write((l), LOG_DEBUG, __VA_ARGS__)
#define log_info(l, ...) log_write((l), LOG_INFO, __VA_ARGS__)
#define log_warn(l, ...) log_write((l), LOG_WARN, __VA_ARGS__)
#define log_error(l, ...) log_write((l), LOG_ERROR, __VA_ARGS__)

#endif
