/* tcp_meet - how the ranks of a job get their connections: rank 0 listens, the others connect to it.
 *
 * Rank 0 tells through a rendezvous (rendezvous.h) where it listens (host name, every address of the host
 * that others could reach, port) and a secret that it has drawn. A connection becomes a rank's only when both
 * ends have shown that they know the secret, without telling it: each hashes what the other has drawn for
 * this connection (tcp_proof.h). Anything else that connects is hung up on, and a rank that reached something
 * else than rank 0 (every host has its 172.17.0.1, say) tries the next address.
 *
 *   rank 0 → rank r   challenge: a number drawn for this connection
 *   rank r → rank 0   answer: its rank, host name, a number of its own, and the proof over all that
 *   rank 0 → rank r   the proof over the same, in rank 0's role
 *   rank r → rank 0   that it takes this connection; a try that took too long is given up before that
 */
#ifndef COMM_TCP_MEET_H
#define COMM_TCP_MEET_H

#include <stdint.h>
#include "worker/comm/rendezvous.h"
#include "worker/comm/tcp_link.h"

enum { TCP_MAX_ADDRESSES = 16, TCP_SECRET_BYTES = 16 };

struct tcp_address {
    uint8_t is_v6, bytes[16]; /* network order; 4 of them for IPv4 */
};

/* What rank 0 publishes. */
struct tcp_invitation {
    int32_t ok; /* 0: rank 0 cannot listen, and why */
    char why[256];
    char host[TCP_HOST_BYTES];
    uint8_t secret[TCP_SECRET_BYTES];
    uint16_t port, n_addresses;
    struct tcp_address addresses[TCP_MAX_ADDRESSES];
};

/* Collective: all size - 1 links of rank 0 (links[i] is rank i + 1's), or the one of another rank (to rank
 * 0). The error is the rendezvous', or has kind ERR_PEER_LOST and names the ranks that did not connect, or,
 * on those, what stood in the way. */
int tcp_meet(struct rendezvous *r, struct tcp_link *links, struct err *e);

/* One try of rank `rank` at one of the invitation's addresses; -1 is the loopback address. Returns the
 * connection, nonblocking, or -1 with what went wrong after at most timeout_ms. */
int tcp_meet_knock(const struct tcp_invitation *inv, int address, int rank, int timeout_ms, struct err *e);

#endif
