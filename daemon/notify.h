/* notify - telling the service manager how it goes: sd_notify(3)'s protocol without its library.
 *
 * Where $NOTIFY_SOCKET names a datagram socket, states go there; elsewhere every function does nothing. With
 * $WATCHDOG_USEC, and $WATCHDOG_PID ours or absent, a sign of life goes out at half that time from the loop
 * itself, so a loop that hangs is noticed. The variables are not for jobs: whoever calls takes them out of
 * the environment first.
 */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <uv.h>
#include "common/log.h"

struct notify;

/* Values as the environment has them; NULL where a variable is not set. One that makes no sense is named in
 * the log and counts as not set. Borrows loop and log. */
struct notify_config {
    uv_loop_t *loop;
    const struct log *log;
    const char *socket, *watchdog_usec, *watchdog_pid;
};
struct notify *notify_create(const struct notify_config *config);

/* The memory goes with the loop's handles. */
void notify_destroy(struct notify *n);

void notify_ready(struct notify *n);     /* it answers, for the first time or after a reload */
void notify_reloading(struct notify *n); /* notify_ready() must follow */
void notify_stopping(struct notify *n);

/* One line for people. Lines that follow each other at once become one message; a line that is no news is not
 * sent. */
void notify_status(struct notify *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
