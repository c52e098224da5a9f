/* tcp_link - see tcp_link.h. */
#include "worker/comm/tcp_link.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { HEAD = sizeof(struct tcp_head) };

_Static_assert(sizeof(struct tcp_head) == 24, "a header has no holes");

static const char *const kind_names[] = {
    [TCP_ALL_GATHER] = "all-gather", [TCP_REDUCE_SCATTER] = "reduce-scatter", [TCP_ALL_TO_ALL] = "all-to-all",
    [TCP_ALL_REDUCE] = "all-reduce", [TCP_BROADCAST] = "broadcast",           [TCP_BARRIER] = "barrier",
};

const char *tcp_kind_name(uint32_t kind)
{
    const char *name = kind < sizeof kind_names / sizeof *kind_names ? kind_names[kind] : NULL;

    return name ? name : "nothing known";
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ------------------------------------------------------------------ beginning and end */

void tcp_link_open(struct tcp_link *l, int fd, int rank, const char *host)
{
    *l = (struct tcp_link){.fd = fd, .rank = rank, .waits_for = -1};
    snprintf(l->host, sizeof l->host, "%s", host);
}

static void drain(const struct tcp_link *l)
{
    char dropped[4096];

    while (recv(l->fd, dropped, sizeof dropped, MSG_DONTWAIT) > 0)
        ;
}

/* A note in one piece or not at all; one that is cut would spoil what follows, so it ends the connection. */
static void say(struct tcp_link *l, const void *note, size_t bytes)
{
    ssize_t n;

    if (l->fd < 0 || l->gone || l->out.frame_bytes)
        return;
    n = send(l->fd, note, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == (ssize_t)bytes || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)))
        return;
    l->gone = true;
    shutdown(l->fd, SHUT_RDWR);
}

void tcp_link_close(struct tcp_link *l, bool orderly)
{
    static const struct tcp_head bye = {.kind = TCP_BYE};

    if (l->fd < 0)
        return;
    if (orderly)
        say(l, &bye, sizeof bye);
    drain(l);
    close(l->fd);
    l->fd = -1;
}

void tcp_link_say_abort(struct tcp_link *l, int code, const char *why)
{
    const size_t n = strnlen(why, TCP_WHY_BYTES - 1);
    const struct tcp_head head = {.kind = TCP_ABORT, .total = n, .bytes = (uint32_t)n, .arg = code};

    memcpy(l->last_words, &head, HEAD);
    memcpy(l->last_words + HEAD, why, n);
    l->words_at = 0;
    l->words_bytes = HEAD + n;
}

void tcp_link_say_waits(struct tcp_link *l, int rank)
{
    const struct tcp_head note = {.kind = TCP_WAITS, .arg = rank};

    say(l, &note, sizeof note);
}

/* ------------------------------------------------------------------ a call's messages */

void tcp_link_begin(struct tcp_link *l)
{
    l->out = (struct tcp_out){.on = false};
    l->in = (struct tcp_in){.on = false};
    l->ahead = false;
    l->waits_for = -1;
}

void tcp_link_send(struct tcp_link *l, enum tcp_kind kind, uint32_t call, const void *data, size_t total)
{
    l->out = (struct tcp_out){.on = true, .data = data, .total = total};
    l->out.head = (struct tcp_head){.kind = kind, .call = call, .total = total};
}

void tcp_link_ready(struct tcp_link *l, size_t bytes)
{
    l->out.open = true;
    l->out.ready = bytes;
}

void tcp_link_expect(struct tcp_link *l, enum tcp_kind kind, uint32_t call, void *dst, size_t total)
{
    l->in =
        (struct tcp_in){.on = true, .dst = dst, .kind = kind, .call = call, .total = total, .wanted = total};
}

void tcp_link_expect_staged(struct tcp_link *l, enum tcp_kind kind, uint32_t call, void *stage, size_t total)
{
    tcp_link_expect(l, kind, call, stage, total);
    l->in.staged = true;
    l->in.wanted = least(total, TCP_CHUNK_BYTES);
}

void tcp_link_want(struct tcp_link *l, size_t bytes)
{
    l->in.wanted = bytes;
    l->ahead = false; /* what was not wanted is now */
}

bool tcp_link_wants(const struct tcp_link *l)
{
    return l->in.on && (!l->in.begun || l->in.got < l->in.wanted);
}

bool tcp_link_unsent(const struct tcp_link *l)
{
    const struct tcp_out *o = &l->out;

    return o->frame_bytes || (o->on && (!o->begun || o->sent < o->total));
}

bool tcp_link_done(const struct tcp_link *l)
{
    return !tcp_link_unsent(l) && (!l->in.on || (l->in.begun && l->in.got == l->in.total));
}

static size_t next_frame(const struct tcp_out *o)
{
    return least(o->total - o->sent, TCP_CHUNK_BYTES);
}

static bool can_send(const struct tcp_link *l)
{
    const struct tcp_out *o = &l->out;

    return o->frame_bytes || (tcp_link_unsent(l) && o->open && o->ready >= o->sent + next_frame(o));
}

short tcp_link_events(const struct tcp_link *l)
{
    return (short)((tcp_link_wants(l) || !l->ahead ? POLLIN : 0) | (can_send(l) ? POLLOUT : 0));
}

/* ------------------------------------------------------------------ in */

static int lost(struct tcp_link *l, const char *why, struct err *e)
{
    l->gone = true;
    return err_set_kind(e, ERR_PEER_LOST, "rank %d on %s is gone: %s", l->rank, l->host, why);
}

/* What recv() returned, and it is not a number of bytes: 0 when it only has nothing yet. */
static int no_bytes(struct tcp_link *l, ssize_t n, struct err *e)
{
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    return lost(l, n < 0 ? strerror(errno) : "its connection ended", e);
}

/* A header is whole: it begins a frame of this call, or is a note, or should not be here. */
static int check_head(struct tcp_link *l, struct err *e)
{
    struct tcp_in *in = &l->in;
    const struct tcp_head *h = &in->head;

    if (h->kind == TCP_WAITS) {
        l->waits_for = h->arg;
        return 0;
    }
    if (h->kind == TCP_ABORT) {
        in->why_left = least(h->bytes, sizeof l->why - 1);
        return 0;
    }
    if (h->kind == TCP_BYE)
        return lost(l, "it has ended the run in order, others have not", e);
    if (h->kind != in->kind || h->call != in->call || h->total != in->total ||
        h->bytes != least(in->total - in->got, TCP_CHUNK_BYTES))
        return err_set(
            e,
            "the ranks do not make the same calls: rank %d on %s sends %s of %llu bytes as its call "
            "%u where %s of %zu bytes is expected as call %u",
            l->rank, l->host, tcp_kind_name(h->kind), (unsigned long long)h->total, h->call,
            tcp_kind_name(in->kind), in->total, in->call);
    in->frame_left = h->bytes;
    in->begun = true;
    return 0;
}

/* The other's last words are complete. */
static int gave_up(struct tcp_link *l, struct err *e)
{
    l->gone = true;
    l->why[l->in.why_got] = 0;
    err_set_kind(e, ERR_PEER_LOST, "%s", l->why);
    if (e)
        e->code = l->in.head.arg;
    return -1;
}

static int pull_head(struct tcp_link *l, struct err *e)
{
    struct tcp_in *in = &l->in;
    const ssize_t n = recv(l->fd, (char *)&in->head + in->head_got, HEAD - in->head_got, MSG_DONTWAIT);

    if (n <= 0)
        return no_bytes(l, n, e);
    in->head_got += (size_t)n;
    if (in->head_got < HEAD)
        return 1;
    in->head_got = 0;
    return check_head(l, e) < 0 ? -1 : 1;
}

static int pull_why(struct tcp_link *l, struct err *e)
{
    struct tcp_in *in = &l->in;
    const ssize_t n = recv(l->fd, l->why + in->why_got, in->why_left, MSG_DONTWAIT);

    if (n <= 0)
        return no_bytes(l, n, e);
    in->why_got += (size_t)n;
    in->why_left -= (size_t)n;
    return in->why_left ? 1 : gave_up(l, e);
}

static int pull_bytes(struct tcp_link *l, struct err *e)
{
    struct tcp_in *in = &l->in;
    char *to = in->dst + (in->staged ? in->got % TCP_CHUNK_BYTES : in->got);
    const ssize_t n = recv(l->fd, to, in->frame_left, MSG_DONTWAIT);

    if (n <= 0)
        return no_bytes(l, n, e);
    in->got += (size_t)n;
    in->frame_left -= (size_t)n;
    l->waits_for = -1;
    return 1;
}

static int pull(struct tcp_link *l, struct err *e)
{
    int moved = 0;

    while (tcp_link_wants(l) || l->in.why_left) {
        int rc = l->in.why_left ? pull_why(l, e) : l->in.frame_left ? pull_bytes(l, e) : pull_head(l, e);
        if (rc <= 0)
            return rc < 0 ? -1 : moved;
        moved = 1;
    }
    return moved;
}

/* Nothing is wanted, and there is something: an end, last words, or the beginning of a later call. */
static int watch(struct tcp_link *l, struct err *e)
{
    struct tcp_head h;
    const ssize_t n = recv(l->fd, &h, sizeof h, MSG_PEEK | MSG_DONTWAIT);

    if (n <= 0)
        return no_bytes(l, n, e);
    if (n < (ssize_t)sizeof h || h.kind != TCP_ABORT) {
        l->ahead = true;
        return 0;
    }
    if (pull_head(l, e) < 0)
        return -1;
    return pull(l, e);
}

/* ------------------------------------------------------------------ out */

static void frame_start(struct tcp_out *o)
{
    o->head.bytes = (uint32_t)next_frame(o);
    o->frame_at = 0;
    o->frame_bytes = HEAD + o->head.bytes;
}

static void frame_end(struct tcp_out *o)
{
    o->frame_bytes = 0;
    o->sent += o->head.bytes;
    o->begun = true;
}

static ssize_t send_some(const struct tcp_link *l)
{
    const struct tcp_out *o = &l->out;
    const size_t head_left = o->frame_at < HEAD ? HEAD - o->frame_at : 0;
    const size_t body_at = o->frame_at < HEAD ? 0 : o->frame_at - HEAD;
    struct iovec parts[2] = {
        {(char *)(uintptr_t)&o->head + (HEAD - head_left), head_left},
        {(char *)(uintptr_t)o->data + o->sent + body_at, o->head.bytes - body_at},
    };
    struct msghdr m = {.msg_iov = head_left ? parts : parts + 1, .msg_iovlen = head_left ? 2 : 1};

    return sendmsg(l->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int take_in(struct tcp_link *l, struct err *e)
{
    return tcp_link_wants(l) || l->in.why_left ? pull(l, e) : l->ahead ? 0 : watch(l, e);
}

/* A rank that gave up closes its end; what it said before that is the better reason. */
static int send_failed(struct tcp_link *l, struct err *e)
{
    char why[128];

    snprintf(why, sizeof why, "%s", strerror(errno));
    return take_in(l, e) < 0 ? -1 : lost(l, why, e);
}

bool tcp_link_finish(struct tcp_link *l)
{
    struct tcp_out *o = &l->out;

    while (!l->gone && (o->frame_bytes || l->words_at < l->words_bytes)) {
        const ssize_t n = o->frame_bytes ? send_some(l)
                                         : send(l->fd, l->last_words + l->words_at,
                                                l->words_bytes - l->words_at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return false;
        if (n < 0 && errno != EINTR)
            l->gone = true;
        if (n <= 0)
            continue;
        if (!o->frame_bytes)
            l->words_at += (size_t)n;
        else if ((o->frame_at += (size_t)n) == o->frame_bytes)
            frame_end(o);
    }
    return true;
}

static int push(struct tcp_link *l, struct err *e)
{
    struct tcp_out *o = &l->out;
    int moved = 0;

    while (can_send(l)) {
        if (!o->frame_bytes)
            frame_start(o);
        ssize_t n = send_some(l);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK ? moved : send_failed(l, e);
        moved = 1;
        o->frame_at += (size_t)n;
        if (o->frame_at == o->frame_bytes)
            frame_end(o);
    }
    return moved;
}

int tcp_link_serve(struct tcp_link *l, short revents, struct err *e)
{
    int in = 0, out = 0;

    if (revents & ~POLLOUT)
        in = take_in(l, e);
    if (in >= 0 && revents && can_send(l))
        out = push(l, e);
    return in < 0 || out < 0 ? -1 : in || out;
}
