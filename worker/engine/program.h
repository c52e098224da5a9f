/* program - a compiled graph: memory planned, kernels chosen, gradient buckets known; then run step after
 * step.
 *
 * Time runs on one line: node i runs forward at t = i, backward at t = 2n-1-i (n nodes). A value lives from
 * its birth to its last reader, a gradient from its first writer to its node's backward, aux from forward to
 * backward. Buffers whose lives do not overlap share bytes (greedy by size; see plan.c). Everything is
 * allocated by program_compile(); a step allocates nothing.
 *
 * When the graph's row_split has micro-shards (shards.h), all sums over rows are made in an order that does
 * not depend on ranks: loss, gradients and statistics then have the same bits for every number of ranks,
 * given that kernels' bits depend on shapes only (backend.h), which on CPUs asks for one thread a rank.
 *
 * With BF_POISON (debug builds) a range is filled with NaN when its life ends, so a kernel that reads dead
 * memory or leaves an element undefined shows up as NaN.
 */
#ifndef ENGINE_PROGRAM_H
#define ENGINE_PROGRAM_H

#include "worker/engine/backend.h"

struct program;

/* A range of the flat gradient buffer that is final, on this rank, once backward has passed the node. */
struct bucket {
    size_t first, count; /* floats */
    int node_id;
};

struct program_cfg {
    struct backend *backend;
    struct comm *comm;
    struct node *loss;           /* f64 (1) root of the backward pass; NULL = forward only */
    struct node *const *outputs; /* values that the caller reads after forward: they stay alive to the end */
    int n_outputs;
    size_t bucket_bytes; /* aim for gradient buckets of this size; 0 = one bucket */
};

/* The graph and everything in cfg must outlive the program. */
struct program *program_compile(struct graph *g, const struct program_cfg *cfg, struct err *e);
void program_destroy(struct program *p);

/* Copies host data into an OP_INPUT node; bytes must be its size. */
int program_feed(struct program *p, struct node *input, const void *host, size_t bytes, struct err *e);

/* Begins to bring what a later program_feed() of the same host memory will copy, beside the work that the
 * device has. The memory must not change until then, or until program_feed_ahead() of NULL. Where the backend
 * has no use for it, nothing is done. */
int program_feed_ahead(struct program *p, const void *host, size_t bytes, struct err *e);

/* Tells kernels what their random draws are keyed by, from now on. */
int program_begin(struct program *p, uint64_t seed, uint64_t step, struct err *e);

/* Runs forward. For training graphs this updates running statistics. */
int program_run(struct program *p, struct err *e);

/* The two together. */
int program_forward(struct program *p, uint64_t seed, uint64_t step, struct err *e);

/* Clears the gradient buffer, runs backward from the loss, and sums gradients over the ranks, bucket by
 * bucket, while earlier layers still run. Afterwards params->grads holds the gradient of the global loss on
 * every rank. */
int program_backward(struct program *p, struct err *e);

/* Copies a value (an output, or the loss) to the host. */
int program_read(struct program *p, const struct node *n, void *host, size_t bytes, struct err *e);

/* This rank's share of the loss after forward: summed over the ranks, in any order, it is the loss of the
 * global mini-batch. (In micro-shards the loss itself is that already, on every rank, with the same bits for
 * every number of ranks; rank 0's share is then all of it.) A device pointer, valid between forward and the
 * next feed; NULL: nothing. */
const double *program_loss_share(const struct program *p);

/* Bytes of the activation arena (values, gradients, aux, scratch), and what they would be without sharing. */
size_t program_arena_bytes(const struct program *p);
size_t program_unshared_bytes(const struct program *p);

/* Of the arena, what kernels use during one call: as much as the one that needs most. */
size_t program_scratch_bytes(const struct program *p);

/* Path of the node that runs now, or ran last, and whether it is backward: what the watchdog names. */
const char *program_where(const struct program *p, bool *backward);

#endif
