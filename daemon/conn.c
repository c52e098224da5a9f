/* conn - see conn.h.
 *
 * Output is two buffers: `out` collects lines, `inflight` is being written. When a write is done the channel
 * seals what was collected meanwhile. While messages are handled the connection is corked, so that their
 * answers leave in one write.
 */
#include "daemon/conn.h"
#include "common/clock.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/logs.h"
#include "daemon/server.h"
#include "daemon/tokens.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BUF_BYTES = CONN_OUT_MAX_BYTES + CONN_OUT_MAX_BYTES / 64, /* TLS adds some bytes to each record */
    KEEPALIVE_S = 60,
    MAX_PEER_GROUPS = 4096
};

static void on_closed(uv_handle_t *h)
{
    struct conn *c = h->data;

    channel_destroy(c->channel);
    frame_free(&c->frame);
    buf_free(&c->out);
    buf_free(&c->inflight);
    free(c);
}

/* The peer learns that this is the end and not a cut line, if there is room for it. */
static void say_goodbye(struct conn *c)
{
    struct buf bye;

    if (c->writing)
        return;
    buf_init(&bye, BUF_BYTES);
    channel_finish(c->channel, &bye);
    if (bye.len) {
        uv_buf_t b = uv_buf_init(bye.data, (unsigned)bye.len);
        uv_try_write(&c->socket.stream, &b, 1);
    }
    buf_free(&bye);
}

/* Administrators must be able to come in and see to it; workers are bounded by slots. */
int conn_count(struct conn *c, struct limit_hit *hit)
{
    struct limits *l = server_limits(c->daemon->server);

    if (c->is_counted)
        limits_remove_client(l, c->counted_uid);
    c->counted_uid = c->role != ROLE_ANY ? c->uid : c->kind == CONN_GUEST ? c->peer_uid : LIMITS_STRANGER;
    c->is_counted = c->role != ROLE_ADMIN && !c->worker_job && !c->closing;
    if (!c->is_counted || limits_add_client(l, c->counted_uid, hit) == 0)
        return 0;
    c->is_counted = false;
    return -1;
}

void conn_close(struct conn *c, const char *why)
{
    if (c->closing)
        return;
    c->closing = true;
    if (why) {
        log_warn(&c->daemon->log, "client %llu (%s) disconnected: %s", (unsigned long long)c->id, c->peer,
                 why);
        server_counts(c->daemon->server)->n_dropped++;
    }
    say_goodbye(c);
    c->watch.active = false;
    logs_follow_end(c);
    if (c->worker_job)
        actions_link_lost(c->daemon->actions, c);
    server_unindex(c->daemon->server, c);
    *c->prev = c->next;
    if (c->next)
        c->next->prev = c->prev;
    conn_count(c, NULL);
    if (!c->beats)
        server_counts(c->daemon->server)->n_clients--;
    uv_close(&c->socket.handle, on_closed);
    daemon_check_stop(c->daemon);
}

size_t conn_unsent(const struct conn *c)
{
    return c->out.len + c->inflight.len - c->inflight_at;
}

/* --- output --- */

static void flush(struct conn *c);

/* Everything has left: what waited for room may go on. */
static void on_drained(struct conn *c)
{
    c->stalled_since_ns = 0;
    if (c->close_when_flushed) {
        conn_close(c, NULL);
        return;
    }
    if (c->watch.active)
        watch_pump(c);
    daemon_check_stop(c->daemon);
}

static void on_written(uv_write_t *w, int status)
{
    struct conn *c = w->data;

    c->writing = false;
    if (c->closing)
        return;
    if (status < 0) {
        conn_close(c, NULL);
        return;
    }
    c->stalled_since_ns = clock_mono_ns();
    buf_consume(&c->inflight, c->inflight.len);
    c->inflight_at = 0;
    flush(c);
    if (!c->closing && !conn_unsent(c))
        on_drained(c);
}

/* Writes at once what the socket takes and leaves the rest to the loop. */
static void flush(struct conn *c)
{
    struct err e = ERR_INIT;

    if (c->writing || c->corked || c->closing)
        return;
    if (channel_seal(c->channel, &c->out, &c->inflight, &e) < 0) {
        conn_close(c, e.msg);
        return;
    }
    if (!c->inflight.len)
        return;
    c->inflight_at = 0;
    uv_buf_t b = uv_buf_init(c->inflight.data, (unsigned)c->inflight.len);
    int n = uv_try_write(&c->socket.stream, &b, 1);
    if (n < 0 && n != UV_EAGAIN) {
        conn_close(c, NULL);
        return;
    }
    c->inflight_at = n > 0 ? (size_t)n : 0;
    if (c->inflight_at == c->inflight.len) {
        buf_consume(&c->inflight, c->inflight.len);
        c->inflight_at = 0;
        c->stalled_since_ns = 0;
        return;
    }
    if (!c->stalled_since_ns)
        c->stalled_since_ns = clock_mono_ns();
    b = uv_buf_init(c->inflight.data + c->inflight_at, (unsigned)(c->inflight.len - c->inflight_at));
    c->write.data = c;
    c->writing = true;
    if (uv_write(&c->write, &c->socket.stream, &b, 1, on_written) < 0) {
        c->writing = false;
        conn_close(c, NULL);
    }
}

/* Everything that a dismissed client had to hear may have left at once. */
static void close_if_flushed(struct conn *c)
{
    if (!c->closing && c->close_when_flushed && !conn_unsent(c))
        conn_close(c, NULL);
}

void conn_send_text(struct conn *c, const char *text, size_t len)
{
    if (c->closing)
        return;
    if (conn_unsent(c) + len + 1 > CONN_OUT_MAX_BYTES || buf_append(&c->out, text, len, NULL) < 0 ||
        buf_append(&c->out, "\n", 1, NULL) < 0) {
        conn_close(c, "it does not read what it asked for: too much is unsent");
        return;
    }
    flush(c);
}

/* Puts a document and its newline behind `out`; -1, and nothing, where there is no room. */
static int print_line(struct conn *c, const cJSON *doc)
{
    size_t before = c->out.len;

    if (json_print(doc, &c->out, NULL) == 0 && buf_append(&c->out, "\n", 1, NULL) == 0 &&
        conn_unsent(c) <= CONN_OUT_MAX_BYTES)
        return 0;
    c->out.len = before;
    return -1;
}

/* Says instead how long it would have been. */
static int print_too_long(struct conn *c, const cJSON *doc)
{
    char why[128], *text = json_text(doc);

    snprintf(why, sizeof why, "the answer has %zu bytes, at most %d are possible: ask for less at a time",
             strlen(text), FRAME_MAX_BYTES);
    cJSON *shorter = rpc_error(json_find(doc, "id"), RPC_INTERNAL_ERROR, why, NULL);
    int rc = print_line(c, shorter);
    cJSON_Delete(shorter);
    free(text);
    return rc;
}

void conn_send(struct conn *c, cJSON *doc)
{
    size_t before = c->out.len;
    int rc = 0;

    if (!c->closing) {
        rc = print_line(c, doc);
        bool is_long = rc == 0 ? c->out.len - before > FRAME_MAX_BYTES + 1
                               : conn_unsent(c) + FRAME_MAX_BYTES < CONN_OUT_MAX_BYTES;
        c->out.len = is_long ? before : c->out.len;
        if (is_long)
            rc = print_too_long(c, doc);
    }
    cJSON_Delete(doc);
    if (rc < 0)
        conn_close(c, "it does not read what it asked for: too much is unsent");
    else
        flush(c);
}

/* --- input --- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
    (void)suggested;
    *b = server_read_buf(((struct conn *)h->data)->daemon->server);
}

/* What came, taken by the channel. A client that is on its way out may still finish its handshake, which it
 * needs to hear why; its lines count no more. */
static void take(struct conn *c, const char *bytes, size_t n)
{
    struct err e = ERR_INIT;
    int rc = channel_take(c->channel, bytes, n, &c->frame, &e);

    if (c->close_when_flushed) {
        frame_free(&c->frame);
        frame_init(&c->frame);
        flush(c);
    } else if (rc >= 0) {
        conn_process(c);
    } else {
        flush(c); /* what the channel has to say about it */
    }
    if (rc != 0 && !c->closing)
        conn_close(c, rc < 0 ? e.msg : NULL);
    close_if_flushed(c);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct conn *c = s->data;

    if (n > 0 && !c->closing)
        take(c, b->base, (size_t)n);
    if (n < 0)
        conn_close(c, NULL);
}

void conn_process(struct conn *c)
{
    enum frame_result r = FRAME_NONE;
    char *line;
    size_t len;
    int n = 0;

    c->corked = true;
    while (!c->closing && !c->close_when_flushed && n++ < CONN_MESSAGES_PER_TICK &&
           (r = frame_next(&c->frame, &line, &len)) != FRAME_NONE) {
        server_counts(c->daemon->server)->n_requests++;
        if (r == FRAME_TOO_LONG)
            rpc_handle_too_long(c);
        else
            rpc_handle_line(c, line, len);
    }
    c->corked = false;
    if (c->closing)
        return;
    bool more = r != FRAME_NONE && !c->close_when_flushed;
    if (more && !c->paused)
        uv_read_stop(&c->socket.stream);
    else if (!more && c->paused)
        uv_read_start(&c->socket.stream, on_alloc, on_read);
    c->paused = more;
    flush(c);
    close_if_flushed(c);
}

/* --- who it is --- */

bool conn_is_known(const struct conn *c)
{
    return c->role != ROLE_ANY || c->worker_job != 0;
}

int conn_login(struct conn *c, const struct token *as, struct limit_hit *hit)
{
    char peer[sizeof c->peer];

    c->watch.active = false;
    logs_follow_end(c);
    c->uid = as->uid;
    c->role = as->role;
    if (conn_count(c, hit) < 0) {
        c->uid = -1;
        c->role = ROLE_ANY;
        return -1;
    }
    c->token = as->id;
    c->login_by_ns = 0;
    memcpy(peer, c->peer, sizeof peer);
    snprintf(c->peer, sizeof c->peer, "%.40s by token %lld, %.50s", as->user, (long long)as->id, peer);
    return 0;
}

void conn_attached(struct conn *c)
{
    c->login_by_ns = 0;
    conn_count(c, NULL);
}

void conn_dismiss(struct conn *c, int code, const char *why)
{
    if (c->closing || c->close_when_flushed)
        return;
    log_warn(&c->daemon->log, "client %llu (%s) dismissed: %s", (unsigned long long)c->id, c->peer, why);
    c->watch.active = false;
    logs_follow_end(c);
    conn_send(c, rpc_error(NULL, code, why, NULL));
    c->close_when_flushed = true;
    if (!c->corked)
        close_if_flushed(c);
}

void conn_expel(struct conn *c, const char *why)
{
    conn_dismiss(c, RPC_NOT_LOGGED_IN, why);
    if (!c->corked)
        conn_close(c, NULL);
}

/* --- birth --- */

/* The kernel knows who is at the other end, as of when he connected. */
static int read_local_peer(struct conn *c)
{
    struct ucred cred;
    socklen_t len = sizeof cred, groups_len = MAX_PEER_GROUPS * sizeof(gid_t);
    uv_os_fd_t fd;

    if (uv_fileno(&c->socket.handle, &fd) < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return -1;
    snprintf(c->peer, sizeof c->peer, "uid %lld, pid %lld", (long long)cred.uid, (long long)cred.pid);
    c->pid = cred.pid;
    c->peer_uid = cred.uid;
    if (c->kind == CONN_GUEST)
        return 0;
    gid_t *groups = xmalloc(groups_len);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &groups_len) < 0)
        groups_len = 0; /* he has then the roles of his user and first group */
    struct access_peer peer = {
        .uid = cred.uid, .gid = cred.gid, .groups = groups, .n_groups = (int)(groups_len / sizeof(gid_t))};
    c->uid = cred.uid;
    c->role = access_role(server_access(c->daemon->server), &peer);
    free(groups);
    return 0;
}

static int read_tcp_peer(struct conn *c)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } sa;
    char host[INET6_ADDRSTRLEN];
    int len = sizeof sa;

    if (uv_tcp_getpeername(&c->socket.tcp, &sa.any, &len) < 0 || uv_ip_name(&sa.any, host, sizeof host) < 0)
        return -1;
    if (sa.any.sa_family == AF_INET6)
        snprintf(c->peer, sizeof c->peer, "[%s]:%u", host, ntohs(sa.v6.sin6_port));
    else
        snprintf(c->peer, sizeof c->peer, "%s:%u", host, ntohs(sa.v4.sin_port));
    uv_tcp_nodelay(&c->socket.tcp, 1);
    uv_tcp_keepalive(&c->socket.tcp, 1, KEEPALIVE_S);
    return 0;
}

static int read_peer(struct conn *c)
{
    c->uid = c->peer_uid = -1;
    if (c->kind != CONN_LOCAL)
        c->login_by_ns = clock_mono_ns() + c->daemon->options->login_ms * 1000000;
    return c->kind == CONN_TCP ? read_tcp_peer(c) : read_local_peer(c);
}

static void on_failed_closed(uv_handle_t *h)
{
    struct conn *c = h->data;

    channel_destroy(c->channel);
    free(c);
}

struct conn *conn_accept(struct daemon *d, uv_stream_t *listener, enum conn_kind kind,
                         struct channel *channel, uint64_t id)
{
    struct conn *c = xcalloc(1, sizeof *c);

    c->daemon = d;
    c->id = id;
    c->kind = kind;
    c->channel = channel;
    c->socket.handle.data = c;
    if (kind == CONN_TCP)
        uv_tcp_init(&d->loop, &c->socket.tcp);
    else
        uv_pipe_init(&d->loop, &c->socket.pipe, 0);
    if (uv_accept(listener, &c->socket.stream) < 0 || read_peer(c) < 0) {
        uv_close(&c->socket.handle, on_failed_closed);
        return NULL;
    }
    frame_init(&c->frame);
    buf_init(&c->out, BUF_BYTES);
    buf_init(&c->inflight, BUF_BYTES);
    uv_read_start(&c->socket.stream, on_alloc, on_read);
    return c;
}
