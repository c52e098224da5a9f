/* tcp_door - rank 0's part of a meeting (tcp_meet.h): it listens, and tells ranks from whatever else
 * connects.
 */
#ifndef COMM_TCP_DOOR_H
#define COMM_TCP_DOOR_H

#include "worker/comm/tcp_meet.h"

/* Listens on a free port of all interfaces for size - 1 ranks, draws the secret, and fills in the invitation.
 * Returns the descriptor, or -1, and then the invitation says why. */
int tcp_door_open(struct tcp_invitation *inv, int size, struct err *e);

/* Lets in ranks 1 … size - 1; links[i] becomes rank i + 1's. A connection that is not some rank's after
 * GUEST_MS, or answers wrongly, is hung up on. ERR_PEER_LOST names who did not come within timeout_ms; those
 * who did hear it. */
int tcp_door_admit(int door, const struct tcp_invitation *inv, int size, int timeout_ms,
                   struct tcp_link *links, struct err *e);

#endif
