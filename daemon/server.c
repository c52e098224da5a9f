/* server - see server.h.
 *
 * Connections form a list. Those with messages left over from their last turn are paused (conn.h) and get one
 * more turn per loop iteration, driven by `idle`, which runs only while there are any. `sweep` looks once a
 * second for clients that take nothing of what was sent to them.
 */
#include "daemon/server.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 512, SWEEP_MS = 1000, N_BUCKETS = 1024, READ_BYTES = 65536 };

struct listener {
    uv_pipe_t pipe; /* must be first */
    struct server *server;
    bool open;
};

struct server {
    struct daemon *daemon;
    struct listener *listeners;
    size_t n_listeners;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t sweep;
    int n_handles;
    bool destroyed;
    struct conn *conns;
    struct conn *buckets[N_BUCKETS]; /* by id */
    char read_bytes[READ_BYTES];
    uint64_t last_id;
    struct server_counts counts;
};

struct server_counts *server_counts(struct server *s)
{
    return &s->counts;
}

void server_each(struct server *s, void (*fn)(struct conn *c, void *ctx), void *ctx)
{
    for (struct conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        fn(c, ctx);
    }
}

struct conn *server_conn(struct server *s, uint64_t id)
{
    struct conn *c = s->buckets[id % N_BUCKETS];

    while (c && c->id != id)
        c = c->next_in_bucket;
    return c;
}

static void add_to_index(struct server *s, struct conn *c)
{
    struct conn **bucket = &s->buckets[c->id % N_BUCKETS];

    c->next_in_bucket = *bucket;
    *bucket = c;
}

void server_unindex(struct server *s, const struct conn *c)
{
    struct conn **p = &s->buckets[c->id % N_BUCKETS];

    while (*p != c)
        p = &(*p)->next_in_bucket;
    *p = c->next_in_bucket;
}

uv_buf_t server_read_buf(struct server *s)
{
    return uv_buf_init(s->read_bytes, sizeof s->read_bytes);
}

/* --- clients --- */

static void refuse(struct conn *c, int64_t max)
{
    char why[96];

    snprintf(why, sizeof why, "too many clients: %lld are connected already", (long long)max);
    c->close_when_flushed = true;
    conn_send(c, rpc_error(NULL, RPC_OVERLOADED, why, NULL));
    if (!c->closing && !conn_unsent(c))
        conn_close(c, NULL);
}

static void on_connection(uv_stream_t *stream, int status)
{
    struct server *s = ((struct listener *)stream)->server;
    struct daemon *d = s->daemon;

    if (status < 0) {
        log_warn(&d->log, "a client could not be accepted: %s", uv_strerror(status));
        return;
    }
    struct conn *c = conn_accept(d, stream, ++s->last_id);
    if (!c)
        return;
    c->next = s->conns;
    c->prev = &s->conns;
    if (c->next)
        c->next->prev = &c->next;
    s->conns = c;
    add_to_index(s, c);
    s->counts.n_accepted++;
    if (++s->counts.n_clients > d->options->max_clients) {
        s->counts.n_refused++;
        log_warn(&d->log, "client %llu (uid %lld, pid %lld) refused: %lld clients are connected already",
                 (unsigned long long)c->id, (long long)c->uid, (long long)c->pid,
                 (long long)d->options->max_clients);
        refuse(c, d->options->max_clients);
    }
}

/* One turn for everyone who has messages left over. The next connection is noted first: a turn may end its
 * own connection. It may also end another one (a worker that attaches anew replaces its old link), so the
 * walk starts over by id rather than holding a pointer. */
static void take_turns(struct server *s)
{
    bool more = false;
    uint64_t below = UINT64_MAX;

    for (;;) {
        struct conn *c = s->conns; /* newest first: ids fall along the list */
        while (c && (c->id >= below || !c->paused))
            c = c->next;
        if (!c)
            break;
        below = c->id;
        conn_process(c);
        c = server_conn(s, below);
        more = more || (c && c->paused);
    }
    if (!more)
        uv_idle_stop(&s->idle);
}

static void on_idle(uv_idle_t *h)
{
    take_turns(h->data);
}

static void on_check(uv_check_t *h)
{
    struct server *s = h->data;

    for (struct conn *c = s->conns; c; c = c->next)
        if (c->paused) {
            uv_idle_start(&s->idle, on_idle);
            return;
        }
}

static void sweep_conn(struct conn *c, void *ctx)
{
    const int64_t *now = ctx;

    if (c->stalled_since_ns && *now - c->stalled_since_ns > (int64_t)CONN_STALL_MS * 1000000)
        conn_close(c, "it has read nothing for too long");
}

static void on_sweep(uv_timer_t *t)
{
    int64_t now = clock_mono_ns();

    server_each(t->data, sweep_conn, &now);
}

/* --- listening --- */

static int fill_address(const char *path, struct sockaddr_un *sa, struct err *e)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sa->sun_path)
        return err_set(e, "socket path %s has %zu bytes, at most %zu are possible", path, strlen(path),
                       sizeof sa->sun_path - 1);
    strcpy(sa->sun_path, path);
    return 0;
}

/* Removes a socket file that nobody answers on. */
static int clear_stale(const char *path, struct err *e)
{
    struct sockaddr_un sa;
    struct stat st;

    if (fill_address(path, &sa, e) < 0)
        return -1;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_set_errno(e, "%s", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, "%s exists and is not a socket", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(e, "socket");
    int rc = connect(fd, (struct sockaddr *)&sa, sizeof sa), why = errno;
    close(fd);
    if (rc == 0 || why == EAGAIN)
        return err_set(e, "%s: another program answers there", path);
    if (why != ECONNREFUSED)
        return err_set(e, "%s: %s", path, strerror(why));
    return unlink(path) < 0 ? err_set_errno(e, "removing the stale socket %s", path) : 0;
}

/* The directory of a socket in a public place must be ours, or a stranger could put his socket in its place.
 */
static int check_parent(const char *path, bool is_default, struct err *e)
{
    char *dir = xstrdup(path), *slash = strrchr(dir, '/');
    struct stat st;
    int rc = 0;

    *slash = 0;
    if (*dir && !fs_exists(dir)) {
        rc = fs_mkdir_p(dir, e);
        if (rc == 0 && chmod(dir, 0700) < 0)
            rc = err_set_errno(e, "chmod of %s", dir);
    }
    if (rc == 0 && *dir && is_default &&
        (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || (st.st_uid != getuid() && st.st_uid != 0)))
        rc = err_set(e, "%s is not a directory of this user: choose another socket with --listen", dir);
    free(dir);
    return rc;
}

static int listen_on(struct server *s, struct listener *l, const char *path, struct err *e)
{
    struct daemon *d = s->daemon;
    int rc;

    if (check_parent(path, d->options->default_address, e) < 0 || clear_stale(path, e) < 0)
        return -1;
    l->server = s;
    l->pipe.data = s;
    uv_pipe_init(&d->loop, &l->pipe, 0);
    l->open = true;
    s->n_handles++;
    if ((rc = uv_pipe_bind(&l->pipe, path)) < 0)
        return err_set(e, "listening on %s: %s", path, uv_strerror(rc));
    /* Nobody can connect before listen(), so the mode is right from the first client on. */
    if (chmod(path, 0660) < 0)
        return err_set_errno(e, "chmod of %s", path);
    if ((rc = uv_listen((uv_stream_t *)&l->pipe, BACKLOG, on_connection)) < 0)
        return err_set(e, "listening on %s: %s", path, uv_strerror(rc));
    log_info(&d->log, "listening on unix:%s", path);
    return 0;
}

static void on_closed(uv_handle_t *h)
{
    struct server *s = h->data;

    if (--s->n_handles > 0 || !s->destroyed)
        return;
    free(s->listeners);
    free(s);
}

void server_stop_listening(struct server *s)
{
    for (size_t i = 0; i < s->n_listeners; i++)
        if (s->listeners[i].open) {
            s->listeners[i].open = false;
            uv_close((uv_handle_t *)&s->listeners[i].pipe, on_closed);
        }
}

bool server_is_flushed(const struct server *s)
{
    for (const struct conn *c = s->conns; c; c = c->next)
        if (conn_unsent(c))
            return false;
    return true;
}

static void close_conn(struct conn *c, void *ctx)
{
    (void)ctx;
    conn_close(c, NULL);
}

void server_destroy(struct server *s)
{
    if (!s)
        return;
    s->destroyed = true;
    server_each(s, close_conn, NULL);
    server_stop_listening(s);
    uv_close((uv_handle_t *)&s->check, on_closed);
    uv_close((uv_handle_t *)&s->idle, on_closed);
    uv_close((uv_handle_t *)&s->sweep, on_closed);
}

struct server *server_create(struct daemon *d, struct err *e)
{
    struct server *s = xcalloc(1, sizeof *s);
    const struct conf_list *addresses = &d->options->listen;

    s->daemon = d;
    s->n_listeners = addresses->n_items;
    s->listeners = xcalloc(s->n_listeners, sizeof *s->listeners);
    uv_check_init(&d->loop, &s->check);
    uv_idle_init(&d->loop, &s->idle);
    uv_timer_init(&d->loop, &s->sweep);
    s->check.data = s->idle.data = s->sweep.data = s;
    s->n_handles = 3;
    uv_check_start(&s->check, on_check);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    for (size_t i = 0; i < s->n_listeners; i++)
        if (listen_on(s, &s->listeners[i], addresses->items[i] + strlen("unix:"), e) < 0) {
            server_destroy(s);
            return NULL;
        }
    return s;
}
