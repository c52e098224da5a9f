/* address - see address.h. */
#include "proto/address.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_unix(const char *text, struct address *out, struct err *e)
{
    if (!text[5])
        return err_set_kind(e, ERR_USAGE, "address '%s': a path is missing after unix:", text);
    out->path = text + 5;
    return 0;
}

static int parse_port(const char *text, const char *port, char out[ADDRESS_MAX_PORT], struct err *e)
{
    size_t n = strspn(port, "0123456789");

    if (!n || port[n] || n > 5 || atoi(port) > 65535)
        return err_set_kind(e, ERR_USAGE, "address '%s': port '%s' found, 0 to 65535 is accepted", text,
                            port);
    snprintf(out, ADDRESS_MAX_PORT, "%d", atoi(port));
    return 0;
}

/* Letters, digits, '.', '-', '_', and in brackets ':' and '%' (a zone): what a name or a number can hold. */
static bool is_host(const char *s, size_t n, bool in_brackets)
{
    static const char known[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%";

    if (n == 0 || n >= ADDRESS_MAX_HOST || *s == '-' || strspn(s, known) < n)
        return false;
    return in_brackets || !(memchr(s, ':', n) || memchr(s, '%', n));
}

static int parse_tcp(const char *text, struct address *out, struct err *e)
{
    const char *host = text + 4, *end, *colon;
    bool in_brackets = *host == '[';

    if (in_brackets) {
        end = strchr(++host, ']');
        colon = end ? end + 1 : NULL;
    } else {
        colon = end = strchr(host, ':');
    }
    if (!colon || *colon != ':' || !is_host(host, (size_t)(end - host), in_brackets))
        return err_set_kind(e, ERR_USAGE,
                            "address '%s': tcp:HOST:PORT is accepted, an IPv6 address in brackets", text);
    out->is_tcp = true;
    snprintf(out->host, sizeof out->host, "%.*s", (int)(end - host), host);
    return parse_port(text, colon + 1, out->port, e);
}

int address_parse(const char *text, struct address *out, struct err *e)
{
    *out = (struct address){0};
    if (strncmp(text, "unix:", 5) == 0)
        return parse_unix(text, out, e);
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text, out, e);
    return err_set_kind(e, ERR_USAGE, "address '%s': tcp:HOST:PORT or unix:PATH is accepted", text);
}

char *address_tcp_text(const char *host, int port)
{
    return strchr(host, ':') ? xasprintf("tcp:[%s]:%d", host, port) : xasprintf("tcp:%s:%d", host, port);
}
