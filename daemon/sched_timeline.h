/* sched_timeline - free slots and GPUs of every node from now on, and where and when a gang of ranks fits.
 *
 * A node's line is a step function: what is free from one breakpoint to the next. Whatever runs or is
 * promised is a hold on [from, to) of one node's line. A gang fits at t when the nodes, each by the least
 * that is free on it in [t, t + run), have room for all its ranks.
 *
 * The earliest fit is found by sweeping t over the moments at which some node's room changes: it rises only
 * where a hold ends, and falls only where the window's far end runs into a hold that begins later. Each
 * moment costs one look at one node; moments are sorted only as far as sweeps have gone.
 *
 * The search writes down each node's room as it goes (the tally); timeline_place() reads it.
 *
 * What has no estimate ends at TIMELINE_FAR. Since nobody knows which of those will end first, a gang that
 * must wait for them closes the nodes that it could use (timeline_close): nothing without an estimate starts
 * there any more, else such jobs could follow each other for ever in front of it.
 */
#ifndef DAEMON_SCHED_TIMELINE_H
#define DAEMON_SCHED_TIMELINE_H

#include "daemon/sched.h"

#define TIMELINE_FAR (INT64_MAX / 4)     /* a time: beyond all estimates */
#define TIMELINE_FOREVER (INT64_MAX / 2) /* a duration: from now until beyond TIMELINE_FAR */

enum { TIMELINE_NOBODY = -1 };

struct gang {
    int32_t ranks, gpus_per_rank, nodes; /* as in struct sched_job */
    int64_t run_ms;                      /* at least 1; TIMELINE_FOREVER: no estimate */
};

struct timeline;

struct timeline *timeline_create(const struct sched_node *nodes, size_t n_nodes, int64_t now_ms);
void timeline_destroy(struct timeline *tl);

/* Takes `slots` and `gpus` of the node from now until end_ms (after now). Only before the first of the calls
 * below. Nodes that are not usable are ignored, here and everywhere. `who`: any number that is 0 or more. */
void timeline_add_running(struct timeline *tl, int32_t node, int32_t slots, int32_t gpus, int64_t end_ms,
                          int32_t who);

/* Takes them in [from_ms, to_ms); with sign -1 gives them back, which is meant for holds from now on. After
 * that only what concerns "now" may be asked. */
void timeline_hold(struct timeline *tl, const struct sched_piece *pieces, size_t n, int32_t gpus_per_rank,
                   int64_t from_ms, int64_t to_ms, int32_t who, int sign);

/* Closes the nodes with room for a rank of this kind to gangs without an estimate, until TIMELINE_FAR. */
void timeline_close(struct timeline *tl, int32_t gpus_per_rank);

/* The earliest time at or after from_ms at which the gang fits, or -1. `only`: at from_ms or not at all. */
int64_t timeline_fit(struct timeline *tl, const struct gang *g, int64_t from_ms, bool only);

/* How many ranks of the gang, at most g->ranks, fit now; a fit of so many must follow before they are placed.
 */
int32_t timeline_capacity(struct timeline *tl, const struct gang *g);

/* After a fit: where the gang goes at that time, in order of nodes; `out` has room for min(ranks, nodes)
 * pieces. As few nodes as possible; of those, for a gang without GPUs, nodes that have none; then as little
 * spare room as possible; then the first. Returns how many pieces. */
size_t timeline_place(struct timeline *tl, const struct gang *g, struct sched_piece *out);

/* Whether the gang fits at t_ms just so. */
bool timeline_fits_at(struct timeline *tl, const struct gang *g, int64_t t_ms,
                      const struct sched_piece *pieces, size_t n);

/* --- trying out holds: a tally of now that follows changes --- */

void timeline_tally(struct timeline *tl, const struct gang *g);
void timeline_retally(struct timeline *tl, const struct gang *g, int32_t node);
bool timeline_tally_fits(const struct timeline *tl, const struct gang *g);

/* --- reasons --- */

/* The lowest `who` whose hold ends at t_ms on one of the pieces' nodes. */
int32_t timeline_who_ends(struct timeline *tl, const struct sched_piece *pieces, size_t n, int64_t t_ms);

/* When the gang would fit now if nothing was promised to others: the lowest `who` among the promises that
 * leave a node too little. Else TIMELINE_NOBODY. */
int32_t timeline_who_is_promised(struct timeline *tl, const struct gang *g);

/* Free now on usable nodes. */
void timeline_free_now(const struct timeline *tl, int64_t *slots, int64_t *gpus);

#endif
