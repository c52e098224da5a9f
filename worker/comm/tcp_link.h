/* tcp_link - one connection between two ranks: a message each way at once, never blocking.
 *
 * A message goes in frames, each a header and at most TCP_CHUNK_BYTES. A header says which call its message
 * belongs to (kind, number of the call, bytes in all), so that ranks which do not make the same calls find
 * out rather than take one thing for another. Between frames a side may say something else: that it waits for
 * a third rank (TCP_WAITS), that it gives up and why (TCP_ABORT), that it ends in order (TCP_BYE).
 *
 * A message is sent as far as its bytes are ready and read as far as they are wanted, so that rank 0 can sum
 * chunk by chunk. Ranks are of one build and one byte order.
 */
#ifndef COMM_TCP_LINK_H
#define COMM_TCP_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

enum { TCP_CHUNK_BYTES = 256 * 1024, TCP_HOST_BYTES = 64, TCP_WHY_BYTES = 900 };

enum tcp_kind {
    TCP_ALL_GATHER = 1,
    TCP_REDUCE_SCATTER,
    TCP_ALL_TO_ALL,
    TCP_ALL_REDUCE,
    TCP_BROADCAST,
    TCP_BARRIER,
    TCP_WAITS, /* arg: the rank that is waited for */
    TCP_ABORT, /* arg: exit status, or 0; bytes of text */
    TCP_BYE,
};

struct tcp_head {
    uint32_t kind, call;
    uint64_t total; /* bytes of the message */
    uint32_t bytes; /* of this frame, without the header */
    int32_t arg;
};

/* A message on its way out, and the frame of it that is being written. */
struct tcp_out {
    bool on, open, begun;
    const char *data;
    size_t total, ready, sent; /* sent: in whole frames */
    struct tcp_head head;
    size_t frame_at, frame_bytes; /* header included; 0: between frames */
};

/* A message on its way in. */
struct tcp_in {
    bool on, begun;
    char *dst;
    bool staged; /* dst has room for one chunk, and each overwrites the one before */
    uint32_t kind, call;
    size_t total, wanted, got;
    struct tcp_head head;
    size_t head_got, frame_left;
    size_t why_left, why_got; /* of a TCP_ABORT's text */
};

struct tcp_link {
    int fd, rank; /* rank: the other's */
    char host[TCP_HOST_BYTES];
    struct tcp_out out;
    struct tcp_in in;
    bool gone;     /* no word can come or go any more */
    bool ahead;    /* what lies there unread belongs to a later call */
    int waits_for; /* whom the other said it waits for; -1: nobody */
    char why[TCP_WHY_BYTES];
    char last_words[sizeof(struct tcp_head) + TCP_WHY_BYTES];
    size_t words_at, words_bytes;
};

const char *tcp_kind_name(uint32_t kind);

/* fd is a connected, nonblocking socket, the link's from now on; host may be "". */
void tcp_link_open(struct tcp_link *l, int fd, int rank, const char *host);

/* Says goodbye when `orderly`, and closes. What the other has sent is read and dropped first: a socket that
 * is closed with unread bytes takes back what it has sent. */
void tcp_link_close(struct tcp_link *l, bool orderly);

/* A call begins: nothing to send, nothing to read. */
void tcp_link_begin(struct tcp_link *l);

/* Nothing leaves before tcp_link_ready() says how many bytes are final; 0 of 0 is something, too. */
void tcp_link_send(struct tcp_link *l, enum tcp_kind kind, uint32_t call, const void *data, size_t total);
void tcp_link_ready(struct tcp_link *l, size_t bytes);

/* `total` bytes into dst. Staged: into one chunk's room, of which the first is wanted, further ones as
 * tcp_link_want() says. */
void tcp_link_expect(struct tcp_link *l, enum tcp_kind kind, uint32_t call, void *dst, size_t total);
void tcp_link_expect_staged(struct tcp_link *l, enum tcp_kind kind, uint32_t call, void *stage, size_t total);
void tcp_link_want(struct tcp_link *l, size_t bytes);

bool tcp_link_wants(const struct tcp_link *l);  /* bytes that are wanted are not there yet */
bool tcp_link_unsent(const struct tcp_link *l); /* some of the message has not left yet, ready or not */
bool tcp_link_done(const struct tcp_link *l);   /* all read and all sent */

/* What to poll(2) for. 0: nothing, not even an end of the connection. */
short tcp_link_events(const struct tcp_link *l);

/* Moves what can be moved. 1: something was; 0: nothing. -1: the connection ended, the other gave up (then
 * *e is what it said; e->code its exit status), or it is in another call. */
int tcp_link_serve(struct tcp_link *l, short revents, struct err *e);

/* A note; dropped where a frame is half out, or where the other does not read. */
void tcp_link_say_waits(struct tcp_link *l, int rank);

/* Last words: why this side gives up. tcp_link_finish() sends what it can of the frame that is half out, and
 * behind it these; true when nothing of both is left, or nobody is there to hear it. */
void tcp_link_say_abort(struct tcp_link *l, int code, const char *why);
bool tcp_link_finish(struct tcp_link *l);

#endif
