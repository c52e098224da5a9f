/* address - where a coordinator listens: "unix:PATH" or "tcp:HOST:PORT", an IPv6 address in brackets. */
#ifndef PROTO_ADDRESS_H
#define PROTO_ADDRESS_H

#include <stdbool.h>
#include "common/err.h"

enum { ADDRESS_MAX_HOST = 256, ADDRESS_MAX_PORT = 8 };

struct address {
    bool is_tcp;
    const char *path;            /* unix: borrowed from the text */
    char host[ADDRESS_MAX_HOST]; /* tcp: without brackets */
    char port[ADDRESS_MAX_PORT]; /* tcp: decimal, 0 to 65535 */
};

/* Takes the text apart; a path may still be too long for a socket. Errors have kind ERR_USAGE and name the
 * text. */
int address_parse(const char *text, struct address *out, struct err *e);

/* "tcp:HOST:PORT" of a host and a port, malloc'ed; brackets where the host has colons. */
char *address_tcp_text(const char *host, int port);

#endif
