/* compile_impl - what the files of the compiler share: compile.c (every program) and compile_shards.c,
 * spread.c (programs in micro-shards); private to the engine.
 */
#ifndef ENGINE_COMPILE_IMPL_H
#define ENGINE_COMPILE_IMPL_H

#include "worker/engine/program_impl.h"
#include "worker/engine/spread.h"

/* Scratch of one compilation. All arrays have one element a node. */
struct compiler {
    struct program *p;
    struct graph *g;
    int n;
    bool *has_grad;    /* a gradient of the loss flows to this node's value */
    int *first_writer; /* id of the consumer whose backward runs first */
    size_t *aux_bytes;
    size_t scratch_bytes;
    struct plan_item *items; /* value, grad, aux of every node, then scratch; bytes 0 = not there */
    struct spread *spread;   /* in micro-shards: how each value lies; else NULL */
};

enum { ITEM_VALUE, ITEM_GRAD, ITEM_AUX, ITEM_KINDS };

bool compile_is_leaf(const struct node *n);

/* Bytes of one copy of the node's value, and of its gradient. */
size_t compile_node_bytes(const struct node *n);
size_t compile_grad_bytes(const struct node *n);

/* Where an item lies; NULL when it is not there. */
void *compile_item(const struct compiler *c, int id, int kind);

/* ---- compile_shards.c and emit_shards.c: the parts that differ in micro-shards, in the order of their calls
 * ---- */

/* Sets c->spread and makes the shard-shaped copies of the nodes. Refuses by name what cannot be computed in
 * micro-shards. */
int shards_begin(struct compiler *c, struct err *e);

/* Prepares the kernels that run a shard at a time. */
int shards_prepare(struct compiler *c, struct err *e);

/* Whether a kernel runs over all rows of the rank at once in some pass. */
bool shards_runs_whole(const struct compiler *c, int i);

/* Bytes of node i's value and of its gradient: one copy, or one for each root of the tree. */
size_t shards_value_bytes(const struct compiler *c, int i);
size_t shards_grad_bytes(const struct compiler *c, int i);

/* Writes down what each node does, once everything has its place. */
int shards_emit(struct compiler *c, struct err *e);

/* Once the gradient buckets are known: their roots, and scratch for sums over ranks. */
int shards_finish(struct compiler *c, struct err *e);

/* ---- between those two files ---- */

/* The kernel of node i runs a shard at a time in this pass (OP_WHOLE_FORWARD, OP_WHOLE_BACKWARD). */
bool shards_in_pieces(const struct compiler *c, int i, unsigned whole_flag);

/* Roots of this rank; streams of the rows that a node works on; whether gradient k of node i is a sum over
 * rows; bytes of temporary slots for a sum of `bytes`. */
int shards_n_roots(const struct compiler *c);
int shards_n_streams(const struct compiler *c, const struct node *n);
bool shards_is_tree_gradient(const struct compiler *c, int i, int k);
size_t shards_temp_bytes(const struct compiler *c, int i, size_t bytes);

#endif
