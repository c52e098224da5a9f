/* conn - one connection: bytes in, lines out to rpc, replies back.
 *
 * Bounded in every direction: lines by proto/frame, work per tick by CONN_MESSAGES_PER_TICK (then reading
 * stops and the rest waits for its next turn), output by CONN_OUT_MAX_BYTES and CONN_STALL_MS. A client that
 * goes beyond the output bounds is disconnected, with a line in the log; nobody else notices. One from which
 * it is not known yet who it is has until login_by_ns and CONN_MAX_STRANGE messages to say so.
 */
#ifndef DAEMON_CONN_H
#define DAEMON_CONN_H

#include <cjson/cJSON.h>
#include <uv.h>
#include "common/buf.h"
#include "daemon/rpc.h"
#include "daemon/watch.h"
#include "proto/channel.h"
#include "proto/frame.h"

enum {
    CONN_MESSAGES_PER_TICK = 32,
    CONN_OUT_MAX_BYTES = 8 << 20,
    CONN_OUT_HIGH_BYTES = 256 << 10, /* streams wait while more than this is unsent */
    CONN_STALL_MS = 30000,           /* unsent bytes, and nothing taken for so long */
    CONN_MAX_STRANGE = 16            /* messages before a login */
};

/* How a client comes in. */
enum conn_kind {
    CONN_LOCAL, /* Unix socket: the kernel says who it is */
    CONN_GUEST, /* Unix socket that everybody can reach: workers only */
    CONN_TCP    /* TLS: who it is, a token says */
};

struct daemon;
struct follow;
struct limit_hit;
struct token;

union conn_socket {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_pipe_t pipe;
    uv_tcp_t tcp;
};

struct conn {
    union conn_socket socket;
    uv_write_t write;
    struct conn *next, **prev;
    struct conn *next_in_bucket; /* the server's index by id */
    struct daemon *daemon;
    uint64_t id;
    enum conn_kind kind;
    struct channel *channel;
    struct frame frame;
    struct buf out, inflight; /* inflight: what the loop is writing now, as the channel has sealed it */
    size_t inflight_at;
    int64_t stalled_since_ns; /* 0 = nothing unsent */
    int64_t uid;              /* of the user; -1 while it is not known */
    int64_t pid;              /* of a peer on this machine, as the kernel has it; else 0 */
    int64_t peer_uid;         /* of the process at the other end of a Unix socket; -1 over TCP */
    enum role role;           /* ROLE_ANY while it is not known who it is */
    int64_t token;            /* the one of the login; 0 = none */
    int64_t login_by_ns;      /* 0 = known */
    int64_t counted_uid;      /* whose connection it counts as */
    bool is_counted;
    int n_strange;  /* messages before a login */
    char peer[112]; /* for the log: "uid 0, pid 17", "192.0.2.1:4711" */
    bool writing, closing, close_when_flushed, corked, paused;

    struct watch watch;
    struct follow *follow;              /* job.logs {follow}; owned */
    int64_t worker_job, worker_attempt; /* 0 unless worker.attach or worker.hello succeeded */
    bool beats;                         /* worker.hello: a rank's own link, no client */
    int64_t worker_rank;                /* of it */
};

/* Accepts from a listening socket; owns the channel. NULL when the peer is gone already. */
struct conn *conn_accept(struct daemon *d, uv_stream_t *listener, enum conn_kind kind,
                         struct channel *channel, uint64_t id);

/* Handles at most CONN_MESSAGES_PER_TICK messages. */
void conn_process(struct conn *c);

/* Sends a document (owned) as one line; one that is too long becomes an internal error for the same id. */
void conn_send(struct conn *c, cJSON *doc);

/* Sends a line of text that has no newline yet. */
void conn_send_text(struct conn *c, const char *text, size_t len);

/* Bytes that have not left yet. */
size_t conn_unsent(const struct conn *c);

/* Counts it as its user's, and no longer as whosever it was before. -1 when the user has too many. */
int conn_count(struct conn *c, struct limit_hit *hit);

/* It is the token's user from now on; what was watched and followed before ends. -1 when the user has too
 * many connections: it is nobody's then. */
int conn_login(struct conn *c, const struct token *as, struct limit_hit *hit);

/* It speaks for a worker from now on. */
void conn_attached(struct conn *c);

/* Has it said who it is? */
bool conn_is_known(const struct conn *c);

/* Sends the error for no request, then disconnects when it has left, and takes nothing more. */
void conn_dismiss(struct conn *c, int code, const char *why);

/* The same with error 1006, and at once: what the client does not take now it does not get. Only the
 * connection whose messages are being handled still has its answers. */
void conn_expel(struct conn *c, const char *why);

/* Disconnects and says why in the log (NULL: an ordinary end). The memory goes when the handle is closed. */
void conn_close(struct conn *c, const char *why);

#endif
