/* follow - watches one job until it ends: prints its transitions and its progress. */
#ifndef CLI_FOLLOW_H
#define CLI_FOLLOW_H

#include <stdbool.h>
#include <stdint.h>
#include "cli/cli.h"

struct client;

struct follow {
    const char *address;
    const char *ca; /* as connect_to() takes it */
    int64_t id;
    int64_t since;     /* events after this one; 0 = from the job's first */
    bool json;         /* events as NDJSON on stdout */
    bool quiet;        /* with json: print no events (the caller prints one document at the end) */
    int reconnect_ms;  /* how long to look for a coordinator that went away; 0 = not at all */
    bool cancel_first; /* the first signal cancels the job and goes on watching, the second leaves */
};

struct follow_end {
    char state[32]; /* "succeeded" "failed" "cancelled" */
    char reason[512];
    bool interrupted; /* a signal came */
};

/* Returns 0 once the job has ended or (interrupted, state "") a signal said to leave; -1 with an error.
 * SIGINT, SIGTERM and SIGHUP must be blocked (follow_block_signals). */
int follow_job(const struct follow *cfg, struct follow_end *end, struct err *e);

/* Blocks the signals that follow_job waits for, so that none is lost between two waits. */
void follow_block_signals(void);

/* The signals as a file descriptor for poll(2); -1 with an error. The caller closes it. */
int follow_signal_fd(struct err *e);

/* The exit status that says how the job ended. */
int follow_exit_status(const struct follow_end *end);

#endif
