/* log - see log.h. */
#include "common/log.h"
#include "common/clock.h"
#include "common/utf8.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_MESSAGE = 2048, MAX_LINE = 4096 };

static const char *const level_names[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};
static const char *const level_words[] = {"debug", "info", "warn", "error"};

/* Appends to a line that keeps room for its end; returns its new length. What does not fit is left out whole.
 */
static size_t put(char line[MAX_LINE], size_t at, const char *s, size_t n)
{
    if (at + n > MAX_LINE - 4)
        return at;
    memcpy(line + at, s, n);
    return at + n;
}

/* The inside of a JSON string. */
static size_t put_escaped(char line[MAX_LINE], size_t at, const char *s)
{
    for (size_t left = strlen(s); left;) {
        size_t n = utf8_len((const unsigned char *)s, left);
        if (*s == '"' || *s == '\\')
            at = put(line, at, (char[]){'\\', *s}, 2);
        else if (n)
            at = put(line, at, s, n);
        else
            at = put(line, at, "\xEF\xBF\xBD", 3);
        s += n ? n : 1;
        left -= n ? n : 1;
    }
    return at;
}

/* The N of "job N:" or "job N …" at the beginning of a message. */
static bool job_of(const char *message, long long *job)
{
    char *end;

    if (strncmp(message, "job ", 4) != 0 || message[4] < '0' || message[4] > '9')
        return false;
    *job = strtoll(message + 4, &end, 10);
    return *end == ' ' || *end == ':';
}

static size_t json_line(char line[MAX_LINE], const struct log *l, enum log_level level, const char *when,
                        const char *message)
{
    char head[192];
    long long job;
    int n = snprintf(head, sizeof head, "{\"time\":\"%s\",\"level\":\"%s\",\"component\":\"%.64s\"", when,
                     level_words[level], l->component);
    size_t at = put(line, 0, head, (size_t)n);

    if (job_of(message, &job))
        at = put(line, at, head, (size_t)snprintf(head, sizeof head, ",\"job\":%lld", job));
    at = put(line, at, ",\"message\":\"", 12);
    at = put_escaped(line, at, message);
    memcpy(line + at, "\"}\n", 3);
    return at + 3;
}

static size_t text_line(char line[MAX_LINE], const struct log *l, enum log_level level, const char *when,
                        const char *message)
{
    return (size_t)snprintf(line, MAX_LINE, "%s %s %.64s: %s\n", when, level_names[level], l->component,
                            message);
}

void log_write(const struct log *l, enum log_level level, const char *fmt, ...)
{
    char message[MAX_MESSAGE], line[MAX_LINE], when[32];
    va_list ap;

    if (!l || level < l->level)
        return;
    clock_iso(clock_wall_ms(), when);
    va_start(ap, fmt);
    if (vsnprintf(message, sizeof message, fmt, ap) < 0)
        message[0] = 0;
    va_end(ap);
    for (char *p = message; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    size_t n = l->format == LOG_JSON ? json_line(line, l, level, when, message)
                                     : text_line(line, l, level, when, message);
    if (write(l->fd, line, n) < 0) {
        /* A log that cannot be written must not stop the work that it describes. */
    }
}

int log_level_parse(const char *s, enum log_level *out, struct err *e)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(s, level_words[i]) == 0) {
            *out = (enum log_level)i;
            return 0;
        }
    return err_set(e, "log level '%s': accepted are debug, info, warn, error", s);
}

int log_format_parse(const char *s, enum log_format *out, struct err *e)
{
    if (strcmp(s, "text") != 0 && strcmp(s, "json") != 0)
        return err_set(e, "log format '%s': accepted are text, json", s);
    *out = strcmp(s, "json") == 0 ? LOG_JSON : LOG_TEXT;
    return 0;
}
