/* tree_sum - sums over the micro-shards of all ranks, in the order of shards.h: what the bitwise mode uses
 * where the default mode lets the communicator add in an order of its own.
 *
 * Each rank brings its roots (shards_roots()), n elements each. Short vectors are gathered whole and every
 * rank adds them up; of long ones each rank adds up a slice, for which all ranks send it their roots' slices,
 * so that as many bytes travel as in a ring all-reduce when every rank has one root. Bits depend on the
 * shards only, not on the ranks and not on which of the two ways was taken.
 *
 * All functions that communicate are collective. Nothing is allocated after tree_sum_create(); `stage` is the
 * caller's device memory, as much as tree_…_stage_bytes() says.
 */
#ifndef ENGINE_TREE_SUM_H
#define ENGINE_TREE_SUM_H

#include "worker/engine/backend.h"
#include "worker/engine/shards.h"

struct tree_sum {
    struct comm *comm;       /* borrowed */
    struct backend *backend; /* borrowed */
    int32_t n_shards;
    int n_roots;             /* of this rank */
    int n_all;               /* of all ranks */
    struct tree_node *nodes; /* [n_all]: the roots of all ranks, in order */
    int64_t *roots;          /* [size]: how many each rank has */
    int64_t *send, *recv;    /* [size]: of the call in progress */
    int64_t *slice;          /* [size]: likewise */
};

/* n_shards >= the number of ranks. */
struct tree_sum *tree_sum_create(struct comm *comm, struct backend *backend, int32_t n_shards);
void tree_sum_destroy(struct tree_sum *t); /* NULL is legal */

/* Bytes of scratch that the two sums below want. */
size_t tree_all_reduce_stage_bytes(const struct tree_sum *t, int64_t n, enum dtype dtype);
size_t tree_reduce_scatter_stage_bytes(const struct tree_sum *t, const int64_t *counts, int64_t width);

/* out (n) = the sum, the same bits on every rank. parts[i] is root i of this rank; out may be one of them. */
int tree_all_reduce(struct tree_sum *t, void *const *parts, void *out, int64_t n, enum dtype dtype,
                    void *stage, struct err *e);

/* parts[i]: root i, Σcounts rows of `width` floats; out: this rank's counts[rank] rows of the sum. */
int tree_reduce_scatter(struct tree_sum *t, void *const *parts, float *out, const int64_t *counts,
                        int64_t width, void *stage, struct err *e);

#endif
