/* rendezvous - ranks that share nothing but a directory find each other, and one blob of rank 0 reaches all.
 *
 * For ranks that a batch system starts without a process manager that we speak (Slurm without PMIx). A shared
 * directory is chosen over TCP because nothing about it has to be guessed: no host list to parse, no port
 * that may be taken or fenced off, no interface to pick; and a job has one anyway, for its checkpoints. Every
 * rank but 0 leaves a file that says that it is there; rank 0 publishes the blob when it has seen them all,
 * so whoever gets it knows that every rank was started. Files appear by rename(), whole or not at all.
 */
#ifndef COMM_RENDEZVOUS_H
#define COMM_RENDEZVOUS_H

#include <stddef.h>
#include "common/err.h"

struct rendezvous {
    const char *dir;  /* exists, shared by all ranks */
    const char *name; /* of this meeting: unlike that of any other that ever used dir */
    int rank, size;
    int timeout_ms; /* < 0 waits for ever */
};

/* Fills in rank and size, and a name into name_out, from SLURM_PROCID, SLURM_NTASKS, SLURM_JOB_ID,
 * SLURM_STEP_ID and SLURM_RESTART_COUNT (the last two may be missing). dir and timeout_ms are the caller's.
 */
int rendezvous_from_slurm(struct rendezvous *r, char name_out[128], struct err *e);

/* blob: read on rank 0, written on the others. ERR_PEER_LOST names the ranks that did not come. */
int rendezvous_share(const struct rendezvous *r, void *blob, size_t bytes, struct err *e);

/* Removes what rank 0 published; call it when all ranks are known to have read it. */
void rendezvous_clean(const struct rendezvous *r);

#endif
