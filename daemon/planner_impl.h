/* planner_impl - what the scheduler is told. Private to planner*.c. */
#ifndef DAEMON_PLANNER_IMPL_H
#define DAEMON_PLANNER_IMPL_H

#include "daemon/inventory.h"
#include "daemon/planner.h"
#include "daemon/sched.h"

/* What a user has had of the machine, decayed. */
struct user_use {
    int64_t uid;
    double share; /* as configured */
    double usage; /* slot-seconds at at_ms */
    int64_t held; /* slots since then */
    int64_t at_ms;
};

struct users {
    struct user_use *v; /* by uid */
    size_t n;
};

/* One input with all that it points to. */
struct gathered {
    struct sched_input in;
    struct sched_settings settings;
    struct sched_node *nodes;
    struct node_use *use; /* of each node, before the plan */
    struct sched_user *users;
    struct sched_job *waiting;
    struct sched_running *running;
    struct sched_piece *pieces;
};

/* What the jobs of the past have used; once. */
void users_init(struct users *u, const struct daemon *d, int64_t now_ms);
void users_free(struct users *u);

/* Brings every user's usage up to date; to be called at each change of what is held, so at each plan. */
void users_update(struct users *u, const struct daemon *d, int64_t now_ms);

/* Is everything there that the job comes after? *never is set to a job that will not succeed. */
bool planner_is_due(const struct jobs *js, const struct job *job, const struct job **never);

/* The state of everything at now_ms. */
void gather(struct gathered *g, const struct daemon *d, const struct users *u, int64_t now_ms);
void gathered_free(struct gathered *g);

#endif
