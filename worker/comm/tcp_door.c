/* tcp_door - see tcp_door.h. */
#include "worker/comm/tcp_door.h"
#include "common/clock.h"
#include "worker/comm/tcp_proof.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_GUESTS = 64, GUEST_MS = 5000, NAMED_RANKS = 8, OTHER_FILES = 64 };

/* A connection that is not a rank's yet: it owes an answer, and when that was right, that it is here. */
struct guest {
    int fd;
    int64_t until_ns;
    struct tcp_challenge challenge;
    struct tcp_answer answer;
    struct tcp_here here;
    bool known; /* the answer was right */
    size_t got;
};

struct door {
    int fd;
    const struct tcp_invitation *inv;
    int size, n_here, n_guests;
    struct tcp_link *links;
    struct guest guests[MAX_GUESTS];
};

/* ------------------------------------------------------------------ listening */

/* Of both families where the host has IPv6. */
static int listen_anywhere(struct err *e)
{
    const struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT};
    const struct sockaddr_in any4 = {.sin_family = AF_INET};
    const int off = 0;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
        bind(fd, (const struct sockaddr *)&any6, sizeof any6) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(e, "socket");
    if (bind(fd, (const struct sockaddr *)&any4, sizeof any4) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    err_set_errno(e, "listen");
    close(fd);
    return -1;
}

static int find_port(int fd, uint16_t *port, struct err *e)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } at;
    socklen_t n = sizeof at;

    if (getsockname(fd, &at.any, &n) < 0)
        return err_set_errno(e, "getsockname");
    *port = ntohs(at.any.sa_family == AF_INET6 ? at.v6.sin6_port : at.v4.sin_port);
    return 0;
}

/* Loopback is no way for other hosts, and a link-local address means another link on each. */
static bool take_address(const struct sockaddr *sa, struct tcp_address *out)
{
    memset(out, 0, sizeof *out);
    if (sa && sa->sa_family == AF_INET) {
        memcpy(out->bytes, &((const struct sockaddr_in *)sa)->sin_addr, 4);
        return true;
    }
    if (sa && sa->sa_family == AF_INET6) {
        const struct in6_addr *a = &((const struct sockaddr_in6 *)sa)->sin6_addr;

        out->is_v6 = 1;
        memcpy(out->bytes, a, 16);
        return !IN6_IS_ADDR_LINKLOCAL(a);
    }
    return false;
}

static int find_addresses(struct tcp_invitation *inv, struct err *e)
{
    struct ifaddrs *list;

    if (getifaddrs(&list) < 0)
        return err_set_errno(e, "getifaddrs");
    for (struct ifaddrs *i = list; i && inv->n_addresses < TCP_MAX_ADDRESSES; i = i->ifa_next)
        if (i->ifa_flags & IFF_UP && !(i->ifa_flags & IFF_LOOPBACK))
            inv->n_addresses += take_address(i->ifa_addr, &inv->addresses[inv->n_addresses]);
    freeifaddrs(list);
    return 0;
}

/* A file a rank, and most systems begin with 1024. */
static int allow_files(int n, struct err *e)
{
    const rlim_t need = (rlim_t)n + OTHER_FILES;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return err_set_errno(e, "getrlimit");
    if (limit.rlim_cur >= need)
        return 0;
    if (limit.rlim_max < need)
        return err_set(e, "%d ranks need %llu open files on rank 0, and its limit is %llu (ulimit -Hn)", n,
                       (unsigned long long)need, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = need;
    return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? err_set_errno(e, "setrlimit") : 0;
}

int tcp_door_open(struct tcp_invitation *inv, int size, struct err *e)
{
    struct err own = ERR_INIT;
    int fd;

    memset(inv, 0, sizeof *inv);
    gethostname(inv->host, sizeof inv->host - 1);
    fd = allow_files(size, &own) < 0 ? -1 : listen_anywhere(&own);
    if (fd >= 0 && find_port(fd, &inv->port, &own) == 0 && find_addresses(inv, &own) == 0 &&
        tcp_draw(inv->secret, sizeof inv->secret, &own) == 0) {
        inv->ok = 1;
        return fd;
    }
    if (fd >= 0)
        close(fd);
    snprintf(inv->why, sizeof inv->why, "%.200s", own.msg);
    return err_set(e, "rank 0 on %s cannot listen for the other ranks: %s", inv->host, own.msg);
}

/* ------------------------------------------------------------------ guests */

static void send_away(struct door *d, int i)
{
    close(d->guests[i].fd);
    d->guests[i] = d->guests[--d->n_guests];
}

static int ask(struct door *d, int fd, struct err *e)
{
    struct guest *g = &d->guests[d->n_guests];

    memset(g, 0, sizeof *g);
    g->fd = fd;
    g->until_ns = clock_mono_ns() + GUEST_MS * 1000000LL;
    memcpy(g->challenge.magic, TCP_MAGIC, sizeof g->challenge.magic);
    if (tcp_draw(g->challenge.drawn, sizeof g->challenge.drawn, e) < 0) {
        close(fd);
        return -1;
    }
    tcp_tune(fd);
    d->n_guests++;
    /* Nothing was sent yet, so it fits. */
    if (send(fd, &g->challenge, sizeof g->challenge, MSG_NOSIGNAL) != sizeof g->challenge)
        send_away(d, d->n_guests - 1);
    return 0;
}

static bool out_of_files(void)
{
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
}

/* What accept() says of connections that broke meanwhile is not our trouble. */
static int open_to(struct door *d, struct err *e)
{
    while (d->n_guests < MAX_GUESTS) {
        const int fd = accept4(d->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0)
            return out_of_files() ? err_set_errno(e, "accepting a rank's connection") : 0;
        if (ask(d, fd, e) < 0)
            return -1;
    }
    return 0;
}

static bool is_rank(const struct door *d, const struct guest *g)
{
    uint8_t proof[SIPHASH_BYTES];

    tcp_prove(d->inv->secret, TCP_ROLE_OTHER, &g->challenge, &g->answer, proof);
    return memcmp(g->answer.magic, TCP_MAGIC, sizeof g->answer.magic) == 0 && g->answer.rank > 0 &&
           g->answer.rank < d->size && tcp_same_proof(proof, g->answer.proof);
}

static bool welcome(const struct door *d, struct guest *g)
{
    struct tcp_welcome w;

    if (!is_rank(d, g))
        return false;
    tcp_prove(d->inv->secret, TCP_ROLE_ROOT, &g->challenge, &g->answer, w.proof);
    g->known = true;
    g->got = 0;
    return send(g->fd, &w, sizeof w, MSG_NOSIGNAL) == sizeof w;
}

/* The guest becomes a rank's link and leaves the list. */
static bool let_in(struct door *d, int i)
{
    struct guest *g = &d->guests[i];
    struct tcp_link *l = &d->links[g->answer.rank - 1];

    if (l->fd >= 0 || memcmp(g->here.magic, TCP_MAGIC, sizeof g->here.magic) != 0)
        return false;
    g->answer.host[sizeof g->answer.host - 1] = 0;
    tcp_link_open(l, g->fd, g->answer.rank, g->answer.host);
    d->n_here++;
    *g = d->guests[--d->n_guests];
    return true;
}

/* 1: goes on; 0: what it owed is complete; -1: it is gone, or its time is over. */
static int read_guest(struct guest *g)
{
    char *owed = g->known ? (char *)&g->here : (char *)&g->answer;
    const size_t bytes = g->known ? sizeof g->here : sizeof g->answer;
    const ssize_t n = recv(g->fd, owed + g->got, bytes - g->got, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return clock_mono_ns() < g->until_ns ? 1 : -1;
    if (n <= 0)
        return -1;
    g->got += (size_t)n;
    return g->got < bytes;
}

/* False: the guest at i is no longer there, another may be. */
static bool listen_to(struct door *d, int i)
{
    struct guest *g = &d->guests[i];
    const int rc = read_guest(g);

    if (rc == 1)
        return true;
    if (rc == 0 && !g->known && welcome(d, g))
        return true;
    if (rc == 0 && g->known && let_in(d, i))
        return false;
    send_away(d, i);
    return false;
}

/* ------------------------------------------------------------------ until all are here */

static int fail_missing(const struct door *d, int timeout_ms, struct err *e)
{
    char list[NAMED_RANKS * 12] = "";
    const int missing = d->size - 1 - d->n_here;
    size_t at = 0;
    int named = 0;

    for (int i = 0; i < d->size - 1 && named < NAMED_RANKS; i++)
        if (d->links[i].fd < 0)
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%d", named++ ? ", " : "", i + 1);
    return err_set_kind(
        e, ERR_PEER_LOST,
        "%d of %d ranks were started and did not connect to rank 0 on %s, port %u, within %d s: %s%s "
        "(do the hosts let each other in on any port?)",
        missing, d->size, d->inv->host, d->inv->port, timeout_ms / 1000, list, missing > named ? ", …" : "");
}

/* Until somebody comes, a guest's time is over, or ours. */
static int wait_for_guests(struct door *d, int64_t deadline_ns, struct err *e)
{
    struct pollfd fds[MAX_GUESTS + 1];
    int64_t until = deadline_ns, ms;

    for (int i = 0; i < d->n_guests; i++) {
        fds[i] = (struct pollfd){.fd = d->guests[i].fd, .events = POLLIN};
        until = d->guests[i].until_ns < until ? d->guests[i].until_ns : until;
    }
    fds[d->n_guests] = (struct pollfd){.fd = d->n_guests < MAX_GUESTS ? d->fd : -1, .events = POLLIN};
    ms = (until - clock_mono_ns()) / 1000000 + 1;
    ms = ms < 0 ? 0 : ms > 60000 ? 60000 : ms;
    if (poll(fds, (nfds_t)d->n_guests + 1, (int)ms) < 0 && errno != EINTR)
        return err_set_errno(e, "poll");
    return 0;
}

static int admit(struct door *d, int timeout_ms, struct err *e)
{
    const int64_t deadline = timeout_ms < 0 ? INT64_MAX : clock_mono_ns() + timeout_ms * 1000000LL;

    while (d->n_here < d->size - 1) {
        if (wait_for_guests(d, deadline, e) < 0 || open_to(d, e) < 0)
            return -1;
        for (int i = 0; i < d->n_guests;)
            i += listen_to(d, i);
        if (d->n_here < d->size - 1 && clock_mono_ns() >= deadline)
            return fail_missing(d, timeout_ms, e);
    }
    return 0;
}

/* Those that are here would wait for a call that never comes. */
static void dismiss(struct tcp_link *l, const struct err *why)
{
    if (l->fd < 0)
        return;
    tcp_link_say_abort(l, 0, why->msg);
    tcp_link_finish(l);
    tcp_link_close(l, false);
}

int tcp_door_admit(int door, const struct tcp_invitation *inv, int size, int timeout_ms,
                   struct tcp_link *links, struct err *e)
{
    struct door *d = xcalloc(1, sizeof *d);
    struct err why = ERR_INIT;
    int rc;

    d->fd = door;
    d->inv = inv;
    d->size = size;
    d->links = links;
    for (int i = 0; i < size - 1; i++)
        links[i].fd = -1;
    rc = admit(d, timeout_ms, &why);
    while (d->n_guests > 0)
        send_away(d, d->n_guests - 1);
    for (int i = 0; i < size - 1 && rc < 0; i++)
        dismiss(&links[i], &why);
    free(d);
    if (rc < 0 && e)
        *e = why;
    return rc;
}
