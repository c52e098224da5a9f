/* client - a blocking JSON-RPC client over a Unix socket, or TCP with TLS: what bfctl uses, and the worker's
 * report.
 *
 * Notifications that arrive while a call waits for its result are queued and handed out by client_next() in
 * order.
 */
#ifndef PROTO_CLIENT_H
#define PROTO_CLIENT_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "common/err.h"

struct client;

/* The default address, malloc'ed: $BATCHFORMER_ADDRESS, else unix:$XDG_RUNTIME_DIR/batchformer.sock, else
 * unix:/run/batchformer.sock for root and unix:/tmp/batchformer-$UID/batchformer.sock otherwise. */
char *client_default_address(void);

/* `address` is "unix:PATH" or "tcp:HOST:PORT". Fails with kind ERR_UNREACHABLE when nobody listens there, or,
 * with TCP, when who answers has no certificate for HOST that is trusted: by the PEM file $BATCHFORMER_CA,
 * else by the system's certificates. */
struct client *client_connect(const char *address, struct err *e);

/* The same, trusting the certificates in the PEM file `ca`; NULL: the system's. */
struct client *client_connect_trusting(const char *address, const char *ca, struct err *e);

void client_close(struct client *c); /* NULL is fine */

/* Sends a request and waits for its result; takes ownership of params (NULL: none). The caller owns the
 * result. The peer's error becomes kind ERR_REMOTE with .code; its data, if any, goes to *error_data (may be
 * NULL; owned by the caller then). timeout_ms < 0 waits for ever. */
cJSON *client_call(struct client *c, const char *method, cJSON *params, int timeout_ms, cJSON **error_data,
                   struct err *e);

/* Sends a notification; takes ownership of params. Blocks while the socket's buffer is full, at most
 * timeout_ms; on failure nothing of the message was sent. */
int client_notify(struct client *c, const char *method, cJSON *params, int timeout_ms, struct err *e);

/* The next notification: {"method": …, "params": …}, owned by the caller. NULL with e->kind == ERR_GENERIC
 * and an empty message when none came within timeout_ms (0: only look) or a signal handler ran meanwhile, so
 * that the caller can look at its flags; NULL with ERR_UNREACHABLE when the peer is gone. */
cJSON *client_next(struct client *c, int timeout_ms, struct err *e);

/* For poll(2). */
int client_fd(const struct client *c);

#endif
