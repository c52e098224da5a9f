/* conn - one connection: bytes in, lines out to rpc, replies back.
 *
 * Bounded in every direction: lines by proto/frame, work per tick by CONN_MESSAGES_PER_TICK (then reading
 * stops and the rest waits for its next turn), output by CONN_OUT_MAX_BYTES and CONN_STALL_MS. A client that
 * goes beyond the output bounds is disconnected, with a line in the log; nobody else notices.
 */
#ifndef DAEMON_CONN_H
#define DAEMON_CONN_H

#include <cjson/cJSON.h>
#include <uv.h>
#include "common/buf.h"
#include "daemon/rpc.h"
#include "daemon/watch.h"
#include "proto/frame.h"

enum {
    CONN_MESSAGES_PER_TICK = 32,
    CONN_OUT_MAX_BYTES = 8 << 20,
    CONN_OUT_HIGH_BYTES = 256 << 10, /* streams wait while more than this is unsent */
    CONN_STALL_MS = 30000            /* unsent bytes, and nothing taken for so long */
};

struct daemon;
struct follow;

struct conn {
    uv_pipe_t pipe;
    uv_write_t write;
    struct conn *next, **prev;
    struct daemon *daemon;
    uint64_t id;
    struct frame frame;
    struct buf out, inflight; /* inflight: what the loop is writing now */
    size_t inflight_at;
    int64_t stalled_since_ns; /* 0 = nothing unsent */
    int64_t uid, pid;         /* of the peer */
    enum rpc_role role;
    bool writing, closing, close_when_flushed, corked, paused;

    struct watch watch;
    struct follow *follow;              /* job.logs {follow}; owned */
    int64_t worker_job, worker_attempt; /* 0 unless worker.attach or worker.hello succeeded */
    bool beats;                         /* worker.hello: a rank's own link, no client */
    int64_t worker_rank;                /* of it */
};

/* Accepts from a listening pipe. NULL when the peer is gone already. */
struct conn *conn_accept(struct daemon *d, uv_stream_t *listener, uint64_t id);

/* Handles at most CONN_MESSAGES_PER_TICK messages. */
void conn_process(struct conn *c);

/* Sends a document (owned) as one line; one that is too long becomes an internal error for the same id. */
void conn_send(struct conn *c, cJSON *doc);

/* Sends a line of text that has no newline yet. */
void conn_send_text(struct conn *c, const char *text, size_t len);

/* Bytes that have not left yet. */
size_t conn_unsent(const struct conn *c);

/* Disconnects and says why in the log (NULL: an ordinary end). The memory goes when the handle is closed. */
void conn_close(struct conn *c, const char *why);

#endif
