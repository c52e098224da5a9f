/* listener - a socket that clients come in by: a Unix socket in a safe place, or TCP. */
#ifndef DAEMON_LISTENER_H
#define DAEMON_LISTENER_H

#include <stdbool.h>
#include "daemon/conn.h"

struct listener {
    union conn_socket socket; /* must be first */
    enum conn_kind kind;
    bool open;
    void *owner;
};

/* Listens on "unix:PATH" or "tcp:HOST:PORT". A socket file that nobody answers on is replaced; one that
 * somebody answers on is an error. `in_public`: the path is a default that others may guess, so its directory
 * must be ours. The handle is initialised whenever `open` is true afterwards, also after an error. */
int listener_open(struct listener *l, uv_loop_t *loop, const char *address, bool in_public,
                  uv_connection_cb on_connection, struct err *e);

/* Where it listens, malloc'ed: the address with the port that was given for port 0. */
char *listener_address(const struct listener *l, const char *address);

#endif
