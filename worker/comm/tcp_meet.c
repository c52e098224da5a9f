/* tcp_meet - see tcp_meet.h: the part of the ranks that connect; rank 0's is in tcp_door.c. */
#include "worker/comm/tcp_meet.h"
#include "common/clock.h"
#include "worker/comm/tcp_door.h"
#include "worker/comm/tcp_proof.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A try ends after FIRST_TRY_MS, for an address may lead nowhere and another may be the right one; later ones
 * have more time, for rank 0 may be busy with thousands. */
enum { FIRST_TRY_MS = 500, LONGEST_TRY_MS = 10000, PAUSE_MS = 50 };

/* ------------------------------------------------------------------ one try */

struct place {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } at;
    socklen_t bytes;
    char name[INET6_ADDRSTRLEN + 16]; /* "10.0.0.1 port 40123" */
};

static struct place place_of(const struct tcp_invitation *inv, int address)
{
    static const struct tcp_address loopback = {0, {127, 0, 0, 1}};
    const struct tcp_address *a = address < 0 ? &loopback : &inv->addresses[address];
    char text[INET6_ADDRSTRLEN] = "";
    struct place p;

    memset(&p, 0, sizeof p);
    if (a->is_v6) {
        p.bytes = sizeof p.at.v6;
        p.at.v6.sin6_family = AF_INET6;
        p.at.v6.sin6_port = htons(inv->port);
        memcpy(&p.at.v6.sin6_addr, a->bytes, 16);
    } else {
        p.bytes = sizeof p.at.v4;
        p.at.v4.sin_family = AF_INET;
        p.at.v4.sin_port = htons(inv->port);
        memcpy(&p.at.v4.sin_addr, a->bytes, 4);
    }
    inet_ntop(p.at.any.sa_family, a->bytes, text, sizeof text);
    snprintf(p.name, sizeof p.name, "%s port %u", text, inv->port);
    return p;
}

static int wait_on(int fd, short events, int64_t deadline_ns, struct err *e)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        const int64_t ms = (deadline_ns - clock_mono_ns()) / 1000000 + 1;
        const int n = poll(&p, 1, ms > 0 ? (int)ms : 0);

        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_set_errno(e, "poll");
        if (n == 0 && clock_mono_ns() >= deadline_ns)
            return err_set(e, "no answer");
    }
}

static int connect_to(const struct place *p, int64_t deadline_ns, struct err *e)
{
    int fd = socket(p->at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), failed = 0;
    socklen_t n = sizeof failed;

    if (fd < 0)
        return err_set_errno(e, "socket");
    if (connect(fd, &p->at.any, p->bytes) == 0)
        return fd;
    if (errno != EINPROGRESS)
        err_set_errno(e, "connect");
    else if (wait_on(fd, POLLOUT, deadline_ns, e) == 0) {
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &n) == 0 && !failed)
            return fd;
        errno = failed;
        err_set_errno(e, "connect");
    }
    close(fd);
    return -1;
}

static int read_all(int fd, void *to, size_t bytes, int64_t deadline_ns, struct err *e)
{
    for (size_t got = 0; got < bytes;) {
        ssize_t n;

        if (wait_on(fd, POLLIN, deadline_ns, e) < 0)
            return -1;
        n = recv(fd, (char *)to + got, bytes - got, MSG_DONTWAIT);
        if (n == 0)
            return err_set(e, "it hung up");
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return err_set_errno(e, "recv");
        got += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* The socket is new and little was sent, so it fits. */
static int send_first(int fd, const void *data, size_t bytes, struct err *e)
{
    return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes ? 0 : err_set_errno(e, "send");
}

/* Shows who we are, and asks for the same. */
static int introduce(int fd, const struct tcp_invitation *inv, int rank, int64_t deadline_ns, struct err *e)
{
    struct tcp_challenge c;
    struct tcp_answer a;
    struct tcp_welcome w;
    struct tcp_here here = {TCP_MAGIC};
    uint8_t proof[SIPHASH_BYTES];

    memset(&a, 0, sizeof a);
    memcpy(a.magic, TCP_MAGIC, sizeof a.magic);
    gethostname(a.host, sizeof a.host - 1);
    a.rank = rank;
    if (tcp_draw(a.drawn, sizeof a.drawn, e) < 0 || read_all(fd, &c, sizeof c, deadline_ns, e) < 0)
        return -1;
    if (memcmp(c.magic, TCP_MAGIC, sizeof c.magic) != 0)
        return err_set(e, "another program answers there");
    tcp_prove(inv->secret, TCP_ROLE_OTHER, &c, &a, a.proof);
    if (send_first(fd, &a, sizeof a, e) < 0 || read_all(fd, &w, sizeof w, deadline_ns, e) < 0)
        return -1;
    tcp_prove(inv->secret, TCP_ROLE_ROOT, &c, &a, proof);
    if (!tcp_same_proof(proof, w.proof))
        return err_set(e, "it does not know this job's secret");
    return send_first(fd, &here, sizeof here, e);
}

int tcp_meet_knock(const struct tcp_invitation *inv, int address, int rank, int timeout_ms, struct err *e)
{
    const int64_t deadline = clock_mono_ns() + timeout_ms * 1000000LL;
    const struct place p = place_of(inv, address);
    int fd = connect_to(&p, deadline, e);

    if (fd < 0)
        return err_wrap(e, "%s", p.name);
    tcp_tune(fd);
    if (introduce(fd, inv, rank, deadline, e) == 0)
        return fd;
    close(fd);
    return err_wrap(e, "%s", p.name);
}

/* ------------------------------------------------------------------ the meeting */

static int check_invitation(const struct tcp_invitation *inv, struct err *e)
{
    if (!inv->ok)
        return err_set_kind(e, ERR_PEER_LOST, "rank 0 on %.63s cannot listen for the other ranks: %.255s",
                            inv->host, inv->why);
    if (inv->n_addresses > TCP_MAX_ADDRESSES)
        return err_set(e, "rank 0's invitation names %u addresses, at most %d are possible", inv->n_addresses,
                       TCP_MAX_ADDRESSES);
    return 0;
}

static int try_ms(int n_passes, int64_t deadline_ns)
{
    int64_t ms = FIRST_TRY_MS << (n_passes < 5 ? n_passes : 5), left;

    ms = ms < LONGEST_TRY_MS ? ms : LONGEST_TRY_MS;
    left = deadline_ns == INT64_MAX ? ms : (deadline_ns - clock_mono_ns()) / 1000000;
    return (int)(left < 1 ? 1 : left < ms ? left : ms);
}

/* Every address once. A host of rank 0's name may be rank 0's own, which loopback reaches without any
 * network.
 */
static int try_all(const struct rendezvous *r, const struct tcp_invitation *inv, int n_passes,
                   int64_t deadline_ns, struct err *e)
{
    char host[TCP_HOST_BYTES] = "";
    int fd = -1;

    gethostname(host, sizeof host - 1);
    err_set(e, "it has no address that other hosts could reach");
    for (int i = strcmp(host, inv->host) == 0 ? -1 : 0; i < inv->n_addresses && fd < 0; i++)
        fd = tcp_meet_knock(inv, i, r->rank, try_ms(n_passes, deadline_ns), e);
    return fd;
}

static int join(const struct rendezvous *r, struct tcp_invitation *inv, struct tcp_link *link, struct err *e)
{
    static const struct timespec pause = {0, PAUSE_MS * 1000000L};
    const int64_t deadline = r->timeout_ms < 0 ? INT64_MAX : clock_mono_ns() + r->timeout_ms * 1000000LL;

    for (int n_passes = 0;; n_passes++) {
        struct err why = ERR_INIT;
        int fd;

        if (check_invitation(inv, e) < 0)
            return -1;
        fd = try_all(r, inv, n_passes, deadline, &why);
        if (fd >= 0) {
            tcp_link_open(link, fd, 0, inv->host);
            return 0;
        }
        if (clock_mono_ns() >= deadline)
            return err_set_kind(
                e, ERR_PEER_LOST,
                "rank %d could not connect to rank 0 on %.63s within %d s, at the last try: %s", r->rank,
                inv->host, r->timeout_ms / 1000, why.msg);
        nanosleep(&pause, NULL);
        /* Perhaps that was what an earlier meeting of this name had left. */
        if (rendezvous_look(r, inv, sizeof *inv, e) < 0)
            return -1;
    }
}

static int invite(struct rendezvous *r, struct tcp_link *links, struct err *e)
{
    struct tcp_invitation inv;
    int door = tcp_door_open(&inv, r->size, e), rc;

    rc = rendezvous_share(r, &inv, sizeof inv, door < 0 ? NULL : e);
    if (door < 0)
        return -1; /* the others have been told */
    if (rc == 0)
        rc = tcp_door_admit(door, &inv, r->size, r->timeout_ms, links, e);
    close(door);
    rendezvous_clean(r);
    return rc;
}

int tcp_meet(struct rendezvous *r, struct tcp_link *links, struct err *e)
{
    struct tcp_invitation inv;
    int rc;

    if (r->rank == 0)
        return invite(r, links, e);
    rc = rendezvous_share(r, &inv, sizeof inv, e);
    if (rc == 0)
        rc = join(r, &inv, links, e);
    rendezvous_clean(r);
    return rc;
}
