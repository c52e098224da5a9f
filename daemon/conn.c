/* conn - see conn.h.
 *
 * Output is two buffers: `out` collects, `inflight` is being written. When a write is done they change
 * places. While messages are handled the connection is corked, so that their answers leave in one write.
 */
#include "daemon/conn.h"
#include "common/clock.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/daemon.h"
#include "daemon/logs.h"
#include "daemon/server.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 65536 };

static void on_closed(uv_handle_t *h)
{
    struct conn *c = h->data;

    frame_free(&c->frame);
    buf_free(&c->out);
    buf_free(&c->inflight);
    free(c);
}

void conn_close(struct conn *c, const char *why)
{
    if (c->closing)
        return;
    c->closing = true;
    if (why) {
        log_warn(&c->daemon->log, "client %llu (uid %lld, pid %lld) disconnected: %s",
                 (unsigned long long)c->id, (long long)c->uid, (long long)c->pid, why);
        server_counts(c->daemon->server)->n_dropped++;
    }
    c->watch.active = false;
    logs_follow_end(c);
    if (c->worker_job)
        actions_link_lost(c->daemon->actions, c);
    *c->prev = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (!c->beats)
        server_counts(c->daemon->server)->n_clients--;
    uv_close((uv_handle_t *)&c->pipe, on_closed);
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
    if (c->out.len)
        flush(c);
    else
        on_drained(c);
}

/* Writes at once what the socket takes and leaves the rest to the loop. */
static void flush(struct conn *c)
{
    if (c->writing || c->corked || c->closing || !c->out.len)
        return;
    struct buf swap = c->inflight;
    c->inflight = c->out;
    c->out = swap;
    c->inflight_at = 0;
    uv_buf_t b = uv_buf_init(c->inflight.data, (unsigned)c->inflight.len);
    int n = uv_try_write((uv_stream_t *)&c->pipe, &b, 1);
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
    if (uv_write(&c->write, (uv_stream_t *)&c->pipe, &b, 1, on_written) < 0) {
        c->writing = false;
        conn_close(c, NULL);
    }
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

void conn_send(struct conn *c, cJSON *doc)
{
    char *text = json_text(doc);
    size_t len = strlen(text);

    if (len > FRAME_MAX_BYTES) {
        char why[128];
        snprintf(why, sizeof why, "the answer has %zu bytes, at most %d are possible: ask for less at a time",
                 len, FRAME_MAX_BYTES);
        cJSON *shorter = rpc_error(json_find(doc, "id"), RPC_INTERNAL_ERROR, why, NULL);
        free(text);
        text = json_text(shorter);
        len = strlen(text);
        cJSON_Delete(shorter);
    }
    cJSON_Delete(doc);
    conn_send_text(c, text, len);
    free(text);
}

/* --- input --- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
    (void)h;
    (void)suggested;
    *b = uv_buf_init(xmalloc(READ_BYTES), READ_BYTES);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct conn *c = s->data;

    if (n > 0 && !c->closing && !c->close_when_flushed) {
        frame_push(&c->frame, b->base, (size_t)n);
        conn_process(c);
    }
    free(b->base);
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
    while (!c->closing && n++ < CONN_MESSAGES_PER_TICK &&
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
    bool more = r != FRAME_NONE;
    if (more && !c->paused)
        uv_read_stop((uv_stream_t *)&c->pipe);
    else if (!more && c->paused)
        uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_read);
    c->paused = more;
    flush(c);
}

/* --- birth --- */

static int read_peer(struct conn *c)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    uv_os_fd_t fd;

    if (uv_fileno((uv_handle_t *)&c->pipe, &fd) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return -1;
    c->uid = cred.uid;
    c->pid = cred.pid;
    c->role = cred.uid == 0 || cred.uid == getuid() ? ROLE_ADMIN : ROLE_USER;
    return 0;
}

static void on_failed_closed(uv_handle_t *h)
{
    free(h->data);
}

struct conn *conn_accept(struct daemon *d, uv_stream_t *listener, uint64_t id)
{
    struct conn *c = xcalloc(1, sizeof *c);

    c->daemon = d;
    c->id = id;
    c->pipe.data = c;
    uv_pipe_init(&d->loop, &c->pipe, 0);
    if (uv_accept(listener, (uv_stream_t *)&c->pipe) < 0 || read_peer(c) < 0) {
        uv_close((uv_handle_t *)&c->pipe, on_failed_closed);
        return NULL;
    }
    frame_init(&c->frame);
    buf_init(&c->out, CONN_OUT_MAX_BYTES);
    buf_init(&c->inflight, CONN_OUT_MAX_BYTES);
    uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_read);
    return c;
}
