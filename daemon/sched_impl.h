/* sched_impl - what the files of the scheduler share. One call of sched_plan() is: a board (the input,
 * sorted), passes over it, and what they lead to.
 *
 *   sched_order.c     the total order, usage
 *   sched_machine.c   what empty nodes could hold
 *   sched_timeline.c  free slots over time; sched_place.c where a gang goes
 *   sched_pass.c      one pass: each waiting job in order starts or gets a reservation
 *   sched_yield.c     who yields so that somebody starts; sched_victims.c which ones; who is grown
 *   sched_explain.c   the sentence
 */
#ifndef DAEMON_SCHED_IMPL_H
#define DAEMON_SCHED_IMPL_H

#include "common/arena.h"
#include "daemon/sched.h"
#include "daemon/sched_timeline.h"

/* A job's place in the order (sched_order.c). */
struct sched_key {
    int64_t level; /* priority and the points that waiting has brought; higher first */
    double usage;  /* of the user, by share; lower first. -1: has waited past fair share */
    int64_t submitted_ms, id;
};

struct sched_key sched_key(const struct sched_input *in, const struct sched_settings *set,
                           const struct sched_job *job);
int sched_key_compare(const struct sched_key *a, const struct sched_key *b);

/* --- what empty nodes could hold --- */

struct machine;

struct machine *machine_create(const struct sched_node *nodes, size_t n_nodes);
void machine_destroy(struct machine *m);

/* How many of g's ranks fit on empty nodes, at most g->ranks: on usable ones, or on all. */
int32_t machine_capacity(struct machine *m, const struct gang *g, bool usable);

/* --- the board --- */

struct entry {
    const struct sched_job *job;
    struct sched_key key;
    const struct holder *yields; /* an extra: who yields and will wait as this */
    /* Once its start is decided: */
    const struct sched_piece *pieces;
    int32_t n_pieces, ranks;
};

struct holder {
    const struct sched_running *r;
    int32_t held; /* ranks, on usable nodes or not */
    bool yielding;
    int32_t resize_to;
    int64_t for_job;
    bool decided; /* this plan asks it to yield */
};

struct board {
    const struct sched_input *in;
    struct sched_settings set;
    struct machine *machine;
    struct arena mem;
    struct entry *entries; /* waiting, in order */
    size_t n_entries;
    struct holder *holders; /* running, by id */
    size_t n_holders;
    const struct sched_reservation *hints; /* promised before, by id */
    size_t n_hints;
    int yield_tries;   /* left to this plan */
    size_t yield_next; /* entries before this one have been tried since somebody was helped */
};

/* It never runs with fewer ranks. */
static inline int32_t job_least(const struct sched_job *job)
{
    return job->min_ranks > job->nodes ? job->min_ranks : job->nodes;
}

/* What remains when it holds `ranks`, for a timeline: at least 1, TIMELINE_FOREVER when it is not known. */
int64_t board_run_ms(const struct sched_job *job, int32_t ranks);

/* --- one pass --- */

struct outcome {
    enum sched_reason reason;
    int64_t start_ms; /* -1: not planned. At or after TIMELINE_FAR: planned behind what has no estimate */
    const struct sched_piece *pieces;
    int32_t n_pieces, ranks;
    int32_t other; /* who, as in the timeline; TIMELINE_NOBODY */
};

/* Whoever yields waits, too: as an extra, from when its slots are free (or from now, when the pass is a trial
 * of what will be then). `who` in timelines: holders, then entries, then extras. */
struct pass {
    struct board *b;
    struct timeline *tl;
    struct arena *mem;    /* of extras and of what outcomes point to */
    bool trial;           /* those who yield have yielded */
    struct entry *extras; /* in order */
    size_t n_extras;
    struct outcome *out; /* of entries, then of extras */
    int32_t n_reserved;
    struct memo *memo;
};

/* Sets the pass up; b, mem and trial are set already. */
void pass_begin(struct pass *p);

/* All that come before entry `stop` in order; n_entries: everybody. */
void pass_run(struct pass *p, size_t stop);
void pass_end(struct pass *p);

/* The gang that the job would be with `ranks`. */
struct gang pass_gang(const struct sched_job *job, int32_t ranks);

/* With how many ranks the job would like to run on the usable nodes; 0: it cannot run there. */
int32_t pass_wanted(const struct board *b, const struct sched_job *job);

/* The most ranks from min_ranks to at_most with which the job fits now; 0: none. */
int32_t pass_most_now(struct timeline *tl, const struct sched_job *job, int32_t at_most);

/* Places the gang, for which timeline_fit() has just found room; the pieces are from mem. */
const struct sched_piece *pass_place(struct pass *p, const struct gang *g, int32_t *n);

/* --- yields --- */

/* Finds the first waiting job, from yield_next on, for which others may yield, and marks those holders.
 * Returns the job's entry; NULL: there is none. */
const struct entry *yield_for_waiting(struct board *b, const struct pass *base);

/* Unmarks those who would yield for it. */
void yield_undo(struct board *b, const struct entry *e);

/* Marks those who should be grown. */
void yield_to_grow(struct board *b, struct pass *base);

struct victim {
    struct holder *h;
    int32_t least; /* how many ranks it must keep, when it keeps any */
    bool whole;    /* may be preempted altogether */
    int32_t keep;  /* as things stand */
};

/* Sets keep of the victims so that the gang, of which nothing is on the timeline yet, fits now; puts all
 * their holds back as they were. False: not even if all do what they can. Victims are in order of preference.
 */
bool victims_choose(struct timeline *tl, int64_t now_ms, const struct gang *g, struct victim *v, size_t n);

#endif
