/* program_impl - what compile.c builds and exec.c runs; private to the engine. */
#ifndef ENGINE_PROGRAM_IMPL_H
#define ENGINE_PROGRAM_IMPL_H

#include "worker/engine/plan.h"
#include "worker/engine/program.h"

/* One node, compiled. */
struct step {
    struct op_call call;
    const struct kernel *kernel; /* NULL: input or parameter, nothing to run */
    bool backward;               /* its gradient is needed and reaches the loss */
};

/* A range of the arena that dies at time t. */
struct death {
    int t;
    size_t offset, bytes;
};

/* Called after each node's kernel, before anything of its dies; see inspect.c. */
struct watch {
    int (*after)(void *arg, const struct program *p, int i, bool backward, struct err *e); /* NULL: nobody */
    void *arg;
};

struct program {
    struct graph *graph;
    struct program_cfg cfg;
    struct step *steps; /* [graph->n_nodes] */
    struct step_ctx ctx;
    char *arena;
    size_t arena_bytes, unshared_bytes;
    void *loss_grad; /* f64 (1); NULL when forward only */
    struct bucket *buckets;
    struct comm_req *reqs; /* [n_buckets] */
    int n_buckets;
    struct death *deaths; /* sorted by t; for poisoning */
    int n_deaths;
    struct watch watch;
    int now;
    bool now_backward;
};

#endif
