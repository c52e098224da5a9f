/* shards - micro-shards, and the one order in which their contributions are summed.
 *
 * Floating point addition is not associative: a sum over the rows of a mini-batch depends on how the rows are
 * grouped, hence on the number of ranks. In the bitwise mode the global mini-batch is therefore cut into S
 * micro-shards that do not depend on ranks (shard k has rows [N·k/S, N·(k+1)/S)); each is computed by itself,
 * with the shapes of a shard, and what shards contribute to a sum is added up in a binary tree over the
 * shards that does not depend on ranks either:
 *
 *   node (level l, index i) covers shards [i·2^l, (i+1)·2^l), and is the sum of (l-1, 2i) and (l-1, 2i+1);
 *   where S is not a power of two, a node whose right child would lie beyond S is its left child.
 *
 * A rank holds a run of consecutive shards. Of the tree it can compute the largest nodes that lie within its
 * run: its *roots*, at most 2·log2 S of them, one where the run is a whole subtree. What is above them is
 * computed from the roots of all ranks (tree_sum.h). Whatever the ranks, the additions are the same.
 *
 * Everything here is a pure function of its arguments.
 */
#ifndef ENGINE_SHARDS_H
#define ENGINE_SHARDS_H

#include <stdint.h>

enum { SHARDS_MAX = 1 << 20, SHARDS_MAX_ROOTS = 2 * 20 + 1 };

struct tree_node {
    int level;
    int32_t idx;
};

/* Nodes of the tree that cannot be merged yet, left to right: what a rank holds while it goes through its
 * shards. Entry i is the value in slot i of whoever holds the values. */
struct tree_stack {
    int32_t n_shards; /* S */
    int n;
    struct tree_node v[SHARDS_MAX_ROOTS];
};

static inline struct tree_stack tree_stack_make(int32_t n_shards)
{
    return (struct tree_stack){.n_shards = n_shards};
}

static inline struct tree_node tree_leaf(int32_t shard)
{
    return (struct tree_node){0, shard};
}

/* Puts a node behind those to its left, and merges while a node and its sibling are there. Returns how many
 * times the caller must now do "slot n-2 += slot n-1, drop slot n-1". */
int tree_push(struct tree_stack *t, struct tree_node node);

/* The shards of a rank: [*first, *end). Empty only when there are more ranks than shards. */
void shards_of_rank(int32_t n_shards, int rank, int size, int32_t *first, int32_t *end);

/* The roots of a run of shards, left to right; returns how many. */
int shards_roots(int32_t n_shards, int32_t first, int32_t end, struct tree_node out[SHARDS_MAX_ROOTS]);

/* The most slots in use while the run is gone through, the one that a shard's own value is written to
 * included: the room that an evaluation needs. */
int shards_slots(int32_t n_shards, int32_t first, int32_t end);

#endif
