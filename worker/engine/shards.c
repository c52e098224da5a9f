/* shards - see shards.h. */
#include "worker/engine/shards.h"

#include <stdbool.h>
#include "common/cut.h"
#include "common/err.h"

/* The level of the node that covers all shards. */
static int top_level(int32_t n_shards)
{
    int level = 0;

    while ((INT32_C(1) << level) < n_shards)
        level++;
    return level;
}

/* The node to the right of this left child would lie beyond the last shard. */
static bool has_no_sibling(const struct tree_stack *t, struct tree_node v)
{
    return v.idx % 2 == 0 && v.level < top_level(t->n_shards) &&
           ((int64_t)v.idx + 1) << v.level >= t->n_shards;
}

static bool are_siblings(struct tree_node left, struct tree_node right)
{
    return left.level == right.level && right.idx % 2 == 1 && left.idx == right.idx - 1;
}

static struct tree_node parent(struct tree_node v)
{
    return (struct tree_node){v.level + 1, v.idx / 2};
}

int tree_push(struct tree_stack *t, struct tree_node node)
{
    int merges = 0;

    ASSERT(t->n < SHARDS_MAX_ROOTS);
    t->v[t->n++] = node;
    for (;;) {
        struct tree_node *top = &t->v[t->n - 1];
        if (has_no_sibling(t, *top)) {
            *top = parent(*top);
        } else if (t->n > 1 && are_siblings(top[-1], *top)) {
            top[-1] = parent(*top);
            t->n--;
            merges++;
        } else {
            return merges;
        }
    }
}

void shards_of_rank(int32_t n_shards, int rank, int size, int32_t *first, int32_t *end)
{
    *first = (int32_t)cut_first(n_shards, size, rank);
    *end = (int32_t)cut_first(n_shards, size, rank + 1);
}

int shards_roots(int32_t n_shards, int32_t first, int32_t end, struct tree_node out[SHARDS_MAX_ROOTS])
{
    struct tree_stack t = tree_stack_make(n_shards);

    for (int32_t k = first; k < end; k++)
        tree_push(&t, tree_leaf(k));
    for (int i = 0; i < t.n; i++)
        out[i] = t.v[i];
    return t.n;
}

int shards_slots(int32_t n_shards, int32_t first, int32_t end)
{
    struct tree_stack t = tree_stack_make(n_shards);
    int most = 0;

    for (int32_t k = first; k < end; k++) {
        most = t.n + 1 > most ? t.n + 1 : most;
        tree_push(&t, tree_leaf(k));
    }
    return most;
}
