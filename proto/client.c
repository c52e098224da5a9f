/* client - see client.h.
 *
 * The socket does not block; every wait is a poll(2) with a deadline. A message is either taken whole or not
 * at all: what the socket did not take of a message stays in `wire` and leaves before the next one, so that
 * giving up on a full socket never cuts a line in two. Lines that arrive are sorted into the awaited answer
 * and the queue of notifications; answers to calls that timed out are recognised by their id and dropped.
 */
#include "proto/client.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/json.h"
#include "proto/address.h"
#include "proto/frame.h"
#include "proto/rpc_msg.h"
#include "proto/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_QUEUED = 100000,
    READ_BYTES = 65536,
    CONNECT_TIMEOUT_S = 5,
    OUT_BYTES = 2 * FRAME_MAX_BYTES,
    WIRE_BYTES = OUT_BYTES + OUT_BYTES / 64 /* TLS adds some bytes to each record */
};

struct note {
    struct note *next;
    cJSON *doc;
};

struct client {
    int fd;
    int64_t last_id;
    struct channel *channel;
    struct frame frame;
    struct buf out, wire; /* what is to be said, and in the form in which it leaves */
    struct note *head, **tail;
    int n_queued;
    bool ended; /* the peer has said that no more will come */
};

char *client_default_address(void)
{
    const char *address = getenv("BATCHFORMER_ADDRESS");
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (address && *address)
        return xstrdup(address);
    if (runtime && *runtime)
        return xasprintf("unix:%s/batchformer.sock", runtime);
    if (getuid() == 0)
        return xstrdup("unix:/run/batchformer.sock");
    return xasprintf("unix:/tmp/batchformer-%lu/batchformer.sock", (unsigned long)getuid());
}

int client_fd(const struct client *c)
{
    return c->fd;
}

static int64_t deadline_of(int timeout_ms)
{
    return timeout_ms < 0 ? INT64_MAX : clock_mono_ns() + (int64_t)timeout_ms * 1000000;
}

/* Milliseconds for poll(2), rounded up so that a wait never ends early in a busy loop. */
static int poll_ms(int64_t deadline_ns)
{
    if (deadline_ns == INT64_MAX)
        return -1;
    int64_t ms = (deadline_ns - clock_mono_ns() + 999999) / 1000000;
    return ms < 0 ? 0 : ms > 3600000 ? 3600000 : (int)ms;
}

static int gone(struct err *e, const char *why)
{
    return err_set_kind(e, ERR_UNREACHABLE, "the connection to the coordinator is gone: %s", why);
}

/* Sends what it can without waiting. */
static int flush_some(struct client *c, struct err *e)
{
    for (;;) {
        if (!c->wire.len && channel_seal(c->channel, &c->out, &c->wire, e) < 0)
            return -1;
        if (!c->wire.len)
            return 0;
        ssize_t n = send(c->fd, c->wire.data, c->wire.len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n < 0)
            return gone(e, strerror(errno));
        buf_consume(&c->wire, (size_t)n);
    }
}

static void enqueue(struct client *c, cJSON *doc)
{
    struct note *n = xcalloc(1, sizeof *n);

    n->doc = doc;
    *c->tail = n;
    c->tail = &n->next;
    c->n_queued++;
}

static cJSON *strip_note(const struct rpc_msg *m)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "method", m->method);
    if (m->params)
        cJSON_AddItemToObject(v, "params", cJSON_Duplicate(m->params, true));
    return v;
}

/* Sorts one received document. *answer gets the one whose id is `id`, or an error that answers no id at all
 * (how the peer says that it understood nothing, or takes no more clients). */
static int sort_doc(struct client *c, cJSON *doc, int64_t id, cJSON **answer, struct err *e)
{
    struct rpc_msg m;
    int64_t got;

    if (rpc_msg_read(doc, &m, e) < 0) {
        cJSON_Delete(doc);
        return err_wrap(e, "the coordinator sent something that is not JSON-RPC");
    }
    if (m.kind == RPC_NOTIFICATION) {
        if (c->n_queued >= MAX_QUEUED) {
            cJSON_Delete(doc);
            return gone(e, "it sent more notifications than can be kept");
        }
        enqueue(c, strip_note(&m));
    } else if (id && !*answer && (m.kind == RPC_RESULT || m.kind == RPC_ERROR) &&
               ((json_is_int(m.id, &got) && got == id) || (m.kind == RPC_ERROR && cJSON_IsNull(m.id)))) {
        *answer = doc;
        return 0;
    }
    cJSON_Delete(doc);
    return 0;
}

/* Takes apart what has been received; stops early once the answer to `id` is there. */
static int sort_lines(struct client *c, int64_t id, cJSON **answer, struct err *e)
{
    char *line;
    size_t len;
    enum frame_result r;

    while (!*answer && (r = frame_next(&c->frame, &line, &len)) != FRAME_NONE) {
        if (r == FRAME_TOO_LONG)
            return gone(e, "it sent a line that is too long");
        cJSON *doc = json_parse(line, len, e);
        if (!doc)
            return err_wrap(e, "the coordinator sent something that is not JSON");
        if (sort_doc(c, doc, id, answer, e) < 0)
            return -1;
    }
    return 0;
}

/* What came. With the peer's good-bye there may have come its last words, which are heard first. The peer
 * learns from what the channel has to say why something was not taken. */
static int take_bytes(struct client *c, const char *bytes, size_t n, struct err *e)
{
    int rc = channel_take(c->channel, bytes, n, &c->frame, e);

    c->ended = rc > 0;
    if (rc >= 0)
        return 1;
    flush_some(c, NULL);
    e->kind = ERR_UNREACHABLE;
    return -1;
}

/* Reads once without waiting. Returns 1 when something came, 0 when not, -1 when the peer is gone. */
static int read_some(struct client *c, struct err *e)
{
    if (c->ended)
        return gone(e, "it closed the connection");
    char *chunk = xmalloc(READ_BYTES);
    ssize_t n = recv(c->fd, chunk, READ_BYTES, 0);
    int rc = 0;

    if (n > 0)
        rc = take_bytes(c, chunk, (size_t)n, e);
    else if (n == 0)
        rc = gone(e, "it closed the connection");
    else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        rc = gone(e, strerror(errno));
    free(chunk);
    return rc;
}

/* Waits until the socket can be read, or written when something is to be sent. Returns 0, or 1 on a signal.
 */
static int wait_io(struct client *c, int64_t deadline_ns)
{
    struct pollfd p = {c->fd, (short)(POLLIN | (c->wire.len ? POLLOUT : 0)), 0};

    return poll(&p, 1, poll_ms(deadline_ns)) < 0 && errno == EINTR;
}

/* --- connecting --- */

static int read_address(const char *text, struct address *a, struct err *e)
{
    size_t most = sizeof((struct sockaddr_un *)0)->sun_path - 1;

    if (address_parse(text, a, e) < 0)
        return -1;
    if (!a->is_tcp && strlen(a->path) > most)
        return err_set_kind(e, ERR_USAGE,
                            "address '%s': the path has %zu bytes, a socket's may have at most %zu", text,
                            strlen(a->path), most);
    return 0;
}

static int connect_unix(const struct address *a)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = CONNECT_TIMEOUT_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    strcpy(sa.sun_path, a->path);
    /* A full backlog makes connect() wait; the send timeout bounds that. */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0)
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

/* One of a host's addresses. -1 with errno. */
static int connect_one(const struct addrinfo *to, int64_t deadline_ns)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1, why = 0;
    socklen_t len = sizeof why;

    if (fd < 0)
        return -1;
    if (connect(fd, to->ai_addr, to->ai_addrlen) < 0) {
        struct pollfd p = {fd, POLLOUT, 0};
        why = errno;
        while (why == EINPROGRESS) {
            int n = poll(&p, 1, poll_ms(deadline_ns));
            if (n == 0)
                why = ETIMEDOUT;
            else if (n > 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &len) < 0)
                why = errno;
        }
    }
    if (why) {
        close(fd);
        errno = why;
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return fd;
}

static int connect_tcp(const struct address *a, int64_t deadline_ns, const char **why)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int fd = -1, rc = getaddrinfo(a->host, a->port, &hints, &list);

    if (rc) {
        *why = rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc);
        return -1;
    }
    for (const struct addrinfo *to = list; to && fd < 0; to = to->ai_next)
        fd = connect_one(to, deadline_ns);
    if (fd < 0)
        *why = strerror(errno);
    freeaddrinfo(list);
    return fd;
}

static struct channel *make_channel(const struct address *a, const char *ca, struct err *e)
{
    if (!a->is_tcp)
        return channel_plain_create();
    struct tls *tls = tls_client_create(ca, e);
    struct channel *ch = tls ? tls_connect(tls, a->host, e) : NULL;
    tls_destroy(tls);
    return ch;
}

/* Until lines can pass. */
static int shake_hands(struct client *c, int64_t deadline_ns, struct err *e)
{
    for (;;) {
        if (flush_some(c, e) < 0)
            return -1;
        if (channel_is_open(c->channel))
            return 0;
        if (clock_mono_ns() >= deadline_ns)
            return gone(e, "no TLS handshake in time");
        wait_io(c, deadline_ns);
        if (read_some(c, e) < 0)
            return -1;
    }
}

struct client *client_connect(const char *address, struct err *e)
{
    const char *ca = getenv("BATCHFORMER_CA");

    return client_connect_trusting(address, ca && *ca ? ca : NULL, e);
}

struct client *client_connect_trusting(const char *address, const char *ca, struct err *e)
{
    int64_t deadline = deadline_of(CONNECT_TIMEOUT_S * 1000);
    struct err local = ERR_INIT;
    const char *why = NULL;
    struct address a;

    e = e ? e : &local;
    if (read_address(address, &a, e) < 0)
        return NULL;
    struct channel *channel = make_channel(&a, ca, e);
    if (!channel)
        return NULL;
    int fd = a.is_tcp ? connect_tcp(&a, deadline, &why) : connect_unix(&a);
    if (fd < 0) {
        err_set_kind(e, ERR_UNREACHABLE, "no coordinator answers at %s: %s", address,
                     why ? why : strerror(errno));
        channel_destroy(channel);
        return NULL;
    }
    struct client *c = xcalloc(1, sizeof *c);
    c->fd = fd;
    c->channel = channel;
    c->tail = &c->head;
    frame_init(&c->frame);
    buf_init(&c->out, WIRE_BYTES);
    buf_init(&c->wire, WIRE_BYTES);
    if (shake_hands(c, deadline, e) < 0) {
        client_close(c);
        return NULL;
    }
    return c;
}

void client_close(struct client *c)
{
    if (!c)
        return;
    while (c->head) {
        struct note *n = c->head;
        c->head = n->next;
        cJSON_Delete(n->doc);
        free(n);
    }
    channel_destroy(c->channel);
    frame_free(&c->frame);
    buf_free(&c->out);
    buf_free(&c->wire);
    close(c->fd);
    free(c);
}

/* --- calls --- */

static int append_message(struct client *c, cJSON *doc, struct err *e)
{
    char *text = json_text(doc);
    size_t len = strlen(text);
    int rc = -1;

    cJSON_Delete(doc);
    if (len > FRAME_MAX_BYTES) {
        err_set(e, "message of %zu bytes: at most %d are accepted", len, FRAME_MAX_BYTES);
    } else {
        text[len] = '\n'; /* in place of the NUL: the text is not used as a string again */
        rc = buf_append(&c->out, text, len + 1, e);
    }
    free(text);
    return rc;
}

/* Takes the answer apart; owns it. */
static cJSON *open_answer(cJSON *answer, cJSON **error_data, struct err *e)
{
    struct rpc_msg m;
    cJSON *result = NULL;

    if (rpc_msg_read(answer, &m, e) == 0 && m.kind == RPC_RESULT) {
        result = cJSON_DetachItemFromObjectCaseSensitive(answer, "result");
    } else if (m.kind == RPC_ERROR) {
        err_set_kind(e, ERR_REMOTE, "%s", m.message);
        if (e)
            e->code = m.code;
        if (error_data && m.data)
            *error_data = cJSON_Duplicate(m.data, true);
    }
    cJSON_Delete(answer);
    return result;
}

cJSON *client_call(struct client *c, const char *method, cJSON *params, int timeout_ms, cJSON **error_data,
                   struct err *e)
{
    int64_t deadline = deadline_of(timeout_ms), id = ++c->last_id;
    cJSON *answer = NULL;
    struct err local = ERR_INIT;

    e = e ? e : &local;
    if (error_data)
        *error_data = NULL;
    if (append_message(c, rpc_request(id, method, params), e) < 0)
        return NULL;
    for (;;) {
        if (sort_lines(c, id, &answer, e) < 0)
            return NULL;
        if (answer)
            return open_answer(answer, error_data, e);
        if (timeout_ms >= 0 && clock_mono_ns() >= deadline) {
            err_set(e, "%s: no answer within %d ms", method, timeout_ms);
            return NULL;
        }
        /* A failed send may still leave the peer's last words ("too many clients") to be read. */
        struct err send_error = ERR_INIT;
        int sent = flush_some(c, &send_error);
        if (sent == 0)
            wait_io(c, deadline);
        int got = read_some(c, e);
        if (got < 0)
            return NULL;
        if (sent < 0 && got == 0) {
            *e = send_error;
            return NULL;
        }
    }
}

int client_notify(struct client *c, const char *method, cJSON *params, int timeout_ms, struct err *e)
{
    int64_t deadline = deadline_of(timeout_ms);
    cJSON *none = NULL;

    for (;;) {
        if (flush_some(c, e) < 0) {
            cJSON_Delete(params);
            return -1;
        }
        if (!c->out.len && !c->wire.len)
            break;
        if (timeout_ms >= 0 && clock_mono_ns() >= deadline) {
            cJSON_Delete(params);
            return err_set(e, "%s: the coordinator reads too slowly, nothing sent within %d ms", method,
                           timeout_ms);
        }
        /* Reading meanwhile keeps two peers that both wait for the other to read from waiting for ever. */
        wait_io(c, deadline);
        if (read_some(c, e) < 0 || sort_lines(c, 0, &none, e) < 0) {
            cJSON_Delete(params);
            return -1;
        }
    }
    if (append_message(c, rpc_notification(method, params), e) < 0)
        return -1;
    return flush_some(c, e);
}

cJSON *client_next(struct client *c, int timeout_ms, struct err *e)
{
    int64_t deadline = deadline_of(timeout_ms);
    struct err local = ERR_INIT;
    cJSON *none = NULL;
    bool looked = false;

    e = e ? e : &local;
    for (;;) {
        if (!c->head && sort_lines(c, 0, &none, e) < 0)
            return NULL;
        if (c->head) {
            struct note *n = c->head;
            cJSON *doc = n->doc;
            c->head = n->next;
            if (!c->head)
                c->tail = &c->head;
            c->n_queued--;
            free(n);
            return doc;
        }
        if (looked && timeout_ms >= 0 && clock_mono_ns() >= deadline)
            break;
        if (flush_some(c, e) < 0)
            return NULL;
        bool interrupted = wait_io(c, deadline);
        looked = true;
        if (read_some(c, e) < 0)
            return NULL;
        if (interrupted && !c->frame.in.len)
            break;
    }
    *e = (struct err)ERR_INIT;
    return NULL;
}
