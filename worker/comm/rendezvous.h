/* rendezvous - ranks that share nothing but a directory find each other, and one blob of rank 0 reaches all.
 *
 * For ranks that a batch system starts without a process manager that we speak (Slurm without PMIx). What
 * such ranks have in common is a directory, that of the run: there rank 0 tells where it listens, so there is
 * no host list to parse, no port that may be taken, no interface to configure. Every rank but 0 leaves a file
 * that says that it is there; rank 0 publishes the blob when it has seen them all, so whoever gets it knows
 * that every rank was started. Files appear by rename(), whole or not at all.
 *
 * The blob may hold a secret: its file has mode 0600, and a reader refuses one that others may read, or that
 * another user left there.
 */
#ifndef COMM_RENDEZVOUS_H
#define COMM_RENDEZVOUS_H

#include <stddef.h>
#include <sys/types.h>
#include "common/err.h"

struct rendezvous {
    const char *dir;  /* exists, shared by all ranks */
    const char *name; /* of this meeting: unlike that of any other that uses dir */
    int rank, size;
    int timeout_ms; /* < 0 waits for ever */
    uid_t owner;    /* set by rendezvous_share(): whose this rank's files are in dir */
};

/* blob: read on rank 0, written on the others. ERR_PEER_LOST names the ranks that did not come. */
int rendezvous_share(struct rendezvous *r, void *blob, size_t bytes, struct err *e);

/* Ranks but 0, after rendezvous_share(): what lies there now, for a blob that turned out to be of an earlier
 * meeting of this name. 1: read; 0: nothing is there. */
int rendezvous_look(const struct rendezvous *r, void *blob, size_t bytes, struct err *e);

/* Removes what this rank left; rank 0 calls it when all ranks are known to have read its blob. */
void rendezvous_clean(const struct rendezvous *r);

#endif
