/* server - the listening sockets and all connections. */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include <stdbool.h>
#include <uv.h>
#include "common/err.h"

struct access;
struct conn;
struct daemon;
struct limits;
struct tokens;

struct server_counts {
    int64_t n_clients, n_accepted, n_refused, n_dropped, n_requests;
};

/* Reads what says who may come in, and listens on every address of the options. */
struct server *server_create(struct daemon *d, struct err *e);

/* Takes no more clients; what is to be sent still leaves. */
void server_stop_listening(struct server *s);

/* True when no reply waits to be sent. */
bool server_is_flushed(const struct server *s);

/* Closes everything; the memory goes when the loop has closed the handles. */
void server_destroy(struct server *s);

/* The connection with this id, if it is still there. Replies that come later hold ids, not pointers. */
struct conn *server_conn(struct server *s, uint64_t id);

/* Takes it out of what server_conn() finds; for conn_close(). */
void server_unindex(struct server *s, const struct conn *c);

/* Where a connection reads to; what was read is taken before anybody else reads. */
uv_buf_t server_read_buf(struct server *s);

/* Calls fn for every open connection. */
void server_each(struct server *s, void (*fn)(struct conn *c, void *ctx), void *ctx);

struct server_counts *server_counts(struct server *s);

/* Who may do what, how much, and by which tokens. */
struct access *server_access(struct server *s);
struct limits *server_limits(struct server *s);
struct tokens *server_tokens(struct server *s);

#endif
