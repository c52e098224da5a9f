/* daemon - the composition: owns every part and wires them together; the parts meet here and nowhere else.
 *
 * Order of birth: state directory and its lock → store → inventory → journal (replay) → launcher → actions →
 * server; then actions take up what was running, and the loop turns. Death is the reverse; see daemon_run.
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <uv.h>
#include "common/log.h"
#include "daemon/inventory.h"
#include "daemon/jobs.h"
#include "daemon/journal.h"
#include "daemon/launch.h"
#include "daemon/options.h"
#include "daemon/spec_cache.h"
#include "daemon/store.h"

struct server;
struct actions;
struct notify;

struct daemon {
    uv_loop_t loop;
    struct options *options; /* changes with a reload */
    struct log log;
    char host[JOB_MAX_NODE]; /* this host's name */
    struct inventory inventory;
    int lock_fd;
    int64_t started_ns;
    struct store *store;
    struct spec_cache *specs;
    struct jobs jobs;
    struct journal *journal;
    struct launcher *launcher;
    struct actions *actions;
    struct server *server;
    struct notify *notify;
    bool draining;   /* no new starts, no submissions */
    bool cancelling; /* the way out waits until nothing runs */
    bool stopping;   /* on the way out: nothing acts any more, but cancellations run to their end */

    uv_signal_t on_term, on_int, on_hup;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tty_t tty;
    } lifeline;
    char lifeline_sink[64]; /* what comes over it is thrown away; only its end counts */
    uv_timer_t flush;       /* bounds how long replies may take to leave at the end */
    bool has_lifeline, closed;
};

/* Runs until it is told to stop. 0 after an orderly end, -1 when it could not start. */
int daemon_run(struct options *o, struct err *e);

/* Begins the orderly end: no new starts; with `cancel`, what runs is cancelled first. Called again, it does
 * not wait for cancellations any longer. */
void daemon_stop(struct daemon *d, bool cancel, const char *why);

/* To be called when something that the end waits for may have come. */
void daemon_check_stop(struct daemon *d);

#endif
