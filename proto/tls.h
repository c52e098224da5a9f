/* tls - the one place that knows OpenSSL: TLS channels for both ends of a connection, and SHA-256.
 *
 * TLS 1.2 and 1.3 only; no renegotiation, no compression, no session is ever taken up again. The client
 * always checks the certificate and that it is the host's.
 */
#ifndef PROTO_TLS_H
#define PROTO_TLS_H

#include "common/err.h"
#include "proto/channel.h"

/* What all channels of one end share. Channels may outlive it. */
struct tls;

/* The coordinator's end. `cert` is a PEM file with its certificate and those between it and the CA, `key` a
 * PEM file with the private key, without a passphrase. A key that others may read is refused: it must be the
 * daemon's user's own with mode 0600 or less, or root's with 0640 or less. */
struct tls *tls_server_create(const char *cert, const char *key, struct err *e);

/* The client's end. `ca`: a PEM file with the certificates that are trusted; NULL: those of the system. */
struct tls *tls_client_create(const char *ca, struct err *e);

void tls_destroy(struct tls *t);

/* A channel that waits for a client's hello. */
struct channel *tls_accept(struct tls *t);

/* A channel that has its hello to `host` (a name or an IP address) ready to be sealed. */
struct channel *tls_connect(struct tls *t, const char *host, struct err *e);

enum { TLS_SHA256_BYTES = 32 };

void tls_sha256(const void *data, size_t n, unsigned char out[TLS_SHA256_BYTES]);

#endif
