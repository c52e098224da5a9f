/* log - see log.h. */
#include "common/log.h"
#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const level_names[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};

void log_write(const struct log *l, enum log_level level, const char *fmt, ...)
{
    char line[2048], when[32];
    va_list ap;

    if (!l || level < l->level)
        return;
    clock_iso(clock_wall_ms(), when);
    int n = snprintf(line, sizeof line, "%s %s %s: ", when, level_names[level], l->component);
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    size_t len = (size_t)n + (size_t)(m < 0 ? 0 : m);
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    for (size_t i = 0; i < len; i++)
        if (line[i] == '\n')
            line[i] = ' ';
    line[len++] = '\n';
    if (write(l->fd, line, len) < 0) {
        /* A log that cannot be written must not stop the work that it describes. */
    }
}

int log_level_parse(const char *s, enum log_level *out, struct err *e)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};

    for (int i = 0; i < 4; i++)
        if (strcmp(s, names[i]) == 0) {
            *out = (enum log_level)i;
            return 0;
        }
    return err_set(e, "log level '%s': accepted are debug, info, warn, error", s);
}
