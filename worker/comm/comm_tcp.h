/* comm_tcp - comm.h on host memory over TCP, between ranks that share nothing but a directory (tcp_meet.h):
 * the tasks of a Slurm step that has no PMIx.
 *
 * A star: every rank has one connection, to rank 0, and whatever crosses ranks goes through it. That is right
 * where only counts, hashes and outcomes do (GPU jobs: all else goes over NCCL). It is correct and
 * slow where everything does (CPU jobs): rank 0 takes in and gives out the bytes of all, R ranks times the
 * gradients of a step.
 *
 * Sums are made on rank 0, element by element in the order of ranks, ((x0 + x1) + x2) + …, whatever arrives
 * first: the same bits on every rank, and again in every run on the same number of ranks. An all-reduce that
 * is begun is done when the call returns: nothing overlaps.
 *
 * One thread, poll(2). The timeout runs from the last byte that moved; rank 0 tells ranks that wait for it
 * whom it waits for itself, and when it finds that a rank is gone or silent it tells the others so: every
 * rank's error names the same rank. After an error nothing but abort and destruction is left.
 */
#ifndef COMM_COMM_TCP_H
#define COMM_COMM_TCP_H

#include "worker/comm/comm.h"

struct comm_tcp_config {
    const char *dir;  /* exists, shared by all ranks; needed until this returns */
    const char *name; /* of the meeting in it: that of no other at this time */
    int rank, size;
    int meet_ms, timeout_ms; /* for the meeting, and for each wait after it; < 0 waits for ever */
};

/* Collective. ERR_PEER_LOST: some rank did not come; the message names it. */
struct comm *comm_tcp_create(const struct comm_tcp_config *cfg, struct err *e);

#endif
