/* server - see server.h.
 *
 * Connections form a list. Those with messages left over from their last turn are paused (conn.h) and get one
 * more turn per loop iteration, driven by `idle`, which runs only while there are any. `sweep` looks once a
 * second for clients that take nothing of what was sent to them, do not say who they are, or came by a token
 * that is no longer good; and for a renewed certificate.
 */
#include "daemon/server.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/listener.h"
#include "daemon/tokens.h"
#include "proto/tls.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    SWEEP_MS = 1000,
    N_BUCKETS = 1024,
    READ_BYTES = 65536,
    POLITE = 16, /* clients too many that are still told so, which takes a handshake over TCP */
    /* A handshake costs us a signature, and whoever asks for one nothing. */
    HANDSHAKES_PER_S = 200,
    HANDSHAKE_BURST = 1000
};

/* A file as it was when it was read. */
struct file_mark {
    struct timespec mtime;
    ino_t ino;
};

struct server {
    struct daemon *daemon;
    struct access *access;
    struct limits *limits;
    struct tokens *tokens;
    struct tls *tls; /* NULL without TCP */
    struct bucket handshakes;
    int64_t n_turned_away; /* since the last sweep: closed without a word */
    struct file_mark cert, key;
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

struct access *server_access(struct server *s)
{
    return s->access;
}

struct limits *server_limits(struct server *s)
{
    return s->limits;
}

struct tokens *server_tokens(struct server *s)
{
    return s->tokens;
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

/* One client more than there may be, of all or of this user. */
static bool is_too_many(struct conn *c, const struct options *o, struct limit_hit *hit)
{
    if (server_counts(c->daemon->server)->n_clients <= o->max_clients)
        return conn_count(c, hit) < 0;
    snprintf(hit->message, sizeof hit->message,
             "too many clients: %lld are connected already (--max-clients)", (long long)o->max_clients);
    return true;
}

/* A stranger who cannot be let in holds a connection until his handshake is over. There must not be so many
 * of them that they take others' places, nor so many handshakes that nothing else is done. */
static bool is_told(struct server *s, const struct conn *c, bool too_many)
{
    const struct options *o = s->daemon->options;
    int64_t wait_ms;

    if (c->kind != CONN_TCP)
        return true;
    if (!bucket_take(&s->handshakes, HANDSHAKES_PER_S, HANDSHAKE_BURST, 1, clock_mono_ns(), &wait_ms))
        return false;
    return !too_many ||
           (s->counts.n_clients > o->max_clients && s->counts.n_clients <= o->max_clients + POLITE);
}

static void admit(struct server *s, struct conn *c)
{
    struct limit_hit hit;
    bool too_many = is_too_many(c, s->daemon->options, &hit), told = is_told(s, c, too_many);

    if (told && !too_many)
        return;
    s->counts.n_refused++;
    if (told) {
        conn_dismiss(c, RPC_OVERLOADED, hit.message);
    } else {
        s->n_turned_away++;
        conn_close(c, NULL);
    }
}

static void on_connection(uv_stream_t *stream, int status)
{
    struct listener *l = (struct listener *)stream;
    struct server *s = l->owner;
    struct daemon *d = s->daemon;

    if (status < 0) {
        log_warn(&d->log, "a client could not be accepted: %s", uv_strerror(status));
        return;
    }
    struct channel *channel = l->kind == CONN_TCP ? tls_accept(s->tls) : channel_plain_create();
    struct conn *c = conn_accept(d, stream, l->kind, channel, ++s->last_id);
    if (!c)
        return;
    c->next = s->conns;
    c->prev = &s->conns;
    if (c->next)
        c->next->prev = &c->next;
    s->conns = c;
    add_to_index(s, c);
    s->counts.n_accepted++;
    s->counts.n_clients++;
    admit(s, c);
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
    else if (c->login_by_ns && *now > c->login_by_ns)
        conn_close(c, channel_is_open(c->channel) ? "it has not logged in in time (--login-ms)"
                                                  : "its TLS handshake took too long (--login-ms)");
    else if (c->token && !tokens_get(c->daemon->server->tokens, c->token, clock_wall_ms()))
        conn_expel(c, "the token of this connection has expired or was revoked");
}

static struct file_mark mark_of(const char *path)
{
    struct stat st;

    return stat(path, &st) < 0 ? (struct file_mark){0} : (struct file_mark){st.st_mtim, st.st_ino};
}

static bool same_mark(struct file_mark a, struct file_mark b)
{
    return a.ino == b.ino && a.mtime.tv_sec == b.mtime.tv_sec && a.mtime.tv_nsec == b.mtime.tv_nsec;
}

/* Reads certificate and key when they are others than before. While the new ones are of no use (one of them
 * is still being written, say) the old ones stay. */
static int refresh_tls(struct server *s, struct err *e)
{
    const struct options *o = s->daemon->options;
    struct file_mark cert = mark_of(o->tls_cert), key = mark_of(o->tls_key);

    if (s->tls && same_mark(cert, s->cert) && same_mark(key, s->key))
        return 0;
    s->cert = cert;
    s->key = key;
    struct tls *tls = tls_server_create(o->tls_cert, o->tls_key, e);
    if (!tls)
        return -1;
    if (s->tls)
        log_info(&s->daemon->log, "new certificate from %s", o->tls_cert);
    tls_destroy(s->tls);
    s->tls = tls;
    return 0;
}

static void on_sweep(uv_timer_t *t)
{
    struct server *s = t->data;
    int64_t now = clock_mono_ns();
    struct err e = ERR_INIT;

    tokens_tend(s->tokens);
    limits_tend(s->limits, now);
    if (s->tls && refresh_tls(s, &e) < 0)
        log_error(&s->daemon->log, "the new certificate is not used: %s", e.msg);
    if (s->n_turned_away)
        log_warn(&s->daemon->log, "%lld clients over TCP were turned away: too many connect at once",
                 (long long)s->n_turned_away);
    s->n_turned_away = 0;
    server_each(s, sweep_conn, &now);
}

/* --- life --- */

static void on_closed(uv_handle_t *h)
{
    struct server *s = h->data;

    if (--s->n_handles > 0 || !s->destroyed)
        return;
    free(s->listeners);
    tls_destroy(s->tls);
    tokens_close(s->tokens);
    limits_destroy(s->limits);
    access_destroy(s->access);
    free(s);
}

void server_stop_listening(struct server *s)
{
    for (size_t i = 0; i < s->n_listeners; i++)
        if (s->listeners[i].open) {
            s->listeners[i].open = false;
            uv_close(&s->listeners[i].socket.handle, on_closed);
        }
}

bool server_is_flushed(const struct server *s)
{
    for (const struct conn *c = s->conns; c; c = c->next)
        if (conn_unsent(c) && channel_is_open(c->channel))
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

static int listen_on(struct server *s, struct listener *l, const char *address, enum conn_kind kind,
                     struct err *e)
{
    struct daemon *d = s->daemon;

    l->kind = kind;
    l->owner = s;
    int rc = listener_open(l, &d->loop, address, d->options->default_address, on_connection, e);
    if (l->open) {
        l->socket.handle.data = s;
        s->n_handles++;
    }
    if (rc < 0)
        return -1;
    char *where = listener_address(l, address);
    log_info(&d->log, "listening on %s%s", where, kind == CONN_GUEST ? " for workers of other users" : "");
    free(where);
    return 0;
}

static int listen_on_all(struct server *s, struct err *e)
{
    const struct options *o = s->daemon->options;

    s->n_listeners = o->listen.n_items + (o->guest_link_address ? 1 : 0);
    s->listeners = xcalloc(s->n_listeners, sizeof *s->listeners);
    for (size_t i = 0; i < o->listen.n_items; i++) {
        const char *address = o->listen.items[i];
        enum conn_kind kind = strncmp(address, "tcp:", 4) == 0 ? CONN_TCP : CONN_LOCAL;
        if (listen_on(s, &s->listeners[i], address, kind, e) < 0)
            return -1;
    }
    if (!o->guest_link_address)
        return 0;
    return listen_on(s, &s->listeners[s->n_listeners - 1], o->guest_link_address, CONN_GUEST, e);
}

static int open_parts(struct server *s, struct err *e)
{
    const struct options *o = s->daemon->options;
    char *path = fs_join(o->state_dir, "tokens.json");

    s->limits = limits_create(o);
    s->access = access_create(o, e);
    s->tokens = s->access ? tokens_open(path, &s->daemon->log, e) : NULL;
    free(path);
    if (!s->tokens)
        return -1;
    return o->tls_cert ? refresh_tls(s, e) : 0;
}

struct server *server_create(struct daemon *d, struct err *e)
{
    struct server *s = xcalloc(1, sizeof *s);

    s->daemon = d;
    s->handshakes = bucket_full(HANDSHAKE_BURST, clock_mono_ns());
    uv_check_init(&d->loop, &s->check);
    uv_idle_init(&d->loop, &s->idle);
    uv_timer_init(&d->loop, &s->sweep);
    s->check.data = s->idle.data = s->sweep.data = s;
    s->n_handles = 3;
    if (open_parts(s, e) < 0 || listen_on_all(s, e) < 0) {
        server_destroy(s);
        return NULL;
    }
    uv_check_start(&s->check, on_check);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    return s;
}
