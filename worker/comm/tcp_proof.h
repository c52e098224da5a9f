/* tcp_proof - the messages by which two ends of a new connection show each other that they know the
 * job's secret (tcp_meet.h tells the order). */
#ifndef COMM_TCP_PROOF_H
#define COMM_TCP_PROOF_H

#include <stdbool.h>
#include <stdint.h>
#include "worker/comm/tcp_link.h"
#include "worker/comm/tcp_meet.h"

enum { TCP_DRAWN_BYTES = 16, TCP_PROOF_BYTES = 32 };

#define TCP_MAGIC "bftcp-1"

/* Rank 0's: drawn for this connection, so that an answer that was seen before is of no use. */
struct tcp_challenge {
    char magic[8];
    uint8_t drawn[TCP_DRAWN_BYTES];
};

struct tcp_answer {
    char magic[8];
    char host[TCP_HOST_BYTES];
    int32_t rank;
    uint8_t drawn[TCP_DRAWN_BYTES];
    uint8_t proof[TCP_PROOF_BYTES];
};

struct tcp_welcome {
    uint8_t proof[TCP_PROOF_BYTES];
};

/* The last word of the rank that connects: from now on it makes no other try. */
struct tcp_here {
    char magic[8];
};

/* Each role's proof is over the whole exchange; the other's proof is none of one's own. It is HMAC-SHA256
 * under the secret: who does not know that can neither make a proof nor learn from those that it sees. */
enum tcp_role { TCP_ROLE_ROOT = 1, TCP_ROLE_OTHER };

/* answer's own proof does not count. */
void tcp_prove(const uint8_t secret[TCP_SECRET_BYTES], enum tcp_role role, const struct tcp_challenge *c,
               const struct tcp_answer *a, uint8_t proof[TCP_PROOF_BYTES]);

/* Takes the same time wherever they differ. */
bool tcp_same_proof(const uint8_t a[TCP_PROOF_BYTES], const uint8_t b[TCP_PROOF_BYTES]);

/* Bytes that nobody can foretell, from the kernel. */
int tcp_draw(uint8_t *out, size_t n, struct err *e);

/* The same on both ends: small messages leave at once, and a host that lost its power is found in two minutes
 * rather than at the end of the communicator's patience. */
void tcp_tune(int fd);

#endif
