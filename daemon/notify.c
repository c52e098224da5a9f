/* notify - see notify.h. */
#include "daemon/notify.h"
#include "common/clock.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { STATUS_MS = 250, SEND_TIMEOUT_S = 1, MAX_STATUS = 256 };

struct notify {
    const struct log *log;
    int fd; /* -1: nobody listens */
    struct sockaddr_un to;
    socklen_t to_len;
    uv_timer_t watchdog, status_timer;
    int n_handles;
    bool failed; /* said once */
    char status[MAX_STATUS], sent[MAX_STATUS];
};

static void tell(struct notify *n, const char *text)
{
    if (n->fd < 0)
        return;
    if (sendto(n->fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&n->to, n->to_len) >= 0) {
        n->failed = false;
    } else if (!n->failed) {
        n->failed = true;
        log_warn(n->log, "the service manager cannot be told: %s", strerror(errno));
    }
}

/* --- the environment --- */

/* "/path", or "@name" in the abstract namespace, where the name's length counts and no NUL ends it. */
static bool fill_address(struct notify *n, const char *socket_name)
{
    size_t len = strlen(socket_name);

    if ((socket_name[0] != '/' && socket_name[0] != '@') || len < 2 || len >= sizeof n->to.sun_path) {
        log_warn(n->log, "NOTIFY_SOCKET '%s' is not used: a path or @name of at most %zu bytes is accepted",
                 socket_name, sizeof n->to.sun_path - 1);
        return false;
    }
    n->to.sun_family = AF_UNIX;
    memcpy(n->to.sun_path, socket_name, len);
    if (socket_name[0] == '@')
        n->to.sun_path[0] = 0;
    n->to_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    return true;
}

static void open_socket(struct notify *n, const char *socket_name)
{
    const struct timeval timeout = {.tv_sec = SEND_TIMEOUT_S};

    if (!fill_address(n, socket_name))
        return;
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (n->fd < 0)
        log_warn(n->log, "the service manager cannot be told: socket: %s", strerror(errno));
    else
        setsockopt(n->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

/* 0 when there is no number above 0. */
static unsigned long long number(const char *text)
{
    char *end;
    unsigned long long v;

    if (!text || *text < '0' || *text > '9')
        return 0;
    errno = 0;
    v = strtoull(text, &end, 10);
    return errno || *end ? 0 : v;
}

static void on_watchdog(uv_timer_t *t)
{
    tell(t->data, "WATCHDOG=1");
}

static void start_watchdog(struct notify *n, const char *usec, const char *pid)
{
    unsigned long long every_ms = number(usec) / 2000;

    if (pid && number(pid) != (unsigned long long)getpid())
        return; /* meant for another process */
    if (!number(usec))
        log_warn(n->log, "WATCHDOG_USEC '%s' is not used: a number of microseconds is accepted", usec);
    else
        uv_timer_start(&n->watchdog, on_watchdog, 0, every_ms ? every_ms : 1);
}

/* --- life --- */

struct notify *notify_create(const struct notify_config *config)
{
    struct notify *n = xcalloc(1, sizeof *n);

    n->log = config->log;
    n->fd = -1;
    uv_timer_init(config->loop, &n->watchdog);
    uv_timer_init(config->loop, &n->status_timer);
    n->watchdog.data = n->status_timer.data = n;
    n->n_handles = 2;
    if (config->socket)
        open_socket(n, config->socket);
    if (n->fd >= 0 && config->watchdog_usec)
        start_watchdog(n, config->watchdog_usec, config->watchdog_pid);
    return n;
}

static void on_closed(uv_handle_t *h)
{
    struct notify *n = h->data;

    if (--n->n_handles > 0)
        return;
    if (n->fd >= 0)
        close(n->fd);
    free(n);
}

void notify_destroy(struct notify *n)
{
    if (!n)
        return;
    uv_close((uv_handle_t *)&n->watchdog, on_closed);
    uv_close((uv_handle_t *)&n->status_timer, on_closed);
}

/* --- states --- */

void notify_ready(struct notify *n)
{
    tell(n, "READY=1");
}

void notify_reloading(struct notify *n)
{
    char text[64];

    snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)(clock_mono_ns() / 1000));
    tell(n, text);
}

void notify_stopping(struct notify *n)
{
    tell(n, "STOPPING=1");
}

static void on_status(uv_timer_t *t)
{
    struct notify *n = t->data;
    char text[MAX_STATUS + 16];

    if (strcmp(n->status, n->sent) == 0)
        return;
    snprintf(text, sizeof text, "STATUS=%s", n->status);
    tell(n, text);
    memcpy(n->sent, n->status, sizeof n->sent);
}

void notify_status(struct notify *n, const char *fmt, ...)
{
    va_list ap;

    if (n->fd < 0)
        return;
    va_start(ap, fmt);
    vsnprintf(n->status, sizeof n->status, fmt, ap);
    va_end(ap);
    for (char *p = n->status; *p; p++)
        if (*p == '\n')
            *p = ' '; /* a line break would begin the next variable */
    if (!uv_is_active((uv_handle_t *)&n->status_timer))
        uv_timer_start(&n->status_timer, on_status, STATUS_MS, 0);
}
