/* tcp_star - the links of a job's ranks, all of which end on rank 0, and what they carry call by call.
 *
 * In a call every rank first says, link by link, what it sends and what it expects (tcp_link.h); then
 * tcp_star_exchange() moves bytes, both ways at once, until all of it is done. Both ways: a rank that sent
 * everything before it read would wait for rank 0, which waits to be read.
 *
 * The timeout runs from the last byte that moved. Rank 0 tells ranks that wait for it whom it waits for
 * itself, and a rank that fails tells the others why, so that all name the same rank.
 */
#ifndef COMM_TCP_STAR_H
#define COMM_TCP_STAR_H

#include <poll.h>
#include "worker/comm/rendezvous.h"
#include "worker/comm/tcp_link.h"

struct tcp_star {
    int rank, size, timeout_ms, n_links;
    struct tcp_link *links; /* rank 0: of ranks 1, 2, …; others: of rank 0 */
    struct pollfd *fds;     /* [n_links] */
    uint32_t n_calls;
    int64_t wait_ns; /* in tcp_star_exchange() so far */
    char host[TCP_HOST_BYTES];
    bool broken;
    struct err why; /* it is broken */
};

struct tcp_call {
    enum tcp_kind kind;
    /* Called whenever all that is wanted is here, on all links; says what is wanted next and what may leave.
     * It sets itself to NULL when nothing more will be wanted. NULL: there is nothing to say. */
    void (*arrived)(struct tcp_star *s, struct tcp_call *c);
};

/* Collective: the ranks meet, within the rendezvous' timeout; timeout_ms is that of each wait from then on.
 */
int tcp_star_open(struct tcp_star *s, struct rendezvous *r, int timeout_ms, struct err *e);

/* Unless it is broken, the others learn that this is an orderly end. A zeroed star is legal. */
void tcp_star_close(struct tcp_star *s);

/* 0, or the error that broke it. */
int tcp_star_usable(const struct tcp_star *s, struct err *e);

/* A call begins: no link has anything to do. Returns its number. */
uint32_t tcp_star_begin(struct tcp_star *s);

/* ERR_PEER_LOST names the rank that is gone, silent or gave up, and the call. */
int tcp_star_exchange(struct tcp_star *s, struct tcp_call *c, struct err *e);

/* For `arrived`: everything is here, and everything may leave. */
void tcp_star_release(struct tcp_star *s, struct tcp_call *c);

/* Breaks it: tells *why to whoever can still hear it (rank 0 to all, another rank to rank 0), copies it to
 * *e, returns -1. */
int tcp_star_fail(struct tcp_star *s, const struct err *why, struct err *e);

#endif
