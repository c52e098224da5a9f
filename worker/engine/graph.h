/* graph - a static, append-only list of nodes in execution order. A node gets its shape at birth: a model
 * that does not fit together fails where it is built, with the node's path, never inside a kernel.
 *
 * One graph is one phase (train or eval) of one rank: row counts are part of its shapes. Two graphs share
 * parameters by binding to the same struct params by name.
 */
#ifndef ENGINE_GRAPH_H
#define ENGINE_GRAPH_H

#include "common/arena.h"
#include "worker/engine/op.h"
#include "worker/engine/params.h"

/* How the N rows of the global mini-batch lie on the ranks: consecutive slices in rank order, any lengths >=
 * 0. */
struct row_split {
    int rank, size;
    int64_t total;         /* N */
    int64_t first, local;  /* this rank's slice */
    const int64_t *counts; /* rows of each rank; graph_create() copies them */
    int32_t n_shards; /* S > 0: computed in S micro-shards (shards.h), and slices are whole shards; 0: not */
};

struct node {
    int id; /* index in graph->nodes */
    enum op op;
    const char *name; /* path: "layer1.0.conv1" */
    struct node *in[OP_MAX_INPUTS];
    int n_inputs;
    union op_attr attr;
    struct shape shape;
    enum dtype dtype;
    enum dtype grad_dtype; /* of the gradient: as dtype, but f32 where many ranks' parts are summed */
    unsigned bwd_reads;
    bool needs_grad;     /* training graph, and a trainable parameter lies upstream (or is it) */
    struct param *param; /* OP_PARAM */
};

struct graph {
    struct arena arena; /* nodes and names */
    struct node **nodes;
    int n_nodes, cap_nodes;
    struct row_split rows;
    struct params *params; /* borrowed */
    bool training;
};

struct graph *graph_create(struct params *params, const struct row_split *rows, bool training);
void graph_destroy(struct graph *g);

/* Appends a node; name is copied. NULL on error: "NAME (OP): what is wrong". */
struct node *graph_add(struct graph *g, enum op op, const char *name, struct node *const *in, int n_inputs,
                       const union op_attr *attr, struct err *e);

/* An OP_PARAM node bound to p; the same node for the same p. */
struct node *graph_param(struct graph *g, struct param *p, struct err *e);

#endif
