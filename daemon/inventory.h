/* inventory - the nodes that jobs run on: what they have, and whether anything may start there.
 *
 * Which nodes there are is configured (--node; without it this host). A node takes no new work while it is
 * drained, which somebody asked for and which the store remembers, or set aside, because a launch failed
 * there: for ASIDE_FIRST_MS, and twice as long each time in a row, up to ASIDE_MAX_MS. What runs there goes
 * on in either case. The order of nodes is the configured one.
 */
#ifndef DAEMON_INVENTORY_H
#define DAEMON_INVENTORY_H

#include "daemon/jobs.h"
#include "daemon/options.h"
#include "daemon/store.h"

enum { NODE_MAX_REASON = 200 };

struct node {
    char name[PLACE_MAX_NAME];
    int64_t slots;
    uint64_t gpus; /* bit i: GPU i exists */
    bool drained;
    char reason[NODE_MAX_REASON]; /* why it is drained, or was set aside last */
    int64_t drained_ms;           /* Unix epoch */
    int64_t aside_until_ms;       /* 0: not set aside */
    int64_t n_faults;             /* in a row */
};

/* What the jobs that hold slots have of a node. */
struct node_use {
    int64_t ranks;
    uint64_t gpus;
};

struct inventory {
    struct node *v;
    size_t n;
    struct node **by_name; /* the same, sorted */
};

/* `local` is this host's name. Reads what the store knows of nodes. */
int inventory_init(struct inventory *inv, const struct options *o, const char *local, struct store *store,
                   struct err *e);
void inventory_free(struct inventory *inv);

struct node *inventory_find(const struct inventory *inv, const char *name);

/* Durable on return. `reason` is cut where it is too long. */
int inventory_drain(struct node *n, struct store *store, bool drained, const char *reason, int64_t now_ms,
                    struct err *e);

/* Something failed there that is the node's fault; or it has shown that it works. */
void inventory_fault(struct node *n, const char *reason, int64_t now_ms);
void inventory_good(struct node *n);

/* "up", "drained" or "set aside". */
const char *inventory_health(const struct node *n, int64_t now_ms);
bool inventory_usable(const struct node *n, int64_t now_ms);

/* use[i] is of node i (zeroed by the caller). Places on nodes that are no longer configured do not count. */
void inventory_use(const struct inventory *inv, const struct jobs *jobs, struct node_use *use);

/* Of all nodes. */
int64_t inventory_slots(const struct inventory *inv);

/* Ranks with so many GPUs each that all nodes together can hold. */
int64_t inventory_capacity(const struct inventory *inv, int64_t gpus_per_rank);

#endif
